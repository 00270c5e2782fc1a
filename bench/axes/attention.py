"""attention: which kernel computes softmax(QK)V in the transformer and the ControlNet.

diffusers keeps the choice on every attention processor *and* in a process-wide default that
``reset_attention_backend()`` does not undo, so each option, ``sdpa`` too, sets its backend by name.
The VAE and the text encoders call torch's SDPA by themselves and are not touched.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import Any

from bench.axes.option import Evidence, NotApplied, Option, Session, Unavailable

_BACKENDS = {"sdpa": "native", "cudnn": "_native_cudnn", "native-flash": "_native_flash"}
_OPERATIONS = {
    "sdpa": re.compile(r"aten::_scaled_dot_product_\w*attention\w*"),
    "cudnn": re.compile(r"aten::_scaled_dot_product_cudnn_attention"),
    "native-flash": re.compile(r"aten::_scaled_dot_product_flash_attention(_for_cpu)?"),
}
"""What the profile must show. SDPA chooses among several; which one it took is part of its evidence."""
_ANY_OPERATION = _OPERATIONS["sdpa"]
_KERNELS = re.compile(r"flash|fmha|sdpa|attention|attn", re.IGNORECASE)


def attended(pipe: Any) -> dict[str, Any]:
    """The components whose attention this axis sets, by name."""
    components = {"transformer": pipe.transformer, "controlnet": getattr(pipe, "controlnet", None)}
    return {name: module for name, module in components.items() if module is not None}


def processors(module: Any) -> list[Any]:
    """The processors that diffusers dispatches through: those that can hold a backend."""
    return [
        child.processor
        for child in module.modules()
        if hasattr(getattr(child, "processor", None), "_attention_backend")
    ]


def _apply(option: str, session: Session) -> None:
    if option == "cudnn" and session.device == "cpu":
        raise Unavailable(
            f"{session.row.label}: attention cudnn needs an NVIDIA GPU and this row runs on the CPU;"
            " use attention sdpa or native-flash there"
        )
    for module in attended(session.pipe).values():
        module.set_attention_backend(_BACKENDS[option])


def _verify(option: str, session: Session) -> Evidence:
    backend = _BACKENDS[option]
    by_component: dict[str, int] = {}
    for name, module in attended(session.pipe).items():
        backends = [getattr(p._attention_backend, "value", p._attention_backend) for p in processors(module)]
        strays = [found for found in backends if found != backend]
        if strays or not backends:
            raise NotApplied(
                f"attention {option}: {len(strays)} of {len(backends)} processors of the {name} are set to"
                f" {sorted({str(stray) for stray in strays})}, not {backend}"
            )
        by_component[name] = len(backends)
    operations, kernels = profile_transformer(session)
    ran = {name: n for name, n in operations.items() if _ANY_OPERATION.fullmatch(name)}
    matching = sum(n for name, n in ran.items() if _OPERATIONS[option].fullmatch(name))
    if matching < by_component["transformer"]:
        raise NotApplied(
            f"attention {option}: {matching} of {by_component['transformer']} attention calls of one step"
            f" ran as {_OPERATIONS[option].pattern}; the profile shows {ran or 'none'}"
        )
    return {
        "backend": backend,
        "processors": by_component,
        "operations_in_one_step": ran,
        "kernels_in_one_step": {name: n for name, n in kernels.items() if _KERNELS.search(name)},
    }


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


def _option(id: str, title: str, **declared: Any) -> Option:
    return Option(id, title, verify=partial(_verify, id), apply=partial(_apply, id), **declared)


OPTIONS = (
    _option("sdpa", "PyTorch SDPA"),
    _option(
        "cudnn",
        "cuDNN attention",
        needs_gpu=True,
        exact=True,
        images=frozenset({"torch", "gguf", "sage", "xdit", "tensorrt"}),
    ),
    _option("native-flash", "FlashAttention 2 (PyTorch's own)", exact=True),
)
