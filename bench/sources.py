"""Which source files a row's numbers come from: what its fingerprint hashes of the code.

The runner, and the modules that apply and verify the row's own options. Another option, a report or a rule
may change without making a night of results stale.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.axes import AXES

PACKAGE = Path(__file__).parent
OFF_THE_CLOCK = frozenset(
    {"command.py", "environment.py", "job.py", "judge.py", "links.py", "overhead.py", "traffic.py"}
)
"""Of ``bench/runner``: they describe a machine, word a status or start a row, and no request passes through
them."""
SETTINGS = (PACKAGE / "flux.py", PACKAGE / "tiny" / "__init__.py")
"""What a request says to each model."""
DECLARATIONS = frozenset({"bench.axes", "bench.axes.option"})
"""Where options are listed, and what an option is."""


Stack = tuple[tuple[str, str], ...]
"""(axis, option), in column order."""


def of_stack(stack: Stack) -> list[Path]:
    """Sorted; the same in every process, with or without torch."""
    return sorted({*of_runner(), *SETTINGS, *_of_options(stack)})


def of_runner(package: Path = PACKAGE) -> list[Path]:
    """With the published configs, from which synthetic weights are built."""
    files = (path for path in (package / "runner").rglob("*") if path.suffix in {".py", ".json"})
    return sorted(path for path in files if path.name not in OFF_THE_CLOCK)


def _of_options(stack: Stack) -> frozenset[Path]:
    options = (AXES[axis].get(name) for axis, name in stack)
    asked = {
        module
        for option in options
        if option is not None
        for function in (option.apply, option.verify)
        for module in _modules(function)
    }
    return frozenset(map(_file, _with_imports(asked)))


def _modules(thing: Any) -> Iterator[str]:
    """Modules of ``bench.axes`` that a function, or what it was bound to, is made in."""
    if isinstance(thing, partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _modules(part)
    module = thing.__module__ if isinstance(thing, (Callable, type)) else type(thing).__module__  # type: ignore[arg-type]
    if _is_axis(module):
        yield module


def _with_imports(modules: Iterable[str]) -> set[str]:
    """These, and what they import of ``bench.axes``, inside functions too."""
    found: set[str] = set()
    open_ = list(modules)
    while open_:
        module = open_.pop()
        if module not in found:
            found.add(module)
            open_ += _imported(module)
    return found


@cache
def _imported(module: str) -> frozenset[str]:
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A module out of a package brings itself, not the package's list of every option.
            members = (f"{node.module}.{alias.name}" for alias in node.names)
            named |= {member if _is_module(member) else node.module for member in members}
    return frozenset(name for name in named if _is_axis(name) and _is_module(name))


def _is_axis(module: str) -> bool:
    return module.startswith("bench.axes.") and module not in DECLARATIONS


def _is_module(name: str) -> bool:
    return _file(name).is_file()


def _file(module: str) -> Path:
    """Found without importing it: what only the runner calls may import torch."""
    plain = PACKAGE.parent / Path(*module.split("."))
    package = plain / "__init__.py"
    return package if package.is_file() else plain.with_suffix(".py")
