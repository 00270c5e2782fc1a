"""What one transformer call really ran, in the names of torch's profiler."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bench.axes.option import Session


def profile_transformer(session: Session) -> tuple[dict[str, int], dict[str, int]]:
    """Names and counts of (host operations, GPU kernels) of one transformer call in a one-step request.

    The profiler runs only inside that call, so the attention of VAE and text encoders cannot pass for it.
    Kernels are empty on CPU.
    """
    import torch
    from torch.profiler import DeviceType, ProfilerActivity, profile

    on_gpu = session.device != "cpu"
    profiler = profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu)

    def stop(*_: Any) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        profiler.stop()

    transformer = session.pipe.transformer
    handles = (
        transformer.register_forward_pre_hook(lambda *_: profiler.start()),
        transformer.register_forward_hook(stop),
    )
    try:
        session.run(steps=1)
    finally:
        for handle in handles:
            handle.remove()
    operations: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    for event in profiler.events() or ():
        on_device = event.device_type == DeviceType.CUDA
        (kernels if on_device else operations)[event.name] += 1
    return dict(operations), dict(kernels)
