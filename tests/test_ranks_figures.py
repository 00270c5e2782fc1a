"""Figures of several GPUs, each and together, and one queue in front of several servers: no process runs."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest

from bench import check_cell
from bench.runner import telemetry
from bench.runner.load import Finished, Served, closed_loop, poisson
from bench.runner.telemetry import Device, Sample
from bench.runner.window import Facts, Window, cell_of

DEVICES = [Device("GPU-a", 80.0, 1.0, 700.0), Device("GPU-b", 80.0, 1.0, 700.0)]


def sample(t: float, gpu: str, memory_gb: float, busy: float, watts: float) -> Sample:
    values = {
        "memory_used_bytes": memory_gb * 1e9,
        "gpu_busy_percent": busy,
        "power_w": watts,
        "sm_clock_mhz": 1700.0 + t,
        "temperature_c": 60.0 + t,
    }
    return Sample(t, gpu, values)


SAMPLES = [
    sample(0.0, "GPU-a", 40.0, 100.0, 600.0),
    sample(0.0, "GPU-b", 30.0, 80.0, 500.0),
    sample(1.0, "GPU-a", 35.0, 90.0, 650.0),
    sample(1.0, "GPU-b", 38.0, 70.0, 550.0),
]


def test_each_gpu_has_its_own_figures_and_a_column_that_it_lacks_is_null() -> None:
    first, second = telemetry.by_gpu(SAMPLES, DEVICES, [(34_000_000_000, 0), (33_000_000_000, 0)])
    assert (first.uuid, second.uuid) == ("GPU-a", "GPU-b")
    assert (first.memory_used_peak_gb, second.memory_used_peak_gb) == (40.0, 38.0)
    assert (first.gpu_busy_avg_percent, second.gpu_busy_avg_percent) == (95.0, 75.0)
    assert (first.power_average_w, second.power_average_w) == (625.0, 525.0)
    assert first.torch_allocated_peak_gb == 34.0
    assert second.temperature_peak_c == 61.0
    assert first.memory_clock_avg_mhz is None


def test_together_is_the_highest_sum_at_one_moment_and_not_the_sum_of_peaks() -> None:
    memory = telemetry.memory(SAMPLES, DEVICES)
    assert memory.together_peak_gb == 73.0
    assert memory.together_avg_gb == 71.5
    assert memory.used_peak_gb == 40.0
    assert telemetry.memory(SAMPLES[::2], DEVICES[:1]).together_peak_gb is None, "one GPU is not several"


class TwoLanes:
    """Two servers on a clock that only they move: the first takes 3 s a request, the second 2 s."""

    def __init__(self) -> None:
        self.idle = [(0.0, 3.0), (0.0, 2.0)]
        self.serving: list[tuple[float, float, int, float]] = []
        self.most_at_once = 0

    @property
    def free(self) -> bool:
        return bool(self.idle)

    def begin(self, index: int) -> None:
        since, takes = self.idle.pop(0)
        self.serving.append((since + takes, since, index, takes))
        self.most_at_once = max(self.most_at_once, len(self.serving))

    def finish(self) -> Finished[Facts]:
        done = min(self.serving)
        self.serving.remove(done)
        finished, begun, index, takes = done
        self.idle.append((finished, takes))
        return Finished(index, begun, finished, Facts({}))

    def drain(self) -> None:
        self.serving.clear()


def test_requests_come_back_in_the_order_in_which_they_are_done() -> None:
    lanes = TwoLanes()
    served = list(islice(closed_loop(lanes, users=4), 8))
    assert [request.finished for request in served] == sorted(request.finished for request in served)
    assert lanes.most_at_once == 2
    assert sorted(request.index for request in served)[:6] == list(range(6)), "taken first come, first served"
    assert [request.index for request in served][:3] == [1, 0, 2], "the second is faster"


def test_one_user_keeps_one_server_busy() -> None:
    lanes = TwoLanes()
    list(islice(closed_loop(lanes, users=1), 4))
    assert lanes.most_at_once == 1


def test_an_open_loop_hands_out_what_arrives_while_a_server_is_free() -> None:
    lanes = TwoLanes()
    served = list(islice(poisson(lanes, users=2, rate=1e6), 6))
    assert len({request.index for request in served}) == 6
    assert lanes.most_at_once == 2


def test_the_window_begins_when_each_server_has_been_done_once_so_that_no_round_counts_twice() -> None:
    def request(index: int, begun: float, finished: float) -> Served[Facts]:
        return Served(index, index % 2, begun, begun, finished, Facts({"denoise": 1.0}))

    served = [
        request(2 * turn + server, 2.0 * turn, 2.0 * turn + 2.0 + 0.1 * server)
        for turn in range(4)
        for server in range(2)
    ]
    cell = cell_of(Window(2, 1, "closed", served, (), recompiles=0, torch_peak_bytes=()), settled=True)
    assert cell.window_seconds == pytest.approx(6.0)
    assert cell.throughput_images_per_s == pytest.approx(1.0), "one image every two seconds from each"


def test_two_that_are_done_together_may_be_heard_of_in_either_order() -> None:
    times = [(0, 2.001), (0, 2.0), (2.0, 4.0), (2.001, 4.1), (4.0, 6.0), (4.1, 6.1), (6.1, 8.001), (6.0, 8.0)]
    facts = Facts({"denoise": 1.0})
    served = [Served(index, 0, begin, begin, end, facts) for index, (begin, end) in enumerate(times)]
    cell = cell_of(Window(2, 1, "closed", served, (), recompiles=0, torch_peak_bytes=()), settled=True)
    assert cell.window_seconds == pytest.approx(6.0)
    assert list(check_cell.faults(cell, None, servers=2)) == []


def test_servers_that_are_less_apart_at_the_end_than_at_first_are_no_fault() -> None:
    def served_by(server: int, finishes: list[float]) -> list[Served[Facts]]:
        begins = [0.0, *finishes]
        return [
            Served(2 * turn + server, server, begun, begun, finished, Facts({"denoise": 1.0}))
            for turn, (begun, finished) in enumerate(pairwise(begins))
        ]

    served = served_by(0, [2.0, 4.0, 6.0, 8.0]) + served_by(1, [2.1, 4.07, 6.04, 8.01])
    in_order = sorted(served, key=lambda request: request.finished)
    cell = cell_of(Window(2, 1, "closed", in_order, (), recompiles=0, torch_peak_bytes=()), settled=True)
    assert list(check_cell.faults(cell, None, servers=2)) == []
    assert [fault for fault in check_cell.faults(cell, None, servers=1) if "window_seconds" in fault]


@pytest.mark.parametrize("begun", [0.0, 5.0])
def test_one_user_of_two_servers_may_find_one_or_both_at_work(begun: float) -> None:
    """An open loop: the second request arrives before or after the first is done."""
    times = [(0.0, 2.0), (begun, begun + 2.1), (10.0, 12.0), (15.0, 17.0), (20.0, 22.0)]
    facts = Facts({"denoise": 1.0})
    served = [Served(index, 0, begin, begin, end, facts) for index, (begin, end) in enumerate(times)]
    cell = cell_of(Window(1, 1, "poisson:0.2", served, (), recompiles=0, torch_peak_bytes=()), settled=True)
    assert not [fault for fault in check_cell.faults(cell, None, servers=2) if "throughput" in fault]
