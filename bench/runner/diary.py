"""The files of one attempt, kept whole while the row lives.

``result.json`` exists from the first moment and says ``interrupted`` until the row ends: whatever kills the
process, the last version written is true. ``events.jsonl`` and ``requests.jsonl`` grow line by line; a kill
can cut only their last line.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import layout, record

log = logging.getLogger(__name__)

RUNNING = record.Status(
    code=record.Code.INTERRUPTED,
    reason="the runner had not ended when this was written; events.jsonl names the phase it was in."
    " Run the row again: finished cells count",
)


class Diary:
    """Writes what happens when it happens; ``result`` is what has happened so far."""

    def __init__(self, folder: Path, result: record.Result) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.result = result
        # Unbuffered: a line that found no room is lost, and does not fail again when the file is closed.
        self._events = (folder / layout.EVENTS).open("ab", buffering=0)
        self._requests = (folder / layout.REQUESTS).open("ab", buffering=0)
        if not (folder / layout.RESULT).exists():  # else the host has written one that says the same
            self.save(RUNNING)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """One arrow of the row's life. Phases follow each other and never nest, so their sum is the wall
        time they explain."""
        self._mark(name, "begin")
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begun
            self.result.phases.append(record.Phase(name=name, seconds=seconds))
            self._mark(name, "end")
            log.info("%s: %.2f s", name, seconds)

    def request(self, **facts: Any) -> None:
        """A request that finished, counted or not."""
        self._requests.write(json.dumps(facts).encode() + b"\n")

    def finish(self, cell: record.Cell) -> None:
        self.result.cells.append(cell)
        self.save(RUNNING)

    def close(self, status: record.Status) -> None:
        self.save(status)
        self._events.close()
        self._requests.close()

    def save(self, status: record.Status) -> None:
        self.result.status = status
        record.save(self.result, self.folder)

    def _mark(self, phase: str, event: str) -> None:
        marker = {"t": time.time(), "phase": phase, "event": event}
        self._events.write(json.dumps(marker).encode() + b"\n")


def keep_picture(folder: Path, name: str, image: Any, latents: Any) -> None:
    """``image``: uint8 array (height, width, 3); ``latents``: the tensor before the VAE."""
    from PIL import Image
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    with _renamed(folder / f"{name}.latents.safetensors") as temporary:
        save_file({"latents": latents.detach().contiguous().cpu()}, temporary)
    with _renamed(folder / f"{name}.png") as temporary:
        Image.fromarray(image).save(temporary, format="png")


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A temporary name to write to; the file is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
