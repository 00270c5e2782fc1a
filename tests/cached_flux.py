"""The shipped Tiny FLUX with and without a cache, for the tests of caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.axes import AXES
from bench.axes.cache.decisions import Method
from bench.axes.cache.stack_cache import StackCache, Tally
from bench.axes.option import Session
from bench.matrix import Row
from bench.runner import models, tasks

MakeRow = Callable[..., Row]


class Flux:
    """One use case of the shipped model. All of them share one set of weights."""

    def __init__(self, row: Row, components: dict[str, Any]) -> None:
        self.row = row
        self.pipe = models.assemble(row, components)
        self.pipe.set_progress_bar_config(disable=True)
        self.manifest = tasks.manifest(row)

    def latents(self, steps: int, images: int = 1, index: int = 0, **options: Any) -> Any:
        """(images, 16, 16, 16), of a request in which this many steps are executed."""
        request = self.manifest.request(index, images)
        return tasks.generate(self.pipe, self.row, request, steps=steps, latents=True, **options).latents

    @contextmanager
    def cached(self, method: Method) -> Iterator[StackCache]:
        modules = [self.pipe.transformer, getattr(self.pipe, "controlnet", None)]
        try:
            yield StackCache(self.pipe, method)
        finally:
            for module in filter(None, modules):
                module.__dict__.pop("forward", None)

    def with_cache(self, method: Method, steps: int, **request: Any) -> tuple[Any, Tally]:
        with self.cached(method) as cache:
            latents = self.latents(steps, **request)
            tally = cache.take()
        assert tally is not None
        return latents, tally

    def session(self) -> Session:
        def run(steps: int = 1) -> Any:
            return self.latents(steps)

        return Session(self.row, self.pipe, "cpu", self.pipe.transformer.dtype, run)


MakeFlux = Callable[..., Flux]


@pytest.fixture(scope="module")
def make_flux(make_row: MakeRow) -> MakeFlux:
    components = models.load(make_row(control="canny"), "tiny", "cpu").pipe.components

    def make(**changes: Any) -> Flux:
        return Flux(make_row(**changes), components)

    return make


@pytest.fixture
def applied(make_flux: MakeFlux) -> Iterator[Callable[..., Session]]:
    """Sessions with their row's cache applied, as the server does it."""
    used: list[Any] = []

    def make(**changes: Any) -> Session:
        session = make_flux(**changes).session()
        used.extend((session.pipe.transformer, getattr(session.pipe, "controlnet", None)))
        AXES["cache"][session.row.cache].apply(session)
        return session

    yield make
    for module in filter(None, used):
        module.__dict__.pop("forward", None)


@contextmanager
def calls(*modules: Any) -> Iterator[list[Any]]:
    """The modules that ran, in order."""
    ran: list[Any] = []
    handles = [module.register_forward_hook(lambda module, *_: ran.append(module)) for module in modules]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def relative_error(latents: Any, reference: Any) -> float:
    return float((latents - reference).norm() / reference.norm())
