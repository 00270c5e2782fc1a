"""The few questions that the bench has for Docker's daemon, asked through its CLI."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ANSWER_SECONDS = 30.0
NOT_THERE = ("no such", "not running")
"""What the CLI says of a container or image that is not there, or no longer runs."""


class Silent(Exception):
    """The daemon does not answer, or not to this user."""


class Refused(Exception):
    """The daemon answered with an error; the message is its own."""


@dataclass(frozen=True)
class State:
    """Of one container; ``status`` is Docker's word: created, running, paused, exited, dead, ..."""

    status: str
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    started_at: str = ""

    @property
    def running(self) -> bool:
        return self.status not in ("created", "exited", "dead")


class Daemon:
    def __init__(self, docker: Sequence[str] = ("docker",)) -> None:
        self.docker = tuple(docker)

    def answers(self) -> bool:
        try:
            self._ask("version", "--format={{.Server.Version}}")
        except (Silent, Refused):
            return False
        return True

    def info(self) -> dict[str, Any]:
        """What `docker info` says. Raises Silent or Refused."""
        return dict(json.loads(self._ask("info", "--format={{json .}}")))

    def labelled(self, label: str) -> list[dict[str, Any]]:
        """Every container with this label, running or not, as `docker ps` describes it."""
        lines = self._ask("ps", "--all", "--no-trunc", f"--filter=label={label}", "--format={{json .}}")
        return [json.loads(line) for line in lines.splitlines()]

    def state(self, container: str) -> State | None:
        """None where there is no container of this name. Raises Silent."""
        found = self._inspect("container", container)
        if found is None:
            return None
        state = found["State"]
        return State(
            status=state["Status"],
            exit_code=state["ExitCode"],
            oom_killed=state["OOMKilled"],
            error=state["Error"],
            started_at=state["StartedAt"],
        )

    def image(self, reference: str) -> dict[str, Any] | None:
        """What `docker image inspect` says; None where there is no such image. Raises Silent."""
        return self._inspect("image", reference)

    def signal(self, container: str, name: str) -> None:
        self._ask_about("kill", f"--signal={name}", container)

    def remove(self, container: str) -> None:
        """Ends it first if it runs."""
        self._ask_about("rm", "--force", "--volumes", container)

    def _inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        text = self._ask_about(kind, "inspect", name)
        return None if text is None else json.loads(text)[0]

    def _ask_about(self, *arguments: str) -> str | None:
        """None where the thing asked about is not there (any more)."""
        try:
            return self._ask(*arguments)
        except Refused as refused:
            if any(words in str(refused).lower() for words in NOT_THERE):
                return None
            raise Silent(f"Docker refuses `docker {' '.join(arguments)}`: {refused}") from None

    def _ask(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [*self.docker, *arguments],
                capture_output=True,
                text=True,
                timeout=ANSWER_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Silent(f"Docker does not answer: {error}") from None
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.strip()
        if "daemon" in said.lower() and "error response from daemon" not in said.lower():
            raise Silent(f"Docker's daemon does not answer: {said}")
        raise Refused(said)
