"""precision: the dtype that weights are loaded in, and whether float32 arithmetic may be rounded to TF32.

``models.load`` reads the weights in ``torch_dtype(option)``; ``apply`` sets the two TF32 switches, which are
process-wide. cuDNN's stands *on* by default in torch, so an fp32 row that leaves it alone would run the
VAE's convolutions in TF32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from bench.axes.option import Evidence, NotApplied, Option, Session
from bench.axes.quantization import census

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
    """Numbers that a module holds in memory, by dtype name: of parameters, of the tensors that quantised ones
    wrap (they report the dtype of what they replaced), and of our fp8 linears' buffers."""
    counts: Counter[str] = Counter()
    buffers = (buffer for buffer in module.buffers() if buffer.is_floating_point())
    for tensor in chain(module.parameters(), buffers):
        for leaf in census.leaves(tensor):
            counts[_name(leaf.dtype)] += leaf.numel()
    return dict(sorted(counts.items()))


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


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
    found = {_name(parameter.dtype) for parameter in module.parameters() if not census.wraps(parameter)}
    strays = found & set(_DTYPES.values()) - allowed
    if strays or expected not in found:
        raise NotApplied(f"precision {option}: {component} holds parameters {counts}, expected {expected}")


def _prediction_dtype(option: str, session: Session) -> str:
    """The dtype of what the transformer really returned in a one-step request."""
    seen: list[str] = []
    # A hook on the model, not on its last layer: where the whole model is compiled, that one is not called.
    handle = session.pipe.transformer.register_forward_hook(
        lambda _module, _inputs, output: seen.append(_name(_first(output).dtype))
    )
    try:
        session.run(steps=1)
    finally:
        handle.remove()
    if set(seen) != {_DTYPES[option]}:
        raise NotApplied(f"precision {option}: the transformer returned {sorted(set(seen)) or 'nothing'}")
    return seen[0]


def _first(output: Any) -> Any:
    """The prediction; xDiT's PipeFusion returns it with the text, as a pair inside the tuple."""
    return _first(output[0]) if isinstance(output, tuple) else output


def _float32_rounding(option: str, device: str) -> Evidence:
    """How far float32 products on this GPU are from float64 ones: that shows which arithmetic ran, where the
    switches only show which was allowed. GPU only: no CPU has TF32, nor has a GPU before compute 8.0."""
    import torch

    if device == "cpu" or torch.cuda.get_device_capability() < (8, 0):
        return {}
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Any:
        return torch.randn(shape, generator=generator).to(device)

    errors = {
        "matmul": _relative_error(torch.matmul, draw(512, 512), draw(512, 512)),
        "cudnn": _relative_error(torch.nn.functional.conv2d, draw(1, 128, 64, 64), draw(128, 128, 3, 3)),
    }
    for (name, error), allowed in zip(errors.items(), _TF32_MATMUL_AND_CUDNN[option], strict=True):
        # Where TF32 is allowed, a library may still choose not to use it.
        if error > _TF32_ERROR and not allowed:
            raise NotApplied(
                f"precision {option}: {name} rounds float32 to TF32 (relative error {error:.1e})"
            )
    if option == "tf32" and errors["matmul"] < _TF32_ERROR:
        raise NotApplied(f"precision tf32: matmul is exact to {errors['matmul']:.1e}, so TF32 did not run")
    return {"float32_relative_error": errors}


def _relative_error(product: Callable[[Any, Any], Any], a: Any, b: Any) -> float:
    exact = product(a.double(), b.double())
    return float((product(a, b) - exact).norm() / exact.norm())


def _option(id: str, title: str, *, needs_gpu: bool = False) -> Option:
    return Option(id, title, verify=partial(_verify, id), apply=partial(_apply, id), needs_gpu=needs_gpu)


OPTIONS = (
    _option("fp32", "FP32 (TF32 off)"),
    _option("tf32", "FP32 with TF32", needs_gpu=True),
    _option("fp16", "FP16"),
    _option("bf16", "BF16"),
)
