"""matrix.csv is read strictly: every mistake at once, with its line and column, and never a guess."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import phases
from bench.flux import MODELS
from bench.matrix import AXIS_NAMES, COLUMNS, CONTROLS, TASKS, TIERS, Row
from bench.matrix_file import MatrixError, Problem, dump, parse, read

ROWS = phases.merged([])
TEXT = dump(ROWS)


def problems_of(text: str) -> list[Problem]:
    return parse(text.encode())[1]


def messages_of(text: str) -> list[str]:
    return [problem.message for problem in problems_of(text)]


def edited(*edits: tuple[int, str, str]) -> str:
    """The declared matrix with single fields replaced: (row id, column, new text)."""
    table = [line.split(",") for line in TEXT.splitlines()]
    for row_id, column, value in edits:
        table[row_id][COLUMNS.index(column)] = value
    return "".join(",".join(line) + "\n" for line in table)


def field_start(text: str, line: int, column: str) -> int:
    before = text.splitlines()[line - 1].split(",")[: COLUMNS.index(column)]
    return sum(len(field) + 1 for field in before) + 1


options = st.sampled_from(["none", "bf16", "cudnn", "replay-50", "x"])
plain_text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=30)
rows = st.builds(
    Row,
    row=st.integers(1, 10**8).map(str),
    tier=st.sampled_from(TIERS),
    hardware=st.sampled_from(["cpu", "h100x1", "rtx4090x2"]),
    model=st.sampled_from(sorted(MODELS)),
    size=st.integers(1, 4096),
    steps=st.integers(1, 100),
    task=st.sampled_from(TASKS),
    control=st.sampled_from(CONTROLS),
    parent=st.none() | st.integers(1, 10**8).map(str),
    why=plain_text,
    **dict.fromkeys(AXIS_NAMES, options),
)


@given(rows)
def test_any_row_survives_the_way_to_the_runner(row: Row) -> None:
    assert Row.model_validate_json(row.model_dump_json()) == row


@given(st.lists(plain_text, min_size=1, max_size=8))
def test_any_reasons_survive_the_file(whys: list[str]) -> None:
    written = [row.model_copy(update={"why": why}) for row, why in zip(ROWS, whys, strict=False)]
    assert parse(dump(written).encode()) == (written, [])


MISTAKES = {
    "tier": ["", "Core", "all"],
    "hardware": ["", "h100", "H100x1", "h100x0", "h100x", "x8", "h100x08", "cpux"],
    "model": ["flux", "FLUX.1-dev"],
    "size": ["", "0", "-128", "1e3", "128.0", " 128", "١٢٨", "9" * 5000],
    "steps": ["", "0", "28 ", "+28", "2_8"],
    "task": ["text2img", "none"],
    "control": ["", "cany"],
    "precision": ["none", "FP32", "int8"],
    "attention": ["", "cudn", "flash 2"],
    "compilation": ["torch.compile", "Inductor"],
    "row": ["0", "-1", "007", "p-1a2b3c4d", "x"],
    "parent": ["x", "p-1a2b3c4d", "99999", "1.0"],
}
mistakes = st.sampled_from(sorted(MISTAKES)).flatmap(
    lambda column: st.tuples(st.integers(1, len(ROWS)), st.just(column), st.sampled_from(MISTAKES[column]))
)


@settings(max_examples=60, deadline=None)
@given(st.lists(mistakes, min_size=1, max_size=12, unique_by=lambda mistake: mistake[:2]))
def test_every_mistake_is_told_with_its_line_and_column(edits: list[tuple[int, str, str]]) -> None:
    text = edited(*edits)
    told = {(problem.line, problem.column) for problem in problems_of(text)}
    made = {(row_id + 1, field_start(text, row_id + 1, column)) for row_id, column, _ in edits}
    assert told == made


def test_a_file_with_a_mistake_gives_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    path.write_text(edited((3, "attention", "cudn"), (9, "steps", "many")))
    with pytest.raises(MatrixError) as caught:
        read(path)
    assert str(caught.value).splitlines() == [
        f"{path}:4:62: attention: unknown option 'cudn'; did you mean 'cudnn'?",
        f"{path}:10:35: steps: 'many' is not a whole number above 0, written plainly",
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("row", "1"), "id 1 already stands in line 2"),
        (("row", "9"), "id 9 follows 1: rows are appended, none removed"),
        (("parent", ""), None),
        (("parent", "4"), "row 4 does not stand above this row"),
        (("parent", "2"), "row 2 does not stand above this row"),
        (("parent", "9999"), "row 9999 does not exist"),
        (("hardware", "h100x1"), "row 1 has another hardware"),
        (("task", "inpaint"), "row 1 has another task"),
        (("steps", "27"), "row 1 has another steps"),
        (("vae", "tiled"), "row 1 differs in 2 options, not in one: precision, vae"),
        (("precision", "fp32"), "the same hardware, workload, use case and stack as row 1 in line 2"),
        (("hardware", "a100x8"), "a stack for one GPU stands under a100x1, not a100x8"),
        (("hardware", "cpu"), "flux.1-dev does not run on cpu; its rows there use the tiny model"),
        (("model", "tiny"), "1024: tiny FLUX works at 128 only"),
        (("size", "1000"), "1000 is not a multiple of 16"),
    ],
)
def test_a_row_that_contradicts_another_or_itself_is_refused(
    edit: tuple[str, str], message: str | None
) -> None:
    told = [p.message.split(": ", 1)[-1] for p in problems_of(edited((2, *edit))) if p.line == 3]
    assert message in told or (message is None and told == [])


def test_a_layer_without_a_parent_is_refused() -> None:
    assert "parent: missing, though compilation could be undone" in messages_of(edited((169, "parent", "")))


def test_the_header_is_held_to_the_columns() -> None:
    header, rest = TEXT.split("\n", 1)
    assert messages_of(f"{header.replace('attention', 'atention')}\n{rest}")[:2] == [
        "unknown column 'atention'; did you mean 'attention'?",
        "column 'attention' is missing",
    ]
    assert any("unknown column 'note'" in m for m in messages_of(f"{header},note\n{rest}"))
    assert any("another order" in m for m in messages_of(f"{header.replace('row,tier', 'tier,row')}\n{rest}"))
    assert any("stands twice" in m for m in messages_of(f"{header.replace('why', 'row')}\n{rest}"))


def test_a_broken_line_is_told_once_and_its_children_are_no_orphans() -> None:
    lines = TEXT.splitlines(keepends=True)
    for broken in ('1,core,"a100x1\n', "1,core\n", lines[1].rstrip() + ",extra\n", "1,co\x00re\n"):
        problems = problems_of("".join([lines[0], broken, *lines[2:]]))
        assert [problem.line for problem in problems] == [2], broken


@pytest.mark.parametrize("gone", [(100,), (1,), (100, 101), (100, 500), (len(ROWS) - 1,)])
def test_a_removed_line_is_told_once_and_not_again_for_every_child_of_its_row(gone: tuple[int, ...]) -> None:
    lines = TEXT.splitlines(keepends=True)
    for row_id in reversed(gone):
        del lines[row_id]
    told = problems_of("".join(lines))
    gaps = [row_id for row_id in gone if row_id + 1 not in gone]
    starts = [next(i for i in range(end, -1, -1) if i not in gone) for end in gaps]
    assert [problem.message for problem in told] == [
        f"row: id {end + 1} follows {start}: rows are appended, none removed"
        for start, end in zip(starts, gaps, strict=True)
    ]


def test_a_line_removed_hides_no_mistake_of_the_other_rows() -> None:
    text = edited((169, "parent", ""), (200, "row", "9999"), (300, "parent", "99999"))
    lines = text.splitlines(keepends=True)
    del lines[100]
    assert [problem.message for problem in sorted(problems_of("".join(lines)))] == [
        "row: id 101 follows 99: rows are appended, none removed",
        "parent: missing, though compilation could be undone",
        "row: id 9999 follows 199: rows are appended, none removed",
        "parent: row 99999 does not exist",
    ]


def test_what_an_editor_did_to_the_whole_file_is_told_once_with_what_to_do() -> None:
    assert messages_of(TEXT.replace("\n", "\r\n")) == [
        f"{len(ROWS) + 1} lines end in CRLF; save the file with LF, as `sed -i 's/\\r$//'` does"
    ]
    (mark,) = messages_of("\ufeff" + TEXT)
    assert "without BOM" in mark
    both = edited((3, "attention", "cudn")).replace("\n", "\r\n")
    assert [problem.line for problem in problems_of("\ufeff" + both)] == [1, 1, 4]
    (one,) = problems_of(TEXT.replace("core", "co\rre", 1))
    assert "control character" in one.message


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"", (1, 1)),
        (TEXT.encode()[:-5], (len(ROWS) + 1, len(TEXT.splitlines()[-1]) - 3)),
        (TEXT.encode().replace(b"core", b"c\xffre", 1), (2, 4)),
        (TEXT.replace("\n", "\r\n").encode(), (1, len(TEXT.splitlines()[0]) + 1)),
        (TEXT.replace("\n", "\n\n", 1).encode(), (2, 1)),
    ],
    ids=["empty", "cut", "not UTF-8", "CRLF", "blank line"],
)
def test_damage_to_the_file_is_placed(data: bytes, place: tuple[int, int]) -> None:
    first = parse(data)[1][0]
    assert (first.line, first.column) == place


def big_matrix(count: int) -> bytes:
    """Declared rows over and over, with another number of steps each time, parents moved along."""
    rows = []
    for index in range(count):
        round_, place = divmod(index, len(ROWS))
        row, shift = ROWS[place], round_ * len(ROWS)
        parent = None if row.parent is None else str(int(row.parent) + shift)
        rows.append(
            row.model_copy(
                update={"row": str(index + 1), "steps": row.steps + 100 * round_, "parent": parent}
            )
        )
    return dump(rows).encode()


def test_ten_thousand_rows_are_read_and_checked_in_about_a_second() -> None:
    data = big_matrix(10_000)
    started = time.process_time()
    rows, problems = parse(data)
    seconds = time.process_time() - started
    assert (len(rows), problems) == (10_000, [])
    assert seconds < 2.0, "the aim is 1 s on a free machine; make bench-self prints the figure"
