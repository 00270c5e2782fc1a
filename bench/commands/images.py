"""``lock``, ``env``, ``image``, ``compose`` and ``fetch``: the places rows run in, and what they need."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench.images import IMAGES

torch_option = click.option(
    "--torch",
    default="",
    metavar="REQUIREMENT",
    help="Another build of torch than the locked one, as `pip install` takes it, e.g. "
    '"torch==2.11.0 --index-url https://download.pytorch.org/whl/cpu".',
)


@click.command()
@click.option("--upgrade", is_flag=True, help="Take the newest versions that requirements.in allows.")
@click.option("--check", is_flag=True, help="Write nothing, ask nobody; fail when a lock is not its input's.")
def lock(upgrade: bool, check: bool) -> None:
    """Lock every image's requirements with hashes, for Python 3.11 and 3.12; needs uv and its registry."""
    from bench.host import locks

    if check:
        stale = [name for name in locks.LOCKED if not locks.is_current(name)]
        if stale:
            raise click.ClickException(f"not the locks of their input: {', '.join(stale)}; `make lock`")
        click.echo(f"{len(locks.LOCKED)} locks, as their input says")
        return
    try:
        for name in locks.LOCKED:
            changed = locks.write(name, upgrade=upgrade)
            click.echo(f"{locks.lock_path(name)}: {'written' if changed else 'unchanged'}")
    except locks.LockError as error:
        raise click.ClickException(str(error)) from None


@click.command()
@click.argument("image", type=click.Choice(IMAGES))
@click.option("--python", default=sys.executable, show_default=True, help="The Python to make it from.")
@torch_option
def env(image: str, python: str, torch: str) -> None:
    """Build the virtual environment .venvs/IMAGE from the image's lock, for `--executor venv`."""
    from bench.host.venv import VenvError, build

    try:
        build(image, python=python, torch=torch, say=click.echo)
    except VenvError as error:
        raise click.ClickException(str(error)) from None


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Choice(IMAGES))
@torch_option
@click.option(
    "--base-image",
    default="",
    help="What to build on instead of nvidia/cuda: a mirror, or any image with apt and Python >= 3.11.",
)
@click.option("--registry", envvar="FLUXBENCH_REGISTRY", default="", help="Pull from here before building.")
@click.option("--push", is_flag=True, help="Publish to the registry under the recipe's hash instead.")
def image(images: tuple[str, ...], torch: str, base_image: str, registry: str, push: bool) -> None:
    """Pull or build container images, after the base image that they stand on."""
    from bench.host import image as store
    from bench.host.daemon import Silent

    if push and not registry:
        raise click.UsageError("--push needs --registry")
    try:
        for name in images:
            if push:
                click.echo(store.push(name, registry, click.echo))
            else:
                store.provide(name, registry=registry, torch=torch, base_image=base_image, say=click.echo)
    except (store.ImageError, Silent) as error:
        raise click.ClickException(str(error)) from None


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail when the file is not what would be written.")
def compose(check: bool) -> None:
    """Write compose.yaml: a service for every hardware and image, from docker/compose.yaml.j2."""
    from bench.host.compose import render
    from bench.record import write_atomically

    path, text = Path("compose.yaml"), render()
    if check:
        if not path.exists() or path.read_text() != text:
            raise click.ClickException(f"{path} is not what the template says; `fluxbench compose` writes it")
        click.echo(f"{path}: as the template says")
        return
    write_atomically(path, text)
    click.echo(f"{path}: written")


@click.command()
@click.argument("what", nargs=-1, type=click.Choice(["weights", "controlnet", "kernels"]))
def fetch(what: tuple[str, ...]) -> None:
    """Fetch real weights at their pinned revisions and prebuilt attention kernels, with HF_TOKEN, into the
    hub's cache.

    Containers measure without network: what they need must be there before. Without WHAT: everything.
    """
    from bench.axes.option import Unavailable
    from bench.host import kernels
    from bench.host.facts import WEIGHTS
    from bench.runner.models import snapshot
    from bench.runner.published import published

    try:
        for name in what or (*WEIGHTS, "kernels"):
            if name == "kernels":
                for option in kernels.IMAGES:
                    kernels.fetch(option, click.echo)
            else:
                click.echo(snapshot(f"fetch {name}", published(WEIGHTS[name])))
    except (Unavailable, kernels.KernelError) as error:
        raise click.ClickException(str(error)) from None
