"""A method that was asked for and whose collectives never ran is NotApplied; one that cannot run says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import tryout
from bench.axes import AXES
from bench.axes.option import NotApplied, Session, Unavailable
from bench.axes.parallel import evidence
from bench.axes.parallel.degrees import Degrees, degrees_of
from bench.axes.profiles import Collective
from bench.matrix import Row


@pytest.fixture
def make_session(make_row: Callable[..., Row], tiny_weights: Any) -> Callable[..., Session]:
    return lambda **changes: tryout.session_of(make_row(**changes))


@pytest.fixture
def lone_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("option", "collective"),
    [
        ("ulysses2", "_c10d_functional::all_to_all_single 0 times in one step, not 16"),
        ("ring2", "_c10d_functional::all_gather_into_tensor 0 times in one step, not 4"),
        ("tp2", "_c10d_functional::all_reduce 0 times in one step, not 4"),
        ("fsdp2", "_c10d_functional::all_to_all_single 0 times in one step, not 16"),
    ],
)
def test_a_method_without_collectives_is_not_applied(
    make_session: Callable[..., Session], lone_rank: None, option: str, collective: str
) -> None:
    session = make_session(parallel=option, attention="native-flash")
    with pytest.raises(NotApplied, match=rf"parallel {option}: rank 0 called {collective}.*no collective"):
        AXES["parallel"][option].verify(session)


def test_ranks_that_hold_all_weights_share_none(
    make_session: Callable[..., Session], lone_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collectives are there, but nothing was sharded: another method's."""
    seen = {evidence.ALL_REDUCE: Collective(calls=99, input_bytes=1)}
    monkeypatch.setattr(evidence, "collectives_of_step", lambda _session: seen)
    with pytest.raises(NotApplied, match=r"parallel tp2: rank 0 holds all \d+ parameters"):
        AXES["parallel"]["tp2"].verify(make_session(parallel="tp2"))


def test_a_parallel_vae_that_decodes_whole_is_not_applied(
    make_session: Callable[..., Session], lone_rank: None
) -> None:
    with pytest.raises(NotApplied, match=r"vae parallel: the ranks decoded \[0\] rows of latents, of 16"):
        AXES["vae"]["parallel"].verify(make_session(parallel="ulysses2", vae="parallel"))


def test_what_each_method_must_call_in_a_step_of_57_blocks() -> None:
    to_all, gather, reduce = evidence.ALL_TO_ALL, evidence.ALL_GATHER, evidence.ALL_REDUCE
    assert evidence.required(Degrees(ulysses=2), 57) == {to_all: 228}
    assert evidence.required(Degrees(ulysses=2, xdit=True), 57) == {to_all: 114}
    with pytest.raises(NotApplied, match="228 messages in one step, not 114"):
        evidence._require_no_more("ulysses2", 0, {to_all: {"calls": 228}}, 114)
    assert evidence.required(Degrees(ulysses=2), 57, rearranged=True) == {to_all: 114}
    assert evidence.required(Degrees(ulysses=4, ring=2), 57, rearranged=True) == {to_all: 228, gather: 57}
    assert evidence.required(Degrees(ulysses=4, ring=2), 57) == {to_all: 228, gather: 57}
    assert evidence.required(Degrees(tp=2), 57) == {reduce: 57}
    assert evidence.required(Degrees(fsdp=2), 57) == {to_all: 228, evidence.GATHER_WEIGHTS: 57}


@pytest.mark.parametrize("option", [id for id in AXES["parallel"] if (d := degrees_of(id)) and not d.xdit])
def test_one_process_says_how_many_ranks_it_lacks(make_row: Callable[..., Row], option: str) -> None:
    degrees = degrees_of(option)
    assert degrees is not None
    wanted = rf"row 1 .*parallel {option} needs {degrees.ranks} ranks and this process is one of 1; `fluxb"
    with pytest.raises(Unavailable, match=wanted):
        AXES["parallel"][option].require(make_row(parallel=option), "cpu")


def test_what_is_missing_for_xdit_and_for_a_parallel_vae_is_said_by_name(
    make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "xfuser", None)
    row = make_row(parallel="xdit-ulysses2")
    with pytest.raises(Unavailable, match=r"needs xDiT .*pip install xfuser==0.7.0, or run .* image xdit"):
        AXES["parallel"]["xdit-ulysses2"].require(row, "cuda")
    with pytest.raises(Unavailable, match="vae parallel needs several ranks"):
        AXES["vae"]["parallel"].require(make_row(vae="parallel"), "cpu")


def test_a_cache_whose_ranks_serve_alone_asks_nobody(make_session: Callable[..., Session]) -> None:
    """Of replicas each decides for its own request: asking the others would wait for ever."""
    for parallel, shared in (("none", False), ("replicas", False), ("ulysses2", True)):
        session = make_session(cache="fbcache-0.12", parallel=parallel)
        AXES["cache"]["fbcache-0.12"].apply(session)
        assert session.notes["fbcache-0.12"]._shared is shared
