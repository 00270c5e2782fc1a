"""compose.yaml: which services there are, rendered through docker/compose.yaml.j2.

A service runs every core row of one hardware and image by the fan-out, inside the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.contract import GIT_COMMIT
from bench.hardware import gpus_of
from bench.host import leases, locks, recipe
from bench.host.docker import CODE, HUB_CACHE, SHARED_MEMORY
from bench.host.image import tag
from bench.images import IMAGES
from bench.phases import ALL_HARDWARE

TEMPLATE = locks.DOCKER / "compose.yaml.j2"
LEASES = f"/tmp/{leases.FOLDER}"
"""As ``leases.folder()`` is called where nobody has set TMPDIR."""

SEVERAL_ONLY = frozenset({"xdit"})
"""Images whose point is more than one GPU."""
ONE_ONLY = frozenset({"gguf"})
"""Images whose options stand under one GPU only (DESIGN.md: single-GPU stacks stand under x1)."""


@dataclass(frozen=True)
class Service:
    hardware: str
    image: str
    gpus: int

    @property
    def name(self) -> str:
        return f"{self.hardware}-{self.image}" if self.gpus else self.hardware


def services() -> list[Service]:
    """Of all hardware that has rows, every image that makes sense there."""
    counts = {hardware: gpus_of(hardware)[1] for hardware in ALL_HARDWARE}
    return [
        Service(hardware, image, count) for hardware, count in counts.items() for image in _images_on(count)
    ]


def _images_on(gpus: int) -> list[str]:
    """The CPU has its own image; the others are for GPUs."""
    if gpus == 0:
        return [*IMAGES[:1]]
    left_out = SEVERAL_ONLY if gpus == 1 else ONE_ONLY
    return [image for image in IMAGES[1:] if image not in left_out]


def render() -> str:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(TEMPLATE.read_text()).render(
        services=services(),
        images=IMAGES,
        tag=tag,
        lock_sha256=locks.lock_sha256,
        recipe=recipe.recipe,
        base_image=recipe.base_image(),
        code=CODE,
        hub_cache=HUB_CACHE,
        git_commit=GIT_COMMIT,
        shared_memory=SHARED_MEMORY,
        leases=LEASES,
    )
