"""Lays Tiny FLUX out as the hub's cache does, so that loading from the hub can be run offline.

``python -m bench.tiny.hub_cache DIR``, then ``HF_HUB_CACHE=DIR HF_HUB_OFFLINE=1`` and
``FluxPipeline.from_pretrained("fluxbench/tiny-flux")``.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import click

from bench.tiny import WEIGHTS

REPOSITORY = "fluxbench/tiny-flux"


def lay_out(cache: Path, *, weights: Path = WEIGHTS, repository: str = REPOSITORY) -> str:
    """Returns the revision, made from the files' content. ``blobs/`` holds the files by hash,
    ``snapshots/<revision>/`` links to them under their names, ``refs/main`` names the revision."""
    root = cache / f"models--{repository.replace('/', '--')}"
    files = sorted(path for path in weights.rglob("*") if path.is_file())
    hashes = {path.relative_to(weights): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    listing = "".join(f"{name} {digest}\n" for name, digest in hashes.items())
    revision = hashlib.sha1(listing.encode()).hexdigest()  # as long as a git commit's
    for name, digest in hashes.items():
        blob, link = root / "blobs" / digest, root / "snapshots" / revision / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes((weights / name).read_bytes())
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(revision)
    return revision


@click.command(help=__doc__)
@click.argument("cache", type=click.Path(path_type=Path, file_okay=False))
def main(cache: Path) -> None:
    print(f"{REPOSITORY} at {lay_out(cache)} in {cache}")


if __name__ == "__main__":
    main()
