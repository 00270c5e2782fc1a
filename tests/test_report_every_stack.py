"""All stacks of one hardware in one table, whichever of its machines measured them."""

from __future__ import annotations

from pathlib import Path

from fake_attempts import write_attempt
from fakes import fake_result, fake_row
from report_tree import command

from bench.matrix import Row
from bench.report import every_stack, overall
from bench.report.load import load
from bench.report.page import report
from bench.report.table import Table

REFERENCE = fake_row(row="2")
COMPILED = REFERENCE.model_copy(update={"row": "4", "compilation": "inductor"})
QUANTISED = COMPILED.model_copy(update={"row": "5", "quantization": "scaledmm-fp8-row"})
REPLAYED = REFERENCE.model_copy(update={"row": "6", "cache": "replay-65"})


def measured(results: Path, row: Row, seconds: float, host: int) -> None:
    for minutes in (0, 30):  # two processes: how far equal ones differ is known
        write_attempt(results, fake_result(row, median_seconds=seconds, host=host, minutes=minutes))


def tables(results: Path) -> list[Table]:
    (page,) = report(load(results)).pages
    (world,) = overall.worlds(page.sections)
    return list(every_stack.tables(world))


def column(table: Table, title: str) -> list[str]:
    index = [each.title for each in table.columns].index(title)
    return [line.entries[index].text for line in table.lines]


def two_machines(results: Path) -> None:
    for host, row, seconds in ((0, QUANTISED, 3.1), (1, COMPILED, 3.0), (0, REPLAYED, 2.0)):
        measured(results, row, seconds, host)
    measured(results, REFERENCE, 5.2, host=0)
    measured(results, REFERENCE, 4.0, host=1)


def test_stacks_of_all_machines_stand_in_the_order_of_their_gains_and_replays_last(tmp_path: Path) -> None:
    two_machines(tmp_path)
    (table,) = tables(tmp_path)
    assert "one user, one image" in table.scope
    assert column(table, "Stack") == [
        "bf16 + scaledmm-fp8-row + inductor",
        "bf16 + inductor",
        "bf16",
        "bf16 + replay-65",
    ]
    assert column(table, "Machine")[:2] == ["GPU-00000000", "GPU-00000001"]
    assert [line.best for line in table.lines] == [True, True, False, False], "lossless, and of any quality"


def test_every_stack_stands_once_though_several_machines_measured_it(tmp_path: Path) -> None:
    two_machines(tmp_path)
    write_attempt(tmp_path, fake_result(COMPILED, median_seconds=1.0, host=0))
    (table,) = tables(tmp_path)
    assert column(table, "Stack").count("bf16 + inductor") == 1
    assert column(table, "p50 (s)")[1].startswith("3.0"), "of the machine with two runs, not of the luckier"


def test_one_machine_needs_no_table_beside_its_own(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE, 5.2, host=0)
    measured(tmp_path, COMPILED, 3.9, host=0)
    assert not tables(tmp_path)


def test_a_stack_leads_to_what_proves_it_on_the_machine_of_its_line(tmp_path: Path) -> None:
    two_machines(tmp_path)
    (table,) = tables(tmp_path)
    command(tmp_path)
    page = (tmp_path / "analysis" / "h100x1.html").read_text()
    for line in table.lines:
        link = line.entries[0].href
        assert f'<a href="{link}">{line.entries[0].text}</a>' in page
        assert f'id="{link.removeprefix("#")}"' in page
