"""The life of a row, on a FLUX of the tiny model's dimensions: what is left behind, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import config, layout, record
from bench.axes import AXES
from bench.axes.option import NotApplied
from bench.cli import main
from bench.matrix import Row
from bench.record import Cell, Code, Result
from bench.runner import models, row, tasks, telemetry
from bench.runner.job import Job
from bench.runner.load import Load
from bench.runner.outputs import Output

Start = Callable[..., Result]


@pytest.fixture
def start(make_row: Callable[..., Row], tiny_weights: Path, tmp_path: Path) -> Start:
    """Runs a two-step row in this process with three requests a cell."""

    def run(cells: tuple[tuple[int, int], ...] = ((1, 1),), **changes: Any) -> Result:
        job = Job(
            make_row(steps=2),
            "tiny",
            config.PROBE,
            cells,
            tmp_path / "attempt",
            quality=False,
        )
        return row.run(replace(job, **changes))

    return run


def on_disk(tmp_path: Path) -> Result:
    return record.load(tmp_path / "attempt" / layout.RESULT)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def codes(result: Result) -> dict[tuple[int, int], Code]:
    return {(cell.users, cell.images): cell.status.code for cell in result.cells}


def breaking(
    monkeypatch: pytest.MonkeyPatch, images: int, strike: Callable[[], None], after: int = 0
) -> None:
    """Every request of this many images strikes, but for the first ``after`` of them."""
    generate, seen = tasks.generate, []

    def broken(pipe: Any, row: Row, request: tasks.Request, **options: Any) -> Output:
        if request.images == images:
            seen.append(request)
            if len(seen) > after:
                strike()
        return generate(pipe, row, request, **options)

    monkeypatch.setattr(tasks, "generate", broken)


def raising(error: BaseException) -> Callable[[], None]:
    def strike() -> None:
        raise error

    return strike


# --- A row that goes well ----------------------------------------------------------------------------


def test_a_row_leaves_every_file_and_says_where_its_time_went(start: Start, tmp_path: Path) -> None:
    result = start(((1, 1), (4, 1)), quality=True)
    attempt = tmp_path / "attempt"
    assert (result.status.code, result.status.reason) == (Code.OK, "")
    assert on_disk(tmp_path) == result

    names = [phase.name for phase in result.phases]
    assert names == [
        "idle", "imports", "load", "quantise", "apply", "warm-up x1", "verify", "warm-up x1",
        "cell 1x1", "cell 4x1", "quality",
    ]  # fmt: skip
    events = lines(attempt / layout.EVENTS)
    assert [event["phase"] for event in events[::2]] == [event["phase"] for event in events[1::2]] == names
    assert [event["event"] for event in events] == ["begin", "end"] * len(names)
    assert all(later["t"] >= earlier["t"] for earlier, later in pairwise(events))

    assert set(result.effective) == set(AXES)
    assert result.environment is not None
    assert result.environment.packages["diffusers"]
    assert result.manifest_sha256 is not None
    assert result.weights is not None
    assert result.weights.source == "tiny"
    assert result.warmup is not None
    assert len(result.warmup.seconds) == config.WARMUP.minimum
    assert result.warmup.compile_cache is None
    cost = result.cost
    assert cost is not None
    assert cost.gpu_hours is None
    parts = cost.measuring_seconds + cost.warmup_seconds + cost.bookkeeping_seconds
    assert parts == pytest.approx(cost.wall_seconds)
    assert len(list((attempt / layout.IMAGES).glob("*.png"))) == tasks.SETTINGS["tiny"].quality_prompts
    assert (
        len(list((attempt / layout.IMAGES).glob("*.latents.safetensors")))
        == tasks.SETTINGS["tiny"].quality_prompts
    )
    assert telemetry.read(attempt)
    assert not list(attempt.rglob("*.tmp"))


def test_a_cell_drops_its_first_round_and_keeps_queue_service_and_stages(
    start: Start, tmp_path: Path
) -> None:
    result = start(((4, 1),))
    (cell,) = result.cells
    assert cell.n == 4, "three requests, in whole rounds of four users"
    assert cell.latency is not None
    assert cell.queue is not None
    assert cell.service is not None
    for latency, queue, service in zip(cell.latency.raw, cell.queue.raw, cell.service.raw, strict=True):
        assert latency == pytest.approx(queue + service)
        assert queue > 1.5 * min(cell.service.raw), "three others are served first"
    assert set(cell.stages) == {"text", "denoise", "decode", "step"}
    for text, denoise, decode, service in zip(
        *(cell.stages[name].raw for name in ("text", "denoise", "decode")), cell.service.raw, strict=True
    ):
        assert text + denoise + decode == pytest.approx(service, rel=0.1)
    assert cell.window_seconds is not None
    assert cell.throughput_images_per_s == pytest.approx(7 / cell.window_seconds)
    noted = lines(tmp_path / "attempt" / layout.REQUESTS)
    assert [request["counted"] for request in noted] == [False] * 4 + [True] * 4
    assert [request["user"] for request in noted] == [0, 1, 2, 3] * 2
    assert result.first_request_seconds == pytest.approx(noted[0]["service_seconds"], abs=0.01)


def test_each_batch_is_warmed_up_at_its_own_shape_and_only_once(start: Start) -> None:
    result = start(((1, 1), (1, 2), (4, 1)))
    assert [phase.name for phase in result.phases if phase.name.startswith(("warm", "cell"))] == [
        "warm-up x1", "warm-up x1", "cell 1x1", "warm-up x2", "warm-up x2", "cell 1x2", "cell 4x1",
    ]  # fmt: skip
    assert [bool(cell.warmup_seconds) for cell in result.cells] == [True, True, False]
    one, two, _ = result.cells
    assert one.latency is not None
    assert two.latency is not None
    assert two.batch_efficiency == pytest.approx(2 * one.latency.p50.value / two.latency.p50.value)


def test_requests_override_the_budget_and_an_open_loop_is_named_in_its_cell(start: Start) -> None:
    result = start(requests=7, load=Load(rate=50.0))
    assert result.cells[0].n == 7
    assert result.cells[0].load == "poisson:50"


def test_compiling_is_timed_and_a_second_process_finds_the_cache_warm(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import sys, json; from bench.runner import compiler\n"
        "assert (compiler.graphs_compiled(), compiler.compile_seconds(), compiler.cache_state())"
        " == (0, None, None)\n"
        "compiler.use_cache('cpu', None, Path(sys.argv[1]))\n"
        "import torch\n"
        "torch.compile(lambda x: x.sin() + 1)(torch.ones(64))\n"
        "print(json.dumps([compiler.graphs_compiled(), compiler.compile_seconds(), compiler.cache_state()]))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR")}
    states = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        graphs, seconds, state = json.loads(done.stdout)
        assert graphs == 1
        assert seconds > 0
        states.append(state)
    assert states == ["cold", "warm"]
    assert [folder.name.split("-")[0] for folder in tmp_path.iterdir()] == ["cpu"]


# --- A row that does not -----------------------------------------------------------------------------


def test_an_option_without_evidence_ends_the_row_before_anything_is_measured(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(_: object) -> dict[str, Any]:
        raise NotApplied("vae full: the decoder was not called")

    monkeypatch.setitem(AXES["vae"], "full", replace(AXES["vae"]["full"], verify=verify))
    result = start(((1, 1), (4, 1)))
    assert result.status.code is Code.NOT_APPLIED
    assert "vae full" in result.status.reason
    assert codes(result) == {(1, 1): Code.NOT_APPLIED, (4, 1): Code.NOT_APPLIED}
    assert all(cell.latency is None for cell in result.cells)
    assert not any(phase.name.startswith("cell") for phase in result.phases)


def test_what_this_machine_lacks_is_unavailable_and_named(start: Start, make_row: Callable[..., Row]) -> None:
    result = start(row=make_row(hardware="h100x1", model="tiny", steps=2))
    assert result.status.code is Code.UNAVAILABLE
    assert "1 x h100" in result.status.reason
    assert result.cells[0].status.code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 64 GB")],
)
def test_out_of_memory_costs_its_cell_and_no_other(
    start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    breaking(monkeypatch, images=2, strike=raising(error))
    result = start(((1, 1), (1, 2), (4, 1)))
    assert codes(result) == {(1, 1): Code.OK, (1, 2): Code.OOM, (4, 1): Code.OK}
    assert result.status.code is Code.OOM
    assert "1x2" in result.status.reason
    assert result.cells[1].latency is None


def test_cuda_out_of_memory_is_told_from_a_bug() -> None:
    import torch

    from bench.runner import judge

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
    assert judge.status_of(error).code is Code.OOM
    assert judge.status_of(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling")).code is Code.OOM
    crash = judge.status_of(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert crash.code is Code.CRASHED
    assert crash.log_tail


def test_a_request_that_raises_halfway_counts_nothing_of_its_cell(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    breaking(monkeypatch, images=2, strike=raising(ValueError("bad shape")), after=config.WARMUP.minimum + 2)
    result = start(((1, 1), (1, 2), (4, 1)))
    assert codes(result) == {(1, 1): Code.OK, (1, 2): Code.CRASHED, (4, 1): Code.OK}
    failed = result.cells[1]
    assert (failed.n, failed.latency) == (0, None)
    assert "ValueError: bad shape" in failed.status.reason
    assert any("bad shape" in line for line in failed.status.log_tail)
    assert len([r for r in lines(tmp_path / "attempt" / layout.REQUESTS) if r["cell"] == "1x2"]) > 0


def poisoned(value: float) -> Callable[[Any], None]:
    """A decoder whose last layer returns this one number, whatever it is fed."""

    def poison(pipe: Any) -> None:
        import torch

        with torch.no_grad():
            pipe.vae.decoder.conv_out.weight.zero_()
            pipe.vae.decoder.conv_out.bias.fill_(value)

    return poison


@pytest.mark.parametrize("value", [float("nan"), 0.2])
def test_nan_and_flat_images_are_no_measurement(
    start: Start, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    load = models.load

    def loading(*arguments: Any) -> models.Loaded:
        loaded = load(*arguments)
        poisoned(value)(loaded.pipe)
        return loaded

    monkeypatch.setattr(models, "load", loading)
    result = start(((1, 1), (1, 2)))
    assert set(codes(result).values()) == {Code.INVALID_OUTPUT}
    assert result.status.code is Code.INVALID_OUTPUT
    assert all(cell.latency is None for cell in result.cells)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_row_keeps_its_finished_cells(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    breaking(monkeypatch, images=2, strike=lambda: os.kill(os.getpid(), number), after=3)
    result = start(((1, 1), (1, 2), (4, 1)))
    assert result.status.code is Code.INTERRUPTED
    assert number.name in result.status.reason
    assert codes(result) == {(1, 1): Code.OK, (1, 2): Code.INTERRUPTED, (4, 1): Code.INTERRUPTED}
    assert result.cells[0].latency is not None
    assert on_disk(tmp_path) == result
    assert signal.getsignal(number) == before


def test_until_it_ends_the_file_says_interrupted_and_holds_what_is_finished(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Result] = []
    breaking(monkeypatch, images=2, strike=lambda: seen.append(on_disk(tmp_path)))
    assert start(((1, 1), (1, 2))).status.code is Code.OK
    for meanwhile in seen:
        assert meanwhile.status.code is Code.INTERRUPTED
        assert meanwhile.environment is not None
        assert codes(meanwhile) == {(1, 1): Code.OK}
        assert meanwhile.cells[0].latency is not None


def test_a_full_disk_ends_the_row_but_not_what_is_finished(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attempt = tmp_path / "attempt"
    attempt.mkdir()
    (attempt / layout.REQUESTS).symlink_to("/dev/full")
    result = start(((1, 1), (4, 1)))
    assert result.status.code is Code.INFRA
    assert "No space left" in result.status.reason
    assert set(codes(result).values()) == {Code.INFRA}


def test_a_throttled_window_is_discarded_once_and_then_unstable(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = telemetry.Sample(0.0, "GPU-1", {"clock_event_reasons": float(0x40)})
    monkeypatch.setattr(telemetry.Telemetry, "window", lambda *_: [hot])
    monkeypatch.setattr(config, "TELEMETRY", replace(config.TELEMETRY, cool_down_seconds=0.01))
    result = start()
    names = [phase.name for phase in result.phases]
    assert names[-3:] == ["cell 1x1", "cool-down", "cell 1x1"]
    assert result.status.code is Code.UNSTABLE
    assert "100.0% of samples" in result.status.reason
    assert result.cells[0].latency is not None, "kept, and marked"
    assert result.stability is not None
    assert result.stability.throttled_share == 1.0


def test_a_window_that_slows_down_is_unstable_and_one_that_only_wobbles_is_not() -> None:
    from bench.runner import window

    steadily = [1.0 + step / 50 for step in range(18)]
    wobbling = [1.0, 1.2, 0.9, 1.1, 0.95, 1.15] * 3
    assert window._status(steadily, None, settled=True).code is Code.UNSTABLE
    assert window._status(wobbling, None, settled=True).code is Code.OK
    assert window._status([1.0] * 13, None, settled=False).code is Code.UNSTABLE


def test_a_cell_of_numbers_needs_no_gpu_figures(start: Start) -> None:
    (cell,) = start().cells
    assert isinstance(cell, Cell)
    assert cell.memory.used_peak_gb is None
    assert cell.memory.torch_allocated_peak_gb is None
    assert cell.power.average_w is None
    assert cell.utilisation.gpu_busy_avg_percent is None


# --- The command -------------------------------------------------------------------------------------


def refusal(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["run", *arguments])
    assert done.exit_code == 2, done.output
    return done.output


def test_a_row_that_cannot_be_told_is_bad_usage(make_row: Callable[..., Row]) -> None:
    assert "either by its id or by --row-json" in refusal()
    assert "either by its id or by --row-json" in refusal("1", "--row-json", make_row().model_dump_json())
    assert "no row 999999" in refusal("999999")
    assert "attention" in refusal("--row-json", '{"row": "1"}')
    assert "poisson:0.5" in refusal("73", "--load", "poisson")


def test_weights_of_another_model_and_a_folder_that_is_taken_are_refused(
    make_row: Callable[..., Row], tmp_path: Path
) -> None:
    text = make_row().model_dump_json()
    assert "--weights tiny" in refusal("--row-json", text, "--weights", "synthetic")
    (tmp_path / layout.REQUESTS).touch()
    assert "holds an attempt already" in refusal("--row-json", text, "--attempt-dir", str(tmp_path))


def test_a_row_by_hand_prints_its_numbers_keeps_a_log_and_exits_by_its_status(
    make_row: Callable[..., Row], tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", "--row-json", make_row(steps=2).model_dump_json(), "--budget", "probe"]
    arguments += ["--cells", "1x1", "--no-quality", "--results", str(tmp_path)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "n=3, ok" in done.output
    (path,) = tmp_path.glob("cpu/row-0001/tiny/*/result.json")
    assert str(path) in done.output
    assert "cell 1x1: " in (path.parent / layout.LOG).read_text()

    breaking(monkeypatch, images=1, strike=raising(MemoryError()))
    assert CliRunner().invoke(main, arguments).exit_code == 3
