"""The offline report: an index and a page per hardware, each one file that asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import jinja2

from bench import config
from bench.record import write_atomically
from bench.report import alone, coverage, every_stack, failures, names, origin, overall, since, text, timeline
from bench.report.charts import Figure
from bench.report.draw import inline
from bench.report.page import CaseView, Page, Report, SectionView
from bench.report.samples import SIDE, Samples, samples
from bench.report.table import early
from bench.report.timeline import Timeline

TEMPLATES = Path(__file__).parent / "templates"
INDEX = "index.html"


@dataclass(frozen=True)
class InlineFigure:
    title: str
    scope: str
    note: str
    svg: str


@dataclass(frozen=True)
class Detail:
    """What a use case shows beside its tables."""

    figures: tuple[InlineFigure, ...]
    samples: Samples
    timelines: tuple[tuple[str, Timeline | str], ...]
    """(stack, telemetry of its newest attempt or why it cannot be read)"""


def write(
    report: Report,
    figures: Mapping[tuple[str, str], list[Figure]],
    svgs: Mapping[str, Future[str]],
    out: Path,
) -> list[Path]:
    """``figures`` by section and use case slug, ``svgs`` by figure name: each is waited for where it stands.
    Returns the pages."""
    environment = _environment(report)
    written = [out / INDEX]
    write_atomically(written[0], environment.get_template("index.html.j2").render())
    for page in report.pages:
        details = {
            (view.section.slug, case.case.slug): _detail(
                view, case, figures[view.section.slug, case.case.slug], svgs
            )
            for view in page.sections
            for case in view.cases
        }
        html = environment.get_template("hardware.html.j2").render(page=page, details=details)
        written.append(out / f"{page.hardware}.html")
        write_atomically(written[-1], html)
    return written


def _environment(report: Report) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": text.number,
        "ratio": text.ratio,
        "interval": text.interval,
        "duration": text.duration,
        "plural": text.plural,
        "early": early,
        "sentence": text.sentence,
        "sortable": sortable,
    }
    environment.globals |= {
        "worlds": overall.worlds,
        "navigation": navigation,
        "overall": overall.table,
        "choice": overall.CHOICE,
        "failures": failures.table,
        "since": since.banner,
        "report": report,
        "origin": origin,
        "alone": alone.table,
        "every_stack": every_stack.tables,
        "coverages": coverage.coverages,
        "untouched": coverage.untouched,
        "style": (TEMPLATES / "style.css").read_text(encoding="utf-8"),
        "script": (TEMPLATES / "script.js").read_text(encoding="utf-8"),
        "effect": config.COMPARISON.smallest_effect,
        "tiers": "; ".join(map(tier_words, config.QUALITY_TIERS)),
        "weights_notes": names.WEIGHTS_NOTES,
        "side": SIDE,
        "width": timeline.WIDTH,
        "height": timeline.HEIGHT,
        "detail_of_machine": lambda view: list(machine(view)),
    }
    return environment


def tier_words(tier: config.QualityTier) -> str:
    """``near: PSNR from 22 dB, SSIM from 0.85, latents within 15 %``; of the lowest that it is the rest."""
    if tier == config.QUALITY_TIERS[-1]:
        return f"{tier.name}: the rest"
    return (
        f"{tier.name}: PSNR from {tier.min_psnr_db:g} dB, SSIM from {tier.min_ssim:g}, "
        f"latents within {tier.max_latent_relative_error:.0%}".replace("%", " %")
    )


def navigation(page: Page) -> list[tuple[str, str]]:
    """(anchor, label) of what tells the page's parts apart: workloads, else machines, else use cases."""
    worlds = overall.worlds(page.sections)
    if len(worlds) > 1:
        common = set.intersection(*(set(world.facts) for world in worlds))
        parts = [
            (world.slug, ", ".join(fact for fact in world.facts if fact not in common)) for world in worlds
        ]
    elif len(page.sections) > 1:
        parts = [(view.section.slug, view.section.devices) for view in worlds[0].machines]
    else:
        parts = [
            (f"{view.section.slug}-{case.case.slug}", case.case.title)
            for view in page.sections
            for case in view.cases
        ]
    return [*parts, *([("failures", "Without clean numbers")] if page.failures else [])]


def sortable(value: float | str | None) -> str:
    """As script.js reads it; empty sorts last."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _detail(
    view: SectionView, case: CaseView, figures: list[Figure], svgs: Mapping[str, Future[str]]
) -> Detail:
    return Detail(
        samples=samples(view.section, case.case),
        timelines=tuple(_timelines(case)),
        figures=tuple(
            InlineFigure(each.title, each.scope, each.note, inline(each.name, svgs[each.name].result()))
            for each in figures
        ),
    )


def _timelines(case: CaseView) -> Iterator[tuple[str, Timeline | str]]:
    for each in case.case.measurements:
        found: Timeline | str | None
        try:
            found = timeline.read(each.attempts[-1].folder)
        except ValueError as error:
            found = str(error)
        if found:
            yield f"{names.stack(each.row)} (row {each.row.row})", found


def machine(view: SectionView) -> Iterator[tuple[str, str]]:
    """What the newest attempt recorded about where it ran."""
    environment = view.environment
    if environment is None:
        return
    for gpu in environment.gpus:
        limit = f", power limit {text.number(gpu.power_limit_w)} W" if gpu.power_limit_w else ""
        yield "GPU", f"{gpu.name}, {gpu.uuid}, {text.number(gpu.memory_total_gb)} GB{limit}"
    yield "CPU", f"{environment.cpu_model}, {environment.cpu_count} CPUs"
    yield "Memory", f"{text.number(environment.memory_total_gb)} GB"
    told = {
        "Driver": environment.driver,
        "CUDA": environment.cuda,
        "cuDNN": environment.cudnn,
        "NCCL": environment.nccl,
        "Python": environment.python,
        "Image": environment.image_digest,
        "Commit": environment.git_commit,
        "Packages": ", ".join(f"{name} {version}" for name, version in environment.packages.items()),
        "Variables": ", ".join(f"{name}={value}" for name, value in environment.variables.items()),
    }
    yield from ((name, value) for name, value in told.items() if value)
