"""Services of compose.yaml and a registry, with a real daemon: `make test-docker`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_engine import cpu_image, daemon, standin_image
from test_compose import tool

from bench import layout, record
from bench.host import image as images
from bench.host import leases, recipe
from bench.host.compose import LEASES
from bench.host.daemon import Daemon
from bench.host.image import ImageError, registry_tag
from bench.record import Code

__all__ = ["cpu_image", "daemon", "standin_image"]  # fixtures

pytestmark = pytest.mark.docker

REPOSITORY = Path(__file__).parent.parent
SOMEBODY = 12345
ROW = ["--where", "row=277", "--executor=local", "--weights=hub", "--budget=probe", "--cells=1x1"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a service mounts, owned by somebody who is not root."""
    shutil.copy(REPOSITORY / "compose.yaml", tmp_path)
    shutil.copy(REPOSITORY / "matrix.csv", tmp_path)
    (tmp_path / "bench").symlink_to(REPOSITORY / "bench")
    (tmp_path / "results").mkdir()
    os.chown(tmp_path / "results", SOMEBODY, SOMEBODY)
    return tmp_path


def service(checkout: Path, name: str, *command: str) -> subprocess.CompletedProcess[str]:
    """``docker compose run --rm``, of that checkout; as a project of its own."""
    compose = [
        tool("docker-compose"),
        "--project-directory",
        str(checkout),
        "--project-name",
        "fluxbench-test",
    ]
    return subprocess.run(
        [*compose, "run", "--rm", name, *command],
        env={**os.environ, "HF_HUB_CACHE": str(checkout / "hub"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_a_service_runs_rows_as_the_owner_of_the_results_folder(cpu_image: str, checkout: Path) -> None:
    done = service(checkout, "cpu", "python", "-m", "bench", "fan-out", *ROW)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = layout.attempts(checkout / "results")
    result = record.load(folder / layout.RESULT)
    assert result.status.code is Code.OK, result.status
    owners = {path.stat().st_uid for path in (checkout / "results").rglob("*")}
    assert owners == {SOMEBODY}


def test_a_service_does_not_take_what_a_fan_out_outside_holds(cpu_image: str, checkout: Path) -> None:
    if str(leases.folder()) != LEASES:
        pytest.skip(f"leases of this machine lie in {leases.folder()}, where its TMPDIR says")
    with leases.take(["cpu"], 1, "a fan-out outside", wait_seconds=60):
        done = service(checkout, "cpu", "python", "-m", "bench", "fan-out", *ROW)
    assert done.returncode == 1
    assert "a fan-out outside" in done.stdout + done.stderr
    assert not list(layout.attempts(checkout / "results"))


# --- A registry -------------------------------------------------------------------------------------


@pytest.fixture
def registry(daemon: Daemon, tmp_path: Path) -> Iterator[str]:
    """``localhost:PORT`` of Debian's docker-registry, which Docker trusts without TLS."""
    server = shutil.which("docker-registry")
    if server is None:
        pytest.skip("docker-registry is not here; docker/engine.sh brings it along")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = tmp_path / "registry.yml"
    settings.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\n"
        f"http: {{addr: 'localhost:{port}'}}\n"
    )
    process = subprocess.Popen([server, "serve", str(settings)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < deadline, "the registry does not start"
        time.sleep(0.1)
    yield f"localhost:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def small_image(standin_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A small one in the place of `gguf`, labelled as such; what would build the real one fails."""
    monkeypatch.setattr(images, "tag", lambda name: f"fluxbench-test/{name}")
    monkeypatch.setattr(images, "build_arguments", lambda *_, **__: ["false"])
    (tmp_path / "Dockerfile").write_text(f"FROM {standin_image}\n")
    labels = {"recipe": recipe.recipe("gguf"), "base-image": recipe.base_image()}
    options = [f"--label=fluxbench.{name}={value}" for name, value in labels.items()]
    command = ["docker", "build", "--quiet", "--tag=fluxbench-test/gguf", *options, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    yield "fluxbench-test/gguf"
    subprocess.run(["docker", "rmi", "--force", "fluxbench-test/gguf"], check=False, capture_output=True)


def forget(*references: str) -> None:
    subprocess.run(["docker", "rmi", *references], check=True, capture_output=True)


def test_an_image_is_published_by_digest_and_pulled_before_it_is_built(
    small_image: str, registry: str
) -> None:
    said: list[str] = []
    digest = images.push("gguf", registry, said.append)
    assert digest.startswith(f"{registry}/gguf@sha256:")
    forget(small_image, registry_tag(registry, "gguf"))
    images.provide("gguf", registry=registry, say=said.append)
    assert Daemon().image(small_image) is not None
    forget(small_image, registry_tag(registry, "gguf"))
    subprocess.run(["docker", "pull", "--quiet", digest], check=True, capture_output=True)
    forget(digest)


def test_what_nobody_has_published_is_built_and_what_is_stale_is_neither_published_nor_taken(
    small_image: str, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with pytest.raises(ImageError, match="could not be built"):
        images.provide("gguf", registry=registry, say=said.append)
    assert "is not to be had; building it here" in said[1]
    images.push("gguf", registry, said.append)
    published = registry_tag(registry, "gguf")
    monkeypatch.setattr(recipe, "recipe", lambda *_: "docker/gguf/Dockerfile=0")
    with pytest.raises(ImageError, match=r"docker/gguf/Dockerfile, .* changed since"):
        images.push("gguf", registry, said.append)
    monkeypatch.setattr(images, "registry_tag", lambda *_: published)
    with pytest.raises(ImageError, match="could not be built"):
        images.provide("gguf", registry=registry, say=said.append)
    assert any("whatever its name" in line for line in said)
    forget(published)
