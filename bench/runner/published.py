"""The published configurations that ``synthetic`` weights are built from, each with repository and revision.

They stand as data in ``published/``, transcribed from the hub without the entries that name a machine or a
library version. ``hub`` weights are pinned to the same revisions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "published"

NOT_FETCHED = ("flux1-*.safetensors", "ae.safetensors", "*.jpg", "images/*")
"""Files of these repositories that nothing here reads: FLUX.1-dev's holds its weights once more as single
files."""

TRANSFORMER_PARAMETERS = 11_901_408_320
"""FLUX.1-dev's; a config that builds another number is not FLUX.1-dev's."""


@dataclass(frozen=True)
class Published:
    repository: str
    revision: str
    path: str
    config: dict[str, Any]


@cache
def published(component: str) -> Published:
    """``transformer``, ``vae``, ``text_encoder``, ``text_encoder_2``, ``scheduler`` or ``controlnet``."""
    return Published(**json.loads((FOLDER / f"{component}.json").read_text(encoding="utf-8")))
