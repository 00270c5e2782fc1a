"""What a person types to run a row: every message that names such a command gets it from here."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields

from bench.matrix import Row


@dataclass(frozen=True)
class Asked:
    """Variables of the Makefile, with its defaults (a test)."""

    weights: str = "hub"
    budget: str = "quick"
    processes: str = "1"
    cells: str = "usual"
    results: str = "results"
    executor: str = ""
    registry: str = ""

    def bench(self, row: Row) -> str:
        """``make bench ROW=39 WEIGHTS=synthetic``: what was asked for, without what goes without saying."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        usual = {each.name: each.default for each in fields(self)}
        if row.model == "tiny":  # brings its own
            said["weights"] = usual["weights"]
        changed = (f"{name.upper()}={shlex.quote(said[name])}" for name in said if said[name] != usual[name])
        return " ".join(["make bench", f"ROW={row.row}", *changed])
