"""Rows as people and programs read them, with what is derived: image and phase."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bench.images import image_of
from bench.matrix import Row, layers
from bench.phases import phase_of
from bench.rules import flags, refusal

if TYPE_CHECKING:
    from rich.table import Table


def stack_text(row: Row) -> str:
    """``bf16 + cudnn``: the precision and what is not plain."""
    return " + ".join(layers(row.stack).values())


def as_dict(row: Row) -> dict[str, Any]:
    """The row's columns, then its phase, its image, the rule that refuses it and what flags it."""
    refused = refusal(row)
    return {
        **row.model_dump(mode="json"),
        "phase": phase_of(row),
        "image": image_of(row),
        "refused_by": refused and refused.name,
        "flags": [flag.name for flag in flags(row)],
    }


def as_table(rows: Iterable[Row]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("row", "hardware", "model", "pixels", "steps", "use case", "stack", "phase", "image"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in {"row", "pixels"} else "left")
    table.add_column("parent", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for row in rows:
        said = [f"refused: {refused.name}"] if (refused := refusal(row)) else []
        said += [f"flagged: {flag.name}" for flag in flags(row)]
        table.add_row(
            row.row,
            row.hardware,
            row.model,
            str(row.size),
            str(row.steps),
            row.task if row.control == "none" else f"{row.task} + {row.control}",
            stack_text(row),
            str(phase_of(row)),
            image_of(row) or "none",
            row.parent or "",
            f"{row.why} ({'; '.join(said)})" if said else row.why,
        )
    return table
