"""Users and their requests against a queue that is served first come, first served.

No threads: whoever serves says when a request was done, so the whole queue is known. A closed-loop user
sends its next request when its last one returned; an open-loop arrival is drawn from a seeded Poisson
process, whatever the servers do. Both are endless; the caller stops iterating when it has enough.

Latency counts from the moment a request was *scheduled*, so queueing is in it. A timer that starts when
the server takes the request hides the queue.
"""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Finished(Generic[T]):
    """One request as its server saw it. Times are ``time.perf_counter()`` seconds."""

    index: int
    begun: float
    finished: float
    output: T


@dataclass(frozen=True)
class Served(Generic[T]):
    """One finished request. Times are ``time.perf_counter()`` seconds."""

    index: int
    """Order in which requests were taken from the queue, from 0; chooses the prompt."""
    user: int
    scheduled: float
    begun: float
    finished: float
    output: T

    @property
    def queue_seconds(self) -> float:
        return self.begun - self.scheduled

    @property
    def service_seconds(self) -> float:
        return self.finished - self.begun

    @property
    def latency_seconds(self) -> float:
        return self.finished - self.scheduled


class Lanes(Protocol[T]):
    """What serves the queue: one pipeline, or several side by side."""

    @property
    def free(self) -> bool:
        """Whether one more request may begin."""

    def begin(self, index: int) -> None:
        """Hands a request to a lane that is free."""

    def finish(self) -> Finished[T]:
        """Waits for the next of the requests begun to be done. Raises what one of them raised."""

    def drain(self) -> None:
        """Waits for what is still being served, whatever becomes of it."""


class OneLane(Generic[T]):
    """One server in this process, which works while ``finish`` is waited for. ``afterwards`` turns what
    ``serve`` returned into what is kept, outside the request's time."""

    def __init__(self, serve: Callable[[int], Any], afterwards: Callable[[Any], T]) -> None:
        self._serve, self._afterwards = serve, afterwards
        self._taken: int | None = None

    @property
    def free(self) -> bool:
        return self._taken is None

    def begin(self, index: int) -> None:
        self._taken = index

    def finish(self) -> Finished[T]:
        index, self._taken = self._taken, None
        if index is None:
            raise RuntimeError("no request has begun")
        begun = time.perf_counter()
        output = self._serve(index)
        finished = time.perf_counter()
        return Finished(index, begun, finished, self._afterwards(output))

    def drain(self) -> None:
        self._taken = None


def closed_loop(lanes: Lanes[T], users: int) -> Iterator[Served[T]]:
    """Users without think time, in the order in which their requests are done. Each waits while the caller
    keeps its books on the request it got back, so that cost shows in the window and not in a latency. The
    first ``users`` requests are the first round."""
    start = time.perf_counter()
    waiting = deque((start, user) for user in range(users))
    begun: dict[int, tuple[float, int]] = {}
    index = 0
    while True:
        while waiting and lanes.free:
            begun[index] = waiting.popleft()
            lanes.begin(index)
            index += 1
        served = _served(lanes.finish(), begun)
        yield served
        waiting.append((time.perf_counter(), served.user))


def poisson(lanes: Lanes[T], users: int, rate: float, seed: int = 0) -> Iterator[Served[T]]:
    """Each user sends ``rate`` requests a second, whether or not its last one returned."""
    draw = random.Random(seed)
    scheduled = time.perf_counter()
    begun: dict[int, tuple[float, int]] = {}
    index = 0
    while True:
        scheduled += draw.expovariate(users * rate)
        user = draw.randrange(users)
        while not lanes.free:
            yield _served(lanes.finish(), begun)
        time.sleep(max(0.0, scheduled - time.perf_counter()))
        begun[index] = scheduled, user
        lanes.begin(index)
        index += 1


def _served(done: Finished[T], begun: dict[int, tuple[float, int]]) -> Served[T]:
    scheduled, user = begun.pop(done.index)
    return Served(done.index, user, scheduled, done.begun, done.finished, done.output)


@dataclass(frozen=True)
class Load:
    """Who sends requests: ``closed``, or ``poisson:RATE`` with RATE in requests per second and user."""

    rate: float | None = None

    @classmethod
    def parse(cls, text: str) -> Load:
        if text == "closed":
            return cls()
        match = re.fullmatch(r"poisson:(\d+(?:\.\d+)?)", text)
        if match is None or float(match[1]) == 0:
            raise ValueError(f"load {text!r}: expected `closed` or `poisson:RATE`, e.g. `poisson:0.5`")
        return cls(float(match[1]))

    def __str__(self) -> str:
        return "closed" if self.rate is None else f"poisson:{self.rate:g}"

    def start(self, lanes: Lanes[T], users: int) -> Iterator[Served[T]]:
        if self.rate is None:
            return closed_loop(lanes, users)
        return poisson(lanes, users, self.rate)
