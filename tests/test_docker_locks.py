"""Locks, and what is installed from them: the same for images and virtual environments."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from bench.host import locks
from bench.images import IMAGES

MEASURED = {
    "base": {"torch": "2.11.0", "diffusers": "0.42.1", "transformers": "5.17.0"},
    "torch": {"torchao": "0.18.0", "bitsandbytes": "0.50.2", "optimum-quanto": "0.2.7", "fa3-fwd": "0.0.3"},
    "gguf": {"gguf": "0.19.0"},
    "sage": {"sageattention": "1.0.6", "torchao": "0.18.0"},
    "xdit": {"xfuser": "0.7.0", "torchao": "0.18.0"},
    "tensorrt": {"torch-tensorrt": "2.11.0", "tensorrt-cu13-libs": "10.15.1.29", "torchao": "0.18.0"},
    "cpu": {"optimum-quanto": "0.2.7", "gguf": "0.19.0"},
    "nvcc": {"nvidia-cuda-nvcc": "13.0.88"},
}


def script(name: str) -> ModuleType:
    """A script of docker/, which is no package: images hold it alone."""
    spec = importlib.util.spec_from_file_location(name, locks.DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements(image: str) -> list[str]:
    """``name==version ; markers``, one of each."""
    lines = locks.lock_path(image).read_text().splitlines()
    return [line.removesuffix(" \\") for line in lines if re.match(r"[a-z0-9]", line)]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(locks.DOCKER, tmp_path / "docker")
    return tmp_path / "docker"


@pytest.mark.parametrize("image", locks.LOCKED)
def test_every_lock_was_made_from_its_input(image: str) -> None:
    assert locks.is_current(image), f"docker/{image}/requirements.txt is not its input's: `make lock`"


@pytest.mark.parametrize("edited", ["torch/requirements.in", "base/requirements.in", "quantization.in"])
def test_a_lock_is_stale_once_its_input_or_what_it_includes_is_edited(copied: Path, edited: str) -> None:
    assert locks.is_current("torch", copied)
    with (copied / edited).open("a") as file:
        file.write("einops\n")
    assert not locks.is_current("torch", copied)


@pytest.mark.parametrize("image", locks.LOCKED)
def test_a_lock_holds_the_versions_that_were_measured_and_a_hash_for_each(image: str) -> None:
    found = dict(line.split(" ;")[0].split("==") for line in requirements(image))
    assert {name: found.get(name) for name in MEASURED[image]} == MEASURED[image]
    blocks = re.split(r"\n(?=[a-z0-9])", locks.lock_path(image).read_text())[1:]
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


@pytest.mark.parametrize("image", IMAGES)
def test_no_image_mixes_library_versions_with_the_base(image: str) -> None:
    assert set(requirements("base")) <= set(requirements(image))


@pytest.mark.parametrize("image", ["base", "tensorrt"])
def test_a_lock_resolves_to_itself(image: str) -> None:
    """Through uv and the registry that it is set up for; the second is the one with NVIDIA's stubs."""
    try:
        resolved = locks.resolve(image)
    except locks.LockError as error:
        if "not installed" in str(error) or "Failed to fetch" in str(error):
            pytest.skip(f"no uv, or no package registry answers: {str(error).splitlines()[0]}")
        raise
    assert locks.lock_path(image).read_text().endswith(resolved)


def test_another_torch_takes_the_locked_ones_cuda_libraries_along_and_nothing_else() -> None:
    install = script("install")
    lock = locks.lock_path("cpu").read_text()
    before, after = set(requirements("cpu")), set(install.without_torch(lock).splitlines())
    names = {line.split("==")[0] for line in before if f"{line} \\" not in after}
    assert {"torch", "triton", "nvidia-cudnn-cu13", "cuda-bindings"} <= names
    assert {name for name in names if not re.match(r"(torch|triton|cuda-.*|nvidia-.*)$", name)} == set()
    assert "nvidia-ml-py" not in names
    hashes = len(re.findall("--hash", install.without_torch(lock)))
    assert 0 < hashes < len(re.findall("--hash", lock))


def test_the_lock_that_a_result_names_says_which_torch_took_the_place_of_the_locked_one() -> None:
    install = script("install")
    sha256 = locks.lock_sha256("cpu")
    lock = locks.lock_path("cpu").read_bytes()
    assert install.lock_id(lock, "") == sha256
    other = install.lock_id(lock, "torch==2.13.0 --index-url https://user:secret@example.org/simple")
    assert other == f"{sha256} with torch==2.13.0"


def test_an_import_check_fails_for_what_is_not_there_and_lets_a_missing_gpu_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = script("check_imports")
    (tmp_path / "wants_gpu.py").write_text("raise NotImplementedError('No Accelerators found')")
    (tmp_path / "broken.py").write_text("raise ImportError('libfoo.so: undefined symbol')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert check.problem("wants_gpu") is None
    assert "undefined symbol" in check.problem("broken")
    assert "no_such_backend" in check.problem("no_such_backend")


# --- Quanto's CUDA extension -------------------------------------------------------------------------


def test_nvcc_is_of_the_cuda_that_the_locked_torch_was_built_with() -> None:
    build = script("build_quanto")
    cuda = build.cuda_of(locks.lock_path("nvcc").read_text())
    for image in ("base", "torch", "sage", "xdit", "tensorrt"):
        assert locks.locked_version(image, "nvidia-cuda-runtime").startswith(f"{cuda}."), image
    assert locks.locked_version("nvcc", "nvidia-nvvm").startswith(f"{cuda}.")


def test_a_torch_of_another_cuda_is_left_without_the_extension(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    build = script("build_quanto")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(build, "install_nvcc", lambda *_: pytest.fail("nothing to install"))
    monkeypatch.setattr("sys.argv", ["build_quanto.py", str(locks.lock_path("nvcc"))])
    build.main()
    assert "torch is of CUDA 12.8" in capsys.readouterr().out
