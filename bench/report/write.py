"""``fluxbench report``: a results tree in; Markdown, charts and pages out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench import layout
from bench.record import write_atomically
from bench.report import charts, draw, html, markdown
from bench.report.load import load
from bench.report.page import Report, report

WRITTEN = "written.txt"
"""What the last report wrote, one path a line: whatever of it this report no longer writes is removed,
and nothing else is."""


def write(results: Path, out: Path) -> tuple[Report, Path]:
    """Renders everything under ``out``; returns what was rendered and the index page."""
    rendered = report(load(results))
    figures = {
        (view.section.slug, case.case.slug): charts.figures(view.section, case.case, case.gains)
        for page in rendered.pages
        for view in page.sections
        for case in view.cases
    }
    drawn = [each for case in figures.values() for each in case]
    svgs = draw.draw(drawn, out / layout.CHARTS)
    pages = html.write(rendered, figures, svgs, out)
    texts = markdown.write(rendered, out / layout.SUMMARIES)
    pictures = [out / layout.CHARTS / f"{each.name}.{kind}" for each in drawn for kind in ("svg", "png")]
    _forget_the_last(out, [*pages, *texts, *pictures])
    return rendered, out / html.INDEX


def _forget_the_last(out: Path, written: Iterable[Path]) -> None:
    current = sorted(path.relative_to(out).as_posix() for path in written)
    manifest = out / WRITTEN
    if manifest.exists():
        for name in set(manifest.read_text(encoding="utf-8").splitlines()) - set(current):
            path = (out / name).resolve()
            if path.is_relative_to(out.resolve()):
                path.unlink(missing_ok=True)
    write_atomically(manifest, "".join(f"{name}\n" for name in current))
