"""``make bench-self``: how fast the bench's own commands are, against what they aim for."""

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path

from fake_attempts import fake_tree
from fakes import fake_row
from rich.console import Console
from test_matrix_file import big_matrix

from bench.config import PROBE, SINGLE
from bench.host.command import fan_out
from bench.host.daemon import Daemon
from bench.host.docker import Place, run_command
from bench.host.fanout import Settings
from bench.host.image import tag
from bench.host.local import Job, LocalExecutor
from bench.matrix import Row
from bench.matrix_file import read

REPOSITORY = Path(__file__).parent.parent


def fastest(action: Callable[[], object], repeats: int = 5) -> float:
    """Seconds. The fastest of a few: what else the machine does only ever adds."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def command(*arguments: str) -> Callable[[], object]:
    argv = [sys.executable, "-m", "bench", *arguments]
    return lambda: subprocess.run(argv, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)


def many_rows(count: int) -> list[Row]:
    """Rows of four machines, six use cases each, told apart by attention, VAE and compilation."""
    options = product(
        ("h100x1", "a100x1", "h100x2", "h100x4"),
        ("txt2img", "img2img", "inpaint"),
        ("none", "canny"),
        ("sdpa", "cudnn", "native-flash", "flash2"),
        ("full", "tiled", "sliced"),
        ("none", "inductor"),
    )
    names = ("hardware", "task", "control", "attention", "vae", "compilation")
    return [
        fake_row(row=str(number), **dict(zip(names, chosen, strict=True)))
        for number, chosen in enumerate(islice(options, count), start=1)
    ]


def seconds_per_row_of_the_fan_out(rows: list[Row], results: Path) -> float:
    """What it costs beside the runners: here they end at once, without a result."""
    settings = Settings(results, "synthetic", PROBE, (SINGLE,))
    begun = time.perf_counter()
    fan_out(rows, settings, [], Console(file=io.StringIO()), executor=LocalExecutor(["true"]))
    return (time.perf_counter() - begun) / len(rows)


def container_start_seconds(folder: Path) -> float | None:
    """From `docker run`, with all that a row has, to Python's first line, beyond what Python needs
    without a container. None where there is no daemon or no cpu image."""
    daemon = Daemon()
    if not daemon.answers() or (image := daemon.image(tag("cpu"))) is None:
        return None
    row = fake_row(row="73", hardware="cpu")
    job = Job(row, "tiny", "probe", (SINGLE,), folder / "row-0073" / "tiny" / "attempt")
    place = Place.here({})
    for path in (job.attempt_dir, place.hub_cache, place.cache):
        path.mkdir(parents=True, exist_ok=True)
    start = run_command(job, image["Id"], place)
    start = [*start[: start.index(image["Id"]) + 1], "python", "-c", ""]
    start.insert(start.index("--init"), "--rm")
    inside = fastest(lambda: subprocess.run(start, check=True))
    return inside - fastest(lambda: subprocess.run([sys.executable, "-c", ""], check=True))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrix.csv"
        path.write_bytes(big_matrix(10_000))
        results = Path(folder) / "results"
        fake_tree(results, many_rows(500), attempts=2)
        plan = Path(folder) / "plan.csv"
        plan.write_bytes(big_matrix(3000))
        dry_run = ("fan-out", "--dry-run", "--tier=all", "--executor=local", f"--matrix={plan}")
        rows = [fake_row(row=str(n), hardware="cpu", size=128 * n) for n in range(1, 21)]
        container = container_start_seconds(Path(folder) / "container")
        figures = (
            ("fluxbench --help", fastest(command("--help")), 0.3),
            ("read and check a matrix of 10,000 rows", fastest(lambda: read(path)), 1.0),
            ("fan-out --dry-run over 3,000 rows", fastest(command(*dry_run, f"--results={results}")), 2.0),
            ("the fan-out's own cost a row", seconds_per_row_of_the_fan_out(rows, Path(folder) / "own"), 0.2),
            ("container start, beyond Python's own", container, 1.0),
            ("report over 1,000 results", fastest(command("report", str(results)), repeats=1), 30.0),
        )
    for what, seconds, aim in figures:
        measured = "not measured: no daemon, or no cpu image" if seconds is None else f"{seconds:6.3f} s"
        print(f"{what:<40} {measured}  (aim: under {aim} s)")
    sys.exit(any(seconds is not None and seconds > aim for _, seconds, aim in figures))


if __name__ == "__main__":
    main()
