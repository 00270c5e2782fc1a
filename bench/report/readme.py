"""Tables of README.md that come from results: between markers, replaced by ``fluxbench report --readme``.

    <!-- fluxbench: fastest -->
    ... replaced ...
    <!-- /fluxbench -->

No number in README is typed. A table here names commit and day of its measurements instead of saying that
they are stale: any later commit to the runner would change the words, and no number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from bench.report import names, options_table
from bench.report.answers import Answer
from bench.report.markdown import grid
from bench.report.page import Report, SectionView
from bench.report.table import Column, Entry, Line, Table
from bench.report.text import MISSING

BLOCK = re.compile(r"(?P<open><!-- fluxbench: (?P<name>[\w-]+) -->\n).*?(?P<close><!-- /fluxbench -->)", re.S)
MEASURED = Column("Measured", numeric=False)
FASTEST_STACK = 1
"""Position of that column in the headline."""


def fastest(report: Report) -> str:
    """The headline of every section in which something beats the reference, with the day and commit of each
    winner."""
    tables = [
        _fastest(view)
        for page in report.pages
        for view in page.sections
        if any(case.answer and not case.answer.is_reference for case in view.cases)
    ]
    return "\n\n".join(f"**{each.scope}**\n\n{grid(each)}" for each in tables) or "Nothing measured yet."


def options(report: Report) -> str:
    """What each option is, where it ran and what it alone is worth, axis by axis."""
    return "\n\n".join(
        f"**{each.title}**. {each.scope}\n\n{grid(each)}" for each in options_table.options_tables(report)
    )


def combinations(report: Report) -> str:
    """What stacks of several options are worth."""
    table = options_table.combinations(report)
    return grid(table) if table.lines else "Nothing measured yet."


def _fastest(view: SectionView) -> Table:
    answers = [case.answer for case in view.cases]
    lines = tuple(
        Line(tuple(_entries(line, answer))) for line, answer in zip(view.headline.lines, answers, strict=True)
    )
    return replace(view.headline, columns=(*view.headline.columns, MEASURED), lines=lines)


def _entries(line: Line, answer: Answer | None) -> Iterator[Entry]:
    for position, entry in enumerate(line.entries):
        yield Entry(names.stack(answer.winner.row)) if answer and position == FASTEST_STACK else entry
    yield Entry(_measured(answer) if answer else MISSING)


def _measured(answer: Answer) -> str:
    result = answer.winner.latest
    commit = result.environment.git_commit if result.environment else None
    day = result.started_at[:10]
    return f"{day}, commit {commit[:8]}" if commit else day


TABLES: dict[str, Callable[[Report], str]] = {
    "fastest": fastest,
    "options": options,
    "combinations": combinations,
}
"""Name in the marker -> what stands there."""


class UnknownTable(Exception):
    """A marker names a table that nothing makes."""


def filled(text: str, report: Report) -> str:
    """``text`` with every block made anew."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            line = text.count("\n", 0, match.start()) + 1
            raise UnknownTable(f"line {line}: no table {name!r}; there are: {', '.join(TABLES)}")
        return f"{match['open']}{TABLES[name](report)}\n{match['close']}"

    return BLOCK.sub(block, text)
