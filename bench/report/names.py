"""How rows, use cases and workloads are named to a reader, and in file names."""

from __future__ import annotations

from bench.axes import AXES
from bench.flux import MODELS
from bench.hardware import gpus_of
from bench.matrix import CONTROLS, PLAIN, TASKS, Row, layers
from bench.record import Environment

TASK_TITLES = {"txt2img": "Text-to-Image", "img2img": "Image-to-Image", "inpaint": "Inpainting"}
"""The plan's headings."""

AXIS_TITLES = {
    "precision": "Precision",
    "quantization": "Quantization",
    "text_encoder": "Text encoder",
    "attention": "Attention",
    "cache": "Cache",
    "vae": "VAE",
    "parallel": "Parallel",
    "compilation": "Compilation",
}

WEIGHTS_NOTES = {
    "hub": "real FLUX weights: every number counts",
    "synthetic": "full size, random weights: speed, memory and energy are real, pictures are not",
    "tiny": "a small trained FLUX: pictures and quality are real, speed only says that the path works",
}
"""What numbers taken with these weights mean (METHOD.md section 9)."""


def stack(row: Row) -> str:
    """What differs from plain, precision always: ``bf16 + cudnn + inductor``."""
    return " + ".join(layers(row.stack).values())


def role(row: Row) -> str:
    if row.skips_by_schedule:
        return "speed only: skips by schedule"
    return "reference" if row.is_reference else "baseline" if row.is_baseline else ""


def stack_items(row: Row) -> list[str]:
    """The plan's "Optimization Stack": axis and option by the plan's own names."""
    items = []
    for axis, option in row.stack.items():
        if option == PLAIN.get(axis):
            continue
        known = AXES[axis].get(option)
        title = f" ({known.title})" if known and known.title.lower() != option else ""
        items.append(f"{AXIS_TITLES[axis]}: {option}{title}")
    return items


def change(row: Row, parent: Row) -> str:
    """What the row changes from its parent: ``compilation none → inductor``."""
    changed = [
        f"{axis} {parent.stack[axis]} → {option}"
        for axis, option in row.stack.items()
        if option != parent.stack[axis]
    ]
    return ", ".join(changed) or "nothing"


def layer(row: Row, parent: Row) -> str:
    """What the row adds, and to what: ``inductor on bf16``, ``bf16 for fp32``."""
    changed = {axis: option for axis, option in row.stack.items() if option != parent.stack[axis]}
    words = []
    for axis, option in changed.items():
        before = parent.stack[axis]
        name = layers({axis: option}).get(axis, option)
        words.append(name if before == PLAIN.get(axis) else f"{name} for {before}")
    base = [name for axis, name in layers(parent.stack).items() if axis not in changed]
    return " + ".join(words) + (f" on {' + '.join(base)}" if base else "")


def use_case(task: str, control: str) -> str:
    title = TASK_TITLES[task]
    return title if control == "none" else f"{title} + ControlNet {control}"


def use_case_order(case: tuple[str, str]) -> tuple[int, int]:
    """The plan's order: the three tasks, then their ControlNet variants."""
    task, control = case
    return CONTROLS.index(control), TASKS.index(task)


def use_case_slug(task: str, control: str) -> str:
    return task if control == "none" else f"{task}-{control}"


def workload(row: Row) -> str:
    return f"{MODELS[row.model].title}, {row.size}×{row.size}, {row.steps} steps"


def machine(environment: Environment) -> str:
    """``GPU-1a2b3c4d, GPU-5e6f7a8b``, or ``cpu-1a2b3c4d``: as short as tells it from the others."""
    return ", ".join(gpu.uuid[:12] for gpu in environment.gpus) or environment.host_id[:12]


def hardware(name: str) -> str:
    """``8 × H100`` of ``h100x8``."""
    gpu, count = gpus_of(name)
    return f"{count} × {gpu.upper()}" if gpu else name.upper()
