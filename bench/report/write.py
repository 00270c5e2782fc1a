"""``fluxbench report``: results tree in, Markdown, charts and HTML out."""

from __future__ import annotations

from pathlib import Path

from bench import layout
from bench.report import charts, draw, html, markdown
from bench.report.load import load
from bench.report.page import Report, report


def write(results: Path, out: Path) -> tuple[Report, Path]:
    """Renders everything under ``out``; returns what was rendered and the index page."""
    rendered = report(load(results))
    figures = {
        (view.section.slug, case.case.slug): charts.figures(view.section, case.case, case.gains)
        for page in rendered.pages
        for view in page.sections
        for case in view.cases
    }
    svgs = draw.draw([each for case in figures.values() for each in case], out / layout.CHARTS)
    markdown.write(rendered, out / layout.SUMMARIES)
    return rendered, html.write(rendered, figures, svgs, out)
