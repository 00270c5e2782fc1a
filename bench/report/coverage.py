"""What stands behind the answers: of the core rows of matrix.csv, how many have numbers, how many were tried
and have none, and so how many were never run; by use case, phase of the plan, and layer of the stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.flux import MODELS
from bench.matrix import PLAIN, Row
from bench.phases import PHASES, phase_of
from bench.record import Code
from bench.report import names
from bench.report.page import Page, Report
from bench.report.table import Column, Entry, Line, Table, words
from bench.report.text import MISSING
from bench.rules import refusal
from bench.typed import Asked

UNBROKEN = "\N{NO-BREAK SPACE}"

COMBINED = "combined"
LAYERS = ("precision", *PLAIN, COMBINED)

Layer = tuple[int, str]
"""(phase, one of LAYERS)"""


@dataclass(frozen=True)
class Tally:
    """Of some rows."""

    rows: int
    measured: int
    """On however many machines."""
    ended: Counter[Code]
    """How the others ended that were tried, by their latest attempt."""

    def entry(self) -> Entry:
        if not self.rows:
            return Entry(MISSING)
        failed = ", ".join(f"{count} {code}" for code, count in sorted(self.ended.items()))
        text = f"{self.measured}{UNBROKEN}of{UNBROKEN}{self.rows}"
        return Entry(text, float(self.measured), failed, strong=self.measured > 0)


@dataclass(frozen=True)
class Coverage:
    """Of one hardware, with one kind of weights."""

    title: str
    rows: tuple[Row, ...]
    measured: frozenset[tuple[str, ...]]
    """Identities of rows with numbers."""
    ended: dict[tuple[str, ...], Code]
    """Identities of rows that were tried and have none."""
    command: str
    """Runs what is missing."""

    def tally(self, rows: Iterable[Row]) -> Tally:
        asked = [row.identity for row in rows]
        return Tally(
            rows=len(asked),
            measured=sum(identity in self.measured for identity in asked),
            ended=Counter(self.ended[identity] for identity in asked if identity in self.ended),
        )

    def table(self) -> Table:
        layers = sorted(
            {layer_of(row) for row in self.rows}, key=lambda layer: (layer[0], LAYERS.index(layer[1]))
        )
        columns = (
            Column("Use case", numeric=False),
            *(Column(_heading(layer), hint=PHASES[layer[0]]) for layer in layers),
            Column("All"),
        )
        cases: dict[str, list[Row]] = {}
        usual, _ = Counter(map(names.workload, self.rows)).most_common(1)[0]
        for row in sorted(
            self.rows, key=lambda row: (-row.steps, row.size, names.use_case_order(row.use_case))
        ):
            cases.setdefault(_case(row, usual), []).append(row)
        lines = [self._line(case, rows, layers) for case, rows in cases.items()]
        if len(lines) > 1:
            lines.append(self._line("All", self.rows, layers))
        return Table("Core rows with numbers", self.title, columns, tuple(lines))

    def _line(self, title: str, rows: Sequence[Row], layers: Sequence[Layer]) -> Line:
        by_layer: dict[Layer, list[Row]] = {layer: [] for layer in layers}
        for row in rows:
            by_layer[layer_of(row)].append(row)
        tallies = (*map(self.tally, by_layer.values()), self.tally(rows))
        return Line((words(title), *(tally.entry() for tally in tallies)))


def layer_of(row: Row) -> Layer:
    """A plain stack is of its precision; one of several options combines them."""
    stack = row.stack
    changed = [axis for axis, plain in PLAIN.items() if stack[axis] != plain]
    return phase_of(row), "precision" if not changed else changed[0] if len(changed) == 1 else COMBINED


def _case(row: Row, usual: str) -> str:
    """With the workload where it is not the usual one."""
    title, workload = names.use_case(*row.use_case), names.workload(row)
    return title if workload == usual else f"{title}, {workload.partition(', ')[2]}"


def _heading(layer: Layer) -> str:
    phase, name = layer
    return f"Phase {phase}: {names.AXIS_TITLES.get(name, name.capitalize())}"


def coverages(page: Page, matrix: Sequence[Row]) -> list[Coverage]:
    """One for each kind of weights that the page has numbers or failures of; rows that a rule refuses with
    these weights do not count. None without a matrix."""
    seen = dict.fromkeys(
        (*(each.weights for each in page.measurements), *(each.weights for each in page.failures))
    )
    found = (coverage(page, weights, matrix) for weights in seen)
    return [each for each in found if each.rows]


def coverage(page: Page, weights: str, matrix: Sequence[Row]) -> Coverage:
    measured = {each.row.identity for each in page.measurements if each.weights == weights and each.cells}
    failures = sorted(
        (each for each in page.failures if each.weights == weights and each.row.identity not in measured),
        key=lambda each: each.attempt,
    )
    return Coverage(
        title=f"{page.title} · {weights} weights · of those that matrix.csv holds",
        rows=tuple(fitting(page.hardware, weights, matrix)),
        measured=frozenset(measured),
        ended={each.row.identity: each.code for each in failures},
        command=Asked(weights=weights).fan_out(f"hardware={page.hardware}"),
    )


def fitting(hardware: str, weights: str, matrix: Iterable[Row]) -> list[Row]:
    """Core rows that no rule refuses with these weights."""
    rows = (row for row in matrix if row.hardware == hardware and row.tier == "core")
    return [row for row in rows if weights in MODELS[row.model].sources and not refusal(row, weights)]


def untouched(report: Report) -> list[tuple[str, int]]:
    """(hardware, core rows) of the matrix's hardware that nothing was tried on."""
    tried = {page.hardware for page in report.pages}
    rows = Counter(row.hardware for row in report.rows if row.tier == "core" and row.hardware not in tried)
    return [(names.hardware(hardware), count) for hardware, count in rows.items()]
