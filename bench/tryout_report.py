"""What ``fluxbench construct`` and ``fluxbench correctness`` try, and the JSON that they leave."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import Field

from bench import correctness, identity, tryout
from bench.axes import AXES
from bench.axes.option import Unavailable
from bench.correctness import Case, Compared, beside, needs_ranks
from bench.covering import Axes, Stack, covering, singles
from bench.listing import stack_text
from bench.matrix import BASELINE, CONTROLS, CORE_CONTROLS, REFERENCE, TASKS, Row, layers
from bench.record import Strict, write_atomically
from bench.rules import refusal
from bench.tryout import Tried


def axes(hardware: str) -> Axes:
    """The plain option first on every axis. Of precision that is bf16 on a GPU and fp32 on a CPU, where half
    precision takes ten times as long. What needs several ranks is left out."""
    plain = BASELINE if hardware == "cpu" else REFERENCE
    return {
        axis: (plain[axis], *(o for o in options if o != plain[axis] and not needs_ranks(axis, o)))
        for axis, options in AXES.items()
    }


def rows(hardware: str, *, pairs: bool) -> list[Row]:
    """Each option once, then, when ``pairs``, what covers every two options. Without repetition."""

    def allowed(stack: Stack) -> bool:
        return not refusal(tryout.tiny_row(hardware, stack))

    stacks = singles(axes(hardware)) + (covering(axes(hardware), allowed) if pairs else [])
    unique = {tuple(stack.items()): stack for stack in stacks}
    return [tryout.tiny_row(hardware, stack) for stack in unique.values()]


def cases(hardware: str, *, extended: bool) -> Iterator[Case]:
    controls = CONTROLS if extended else CORE_CONTROLS
    for task in TASKS:
        for control in controls:
            yield from correctness.rows(hardware, task, control)


class Report(Strict):
    hardware: str
    packages: dict[str, str]

    @classmethod
    def read(cls, path: Path | None, hardware: str) -> Self:
        """What is there already, to go on from. Raises ValueError where other hardware or packages left it:
        the two would not be one list, and to begin anew would lose the first."""
        empty = cls(hardware=hardware, packages=identity.packages())
        if path is None or not path.is_file():
            return empty
        found = cls.model_validate_json(path.read_bytes())
        if found.hardware != hardware:
            raise ValueError(f"{path} is of {found.hardware}, not {hardware}; name another file")
        if others := sorted(set(found.packages.items()) ^ set(empty.packages.items())):
            names = ", ".join(dict.fromkeys(name for name, _ in others))
            raise ValueError(
                f"{path} was made with other versions of {names}; name another file or remove it"
            )
        return found

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1) + "\n")


class Constructed(Report):
    stacks: list[Tried] = Field(default_factory=list)

    def holds(self, row: Row) -> bool:
        return any(tried.stack == row.stack for tried in self.stacks)

    def add(self, tried: Tried) -> str:
        self.stacks.append(tried)
        name = stack_text(tryout.tiny_row(self.hardware, tried.stack))
        return f"{name}: {tried.ended} ({tried.seconds} s) {tried.reason}"

    def constructed(self) -> dict[str, Counter[str]]:
        """axis -> option -> stacks with it that were constructed."""
        counts: dict[str, Counter[str]] = {axis: Counter() for axis in AXES}
        for tried in self.stacks:
            if tried.ended == "constructed":
                for axis, option in tried.stack.items():
                    counts[axis][option] += 1
        return counts

    def lacking(self, axis: str, option: str) -> str:
        """What this machine lacks for an option, as the plainest stack with it says; empty if none does."""
        unavailable = (t for t in self.stacks if t.stack[axis] == option and t.ended == "unavailable")
        plainest = min(unavailable, key=lambda tried: len(layers(tried.stack)), default=None)
        if plainest is None:
            return ""
        return _without_remedy(plainest.reason, f"{axis} {option} ")

    def failures(self) -> list[Tried]:
        return [tried for tried in self.stacks if tried.ended in {"error", "not_applied"}]

    def summary(self) -> str:
        ended = Counter(tried.ended for tried in self.stacks)
        lines = [f"{len(self.stacks)} stacks: " + ", ".join(f"{n} {word}" for word, n in ended.most_common())]
        for axis, counts in self.constructed().items():
            never = [option for option in AXES[axis] if not counts[option]]
            built = f"{len(counts)} of {len(AXES[axis])} options in {counts.total()} constructed stacks"
            lines.append(f"{axis}: {built}" + (f"; never {', '.join(never)}" if never else ""))
        return "\n".join(lines)


RAISED_FOR = re.compile(Unavailable.__name__ + r": row \S+ \([^()]*\): ")
"""How a reason in the JSON begins; how the row is named there may be worded anew."""


def _without_remedy(reason: str, subject: str) -> str:
    """``needs flash-attn (not found)`` of ``Unavailable: row 1 (...): attention flash2 needs flash-attn (not
    found); pip install flash-attn``. What is worded otherwise stays whole."""
    raised_for = RAISED_FOR.match(reason)
    if raised_for is None:
        return reason
    said = reason[raised_for.end() :].removeprefix(subject)
    ends = (found.start() for found in re.finditer("; ", said))
    # A quoted error stands in brackets and may hold a semicolon of its own.
    outside = (end for end in ends if said.count("(", 0, end) == said.count(")", 0, end))
    return said[: next(outside, None)]


class Correct(Report):
    compared: list[Compared] = Field(default_factory=list)

    def holds(self, case: Case) -> bool:
        axis, option, row = case
        wanted = (axis, option, row.task, row.control, beside(axis, row))
        return any((c.axis, c.option, c.task, c.control, c.beside) == wanted for c in self.compared)

    def add(self, compared: Compared) -> str:
        self.compared.append(compared)
        with_ = "".join(f" with {option}" for option in compared.beside.values())
        case = f"{compared.task}+{compared.control}, {compared.precision}"
        name = f"{compared.axis} {compared.option}{with_} on {case}"
        if compared.error is None:
            return f"{name}: {compared.ended} {compared.reason}"
        verdict = "held" if compared.held else "NOT HELD"
        return f"{name}: error {compared.error:.2e}, tolerance {compared.tolerance:g}: {verdict}"

    def failures(self) -> list[Compared]:
        return [c for c in self.compared if c.held is False or c.ended in {"error", "not_applied", "timeout"}]

    def summary(self) -> str:
        held = sum(c.held is True for c in self.compared)
        judged = sum(c.held is not None for c in self.compared)
        others = Counter(c.ended for c in self.compared if c.held is None)
        rest = "".join(f", {n} {word}" for word, n in others.most_common())
        return f"{held} of {judged} comparisons within tolerance{rest}"
