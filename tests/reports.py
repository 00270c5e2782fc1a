"""Reports of fake attempts, and where in them a number is looked up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench import identity
from bench.matrix import Row
from bench.record import Result
from bench.report import since
from bench.report.load import load
from bench.report.page import Report, report
from bench.report.table import Table

REFERENCE = fake_row(row="2")
COMPILED = fake_row(row="4", compilation="inductor", parent="2")


def attempt(results: Path, row: Row, **result: Any) -> tuple[Path, Result]:
    """A fake attempt that this checkout's code made."""
    made = fake_result(row, **result)
    if made.ingredients is not None:
        here = identity.ingredients(row, made.ingredients.weights)
        update = {"ingredients": here, "fingerprint": identity.fingerprint_of(row, here)}
        made = made.model_copy(update=update)
    return write_attempt(results, made), made


def rendered(results: Path) -> Report:
    return report(load(results))


def comparison(of: Report, case: str = "txt2img", section: int = 0) -> Table:
    (page,) = of.pages
    return next(each.comparison for each in page.sections[section].cases if each.case.slug == case)


def texts(table: Table, stack: str, shape: str = "1x1") -> dict[str, str]:
    """Heading -> text of the line of one stack and cell."""
    (line,) = (line for line in table.lines if line.entries[0].text == stack and line.shape in {shape, ""})
    return {column.title: entry.text for column, entry in zip(table.columns, line.entries, strict=True)}


def banner(results: Path) -> str:
    return since.banner(rendered(results).pages[0].sections[0].section)


def tags(results: Path) -> list[tuple[str, ...]]:
    """Of the stacks of the comparison."""
    return [line.entries[0].tags for line in comparison(rendered(results)).lines if line.shape in {"1x1", ""}]
