"""What does not combine: the only place that says no.

A rule is a predicate over rows with its reason and the source of that reason. A row that a rule refuses
may stand in matrix.csv: it ends as ``unsupported`` with the reason, and nothing is run.
Adding a rule is one entry in RULES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.images import image_of
from bench.matrix import Row


@dataclass(frozen=True)
class Refusal:
    name: str
    reason: str
    source: str


@dataclass(frozen=True)
class Rule:
    name: str
    refuses: Callable[[Row], bool]
    reason: str
    source: str
    """Where the reason can be checked."""


def _gpu_option_on_cpu(row: Row) -> bool:
    from bench.axes import AXES

    return row.gpu is None and any(AXES[axis][option].needs_gpu for axis, option in row.stack.items())


def _half_only_kernel(row: Row) -> bool:
    return (
        row.gpu is not None
        and row.attention in {"cudnn", "native-flash"}
        and row.precision in {"fp32", "tf32"}
    )


RULES: tuple[Rule, ...] = (
    Rule(
        "gpu-option-on-cpu",
        _gpu_option_on_cpu,
        reason="an option of the stack exists on GPUs only",
        source="needs_gpu of the option's declaration in bench/axes/",
    ),
    Rule(
        "half-precision-attention",
        _half_only_kernel,
        reason="the cuDNN and FlashAttention kernels of CUDA take fp16 and bf16 only",
        source="torch aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, check_tensor_dtype",
    ),
    Rule(
        "no-image",
        lambda row: image_of(row) is None and not _gpu_option_on_cpu(row),
        reason="no container image holds every option of the stack",
        source="images of the options' declarations in bench/axes/",
    ),
)


def refusals(row: Row) -> list[Refusal]:
    """Every rule that forbids the row; empty when it may run. The row's options must be known ones."""
    return [Refusal(rule.name, rule.reason, rule.source) for rule in RULES if rule.refuses(row)]
