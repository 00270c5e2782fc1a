"""What does not combine: the only place that says no.

A rule says why it refuses a row, or nothing; the first of RULES that refuses a row names the refusal, so
rules go from the particular to the general. A row that a rule refuses may stand in matrix.csv: it ends as
``unsupported`` with the reason, and nothing is run. Adding a rule is one entry in ``stacks`` or ``ranks``.

A flag refuses nothing: it says beforehand what is odd about a row that is allowed.
"""

from __future__ import annotations

from bench.matrix import Row
from bench.rules import ranks, stacks
from bench.rules.flags import FLAGS, Flag
from bench.rules.rule import Refusal

RULES = (*stacks.RULES, *ranks.RULES, *stacks.LAST_RULES)


def refusal(row: Row, weights: str | None = None) -> Refusal | None:
    """The first rule that forbids the row; None when it may run. The row's options must be known ones.

    ``weights``: their source, where it is known; without it the rules about weights are silent.
    """
    for rule in RULES:
        if reason := rule.reason(row, weights):
            return Refusal(rule.name, reason, rule.source)
    return None


def flags(row: Row) -> list[Flag]:
    """What to know of a row that may run."""
    return [flag for flag in FLAGS if flag.marks(row)]
