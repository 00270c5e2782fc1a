"""--where chooses rows; what it does not understand is an error that says what was probably meant."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import phases
from bench.matrix import Row
from bench.where import KEYS, WhereError, parse, select

ROWS = phases.merged([])

values_of = {key: sorted({take(row) for row in ROWS}) for key, take in KEYS.items()}
conditions = st.dictionaries(st.sampled_from(sorted(KEYS)), st.booleans(), max_size=4).flatmap(
    lambda signs: st.fixed_dictionaries(
        {
            key: st.tuples(st.just(negated), st.sets(st.sampled_from(values_of[key]), min_size=1, max_size=3))
            for key, negated in signs.items()
        }
    )
)


# Four passes over the whole matrix an example: how long they take is the machine's load, not the selection.
@settings(deadline=None)
@given(conditions)
def test_the_selection_is_exactly_the_rows_that_meet_every_condition(
    wanted: dict[str, tuple[bool, set[str]]],
) -> None:
    text = " ".join(f"{key}{'!=' if neg else '='}{','.join(vals)}" for key, (neg, vals) in wanted.items())

    def meets(row: Row) -> bool:
        return all((KEYS[key](row) in values) != negated for key, (negated, values) in wanted.items())

    assert select(ROWS, text, "all") == [row for row in ROWS if meets(row)]


def test_core_is_meant_unless_a_tier_or_a_row_is_named() -> None:
    assert {row.tier for row in select(ROWS)} == {"core"}
    assert {row.tier for row in select(ROWS, tier="extended")} == {"extended"}
    assert select(ROWS, tier="all") == ROWS
    assert {row.tier for row in select(ROWS, "tier=extended")} == {"extended"}
    depth = next(row for row in ROWS if row.control == "depth")
    assert select(ROWS, f"row={depth.row}") == [depth]


def test_derived_phase_and_image_can_be_asked_for() -> None:
    chosen = select(ROWS, "phase=3 image=cpu")
    assert chosen
    assert all(row.hardware == "cpu" and phases.phase_of(row) == 3 for row in chosen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hardwre=cpu", "unknown key 'hardwre'; did you mean 'hardware'?"),
        ("attention=cudn", "unknown attention 'cudn'; did you mean 'cudnn'?"),
        ("task", "'task' is not key=value"),
        ("task=", "unknown task ''; known: txt2img, img2img, inpaint"),
        ("task=txt2img task=inpaint", "task is named twice; write task=A,B"),
        ("hardware=h100", "no row has the hardware 'h100'; did you mean 'h100x1'?"),
        ("hardware=H100", "no row has the hardware 'H100'; did you mean 'h100x1'?"),
        ("hardware=cpu,H100x8", "no row has the hardware 'H100x8'; did you mean 'h100x8'?"),
        ("hardware=abc", "no row has the hardware 'abc'; known: "),
        ("row=x", "no row has the id 'x'"),
        ("row=39,99999", "no row has the id '99999'"),
        ("parent!=99999", "no row has the parent '99999'"),
        ("size=1000", "no row has the size '1000'; known: 1024, 128, 2048"),
        ("phase=6", "unknown phase '6'; known: 1, 2, 3, 4, 5"),
        ("why=baseline", "unknown key 'why'; known: row, tier, hardware"),
    ],
)
def test_what_is_not_understood_is_an_error_with_the_next_step(text: str, message: str) -> None:
    with pytest.raises(WhereError) as caught:
        parse(text, ROWS)
    assert message in str(caught.value)


def test_every_mistake_of_a_selection_is_told_at_once() -> None:
    with pytest.raises(WhereError) as caught:
        parse("tsk=txt2img vae=tile what", ROWS)
    assert len(str(caught.value).splitlines()) == 3
