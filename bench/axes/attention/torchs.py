"""The attention that torch brings: its own choice, cuDNN's, and FlashAttention 2."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from bench.axes.attention import backends
from bench.axes.option import Evidence, NotApplied, Option, Session
from bench.axes.profiles import profile_step

_BACKENDS = {"sdpa": "native", "cudnn": "_native_cudnn", "native-flash": "_native_flash"}
_OPERATIONS = {
    "sdpa": re.compile(r"^aten::_scaled_dot_product_\w*attention"),
    "cudnn": re.compile(r"^aten::_scaled_dot_product_cudnn_attention$"),
    "native-flash": re.compile(r"^aten::_scaled_dot_product_flash_attention(_for_cpu)?$"),
}
"""What the profile must show. SDPA chooses among several; which one it took is part of its evidence."""


def _apply(option: str, session: Session) -> None:
    backends.set_backend(session, _BACKENDS[option])


def _verify(option: str, session: Session) -> Evidence:
    backend = _BACKENDS[option]
    if session.row.compilation == "tensorrt":
        return _inside_engines(option, session, backend)
    return backends.evidence(option, session, backend, operation=_OPERATIONS[option], kernel=None)


def _inside_engines(option: str, session: Session, backend: str) -> Evidence:
    """TensorRT converts SDPA into its own kernels: none of torch's is left in the profile. That the engines
    ran is the evidence of axis compilation."""
    by_component = backends.require_backend(option, session, backend)
    operations, _ = profile_step(session)
    if outside := backends.attention_operations(operations):
        raise NotApplied(f"attention {option}: TensorRT left attention to torch; one step ran {outside}")
    return {"backend": backend, "processors": by_component, "computed_by": "TensorRT engines"}


def _option(id: str, title: str, **declared: Any) -> Option:
    return Option(id, title, verify=partial(_verify, id), apply=partial(_apply, id), **declared)


OPTIONS = (
    _option("sdpa", "PyTorch SDPA"),
    _option(
        "cudnn",
        "cuDNN attention",
        needs_gpu=True,
        gpu_precisions=frozenset({"fp16", "bf16"}),
        exact=True,
        images=frozenset({"torch", "gguf", "sage", "xdit"}),
    ),
    _option(
        "native-flash",
        "FlashAttention 2 (PyTorch's own)",
        gpu_precisions=frozenset({"fp16", "bf16"}),
        exact=True,
        images=frozenset({"cpu", "torch", "gguf", "sage", "xdit"}),
    ),
)
