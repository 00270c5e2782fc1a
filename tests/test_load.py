"""Users, queue and open loop: latency counts from the moment a request was scheduled."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise

import pytest

from bench.runner.load import Load, OneLane, closed_loop, poisson

SERVICE_SECONDS = 0.02


def work(index: int) -> int:
    time.sleep(SERVICE_SECONDS)
    return index


def server(serve: Callable[[int], int] = work) -> OneLane[int]:
    return OneLane(serve, afterwards=lambda output: output)


def test_one_user_never_queues() -> None:
    for request in islice(closed_loop(server(), users=1), 5):
        assert request.queue_seconds < SERVICE_SECONDS / 2
        assert request.service_seconds >= SERVICE_SECONDS
        assert request.latency_seconds == pytest.approx(request.queue_seconds + request.service_seconds)


def test_with_four_users_each_request_waits_for_the_three_before_it() -> None:
    requests = list(islice(closed_loop(server(), users=4), 12))
    for request in requests[4:]:
        assert request.queue_seconds >= 3 * SERVICE_SECONDS
        assert request.latency_seconds >= 4 * SERVICE_SECONDS


def test_the_first_round_queues_less_than_every_later_one() -> None:
    requests = list(islice(closed_loop(server(), users=4), 8))
    assert requests[0].queue_seconds < SERVICE_SECONDS
    assert max(r.queue_seconds for r in requests[:4]) < min(r.latency_seconds for r in requests[4:])


def test_users_take_turns_and_one_request_is_served_at_a_time() -> None:
    requests = list(islice(closed_loop(server(), users=3), 9))
    assert [request.user for request in requests] == [0, 1, 2] * 3
    assert [request.output for request in requests] == list(range(9))
    assert all(later.begun >= earlier.finished for earlier, later in pairwise(requests))


def test_what_the_bench_does_between_requests_is_in_nobodys_latency_with_one_user() -> None:
    slowest = 0.0
    for request in islice(closed_loop(server(), users=1), 4):
        slowest = max(slowest, request.queue_seconds)
        time.sleep(0.05)  # books
    assert slowest < 0.02


def test_an_open_loop_faster_than_the_server_builds_a_queue() -> None:
    requests = list(islice(poisson(server(), users=1, rate=20 / SERVICE_SECONDS), 10))
    waits = [request.queue_seconds for request in requests]
    assert waits[-1] > 5 * SERVICE_SECONDS
    assert all(request.latency_seconds > request.service_seconds for request in requests[1:])


def test_an_open_loop_slower_than_the_server_waits_for_arrivals() -> None:
    requests = list(islice(poisson(server(), users=1, rate=5.0), 4))
    gaps = [later.scheduled - earlier.finished for earlier, later in pairwise(requests)]
    assert sum(gaps) > 0, "the server was never idle"
    assert all(request.begun >= request.scheduled for request in requests)


def test_poisson_arrivals_repeat_with_their_seed_and_share_the_rate_among_users() -> None:
    def gaps(seed: int, users: int) -> list[float]:
        served = list(
            islice(poisson(server(lambda index: index), users, rate=2000.0 / users, seed=seed), 200)
        )
        assert set(Counter(request.user for request in served)) == set(range(users))
        return [later.scheduled - earlier.scheduled for earlier, later in pairwise(served)]

    assert gaps(1, 4) == pytest.approx(gaps(1, 4))
    assert gaps(1, 4) != pytest.approx(gaps(2, 4))
    assert sum(gaps(1, 4)) / 199 == pytest.approx(1 / 2000, rel=0.3)


@pytest.mark.parametrize("text", ["", "poisson", "poisson:", "poisson:0", "poisson:-1", "poisson:x", "open"])
def test_a_load_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"poisson:0\.5"):
        Load.parse(text)


def test_a_load_survives_its_own_text() -> None:
    for text in ("closed", "poisson:0.5", "poisson:12"):
        assert str(Load.parse(text)) == text
