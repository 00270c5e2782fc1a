"""What a table is, before it becomes Markdown or HTML."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.report.text import MISSING, number, percent


@dataclass(frozen=True)
class Column:
    title: str
    """With its unit."""
    numeric: bool = True
    hint: str = ""
    """What the number means, for a reader who points at the heading."""


@dataclass(frozen=True)
class Entry:
    text: str
    sort: float | str | None = None
    """What the column sorts by; None sorts last."""
    note: str = ""
    """Said below the text, smaller."""
    tags: tuple[str, ...] = ()
    strong: bool = False
    hint: str = ""
    """For a reader who points at the entry."""
    href: str = ""
    """Where on its page the text is proved; Markdown leaves it out."""
    log: tuple[str, ...] = ()
    """Lines that a page folds away below the text; Markdown leaves them out."""


@dataclass(frozen=True)
class Line:
    entries: tuple[Entry, ...]
    shape: str = ""
    """``1x4`` where the line is about one cell, so that a page can filter by it."""
    best: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    scope: str
    """Hardware, weights, workload and host: every table says what its numbers are of."""
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    def __post_init__(self) -> None:
        for line in self.lines:
            if len(line.entries) != len(self.columns):
                raise ValueError(f"{self.title}: {len(line.entries)} entries, {len(self.columns)} columns")


def early(of: Table, *wanted: str) -> Table:
    """With these columns right behind the first one, where a narrow screen shows them without scrolling."""
    titles = [column.title for column in of.columns]
    first = [0, *map(titles.index, wanted)]
    order = [*first, *(index for index in range(len(titles)) if index not in first)]
    lines = (replace(line, entries=tuple(line.entries[index] for index in order)) for line in of.lines)
    return replace(of, columns=tuple(of.columns[index] for index in order), lines=tuple(lines))


def words(text: str, **more: object) -> Entry:
    return Entry(text or MISSING, text or None, **more)  # type: ignore[arg-type]


def figure(value: float | None, text: str | None = None, note: str = "") -> Entry:
    """A number that sorts by its value; ``text`` where it is not printed plainly."""
    return Entry(number(value) if text is None else text, value, note)


def percentage(value: float | None, note: str = "") -> Entry:
    """Of a value in per cent."""
    return figure(value, percent(value), note)
