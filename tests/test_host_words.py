"""What a campaign says before it runs anything: rows, hours, price, and what does not fit this machine."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path

from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench import config
from bench.config import CELLS, SINGLE
from bench.host.fanout import Settings, Wanting, make_plan
from bench.host.gpus import Gpu
from bench.host.words import links_advice, misfit_advice, plan_lines, rows_text
from bench.matrix_file import read
from bench.typed import Asked


def test_the_plan_says_rows_time_gpu_hours_and_why_each_row_is_skipped(tmp_path: Path) -> None:
    rows = [
        fake_row(row="1", hardware="h100x1"),
        fake_row(row="2", hardware="a100x1"),
        fake_row(row="3", hardware="a100x1", compilation="inductor"),
        fake_row(row="4", hardware="cpu", attention="cudnn"),
    ]
    gpus = [Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-a", int(85e9))]
    settings = Settings(tmp_path, "synthetic", config.QUICK, (SINGLE,))
    text = "\n".join(plan_lines(make_plan(rows, Wanting(settings, gpus)), settings, gpus, every_row=True))
    assert "4 rows chosen, 1 to run (quick): about " in text
    assert "GPU-hours" in text
    assert "1. row 1 (bf16 on h100x1, txt2img) 1x1: about" in text
    assert "do not fit this machine: rows 2-3: it wants 1 x a100 of at least 75 GB" in text
    assert "unsupported: row 4: gpu-option-on-cpu" in text


def test_a_price_and_a_time_limit_are_said_before_anything_runs(tmp_path: Path) -> None:
    rows = [fake_row(row=str(n), hardware="h100x1", steps=n, attention="cudnn") for n in range(1, 9)]
    gpus = [Gpu(n, "NVIDIA H100 80GB HBM3", f"GPU-{n}", int(85e9)) for n in range(4)]
    alone = Settings(tmp_path, "synthetic", config.STANDARD, (SINGLE,), price_per_gpu_hour=2.5)
    plan = make_plan(rows, Wanting(alone, gpus))
    seconds = sum(plan.seconds(item, config.STANDARD) for item in plan.to_run)
    text = "\n".join(plan_lines(plan, alone, gpus, every_row=False))
    assert f"at 2.5 a GPU-hour: about {seconds / 3600 * 2.5:.2f} for the GPUs that work, " in text
    assert f"{seconds / 3600 * 4 * 2.5:.2f} for all 4 of this machine" in text
    assert "side by side" not in text, "finalists run alone"
    shorter = replace(alone, budget=config.QUICK, max_hours=0.03, price_per_gpu_hour=None)
    text = "\n".join(plan_lines(make_plan(rows, Wanting(shorter, gpus)), shorter, gpus, every_row=False))
    assert "rows of one GPU run side by side, 4 at once" in text
    fit = re.search(r"--max-hours 0.03: about (\d) of 8 rows fit", text)
    assert fit is not None
    assert 0 < int(fit[1]) < 8
    assert "a GPU-hour:" not in text


def test_a_price_within_a_time_limit_is_that_of_the_limit_and_rows_beyond_it_are_marked(
    tmp_path: Path,
) -> None:
    rows = [fake_row(row=str(n), hardware="h100x1", steps=n, attention="cudnn") for n in range(1, 9)]
    gpus = [Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-a", int(85e9))]
    settings = Settings(tmp_path, "synthetic", config.QUICK, (SINGLE,), max_hours=0.1, price_per_gpu_hour=10)
    plan = make_plan(rows, Wanting(settings, gpus))
    lines = plan_lines(plan, settings, gpus, every_row=True)
    (limit,) = (line for line in lines if line.startswith("--max-hours"))
    fit = re.fullmatch(
        r"--max-hours 0.1: about (\d) of 8 rows fit, most valuable first; "
        r"about 1.00 for the machine over that time",
        limit,
    )
    assert fit is not None, limit
    listed = [line for line in lines if re.match(r"  \d\. ", line)]
    beyond = [line for line in listed if line.endswith("; beyond --max-hours")]
    assert 0 < len(beyond) == 8 - int(fit[1])
    enough = replace(settings, max_hours=1000)
    text = "\n".join(plan_lines(plan, enough, gpus, every_row=True))
    whole = re.search(r"at 10 a GPU-hour: about ([\d.]+) \(estimates\)", text)
    assert whole is not None, "of one GPU one price"
    assert f"8 of 8 rows fit, most valuable first; about {whole[1]} for the machine" in text
    assert "beyond" not in text


def test_what_keeps_gpus_from_each_other_is_named_before_a_row_of_several_runs(tmp_path: Path) -> None:
    gpus = [Gpu(index, "NVIDIA H200", f"GPU-{index}", int(150e9)) for index in range(2)]
    settings = Settings(tmp_path, "synthetic", config.QUICK, (SINGLE,))
    alone, several = fake_row(row="1", hardware="h200x1"), fake_row(row="2", hardware="h200x2")
    plan = make_plan([alone, several], Wanting(settings, gpus))
    (advice,) = links_advice(plan, {"NCCL_P2P_DISABLE": "1"})
    assert advice.startswith("NCCL_P2P_DISABLE=1 is set: the GPUs of row 2 would")
    assert advice.endswith("`unset NCCL_P2P_DISABLE` first")
    assert not list(links_advice(plan, {"NCCL_P2P_DISABLE": "0"}))
    one_gpu = make_plan([alone], Wanting(settings, gpus))
    assert not list(links_advice(one_gpu, {"NCCL_P2P_DISABLE": "1"}))


def test_who_plans_without_the_gpus_is_told_how_to_imagine_them(tmp_path: Path) -> None:
    settings = Settings(tmp_path, "synthetic", config.QUICK, (SINGLE,))
    rows = [fake_row(row=str(n), hardware="h100x2") for n in range(1, 100, 2)]
    plan = make_plan(rows, Wanting(settings, []))
    lines = plan_lines(plan, settings, [], every_row=True)
    assert lines[-1].endswith("--dry-run --on h100x2")
    assert "rows 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, ... (50 in all): it wants 2 x h100" in lines[-2]
    assert not any("--on" in line for line in plan_lines(plan, settings, [], every_row=False))


def test_a_row_is_named_with_its_workload_where_another_has_the_same_stack() -> None:
    assert fake_row(hardware="h100x1").label == "row 1 (bf16 on h100x1, txt2img)"
    assert fake_row(hardware="h100x1", size=2048).label == "row 1 (bf16 on h100x1, txt2img, 2048x2048)"
    assert fake_row(hardware="cpu", steps=4).label == "row 1 (bf16 on cpu, txt2img, 4 steps)"
    tiny = fake_row(hardware="h100x1", model="tiny")
    assert tiny.label == "row 1 (bf16 on h100x1, txt2img, tiny model)"


def test_no_two_rows_of_the_matrix_are_named_alike() -> None:
    rows = read(Path(__file__).parent.parent / "matrix.csv")
    names = Counter(row.label.partition(" (")[2] for row in rows)
    assert [name for name, count in names.items() if count > 1] == []


def test_rows_are_named_in_runs() -> None:
    assert rows_text(["7"]) == "row 7"
    assert rows_text(["9", "1", "3", "2", "p-0a1b2c3d"]) == "rows 1-3, 9, p-0a1b2c3d"


def test_who_lacks_the_hardware_is_told_what_is_missing_and_what_fits() -> None:
    wanted = fake_row(row="42", hardware="h100x1", compilation="inductor")
    reference = fake_row(row="74", hardware="cpu")
    same = fake_row(row="75", hardware="cpu", compilation="inductor")
    text = misfit_advice(wanted, [wanted, reference, same], [], Asked())
    assert "it wants 1 x h100, and this machine has no GPU" in text
    assert "`make bench ROW=42`" in text
    assert "`make bench ROW=75`" in text
    assert "`make bench ROW=74`" in misfit_advice(wanted, [wanted, reference], [], Asked())


def test_advice_repeats_how_a_row_was_asked_for() -> None:
    wanted = fake_row(row="42", hardware="h100x1", compilation="inductor")
    on_h200 = fake_row(row="50", hardware="h200x1", compilation="inductor")
    tiny = fake_row(row="75", hardware="cpu", compilation="inductor")
    gpus = [Gpu(0, "NVIDIA H200", "GPU-a", int(150e9))]
    asked = Asked("synthetic", "probe", "2", "1x1,1x4", "my results", "venv", "here")
    rest = "BUDGET=probe PROCESSES=2 CELLS=1x1,1x4 RESULTS='my results' EXECUTOR=venv REGISTRY=here"
    text = misfit_advice(wanted, [wanted, on_h200, tiny], gpus, asked)
    assert f"`make bench ROW=42 WEIGHTS=synthetic {rest}`" in text
    assert f"`make bench ROW=50 WEIGHTS=synthetic {rest}`" in text
    assert f"`make bench ROW=75 {rest}`" in misfit_advice(wanted, [wanted, tiny], gpus, asked), (
        "its own weights"
    )


def test_what_goes_without_saying_is_what_the_makefile_takes() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    defaults = dict(re.findall(r"^(\w+) \?= *(.*)$", makefile, re.M))
    assert {each.name: defaults[each.name.upper()] for each in fields(Asked)} == asdict(Asked())
    campaign = re.search(r"^CAMPAIGN = (.*\n(?:  .*\n)*)", makefile, re.M)
    assert campaign is not None
    assert all(f"$({each.name.upper()})" in campaign[1] for each in fields(Asked))


def test_planning_three_thousand_rows_takes_less_than_two_seconds(tmp_path: Path) -> None:
    rows = [fake_row(row=str(number), hardware="cpu", size=128) for number in range(1, 3001)]
    for row in rows[:300]:
        write_attempt(tmp_path, fake_result(row, n=13, budget="quick"), telemetry=False)
    settings = Settings(tmp_path, "synthetic", config.QUICK, CELLS)
    begun = time.process_time()  # of a machine that others use as well
    plan = make_plan(rows, Wanting(settings, []))
    plan_lines(plan, settings, [], every_row=True)
    assert time.process_time() - begun < 2
    assert len(plan.decisions) == 3000
