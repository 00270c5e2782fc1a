"""What one denoising step really ran, in the names of torch's profiler."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any, NamedTuple

from bench.axes.denoisers import denoisers
from bench.axes.option import Session

_COLLECTIVE = re.compile(
    r"(_c10d_functional::(?:all_to_all_single|all_gather_into_tensor|all_reduce|reduce_scatter_tensor))(?:_out|_)?"
    r"|(c10d::(?:_allgather_base_|alltoall_base_|send|recv_))"
)
"""The functional ones come from Ulysses, ring and tensor parallel; inductor puts forms of them that write
into a given tensor in their place, which count as the same. FSDP and xDiT call those of c10d themselves."""
_UNDERNEATH = {"_c10d_functional::all_to_all_single": "c10d::alltoall_base_"}
"""functional -> what it calls, which is the same call once more."""
_ELEMENT_BYTES = {"double": 8, "float": 4, "c10::Half": 2, "c10::BFloat16": 2, "unsigned char": 1}
"""Of the dtypes that are sent, in the profiler's names."""


class Collective(NamedTuple):
    """The calls of one operation."""

    calls: int
    input_bytes: int
    """What this rank handed in, all calls together. How much of it leaves the rank is the operation's:
    of an all-to-all all but its own part."""


def profile_step(session: Session) -> tuple[dict[str, int], dict[str, int]]:
    """Names and counts of (host operations, GPU kernels) of a one-step request's step.

    The profiler runs from the call of the ControlNet, or of the transformer where there is none, to the
    transformer's end, so the attention of VAE and text encoders cannot pass for theirs. Kernels are empty on
    CPU.
    """
    from torch.profiler import DeviceType

    operations: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    for event in _profiled(session).events() or ():
        on_device = event.device_type == DeviceType.CUDA
        if not _inside_its_own_name(event):
            (kernels if on_device else operations)[event.name] += 1
    return dict(operations), dict(kernels)


def _inside_its_own_name(event: Any) -> bool:
    """A tensor subclass (a collective's result that is still on its way) calls an operation once more, on
    what it wraps."""
    parent = event.cpu_parent
    while parent is not None and parent.name != event.name:
        parent = parent.cpu_parent
    return parent is not None


def collectives_of_step(session: Session) -> dict[str, Collective]:
    """Operation -> its calls in the step of a one-step request. Every rank must ask."""
    found: dict[str, Collective] = {}
    for event in _profiled(session, shapes=True).profiler.kineto_results.events():
        if match := _COLLECTIVE.fullmatch(event.name()):
            name = match[1] or match[2]
            calls, sent = found.get(name, Collective(0, 0))
            found[name] = Collective(calls + 1, sent + _input_bytes(event))
    return {name: seen for name, seen in found.items() if name not in map(_UNDERNEATH.get, found)}


def _input_bytes(event: Any) -> int:
    """Of a collective's smallest tensor: those that take a buffer for the result name it among the inputs."""
    sizes = [
        math.prod(shape) * _ELEMENT_BYTES.get(dtype, 0)
        for shape, dtype in zip(event.shapes(), event.dtypes(), strict=True)
        if shape
    ]
    return min(filter(None, sizes), default=0)


def _profiled(session: Session, *, shapes: bool = False) -> Any:
    """The profiler, stopped, after a one-step request."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = session.device != "cpu"
    profiler = profile(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu, record_shapes=shapes
    )

    begun: list[None] = []

    def start(*_: Any) -> None:
        # Before the transformer, or inside its call where a cache puts the ControlNet off.
        if not begun:
            begun.append(None)
            profiler.start()

    def stop(_module: Any, _inputs: Any, output: Any) -> None:
        for tensor in output:
            # Ranks gather the result without waiting; a collective that outlives the profiler is a crash.
            if hasattr(tensor, "trigger_wait"):
                tensor.trigger_wait()
        if on_gpu:
            torch.cuda.synchronize()
        profiler.stop()

    handles = [module.register_forward_pre_hook(start) for module in denoisers(session.pipe).values()]
    handles.append(session.pipe.transformer.register_forward_hook(stop))
    try:
        with session.unreplayed():
            session.run(steps=1)
    finally:
        for handle in handles:
            handle.remove()
    return profiler
