"""The phases declare rows; matrix.csv holds them under ids that never change."""

import csv
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bench import matrix_file, phases, several_gpus
from bench.axes import AXES
from bench.axes.parallel import ranks_of
from bench.hardware import GPUS, HARDWARE, gpus_of
from bench.images import image_of
from bench.listing import stack_text
from bench.matrix import AXIS_NAMES, CONTROLS, IDENTITY, PLAIN, REFERENCE, TASKS, Row, layers
from bench.report import names
from bench.rules import refusal

REPOSITORY = Path(__file__).parent.parent
DECLARED = phases.merged([])


def row_with(**changes: object) -> Row:
    place = {
        "row": "1",
        "tier": "core",
        "hardware": "h100x1",
        "model": "flux.1-dev",
        "size": 1024,
        "steps": 28,
    }
    return Row.model_validate({**place, "task": "txt2img", "control": "none", **REFERENCE, **changes})


def test_the_committed_matrix_is_what_the_phases_declare() -> None:
    assert phases.drift(matrix_file.read(REPOSITORY / "matrix.csv")) == []


def test_no_id_of_any_commit_ever_changed_its_meaning() -> None:
    """ROW=42 means the same next year. A shallow clone checks the history that it has."""
    git = ["git", "-C", str(REPOSITORY)]
    listed = subprocess.run(
        [*git, "log", "--format=%H", "--", "matrix.csv"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip(f"no git history here: {listed.stderr.strip()}")
    now = {row.row: row for row in matrix_file.read(REPOSITORY / "matrix.csv")}
    for commit in listed.stdout.split():
        shown = subprocess.run([*git, "show", f"{commit}:matrix.csv"], capture_output=True, check=False)
        if shown.returncode:
            continue  # the commit that deleted the file
        for then in csv.DictReader(shown.stdout.decode().splitlines()):
            for column in set(IDENTITY) & set(then):
                assert str(getattr(now[then["row"]], column)) == then[column], (
                    f"row {then['row']} in {commit}"
                )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, len(DECLARED)))
def test_what_stands_in_the_file_keeps_its_id_and_the_rest_is_appended(kept: int) -> None:
    rows = phases.merged(DECLARED[:kept])
    assert rows[:kept] == DECLARED[:kept]
    assert [row.row for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    assert {row.identity for row in rows} == {row.identity for row in DECLARED}


def test_reworded_reasons_follow_the_declaration_and_foreign_rows_stay() -> None:
    foreign = DECLARED[0].model_copy(update={"row": str(len(DECLARED) + 1), "steps": 50})
    stale = [DECLARED[0].model_copy(update={"why": "as it was put last year"}), *DECLARED[1:], foreign]
    assert phases.merged(stale) == [*DECLARED, foreign]
    told = phases.drift(stale)
    assert any("as it was put last year" in sentence for sentence in told)
    assert any(f"row {foreign.row} is declared by no phase" in sentence for sentence in told)


def test_all_of_phase_one_stands_in_the_matrix() -> None:
    baseline = [
        row
        for row in DECLARED
        if phases.phase_of(row) == 1 and row.hardware in phases.HARDWARE
        if row.precision != "tf32" and row.steps == 28 and row.size != several_gpus.LARGE
        if row.gpu is None or row.model != "tiny"
    ]
    places = Counter((row.hardware, row.precision, row.use_case) for row in baseline)
    assert set(places.values()) == {1}
    assert len(places) == 3 * 3 * len(TASKS) * len(CONTROLS)
    for row in baseline:
        workload = (row.model, row.size, row.steps)
        assert workload == (("tiny", 128, 28) if row.hardware == "cpu" else ("flux.1-dev", 1024, 28))


def test_whatever_an_h100_computes_otherwise_is_painted_there_by_the_tiny_model_too() -> None:
    """But replays, which real weights have no use for, and a file that only its owner has."""
    painted = [row for row in DECLARED if row.hardware == "h100x1" and row.model == "tiny"]
    alone = {(axis, row.stack[axis]) for row in painted for axis in layers(row.stack)} - {
        ("precision", "bf16")
    }
    options = {(axis, option) for axis in PLAIN for option in AXES[axis] if option != PLAIN[axis]}
    skipped = {("cache", "replay-50"), ("cache", "replay-65"), ("quantization", "gguf-file")}
    ranks = {(axis, option) for axis, option in options if axis == "parallel"} | {("vae", "parallel")}
    assert alone == options - skipped - ranks
    fast = REFERENCE | {
        "quantization": "scaledmm-fp8-row",
        "attention": "flash3",
        "compilation": "inductor-graphs",
    }
    assert fast in [row.stack for row in painted]
    assert {row.tier for row in painted} == {"extended"}


@pytest.mark.parametrize("hardware", phases.HARDWARE)
def test_every_use_case_has_its_noise_floor(hardware: str) -> None:
    """The reference under compile, and under another attention backend, against the reference itself."""
    by_id = {row.row: row for row in DECLARED}
    for axis in ("compilation", "attention"):
        layers = [
            row
            for row in DECLARED
            if row.hardware == hardware and row.parent and by_id[row.parent].is_reference
            if getattr(row, axis) != PLAIN[axis]
        ]
        assert {row.use_case for row in layers} == {(task, control) for task in TASKS for control in CONTROLS}


def test_no_declared_row_is_refused() -> None:
    assert {row.label: refusal(row) for row in DECLARED if refusal(row)} == {}


def test_the_image_holds_every_option_and_fits_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    assert image_of(row_with()) == "torch"
    assert image_of(row_with(hardware="cpu", model="tiny", size=128)) == "cpu"
    for row in DECLARED:
        image = image_of(row)
        assert all(image in AXES[axis][option].images for axis, option in row.stack.items()), row.label


def test_the_phase_is_the_earliest_that_the_stack_belongs_to() -> None:
    assert phases.phase_of(row_with(precision="fp32")) == 1
    assert phases.phase_of(row_with(quantization="bnb-nf4")) == 2
    assert phases.phase_of(row_with(quantization="bnb-nf4", compilation="inductor")) == 3
    assert phases.phase_of(row_with(vae="tiled")) == 3
    assert phases.phase_of(row_with(hardware="h100x2", parallel="ulysses2", compilation="inductor")) == 4


def test_of_every_gpu_that_has_rows_the_facts_are_known_and_no_others_are_kept() -> None:
    assert {row.gpu for row in DECLARED} == {None, *GPUS}


@pytest.mark.parametrize(
    ("hardware", "gpu", "count"),
    [("cpu", None, 0), ("h100x8", "h100", 8), ("rtx4090x2", "rtx4090", 2), ("a100x16", "a100", 16)],
)
def test_hardware_says_its_gpu_and_how_many(hardware: str, gpu: str | None, count: int) -> None:
    assert HARDWARE.fullmatch(hardware)
    assert gpus_of(hardware) == (gpu, count)
    row = row_with(hardware=hardware)
    assert (row.gpu, row.gpu_count) == (gpu, count)


@pytest.mark.parametrize("hardware", ["h100", "h100x0", "x8", "8xh100", "H100x8", "cpux", "gpu x1"])
def test_what_is_no_hardware_makes_no_row(hardware: str) -> None:
    assert not HARDWARE.fullmatch(hardware)
    with pytest.raises(ValidationError, match="hardware"):
        row_with(hardware=hardware)


def test_the_axes_are_the_columns() -> None:
    assert tuple(AXES) == AXIS_NAMES
    assert all(plain in AXES[axis] for axis, plain in PLAIN.items())


def test_the_same_quantisation_of_transformer_and_t5_reads_differently() -> None:
    plain = {**REFERENCE, "task": "txt2img", "control": "none"}
    transformer = row_with(**{**plain, "quantization": "bnb-nf4"})
    t5 = row_with(**{**plain, "text_encoder": "bnb-nf4"})
    assert "bf16+bnb-nf4 " in transformer.label
    assert "bf16+t5-bnb-nf4 " in t5.label
    assert stack_text(t5) == names.stack(t5) == "bf16 + t5-bnb-nf4"


def test_a_combination_changes_one_thing_from_a_parent_that_stands_before_it() -> None:
    rows = {row.row: row for row in DECLARED}
    combined = [row for row in rows.values() if len(layers(row.stack)) > 2]
    assert combined
    for row in combined:
        assert row.parent is not None
        parent = rows[row.parent]
        assert sum(row.stack[axis] != parent.stack[axis] for axis in AXIS_NAMES) == 1
        assert int(parent.row) < int(row.row)


def test_every_method_of_a_node_descends_from_replicas_and_has_its_one_gpu_beside_it() -> None:
    """What a node is judged by: its own throughput control, and the rows under x1 that it scales from."""
    by_id = {row.row: row for row in DECLARED}
    nodes = [row for row in DECLARED if row.gpu_count > 1]
    assert {row.hardware for row in nodes} == set(several_gpus.NODES)
    alone = {(row.gpu, row.size, row.use_case, row.compilation) for row in DECLARED if row.gpu_count == 1}
    for row in nodes:
        assert phases.phase_of(row) == 4
        assert ranks_of(row) == row.gpu_count
        assert (row.gpu, row.size, row.use_case, row.compilation) in alone
        oldest = row
        while oldest.parent:
            oldest = by_id[oldest.parent]
        assert oldest.stack == REFERENCE | {"parallel": "replicas"}
    methods = {row.parallel for row in nodes}
    assert methods == set(AXES["parallel"]) - {"none"}


def test_what_every_method_is_judged_by_holds_the_methods_own_stack() -> None:
    """Replicas on the node, and one GPU of its kind; but for replays and fp32, which ask other things."""

    def place(row: Row, hardware: str, parallel: str) -> tuple[object, ...]:
        return (hardware, row.size, row.use_case, *(row.stack | {"parallel": parallel}).values())

    declared = {place(row, row.hardware, row.parallel) for row in DECLARED}
    for row in DECLARED:
        if row.gpu_count <= 1 or row.vae == "parallel" or row.precision == "fp32" or row.skips_by_schedule:
            continue
        assert place(row, row.hardware, "replicas") in declared, row.label
        assert place(row, f"{row.gpu}x1", "none") in declared, row.label


def test_several_gpus_are_tried_at_two_sizes_and_on_every_core_use_case() -> None:
    for hardware in several_gpus.NODES:
        rows = [row for row in DECLARED if row.hardware == hardware]
        assert {row.size for row in rows} == {1024, several_gpus.LARGE}
        assert {row.use_case for row in rows} == set(phases.CORE_USE_CASES)
        assert {row.vae for row in rows} == {"full", "parallel"}
