"""The Docker executor: every attempt in a fresh container of its row's image, started by Docker's own CLI.

    (leftover of the same name?) -> docker run, in the foreground -> docker inspect -> docker rm

The CLI stays in the foreground for as long as the container runs: it holds the leases of the GPUs, passes
signals on, and is asked to stop when the fan-out dies. The container's name is the row's, so a second copy of
a row cannot start beside the first, and what an accident left behind is found again.

Losing the daemon is not losing the row: with live-restore the container goes on, and the file that the runner
renames into the mounted attempt folder is what counts.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from bench import contract, layout
from bench.host.daemon import Daemon, Silent, State
from bench.host.image import ImageError, Store
from bench.host.local import Exit, Handle, Job, runner_arguments, signal_name, stop_when_parent_dies
from bench.identity import callers_files
from bench.matrix import Row

CODE = "/opt/fluxbench"
"""Where the images expect the runner's code (PYTHONPATH in docker/base/Dockerfile)."""
HUB_CACHE = "/opt/hub"
FILES = "/opt/files"
"""Where files of the caller's own are seen, each under the name of its variable."""

SHARED_MEMORY = "16g"
"""NCCL's and torch's workers exchange data there; Docker's default is 64 MB."""

DAEMON_ERROR = 125
"""`docker run` exits with it when Docker itself failed, or was lost."""
SIGNAL_BASE = 128

SILENCE_SECONDS = 120.0
"""How long a daemon may be gone, as it is while it restarts, before the row is given up."""

PASSED_ON = ("OMP_NUM_THREADS",)
PASSED_ON_PREFIXES = ("NCCL_", "TORCH_NCCL_", "TORCH_SYMM_MEM_", "NVSHMEM_")


@dataclass(frozen=True)
class Place:
    """What all containers on this machine have in common."""

    repository: Path
    hub_cache: Path
    """Weights and prebuilt kernels: the hub's own cache on the host."""
    cache: Path
    """What is compiled or converted here and shared by rows; each image has its own part of it."""
    user: str
    """``uid:gid`` that owns the results."""
    machine_id: str
    git_commit: str | None = None
    """As ``contract.GIT_COMMIT`` says it."""
    variables: tuple[tuple[str, str], ...] = ()
    limits: tuple[str, ...] = ()
    """Further options of `docker run`, like ``--memory=300m``."""

    @classmethod
    def here(cls, variables: Mapping[str, str], limits: Sequence[str] = ()) -> Place:
        from bench.identity import machine_id
        from bench.runner.environment import git_state

        commit, dirty = git_state()
        repository = Path(__file__).parents[2]
        return cls(
            repository=repository,
            hub_cache=hub_cache(variables),
            cache=repository / ".cache",
            user=f"{os.getuid()}:{os.getgid()}",
            machine_id=machine_id(),
            git_commit=commit + contract.DIRTY if commit and dirty else commit,
            variables=tuple(passed_on(variables).items()),
            limits=tuple(limits),
        )


def hub_cache(variables: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it fetched, by its own rules."""
    if explicit := variables.get("HF_HUB_CACHE"):
        return Path(explicit)
    home = variables.get("HF_HOME") or Path(variables.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "hub"


def passed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """The few of the caller's variables that a container gets: what tunes NCCL and threads. A token, or a
    path that is another one inside, never does."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }


def container_name(job: Job) -> str:
    """One a row: of its folder, on this machine. Of the reference one a GPU, for each GPU has its own."""
    folder = job.attempt_dir.parent
    gpus = job.gpu_uuids if job.row.is_reference else ()
    return "-".join(["fluxbench", folder.parent.name, folder.name, layout.place_id(folder)[:8], *gpus])


def run_command(job: Job, image_id: str, place: Place) -> list[str]:
    """`docker run` and all its arguments. Paths of the host are absolute; the attempt folder has the same
    path inside, so that host and runner speak of one place."""
    attempt = job.attempt_dir.resolve()
    inside = replace(job, attempt_dir=attempt)
    files = {
        name: (path.resolve(), f"{FILES}/{name}/{path.name}") for name, path in callers_files(job.row).items()
    }
    variables = {
        contract.IMAGE_DIGEST: image_id,
        contract.MACHINE_ID: place.machine_id,
        "HF_HUB_CACHE": HUB_CACHE,
        "HF_HUB_OFFLINE": "1",
        **({contract.GIT_COMMIT: place.git_commit} if place.git_commit else {}),
        **{name: target for name, (_, target) in files.items()},
        **dict(place.variables),
    }
    return [
        *("docker", "run", f"--name={container_name(job)}", "--init", "--pull=never"),
        *_gpu_options(job.gpu_uuids),
        *("--network=none", f"--user={place.user}", "--read-only", "--tmpfs=/tmp:exec"),
        *("--cap-drop=ALL", "--security-opt=no-new-privileges", f"--shm-size={SHARED_MEMORY}"),
        f"--label=fluxbench.row={job.row.row}",
        f"--label=fluxbench.attempt={attempt}",
        _mount(place.repository / "bench", f"{CODE}/bench", read_only=True),
        _mount(place.hub_cache, HUB_CACHE, read_only=True),
        _mount(place.cache, f"{CODE}/.cache"),
        _mount(attempt, str(attempt)),
        *(_mount(path, target, read_only=True) for path, target in files.values()),
        *(f"--env={name}={value}" for name, value in variables.items()),
        *place.limits,
        image_id,
        # The log is written by the container itself: neither the daemon nor the CLI has to live for it.
        *("sh", "-c", 'exec "$@" >>"$0" 2>&1', str(attempt / layout.LOG)),
        *("python", "-m", "bench", "run", *runner_arguments(inside)),
    ]


def _gpu_options(uuids: Sequence[str]) -> list[str]:
    """The quotes inside are Docker's: without them the comma ends the list after the first GPU."""
    if not uuids:
        return []
    return [f'--gpus="device={",".join(uuids)}"']


def _mount(host: Path, inside: str, *, read_only: bool = False) -> str:
    """Unlike ``--volume``, it fails when the host's folder is missing, instead of making one as root."""
    return f"--mount=type=bind,source={host},target={inside}{',readonly' if read_only else ''}"


def exit_of(state: State | None, cli_code: int, cli_said: str) -> Exit | None:
    """How the container ended, from what Docker says of it once the CLI is gone; None while it runs."""
    if state is None or state.status == "created":
        why = (state and state.error) or cli_said or f"`docker run` ended with {cli_code} and no word"
        return Exit(infra=f"Docker could not start the container: {why}")
    if state.status not in ("exited", "dead"):
        return None
    if state.exit_code <= SIGNAL_BASE:
        return Exit(code=state.exit_code, out_of_memory=state.oom_killed)
    if cli_code == DAEMON_ERROR and not state.oom_killed:
        signal_ = signal_name(state.exit_code - SIGNAL_BASE)
        return Exit(infra=f"the Docker daemon was lost, and the container with it ({signal_})")
    return Exit(signal=state.exit_code - SIGNAL_BASE, out_of_memory=state.oom_killed)


class DockerExecutor:
    def __init__(self, place: Place, daemon: Daemon | None = None, store: Store | None = None) -> None:
        self.place = place
        self.daemon = daemon or Daemon()
        self.store = store or Store(self.daemon)

    def lock(self, row: Row) -> str | None:
        image = self.store.of(row)
        return image.lock_id if image else None

    def lacks(self, row: Row) -> str | None:
        return self.store.lacks(row)

    def command(self, job: Job) -> list[str]:
        image = self.store.of(job.row)
        return run_command(job, image.id if image else "IMAGE-NOT-BUILT-YET", self.place)

    def start(self, job: Job) -> Handle:
        name = container_name(job)
        try:
            self._make_way(name)
            image = self.store.required(job.row)
        except (Silent, ImageError) as error:
            return NeverStarted(Exit(infra=str(error)))
        for folder in (self.place.hub_cache, self.place.cache, job.attempt_dir):
            folder.mkdir(parents=True, exist_ok=True)
        said = tempfile.TemporaryFile()  # noqa: SIM115  the handle reads and closes it
        process = subprocess.Popen(
            run_command(job, image.id, self.place),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the fan-out alone, which then asks the runner to stop
            pass_fds=job.lease_descriptors,
            preexec_fn=stop_when_parent_dies(),
        )
        return DockerHandle(name, process, said, self.daemon)

    def _make_way(self, name: str) -> None:
        """Removes what an earlier fan-out left of the same row. Raises ImageError while it still runs."""
        state = self.daemon.state(name)
        if state is None:
            return
        if state.running:
            raise ImageError(
                f"container {name} of the same row is running since {state.started_at}; wait for it, or end "
                f"it with `docker rm --force {name}`"
            )
        self.daemon.remove(name)


@dataclass(frozen=True)
class NeverStarted:
    exit: Exit

    def wait(self, seconds: float) -> Exit:
        return self.exit

    def stop(self) -> None: ...

    def kill(self) -> None: ...


class DockerHandle:
    def __init__(self, name: str, process: subprocess.Popen[bytes], said: IO[bytes], daemon: Daemon) -> None:
        self.name = name
        self.process = process
        self.said = said
        self.daemon = daemon
        self.killed = False
        self.silent_since: float | None = None

    def wait(self, seconds: float) -> Exit | None:
        begun = time.monotonic()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        exit_ = self._exit(code)
        if exit_ is None:  # the container lives on without its CLI: nothing else here takes time
            time.sleep(max(0.0, seconds - (time.monotonic() - begun)))
            return None
        self._close()
        return exit_

    def _exit(self, cli_code: int) -> Exit | None:
        try:
            state = self.daemon.state(self.name)
        except Silent as silent:
            self.silent_since = self.silent_since or time.monotonic()
            if time.monotonic() - self.silent_since < SILENCE_SECONDS:
                return None
            return Exit(infra=f"{silent}, for {SILENCE_SECONDS:.0f} s; container {self.name} may still run")
        self.silent_since = None
        if state is None and self.killed:
            return Exit(signal=9)
        return exit_of(state, cli_code, self._what_cli_said())

    def _what_cli_said(self) -> str:
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").splitlines()
        return " ".join(line for line in lines if line and not line.startswith("Run 'docker"))[:500]

    def stop(self) -> None:
        # By the daemon, not through the CLI, which may be gone; --init passes it to the runner alone.
        with contextlib.suppress(Silent):
            self.daemon.signal(self.name, "TERM")

    def kill(self) -> None:
        with contextlib.suppress(Silent):
            self.daemon.remove(self.name)
            self.killed = True

    def _close(self) -> None:
        with contextlib.suppress(Silent):
            self.daemon.remove(self.name)
        self.said.close()
