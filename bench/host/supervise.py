"""Waiting for one attempt: its end, its time limit, or a request to stop.

    running --(time limit | stop asked)--> asked to stop --(grace over | stop asked again)--> killed

``Stop`` turns Ctrl-C and SIGTERM into a request that the loop answers at its next look, so that a signal
never lands in the middle of writing a result.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Literal

from bench.host.local import Exit, Handle

GRACE_SECONDS = 20.0
"""From asking a runner to stop until it is killed: enough for one slow request and the bookkeeping."""

LOOK_SECONDS = 0.5
"""How often the loop looks up. The end of the runner is noticed at once; this is for clock and display."""


@dataclass
class Stop:
    """Who asked the campaign to end. As a context it listens to SIGINT and SIGTERM."""

    signal_number: int | None = None
    times: int = 0

    def __enter__(self) -> Stop:
        self._before = [
            (number, signal.signal(number, self._ask)) for number in (signal.SIGINT, signal.SIGTERM)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        self.times += 1

    @property
    def asked(self) -> bool:
        return self.times > 0


@dataclass(frozen=True)
class Ended:
    exit: Exit
    after_seconds: float
    stopped_for: Literal["timeout", "interrupt"] | None = None


def supervise(
    handle: Handle,
    timeout_seconds: float,
    stop: Stop,
    look: Callable[[], None],
    grace_seconds: float = GRACE_SECONDS,
) -> Ended:
    """Returns when the runner is gone and what it had started is killed. ``look`` is called about twice a
    second."""
    begun = time.monotonic()
    stopped_for: Literal["timeout", "interrupt"] | None = None
    kill_at = float("inf")
    stops_before = stop.times
    while True:
        exit_ = handle.wait(LOOK_SECONDS)
        now = time.monotonic()
        if exit_ is not None:
            return Ended(exit_, now - begun, stopped_for)
        if stopped_for is None and (stop.asked or now - begun > timeout_seconds):
            stopped_for = "interrupt" if stop.asked else "timeout"
            stops_before = stop.times
            kill_at = now + grace_seconds
            handle.stop()
        elif now > kill_at or (stopped_for and stop.times > stops_before):
            handle.kill()
        look()
