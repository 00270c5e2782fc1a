"""Tables of README.md that come from results: between markers, replaced by ``fluxbench report --readme``.

    <!-- fluxbench: fastest -->
    ... replaced ...
    <!-- /fluxbench -->

No number in README is typed, and each names commit and day of its measurement (``bench.report.since``).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bench.report import options_table, overall
from bench.report.markdown import grid
from bench.report.page import Report

BLOCK = re.compile(r"(?P<open><!-- fluxbench: (?P<name>[\w-]+) -->\n).*?(?P<close><!-- /fluxbench -->)", re.S)


def fastest(report: Report) -> str:
    """The answer for every hardware and workload in which something beats the reference."""
    tables = [
        overall.table(world)
        for page in report.pages
        for world in overall.worlds(page.sections)
        if any(not best.answer.is_reference for best in world.bests)
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
