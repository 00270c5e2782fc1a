"""What can move a number beside the row: packages, CUDA and the driver. What may stand in one ratio, and what
this checkout locks otherwise.

Locks are part of the checkout, so this is said alike on a laptop and on the machine that measured; what is
installed where the report is made counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bench import identity
from bench.host import locks
from bench.images import IMAGES, image_of
from bench.report.load import Attempt


def difference(of: Iterable[Attempt], against: Iterable[Attempt]) -> str:
    """``torch 2.13.0 against 2.11.0``; empty where no version differs. What one side alone has, such as the
    kernels of its attention, is part of what is compared."""
    here, there = _versions(of), _versions(against)
    return ", ".join(
        f"{name} {' and '.join(sorted(here[name]))} against {' and '.join(sorted(there[name]))}"
        for name in here
        if name in there and len(here[name] | there[name]) > 1
    )


def _versions(attempts: Iterable[Attempt]) -> dict[str, set[str]]:
    """Name -> every version that numbers were measured with."""
    found: dict[str, set[str]] = {}
    for attempt in attempts:
        environment = attempt.result.environment
        if environment is None or not any(cell.latency for cell in attempt.result.cells):
            continue
        system = {"driver": environment.driver, "CUDA": environment.cuda, "cuDNN": environment.cudnn}
        measured = {name: environment.packages.get(name) for name in identity.MEASURED_PACKAGES}
        for name, version in (system | measured).items():
            if version:
                found.setdefault(name, set()).add(version)
    return found


def locked_otherwise(attempt: Attempt) -> bool:
    """Whether an environment filled from this checkout's locks would measure the row again: measured from a
    lock, it was none of these; measured with packages installed by hand, their versions are not the locked
    ones."""
    made_of = attempt.result.ingredients
    if made_of is not None and "==" not in made_of.versions.partition(" ")[0]:
        return made_of.versions.partition(" ")[0] not in map(locks.lock_sha256, IMAGES)
    return any(True for _ in lock_differences(attempt))


def lock_differences(attempt: Attempt) -> Iterator[str]:
    """``numpy 2.5.2 (locked 2.4.6)``; what the lock of the row's image does not hold is not compared, nor
    which build of a version it was."""
    environment, image = attempt.result.environment, image_of(attempt.row)
    if environment is None or image is None:
        return
    locked = locks.versions(image)
    for name in identity.MEASURED_PACKAGES:
        version = environment.packages.get(name, "").partition("+")[0]
        if version and name in locked and version not in locked[name]:
            yield f"{name} {version} (locked {' or '.join(locked[name])})"
