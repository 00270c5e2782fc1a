"""The container images of this machine: which one a row needs, whether it is fresh, and how to get it.

An image is named ``fluxbench/<image>``. In a registry its tag is the start of its recipe's hash, so what is
pulled is what the checkout would build, or nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.host import locks, recipe
from bench.host.daemon import Daemon
from bench.images import image_of
from bench.matrix import Row

REPOSITORY = Path(__file__).parents[2]
BUILT_FIRST = "base"
"""All others stand on it."""


class ImageError(Exception):
    """A row's container cannot begin; the message says why and what to do."""


@dataclass(frozen=True)
class Image:
    name: str
    id: str
    """``sha256:...`` of its content: what a container is started from, whatever a tag is moved to."""
    lock_sha256: str
    recipe: str
    """What it was built from, as ``recipe.recipe`` writes it; empty: it does not say."""
    base_image: str = ""
    """What it stands on; empty: it does not say."""
    torch: str = ""
    """What took the place of the locked torch, as `pip install` takes it; empty: nothing."""

    @property
    def lock_id(self) -> str:
        """As ``docker/install.py`` writes it into the image."""
        return f"{self.lock_sha256} with {self.torch.split()[0]}" if self.torch else self.lock_sha256

    @property
    def changed(self) -> tuple[str, ...]:
        """The files that it was built from and that are others in this checkout; none: it is fresh."""
        return recipe.changed(self.name, self.recipe)

    @property
    def is_the_checkouts(self) -> bool:
        """Whether everybody who builds this checkout gets the same: fresh, with the locked torch, on the
        pinned base or a mirror of it."""
        return not self.changed and not self.torch and recipe.is_base_image(self.base_image)


def tag(name: str) -> str:
    return f"fluxbench/{name}"


def registry_tag(registry: str, name: str) -> str:
    return f"{registry.rstrip('/')}/{name}:{recipe.sha256(name)[: recipe.SHOWN]}"


def build_arguments(name: str, *, commit: str | None, torch: str = "", base_image: str = "") -> list[str]:
    """`docker build` of one image; the repository is its context."""
    if name == BUILT_FIRST:
        given = {"BASE_IMAGE": base_image}
    else:
        given = {
            "TORCH": torch,
            "LOCK_SHA256": locks.lock_sha256(name),
            "RECIPE": recipe.recipe(name),
            "GIT_COMMIT": commit or "",
        }
    return [
        *("docker", "build", "--file", f"docker/{name}/Dockerfile", "--tag", tag(name)),
        *(f"--build-arg={key}={value}" for key, value in given.items() if value),
        ".",
    ]


class Store:
    """What of the images is here; each is looked up once in a campaign."""

    def __init__(self, daemon: Daemon | None = None) -> None:
        self.daemon = daemon or Daemon()
        self._known: dict[str, Image | None] = {}

    def get(self, name: str) -> Image | None:
        if name not in self._known:
            found = self.daemon.image(tag(name))
            labels = (found and found["Config"].get("Labels")) or {}
            kept = (labels.get(f"fluxbench.{each}", "") for each in ("lock", "recipe", "base-image", "torch"))
            self._known[name] = Image(name, found["Id"], *kept) if found else None
        return self._known[name]

    def forget(self) -> None:
        self._known.clear()

    def of(self, row: Row) -> Image | None:
        name = image_of(row)
        return self.get(name) if name else None

    def lacks(self, row: Row) -> str | None:
        """Why the row has no image to run in, as the end of a sentence; None when it has one."""
        name = image_of(row)
        if name is None:
            return "no image holds every option of its stack"
        image = self.get(name)
        if image is None:
            return f"image {tag(name)} is not on this machine; `make image IMAGE={name}` builds or pulls it"
        if image.changed:
            return (
                f"image {tag(name)} was built before these were changed: {', '.join(image.changed)}; "
                f"`make image IMAGE={name}` renews it"
            )
        return None

    def required(self, row: Row) -> Image:
        """Raises ImageError where ``lacks`` has something to say."""
        image, lacking = self.of(row), self.lacks(row)
        if image is None or lacking:
            raise ImageError(f"{row.label}: {lacking}")
        return image

    def missing(self, rows: Iterable[Row]) -> list[str]:
        """Images that rows need and that are not here at all."""
        names = dict.fromkeys(name for row in rows if (name := image_of(row)))
        return [name for name in names if self.get(name) is None]


def provide(
    name: str,
    *,
    registry: str = "",
    torch: str = "",
    base_image: str = "",
    say: Callable[[str], None],
) -> None:
    """Pulls the image that this checkout would build when a registry is named and has it, else builds it,
    after ``base``. Raises ImageError."""
    usual = not torch and (not base_image or recipe.is_base_image(base_image))
    if name != BUILT_FIRST and registry and usual and _pulled(registry, name, say):
        return
    if name != BUILT_FIRST:
        provide(BUILT_FIRST, base_image=base_image, say=say)
    from bench.runner.environment import git_state

    arguments = build_arguments(name, commit=git_state()[0], torch=torch, base_image=base_image)
    _run(arguments, say, f"image {name} could not be built; its last lines say why")


def push(name: str, registry: str, say: Callable[[str], None]) -> str:
    """Publishes the image under its recipe and returns the digest that names it for ever. Raises ImageError,
    also for an image that is not what that name says: stale, with another torch, or on another base."""
    image = Store().get(name)
    if image is None:
        raise ImageError(f"this machine has no image {tag(name)}; `make image IMAGE={name}` builds it")
    if not image.is_the_checkouts:
        raise ImageError(
            f"image {tag(name)} is not what this checkout builds: {_difference(image)}; "
            f"`make image IMAGE={name}` renews it"
        )
    target = registry_tag(registry, name)
    advice = f"image {name} could not be published; `docker login` first?"
    _run(["docker", "tag", tag(name), target], say, advice)
    _run(["docker", "push", target], say, advice)
    found = Daemon().image(target)
    repository = target.rpartition(":")[0]
    digests = [text for text in (found or {}).get("RepoDigests", []) if text.startswith(f"{repository}@")]
    if not digests:
        raise ImageError(f"{target} was pushed, but Docker tells no digest")
    return str(digests[0])


def _difference(image: Image) -> str:
    if image.changed:
        return f"{', '.join(image.changed)} changed since"
    return f"it holds {image.torch}" if image.torch else f"it stands on {image.base_image or 'another base'}"


def _pulled(registry: str, name: str, say: Callable[[str], None]) -> bool:
    source = registry_tag(registry, name)
    try:
        _run(["docker", "pull", source], say, source)
        _run(["docker", "tag", source, tag(name)], say, source)
    except ImageError:
        say(f"{source} is not to be had; building it here")
        return False
    image = Store().get(name)
    if image is None or not image.is_the_checkouts:
        say(f"{source} is not what this checkout builds, whatever its name; building it here")
        return False
    return True


def _run(arguments: list[str], say: Callable[[str], None], what: str) -> None:
    say(f"$ {' '.join(arguments)}")
    if subprocess.run(arguments, cwd=REPOSITORY, check=False).returncode:
        raise ImageError(what)
