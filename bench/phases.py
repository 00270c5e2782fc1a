"""The plan's phases: which rows each one declares, and which phase a row belongs to.

Declared so far: phase 1, phase 2 (each quantisation alone), the layers of phase 3 alone and its first
combinations (which, stands in ``bench/layers.py``), and phase 4 (``bench/several_gpus.py``). ``fluxbench
matrix`` appends what is declared and not in matrix.csv; a declaration, once appended, keeps its id for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from bench import several_gpus
from bench.hardware import gpus_of
from bench.layers import (
    CALLERS_CPU_LAYERS,
    CALLERS_GPU_LAYERS,
    COMBINATIONS,
    CPU_LAYERS,
    FP32_LAYERS,
    GPU_LAYERS,
    LATER_COMBINATIONS,
    LATER_CPU_LAYERS,
    LATER_GPU_LAYERS,
    LAYERS,
    PICTURE_COMBINATIONS,
    PICTURE_LAYERS,
    Combination,
    Layer,
    Stack,
)
from bench.matrix import (
    AXIS_NAMES,
    BASELINE,
    CONTROLS,
    CORE_CONTROLS,
    IDENTITY,
    PLAIN,
    REFERENCE,
    TASKS,
    USUAL_WORKLOADS,
    Row,
)
from bench.rules import refusal

PHASES = {
    1: "Baseline establishment",
    2: "Quantization testing",
    3: "Inference optimization integration",
    4: "Parallel processing optimization",
    5: "Final optimization stack",
}
"""number -> the plan's title. Phase 5 chooses among results, so no row is derived to be in it."""

ONE_GPU = ("a100x1", "h100x1")
HARDWARE = (*ONE_GPU, "cpu")
"""Of phases 1 to 3."""
NODE_GPUS = tuple(dict.fromkeys(gpu for gpu, _ in map(gpus_of, several_gpus.NODES) if gpu))
ALL_HARDWARE = sorted(
    {*HARDWARE, *several_gpus.NODES, *(f"{gpu}x1" for gpu in NODE_GPUS)},
    key=lambda hardware: (gpus_of(hardware)[0] or "", gpus_of(hardware)[1]),
)
"""Whatever has rows: the CPU, then GPU by GPU, from one to many."""
TINY_WORKLOAD = ("tiny", *USUAL_WORKLOADS["tiny"])
WORKLOADS = {"cpu": TINY_WORKLOAD}
"""hardware -> (model, size, steps) where it is not the usual one."""
USUAL_WORKLOAD = ("flux.1-dev", *USUAL_WORKLOADS["flux.1-dev"])

USE_CASES = tuple(product(TASKS, CONTROLS))
CORE_USE_CASES = tuple(case for case in USE_CASES if case[1] in CORE_CONTROLS)
TEXT_TO_IMAGE = ("txt2img", "none")

BASELINE_PRECISIONS = {
    "fp32": "baseline: the plan's starting point",
    "fp16": "half precision against the fp32 baseline",
    "bf16": "reference: speed-ups and quality are measured against it",
}

SHORT_STEPS = 4
"""So few that 368 requests, a true p99, take half a minute on two CPU cores."""


@dataclass(frozen=True)
class Declared:
    """A row that a phase asks for, before it has an id."""

    identity: tuple[str, ...]
    """As ``Row.identity``."""
    tier: str
    parent: tuple[str, ...] | None
    """Identity of the parent, which is declared earlier."""
    why: str


def phase_of(row: Row) -> int:
    """The earliest phase that the row's stack belongs to."""
    layers = {axis for axis, plain in PLAIN.items() if row.stack[axis] != plain}
    if row.gpu_count > 1 or "parallel" in layers:
        return 4
    if layers - {"quantization", "text_encoder"}:
        return 3
    return 2 if layers else 1


def declared() -> Iterator[Declared]:
    """Every row that the phases ask for, parents before their children. Ids follow this order when a
    matrix is written from nothing; to keep that so, add new declarations at the end."""
    for hardware, use_case in product(HARDWARE, USE_CASES):
        for precision, why in BASELINE_PRECISIONS.items():
            parent = None if precision == "fp32" else BASELINE
            yield _declare(_place(hardware, use_case), {**PLAIN, "precision": precision}, parent, why)
    yield from _alone((*product(HARDWARE, LAYERS), *product(["cpu"], FP32_LAYERS)))
    short = _place("cpu", ("txt2img", "none"), steps=SHORT_STEPS)
    yield _declare(short, BASELINE, None, "few steps, so that a true p99 is cheap")
    yield _declare(short, REFERENCE, BASELINE, "the reference of few steps")
    yield from _alone((*product(ONE_GPU, GPU_LAYERS), *product(["cpu"], CPU_LAYERS)))
    yield from _combined(COMBINATIONS)
    for gpu in NODE_GPUS:
        yield from _one_gpu(gpu)
        for hardware in several_gpus.NODES:
            if gpus_of(hardware)[0] == gpu:
                yield from _node(hardware)
    yield from _alone((*product(ONE_GPU, LATER_GPU_LAYERS), *product(["cpu"], LATER_CPU_LAYERS)))
    yield from _combined(LATER_COMBINATIONS)
    yield from _rearranged_on_nodes()
    yield from _alone((*product(ONE_GPU, CALLERS_GPU_LAYERS), *product(["cpu"], CALLERS_CPU_LAYERS)))
    yield from _same_stacks_on_nodes()
    yield from _pictures()


def _one_gpu(gpu: str) -> Iterator[Declared]:
    """What several are held against; at the usual size the GPUs of phases 1 to 3 have it already."""
    hardware, steps = f"{gpu}x1", list(several_gpus.one_gpu())
    if hardware not in ONE_GPU:
        for use_case in CORE_USE_CASES:
            yield from _descend(_place(hardware, use_case), steps)
    yield from _descend(_place(hardware, TEXT_TO_IMAGE, size=several_gpus.LARGE), steps)


def _node(hardware: str) -> Iterator[Declared]:
    _, count = gpus_of(hardware)
    for use_case in CORE_USE_CASES:
        yield from _descend(_place(hardware, use_case), several_gpus.everywhere(count))
    yield from _descend(_place(hardware, TEXT_TO_IMAGE), several_gpus.text_to_image(count))
    large = _place(hardware, TEXT_TO_IMAGE, size=several_gpus.LARGE)
    yield from _descend(large, several_gpus.large(count))


def _rearranged_on_nodes() -> Iterator[Declared]:
    """At both sizes of txt2img; FP8 at the usual one, as before."""
    for gpu in NODE_GPUS:
        for size in (None, several_gpus.LARGE):
            if size or f"{gpu}x1" not in ONE_GPU:
                place = _place(f"{gpu}x1", TEXT_TO_IMAGE, size=size)
                yield from _descend(place, several_gpus.rearranged_one_gpu())
    for hardware in several_gpus.NODES:
        _, count = gpus_of(hardware)
        for size in (None, several_gpus.LARGE):
            steps = several_gpus.rearranged(count, fp8=size is None)
            yield from _descend(_place(hardware, TEXT_TO_IMAGE, size=size), steps)


def _same_stacks_on_nodes() -> Iterator[Declared]:
    """At both sizes of txt2img; ring's on every core use case. At the usual size the GPUs of phases 1 to 3
    have theirs already."""
    for gpu in NODE_GPUS:
        hardware = f"{gpu}x1"
        usual = [] if hardware in ONE_GPU else [_place(hardware, use_case) for use_case in CORE_USE_CASES]
        large = _place(hardware, TEXT_TO_IMAGE, size=several_gpus.LARGE)
        for place in (*usual, large):
            yield from _descend(place, several_gpus.ring_one_gpu())
        for place in (place for place in (*usual, large) if place[-2:] == TEXT_TO_IMAGE):
            yield from _descend(place, several_gpus.same_stack_one_gpu())
    for hardware in several_gpus.NODES:
        usual = [_place(hardware, use_case) for use_case in CORE_USE_CASES]
        large = _place(hardware, TEXT_TO_IMAGE, size=several_gpus.LARGE)
        for place in (*usual, large):
            yield from _descend(place, several_gpus.ring_control())
        txt2img = _place(hardware, TEXT_TO_IMAGE)
        yield from _descend(txt2img, several_gpus.same_stack_controls(fp8=True))
        yield from _descend(large, several_gpus.same_stack_controls(fp8=False))


def _pictures() -> Iterator[Declared]:
    """What one GPU's kernels paint, on a model small enough to come with this project. None is core: who asks
    for a GPU's rows asks for speed."""
    for hardware in ONE_GPU:
        place = (hardware, *map(str, TINY_WORKLOAD), *TEXT_TO_IMAGE)
        yield _declare(place, REFERENCE, None, "the reference of a GPU's pictures", tier="extended")
        yield from (_layered(place, layer) for layer in PICTURE_LAYERS)
        yield from (_stacked(place, combination) for combination in PICTURE_COMBINATIONS)


def _descend(place: tuple[str, ...], steps: Iterable[several_gpus.Step]) -> Iterator[Declared]:
    for step in steps:
        parent = None if step.parent is None else REFERENCE | step.parent
        yield _declare(place, REFERENCE | step.changes, parent, step.why)


def _alone(layers: Iterable[tuple[str, Layer]]) -> Iterator[Declared]:
    """Each (hardware, layer) on the plain stack of its precision."""
    for hardware, layer in layers:
        for use_case in USE_CASES:
            if use_case[1] in CORE_CONTROLS or layer.extended:
                yield _layered(_place(hardware, use_case), layer)


def _combined(combinations: Iterable[Combination]) -> Iterator[Declared]:
    """Each on the reference of one GPU."""
    for hardware, combination, use_case in product(ONE_GPU, combinations, USE_CASES):
        if use_case[1] in CORE_CONTROLS:
            yield _stacked(_place(hardware, use_case), combination)


def _layered(place: tuple[str, ...], layer: Layer) -> Declared:
    parent = REFERENCE | {"precision": layer.on}
    return _declare(place, parent | {layer.axis: layer.option}, parent, layer.why, layer.tier)


def _stacked(place: tuple[str, ...], combination: Combination) -> Declared:
    stack = REFERENCE | combination.changes
    parent = stack | {combination.added: REFERENCE[combination.added]}
    return _declare(place, stack, parent, combination.why, combination.tier)


def _place(
    hardware: str, use_case: tuple[str, str], *, size: int | None = None, steps: int | None = None
) -> tuple[str, ...]:
    """Hardware, workload and use case, as an identity begins."""
    model, usual_size, usual_steps = WORKLOADS.get(hardware, USUAL_WORKLOAD)
    return (hardware, model, str(size or usual_size), str(steps or usual_steps), *use_case)


def _declare(
    place: tuple[str, ...], stack: Stack, parent: Stack | None, why: str, tier: str | None = None
) -> Declared:
    return Declared(
        identity=_identity(place, stack),
        tier=tier or ("core" if place[-1] in CORE_CONTROLS else "extended"),
        parent=None if parent is None else _identity(place, parent),
        why=why,
    )


def _identity(place: tuple[str, ...], stack: Stack) -> tuple[str, ...]:
    return (*place, *(stack[axis] for axis in AXIS_NAMES))


def merged(rows: Iterable[Row]) -> list[Row]:
    """The rows with what is declared and missing appended. Ids and identities stay; tier, parent and why
    follow the declarations. Declared rows that a rule refuses are left out."""
    by_identity = {row.identity: row for row in rows}
    next_id = max((int(row.row) for row in by_identity.values()), default=0) + 1
    for wanted in declared():
        known = by_identity.get(wanted.identity)
        parent = by_identity.get(wanted.parent) if wanted.parent else None
        row = Row.model_validate(
            {
                **dict(zip(IDENTITY, wanted.identity, strict=True)),
                "row": known.row if known else str(next_id),
                "tier": wanted.tier,
                "parent": parent.row if parent else None,
                "why": wanted.why,
            }
        )
        if refusal(row):
            continue
        by_identity[wanted.identity] = row
        next_id += known is None
    return list(by_identity.values())


def drift(rows: list[Row]) -> list[str]:
    """How the file and the declarations disagree, one sentence each; empty when they agree."""
    asked_for = {wanted.identity for wanted in declared()}
    expected = merged(rows)
    sentences = [
        f"row {row.row} is declared by no phase: add it to bench/phases.py"
        for row in rows
        if row.identity not in asked_for
    ]
    for row, other in zip(rows, expected, strict=False):
        changed = [name for name in ("tier", "parent", "why") if getattr(row, name) != getattr(other, name)]
        sentences += [
            f"row {row.row}: {name} is {getattr(row, name)!r}, declared {getattr(other, name)!r}"
            for name in changed
        ]
    sentences += [f"missing: {row.label}, {row.why}" for row in expected[len(rows) :]]
    return sentences
