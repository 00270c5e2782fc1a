"""matrix.csv: strict reading and writing.

Reading tells every mistake of the file at once, each with its line and column, and never guesses:
whoever edited the file gets one list to mend, and nothing is run from a file that is half right.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.flux import MODELS, TOKEN_PIXELS
from bench.hardware import HARDWARE, gpus_of
from bench.matrix import AXIS_NAMES, COLUMNS, IDENTITY, PLAIN, Row
from bench.vocabulary import near, unknown, vocabulary

_FIELD = re.compile(r'"(?:[^"]|"")*"|[^,]*')
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_BYTE_ORDER_MARK = "\ufeff"
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake. Line and column count characters from 1, as editors do."""

    line: int
    column: int
    message: str


class MatrixError(Exception):
    """The file holds mistakes: all of them, in the order of the file."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        self.path = path
        self.problems = sorted(problems)
        super().__init__("\n".join(f"{path}:{p.line}:{p.column}: {p.message}" for p in self.problems))


@dataclass(frozen=True)
class _Line:
    """One line of the file, split. ``fields`` holds the columns that the header names and we know."""

    number: int
    text: str
    fields: Mapping[str, str]
    places: Mapping[str, int]
    """column name -> index of its field in the line"""

    def problem(self, column: str, message: str) -> Problem:
        return Problem(self.number, _start_of(self.text, self.places[column]), f"{column}: {message}")


def read(path: Path) -> list[Row]:
    """Every row of the file, in its order. Raises MatrixError, or FileNotFoundError."""
    rows, problems = parse(path.read_bytes())
    if problems:
        raise MatrixError(path, problems)
    return rows


def parse(data: bytes) -> tuple[list[Row], list[Problem]]:
    """The rows that can be read and all that is wrong, in one pass over the file."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        column = len(before) - before.rfind("\n")
        return [], [Problem(before.count("\n") + 1, column, f"not UTF-8: byte 0x{data[error.start]:02x}")]
    if not text:
        return [], [Problem(1, 1, f"empty file; its first line must be {','.join(COLUMNS)}")]
    problems = list(_editor_problems(text))
    lines = [line.removesuffix("\r") for line in text.removeprefix(_BYTE_ORDER_MARK).split("\n")]
    if lines[-1] == "":
        lines.pop()
    else:
        problems.append(
            Problem(len(lines), len(lines[-1]) + 1, "the last line does not end: the file was cut")
        )
    header, wrong = _header(lines[0])
    problems += wrong
    places = {name: place for place, name in enumerate(header) if name in COLUMNS}
    entries = []
    for number, line in enumerate(lines[1:], start=2):
        fields, wrong = _split(number, line, len(header))
        values = {} if wrong else {name: fields[place] for name, place in places.items()}
        entry = _Line(number, line, values, places)
        mistakes = {} if wrong else dict(_field_problems(entry))
        problems += [*wrong, *mistakes.values()]
        # What is wrong in itself is compared with nothing: one mistake is told once.
        for name in mistakes:
            del values[name]
        entries.append(entry)
    problems += _relation_problems(entries)
    rows = [] if problems else [Row.model_validate(_typed(entry.fields)) for entry in entries]
    return rows, problems


def dump(rows: Iterable[Row]) -> str:
    """The file's text. ``parse(dump(rows).encode())`` gives the same rows back."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(row, column) for column in COLUMNS] for row in rows)
    return buffer.getvalue()


def _editor_problems(text: str) -> Iterator[Problem]:
    """What an editor or spreadsheet did to the whole file, once and not for every line."""
    if text.startswith(_BYTE_ORDER_MARK):
        yield Problem(1, 1, "a byte order mark stands before the header; save the file as UTF-8 without BOM")
    if crlf := text.count("\r\n"):
        end = text.index("\r\n")
        number, before = text.count("\n", 0, end) + 1, text.rfind("\n", 0, end) + 1
        advice = r"save the file with LF, as `sed -i 's/\r$//'` does"
        message = f"{crlf} lines end in CRLF; {advice}"
        yield Problem(number, end - before + 1, message)


def _header(line: str) -> tuple[list[str], list[Problem]]:
    names, problems = _split(1, line, None)
    for place, name in enumerate(names):
        at = _start_of(line, place)
        if name not in COLUMNS:
            problems.append(Problem(1, at, f"unknown column {name!r}{near(name, COLUMNS)}"))
        elif name in names[:place]:
            problems.append(Problem(1, at, f"column {name!r} stands twice"))
    for name in COLUMNS:
        if name not in names:
            problems.append(Problem(1, len(line) + 1, f"column {name!r} is missing"))
    if not problems and tuple(names) != COLUMNS:
        problems.append(Problem(1, 1, f"columns are in another order than {','.join(COLUMNS)}"))
    return names, problems


def _split(number: int, line: str, expected: int | None) -> tuple[list[str], list[Problem]]:
    """The fields, which mean nothing where there is a problem."""
    if not line:
        return [], [Problem(number, 1, "empty line")]
    control = _CONTROL_CHARACTER.search(line)
    if control:
        return [], [Problem(number, control.start() + 1, f"control character {control[0]!r}")]
    try:
        fields = next(csv.reader([line], strict=True))
    except csv.Error as error:
        message = f"not CSV ({error}); a field holds no line break, and quotes in it are doubled"
        return [], [Problem(number, 1, message)]
    if expected is not None and len(fields) != expected:
        at = _start_of(line, expected) if len(fields) > expected else len(line) + 1
        return [], [Problem(number, at, f"{len(fields)} fields; the header names {expected}")]
    return fields, []


def _start_of(line: str, place: int) -> int:
    """Where the field with this index starts, counted from 1."""
    start = 0
    for _ in range(place):
        match = _FIELD.match(line, start)
        start = (match.end() if match else start) + 1
    return start + 1


def _field_problems(entry: _Line) -> Iterator[tuple[str, Problem]]:
    """(column, problem) for each field that is wrong whatever the other lines say."""
    for column, value in entry.fields.items():
        if column in vocabulary():
            message = unknown(column, value)
        elif column in {"row", "size", "steps"} and not _NUMBER.fullmatch(value):
            message = f"{value[:40]!r} is not a whole number above 0, written plainly"
        elif column == "hardware" and not HARDWARE.fullmatch(value):
            message = f"{value!r} is not hardware; write cpu or <gpu>x<count>, like h100x8"
        elif column == "parent" and value and not _NUMBER.fullmatch(value):
            message = f"{value!r} is not the id of a row of this file"
        else:
            message = _misfit(column, entry.fields)
        if message:
            yield column, entry.problem(column, message)


def _misfit(column: str, fields: Mapping[str, str]) -> str | None:
    """What a well-formed size or hardware is, by definition, not able to give this row."""
    value = fields[column]
    if column == "size":
        model = MODELS.get(fields.get("model", ""))
        if model and model.only_size not in {None, int(value)}:
            return f"{value}: {model.title} works at {model.only_size} only"
        return f"{value} is not a multiple of {TOKEN_PIXELS}" if int(value) % TOKEN_PIXELS else None
    if column == "hardware":
        if value == "cpu" and fields.get("model") == "flux.1-dev":
            return "flux.1-dev does not run on cpu; its rows there use the tiny model"
        gpu, count = gpus_of(value)
        if count > 1 and fields.get("parallel") == PLAIN["parallel"]:
            return f"a stack for one GPU stands under {gpu}x1, not {value}"
    return None


def _relation_problems(entries: list[_Line]) -> Iterator[Problem]:
    """Ids and identities that stand twice, ids out of order, parents that are none."""
    ids = _ids(entries)
    yield from ids.problems
    by_identity: dict[tuple[str, ...], _Line] = {}
    for entry in entries:
        if entry.fields.keys() >= set(IDENTITY):
            identity = tuple([entry.fields[column] for column in IDENTITY])
            twin = by_identity.setdefault(identity, entry)
            if twin is not entry:
                where = f"row {twin.fields.get('row', '?')} in line {twin.number}"
                yield Problem(entry.number, 1, f"the same hardware, workload, use case and stack as {where}")
        message = _parent_problem(entry, ids)
        if message:
            yield entry.problem("parent", message)


@dataclass
class _Ids:
    lines: dict[str, _Line] = field(default_factory=dict)
    """id -> its line, also of an id that is mistyped: the children of such a row are no orphans."""
    removed: list[range] = field(default_factory=list)
    """Ids whose lines are gone. That is told once, where the ids go on, and not for every child."""
    problems: list[Problem] = field(default_factory=list)


def _ids(entries: list[_Line]) -> _Ids:
    found = _Ids()
    mistyped: list[tuple[str, _Line]] = []
    last_id, shift = 0, 0  # shift: by how much ids are ahead of the lines
    numbers = [int(entry.fields["row"]) if "row" in entry.fields else None for entry in entries]
    for place, (number, entry) in enumerate(zip(numbers, entries, strict=True), start=1):
        expected = place + shift
        if number is None:
            mistyped.append((str(expected), entry))
            continue
        twin = found.lines.get(str(number))
        if twin is not None:
            found.problems.append(entry.problem("row", f"id {number} already stands in line {twin.number}"))
            mistyped.append((str(expected), entry))
        elif number not in {last_id + 1, expected}:
            message = f"id {number} follows {last_id}: rows are appended, none removed"
            found.problems.append(entry.problem("row", message))
            # Where lines were removed the ids go on from the gap, where one id is mistyped they do not.
            if number > expected and numbers[place : place + 1] in ([], [number + 1]):
                found.removed.append(range(expected, number))
                shift = number - place
            else:
                mistyped.append((str(expected), entry))
        else:
            shift = number - place
        found.lines.setdefault(str(number), entry)
        last_id = number
    for row_id, entry in mistyped:
        found.lines.setdefault(row_id, entry)
    return found


def _parent_problem(entry: _Line, ids: _Ids) -> str | None:
    """Why the parent of a row is not one: a parent stands above, on the same hardware, with the same
    workload and use case, and differs in exactly one option."""
    fields = entry.fields
    if "parent" not in fields:
        return None
    if not fields["parent"]:
        layers = [
            axis for axis, plain in PLAIN.items() if axis != "parallel" and fields.get(axis, plain) != plain
        ]
        return f"missing, though {', '.join(layers)} could be undone" if layers else None
    parent = ids.lines.get(fields["parent"])
    if parent is None and any(int(fields["parent"]) in gone for gone in ids.removed):
        return None
    if parent is None:
        return f"row {fields['parent']} does not exist"
    if parent.number >= entry.number:
        return f"row {fields['parent']} does not stand above this row"
    changed = [
        column
        for column in IDENTITY
        if column in fields and column in parent.fields and fields[column] != parent.fields[column]
    ]
    elsewhere = [column for column in changed if column not in AXIS_NAMES]
    if elsewhere:
        return f"row {fields['parent']} has another {', '.join(elsewhere)}"
    if len(changed) > 1:
        return f"row {fields['parent']} differs in {len(changed)} options, not in one: {', '.join(changed)}"
    return None


def _typed(fields: Mapping[str, str]) -> dict[str, object]:
    return {
        **fields,
        "size": int(fields["size"]),
        "steps": int(fields["steps"]),
        "parent": fields["parent"] or None,
    }
