"""Prebuilt attention kernels, fetched before a container without network wants them.

They lie on the hub as repositories of type ``kernel``: one branch for each version (``v3``), in it one folder
for each build of torch and CUDA. What is fetched is the folder of the images' torch, at the version that
diffusers names; offline, the ``kernels`` package finds it in the hub's cache by that branch.

A branch moves. The commit that it stood at when it was first fetched is this machine's from then on, and
every result names it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bench.host import locks
from bench.host.docker import hub_cache

IMAGES = {"flash2": "torch", "sage2": "sage"}
"""option of the axis attention whose kernel the image holds as no package -> the image it runs in"""


class KernelError(Exception):
    """A kernel could not be had; the message says what to do."""


def fetch(option: str, say: Callable[[str], None]) -> Path:
    """The kernel's folder in the cache, fetched with HF_TOKEN where there is one. Raises KernelError."""
    from diffusers.models.attention_dispatch import _HUB_KERNELS_REGISTRY, AttentionBackendName
    from huggingface_hub import snapshot_download

    from bench.axes.attention.packages import PACKAGES

    name = PACKAGES[option].prebuilt
    assert name, f"{option} has no prebuilt kernel"
    source = _HUB_KERNELS_REGISTRY[AttentionBackendName[name]]
    label, branch = f"{source.repo_id} version {source.version}", f"v{source.version}"
    cache = hub_cache(os.environ)
    try:
        folder = Path(
            snapshot_download(
                source.repo_id,
                repo_type="kernel",
                revision=first_fetched(cache, source.repo_id, branch) or branch,
                allow_patterns=builds(IMAGES[option]),
                cache_dir=cache,
                token=os.environ.get("HF_TOKEN"),
            )
        )
    except Exception as error:  # the hub's errors and the network's have no common class
        raise KernelError(
            f"{option}: cannot fetch {label}: {error}; look at the network and HF_TOKEN"
        ) from None
    if not any(folder.glob("build/*")):
        raise KernelError(
            f"{option}: {label} has no build for the torch of image {IMAGES[option]}; rows with it are "
            "unavailable there"
        )
    _forget_other_builds(folder)
    say(f"{option}: {label} at commit {folder.name[:12]}")
    return folder


def _forget_other_builds(snapshot: Path) -> None:
    """The hub's client keeps the list of all files of a commit, and offline refuses a snapshot that lacks one
    of them (huggingface_hub 1.33, ``IncompleteSnapshotError``): a row that asks for the kernel names no
    patterns, and would be told that builds for other torches are missing. Without the list it takes what is
    there."""
    (snapshot.parents[1] / "trees" / f"{snapshot.name}.json").unlink(missing_ok=True)


def first_fetched(cache: Path, repository: str, branch: str) -> str | None:
    """The commit; None where it never was. The hub's cache keeps it under the branch; what is then fetched by
    commit leaves that alone. To take a newer one, the repository's folder is removed."""
    reference = cache / f"kernels--{repository.replace('/', '--')}" / "refs" / branch
    return reference.read_text().strip() if reference.exists() else None


def builds(image: str) -> list[str]:
    """Patterns of the folders that fit the image's torch, as the ``kernels`` package names them
    (kernels/variants.py): for this torch, for torch's stable interface, for any."""
    torch = "".join(locks.locked_version(image, "torch").split(".")[:2])
    cuda = "".join(locks.locked_version(image, "nvidia-cuda-runtime").split(".")[:2])
    system = f"cu{cuda}-x86_64-linux"
    names = (f"torch{torch}-{system}", f"torch{torch}-cxx11-{system}", f"torch-stable-abi*-{system}")
    return [f"build/{name}/*" for name in (*names, "torch-cuda", "torch-universal")]
