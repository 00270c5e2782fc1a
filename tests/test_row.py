"""The life of a row that goes well, on a FLUX of the tiny model's dimensions, and the command that starts
one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_rows import Start, breaking, lines, on_disk, raising, start

from bench import config, layout
from bench.axes import AXES
from bench.cli import main
from bench.flux import MODELS
from bench.matrix import Row
from bench.record import Cell, Code
from bench.runner import telemetry
from bench.runner.load import Load

__all__ = ["start"]  # a fixture


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
    assert len(list((attempt / layout.IMAGES).glob("*.png"))) == MODELS["tiny"].settings.quality_prompts
    assert (
        len(list((attempt / layout.IMAGES).glob("*.latents.safetensors")))
        == MODELS["tiny"].settings.quality_prompts
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
    return " ".join(done.output.replace("│", " ").split())


def test_a_row_that_cannot_be_told_is_bad_usage(make_row: Callable[..., Row]) -> None:
    assert "either by its id or by --row-json" in refusal()
    assert "either by its id or by --row-json" in refusal("1", "--row-json", make_row().model_dump_json())
    assert "no row 999999" in refusal("999999")
    assert "; attention: Field required; cache:" in refusal("--row-json", '{"row": "1"}')
    assert "row: Invalid JSON" in refusal("--row-json", "{")
    mistyped = make_row().model_copy(update={"parallel": "ulyses2"}).model_dump_json()
    assert "parallel: unknown option 'ulyses2'; did you mean 'ulysses2'?" in refusal("--row-json", mistyped)
    assert "poisson:0.5" in refusal("73", "--load", "poisson")


def test_weights_of_another_model_and_a_folder_that_is_taken_are_refused(
    make_row: Callable[..., Row], tmp_path: Path
) -> None:
    text = make_row().model_dump_json()
    assert "--weights tiny" in refusal("--row-json", text, "--weights", "synthetic")
    (tmp_path / layout.REQUESTS).touch()
    assert "holds an attempt already" in refusal("--row-json", text, "--attempt-dir", str(tmp_path))


def test_a_row_by_hand_prints_its_numbers_keeps_a_log_its_prompts_and_exits_by_its_status(
    make_row: Callable[..., Row], tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", "--row-json", make_row(steps=2).model_dump_json(), "--budget", "probe"]
    arguments += ["--cells", "1x1", "--results", str(tmp_path)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "n=3, ok" in done.output
    (path,) = tmp_path.glob("cpu/row-0001/tiny/*/result.json")
    assert str(path) in done.output
    assert "cell 1x1: " in (path.parent / layout.LOG).read_text()
    images = path.parent / layout.IMAGES
    prompts = json.loads((images / layout.PROMPTS).read_text())
    assert prompts.keys() == {picture.stem for picture in images.glob("*.png")}
    assert len({*filter(None, prompts.values())}) == MODELS["tiny"].settings.quality_prompts

    breaking(monkeypatch, images=1, strike=raising(MemoryError()))
    assert CliRunner().invoke(main, arguments).exit_code == 3
