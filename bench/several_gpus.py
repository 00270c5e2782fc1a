"""Which methods are tried on how many GPUs: the content of phase 4.

On each node everything descends from replicas, the throughput that N GPUs have without working together, so
that each row changes one option of a parent on the same hardware:

    replicas -> + compiled -> ulyssesN -> + cuDNN's attention -> ringN, ulyssesNxringM
                           -> tpN, fsdpN, xdit-...
    replicas -> ulyssesN, xdit-pipefusionN (eager)

The one GPU that they scale from stands under x1, and runs on the same host. ``rearranged`` and
``rearranged_one_gpu`` came later, with the compilations that they try; ``ring_...`` and ``same_stack_...``
later still, so that a method's one GPU and its control hold its own stack.
Order is identity here: rows get their ids in the order of these tables, so new ones are added at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.layers import Stack

NODES = ("h200x2", "h100x2", "h100x4", "h100x8", "a100x2", "a100x4", "a100x8")
LARGE = 2048
"""Pixels, both ways: 4.5 times the work of 1024 in a step, and where a parallel VAE pays."""

_BOTH = {2: (), 4: ("ulysses2xring2",), 8: ("ulysses4xring2", "ulysses2xring4")}
"""GPUs -> Ulysses and ring together."""


@dataclass(frozen=True)
class Step:
    """A stack, as what it changes on the reference, and what its parent lacks."""

    changes: Stack
    parent: Stack | None
    why: str


COMPILED = {"compilation": "inductor"}
REPLICAS = {"parallel": "replicas"}


def one_gpu() -> Iterator[Step]:
    """What a node is held against, on one GPU of the same host. Parents are the reference."""
    yield Step({}, None, "reference: the one GPU that several are held against")
    yield Step(COMPILED, {}, "compiled: the one GPU that several compiled ones are held against")
    quantised = COMPILED | {"quantization": "scaledmm-fp8-row"}
    yield Step(quantised, COMPILED, "our dynamic FP8 compiled, on one GPU")


def everywhere(count: int) -> Iterator[Step]:
    """For every core use case."""
    ulysses, cudnn = COMPILED | {"parallel": f"ulysses{count}"}, {"attention": "cudnn"}
    replicas = REPLICAS | COMPILED
    yield Step(REPLICAS, None, "one pipeline a GPU: the throughput control, eager")
    yield Step(replicas, REPLICAS, "one pipeline a GPU, compiled: what every method is judged against")
    yield Step(ulysses, replicas, "Ulysses: heads shared out")
    yield Step(ulysses | cudnn, ulysses, "Ulysses with cuDNN attention, which ring needs")
    for option in (f"ring{count}", *_BOTH[count]):
        yield Step(ulysses | cudnn | {"parallel": option}, ulysses | cudnn, _METHODS[option.rstrip("248")])
    for option in (f"tp{count}", f"fsdp{count}"):
        yield Step(replicas | {"parallel": option}, replicas, _METHODS[option.rstrip("248")])


_METHODS = {
    "ring": "ring: keys and values travel round",
    "ulysses2xring": "Ulysses and ring together",
    "ulysses4xring": "Ulysses and ring together",
    "tp": "tensor parallel: features shared out",
    "fsdp": "FSDP2 with Ulysses: weights shared out too",
}


def text_to_image(count: int) -> Iterator[Step]:
    """For txt2img without a ControlNet, at its usual size."""
    eager = {"parallel": f"ulysses{count}"}
    ulysses, skipping = COMPILED | eager, {"cache": "replay-65"}
    fp8 = ulysses | {"quantization": "scaledmm-fp8-row"}
    yield Step(eager, REPLICAS, "Ulysses, eager: what launches cost several GPUs")
    yield Step(fp8, ulysses, "Ulysses with our dynamic FP8, compiled")
    yield Step(ulysses | skipping, ulysses, "Ulysses with a cache that skips 65 % of the steps, compiled")
    yield Step(fp8 | skipping, fp8, "Ulysses with FP8 and a cache that skips 65 % of the steps, compiled")
    yield Step(
        COMPILED | {"parallel": f"fsdp{count}", "precision": "fp32"},
        COMPILED | {"parallel": f"fsdp{count}"},
        "FSDP2 in fp32: weights that fill one GPU, shared out",
    )
    yield from _parallel_vae(count)
    yield from xdit(count)


def large(count: int) -> Iterator[Step]:
    """For txt2img at 2048 pixels."""
    yield from everywhere(count)
    yield from _parallel_vae(count)
    yield from xdit(count)


def _parallel_vae(count: int) -> Iterator[Step]:
    ulysses = COMPILED | {"parallel": f"ulysses{count}"}
    yield Step(ulysses | {"vae": "parallel"}, ulysses, "ParallelVAE on top of Ulysses")


def xdit(count: int) -> Iterator[Step]:
    replicas = REPLICAS | COMPILED
    ulysses, cudnn = replicas | {"parallel": f"xdit-ulysses{count}"}, {"attention": "cudnn"}
    fsdp, ring = {"parallel": f"xdit-fsdp{count}"}, {"parallel": f"xdit-ring{count}"}
    yield Step(ulysses, replicas, "xDiT's Ulysses")
    yield Step(ulysses | cudnn, ulysses, "xDiT's Ulysses with cuDNN attention, which its ring needs")
    yield Step(ulysses | cudnn | ring, ulysses | cudnn, "xDiT's ring")
    yield Step(replicas | fsdp, replicas, "xDiT's Ulysses with sharded weights")
    pipefusion = {"parallel": f"xdit-pipefusion{count}"}
    yield Step(pipefusion, REPLICAS, "xDiT's PipeFusion, eager: blocks shared out, patches travel")


FUSED, GRAPHS = {"compilation": "inductor-fused"}, {"compilation": "inductor-graphs"}


def rearranged_one_gpu() -> Iterator[Step]:
    """As ``one_gpu``."""
    yield Step(FUSED, {}, "FLUX rearranged: the one GPU that several such are held against")
    yield Step(GRAPHS, {}, "a CUDA graph a step: the one GPU that several such are held against")


def rearranged(count: int, *, fp8: bool) -> Iterator[Step]:
    ulysses = GRAPHS | {"parallel": f"ulysses{count}"}
    for compiled in (FUSED, GRAPHS):
        replicas = REPLICAS | compiled
        yield Step(replicas, REPLICAS, "one pipeline a GPU, FLUX rearranged: the throughput control")
        yield Step(replicas | {"parallel": f"ulysses{count}"}, replicas, "Ulysses, FLUX rearranged")
    yield Step(ulysses | {"attention": "flash3"}, ulysses, "Ulysses, a CUDA graph a step, FlashAttention 3")
    if fp8:
        quantised = ulysses | {"quantization": "scaledmm-fp8-row"}
        yield Step(quantised, ulysses, "Ulysses, a CUDA graph a step, our dynamic FP8")


_CUDNN, _FLASH3 = COMPILED | {"attention": "cudnn"}, GRAPHS | {"attention": "flash3"}
_FP8 = {"quantization": "scaledmm-fp8-row"}


def ring_one_gpu() -> Iterator[Step]:
    """For every core use case. As ``one_gpu``."""
    yield Step(_CUDNN, COMPILED, "cuDNN attention compiled: the one GPU that ring is held against")


def same_stack_one_gpu() -> Iterator[Step]:
    """What methods were tried with for txt2img alone, and one GPU was not. As ``one_gpu``."""
    yield Step(_FLASH3, GRAPHS, "a CUDA graph a step, FlashAttention 3, on one GPU")
    yield Step(GRAPHS | _FP8, GRAPHS, "a CUDA graph a step, our dynamic FP8, on one GPU")


def ring_control() -> Iterator[Step]:
    """For every core use case."""
    yield Step(
        REPLICAS | _CUDNN,
        REPLICAS | COMPILED,
        "one pipeline a GPU, cuDNN attention: the control of ring",
    )


def same_stack_controls(*, fp8: bool) -> Iterator[Step]:
    """Of the stacks that are tried for txt2img alone."""
    graphs = REPLICAS | GRAPHS
    yield Step(REPLICAS | _FLASH3, graphs, "one pipeline a GPU, FlashAttention 3: the control")
    if fp8:
        for compiled in (COMPILED, GRAPHS):
            replicas = REPLICAS | compiled
            yield Step(replicas | _FP8, replicas, "one pipeline a GPU, our dynamic FP8: the control")
