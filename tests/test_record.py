"""result.json: whole whenever it is read, strict, and honest about what is missing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import fake_result, fake_row
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bench import record
from bench.record import SERIOUSNESS, Cell, Code, Memory, Status


def cell(code: Code, users: int = 1, images: int = 1) -> Cell:
    reason = "" if code is Code.OK else f"it was {code}"
    return Cell(users=users, images=images, status=Status(code=code, reason=reason))


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = fake_result(fake_row())
    assert record.load(record.save(result, tmp_path)) == result


def test_a_field_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    path = record.save(fake_result(fake_row()), tmp_path)
    path.write_text(path.read_text().replace('"attempt":', '"latency_ms": 3.1, "attempt":', 1))
    with pytest.raises(ValidationError, match="latency_ms"):
        record.load(path)


def test_a_nan_is_refused() -> None:
    with pytest.raises(ValidationError):
        Memory(used_avg_gb=float("nan"))


def test_a_missing_value_is_null_in_the_file_and_never_zero() -> None:
    assert set(Memory().model_dump().values()) == {None}


def test_every_code_has_its_place_in_the_order_of_seriousness() -> None:
    assert sorted(SERIOUSNESS) == sorted(Code)


def test_an_attempt_whose_cells_went_well_went_well() -> None:
    assert record.status_of_cells([cell(Code.OK), cell(Code.OK, 4)]) == Status(code=Code.OK)


def test_an_attempt_names_the_cells_that_gave_it_its_status() -> None:
    status = record.status_of_cells([cell(Code.OK), cell(Code.OOM, 1, 4), cell(Code.OOM, 4, 4)])
    assert status.code is Code.OOM
    assert status.reason == "1x4: it was oom; 4x4: it was oom"


@given(st.lists(st.sampled_from(list(Code)), min_size=1))
def test_an_attempt_is_as_bad_as_its_worst_cell_in_any_order(codes: list[Code]) -> None:
    status = record.status_of_cells([cell(code) for code in codes])
    assert status == record.status_of_cells([cell(code) for code in codes])
    assert SERIOUSNESS.index(status.code) == min(SERIOUSNESS.index(code) for code in codes)
    assert bool(status.reason) == (status.code is not Code.OK)


def test_a_reader_never_sees_half_a_file_however_the_writer_dies(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bench.record import write_atomically\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for letter in 'ab': write_atomically(Path(sys.argv[1]), letter * 3_000_000)"
    )
    path = tmp_path / "result.json"
    for attempt in range(5):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05 + attempt * 0.013)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        if path.exists():
            text = path.read_text()
            assert len(text) == 3_000_000
            assert len(set(text)) == 1
    assert path.exists()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = record.save(fake_result(fake_row()), tmp_path)
    before = path.read_text()
    with pytest.raises(UnicodeEncodeError):
        record.write_atomically(path, "\udc80")
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
