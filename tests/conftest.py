"""Fixtures that several areas share: rows, and a FLUX of Tiny FLUX's dimensions with random weights."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.matrix import REFERENCE, Row


def _row(**changes: Any) -> Row:
    """A tiny txt2img reference row on the CPU in fp32, changed as asked; ids do not matter here."""
    values: dict[str, Any] = {
        "row": "1",
        "tier": "core",
        "hardware": "cpu",
        "model": "tiny",
        "size": 128,
        "steps": 28,
        "task": "txt2img",
        "control": "none",
        **REFERENCE,
        "precision": "fp32",
    }
    return Row(**(values | changes))


@pytest.fixture(autouse=True)
def _every_test_counts_its_own_graphs() -> Iterator[None]:
    """A row counts what its process compiled; in the process of all tests that is what others compiled."""
    yield
    if dynamo := sys.modules.get("torch._dynamo.utils"):
        dynamo.counters.clear()


@pytest.fixture
def own_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of this test and of the processes that it starts are its own: no campaign outside is disturbed,
    none disturbs it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def apart(own_leases: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For campaigns of a stand-in runner: no weights are hashed, and no fault of the caller's is played."""
    from bench import identity

    monkeypatch.setattr(identity, "TINY_WEIGHTS", Path("/nowhere"))
    monkeypatch.delenv("STANDIN", raising=False)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    return _row


@pytest.fixture(scope="session")
def random_tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers directory of Tiny FLUX's classes and dimensions, ``controlnet/`` beside, drawn at random
    as synthetic weights are: no layer is left at zero, so nothing can hide behind one."""
    import torch

    from bench.runner import synthetic
    from bench.tiny import models

    parts = models.build(seed=0)
    modules = (parts.controlnet, *(m for m in parts.pipe.components.values() if hasattr(m, "parameters")))
    for seed, module in enumerate(modules):
        synthetic.materialise(module, torch.float32, "cpu", seed)
    folder = tmp_path_factory.mktemp("tiny_flux")
    parts.pipe.save_pretrained(folder)
    parts.controlnet.save_pretrained(folder / "controlnet")
    return folder


@pytest.fixture
def tiny_weights(random_tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``--weights tiny`` means the random directory: these tests are about the path, not the pictures."""
    from bench import identity

    monkeypatch.setattr(identity, "TINY_WEIGHTS", random_tiny_flux)
    return random_tiny_flux


@pytest.fixture
def hub_cache(random_tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache as ``huggingface_hub`` lays it out, holding small weights under the pinned revisions."""
    from bench.runner.published import published

    for component, source in (
        ("transformer", random_tiny_flux),
        ("controlnet", random_tiny_flux / "controlnet"),
    ):
        pinned = published(component)
        repository = tmp_path / f"models--{pinned.repository.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(pinned.revision)
        (repository / "snapshots").mkdir()
        (repository / "snapshots" / pinned.revision).symlink_to(source)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path. Where continuous integration asks for it, a missing one is a failure, no skip."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing = "no Chromium here: `apt-get install chromium`, or run `make test` as root"
        if os.environ.get("FLUXBENCH_REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found
