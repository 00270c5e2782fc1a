"""Users and their requests against one server that serves first come, first served, one at a time.

No threads: with a single server the whole queue is known. A closed-loop user sends its next request when
its last one returned; an open-loop arrival is drawn from a seeded Poisson process, whatever the server
does. Both are endless; the caller stops iterating when it has enough.

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
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Served(Generic[T]):
    """One finished request. Times are ``time.perf_counter()`` seconds."""

    index: int
    """Order of service, from 0; chooses the prompt."""
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

    def keeping(self, output: U) -> Served[U]:
        """The same request with less to remember of it."""
        return Served(self.index, self.user, self.scheduled, self.begun, self.finished, output)


def closed_loop(serve: Callable[[int], T], users: int) -> Iterator[Served[T]]:
    """Users without think time. Each waits while the caller keeps its books on the request it got back, so
    that cost shows in the window and not in a latency. The first ``users`` requests are the first round."""
    start = time.perf_counter()
    waiting = deque((start, user) for user in range(users))
    index = 0
    while True:
        scheduled, user = waiting.popleft()
        yield _serve(serve, index, user, scheduled)
        waiting.append((time.perf_counter(), user))
        index += 1


def poisson(serve: Callable[[int], T], users: int, rate: float, seed: int = 0) -> Iterator[Served[T]]:
    """Each user sends ``rate`` requests a second, whether or not its last one returned."""
    draw = random.Random(seed)
    scheduled = time.perf_counter()
    index = 0
    while True:
        scheduled += draw.expovariate(users * rate)
        time.sleep(max(0.0, scheduled - time.perf_counter()))
        yield _serve(serve, index, draw.randrange(users), scheduled)
        index += 1


def _serve(serve: Callable[[int], T], index: int, user: int, scheduled: float) -> Served[T]:
    begun = time.perf_counter()
    output = serve(index)
    return Served(index, user, scheduled, begun, time.perf_counter(), output)


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

    def start(self, serve: Callable[[int], T], users: int) -> Iterator[Served[T]]:
        if self.rate is None:
            return closed_loop(serve, users)
        return poisson(serve, users, self.rate)
