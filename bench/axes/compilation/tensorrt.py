"""TensorRT, through Torch-TensorRT's backend of ``torch.compile``: one engine a component if all converts.

FLUX computes its rotary frequencies in float64, which TensorRT does not have (``truncate_double``). A build
that fails is an error here; the backend by itself would fall back to eager torch with a warning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench.axes.compilation import whole
from bench.axes.option import Evidence, NotApplied, Option, Session, Unavailable
from bench.axes.profiles import profile_step

if TYPE_CHECKING:
    from bench.matrix import Row

_INSTALL = "pip install torch-tensorrt==2.11.0 (with torch 2.11), or run the row in image tensorrt"
ENGINE = "tensorrt::execute_engine"
"""The operation by which Torch-TensorRT's C++ runtime runs an engine."""
_PRODUCT = re.compile(
    r"aten::(mm|bmm|addmm|baddbmm|_addmm_activation|_scaled_mm|_int_mm|convolution|_scaled_dot_product_\w+)"
)
"""What FLUX's time goes into."""


def _require(row: Row, device: str) -> None:
    needs = f"{row.label}: compilation tensorrt needs torch-tensorrt"
    if find_spec("torch_tensorrt") is None:
        raise Unavailable(f"{needs}, which is not installed; {_INSTALL}")
    try:
        import torch_tensorrt  # noqa: F401  registers the backend
    except Exception as error:  # it raises a bare Exception where TensorRT's libraries are missing
        raise Unavailable(f"{needs}, which does not load ({error}); {_INSTALL}") from error


def _apply(session: Session) -> None:
    whole.compile_forward(session, backend="tensorrt", options=_options(session.row.precision))


def _options(precision: str) -> dict[str, Any]:
    """For torch_tensorrt.dynamo.CompilationSettings (2.11.0). Which kernels were fastest is kept with the
    compile cache; the engines themselves, which hold the weights, are built anew by every process."""
    options: dict[str, Any] = {
        "truncate_double": True,
        "disable_tf32": precision == "fp32",
        "pass_through_build_failures": True,
        "use_python_runtime": False,
    }
    if cache := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        options["timing_cache_path"] = os.path.join(cache, "tensorrt-timing.bin")
    return options


def _verify(session: Session) -> Evidence:
    found = whole.require_whole_graphs("tensorrt", session)
    operations, _ = profile_step(session)
    return {**found, "engines_in_one_step": require_engines(operations, len(found["components"]))}


def require_engines(operations: Mapping[str, int], components: int) -> int:
    """``operations`` of the profile of a step. Raises NotApplied where fewer engines ran than there are
    components, or torch computed what an engine should have: Torch-TensorRT leaves to torch what it could not
    convert."""
    engines = operations.get(ENGINE, 0)
    if engines < components:
        raise NotApplied(
            f"compilation tensorrt: one step of {components} components ran {engines} engines ({ENGINE} among"
            f" {len(operations)} operations)"
        )
    outside = {name: count for name, count in operations.items() if _PRODUCT.fullmatch(name)}
    if outside:
        raise NotApplied(f"compilation tensorrt: beside {engines} engines one step ran {outside} in torch")
    return engines


TENSORRT = Option(
    "tensorrt",
    "TensorRT",
    verify=_verify,
    require=_require,
    apply=_apply,
    images=frozenset({"tensorrt"}),
    needs_gpu=True,
    needs_sm=80,
)
