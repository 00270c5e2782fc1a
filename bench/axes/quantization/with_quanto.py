"""optimum-quanto: weights in int8, fp8 or int4, dequantised for each product.

fp8 is stored in quanto's portable form on every device: for Marlin's quanto would compile CUDA at first use.
int4 in bf16 runs on a kernel of torch's own. In another dtype it needs an extension of quanto's. On a GPU
(fp16: AWQ's kernel) that is the one compiled when the image was built, or none: minutes of nvcc are no use of
rented time. On a CPU it is compiled with g++ at first use, or was when the image was built.
"""

from __future__ import annotations

import shutil
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from bench.axes.option import Unavailable
from bench.axes.quantization.layers import multiples_of
from bench.axes.quantization.quantised import Convert, Method, Package, Work

PACKAGE = Package("optimum.quanto", "optimum-quanto==0.2.7")
IMAGES = frozenset({"cpu", "torch", "sage", "xdit", "tensorrt"})
INT4_GPU_PRECISIONS = frozenset({"bf16", "fp16"})

_INT4_GROUP = 128


def _convert(qtype: str, work: Work) -> dict[str, Any]:
    import torch
    from optimum.quanto import QLinear, qint4, qtypes, quantize_weight

    weights = qtypes[qtype]
    for name, linear in work.linears():
        replacement = QLinear.from_module(linear, weights=weights)
        if weights is qint4:
            replacement.freeze()
        else:
            scale = replacement.optimizer(replacement.weight, qtype=weights, axis=0)
            stored = quantize_weight(replacement.weight, weights, axis=0, scale=scale, optimized=False)
            replacement.weight = torch.nn.Parameter(stored, requires_grad=False)
        work.replace(name, replacement.eval())
    return {}


def _method(convert: Convert, qtype: str, scales: str) -> Method:
    """The class of the weight is Quanto's choice, by dtype and device."""
    return Method(convert, rf"optimum\.QLinear\(\w*Weight\w+Tensor, \w+, {qtype}, {scales}\)")


int8 = _method(partial(_convert, "qint8"), "qint8", "a scale a row")
fp8 = _method(partial(_convert, "qfloat8_e4m3fn"), "qfloat8_e4m3fn", "a scale a row")


def _int4(work: Work) -> dict[str, Any]:
    import torch

    if work.session.dtype is not torch.bfloat16:
        if work.session.device == "cuda":
            _require_prebuilt(work)
        elif not _loaded_prebuilt("quanto_cpp"):
            _require_compiler(work)
    return _convert("qint4", work)


int4 = _method(_int4, "qint4", f"a scale for {_INT4_GROUP} weights")


def _loaded_prebuilt(name: str) -> bool:
    """Whether the extension has been compiled for this torch. It is imported as it is then: quanto would ask
    ninja again whether it is current, which writes into a folder that a container may only read."""
    import torch
    from optimum.quanto.library.extensions.extension import get_extension

    extension = get_extension(name)
    folder = Path(extension.build_directory)
    version, library = folder / "pytorch_version.txt", folder / f"{name}.so"
    if not library.exists() or not version.exists() or version.read_text().strip() != torch.__version__:
        return False
    if extension._lib is None:
        spec = spec_from_file_location(name, library)
        assert spec is not None
        assert spec.loader is not None
        extension._lib = module_from_spec(spec)
        spec.loader.exec_module(extension._lib)
    return True


def _require_prebuilt(work: Work) -> None:
    if not _loaded_prebuilt("quanto_cuda"):
        raise Unavailable(
            f"{work.label} in {work.session.row.precision} needs Quanto's CUDA extension, which is not"
            " compiled here; images hold it, `python docker/build_quanto.py docker/nvcc/requirements.txt`"
            " compiles it into an environment of their locks, or use precision bf16"
        )


def _require_compiler(work: Work) -> None:
    if missing := [tool for tool in ("ninja", "g++") if shutil.which(tool) is None]:
        raise Unavailable(
            f"{work.label} in {work.session.row.precision} compiles a C++ extension at first use and needs"
            f" {' and '.join(missing)}; apt-get install ninja-build g++, or use precision bf16"
        )


def int4_misfit(in_features: int, _out_features: int) -> str | None:
    return multiples_of(_INT4_GROUP, [("inputs", in_features)])
