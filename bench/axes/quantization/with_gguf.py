"""GGUF: weights in blocks of 32, dequantised for every product by diffusers' ``GGUFLinear``.

A row reads its weights from a file, as users do. Where no file holds them yet the row writes one, in the
quantise phase, and says so; ``fluxbench gguf`` writes it ahead of time. ``gguf-file`` runs a file of the
user's own, K-quants included, which gguf-py can read but not write.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.axes.option import Unavailable
from bench.axes.quantization.layers import multiples_of
from bench.axes.quantization.quantised import Convert, Method, Package, Work

log = logging.getLogger(__name__)

PACKAGE = Package("gguf", "gguf==0.19.0")

CACHE_VARIABLE = "FLUXBENCH_GGUF_CACHE"
FILE_VARIABLE = "FLUXBENCH_GGUF_FILE"

_BLOCK = 32
_FLUX_BLOCKS = ("double_blocks.0.", "transformer_blocks.0.")
"""In the original names, and in diffusers'."""
_ADVICE = f"export {FILE_VARIABLE}=/path/to/flux1-dev-Q4_K_S.gguf"


def cache_folder() -> Path:
    """Shared by all rows; in a container it is mounted."""
    return Path(os.environ.get(CACHE_VARIABLE, Path(__file__).parents[3] / ".cache" / "gguf"))


def stem(model: str, component: str, quant_type: str) -> str:
    """How a cached file's name begins, for people: ``flux.1-dev-transformer-q8_0``."""
    return f"{model}-{component}-{quant_type.lower()}"


def _convert(quant_type: str, work: Work) -> dict[str, Any]:
    from bench.axes.quantization import gguf_file

    begun = time.perf_counter()
    path, written = gguf_file.cached(
        gguf_file.contents(work.module, work.names, quant_type, whole=False),
        stem(work.session.row.model, work.component, quant_type),
        cache_folder(),
        _logged(work.label),
    )
    found = time.perf_counter()
    weights = gguf_file.read(path, [f"{name}.weight" for name in work.names], work.session.device)
    _replace(work, weights)
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "written_by_this_row": written,
        "find_or_write_seconds": found - begun,
    }


def _method(convert: Convert, quant_type: str) -> Method:
    return Method(convert, rf"diffusers\.GGUFLinear\(GGUFParameter, uint8, {quant_type}\)")


q8_0, q5_1, q4_1, q4_0 = (
    _method(partial(_convert, quant_type), quant_type) for quant_type in ("Q8_0", "Q5_1", "Q4_1", "Q4_0")
)


def _replace(work: Work, weights: dict[str, Any]) -> None:
    from accelerate import init_empty_weights
    from diffusers.quantizers.gguf.utils import GGUFLinear

    for name, linear in work.linears():
        with init_empty_weights():
            replacement = GGUFLinear(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                compute_dtype=work.session.dtype,
            )
        replacement.weight = weights[f"{name}.weight"]
        replacement.bias = linear.bias
        work.replace(name, replacement.eval())


def _logged(label: str) -> Callable[[int, int], None]:
    """A line in the log at every quarter."""
    quarters: set[int] = set()

    def progress(done: int, total: int) -> None:
        quarter = 4 * done // total
        if quarter not in quarters:
            quarters.add(quarter)
            log.info("%s: %d %% of %.1f GB of weights written", label, 25 * quarter, total / 1e9)

    return progress


def misfit(in_features: int, _out_features: int) -> str | None:
    return multiples_of(_BLOCK, [("inputs", in_features)])


def _users_file(work: Work) -> dict[str, Any]:
    """The whole transformer out of a file in diffusers' or the original names. Which tensors are quantised,
    and how, is the file's to say; embedders and modulations may be."""
    from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig

    from bench.axes.quantization import gguf_file

    path = Path(os.environ[FILE_VARIABLE])
    session = work.session
    try:
        names = [tensor.name for tensor in gguf_file.opened(path).tensors]
    except ValueError as error:
        raise Unavailable(f"{work.label}: {error}; {_ADVICE}") from error
    if not any(block in name for name in names for block in _FLUX_BLOCKS):
        what = f"holds {', '.join(names[:2]) or 'no tensors'}, and no block of a FLUX transformer"
        raise Unavailable(f"{work.label}: {path} {what}; {_ADVICE}")
    with tempfile.TemporaryDirectory() as folder:
        work.module.save_config(Path(folder) / "transformer")
        loaded = FluxTransformer2DModel.from_single_file(
            str(path),
            config=folder,
            subfolder="transformer",
            quantization_config=GGUFQuantizationConfig(compute_dtype=session.dtype),
            dtype=session.dtype,
            device=session.device,
        )
    session.pipe.register_modules(transformer=loaded.to(session.device).eval())
    kinds = Counter(
        parameter.quant_type.name for parameter in loaded.parameters() if hasattr(parameter, "quant_type")
    )
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "tensors_by_type": dict(sorted(kinds.items())),
    }


users_file = _method(_users_file, r"\w+")


def require_users_file(label: str) -> None:
    named = os.environ.get(FILE_VARIABLE)
    if not named or not Path(named).is_file():
        what = f"{named} does not exist" if named else f"{FILE_VARIABLE} is not set"
        raise Unavailable(f"{label} runs a GGUF file of your own, and {what}; {_ADVICE}")
