"""What the report says of an option that could not be had: its reason, as far as a table has room for it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bench import tryout
from bench.axes import require
from bench.axes.option import Unavailable
from bench.matrix import REFERENCE
from bench.tryout import Tried
from bench.tryout_report import Constructed


def lacking(*stacks: Tried, option: tuple[str, str] = ("attention", "flash2")) -> str:
    return Constructed(hardware="h100x1", packages={}, stacks=list(stacks)).lacking(*option)


def unavailable(said: str, **changes: str) -> Tried:
    """FlashAttention 2 tried for real, but for what it raises: ``said`` of its row."""
    row = tryout.tiny_row("h100x1", {**REFERENCE, "attention": "flash2", **changes})

    def work() -> None:
        raise Unavailable(f"{row.label}: {said}")

    ended, reason = tryout.attempt(work)
    return Tried(stack=row.stack, ended=ended, reason=reason)


@pytest.mark.parametrize(
    ("axis", "option"), [("attention", "cudnn"), ("attention", "flash2"), ("compilation", "tensorrt")]
)
def test_what_an_option_itself_raises_is_said_without_row_option_and_remedy(axis: str, option: str) -> None:
    row = tryout.tiny_row("h100x1", {**REFERENCE, axis: option})
    ended, reason = tryout.attempt(lambda: require(row, "cpu"))
    tried = Tried(stack=row.stack, ended=ended, reason=reason)
    assert lacking(tried, option=(axis, option)) == "needs an NVIDIA GPU and this row runs on the CPU"


@pytest.mark.parametrize(
    ("said", "lacks"),
    [
        ("attention flash2 needs it (no file; no luck); pip install it", "needs it (no file; no luck)"),
        ("attention flash2 needs it (f(x): no; pip install it", "needs it (f(x): no; pip install it"),
        ("attention flash2 needs flash-attn", "needs flash-attn"),
        ("no tiny weights in /here; get them back", "no tiny weights in /here"),
        ("vae parallel needs several ranks; start them", "vae parallel needs several ranks"),
    ],
    ids=["semicolon in brackets", "bracket left open", "no remedy", "not of an option", "of another option"],
)  # fmt: skip
def test_a_quoted_error_stays_whole_and_another_subject_is_named(said: str, lacks: str) -> None:
    assert lacking(unavailable(said)) == lacks


@pytest.mark.parametrize(
    "reason", ["flash-attn is missing; install it", "Unavailable: row 9: attention flash2 a; b"]
)
def test_a_reason_of_unknown_shape_is_shown_whole(reason: str) -> None:
    tried = Tried(stack={**REFERENCE, "attention": "flash2"}, ended="unavailable", reason=reason)
    assert lacking(tried) == reason


def test_the_plainest_stack_speaks_for_an_option_wherever_it_stands_in_the_list() -> None:
    alone = unavailable("attention flash2 needs flash-attn; pip install it")
    beside = unavailable("compilation tensorrt needs torch-tensorrt; pip install it", compilation="tensorrt")
    assert lacking(alone, beside) == lacking(beside, alone) == "needs flash-attn"


def test_an_option_that_nothing_says_is_unavailable_lacks_nothing() -> None:
    failed = Tried(stack={**REFERENCE, "attention": "flash2"}, ended="error", reason="ValueError: no")
    assert lacking(failed, unavailable("no", attention="flash3")) == ""


def test_a_stack_of_other_axes_than_ours_is_refused() -> None:
    with pytest.raises(ValidationError, match="one option of each of precision, quantization"):
        Tried(stack={"attention": "flash2"}, ended="constructed")
