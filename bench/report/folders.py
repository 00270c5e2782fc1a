"""README.md of the folders that the report fills, which is what a web page of the repository shows of them:
every file by what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench.report import alone, coverage, overall
from bench.report.charts import Figure
from bench.report.markdown import grid
from bench.report.page import CaseView, Page, Report, SectionView
from bench.report.table import Column, Line, Table, words
from bench.report.text import plural

INDEX = "README.md"
GENERATED = "Written by `fluxbench report`."

SUMMARY_COLUMNS = (
    Column("Hardware", numeric=False),
    Column("Machine", numeric=False),
    Column("Weights, workload", numeric=False),
    Column("Stack by stack", numeric=False),
    Column("Use case by use case", numeric=False),
    Column("Rows", numeric=False),
    Column("Measured", numeric=False),
)


def summaries(report: Report) -> str:
    lines = tuple(_summary_line(page, view) for page in report.pages for view in page.sections)
    index = grid(Table("Summaries", "", SUMMARY_COLUMNS, lines))
    begin = f"# Summaries\n\n{GENERATED} One line a machine; numbers of two are never mixed.\n\n{index}\n"
    return "\n".join((begin, *_overviews(report)))


def _overviews(report: Report) -> Iterator[str]:
    """What stands behind the answers, and what each axis is worth alone."""
    for page in report.pages:
        tables = [each.table() for each in coverage.coverages(page, report.rows)]
        tables += [alone.table(world, report.rows) for world in overall.worlds(page.sections)]
        for each in tables:
            if each.lines:
                yield f"## {each.title}: {page.title}\n\n{each.scope}\n\n{grid(each)}\n"
    if hardware := coverage.untouched(report):
        told = ", ".join(f"{title} ({plural(rows, 'core row')})" for title, rows in hardware)
        yield f"Nothing was run yet on {told}."


def _summary_line(page: Page, view: SectionView) -> Line:
    section = view.section
    cases = (f"[{view.title}]({section.slug}-{view.slug}.md)" for view in section.use_cases)
    entries = (
        page.title,
        section.machine,
        f"{section.weights} weights, {section.workload}",
        f"[configurations]({section.slug}.md)",
        ", ".join(cases),
        ", ".join(sorted({each.row.row for each in section.measurements}, key=lambda row: row.zfill(12))),
        view.days,
    )
    return Line(tuple(map(words, entries)))


def charts(report: Report, figures: Mapping[tuple[str, str], Sequence[Figure]]) -> str:
    """``figures`` by section and use case slug."""
    return "\n".join(_charts(report, figures))


def _charts(report: Report, figures: Mapping[tuple[str, str], Sequence[Figure]]) -> Iterator[str]:
    yield f"# Charts\n\n{GENERATED} Each also as PNG, under the same name.\n"
    for page in report.pages:
        for view in page.sections:
            section = view.section
            yield f"**{page.title}, {section.weights} weights, {section.workload}**, {section.machine}\n"
            for case in view.cases:
                yield _chart_line(case, figures[section.slug, case.case.slug])
            yield ""


def _chart_line(case: CaseView, figures: Sequence[Figure]) -> str:
    links = (f"[{figure.title.partition(':')[0]}]({figure.name}.svg)" for figure in figures)
    return f"- {case.case.title}: {', '.join(links) or 'none'}"
