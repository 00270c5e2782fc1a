"""precision: the dtype that weights are loaded in, and whether float32 arithmetic may be rounded to TF32.

``models.load`` reads the weights in ``torch_dtype(option)``; ``apply`` sets the two TF32 switches, which are
process-wide. cuDNN's stands *on* by default in torch, so an fp32 row that leaves it alone would run the
VAE's convolutions in TF32.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from bench.axes.option import Evidence, NotApplied, Option, Session

_DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_TF32_MATMUL_AND_CUDNN = {
    "fp32": (False, False),
    "tf32": (True, True),
    "fp16": (False, True),
    "bf16": (False, True),
}
"""fp16 and bf16 rows keep torch's defaults, stated so that they hold whatever ran before."""
_TF32_ERROR = 1e-5
"""Between the relative rounding error of a float32 product (about 1e-7) and of a TF32 one (about 3e-4)."""

COMPONENTS = ("transformer", "controlnet", "text_encoder", "text_encoder_2", "vae")


def torch_dtype(option: str) -> Any:
    """The torch.dtype that a row of this precision loads its weights in."""
    import torch

    return getattr(torch, _DTYPES[option])


def dtype_counts(module: Any) -> dict[str, int]:
    """Number of parameters (scalars, not tensors) by dtype name."""
    counts: Counter[str] = Counter()
    for parameter in module.parameters():
        counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return dict(sorted(counts.items()))


def _apply(option: str, session: Session) -> None:
    import torch

    matmul, cudnn = _TF32_MATMUL_AND_CUDNN[option]
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = cudnn


def _verify(option: str, session: Session) -> Evidence:
    import torch

    parameters = {
        name: dtype_counts(module)
        for name in COMPONENTS
        if (module := getattr(session.pipe, name, None)) is not None
    }
    for name, counts in parameters.items():
        _require_dtype(option, name, counts, getattr(session.pipe, name))
    flags = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    if flags != _TF32_MATMUL_AND_CUDNN[option]:
        raise NotApplied(
            f"precision {option}: the TF32 switches (matmul, cuDNN) are {flags},"
            f" not {_TF32_MATMUL_AND_CUDNN[option]}; something set them after apply"
        )
    return {
        "parameters": parameters,
        "prediction": _prediction_dtype(option, session),
        "tf32_matmul": flags[0],
        "tf32_cudnn": flags[1],
        **_float32_rounding(option, session.device),
    }


def _require_dtype(option: str, component: str, counts: dict[str, int], module: Any) -> None:
    """Every unquantised parameter has the row's dtype, or float32 where the class itself keeps that."""
    expected = _DTYPES[option]
    allowed = {expected} | ({"float32"} if getattr(module, "_keep_in_fp32_modules", None) else set())
    strays = {name: n for name, n in counts.items() if name in _DTYPES.values() and name not in allowed}
    if strays or expected not in counts:
        raise NotApplied(f"precision {option}: {component} holds parameters {counts}, expected {expected}")


def _prediction_dtype(option: str, session: Session) -> str:
    """The dtype of what the transformer really returned in a one-step request."""
    seen: list[str] = []
    handle = session.pipe.transformer.proj_out.register_forward_hook(
        lambda _module, _inputs, output: seen.append(str(output.dtype).removeprefix("torch."))
    )
    try:
        session.run(steps=1)
    finally:
        handle.remove()
    if set(seen) != {_DTYPES[option]}:
        raise NotApplied(f"precision {option}: the transformer returned {sorted(set(seen)) or 'nothing'}")
    return seen[0]


def _float32_rounding(option: str, device: str) -> Evidence:
    """How far a float32 product on this GPU is from the float64 one: it shows which arithmetic ran,
    where the switches only show which was asked for. GPU only: no CPU has TF32."""
    if device == "cpu":
        return {}
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator).to(device) for _ in range(2))
    exact = a.double() @ b.double()
    error = ((a @ b - exact).norm() / exact.norm()).item()
    is_tf32 = error > _TF32_ERROR
    expected = _TF32_MATMUL_AND_CUDNN[option][0]
    if is_tf32 != expected and (expected is False or torch.cuda.get_device_capability()[0] >= 8):
        raise NotApplied(f"precision {option}: a float32 product on this GPU is off by {error:.1e}")
    return {"float32_product_relative_error": error}


def _option(id: str, title: str, *, needs_gpu: bool = False) -> Option:
    return Option(id, title, verify=partial(_verify, id), apply=partial(_apply, id), needs_gpu=needs_gpu)


OPTIONS = (
    _option("fp32", "FP32 (TF32 off)"),
    _option("tf32", "FP32 with TF32", needs_gpu=True),
    _option("fp16", "FP16"),
    _option("bf16", "BF16"),
)
