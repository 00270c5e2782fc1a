"""The report in a real browser: it opens from disk, sorts by a click, shows the JSON's numbers, and asks the
network for nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench.config import QUALITY_TIERS
from bench.record import Code, Result
from bench.report.write import write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH; `make browser` installs it")

MEDIANS = {"bf16": 5.25, "bf16 + inductor": 3.9, "bf16 + tiled": 5.6, "bf16 + cudnn": 12.5}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Result]]:
    """The pages' folder, and the result of each stack."""
    results = tmp_path_factory.mktemp("results")
    changes = ({}, {"compilation": "inductor"}, {"vae": "tiled"}, {"attention": "cudnn"})
    written = {}
    for number, ((stack, median), change) in enumerate(zip(MEDIANS.items(), changes, strict=True)):
        row = fake_row(row=str(number + 2), parent="2" if change else None, **change)
        written[stack] = fake_result(row, median_seconds=median, seed=number)
        write_attempt(results, written[stack])
    write(results, results / "analysis")
    return results / "analysis", written


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, report: tuple[Path, dict[str, Result]]) -> Iterator[Page]:
    """The hardware's page. Whatever a test does, nothing may be fetched and nothing may go wrong."""
    requested: list[str] = []
    wrong: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((report[0] / "h100x1.html").as_uri())
    yield page
    assert {url.split(":")[0] for url in requested} <= {"file", "data"}
    assert not wrong
    page.close()


def matrix(page: Page) -> list[list[str]]:
    """The visible lines of the first Basic Performance Matrix."""
    table = page.locator("table", has=page.locator("caption", has_text="Basic Performance Matrix")).first
    return table.locator("tbody tr:visible").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.replace(/\\s+/g, ' ').trim()))"
    )


def stacks(page: Page) -> list[str]:
    """Without the tags beside them."""
    table = page.locator("table", has_text="Basic Performance Matrix").first
    return table.locator("tbody tr:visible th").evaluate_all(
        "headings => headings.map(heading => heading.firstChild.textContent.trim())"
    )


def heading(page: Page, title: str) -> None:
    page.locator("table", has_text="Basic Performance Matrix").first.get_by_role("button", name=title).click()


def test_the_page_shows_the_numbers_of_the_json(page: Page, report: tuple[Path, dict[str, Result]]) -> None:
    shown = dict(zip(stacks(page), matrix(page), strict=True))
    for stack, result in report[1].items():
        latency = result.cells[0].latency
        assert latency is not None
        assert shown[stack][1].startswith(f"{latency.p50.value:#.3g}")
        assert shown[stack][7] == f"n=36, max {latency.max:#.3g}"


def test_a_click_on_a_heading_sorts_by_number_and_another_turns_it_round(page: Page) -> None:
    heading(page, "p50 (s)")
    ascending = sorted(MEDIANS, key=MEDIANS.__getitem__)
    assert stacks(page) == ascending
    heading(page, "p50 (s)")
    assert stacks(page) == ascending[::-1]
    sorted_heading = page.locator("th[aria-sort]")
    assert sorted_heading.get_attribute("aria-sort") == "descending"


def test_the_filter_shows_one_shape_or_all(page: Page) -> None:
    assert len(matrix(page)) == len(MEDIANS)
    page.locator(".filters").first.get_by_role("button", name="all").click()
    assert len(matrix(page)) == 4 * len(MEDIANS)
    page.locator(".filters").first.get_by_role("button", name="4 × 4").click()
    assert {tuple(line[3:5]) for line in matrix(page)} == {("4", "4")}


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_phone_shows_every_chart_whole(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    cut = page.locator(".chart").evaluate_all(
        """charts => charts.filter(chart => chart.scrollWidth > chart.clientWidth
            || chart.firstElementChild.getBoundingClientRect().right > innerWidth).length"""
    )
    assert page.locator(".chart").count()
    assert cut == 0


def test_dark_is_dark_in_charts_too(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    colours = page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor,
                  getComputedStyle(document.querySelector('.chart text')).fill]"""
    )
    paper, ink = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
    assert paper < 150 < 300 < ink


def test_every_table_has_a_caption_and_scoped_headings(page: Page) -> None:
    faults = page.locator("table").evaluate_all(
        """tables => tables.filter(table => !table.caption
            || [...table.querySelectorAll('th')].some(heading => !heading.scope)).length"""
    )
    assert faults == 0


def test_the_index_leads_to_the_answer(page: Page, report: tuple[Path, dict[str, Result]]) -> None:
    page.goto((report[0] / "index.html").as_uri())
    card = page.locator(".answer").first
    assert "bf16 + inductor" in card.inner_text()
    assert "row 3," in card.inner_text()
    card.get_by_role("link", name="Text-to-Image").click()
    assert page.url.endswith("h100x1.html#h100x1-synthetic-txt2img")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of two machines, and of a row that crashed with a long line in its log."""
    results = tmp_path_factory.mktemp("machines")
    for host in (1, 2):
        row = fake_row(row=str(host + 1), attention="sdpa" if host == 1 else "cudnn")
        write_attempt(results, fake_result(row, host=host, n=10 * host, shapes=[(1, 1)]))
    crashed = fake_row(row="9", compilation="inductor")
    tail = ["x" * 400, "a reason of many words " * 30]
    write_attempt(results, fake_result(crashed, host=1, code=Code.CRASHED, reason="long", log_tail=tail))
    write(results, results / "analysis")
    return results / "analysis"


def test_only_the_machine_with_the_answer_is_unfolded_until_a_link_unfolds_another(
    page: Page, machines: Path
) -> None:
    page.goto((machines / "h100x1.html").as_uri())
    headings = page.locator("details.machine > summary").all_inner_texts()
    assert [text.split()[0] for text in headings] == ["GPU-00000002", "GPU-00000001"]
    assert "1 row, 2026-11-22; fastest for Text-to-Image" in headings[0]
    folds = page.locator("details.machine")
    assert [fold.get_attribute("open") for fold in folds.all()] == ["", None]
    page.get_by_role("navigation").get_by_role("link", name="GPU-00000001").click()
    assert [fold.get_attribute("open") for fold in folds.all()] == ["", ""]


def test_a_long_log_widens_no_table(page: Page, machines: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((machines / "h100x1.html").as_uri() + "#failures")
    table = page.locator(".table", has_text="Cells without clean numbers").last
    table.locator("summary").click()
    assert table.evaluate("table => table.scrollWidth <= table.clientWidth")


def test_the_p50_is_in_sight_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    for table in page.locator("table", has_text="p50 (s)").all()[:2]:
        box = table.get_by_role("button", name="p50 (s)", exact=True).bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 390


def test_a_click_anywhere_on_a_heading_sorts(page: Page) -> None:
    table = page.locator("table", has_text="Basic Performance Matrix").first
    cell = table.locator("thead th", has_text="p50 (s)")
    box = cell.bounding_box()
    assert box is not None
    for x, reverse in ((3.0, False), (box["width"] - 3, True)):
        cell.click(position={"x": x, "y": 3.0})
        assert stacks(page) == sorted(MEDIANS, key=MEDIANS.__getitem__, reverse=reverse)


def test_the_row_of_an_answer_leads_to_its_attempts_folded_open(
    page: Page, report: tuple[Path, dict[str, Result]]
) -> None:
    page.goto((report[0] / "index.html").as_uri())
    page.locator(".answer").first.get_by_role("link", name="row 3").click()
    result = report[1]["bf16 + inductor"]
    assert page.get_by_text(f"row-0003/synthetic/{result.attempt}").is_visible()
    assert not page.get_by_text("row-0002/synthetic/").is_visible()


def test_the_row_of_the_fastest_stack_of_a_page_leads_to_its_attempts_too(
    page: Page, report: tuple[Path, dict[str, Result]]
) -> None:
    fastest = page.locator("table", has_text="Fastest stack of each use case").first
    fastest.get_by_role("link", name="3", exact=True).click()
    assert page.get_by_text(f"row-0003/synthetic/{report[1]['bf16 + inductor'].attempt}").is_visible()


def test_the_fastest_stack_and_its_seconds_stand_first_where_a_phone_shows_them(page: Page) -> None:
    fastest = page.locator("table", has_text="Fastest stack of each use case").first
    assert fastest.locator("thead th").all_inner_texts()[:3] == ["Use case", "Fastest stack", "p50 (s)"]


def test_every_part_of_a_page_with_many_is_linked_in_sight_on_a_wide_screen(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    cut_off = page.locator(".bar nav").evaluate(
        """nav => {
            for (let part = 0; part < 14; part++) nav.append(nav.querySelector("a").cloneNode(true));
            [...nav.children].forEach(link => { link.textContent = "GPU-0123abcd"; });
            const end = nav.getBoundingClientRect().right;
            return [...nav.children].filter(link => link.getBoundingClientRect().right > end).length;
        }"""
    )
    assert cut_off == 0


def test_the_guide_says_what_a_quality_is_by_the_bounds_that_decide(page: Page) -> None:
    said = (page.locator("dl.guide").first.text_content() or "").lower()
    for tier in QUALITY_TIERS[:-1]:
        assert f"{tier.name}: psnr from {tier.min_psnr_db:g} db, ssim from {tier.min_ssim:g}, " in said
