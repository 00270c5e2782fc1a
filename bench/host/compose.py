"""compose.yaml: which services there are, rendered through docker/compose.yaml.j2.

A service runs every core row of one hardware and image by the fan-out, inside the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.host import leases, locks, recipe
from bench.host.docker import CODE, HUB_CACHE, SHARED_MEMORY
from bench.host.image import tag
from bench.images import IMAGES

TEMPLATE = locks.DOCKER / "compose.yaml.j2"
COUNTS = {"a100": (1, 2, 4, 8), "h100": (1, 2, 4, 8), "h200": (1, 2)}
"""The plan's hardware, and what the matrix has rows of beyond it (a test). A service exists whether or not
there are rows for it yet."""

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
    """The CPU's, then every GPU count x image that makes sense there."""
    found = [Service("cpu", "cpu", 0)]
    for gpu, counts in COUNTS.items():
        for count in counts:
            left_out = SEVERAL_ONLY if count == 1 else ONE_ONLY
            chosen = (image for image in IMAGES[1:] if image not in left_out)
            found += [Service(f"{gpu}x{count}", image, count) for image in chosen]
    return found


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
        shared_memory=SHARED_MEMORY,
        leases=LEASES,
    )
