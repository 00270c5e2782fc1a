"""Where things lie under ``results/``; the only module that spells these paths.

    results/single_gpu/<gpu>/row-0042/<weights>/<attempt>/result.json ...
    results/multi_gpu/<n>gpu/<gpu>/row-0042/<weights>/<attempt>/...
    results/cpu/row-0042/<weights>/<attempt>/...
    results/analysis/{charts,summaries}/
    results/hosts/<GPUs>/packing.json
    results/constructed/<hardware>.json

The plan's tree has no place for rows without a GPU; ``cpu/`` is that place.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench.matrix import Row

RESULT = "result.json"
REQUESTS = "requests.jsonl"
TELEMETRY = "telemetry.csv.gz"
GROWING_TELEMETRY = "telemetry.csv"
"""While the row runs, and after a kill."""
LOG = "log.txt"
EVENTS = "events.jsonl"
IMAGES = "images"
PROMPTS = "prompts.json"
"""In ``images``: what each picture was to show, by its name."""

CHARTS = "charts"
SUMMARIES = "summaries"
"""Folders of ``analysis/``."""

ATTEMPT = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")


def new_attempt(now: datetime | None = None) -> str:
    """``20261122T194600Z-9f3c``: sorts by time; the tail keeps two starts of one second apart."""
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    return f"{moment:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def rank_log(rank: int) -> str:
    """What one process of several printed; ``log.txt`` is the conductor's."""
    return f"rank-{rank}.log"


def row_dir(results: Path, row: Row) -> Path:
    name = f"row-{int(row.row):04d}" if row.row.isdigit() else f"row-{row.row}"
    if row.gpu is None:
        return results / "cpu" / name
    if row.gpu_count == 1:
        return results / "single_gpu" / row.gpu / name
    return results / "multi_gpu" / f"{row.gpu_count}gpu" / row.gpu / name


def attempt_dir(results: Path, row: Row, weights: str, attempt: str) -> Path:
    return row_dir(results, row) / weights / attempt


def temporary(path: Path) -> Path:
    """Beside ``path``, to be renamed to it when whole. No two writers share one: processes of two containers
    may have the same id."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def place_id(folder: Path) -> str:
    """16 hexadecimal digits: one name for a folder on this machine, whatever path leads to it."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def attempts(results: Path) -> Iterator[Path]:
    """Every attempt folder in the tree, finished or not, in path order; ``results/demo/`` is a tree of
    its own and never mixed in."""
    patterns = ("cpu", "single_gpu/*", "multi_gpu/*gpu/*")
    for pattern in patterns:
        for folder in sorted(results.glob(f"{pattern}/row-*/*/*")):
            if folder.is_dir() and ATTEMPT.fullmatch(folder.name):
                yield folder


def root_of(path: Path) -> Path:
    """The results tree that a path belongs to: the folder from which an attempt above or below the path
    stands in its place. Names alone cannot tell, for a tree, or a folder above it, may itself be called
    ``cpu``. The path itself where no attempt does."""

    def holds(folder: Path) -> bool:
        found = attempts(folder)
        return any(attempt.is_relative_to(path) or path.is_relative_to(attempt) for attempt in found)

    return next(filter(holds, (path, *path.parents)), path)


def tree_near(path: Path) -> Path | None:
    """The results tree that somebody meant who named this folder: itself, one that it is in, or one right
    below it. None where none of them holds a result."""
    path = path.resolve()
    below = sorted(folder for folder in path.iterdir() if folder.is_dir())
    candidates = (path, root_of(path), *path.parents, *below)
    return next((folder for folder in candidates if any(attempts(folder)) or constructed(folder)), None)


def packing_path(results: Path, gpu_uuids: Iterable[str]) -> Path:
    """What it costs to run a row on each of these GPUs at once."""
    name = hashlib.sha256("+".join(sorted(gpu_uuids)).encode()).hexdigest()[:16]
    return results / "hosts" / name / "packing.json"


def constructed(results: Path) -> list[Path]:
    """What ``fluxbench construct`` left, a file a hardware; written there by ``--out``."""
    return sorted((results / "constructed").glob("*.json"))


def analysis_dir(results: Path) -> Path:
    """Where ``fluxbench report`` writes unless told otherwise."""
    return results / "analysis"
