"""Real containers of the cpu image, through the Docker executor: killed, starved, hung, doubled, and left
alone by their daemon. Wants a daemon and the image; `make test-docker` provides both.

But for one row of the tiny FLUX, what runs inside is the stand-in runner in the place of ``bench run``, and a
failure costs a second.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_engine import cpu_image, daemon, standin_image
from fakes import SAME_ROWS, SAME_ROWS_IDS, fake_row
from host_faults import small_disk

from bench import layout, record
from bench.config import SINGLE, Shape
from bench.host import attempt, docker
from bench.host.attempt import first_result
from bench.host.daemon import Daemon
from bench.host.docker import DockerExecutor, Place, container_name
from bench.host.local import Exit, Job
from bench.host.supervise import Stop, supervise
from bench.identity import fingerprint_of, ingredients
from bench.record import Code, Result
from bench.runner.environment import collect

__all__ = ["cpu_image", "daemon", "small_disk", "standin_image"]  # fixtures

pytestmark = pytest.mark.docker

REPOSITORY = Path(__file__).parent.parent
ENGINE = REPOSITORY / "docker" / "engine.sh"
ROW = fake_row(row="73", hardware="cpu", precision="fp32", steps=2)
CELLS = (SINGLE, Shape(1, 4))


@pytest.fixture(scope="module")
def standin_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose ``python -m bench run`` is the stand-in runner."""
    folder = tmp_path_factory.mktemp("repository")
    ignored = shutil.ignore_patterns("weights", "__pycache__")
    shutil.copytree(REPOSITORY / "bench", folder / "bench", ignore=ignored)
    runner = (REPOSITORY / "tests" / "standin_runner.py").read_text()
    runner = runner.replace("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")  # what Docker sets
    (folder / "bench" / "__main__.py").write_text(runner.replace("parse_args()", "parse_args(sys.argv[2:])"))
    return folder


@pytest.fixture
def place(standin_repository: Path, tmp_path: Path) -> Callable[..., Place]:
    def make(*, limits: tuple[str, ...] = (), user: str = "0:0", **variables: str) -> Place:
        return Place(
            repository=standin_repository,
            hub_cache=tmp_path / "hub",
            cache=tmp_path / "cache",
            user=user,
            machine_id="m",
            variables=tuple(variables.items()),
            limits=limits,
        )

    return make


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder = layout.attempt_dir(tmp_path / "results", ROW, "tiny", layout.new_attempt())
    return Job(ROW, "tiny", "probe", CELLS, folder)


@pytest.fixture(autouse=True)
def _nothing_is_left(cpu_image: str, job: Job) -> Iterator[None]:
    """No test leaves a container behind, whatever it did to it."""
    yield
    left = subprocess.run(
        ["docker", "ps", "--all", "--quiet", f"--filter=name={container_name(job)}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if left:
        subprocess.run(["docker", "rm", "--force", *left.split()], check=True, capture_output=True)
    assert left == ""


def run(
    executor: DockerExecutor, job: Job, *, timeout_seconds: float = 60, grace_seconds: float = 5
) -> Result:
    started = first_result(job, ingredients(job.row, job.weights, executor.lock(job.row)), collect([]))
    return attempt.execute(
        executor,
        job,
        started,
        lambda handle: supervise(handle, timeout_seconds, Stop(), lambda: None, grace_seconds),
    )


def in_background(what: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=what)
    thread.start()
    return thread


def wait_for_cell(job: Job, cell: str) -> None:
    deadline = time.monotonic() + 30
    events = job.attempt_dir / layout.EVENTS
    while not (events.exists() and f'"cell {cell}"' in events.read_text()):
        assert time.monotonic() < deadline, f"cell {cell} never began"
        time.sleep(0.05)


def codes(result: Result) -> dict[str, str]:
    return {str(cell.shape): cell.status.code.value for cell in result.cells}


@pytest.mark.parametrize("changes", SAME_ROWS, ids=SAME_ROWS_IDS)
def test_a_row_of_tiny_flux_runs_without_network_and_is_done_for_its_fan_out(
    job: Job, changes: dict[str, str]
) -> None:
    """Also one that compiles C++ at run time, and one of a backend that does when it is first used."""
    row = fake_row(**{**ROW.model_dump(), **changes})
    job = Job(row, "tiny", "probe", (SINGLE,), job.attempt_dir)
    executor = DockerExecutor(Place.here({"OMP_NUM_THREADS": "1"}))
    result = run(executor, job, timeout_seconds=300)
    assert result.status.code is Code.OK, result.status
    assert result.environment is not None
    assert result.environment.host_id == collect([]).host_id
    assert (result.environment.image_digest or "").startswith("sha256:")
    assert result.environment.git_commit == collect([]).git_commit
    assert result.fingerprint == fingerprint_of(row, ingredients(row, "tiny", executor.lock(row)))
    for axis in changes:
        assert result.effective[axis], "the option left evidence"


def test_the_files_of_a_row_belong_to_the_user_who_asked_for_it(
    place: Callable[..., Place], job: Job
) -> None:
    executor = DockerExecutor(place(user="12345:12345"))
    for folder in (job.attempt_dir, executor.place.cache):
        folder.mkdir(parents=True)
        os.chown(folder, 12345, 12345)
    for parent in job.attempt_dir.parents[:8]:
        parent.chmod(parent.stat().st_mode | 0o001)
    record.save(first_result(job, ingredients(ROW, "tiny"), collect([])), job.attempt_dir)
    (job.attempt_dir / layout.RESULT).chmod(0o644)
    handle = executor.start(job)
    while (exit_ := handle.wait(1)) is None:
        pass
    assert exit_ == Exit(code=0), (job.attempt_dir / layout.LOG).read_text()
    assert (job.attempt_dir / layout.RESULT).stat().st_uid == 12345
    assert (job.attempt_dir / layout.LOG).stat().st_uid == 12345


def test_a_killed_container_still_leaves_one_result_and_its_finished_cells(
    place: Callable[..., Place], job: Job
) -> None:
    def kill() -> None:
        wait_for_cell(job, "1x4")
        subprocess.run(["docker", "kill", container_name(job)], check=True, capture_output=True)

    killer = in_background(kill)
    result = run(DockerExecutor(place(STANDIN="1x4=hang")), job)
    killer.join()
    assert result.status.code is Code.CRASHED
    assert "SIGKILL" in result.status.reason
    assert codes(result) == {"1x1": "ok", "1x4": "crashed"}


def test_a_container_that_outgrows_its_memory_is_oom(place: Callable[..., Place], job: Job) -> None:
    limits = ("--memory=300m", "--memory-swap=300m")
    result = run(DockerExecutor(place(limits=limits, STANDIN="1x4=memory")), job)
    assert result.status.code is Code.OOM, result.status
    assert codes(result) == {"1x1": "ok", "1x4": "oom"}


def test_a_container_that_fills_the_results_disk_is_infra_and_its_finished_cell_is_kept(
    place: Callable[..., Place], job: Job, small_disk: Path
) -> None:
    on_it = Job(**{**vars(job), "attempt_dir": small_disk / "results" / job.attempt_dir.name})
    result = run(DockerExecutor(place(STANDIN="1x4=fill-disk")), on_it)
    assert result.status.code is Code.INFRA, result.status
    assert "free space" in result.status.reason
    assert codes(result) == {"1x1": "ok", "1x4": "infra"}
    assert record.load(on_it.attempt_dir / layout.RESULT) == result, "there was room for the verdict"


@pytest.mark.parametrize("fault", ["hang", "deaf"])
def test_a_container_that_hangs_is_asked_then_killed_and_is_a_timeout(
    place: Callable[..., Place], job: Job, fault: str
) -> None:
    executor = DockerExecutor(place(STANDIN=f"1x4={fault}"))
    result = run(executor, job, timeout_seconds=6, grace_seconds=2)
    assert result.status.code is Code.TIMEOUT, result.status
    assert codes(result) == {"1x1": "ok", "1x4": "timeout"}


def test_a_second_copy_of_a_running_row_is_refused_and_the_first_goes_on(
    place: Callable[..., Place], job: Job
) -> None:
    executor = DockerExecutor(place(STANDIN="1x4=hang"))
    record.save(first_result(job, ingredients(ROW, "tiny"), collect([])), job.attempt_dir)
    first = executor.start(job)
    try:
        wait_for_cell(job, "1x4")
        second = executor.start(Job(**{**vars(job), "attempt_dir": job.attempt_dir.with_name("second")}))
        refused = second.wait(1)
        assert refused is not None
        assert f"docker rm --force {container_name(job)}" in refused.infra
        assert first.wait(0.1) is None
    finally:
        first.kill()
        while first.wait(1) is None:
            pass


def test_a_leftover_of_a_dead_fan_out_is_cleared_away(
    place: Callable[..., Place], job: Job, cpu_image: str
) -> None:
    left = ["docker", "create", f"--name={container_name(job)}", cpu_image, "true"]
    subprocess.run(left, check=True, capture_output=True)
    assert run(DockerExecutor(place()), job).status.code is Code.OK


FAN_OUT = """
import sys
from pathlib import Path
from bench.config import SINGLE, Shape
from bench.host.docker import DockerExecutor, Place
from bench.host.local import Job
from bench.matrix import Row
place = Place(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), "0:0", "m",
              variables=(("STANDIN", "1x4=hang"),))
row = Row.model_validate_json(sys.argv[4])
handle = DockerExecutor(place).start(Job(row, "tiny", "probe", (SINGLE, Shape(1, 4)), Path(sys.argv[5])))
handle.wait(1000)
"""


def test_a_fan_out_that_is_killed_takes_its_container_along(place: Callable[..., Place], job: Job) -> None:
    record.save(first_result(job, ingredients(ROW, "tiny"), collect([])), job.attempt_dir)
    here = place()
    arguments = [here.repository, here.hub_cache, here.cache, ROW.model_dump_json(), job.attempt_dir]
    fan_out = subprocess.Popen([sys.executable, "-c", FAN_OUT, *map(str, arguments)], cwd=REPOSITORY)
    wait_for_cell(job, "1x4")
    fan_out.kill()
    fan_out.wait()
    deadline = time.monotonic() + 20
    state = Daemon().state(container_name(job))
    while state is not None and state.running:
        assert time.monotonic() < deadline, "the container outlived its fan-out"
        time.sleep(0.2)
        state = Daemon().state(container_name(job))
    result = record.load(job.attempt_dir / layout.RESULT)
    assert result.status.code is Code.INTERRUPTED
    assert codes(result)["1x1"] == "ok"
    Daemon().remove(container_name(job))


def test_four_rows_at_once_have_four_gpus(place: Callable[..., Place], tmp_path: Path) -> None:
    """The real ``--gpus`` path; the GPUs are names, which a do-nothing hook passes on."""
    executor = DockerExecutor(place(STANDIN_SECONDS="1"))
    executor.store.of = lambda row: executor.store.get("cpu")  # type: ignore[method-assign]
    executor.store.lacks = lambda row: None  # type: ignore[method-assign]
    jobs = []
    for number in range(4):
        row = fake_row(row=str(number + 1), hardware="h100x1")
        folder = layout.attempt_dir(tmp_path / "results", row, "synthetic", layout.new_attempt())
        jobs.append(Job(row, "synthetic", "probe", CELLS, folder, gpu_uuids=(f"GPU-{number}",)))
    results: list[Result] = []
    threads = [in_background(lambda each=each: results.append(run(executor, each))) for each in jobs]
    for thread in threads:
        thread.join()
    if any("could not select device driver" in result.status.reason for result in results):
        pytest.skip("this daemon knows no GPUs; docker/engine.sh starts one that pretends to")
    assert [result.status.reason for result in results] == [""] * 4
    seen = [re.findall(r"gpus (\S+)", (each.attempt_dir / layout.LOG).read_text()) for each in jobs]
    assert seen == [["GPU-0"], ["GPU-1"], ["GPU-2"], ["GPU-3"]]


def test_a_gpu_that_docker_cannot_give_is_infra(place: Callable[..., Place], job: Job) -> None:
    result = run(DockerExecutor(place(limits=("--device=/dev/no-such-gpu",))), job)
    assert result.status.code is Code.INFRA
    assert "no-such-gpu" in result.status.reason


# --- The daemon itself, where the tests may stop it --------------------------------------------------


@pytest.fixture
def own_engine() -> Iterator[None]:
    """The engine of docker/engine.sh, which is nobody else's; it answers again when the test is over."""
    if "FLUXBENCH_ENGINE" not in os.environ:
        pytest.skip("the daemon is not the tests' own (docker/engine.sh)")
    yield
    subprocess.run([ENGINE, "start"], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.usefixtures("own_engine")
def test_a_daemon_that_dies_and_comes_back_costs_the_row_nothing(
    place: Callable[..., Place], job: Job
) -> None:
    def restart() -> None:
        wait_for_cell(job, "1x4")
        pid = int((Path(os.environ["FLUXBENCH_ENGINE"]) / "dockerd.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        time.sleep(2)
        subprocess.run([ENGINE, "start"], check=True, stdout=subprocess.DEVNULL)

    restarter = in_background(restart)
    result = run(DockerExecutor(place(STANDIN_SECONDS="8")), job)
    restarter.join()
    assert result.status.code is Code.OK, result.status
    assert codes(result) == {"1x1": "ok", "1x4": "ok"}


@pytest.mark.usefixtures("own_engine")
def test_a_daemon_that_stays_away_leaves_the_runners_own_word_standing(
    place: Callable[..., Place], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "SILENCE_SECONDS", 6.0)

    def stop() -> None:
        wait_for_cell(job, "1x4")
        os.kill(int((Path(os.environ["FLUXBENCH_ENGINE"]) / "dockerd.pid").read_text()), signal.SIGKILL)

    stopper = in_background(stop)
    result = run(DockerExecutor(place(STANDIN_SECONDS="2")), job)
    stopper.join()
    assert result.status.code is Code.OK, result.status
    subprocess.run([ENGINE, "start"], check=True, stdout=subprocess.DEVNULL)
    Daemon().remove(container_name(job))
