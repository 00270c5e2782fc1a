"""``fluxbench quality``: hold every attempt's pictures against the reference's and write quality.json.

Attempts without pictures (they were not committed, or the row failed) keep the quality.json they have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from bench import layout, pictures, quality, record
from bench.attempts import Attempt, Unreadable, read
from bench.matrix import Group, Row, references_of
from bench.pictures import PictureError
from bench.quality import Quality
from bench.typed import Asked

Distances = Callable[[Path, Path], tuple[quality.Prompt, ...]]
"""(attempt, reference) -> what lies between their pictures"""

NOT_PICTURED = frozenset({record.Code.NOT_APPLIED, record.Code.INVALID_OUTPUT})
"""Attempts whose pictures are not those of the row."""


class What(StrEnum):
    COMPUTED = "computed"
    CURRENT = "up to date"
    REFERENCE = "the reference"
    NO_REFERENCE = "no reference"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    attempt: Attempt
    what: What
    quality: Quality | None = None
    message: str = ""


@dataclass(frozen=True)
class Beside:
    """Whose pictures an attempt's are held against."""

    reference: Attempt
    floor: list[Attempt]
    """Exact changes of the reference."""
    parent: Attempt | None


def pictured(results: Path) -> tuple[list[Attempt], list[str]]:
    """Attempts with pictures, oldest first, and a sentence for each result that cannot be read."""
    found, unreadable = [], []
    for folder in layout.attempts(results):
        if not pictures.prompts(folder):
            continue
        try:
            attempt = read(folder)
        except (OSError, Unreadable) as why:
            unreadable.append(f"{folder / layout.RESULT}: {why}; `fluxbench check` lists every fault")
            continue
        result = attempt.result
        if result.status.code not in NOT_PICTURED and any(cell.latency for cell in result.cells):
            found.append(attempt)
    return sorted(found, key=lambda attempt: attempt.result.attempt), unreadable


def judge(attempts: Iterable[Attempt], wanted: Path, again: bool = False) -> Iterator[Outcome]:
    """Writes quality.json for every attempt at or below ``wanted`` whose own is missing or stale;
    ``again``: measures the pictures of all of them once more."""
    everything = list(attempts)
    distances = cache(_distances)  # a noise floor is shared by many attempts
    for attempt in everything:
        if not attempt.folder.is_relative_to(wanted):
            continue
        peers = [other for other in everything if _comparable(other, attempt)]
        reference = best([other for other in peers if other.row.is_reference], attempt.host_id)
        if reference is None:
            yield Outcome(attempt, What.NO_REFERENCE)
        elif reference is attempt:
            yield Outcome(attempt, What.REFERENCE)
        else:
            # Nothing is as close as itself: an exact option that went wrong would pass.
            floor = [each for each in variants(peers, reference) if each.row.stack != attempt.row.stack]
            parent = best([other for other in peers if other.row.row == attempt.row.parent], attempt.host_id)
            beside = Beside(reference, floor, None if parent and parent.row.is_reference else parent)
            yield _judge_one(attempt, beside, distances, again)


def best(candidates: Iterable[Attempt], host: str | None) -> Attempt | None:
    """The newest on this host, or else the newest anywhere."""
    return max(candidates, key=lambda each: (each.host_id == host, each.result.attempt), default=None)


def variants(peers: Iterable[Attempt], reference: Attempt) -> list[Attempt]:
    """One attempt at each row that is the reference but for an exact change: they make the noise floor."""
    rows: dict[tuple[str, ...], list[Attempt]] = {}
    for peer in peers:
        if quality.is_exact_variant(peer.row):
            rows.setdefault(tuple(peer.row.stack.values()), []).append(peer)
    chosen = [best(group, reference.host_id) for group in rows.values()]
    return [each for each in chosen if each is not None]


def _comparable(one: Attempt, other: Attempt) -> bool:
    return quality.same_task(one.row, one.result) == quality.same_task(other.row, other.result)


def _judge_one(attempt: Attempt, beside: Beside, distances: Distances, again: bool) -> Outcome:
    known = _known(attempt)
    try:
        if known and not again and _still_compared(known, attempt, beside):
            prompts, noise, parent = tuple(known.prompts), known.noise_floor, known.parent
        else:
            prompts = distances(attempt.folder, beside.reference.folder)
            noise = [
                _held(distances(variant.folder, beside.reference.folder), variant) for variant in beside.floor
            ]
            above = beside.parent
            parent = _held(distances(attempt.folder, above.folder), above) if above else None
    except PictureError as error:
        return Outcome(attempt, What.FAILED, message=str(error))
    current = quality.assemble(attempt.result, _named(beside.reference), prompts, noise, parent)
    if current == known:
        return Outcome(attempt, What.CURRENT, known)
    quality.save(current, attempt.folder)
    return Outcome(attempt, What.COMPUTED, current)


def _known(attempt: Attempt) -> Quality | None:
    """What stands in quality.json; None also where it is damaged or of another schema: computed anew."""
    try:
        return quality.load(attempt.folder)
    except ValueError:
        return None


def _still_compared(known: Quality, attempt: Attempt, beside: Beside) -> bool:
    """Whether the distances in ``known`` are those between these attempts; the tier follows from config and
    is not asked."""
    return (
        (known.attempt, known.fingerprint) == (attempt.result.attempt, attempt.result.fingerprint)
        and known.reference == _named(beside.reference)
        and [each.against for each in known.noise_floor] == [_named(each) for each in beside.floor]
        and (known.parent and known.parent.against) == (beside.parent and _named(beside.parent))
        and [prompt.id for prompt in known.prompts] == pictures.prompts(attempt.folder)
    )


def _named(attempt: Attempt) -> quality.Against:
    return quality.against(attempt.row, attempt.result)


def _held(prompts: tuple[quality.Prompt, ...], other: Attempt) -> quality.HeldAgainst:
    return quality.HeldAgainst(**quality.medians(prompts).model_dump(), against=_named(other))


def _distances(attempt: Path, reference: Path) -> tuple[quality.Prompt, ...]:
    ours, theirs = pictures.prompts(attempt), pictures.prompts(reference)
    if ours != theirs:
        missing = ", ".join(sorted(set(ours) ^ set(theirs)))
        raise PictureError(
            f"{attempt} and its reference {reference} do not hold the same quality prompts ({missing});"
            " run the row that lacks them again"
        )
    return tuple(
        quality.Prompt(id=prompt, **pictures.distance(attempt, reference, prompt)._asdict())
        for prompt in ours
    )


def run(wanted: Path, again: bool, matrix: Sequence[Row], say: Callable[[str], None]) -> int:
    """One line an attempt, and one for attempts that lack the same reference; 1 when pictures could not be
    compared, 2 where there is no attempt at all."""
    wanted = wanted.resolve()
    root = layout.root_of(wanted)
    if not any(folder.is_relative_to(wanted) for folder in layout.attempts(root)):
        say(f"{wanted} holds no attempt; `make demo` or `make bench ROW=42` makes some")
        return 2
    attempts, unreadable = pictured(root)
    failed = len(unreadable)
    for sentence in unreadable:
        say(sentence)
    outcomes = list(judge(attempts, wanted, again))
    lacking = [outcome.attempt for outcome in outcomes if outcome.what is What.NO_REFERENCE]
    for outcome in outcomes:
        failed += outcome.what is What.FAILED
        if outcome.what is not What.NO_REFERENCE:
            say(_line(outcome))
    for sentence in _wanting(lacking, root, matrix):
        say(sentence)
    if not outcomes:
        say(f"no attempt with quality pictures under {wanted}")
    return 1 if failed else 0


def _wanting(attempts: Iterable[Attempt], root: Path, matrix: Sequence[Row]) -> Iterator[str]:
    """For each reference that attempts lack, who they are and the command that draws its pictures."""
    lacking: dict[tuple[Group, str], list[Row]] = {}
    for attempt in attempts:
        lacking.setdefault((attempt.row.group, attempt.weights), []).append(attempt.row)
    for (_, weights), rows in lacking.items():
        labels = ", ".join(dict.fromkeys(row.label for row in rows))
        count = f"{len(rows)} attempt{'s' * (len(rows) != 1)}"
        asked = Asked(weights=weights, budget="probe", cells="1x1", results=os.path.relpath(root))
        references = references_of(rows, matrix)
        runs = "; ".join(f"`{asked.bench(row)}` runs it, {row.label}" for row in references)
        yield f"no reference for {labels}, {count}: {runs or 'the matrix has none'}"


def _line(outcome: Outcome) -> str:
    start = f"{outcome.attempt.row.label}, attempt {outcome.attempt.result.attempt}: "
    found = outcome.quality
    if found is None:
        return start + ": ".join(part for part in (outcome.what, outcome.message) if part)
    psnr = "identical" if found.psnr_db is None else f"{found.psnr_db:.1f} dB"
    floor = max((each.latent_relative_error for each in found.noise_floor), default=None)
    noise = "no noise floor yet" if floor is None else f"noise floor {floor:.4f}"
    return (
        f"{start}{found.tier}, as most prompts; medians of {len(found.prompts)} prompts: latent error"
        f" {found.latent_relative_error:.4f} ({noise}), PSNR {psnr}, SSIM {found.ssim:.4f};"
        f" against {found.reference.attempt}; {found.meaning}; {outcome.what}"
    )
