"""What ``fluxbench report`` says and returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bench import layout
from bench.matrix import Row
from bench.record import write_atomically

Say = Callable[[str], None]

NEEDED = ("altair", "jinja2", "vl_convert", "PIL")
"""Modules of the ``report`` extra; the host side lives without them."""


def render(results: Path, out: Path | None, rows: Sequence[Row], say: Say) -> int:
    """0, or 2 where something needed is not installed. ``rows``: matrix.csv, without which a report says
    neither what was never run nor how a row is measured again."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        say(f"the report needs {', '.join(missing)}: pip install 'fluxbench[report]'")
        return 2
    from bench.report.text import plural
    from bench.report.write import write

    rendered, index = write(results, out or layout.analysis_dir(results), rows)
    say(f"{plural(rendered.attempts, 'attempt')} read from {results}")
    for problem in rendered.problems:
        say(f"left out: {problem.path}: {problem.reason}")
    say(str(index))
    return 0


def renew_readme(results: Path, readme: Path, only_check: bool, say: Say) -> int:
    """1 where the tables differ and ``only_check`` asks, or where a marker names no table."""
    from bench.report.load import load
    from bench.report.page import report
    from bench.report.readme import UnknownTable, filled

    text = readme.read_text(encoding="utf-8")
    try:
        renewed = filled(text, report(load(results)))
    except UnknownTable as error:
        say(f"{readme}, {error}")
        return 1
    if renewed == text:
        say(f"{readme}: tables are current")
        return 0
    if only_check:
        say(f"{readme}: tables differ from {results}; `fluxbench report --readme` renews them")
        return 1
    write_atomically(readme, renewed)
    say(f"{readme}: tables renewed from {results}")
    return 0
