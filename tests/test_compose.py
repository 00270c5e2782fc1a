"""compose.yaml: a service for every hardware and image, from one template."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.host import locks, recipe
from bench.host.compose import render, services
from bench.images import IMAGES
from bench.matrix_file import read
from bench.where import select

yaml = pytest.importorskip("yaml")
REPOSITORY = locks.DOCKER.parent
COMPOSE = REPOSITORY / "compose.yaml"


def tool(name: str) -> str:
    """A development tool of this environment; the test is skipped where it is not installed."""
    found = shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed: pip install --editable '.[dev]'")
    return found


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def test_the_file_is_what_the_template_says() -> None:
    assert COMPOSE.read_text() == render(), "fluxbench compose"


def test_an_edit_by_hand_or_a_new_lock_is_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("compose.yaml").write_text(COMPOSE.read_text().replace("shm_size: 16g", "shm_size: 1g"))
    done = CliRunner().invoke(main, ["compose", "--check"])
    assert done.exit_code == 1
    assert "`fluxbench compose` writes it" in done.output
    assert CliRunner().invoke(main, ["compose"]).exit_code == 0
    assert CliRunner().invoke(main, ["compose", "--check"]).exit_code == 0


def test_every_hardware_of_the_plan_has_its_services_and_their_gpus(written: dict[str, Any]) -> None:
    plan = product(("a100", "h100"), (1, 2, 4, 8))
    for gpu, count in (*plan, ("h200", 1), ("h200", 2)):
        service = written["services"][f"{gpu}x{count}-torch"]
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
    assert "h100x8-xdit" in written["services"]
    assert "h100x1-xdit" not in written["services"]
    assert "deploy" not in written["services"]["cpu"]


def test_every_core_row_that_an_image_holds_has_a_service_that_runs_it() -> None:
    covered = {(service.hardware, service.image) for service in services()}
    for row in read(REPOSITORY / "matrix.csv"):
        images = [image for image in IMAGES if select([row], f"image={image}", "all")]
        assert [(row.hardware, image) for image in images if (row.hardware, image) not in covered] == []


def test_compose_up_alone_starts_nothing(written: dict[str, Any]) -> None:
    assert [name for name, service in written["services"].items() if not service["profiles"]] == []


def test_a_measuring_service_has_no_network_and_builds_nothing(written: dict[str, Any]) -> None:
    measuring = {name: s for name, s in written["services"].items() if not name.startswith("build-")}
    for name, service in measuring.items():
        assert service["network_mode"] == "none", name
        assert service["read_only"], name
        assert service["init"], name
        assert "build" not in service, name
        assert "--executor=local" in service["command"], name


def test_folders_that_a_fresh_checkout_lacks_are_made(written: dict[str, Any]) -> None:
    """The long form of a volume makes none before Compose 2.35, unless it says so."""
    tracked = {"./bench", "./matrix.csv", "./results"}
    volumes = {volume["source"]: volume for volume in written["services"]["h100x8-xdit"]["volumes"]}
    made = {source for source, volume in volumes.items() if volume.get("bind") == {"create_host_path": True}}
    assert made == set(volumes) - tracked - {"/etc/machine-id"}


def test_images_are_built_after_the_base(written: dict[str, Any]) -> None:
    for image in IMAGES:
        build = written["services"][f"build-{image}"]["build"]
        assert build["additional_contexts"] == {"base": "service:build-base"}
        assert build["args"]["BASE"] == "base"
        assert build["args"]["LOCK_SHA256"] == locks.lock_sha256(image)
        assert build["args"]["RECIPE"] == recipe.recipe(image)


def test_the_file_fits_the_compose_schema_and_composes_own_reading_of_it() -> None:
    schema = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(schema, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    config = [tool("docker-compose"), "--file", str(COMPOSE), "--profile", "*", "config", "--quiet"]
    done = subprocess.run(config, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
