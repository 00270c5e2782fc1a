"""What a campaign shows while it runs: one living line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bench import layout


@dataclass(frozen=True)
class Look:
    """The campaign at one moment."""

    label: str
    number: int
    """Which of the planned attempts this is, from 1."""
    total: int
    phase: str
    requests: int
    """Finished so far, warm-up included."""
    elapsed_seconds: float
    expected_seconds: float
    rest_seconds: float
    """Estimated, of the whole campaign."""
    gpu_hours: float
    """Used so far by the campaign."""
    lane: str = ""
    """``GPU 3`` where several rows run side by side."""

    def line(self) -> str:
        requests = f", {self.requests} requests" if self.requests else ""
        lane = f"{self.lane}, " if self.lane else ""
        return (
            f"[{self.number}/{self.total}] {lane}{self.label}: {self.phase}{requests}, "
            f"{clock(self.elapsed_seconds)} of about {clock(self.expected_seconds)}; "
            f"rest about {clock(self.rest_seconds)}, {self.gpu_hours:.2f} GPU-hours used"
        )


def clock(seconds: float) -> str:
    """``0:07``, ``12:30``, ``3:05:00``"""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@dataclass
class Tail:
    """Reads what a growing file of lines gained since the last look; a half-written line waits."""

    path: Path
    _offset: int = 0

    def lines(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()


@dataclass
class AttemptWatch:
    """Where in its life the runner of one attempt is, from the files that it writes."""

    attempt_dir: Path
    phase: str = "start"
    requests: int = 0
    _events: Tail = field(init=False)
    _requests: Tail = field(init=False)

    def __post_init__(self) -> None:
        self._events = Tail(self.attempt_dir / layout.EVENTS)
        self._requests = Tail(self.attempt_dir / layout.REQUESTS)

    def look(self) -> None:
        self.requests += len(self._requests.lines())
        for line in self._events.lines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("event") == "begin":
                self.phase = str(event.get("phase"))


class Display(Protocol):
    def note(self, text: str) -> None:
        """A line that stays."""

    def look(self, look: Look) -> None:
        """The state of now; replaces the one before where the screen allows it."""


class LiveDisplay:
    """For a terminal, a line a lane. It redraws only when told to: a refresh thread would take CPU time from
    the rows."""

    def __init__(self, console: Console) -> None:
        self._live = Live(Text(""), console=console, auto_refresh=False, transient=True)
        self._lanes: dict[str, str] = {}

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        self._live.console.print(Text(text))

    def look(self, look: Look) -> None:
        if not look.lane:  # nothing runs beside this row
            self._lanes.clear()
        self._lanes[look.lane] = look.line()
        self._live.update(Text("\n".join(self._lanes.values())), refresh=True)


class PlainDisplay:
    """For logs and pipes: a line when a row enters a phase, none for the passing of time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def look(self, look: Look) -> None:
        state = (look.label, look.phase)
        if state != self._shown.get(look.lane):
            self._shown[look.lane] = state
            self.note(look.line())


def display(console: Console) -> LiveDisplay | PlainDisplay:
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)
