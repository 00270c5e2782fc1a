"""Which stacks to try so that little is left untried: every option once, then every pair of options once.

All stacks together are hundreds of thousands; what fails, fails almost always between two options. Pure and
deterministic: the same axes give the same list on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations

Axes = Mapping[str, tuple[str, ...]]
"""axis -> its options, the plain one first."""
Stack = dict[str, str]
Pair = frozenset[tuple[str, str]]
"""Two options of two axes."""
Allowed = Callable[[Stack], bool]


def singles(axes: Axes) -> list[Stack]:
    """The plain stack, then each other option alone."""
    plain = {axis: options[0] for axis, options in axes.items()}
    alone = [{**plain, axis: option} for axis, options in axes.items() for option in options[1:]]
    return [plain, *alone]


def pairs_of(stack: Stack) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(stack.items(), 2)}


def covering(axes: Axes, allowed: Allowed) -> list[Stack]:
    """Stacks in which every two options of different axes meet at least once (a pairwise covering design).

    Two options that are not allowed together, all else plain, come as just that stack: it is for the caller
    to say why. Every other stack of the list is allowed.
    """
    plain = singles(axes)[0]
    wanted = list(_all_pairs(axes))
    open_ = set(wanted)
    stacks = []
    for pair in wanted:
        if pair not in open_:
            continue
        stack = {**plain, **dict(pair)}
        if allowed(stack):
            stack = _filled(stack, {axis for axis, _ in pair}, axes, allowed, open_)
            open_ -= pairs_of(stack)
        open_.discard(pair)
        stacks.append(stack)
    return stacks


def _filled(stack: Stack, fixed: set[str], axes: Axes, allowed: Allowed, open_: set[Pair]) -> Stack:
    """Each axis that is still free takes the allowed option with which most new pairs meet."""
    for axis, options in axes.items():
        if axis in fixed:
            continue
        candidates = [stack | {axis: option} for option in options]
        stack = max(filter(allowed, candidates), key=lambda candidate: len(pairs_of(candidate) & open_))
    return stack


def _all_pairs(axes: Axes) -> Iterator[Pair]:
    for (first, firsts), (second, seconds) in combinations(axes.items(), 2):
        for one in firsts:
            for other in seconds:
                yield frozenset({(first, one), (second, other)})
