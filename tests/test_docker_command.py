"""The Docker executor without a daemon: the command line, what a container's end means, images that do not
fit."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import fake_row
from hypothesis import given
from hypothesis import strategies as st

from bench.config import SINGLE
from bench.host import docker, image, kernels, locks, recipe
from bench.host.daemon import Daemon, State
from bench.host.docker import DockerExecutor, Place, container_name, exit_of, run_command
from bench.host.image import Image, ImageError, Store, build_arguments, registry_tag
from bench.host.local import Exit, Job
from bench.host.verdict import Ending, verdict
from bench.record import Code

PLACE = Place(
    repository=Path("/repo"),
    hub_cache=Path("/home/u/hub"),
    cache=Path("/repo/.cache"),
    user="1000:1000",
    machine_id="m1",
    git_commit="0" * 40 + "-dirty",
    variables=(("NCCL_DEBUG", "INFO"),),
)


def job(tmp_path: Path, **changes: Any) -> Job:
    row = fake_row(row="42", hardware="h100x2")
    folder = tmp_path / "row-0042" / "hub" / "20261122T120000Z-0000"
    given_: dict[str, Any] = {"gpu_uuids": ("GPU-a", "GPU-b"), "attempt_dir": folder}
    return Job(row, "hub", "quick", (SINGLE,), **{**given_, **changes})


class StubDaemon(Daemon):
    """Answers with what it was given."""

    def __init__(self, images: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.images = images

    def image(self, reference: str) -> dict[str, Any] | None:
        return self.images.get(reference)


def labelled(
    built_from: str = recipe.recipe("torch"), torch: str = "", base_image: str = recipe.base_image()
) -> dict[str, Any]:
    """An image `torch`; fresh, and what everybody would build, unless changed."""
    labels = {
        "fluxbench.lock": locks.lock_sha256("torch"),
        "fluxbench.recipe": built_from,
        "fluxbench.torch": torch,
        "fluxbench.base-image": base_image,
    }
    return {"Id": "sha256:1", "Config": {"Labels": labels}}


def test_the_command_holds_everything_that_keeps_a_measurement_alone(tmp_path: Path) -> None:
    command = run_command(job(tmp_path), "sha256:1", PLACE)
    options = command[: command.index("sha256:1")]
    for option in ("--init", "--network=none", "--read-only", "--tmpfs=/tmp:exec", "--user=1000:1000"):
        assert option in options
    assert '--gpus="device=GPU-a,GPU-b"' in options  # the quotes are Docker's, not a shell's
    assert "--mount=type=bind,source=/repo/bench,target=/opt/fluxbench/bench,readonly" in options
    assert "--mount=type=bind,source=/home/u/hub,target=/opt/hub,readonly" in options
    attempt = job(tmp_path).attempt_dir
    assert f"--mount=type=bind,source={attempt},target={attempt}" in options
    assert "--env=FLUXBENCH_IMAGE_DIGEST=sha256:1" in options
    assert f"--env=FLUXBENCH_GIT_COMMIT={'0' * 40}-dirty" in options
    assert "--env=NCCL_DEBUG=INFO" in options
    assert "--label=fluxbench.row=42" in options


def test_a_file_of_the_callers_own_is_seen_inside_by_the_row_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flux1-dev-Q4_K_S.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setenv("FLUXBENCH_GGUF_FILE", str(path))
    asked = job(tmp_path)
    inside = "/opt/files/FLUXBENCH_GGUF_FILE/flux1-dev-Q4_K_S.gguf"
    wanted = {
        f"--mount=type=bind,source={path},target={inside},readonly",
        f"--env=FLUXBENCH_GGUF_FILE={inside}",
    }
    assert not wanted & set(run_command(asked, "sha256:abc", PLACE)), "a row of another option"
    row = fake_row(row="43", hardware="h100x2", quantization="gguf-file")
    assert wanted < set(run_command(replace(asked, row=row), "sha256:abc", PLACE))


def test_a_row_without_gpus_asks_for_none(tmp_path: Path) -> None:
    command = run_command(job(tmp_path, gpu_uuids=()), "sha256:1", PLACE)
    assert [word for word in command if word.startswith("--gpus")] == []


def test_a_relative_results_folder_becomes_the_same_absolute_path_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = job(tmp_path, attempt_dir=Path("row-0042/hub/20261122T120000Z-0000"))
    assert run_command(relative, "sha256:1", PLACE) == run_command(job(tmp_path), "sha256:1", PLACE)


def test_the_name_of_a_container_is_its_rows_whatever_the_attempt_or_the_path(tmp_path: Path) -> None:
    first = container_name(job(tmp_path))
    assert first.startswith("fluxbench-row-0042-hub-")
    another = job(tmp_path, attempt_dir=tmp_path / "x" / ".." / "row-0042" / "hub" / "20261122T130000Z-1111")
    assert container_name(another) == first
    assert container_name(job(tmp_path / "other")) != first


@given(st.dictionaries(st.sampled_from(["HF_TOKEN", "AWS_SECRET", "PATH", "HOME", "NCCL_ALGO"]), st.text()))
def test_a_token_never_reaches_a_container(variables: dict[str, str]) -> None:
    assert set(docker.passed_on(variables)) <= {"NCCL_ALGO"}


def test_the_hub_cache_is_where_the_hub_says() -> None:
    assert docker.hub_cache({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert docker.hub_cache({"HF_HOME": "/b"}) == Path("/b/hub")
    assert docker.hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert docker.hub_cache({}) == Path.home() / ".cache/huggingface/hub"


# --- What a container's end means --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "cli_code", "exit_"),
    [
        (State("running"), 125, None),  # the CLI lost the daemon, live-restore kept the container
        (State("paused"), 0, None),
        (State("exited", 0), 0, Exit(code=0)),
        (State("exited", 3), 3, Exit(code=3)),
        (State("exited", 0), 125, Exit(code=0)),  # ended while nobody looked
        (State("exited", 139), 139, Exit(signal=11)),
        (State("exited", 137, oom_killed=True), 137, Exit(signal=9, out_of_memory=True)),
        (State("exited", 1, oom_killed=True), 1, Exit(code=1, out_of_memory=True)),
        (State("exited", 137, oom_killed=True), 125, Exit(signal=9, out_of_memory=True)),
    ],
)
def test_the_end_of_a_container(state: State, cli_code: int, exit_: Exit | None) -> None:
    assert exit_of(state, cli_code, "") == exit_


@pytest.mark.parametrize(
    ("state", "cli_code", "says"),
    [
        (None, 125, 'could not select device driver "" with capabilities: [[gpu]]'),
        (State("created", 128, error="no GPU here"), 125, "no GPU here"),
        (State("exited", 137), 125, "the Docker daemon was lost"),
    ],
)
def test_what_failed_around_the_runner_is_infra(state: State | None, cli_code: int, says: str) -> None:
    exit_ = exit_of(state, cli_code, 'could not select device driver "" with capabilities: [[gpu]]')
    assert exit_ is not None
    assert says in exit_.infra
    status = verdict(Ending(exit_), None)
    assert status is not None
    assert status.code is Code.INFRA
    assert says in status.reason


def test_a_kill_for_memory_inside_the_container_is_oom() -> None:
    status = verdict(Ending(Exit(signal=9, out_of_memory=True)), None)
    assert status is not None
    assert status.code is Code.OOM


# --- Images ------------------------------------------------------------------------------------------


def test_a_missing_image_a_stale_one_and_a_fresh_one() -> None:
    row = fake_row(row="42", hardware="h100x1")
    assert "make image IMAGE=torch" in (Store(StubDaemon({})).lacks(row) or "")
    built_from = re.sub(r"(torch/Dockerfile)=\w+", r"\1=0", recipe.recipe("torch"))
    stale = Store(StubDaemon({"fluxbench/torch": labelled(built_from)})).lacks(row)
    assert stale is not None
    assert "was built before these were changed: docker/torch/Dockerfile; `make image IMAGE=torch`" in stale
    assert Store(StubDaemon({"fluxbench/torch": labelled()})).lacks(row) is None


def test_an_image_is_stale_by_each_file_that_it_was_built_from_and_by_no_other(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    shutil.copytree(locks.DOCKER, docker)
    built_from = recipe.recipe("torch", docker)
    sources = {path.relative_to(tmp_path).as_posix() for path in recipe.files("torch", docker)}
    assert sources == {
        "docker/base/Dockerfile",
        "docker/torch/Dockerfile",
        "docker/torch/requirements.txt",
        "docker/torch/imports.txt",
        "docker/install.py",
        "docker/check_imports.py",
        "docker/build_quanto.py",
        "docker/nvcc/requirements.txt",
    }
    for path in sorted(docker.rglob("*.*"), key=str) + sorted(docker.rglob("Dockerfile")):
        name, text = path.relative_to(tmp_path).as_posix(), path.read_bytes()
        path.write_bytes(text + b"\n")
        assert recipe.changed("torch", built_from, docker) == ((name,) if name in sources else ()), name
        path.write_bytes(text)


def test_a_file_that_is_no_longer_copied_and_an_image_that_does_not_say_are_stale() -> None:
    assert recipe.changed("torch", recipe.recipe("torch") + " docker/gone.py=0") == ("docker/gone.py",)
    assert len(recipe.changed("torch", "")) == len(recipe.files("torch"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"base_image": f"mirror.example.org/{recipe.base_image()}"}, ""),
        ({"base_image": "debian:bookworm"}, "it stands on debian:bookworm"),
        ({"torch": "torch==2.13.0"}, "it holds torch==2.13.0"),
        ({"built_from": ""}, "docker/torch/Dockerfile"),
    ],
)
def test_only_what_everybody_would_build_is_published(
    changes: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "Store", lambda: Store(StubDaemon({"fluxbench/torch": labelled(**changes)})))
    monkeypatch.setattr(image, "Daemon", lambda: StubDaemon({}))
    said: list[str] = []
    monkeypatch.setattr(image, "_run", lambda arguments, say, what: said.append(arguments[1]))
    # Nothing was really pushed, so Docker knows no digest.
    with pytest.raises(ImageError, match=re.escape(why or "Docker tells no digest")):
        image.push("torch", "registry.example.org", print)
    assert said == ([] if why else ["tag", "push"])


def test_a_stale_image_starts_no_container_and_says_how_to_renew_it(tmp_path: Path) -> None:
    daemon = StubDaemon({"fluxbench/torch": labelled("")})
    daemon.state = lambda container: None  # type: ignore[method-assign]
    exit_ = DockerExecutor(PLACE, daemon).start(job(tmp_path)).wait(0)
    assert exit_ is not None
    assert "make image IMAGE=torch" in exit_.infra


def test_an_image_with_another_torch_has_another_lock_for_fingerprints() -> None:
    row = fake_row(row="42", hardware="h100x1")
    lock = locks.lock_sha256("torch")
    store = Store(StubDaemon({"fluxbench/torch": labelled(torch="torch==2.13.0 --index-url https://e.org")}))
    assert DockerExecutor(PLACE, store.daemon, store).lock(row) == f"{lock} with torch==2.13.0"
    assert Image("torch", "sha256:1", lock, recipe="").lock_id == lock


def test_an_image_is_built_with_its_lock_and_recipe_and_the_base_without() -> None:
    built = build_arguments("torch", commit="def", torch="torch==2.13.0")
    assert f"--build-arg=LOCK_SHA256={locks.lock_sha256('torch')}" in built
    assert f"--build-arg=RECIPE={recipe.recipe('torch')}" in built
    assert "--build-arg=GIT_COMMIT=def" in built
    assert "--build-arg=TORCH=torch==2.13.0" in built
    base = build_arguments("base", commit="def", base_image="debian:bookworm")
    assert [word for word in base if word.startswith("--build-arg")] == [
        "--build-arg=BASE_IMAGE=debian:bookworm"
    ]


def test_a_registry_holds_an_image_under_what_it_is_built_from() -> None:
    assert registry_tag("ghcr.io/us/", "torch") == f"ghcr.io/us/torch:{recipe.sha256('torch')[:12]}"


def test_prebuilt_kernels_are_fetched_for_the_images_torch_and_the_token_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from bench.cli import main

    asked: list[dict[str, Any]] = []

    def download(repository: str, **how: Any) -> str:
        asked.append({"repository": repository, **how})
        if repository.startswith("SageAttention/"):
            raise OSError("no network")
        folder = tmp_path / f"{'a' * 40}"
        (folder / "build" / "torch211-cxx11-cu130-x86_64-linux").mkdir(parents=True)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_shown")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    ran = CliRunner().invoke(main, ["fetch", "kernels"])
    assert ran.exit_code == 1
    assert "flash2: kernels-community/flash-attn2 version 3 at commit aaaaaaaaaaaa" in ran.output
    assert "sage2: cannot fetch SageAttention/sage-attention version 3: no network" in ran.output
    assert "hf_not_to_be_shown" not in ran.output
    assert {each["repo_type"] for each in asked} == {"kernel"}
    assert asked[0]["revision"] == "v3"
    assert asked[0]["cache_dir"] == tmp_path / "hub"
    assert "build/torch211-cxx11-cu130-x86_64-linux/*" in asked[0]["allow_patterns"]


def test_a_kernel_that_was_fetched_stays_at_its_commit_though_its_branch_moves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the hub's cache as huggingface_hub lays it out."""
    from huggingface_hub.file_download import repo_folder_name

    asked: list[str] = []

    def download(repository: str, **how: Any) -> str:
        asked.append(how["revision"])
        (tmp_path / "build" / "torch-cuda").mkdir(parents=True, exist_ok=True)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = repo_folder_name(repo_id="kernels-community/flash-attn2", repo_type="kernel")
    (tmp_path / folder / "refs").mkdir(parents=True)
    kernels.fetch("flash2", print)
    (tmp_path / folder / "refs" / "v3").write_text("a" * 40)
    kernels.fetch("flash2", print)
    assert asked == ["v3", "a" * 40]


def test_a_row_without_network_finds_a_fetched_kernel_though_other_builds_of_it_were_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the hub's own code and layout; only what goes over the network is made up."""
    from huggingface_hub import _snapshot_download, _tree_cache, constants
    from huggingface_hub.hf_api import HfApi, RepoFile

    from bench.axes.attention import packages

    commit, mine = "a" * 40, "build/torch211-cxx11-cu130-x86_64-linux/__init__.py"
    listed = [mine, "build/torch29-cxx11-cu126-x86_64-linux/__init__.py", "README.md"]
    files = [RepoFile(path=path, size=1, oid="b" * 40) for path in listed]

    def download(_repository: str, *, filename: str, cache_dir: str, **_: Any) -> None:
        path = Path(cache_dir, "kernels--kernels-community--flash-attn2", "snapshots", commit, filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: SimpleNamespace(sha=commit))
    monkeypatch.setattr(HfApi, "list_repo_tree", lambda *_, **__: files)
    monkeypatch.setattr(_snapshot_download, "hf_hub_download", download)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = kernels.fetch("flash2", print)
    assert (folder / mine).exists()
    assert not (folder / "README.md").exists()

    monkeypatch.setattr(_tree_cache, "_IN_MEMORY_TREE_CACHE", {})  # the row is another process
    loaded = SimpleNamespace(flash_attn_func=len, __file__=str(folder / mine))
    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_local_kernel=lambda _: loaded))
    _, source = packages._prebuilt(packages.PACKAGES["flash2"], "row 1", ImportError("none"))
    assert source == f"kernels-community/flash-attn2 version 3 at commit {commit}"


def test_weights_are_fetched_at_their_revision_before_a_container_without_network_wants_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both ways: from the cache without asking anybody, and the advice where neither cache nor token is."""
    from click.testing import CliRunner

    from bench.cli import main
    from bench.runner.published import published

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    refused = CliRunner().invoke(main, ["fetch", "weights"])
    assert refused.exit_code == 1
    assert "set HF_TOKEN" in refused.output
    source = published("transformer")
    folder = tmp_path / f"models--{source.repository.replace('/', '--')}" / "snapshots" / source.revision
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    found = CliRunner().invoke(main, ["fetch", "weights"])
    assert found.output.strip() == str(folder)
