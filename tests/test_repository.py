"""What the repository promises about itself: it stays small, true to its README, and free of torch where
the host side works."""

import configparser
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

REPOSITORY = Path(__file__).parent.parent
MOST_BYTES = 32 * 2**20
"""Half of it is the tiny model; a GPU attempt adds 40 kB, and a session of them less than 1 MB."""


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    return done.stdout


def tracked_files() -> list[Path]:
    listed = (REPOSITORY / name for name in git("ls-files", "-z").split("\0") if name)
    return [path for path in listed if path.is_file()]


def readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def test_the_tracked_tree_stays_small() -> None:
    sizes = {path: path.stat().st_size for path in tracked_files()}
    largest = sorted(sizes, key=lambda path: sizes[path], reverse=True)[:5]
    assert sum(sizes.values()) < MOST_BYTES, [(str(path), sizes[path]) for path in largest]


def configured_index_hosts() -> set[str]:
    """Hosts of the package registries that pip is set up to ask on this machine."""
    urls = [value for name, value in os.environ.items() if re.fullmatch(r"(PIP|UV)_.*(INDEX|URL).*", name)]
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read_string(f"[pip]\n{listed}")
    urls += [value.strip("'") for name, value in settings["pip"].items() if "index" in name]
    return {host for url in " ".join(urls).split() if (host := urlsplit(url).hostname)}


def test_nothing_names_the_registries_of_the_machine_it_was_made_on() -> None:
    hosts = configured_index_hosts()
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        assert [host for host in hosts if host in text] == [], path


def test_the_demo_and_the_environment_leave_git_clean() -> None:
    for path in ("results/demo/cpu/row-0073", ".venv/bin/python", "bench/__pycache__/x.pyc"):
        assert git("check-ignore", path).strip() == path


def test_the_demo_is_at_most_24_rows_and_one_cell_has_a_true_p99(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.cli import main
    from bench.config import BUDGETS, QUANTILE_SUPPORT
    from bench.demo import PARTS, chosen_rows, commands
    from bench.matrix import TASKS

    monkeypatch.chdir(REPOSITORY)
    rows = chosen_rows()
    assert len(rows) <= 24
    assert {row.hardware for row in rows} == {"cpu"}
    assert {row.task for row in rows} == set(TASKS)
    assert any(BUDGETS[part.budget].n >= QUANTILE_SUPPORT[99] for part in PARTS)
    assert {arguments[0] for _, arguments in commands()} <= set(main.commands)


def test_the_readme_names_modules_commands_and_targets_that_exist() -> None:
    from bench.cli import main

    text = readme()
    named = re.findall(r"`((?:bench|tests|docker)/[\w./]+)`", text)
    assert named
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
    commands = set(re.findall(r"fluxbench ([a-z][a-z-]+)", text))
    assert commands
    assert commands - set(main.commands) == set()
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", text)) - targets == set()


def test_the_tables_of_the_readme_are_what_the_committed_results_say() -> None:
    from click.testing import CliRunner

    from bench.cli import main

    if not (REPOSITORY / "results").exists():
        pytest.skip("no results are committed yet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        done = CliRunner().invoke(main, ["report", "--readme", "--check"])
    assert done.exit_code == 0, done.output


def test_every_committed_result_fits_the_schema_that_fluxbench_prints() -> None:
    """The schema is for others' tools: what our own reader forgives would be an error in theirs."""
    from click.testing import CliRunner
    from jsonschema import Draft202012Validator

    from bench.cli import main

    schema = Draft202012Validator(json.loads(CliRunner().invoke(main, ["schema"]).output))
    results = [path for path in tracked_files() if path.name == "result.json"]
    wrong = [
        f"{path.relative_to(REPOSITORY)}: {error.json_path}: {error.message[:100]}"
        for path in results
        for error in schema.iter_errors(json.loads(path.read_text()))
    ]
    assert not wrong
    assert results, "no result is committed"


def test_every_committed_result_agrees_with_the_files_beside_it() -> None:
    from bench import check
    from bench.matrix_file import read

    assert list(check.check(REPOSITORY / "results", read(REPOSITORY / "matrix.csv"))) == []


def test_every_module_of_the_package_is_in_the_architecture_section() -> None:
    section = readme().split("## Architecture", 1)[1].split("\n## ", 1)[0]
    modules = {path.name for path in (REPOSITORY / "bench").iterdir() if path.suffix == ".py"}
    folders = {path.name for path in (REPOSITORY / "bench").iterdir() if (path / "__init__.py").exists()}
    for name in (modules - {"__init__.py", "__main__.py"}) | {f"{folder}/" for folder in folders}:
        assert re.search(rf"\b{re.escape(name)}", section), f"{name} is not in README.md's architecture"


RUNNER_ONLY = (
    "bench.runner.",
    "bench.tiny.",
    "bench.__main__",
    "bench.axes.compilation.exchange",
    "bench.axes.compilation.kernels",
    "bench.axes.compilation.modulation",
    "bench.axes.compilation.products",
    "bench.axes.compilation.rotary",
    "bench.axes.compilation.replayed",
    "bench.axes.quantization.fp8_linear",
    "bench.axes.quantization.gguf_blocks",
    "bench.axes.quantization.gguf_file",
)
"""Of the axes those that are torch through and through; ``apply`` of their options imports them."""


def host_side_modules() -> list[str]:
    paths = sorted((REPOSITORY / "bench").rglob("*.py"))
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.startswith(RUNNER_ONLY)]


def test_the_host_side_imports_without_torch() -> None:
    """A machine that plans, fans out to containers or renders a report has no torch."""
    code = f"""
import importlib, sys
sys.modules["torch"] = sys.modules["diffusers"] = sys.modules["transformers"] = None
for name in {host_side_modules()!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in readme()
    assert re.search(
        r"^FLUXBENCH_REQUIRE_BROWSER=1 make test$", (REPOSITORY / ".ci/run").read_text(), re.MULTILINE
    )
    assert os.access(REPOSITORY / ".ci/run", os.X_OK)


def test_the_licence_is_what_the_package_says() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()[:400]
