"""TorchAO: ``quantize_`` puts a tensor subclass in the place of each weight; the module stays torch's.

It also changes inductor's settings for the whole process ("recommended" ones; coordinate descent tuning is
why compiling takes minutes). They are left as they are, for that is what its users get, and recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.axes.quantization.layers import multiples_of
from bench.axes.quantization.quantised import Convert, Method, Package, Work

PACKAGE = Package("torchao", "torchao==0.18.0")
GPU_IMAGES = frozenset({"torch", "sage", "xdit", "tensorrt"})
IMAGES = GPU_IMAGES | {"cpu"}
BF16_ONLY = frozenset({"bf16"})
"""torchao 0.18 asserts it: of weights scaled by row (``Float8DynamicActivationFloat8WeightConfig``), and of
weights packed for tinygemm (``Int4TilePackedTo4dTensor``)."""

_SLOW_EAGER = (
    "activations are quantised on every call by many small kernels, which only torch.compile fuses:"
    " eager is an order of magnitude slower than not quantised"
)


def _converter(config: Callable[[], Any], *, dynamic: bool = False) -> Convert:
    """``config`` makes torchao's configuration; it runs only where torchao imports."""

    def convert(work: Work) -> dict[str, Any]:
        from torchao.quantization import quantize_

        names = set(work.names)
        before = _inductor_settings()
        quantize_(work.module, config(), filter_fn=lambda _module, name: name in names)
        facts: dict[str, Any] = {"inductor_settings_changed": changes(before, _inductor_settings())}
        if dynamic and work.session.row.compilation == "none":
            facts["anomaly"] = _SLOW_EAGER
        return facts

    return convert


def _inductor_settings() -> dict[str, Any]:
    import torch._inductor.config

    return dict(torch._inductor.config.get_config_copy())


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[str]]:
    """setting -> [before, after] of those that differ."""
    return {
        name: [str(before.get(name)), str(value)]
        for name, value in sorted(after.items())
        if before.get(name) != value
    }


def _int8_weight_only() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def _int8_dynamic() -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig()


def _fp8_weight_only() -> Any:
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig()


def _fp8_dynamic(granularity: str) -> Any:
    from torchao import quantization

    return quantization.Float8DynamicActivationFloat8WeightConfig(
        granularity=getattr(quantization, granularity)()
    )


def _int4_weight_only() -> Any:
    """Packed for tinygemm, the one layout that needs no package beside torch; groups of 128."""
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    return Int4WeightOnlyConfig(int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D)


int8_weight_only = Method(_converter(_int8_weight_only), r"Linear\(Int8Tensor, int8, a scale a row\)")
int8_dynamic = Method(
    _converter(_int8_dynamic, dynamic=True),
    r"Linear\(Int8Tensor, int8, a scale a row, inputs in int8, a scale a row\)",
)
fp8_weight_only = Method(
    _converter(_fp8_weight_only), r"Linear\(Float8Tensor, float8_e4m3fn, a scale a row\)"
)
fp8_dynamic_row = Method(
    _converter(lambda: _fp8_dynamic("PerRow"), dynamic=True),
    r"Linear\(Float8Tensor, float8_e4m3fn, a scale a row, inputs in float8, a scale a row\)",
)
fp8_dynamic_tensor = Method(
    _converter(lambda: _fp8_dynamic("PerTensor"), dynamic=True),
    r"Linear\(Float8Tensor, float8_e4m3fn, a scale a tensor, inputs in float8, a scale a tensor\)",
)
int4_weight_only = Method(
    _converter(_int4_weight_only), r"Linear\(Int4TilePackedTo4dTensor, int32, a scale for 128 weights\)"
)


def fp8_misfit(in_features: int, out_features: int) -> str | None:
    """torchao leaves such a weight as it is, with a log line of level info (0.18, ``_fp8_mm_compat``)."""
    return multiples_of(16, (("inputs", in_features), ("outputs", out_features)))


def int4_misfit(in_features: int, _out_features: int) -> str | None:
    """torchao leaves a weight that does not divide into groups as it is."""
    return multiples_of(128, [("inputs", in_features)])
