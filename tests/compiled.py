"""Sessions in which a test compiles: dynamo knows of nothing before it and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from bench import tryout
from bench.axes.option import Session
from bench.matrix import Row


@pytest.fixture
def make_session(make_row: Callable[..., Row], tiny_weights: Any) -> Iterator[Callable[..., Session]]:
    """A loaded row in which nothing is compiled yet; its ``run`` takes ``images`` too."""
    import torch

    def make(**changes: Any) -> Session:
        session = tryout.session_of(make_row(compilation="inductor", **changes))
        session.run = partial(session.run, steps=1)
        return session

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield make
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def session(make_session: Callable[..., Session]) -> Session:
    """With a ControlNet, whose blocks diffusers alone would leave uncompiled."""
    return make_session(control="canny")


@pytest.fixture
def only_captured() -> Iterator[None]:
    """Inductor's C++ compiler is put to work in one test only."""
    with tryout.captured_only():
        yield
