"""What is odd about a row that may run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.axes.parallel.degrees import degrees_of
from bench.matrix import PLAIN, Row


@dataclass(frozen=True)
class Flag:
    name: str
    marks: Callable[[Row], bool]
    detail: str
    source: str


FLAGS: tuple[Flag, ...] = (
    Flag(
        "eager-torchao-dynamic",
        lambda row: (
            row.gpu is not None
            and row.compilation == PLAIN["compilation"]
            and row.quantization.startswith(("torchao-int8dq", "torchao-fp8dq"))
        ),
        detail="TorchAO's dynamic quantisation is meant to be compiled: without, 120 s an image on an H100",
        source="FACTS.md section 7",
    ),
    Flag(
        "eager-ranks",
        lambda row: (
            row.gpu is not None
            and row.compilation == PLAIN["compilation"]
            and degrees_of(row.parallel) is not None
        ),
        detail="eager ranks are bound by launches: Ulysses took 6.0 s on two H200s where one took 4.97",
        source="FACTS.md section 1",
    ),
    Flag(
        "idle-gpus",
        lambda row: row.gpu_count > 1 and row.parallel == PLAIN["parallel"],
        detail="only one of the hardware's GPUs works",
        source="DESIGN.md: single-GPU stacks stand under x1 and cpu only",
    ),
    Flag(
        "int4-at-many-tokens",
        lambda row: row.gpu is not None and row.quantization == "torchao-int4wo",
        detail="TorchAO's INT4 kernel is made for few tokens: about ten times slower than bf16 at 4608",
        source="FACTS.md section 7",
    ),
)
