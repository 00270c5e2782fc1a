"""The report in Markdown: the plan's Detailed Results Structure, and one matrix a use case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.record import write_atomically
from bench.report import failures, matrix_table, names, origin, since
from bench.report.groups import UseCase
from bench.report.page import CaseView, Page, Report, SectionView
from bench.report.pool import Measurement
from bench.report.table import Entry, Table
from bench.report.text import sentence

TREE = "../.."
"""From ``analysis/summaries/`` to the results tree. Written elsewhere (``--out``) the text is the same, for
it depends on nothing but the results; only its links lead nowhere then."""


def table(of: Table) -> str:
    """Caption, then a pipe table."""
    return f"{of.title} ({of.scope})\n\n{grid(of)}"


def grid(of: Table) -> str:
    head = "| " + " | ".join(_cell(column.title) for column in of.columns) + " |"
    rule = "|" + "|".join("---:" if column.numeric else "---" for column in of.columns) + "|"
    lines = ("| " + " | ".join(_entry(entry) for entry in line.entries) + " |" for line in of.lines)
    return "\n".join((head, rule, *lines))


def _entry(entry: Entry) -> str:
    text = f"**{entry.text}**" if entry.strong else entry.text
    extra = "; ".join((*entry.tags, entry.note) if entry.note else entry.tags)
    return _cell(f"{text} ({extra})" if extra else text)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def code(text: str) -> str:
    """As it stands: names of kernels are full of what Markdown takes for markup."""
    return "`" + text.replace("`", "'") + "`"


def write(report: Report, folder: Path) -> list[Path]:
    """``<hardware>-<weights>.md`` holds every configuration, ``...-<use case>.md`` compares its stacks."""
    written = []
    for page in report.pages:
        for view in page.sections:
            texts = {view.section.slug: "\n".join(configurations(page, view))}
            for case in view.cases:
                lines = (*comparison(view, case), *origins(case))
                texts[f"{view.section.slug}-{case.case.slug}"] = "\n".join(lines)
            for name, text in texts.items():
                written.append(folder / f"{name}.md")
                write_atomically(written[-1], text + "\n")
    return written


def comparison(view: SectionView, case: CaseView) -> Iterator[str]:
    yield f"# {case.case.title}: {names.hardware(view.section.hardware)}, {view.section.weights} weights\n"
    yield f"Weights: {view.section.weights} ({view.weights_note}).\n"
    yield f"{since.banner(view.section)}\n"
    for each in (case.comparison, *case.side):
        yield f"## {each.title}\n"
        yield f"{each.scope}\n\n{grid(each)}\n"


def origins(case: CaseView) -> Iterator[str]:
    """Of each row, in a list."""
    yield "## Attempts, evidence and commands\n"
    yield f"{origin.EXPLAINED}\n"
    for found in case.origins:
        yield f"- {sentence(found.title)}"
        yield f"  - {code(found.command) if found.command else origin.NO_COMMAND}"
        for source in found.sources:
            yield f"  - [{source.place}]({TREE}/{source.place}): {source.facts}"
        for proof in found.distinctive:
            yield f"  - {proof.of}: {code(proof.text)}"
    yield ""


def configurations(page: Page, view: SectionView) -> Iterator[str]:
    """The plan's Detailed Results Structure, its headings unchanged, after the headline."""
    yield f"# Results: {page.title}, {view.section.weights} weights\n"
    yield f"{sentence(view.weights_note)}.\n"
    yield f"{since.banner(view.section)}\n"
    if view.headline.lines:
        yield table(view.headline) + "\n"
    for stack, cases in _by_stack(view).items():
        first = next(iter(cases.values()))
        yield f"#### Configuration: {page.title}, {stack}\n"
        yield f"- Hardware: {'; '.join(dict.fromkeys(_details(view, each) for each in cases.values()))}"
        yield f"- Weights: {view.section.weights}; {view.section.workload}"
        yield f"- Optimization Stack: {'; '.join(names.stack_items(first.row))}\n"
        controls = False
        for case in view.cases:
            if case.case.slug not in cases:
                continue
            if case.case.control != "none" and not controls:
                controls = True
                yield "##### ControlNet Variants\n"
            yield from _results(view, case, cases[case.case.slug])
    failed = failures.concerning(page.failures, view.section)
    if failed:
        of = failures.table(failed)
        yield f"## {of.title}\n"
        yield f"{grid(of)}\n"


def _results(view: SectionView, case: CaseView, measurement: Measurement) -> Iterator[str]:
    level = "#####" if case.case.control == "none" else "######"
    yield f"{level} {case.case.title} Results\n"
    remarks = [f"row {measurement.row.row}"]
    if measurement.superseded or measurement.tagged:
        remarks.append(f"stale: {measurement.superseded or 'see above'}")
    yield f"{view.section.weights} weights, {', '.join(remarks)}\n"
    yield grid(matrix_table.configuration(view.section, case.case, measurement, case.gains)) + "\n"


def _by_stack(view: SectionView) -> dict[str, dict[str, Measurement]]:
    """stack -> use case slug -> measurement."""
    found: dict[str, dict[str, Measurement]] = {}
    cases: Iterable[UseCase] = (case.case for case in view.cases)
    for case in cases:
        for each in case.measurements:
            found.setdefault(names.stack(each.row), {})[case.slug] = each
    return found


def _details(view: SectionView, measurement: Measurement) -> str:
    """The machine, and the versions that measured this stack."""
    environment = measurement.latest.environment
    if environment is None:
        return view.section.machine
    versions = {"driver": environment.driver, "CUDA": environment.cuda, **environment.packages}
    shown = ["driver", "CUDA", "torch", "diffusers"]
    if len(environment.gpus) > 1:
        versions |= {"NCCL": environment.nccl}
        shown.append("NCCL")
    told = (f"{name} {versions[name]}" for name in shown if versions.get(name))
    return ", ".join((view.section.machine, *told))
