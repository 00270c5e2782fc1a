"""What the report prints of the committed results, computed once more from their raw requests: by METHOD.md's
words, with none of the bench's statistics."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from scipy.stats import binom, norm, t

from bench.report import markdown
from bench.report.load import load
from bench.report.page import report

RESULTS = Path(__file__).parent.parent / "results"
SUPPORT = {"p25 (s)": (25, 13), "p50 (s)": (50, 6), "p90 (s)": (90, 36), "p99 (s)": (99, 368)}
EFFECT = 1.015
Limits = tuple[float, float]
Key = tuple[str, str, str, int, int]
"""Row, weights, host, users, images."""
Line = tuple[str, dict[str, str], Key]
"""Table, column -> text, what it is of."""


class Cell(NamedTuple):
    code: str
    runs: tuple[tuple[float, ...], ...] = ()
    """Latencies in seconds of the steady requests, one tuple a process."""
    images: float = 0.0
    """Delivered in its windows."""
    window_seconds: float = 0.0

    @property
    def values(self) -> list[float]:
        return [value for run in self.runs for value in run]


def quantile(values: Sequence[float], percentile: int = 50) -> float:
    return sorted(values)[math.ceil(round(len(values) * percentile / 100, 9)) - 1]


def interval(values: Sequence[float]) -> Limits | None:
    """Of the median: order statistics, each with at most 2.5 % beyond."""
    n, ordered = len(values), sorted(values)
    ranks = [rank for rank in range(1, n + 1) if binom.cdf(rank - 1, n, 0.5) <= 0.025]
    return (ordered[ranks[-1] - 1], ordered[n - ranks[-1]]) if ranks else None


@cache
def pooled() -> dict[Key, Cell]:
    """Closed load; of a row's newest fingerprint with numbers what is ok, or else what there is."""
    found: dict[Key, tuple[str, Cell]] = {}
    for file in sorted(RESULTS.glob("**/result.json"), key=lambda path: path.parent.name):
        result = json.loads(file.read_text())
        served = [json.loads(line) for line in (file.parent / "requests.jsonl").read_text().splitlines()]
        for cell in (each for each in result["cells"] if each["latency"] and each["load"] == "closed"):
            row, gpus, users = result["row"], result["environment"]["gpus"], cell["users"]
            mine = [each for each in served if each["cell"] == f"{users}x{cell['images']}"]
            run = tuple(each["queue_seconds"] + each["service_seconds"] for each in mine[users:])
            servers = len(gpus) if row["parallel"] == "replicas" else 1
            own = row["row"], result["weights"]["source"], result["environment"]["host_id"]
            for key in [key for key in found if key[:3] == own and found[key][0] != result["fingerprint"]]:
                del found[key]
            key = *own, users, cell["images"]
            code = cell["status"]["code"]
            if code == "ok" and result["status"]["code"] == "suspect":
                code = "suspect"
            _, before = found.get(key, ("", Cell(code)))
            if before.code != code:
                if before.code == "ok":
                    continue
                before = Cell(code)
            images = before.images + (len(mine) - min(users, servers)) * cell["images"]
            seconds = before.window_seconds + cell["window_seconds"]
            found[key] = result["fingerprint"], Cell(code, (*before.runs, run), images, seconds)
    return {key: cell for key, (_, cell) in found.items()}


def scatter(cells: Sequence[Cell]) -> tuple[float, int]:
    """Variance of the log medians of equal processes, and its degrees of freedom."""
    logs = [[math.log(quantile(run)) for run in cell.runs] for cell in cells]
    squares = sum((log - sum(each) / len(each)) ** 2 for each in logs for log in each)
    degrees = sum(len(each) - 1 for each in logs)
    return squares / max(degrees, 1), degrees


def speedup(one: Cell, other: Cell, references: Sequence[Cell], level: float = 0.95) -> Limits | None:
    """``references``: of each of the host's the cell that most processes measured. Their spread is added
    where a side is one process."""
    limits, others = interval(one.values), interval(other.values)
    if limits is None or others is None or not one.code == other.code == "ok":
        return None
    middle, own = quantile(one.values), quantile(other.values)
    tail = (1 + level) / 2
    scale = norm.ppf(tail) / norm.ppf(0.975)
    below = scale * math.hypot(math.log(middle / limits[0]), math.log(others[1] / own))
    above = scale * math.hypot(math.log(limits[1] / middle), math.log(own / others[0]))
    variance, degrees = scatter(references)
    if min(len(one.runs), len(other.runs)) > 1:
        squares, freedom = scatter((one, other))
        error = math.sqrt(squares * (1 / len(one.runs) + 1 / len(other.runs)))
        below, above = (max(side, t.ppf(tail, freedom) * error) for side in (below, above))
    elif degrees:
        below, above = (side + t.ppf(0.975, degrees) * math.sqrt(2 * variance) for side in (below, above))
    else:
        return None
    return middle / own * math.exp(-below), middle / own * math.exp(above)


def verdict(limits: Limits | None) -> str:
    low, high = limits or (0.0, math.inf)
    if low > EFFECT or high < 1 / EFFECT:
        return "FASTER" if low > EFFECT else "SLOWER"
    return "SAME" if low > 1 / EFFECT and high < EFFECT else "AMBIGUOUS"


def shows(text: str, *values: float) -> bool:
    """Whether each value rounds to its number in the text; requests.jsonl keeps microseconds."""
    numbers = re.findall(r"[\d.]+", text)[: len(values)]
    digits = [len(number.partition(".")[2]) for number in numbers]
    pairs = zip(numbers, values, digits, strict=True)
    return all(abs(float(number) - value) <= 0.5 * 10**-places + 1e-5 for number, value, places in pairs)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    """Those with numbers of closed load, of each Basic Performance Matrix."""
    if not RESULTS.exists():
        pytest.skip("no results here")
    pages = markdown.write(report(load(RESULTS)), tmp_path_factory.mktemp("summaries"))
    return [line for page in pages for line in _lines(page)]


def _lines(page: Path) -> Iterator[Line]:
    matrix = page.read_text().partition("## Basic Performance Matrix: ")[2]
    if not matrix:
        return
    title, scope, table = matrix.split("\n\n")[:3]
    head, _, *rest = (re.split(r" (?<!\\)\| ", line.strip("| ")) for line in table.splitlines())
    uuids = re.findall(r"(?:GPU|cpu)-[0-9a-f]+", scope)
    host = re.compile(r"\+".join(f"{uuid}[^+]*" for uuid in uuids))
    for line in (dict(zip(head, entries, strict=True)) for entries in rest):
        if line["p50 (s)"] == "–" or not line["Concurrent Users"].isdigit():
            continue
        row, weights = re.search(r"row ([\w-]+)[,)]", line["Stack"]), re.search(r"(\w+) weights", scope)
        assert row, line
        assert weights, scope
        wanted = [row[1], weights[1], int(line["Concurrent Users"]), int(line["Images"])]
        (key,) = (key for key in pooled() if [*key[:2], *key[3:]] == wanted and host.fullmatch(key[2]))
        yield f"{page.name}, {title}", line, key


def test_every_printed_matrix_follows_from_the_raw_requests(lines: list[Line]) -> None:
    for place, line, key in lines:
        cell = pooled()[key]
        n, limits = len(cell.values), interval(cell.values) if key[3] == 1 else None
        for column, (percentile, support) in SUPPORT.items():
            if n < support:
                assert line[column].startswith(f"n={n}, max "), (place, key, column)
                assert shows(line[column].partition("max ")[2], max(cell.values)), (place, key, column)
            else:
                assert shows(line[column], quantile(cell.values, percentile)), (place, key, column)
        if key[3] == 1:  # intervals of several users come from a bootstrap
            found = line["p50 (s)"].partition("CI ")[2]
            assert shows(found, *limits) if limits else not found, (place, key)
        assert shows(line["Avg (s)"], sum(cell.values) / n), (place, key)
        assert line["n"].split()[0] == str(n), (place, key)
        assert shows(line["Images/s"], cell.images / cell.window_seconds), (place, key)
    assert {key for _, _, key in lines} == pooled().keys(), "a measured cell stands in no matrix"


def test_every_printed_speed_up_follows_from_the_raw_requests_of_both_rows(lines: list[Line]) -> None:
    references = {key[0] for _, line, key in lines if "(reference" in line["Stack"]}
    checked = 0
    for base_place, base in {(place, key) for place, _, key in lines if key[0] in references and key[3] == 1}:
        cells = [item for item in sorted(pooled().items()) if item[0][1:3] == base[1:3]]
        of_host = [
            max((cell for key, cell in cells if key[0] == row), key=lambda cell: len(cell.runs))
            for row in references & {key[0] for key, _ in cells}
        ]
        beside = [
            (line["Speed-up"], key)
            for place, line, key in lines
            if place == base_place and key[1:] == base[1:] and "×" in line["Speed-up"]
        ]
        for text, key in beside:
            sides = pooled()[base], pooled()[key]
            limits, found = speedup(*sides, of_host), text.partition("CI ")[2]
            assert shows(text, quantile(sides[0].values) / quantile(sides[1].values)), key
            assert shows(found, *limits) if limits else not found, key
            said, strict = text.split()[1].strip("*"), speedup(*sides, of_host, 1 - 0.05 / len(beside))
            # Holm's correction may take a verdict back, but none that Bonferroni's leaves.
            assert said in {verdict(limits), "AMBIGUOUS"}, key
            assert said == verdict(strict) or verdict(strict) == "AMBIGUOUS", key
            checked += bool(limits)
    assert checked, "no interval was recomputed"
