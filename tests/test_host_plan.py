"""What a campaign decides before it runs anything: pure decisions over rows and fake earlier results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_attempts import write_attempt
from fakes import fake_cell, fake_result, fake_row

from bench import config
from bench.axes import AXES
from bench.config import BUDGETS, CELLS, SINGLE, Shape
from bench.flux import MODELS
from bench.host import estimate, history
from bench.host.estimate import Estimates, gpu_hours, guess_seconds, timeout_seconds
from bench.host.history import Past
from bench.host.plan import Action, Decision, Wanted, by_value, code_of, decide, may_retry, promise
from bench.matrix import Row
from bench.record import RETRIES, Code, Result, Status

ROW = fake_row(hardware="cpu")
HOST = "cpu-0000000000000000"
CODE_NOW = "f" * 64


def past(*results: Result) -> Past:
    return Past(tuple((Path(f"{result.attempt}/result.json"), result) for result in results))


def ask(*results: Result, row: Row = ROW, misfit: str | None = None, **wanted: Any) -> Decision:
    defaults: dict[str, Any] = {"budget": BUDGETS["quick"], "cells": CELLS, "host_ids": frozenset({HOST})}
    return decide(row, past(*results), CODE_NOW, Wanted(**{**defaults, **wanted}), misfit)


def result(**changes: Any) -> Result:
    return fake_result(ROW, **{"fingerprint": CODE_NOW, "budget": "quick", "n": 13, **changes})


def at_a_rate(of: Result, only: int | None = None) -> Result:
    """``only``: the one cell that has requests."""
    cells = [
        cell.model_copy(update={"load": "poisson:0.6"}) if only in {None, index} else cell
        for index, cell in enumerate(of.cells)
    ]
    return of.model_copy(update={"cells": cells})


def test_a_row_without_results_runs_with_every_cell() -> None:
    decision = ask()
    assert (decision.action, decision.cells) == (Action.RUN, CELLS)


def test_a_row_measured_here_by_this_code_is_done() -> None:
    assert ask(result()).action is Action.DONE


def test_a_row_measured_by_other_code_is_stale_and_runs_and_says_so() -> None:
    decision = ask(result(fingerprint="0" * 64))
    assert (decision.action, decision.stale) == (Action.RUN, 1)
    assert "stale" in decision.reason


def test_requests_that_came_at_a_rate_of_their_own_are_no_cells_of_the_plan() -> None:
    assert ask(at_a_rate(result())).action is Action.RUN
    broken_off = at_a_rate(result(cells=[fake_cell(1, 1), fake_cell(1, 4, code=Code.INTERRUPTED)]), only=0)
    assert ask(broken_off).cells == CELLS
    assert ask(result(), at_a_rate(result(minutes=9))).action is Action.DONE


def test_results_of_another_machine_do_not_count_here() -> None:
    assert ask(result(host=1)).action is Action.RUN


def test_a_row_on_one_gpu_of_eight_is_done_on_any_machine_with_that_gpu() -> None:
    row = fake_row(hardware="h100x1")
    done = fake_result(row, fingerprint=CODE_NOW, budget="quick", n=13)
    uuids = [f"GPU-{0:08x}-0000-0000-0000-{index:012x}" for index in range(8)]
    assert ask(done, row=row, host_ids=frozenset(uuids)).action is Action.DONE
    assert ask(done, row=row, host_ids=frozenset(uuids[1:])).action is Action.RUN


def test_a_smaller_budget_does_not_count_for_a_larger_one() -> None:
    assert ask(result(), budget=BUDGETS["standard"]).action is Action.RUN
    assert ask(result(budget="standard", n=18), budget=BUDGETS["quick"]).action is Action.DONE


def test_a_budget_of_two_processes_asks_for_the_second() -> None:
    first = ask(result(budget="standard", n=18), budget=BUDGETS["standard"])
    assert (first.action, first.attempts) == (Action.RUN, 1)
    twice = [result(budget="standard", n=18, seed=seed) for seed in (1, 2)]
    assert ask(*twice, budget=BUDGETS["standard"]).action is Action.DONE
    assert ask(budget=BUDGETS["standard"]).attempts == 2


def test_requests_are_counted_not_only_processes_and_the_plan_says_how_many_are_missing() -> None:
    """``run 73 --budget full --requests 2`` is ok, of the full budget, and holds 2 of its 368 requests."""
    full = BUDGETS["full"]
    short = [result(budget="full", n=2, seed=seed, shapes=(SINGLE,)) for seed in range(full.processes)]
    for count in range(1, len(short) + 1):
        decision = ask(*short[:count], budget=full, cells=(SINGLE,))
        assert (decision.action, decision.attempts) == (Action.RUN, 3)
        there, missing = 2 * count, full.n - 2 * count
        assert f"1x1 has {there} of {full.n} requests, {missing} are missing" in decision.reason
    rest = [result(budget="full", n=full.n_per_process, seed=seed, shapes=(SINGLE,)) for seed in (7, 8, 9)]
    assert ask(*short, *rest[:2], budget=full, cells=(SINGLE,)).attempts == 1
    assert ask(*short, *rest, budget=full, cells=(SINGLE,)).action is Action.DONE
    assert ask(*rest, budget=full, cells=(SINGLE,)).action is Action.DONE


def test_requests_of_several_short_attempts_add_up_to_a_budget() -> None:
    assert ask(result(n=4)).action is Action.RUN
    assert ask(result(n=4), result(n=8, seed=1)).action is Action.RUN
    assert ask(result(n=4), result(n=8, seed=1), result(n=4, seed=2)).action is Action.DONE


def test_a_budget_asked_for_in_more_processes_needs_no_more_of_them_for_its_requests() -> None:
    twice = replace(BUDGETS["quick"], processes=2)
    assert ask(budget=twice).attempts == 2
    assert ask(result(), budget=twice).attempts == 1
    assert ask(result(n=2), budget=twice).attempts == 1, "the next process makes all 13"
    assert ask(result(), result(seed=1), budget=twice).action is Action.DONE


def test_an_attempt_of_fewer_requests_teaches_no_estimate_and_so_no_time_limit() -> None:
    row, cells = fake_row(hardware="cpu"), (SINGLE,)
    short = Estimates.from_pasts({"1": past(result(shapes=cells, n=4))})
    assert short.seconds(row, "quick", cells) == guess_seconds(row, "quick", cells)


def test_requests_that_came_at_a_rate_of_their_own_teach_no_estimate() -> None:
    row, cells = fake_row(hardware="cpu"), (SINGLE,)
    waited = Estimates.from_pasts({"1": past(at_a_rate(result(shapes=cells)))})
    assert waited.seconds(row, "quick", cells) == guess_seconds(row, "quick", cells)


def test_only_the_missing_cells_of_an_interrupted_row_run() -> None:
    cells = [fake_cell(1, 1, gpu=False), fake_cell(1, 4, code=Code.INTERRUPTED, gpu=False)]
    decision = ask(result(cells=cells))
    assert decision.cells == ((1, 4), (4, 1), (4, 4))
    assert "goes on" in decision.reason


def test_a_cell_out_of_memory_is_settled_and_does_not_settle_its_neighbours() -> None:
    out_of_memory = result(cells=[fake_cell(1, 1, gpu=False), fake_cell(1, 4, code=Code.OOM, gpu=False)])
    assert code_of(Shape(4, 1), out_of_memory) is None
    assert ask(out_of_memory).cells == ((4, 1), (4, 4))
    settled = ask(out_of_memory, cells=(SINGLE, Shape(1, 4)))
    assert settled.action is Action.SETTLED
    assert "--retry" in settled.reason
    assert ask(out_of_memory, cells=(SINGLE, Shape(1, 4)), retry=True).cells == ((1, 4),)


@pytest.mark.parametrize("code", sorted(set(Code) - {Code.OK, Code.UNSUPPORTED}))
def test_what_ended_a_row_is_tried_again_as_often_as_the_method_grants(code: Code) -> None:
    limit = RETRIES.get(code, 0)
    granted = 5 if limit is None else limit
    for times in range(1, granted + 2):
        attempts = [result(code=code, seed=seed) for seed in range(times)]
        runs = ask(*attempts).action is Action.RUN
        assert runs == (limit is None or times <= limit), f"{code} after {times} attempts"
        assert may_retry(code, times) == runs


def test_a_row_still_unstable_after_its_retry_is_not_called_done_and_says_what_it_has() -> None:
    twice = [result(code=Code.UNSTABLE, seed=seed) for seed in (1, 2)]
    decision = ask(*twice, cells=(SINGLE,))
    assert decision.action is Action.MARKED
    assert "1x1 has 0 of its 1 processes stable (0 of 13 requests); the last" in decision.reason
    assert "--retry" in decision.reason
    assert ask(*twice, retry=True).action is Action.RUN


@pytest.mark.parametrize(
    ("ended", "action"),
    [
        ("ok", Action.RUN),
        ("ok unstable", Action.RUN),
        ("unstable ok", Action.RUN),
        ("unstable ok unstable", Action.RUN),
        ("ok unstable unstable", Action.MARKED),
        ("unstable ok unstable ok", Action.DONE),
        ("crashed ok", Action.RUN),
        ("ok crashed", Action.SETTLED),
    ],
)
def test_each_process_that_a_budget_asks_for_has_its_own_retry(ended: str, action: Action) -> None:
    attempts = [
        result(code=None if code == "ok" else Code(code), budget="standard", n=18, minutes=minute)
        for minute, code in enumerate(ended.split())
    ]
    decision = ask(*attempts, budget=BUDGETS["standard"], cells=(SINGLE,))
    assert decision.action is action
    if action is Action.MARKED:
        assert "1x1 has 1 of its 2 processes stable (18 of 36 requests)" in decision.reason


def test_a_measured_row_stopped_before_its_pictures_runs_its_first_cell_for_them() -> None:
    stopped = result().model_copy(update={"status": Status(code=Code.INTERRUPTED, reason="SIGTERM")})
    decision = ask(stopped)
    assert (decision.action, decision.cells) == (Action.RUN, CELLS[:1])
    assert "pictures" in decision.reason
    assert ask(stopped, result(seed=1)).action is Action.DONE
    crashed = result().model_copy(update={"status": Status(code=Code.CRASHED, reason="SIGSEGV")})
    assert ask(crashed).action is Action.DONE, "a crash would repeat; the numbers stand"


def test_bench_runs_a_row_again_even_if_it_is_done() -> None:
    assert ask(result(), again=True).cells == CELLS


def test_a_rule_speaks_before_the_hardware_and_a_misfit_runs_nothing() -> None:
    refused = fake_row(hardware="cpu", attention="cudnn")
    decision = ask(row=refused, misfit="it wants more")
    assert decision.action is Action.UNSUPPORTED
    assert "gpu-option-on-cpu" in decision.reason
    assert ask(misfit="it wants 1 x h100").action is Action.MISFIT


# --- Reading results ---------------------------------------------------------------------------------


def test_a_result_edited_by_hand_is_refused_by_file_and_field_and_the_row_does_not_run(
    tmp_path: Path,
) -> None:
    folder = write_attempt(tmp_path, result(), telemetry=False)
    path = folder / "result.json"
    for old, new, field in (
        ('"n": 13', '"n": "many"', "cells.0.n"),
        ('"n": 13', '"nn": 13', "cells.0.nn"),
        (f'"attempt": "{folder.name}"', '"attempt": "20200101T000000Z-0000"', "attempt"),
        ('"row": "1"', '"row": "2"', "row"),
        ('"schema_version": 1', '"schema_version": 1,,', "JSON"),
    ):
        whole = path.read_text()
        assert old in whole
        path.write_text(whole.replace(old, new, 1))
        read = history.read(tmp_path, ROW, "tiny")
        decision = decide(
            ROW, read, CODE_NOW, Wanted(BUDGETS["quick"], CELLS, frozenset({HOST})), misfit=None
        )
        assert decision.action is Action.DAMAGED
        assert str(path) in decision.reason
        assert field in decision.reason
        path.write_text(whole)
    assert history.read(tmp_path, ROW, "tiny").damaged == ()


def test_an_attempt_folder_without_result_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "cpu" / "row-0001" / "tiny" / "20261122T120000Z-0000").mkdir(parents=True)
    assert history.read(tmp_path, ROW, "tiny") == Past()


# --- Order and estimates -----------------------------------------------------------------------------


def test_the_likely_fastest_comes_first_behind_its_reference() -> None:
    slow = fake_row(row="1", precision="fp32")
    canny = fake_row(row="2", control="canny")
    tiled = fake_row(row="3", vae="tiled")
    compiled = fake_row(row="4", compilation="inductor")
    fp8 = fake_row(row="5", compilation="inductor", quantization="scaledmm-fp8-row")
    reference = fake_row(row="6")
    extended = fake_row(row="7", tier="extended", control="pose", compilation="inductor")
    order = by_value([slow, canny, tiled, compiled, fp8, reference, extended])
    assert [row.row for row in order] == ["6", "5", "4", "3", "1", "2", "7"]


def test_a_reference_waits_for_the_first_row_that_is_held_against_it() -> None:
    """Of a large picture it takes minutes, in vain where the time is up before the rows that want it."""
    large = {"size": 2048, "hardware": "h100x1"}
    rows = [
        fake_row(row="1", **large),
        fake_row(row="2", vae="tiled", **large),
        fake_row(row="3", hardware="h100x1"),
        fake_row(row="4", hardware="h100x1", compilation="inductor"),
        fake_row(row="5", hardware="h100x1", task="img2img", vae="tiled"),
        fake_row(row="6", hardware="h100x1", task="img2img"),
    ]
    order = [row.row for row in by_value(rows)]
    assert order[:2] == ["3", "4"]
    assert order.index("1") + 1 == order.index("2")
    assert order.index("6") < order.index("5")


def test_a_stack_runs_on_one_gpu_before_it_runs_on_several() -> None:
    """A budget that runs out must not leave two compiled GPUs beside one that is not: compiling would pass
    for scaling."""
    rows = [
        fake_row(row="1", hardware="h200x2", parallel="ulysses2", compilation="inductor"),
        fake_row(row="2", hardware="h200x2", parallel="ulysses2"),
        fake_row(row="3", hardware="h200x1", compilation="inductor"),
        fake_row(row="4", hardware="h200x1"),
        fake_row(row="5", hardware="h200x1", attention="cudnn"),
    ]
    assert [row.row for row in by_value(rows)] == ["4", "3", "1", "2", "5"]


def test_every_way_to_compile_is_guessed_faster_than_eager() -> None:
    """A new one without a guess would come after all others, and its hours would be those of eager."""
    eager = promise(fake_row())
    ways = {id: promise(fake_row(compilation=id)) for id in AXES["compilation"] if id != "none"}
    assert {id for id, guess in ways.items() if guess <= eager} == set()


def test_an_estimate_is_a_guess_until_an_attempt_has_told() -> None:
    row = fake_row(hardware="cpu")
    done = result(shapes=(SINGLE,))
    assert done.cost is not None
    learned = Estimates.from_pasts({"1": past(done)})
    assert learned.seconds(row, "quick", (SINGLE,)) == done.cost.wall_seconds
    assert learned.seconds(row, "full", (SINGLE,)) == guess_seconds(row, "full", (SINGLE,))


def test_guesses_grow_with_cells_requests_and_slower_options() -> None:
    h100 = fake_row(hardware="h100x1")
    one = guess_seconds(h100, "quick", (SINGLE,))
    assert 100 < one < 300, "13 requests of 5.3 s, warm-up and start"
    assert guess_seconds(h100, "quick", CELLS) > 4 * one
    assert guess_seconds(h100, "full", (SINGLE,)) > 4 * one
    assert guess_seconds(fake_row(precision="fp32"), "quick", (SINGLE,)) > 3 * one
    tiny = {"model": "tiny", "size": 128, "precision": "bf16"}
    on_gpu, on_cpu = (fake_row(hardware=hardware, **tiny) for hardware in ("h100x1", "cpu"))
    assert guess_seconds(on_cpu, "quick", (SINGLE,)) > 3 * guess_seconds(on_gpu, "quick", (SINGLE,))
    assert timeout_seconds(one) > 2 * one
    assert gpu_hours(fake_row(hardware="h100x8", parallel="replicas"), 1800) == 4
    assert gpu_hours(fake_row(hardware="cpu"), 1800) == 0


def test_a_guess_counts_the_pictures_that_a_row_saves_and_no_more(make_row: Callable[..., Row]) -> None:
    requests = config.PROBE.n + config.WARMUP.minimum + 1 + MODELS["tiny"].settings.quality_prompts
    guess = guess_seconds(make_row(), "probe", (SINGLE,))
    assert guess == estimate.START_SECONDS["tiny"] + requests * estimate.TINY_IMAGE_SECONDS


def test_a_preempted_campaign_goes_on_elsewhere_and_finished_rows_stay_done_but_the_reference() -> None:
    """On the same model of GPU, if asked to: what was finished there counts, what was broken off does not."""
    row = fake_row(hardware="h100x1", vae="tiled")
    there = fake_result(row, fingerprint=CODE_NOW, budget="quick", n=13)
    assert there.environment is not None
    name = there.environment.gpus[0].name
    new_host = {"row": row, "host_ids": frozenset({"GPU-new"})}
    assert ask(there, **new_host).action is Action.RUN
    elsewhere = ask(there, gpu_names=frozenset({name}), **new_host)
    assert elsewhere.action is Action.DONE
    assert there.environment.host_id in elsewhere.reason
    assert ask(there, gpu_names=frozenset({"NVIDIA H100 PCIe"}), **new_host).action is Action.RUN
    part = there.model_copy(update={"cells": there.cells[:1], "status": Status(code=Code.INTERRUPTED)})
    assert ask(part, gpu_names=frozenset({name}), **new_host).cells == CELLS, "cells of two hosts do not mix"
    reference = fake_row(hardware="h100x1")
    done = fake_result(reference, fingerprint=CODE_NOW, budget="quick", n=13)
    again = {"row": reference, "host_ids": frozenset({"GPU-new"})}
    assert ask(done, gpu_names=frozenset({name}), **again).action is Action.RUN
