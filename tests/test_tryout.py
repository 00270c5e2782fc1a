"""Stacks of options on the tiny model: which are tried, how each ends, and that latents stay right."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import correctness, covering, tryout
from bench.axes import AXES
from bench.axes.option import NotApplied, Option, Session
from bench.commands.tryout import construct
from bench.commands.tryout import correctness as correctness_command
from bench.matrix import BASELINE, PLAIN, TASKS, Row
from bench.rules import refusal
from bench.runner.outputs import relative_error
from bench.tryout_report import Constructed, axes, rows

ELSEWHERE = {
    "fp16": "ten times as slow on a CPU; tests/test_axes.py runs it",
    "bf16": "likewise",
    "quanto-int4": "compiles C++ for minutes when first used; its own test runs it",
}
"""Options that the walk of this file leaves to others, and why; `fluxbench construct` takes them all."""


@pytest.mark.parametrize("hardware", ["cpu", "a100x1", "h100x1"])
def test_every_two_options_meet_in_an_allowed_stack_or_are_refused_together(hardware: str) -> None:
    def allowed(stack: covering.Stack) -> bool:
        return not refusal(tryout.tiny_row(hardware, stack))

    plain = covering.singles(axes(hardware))[0]
    stacks = covering.covering(axes(hardware), allowed)
    met = {pair for stack in filter(allowed, stacks) for pair in covering.pairs_of(stack)}
    for first, one in ((axis, o) for axis, options in axes(hardware).items() for o in options):
        for second, other in ((axis, o) for axis, options in axes(hardware).items() for o in options):
            pair = frozenset({(first, one), (second, other)})
            if first != second and pair not in met:
                together = {**plain, first: one, second: other}
                assert not allowed(together)
                assert together in stacks, "tried all the same, so that its rule is recorded"
    assert stacks == covering.covering(axes(hardware), allowed), "the same list every time"


def walked() -> list[Row]:
    """Every option of the CPU at least once, and a few stacks of many options out of the covering design."""
    singles = rows("cpu", pairs=False)
    stacks = [row for row in rows("cpu", pairs=True) if row not in singles and not refusal(row)]
    chosen = [row for row in stacks if not set(row.stack.values()) & {*ELSEWHERE, "gguf-file"}]
    drawn = random.Random(4).sample(chosen, 4)
    return [row for row in singles if not set(row.stack.values()) & set(ELSEWHERE)] + drawn


def test_every_option_that_runs_on_a_cpu_is_constructed_on_the_tiny_model(
    tiny_weights: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLUXBENCH_GGUF_FILE", raising=False)
    found = Constructed(hardware="cpu", packages={})
    for row in walked():
        found.add(tryout.construct(row, capture=True))
    with capsys.disabled():
        print(f"\n{found.summary()}")
    assert found.failures() == []
    for axis, counts in found.constructed().items():
        expected = {
            id
            for id, option in AXES[axis].items()
            if not option.needs_gpu and id not in ELSEWHERE and id != "gguf-file"
            if not correctness.needs_ranks(axis, id)
        }
        assert set(counts) - set(ELSEWHERE) == expected, axis
    ended = Counter(tried.ended for tried in found.stacks)
    assert ended["unavailable"] == 1, "a user's own GGUF file is the one thing that nobody has here"


def test_a_stack_is_refused_by_its_rule_before_anything_is_loaded() -> None:
    tried = tryout.construct(tryout.tiny_row("cpu", {**BASELINE, "attention": "flash3"}), capture=True)
    assert (tried.ended, tried.seconds) == ("refused", 0.0)
    assert tried.reason.startswith("gpu-option-on-cpu: attention flash3")


@pytest.mark.parametrize(
    ("raised", "ended"), [(NotApplied("no evidence"), "not_applied"), (RuntimeError("bug"), "error")]
)
def test_what_an_option_raises_is_how_its_stack_ended(
    tiny_weights: Any, monkeypatch: pytest.MonkeyPatch, raised: Exception, ended: str
) -> None:
    def fail(_session: Session) -> Any:
        raise raised

    monkeypatch.setitem(AXES["vae"], "sliced", Option("sliced", "broken", verify=fail))
    tried = tryout.construct(tryout.tiny_row("cpu", {**BASELINE, "vae": "sliced"}), capture=True)
    assert tried.ended == ended
    assert str(raised) in tried.reason


def test_what_a_stack_changed_in_the_compiler_is_put_back() -> None:
    import torch._inductor.config as inductor

    before = inductor.coordinate_descent_tuning
    with tryout.as_in_a_fresh_process():
        inductor.coordinate_descent_tuning = not before
    assert inductor.coordinate_descent_tuning == before


def test_construct_goes_on_from_its_file_and_stops_when_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def constructed(row: Row, *, capture: bool) -> tryout.Tried:
        return tryout.Tried(stack=row.stack, ended="constructed")

    monkeypatch.setattr(tryout, "construct", constructed)
    out = tmp_path / "constructed.json"
    first = CliRunner().invoke(construct, ["--singles", "--limit-seconds", "0", "--out", str(out)])
    assert first.exit_code == 0
    assert "time is up" in first.output
    everything = CliRunner().invoke(construct, ["--singles", "--out", str(out)])
    assert everything.exit_code == 0
    assert len(json.loads(out.read_text())["stacks"]) == len(rows("cpu", pairs=False))
    again = CliRunner().invoke(construct, ["--singles", "--out", str(out)])
    assert "[1/" not in again.output


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hardware": "h100x1"}, "is of h100x1, not cpu"),
        ({"packages": {"torch": "1.0"}}, "other versions of"),
    ],
)
def test_a_list_of_another_machine_or_of_other_packages_is_not_begun_anew(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    out = tmp_path / "constructed.json"
    left = Constructed.model_validate({"hardware": "cpu", "packages": {}, **changed})
    left.write(out)
    before = out.read_text()
    done = CliRunner().invoke(construct, ["--singles", "--limit-seconds", "0", "--out", str(out)])
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert out.read_text() == before


def test_a_comparison_of_nothing_that_exists_is_bad_input() -> None:
    result = CliRunner().invoke(correctness_command, ["--only", "attention", "--only", "flash4"])
    assert result.exit_code == 2
    assert "flash4: no axis or option that is compared here; those are attention" in result.output


def test_only_what_was_asked_for_is_compared_by_several_processes(tmp_path: Path) -> None:
    """Two of them, on what a rule refuses: each case is answered once."""
    out = tmp_path / "correct.json"
    asked = ["--only", "flash3", "--only", "sage2", "--processes", "2", "--out", str(out)]
    result = CliRunner().invoke(correctness_command, asked)
    assert result.exit_code == 0, result.output
    found = [(c["option"], c["task"], c["control"]) for c in json.loads(out.read_text())["compared"]]
    assert len(found) == len(set(found)) == 2 * len(TASKS) * 2
    assert {option for option, _, _ in found} == {"flash3", "sage2"}


def test_construct_on_a_gpu_that_is_not_here_is_bad_input() -> None:
    result = CliRunner().invoke(construct, ["--hardware", "h100x1"])
    assert result.exit_code == 2
    assert "--hardware" in result.output


@pytest.mark.parametrize("control", ["none", "canny"])
@pytest.mark.parametrize("task", TASKS)
def test_another_attention_gives_the_same_latents_on_every_core_use_case(
    tiny_weights: Any, task: str, control: str
) -> None:
    row = tryout.tiny_row("cpu", {**BASELINE, "attention": "native-flash"}, task, control, steps=2)
    compared = correctness.compare(("attention", "native-flash", row))
    assert compared.tolerance == correctness.ROUNDING
    assert compared.held is True


@pytest.mark.parametrize("control", ["none", "canny"])
def test_whole_and_regional_graphs_give_the_same_latents(tiny_weights: Any, control: str) -> None:
    """What dynamo captured; inductor's kernels are put to work in tests/test_axes_compilation.py."""
    plain = tryout.tiny_row("cpu", BASELINE, "img2img", control, steps=4)
    expected = correctness.painted(plain)
    for option in ("inductor", "inductor-max"):
        with tryout.as_in_a_fresh_process(), tryout.captured_only():
            found = correctness.painted(plain.model_copy(update={"compilation": option}))
        assert relative_error(found, expected) < correctness.ROUNDING


def test_an_option_that_paints_another_image_is_not_held(
    tiny_weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(session: Session) -> None:
        import torch

        torch.nn.init.zeros_(session.pipe.transformer.proj_out.weight)

    broken = Option("native-flash", "broken", verify=lambda _: {}, apply=spoil, exact=True)
    monkeypatch.setitem(AXES["attention"], "native-flash", broken)
    row = tryout.tiny_row("cpu", {**BASELINE, "attention": "native-flash"}, steps=2)
    assert correctness.compare(("attention", "native-flash", row)).held is False


def compared(axis: str, option: str) -> correctness.Compared:
    row = tryout.tiny_row("cpu", {**BASELINE, axis: option}, "img2img", steps=2)
    return correctness.compare((axis, option, row))


def black(pictures: Any) -> Any:
    return pictures * 0 - 1


def grey(pictures: Any) -> Any:
    return pictures * 0


def first_for_all(pictures: Any) -> Any:
    return pictures[:1].expand_as(pictures)


@pytest.mark.parametrize(
    ("option", "spoils"), [("tiled", black), ("tiled", grey), ("sliced", black), ("sliced", first_for_all)]
)
def test_a_vae_option_is_held_by_the_pictures_that_it_decodes(
    tiny_weights: Any, monkeypatch: pytest.MonkeyPatch, option: str, spoils: Callable[[Any], Any]
) -> None:
    """Its latents are the plain stack's, whatever it decodes them to. Slices need two pictures."""
    assert compared("vae", option).held is True
    right = AXES["vae"][option]

    def spoil(session: Session) -> None:
        right.apply(session)
        vae = session.pipe.vae
        decode = vae.decode
        vae.decode = lambda latents, **_: (spoils(decode(latents, return_dict=False)[0]),)

    monkeypatch.setitem(AXES["vae"], option, replace(right, apply=spoil))
    spoiled = compared("vae", option)
    assert (spoiled.ended, spoiled.held) == ("constructed", False)


@pytest.mark.parametrize(
    ("axis", "option"), [("quantization", "scaledmm-fp8-row"), ("cache", "fbcache-0.2"), ("vae", "tiled")]
)
def test_an_option_that_never_ran_has_no_error_to_be_held(
    tiny_weights: Any, monkeypatch: pytest.MonkeyPatch, axis: str, option: str
) -> None:
    """It paints exactly what the plain stack paints."""
    monkeypatch.setitem(AXES[axis], option, replace(AXES[axis][option], apply=lambda _: None))
    found = compared(axis, option)
    assert (found.ended, found.error, found.held) == ("not_applied", None, None)


def test_correctness_asks_for_the_first_precision_that_an_option_takes() -> None:
    asked = {(axis, option): row for axis, option, row in correctness.rows("h100x1", "txt2img", "canny")}
    assert asked["attention", "flash3"].precision == "bf16"
    assert asked["vae", "tiled"].precision == "fp32"
    assert asked["precision", "fp16"].precision == "fp16"
    everything = {(axis, o) for axis, options in AXES.items() for o in options if o != PLAIN.get(axis)}
    assert set(asked) == {option for option in everything if not correctness.needs_ranks(*option)}
