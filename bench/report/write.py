"""``fluxbench report``: a results tree in; Markdown, charts and pages out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from bench import layout
from bench.matrix import Row
from bench.record import write_atomically
from bench.report import charts, draw, folders, html, markdown
from bench.report.charts import Figure
from bench.report.load import load
from bench.report.page import Report, SectionView, report

WRITTEN = "written.txt"
"""What the last report wrote, one path a line: whatever of it this report no longer writes is removed,
and nothing else is."""


def write(results: Path, out: Path, rows: Sequence[Row] = ()) -> tuple[Report, Path]:
    """Renders everything under ``out``; returns what was rendered and the index page.
    ``rows``: those of matrix.csv."""
    folder = out / layout.CHARTS
    figures: dict[tuple[str, str], list[Figure]] = {}
    drawn: dict[str, Future[str]] = {}
    with draw.drawing(folder) as begin:

        def begin_charts(view: SectionView) -> None:
            for each in view.cases:
                here = charts.figures(view.section, each.case, each.gains, each.scaled)
                figures[view.section.slug, each.case.slug] = here
                drawn.update({figure.name: begin(figure) for figure in here})

        rendered = report(load(results, rows), begin_charts)
        texts = markdown.write(rendered, out / layout.SUMMARIES)
        indexes = _indexes(rendered, figures, out)
        pages = html.write(rendered, figures, drawn, out)
    pictures = [folder / f"{name}.{kind}" for name in drawn for kind in ("svg", "png")]
    _forget_the_last(out, [*pages, *texts, *indexes, *pictures])
    return rendered, out / html.INDEX


def _indexes(of: Report, figures: Mapping[tuple[str, str], list[Figure]], out: Path) -> list[Path]:
    """What stands in each folder, for who comes to it without having seen the pages."""
    texts = {layout.SUMMARIES: folders.summaries(of), layout.CHARTS: folders.charts(of, figures)}
    for name, text in texts.items():
        write_atomically(out / name / folders.INDEX, text + "\n")
    return [out / name / folders.INDEX for name in texts]


def _forget_the_last(out: Path, written: Iterable[Path]) -> None:
    current = sorted(path.relative_to(out).as_posix() for path in written)
    manifest = out / WRITTEN
    if manifest.exists():
        for name in set(manifest.read_text(encoding="utf-8").splitlines()) - set(current):
            path = (out / name).resolve()
            if path.is_relative_to(out.resolve()):
                path.unlink(missing_ok=True)
    write_atomically(manifest, "".join(f"{name}\n" for name in current))
