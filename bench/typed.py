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

    def fan_out(self, where: str) -> str:
        """``fluxbench fan-out --where "row=39,2069" --weights synthetic --cells 1x1``"""
        unsaid = {each.name: each.default for each in fields(self)}
        if self.weights == "tiny":  # its rows bring it
            unsaid["weights"] = self.weights
        said = ((name, getattr(self, name)) for name in ("weights", "budget", "processes", "cells"))
        changed = (f"--{name} {shlex.quote(value)}" for name, value in said if value != unsaid[name])
        return " ".join(["fluxbench fan-out", f'--where "{where}"', *changed])
