"""A row of matrix.csv: hardware + workload + use case + stack, and where it stands in the campaign.

Ids are permanent: ``ROW=42`` means the same next year. Everything but ``row``, ``tier``, ``parent`` and
``why`` is the row's identity, unique in the file, and never changes under an id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from bench import tiny
from bench.flux import Model
from bench.hardware import HARDWARE, gpus_of

Tier = Literal["core", "extended"]
Task = Literal["txt2img", "img2img", "inpaint"]
Control = Literal["none", "canny", "depth", "pose"]

TIERS: tuple[str, ...] = get_args(Tier)
TASKS: tuple[str, ...] = get_args(Task)
CONTROLS: tuple[str, ...] = get_args(Control)
CORE_CONTROLS = ("none", "canny")
"""Depth and pose are extended: the same compute through one union ControlNet."""

USUAL_WORKLOADS = {"flux.1-dev": (1024, 28), "tiny": (tiny.SIZE, tiny.STEPS)}
"""model -> (size, steps) of most of its rows, and of a row that is named without them."""

PLAIN = {
    "quantization": "none",
    "text_encoder": "none",
    "attention": "sdpa",
    "cache": "none",
    "vae": "full",
    "parallel": "none",
    "compilation": "none",
}
"""axis -> the option that is the absence of an optimisation; precision has none."""

AXIS_NAMES = ("precision", *PLAIN)
"""The axes in column order."""

BASELINE = {"precision": "fp32", **PLAIN}
"""The plan's baseline: fp32 eager."""

REFERENCE = {"precision": "bf16", **PLAIN}
"""What speed-ups and quality are measured against: bf16 eager sdpa."""

ROW_ID = re.compile(r"[1-9][0-9]{0,8}|p-[0-9a-f]{8}")
"""A number in matrix.csv; ``p-`` and a hash of the content for a row planned from results."""

Group = tuple[str | None, str, int, int, str, str]
"""(kind of GPU, model, size, steps, task, control)"""

Option = Annotated[str, Field(min_length=1)]


class Row(BaseModel):
    """One row, as it travels from host to runner: ``Row.model_validate_json(row.model_dump_json())``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str = Field(pattern=rf"^({ROW_ID.pattern})$")
    tier: Tier
    hardware: str = Field(pattern=rf"^({HARDWARE.pattern})$")
    model: Model
    size: int = Field(gt=0)
    """Width and height in pixels."""
    steps: int = Field(gt=0)
    """Denoising steps asked for; img2img and inpaint execute ``int(min(steps * strength, steps))``."""
    task: Task
    control: Control
    precision: Option
    quantization: Option
    text_encoder: Option
    attention: Option
    cache: Option
    vae: Option
    parallel: Option
    compilation: Option
    parent: str | None = Field(default=None, pattern=rf"^({ROW_ID.pattern})$")
    """Id of the row that this one changes one option of; None for a root."""
    why: str = Field(default="", pattern=r"^[^\x00-\x1f\x7f\x{85}\x{2028}\x{2029}]*$")
    """One line of text."""

    @property
    def stack(self) -> dict[str, str]:
        """axis -> option, in column order."""
        return {axis: getattr(self, axis) for axis in AXIS_NAMES}

    @property
    def use_case(self) -> tuple[str, str]:
        """(task, control)"""
        return self.task, self.control

    @property
    def group(self) -> Group:
        """Rows that agree in it are held against one reference, those of several GPUs against one GPU's."""
        return self.gpu, self.model, self.size, self.steps, self.task, self.control

    @property
    def identity(self) -> tuple[str, ...]:
        """What the row measures, as text; the row's part of a fingerprint. Its id, tier, parent and why
        may be reworded without making a result stale."""
        return tuple(str(getattr(self, column)) for column in IDENTITY)

    @property
    def gpu(self) -> str | None:
        """``h100`` of ``h100x8``; None on cpu."""
        return gpus_of(self.hardware)[0]

    @property
    def gpu_count(self) -> int:
        return gpus_of(self.hardware)[1]

    @property
    def is_baseline(self) -> bool:
        return self.stack == BASELINE

    @property
    def skips_by_schedule(self) -> bool:
        """Whether its cache replays a stated schedule: how fast such a cache would be on random weights, and
        nothing that anyone could run on real ones (METHOD.md section 9)."""
        return self.cache.startswith("replay-")

    @property
    def is_reference(self) -> bool:
        return self.stack == REFERENCE

    @property
    def label(self) -> str:
        """``row 42 (cudnn+inductor on h100x1, txt2img)``: how messages name a row; with model, size and
        steps where they are not the usual ones."""
        changed = layers(self.stack).values()
        case = self.task if self.control == "none" else f"{self.task}+{self.control}"
        if self.model == "tiny" and self.gpu:
            case += ", tiny model"
        size, steps = USUAL_WORKLOADS[self.model]
        if self.size != size:
            case += f", {self.size}x{self.size}"
        if self.steps != steps:
            case += f", {self.steps} steps"
        return f"row {self.row} ({'+'.join(changed)} on {self.hardware}, {case})"


_CLEARER = {("vae", "parallel"): "vae-parallel"}


def layers(stack: Mapping[str, str]) -> dict[str, str]:
    """axis -> name of its option, for what is not plain; the precision always. The transformer and T5 have
    options of one name, so T5's say so: ``t5-bnb-nf4``. And ``vae-parallel`` says what is parallel."""
    return {
        axis: f"t5-{option}" if axis == "text_encoder" else _CLEARER.get((axis, option), option)
        for axis, option in stack.items()
        if option != PLAIN.get(axis)
    }


def references_of(rows: Iterable[Row], matrix: Iterable[Row]) -> list[Row]:
    """The rows of the matrix that these are held against, each once, in the matrix's order."""
    groups = {row.group for row in rows}
    return [row for row in matrix if row.is_reference and row.group in groups]


COLUMNS = tuple(Row.model_fields)
IDENTITY = tuple(column for column in COLUMNS if column not in {"row", "tier", "parent", "why"})
