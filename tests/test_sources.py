"""What of the code a row's fingerprint hashes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import identity, sources
from bench.matrix import Row

MakeRow = Callable[..., Row]


def files_of(row: Row) -> list[Path]:
    return sources.of_stack(tuple(row.stack.items()))


def names(row: Row) -> set[str]:
    return {path.relative_to(sources.PACKAGE).as_posix() for path in files_of(row)}


def test_a_row_hashes_the_runner_and_its_own_options_only(make_row: MakeRow) -> None:
    plain = names(make_row())
    assert {"runner/server.py", "runner/published/transformer.json", "axes/cache/plain.py"} <= plain
    assert {"flux.py", "tiny/__init__.py"} <= plain, "what a request says to its model"
    assert not plain & {"report/page.py", "rules/stacks.py", "axes/option.py", "axes/__init__.py"}
    compiled = names(make_row(compilation="inductor"))
    assert compiled >= {"axes/attention/torchs.py", "axes/compilation/regional.py", "axes/vae.py"}
    assert not compiled & {"axes/attention/packages.py", "axes/compilation/tensorrt.py"}


def test_an_option_brings_what_its_module_imports(make_row: MakeRow) -> None:
    """text_encoder.py asks quantization/plain.py, whose own package lists options and is not hashed."""
    found = names(make_row())
    assert "axes/quantization/plain.py" in found
    assert "axes/quantization/__init__.py" not in found


def test_what_no_request_passes_through_leaves_results_fresh(make_row: MakeRow) -> None:
    assert not names(make_row()) & {f"runner/{name}" for name in sources.OFF_THE_CLOCK}
    assert all((sources.PACKAGE / "runner" / name).is_file() for name in sources.OFF_THE_CLOCK)


def test_another_precision_is_other_arithmetic_but_the_same_code(make_row: MakeRow) -> None:
    assert identity.code_sha256(make_row()) == identity.code_sha256(make_row(precision="bf16"))


def test_a_changed_option_makes_its_rows_stale_and_no_others(
    make_row: MakeRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tuple(files_of(make_row()))
    before = identity.files_sha256(files, sources.PACKAGE)
    copies = []
    for file in files:
        copy = tmp_path / file.relative_to(sources.PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
        copies.append(copy)
    assert identity.files_sha256(tuple(copies), tmp_path) == before
    (tmp_path / "axes" / "vae.py").write_text("# changed\n")
    assert identity.files_sha256(tuple(copies), tmp_path) != before


def test_host_and_runner_agree_whether_or_not_torch_is_imported(make_row: MakeRow) -> None:
    row = make_row(compilation="inductor")
    code = "import sys\nfrom bench import identity\nfrom bench.matrix import Row\n"
    code += "row = Row.model_validate_json(sys.argv[1])\nprint(identity.code_sha256(row))\n"
    code += "assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, row.model_dump_json()]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == identity.code_sha256(row)
