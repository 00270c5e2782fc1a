"""``make bench-self``: how fast the bench's own commands are, against what they aim for."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path

from fakes import fake_row, fake_tree
from test_matrix_file import big_matrix

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


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrix.csv"
        path.write_bytes(big_matrix(10_000))
        results = Path(folder) / "results"
        fake_tree(results, many_rows(500), attempts=2)
        figures = (
            ("fluxbench --help", fastest(command("--help")), 0.3),
            ("read and check a matrix of 10,000 rows", fastest(lambda: read(path)), 1.0),
            ("report over 1,000 results", fastest(command("report", str(results)), repeats=1), 30.0),
        )
    for what, seconds, aim in figures:
        print(f"{what:<40} {seconds:6.3f} s  (aim: under {aim} s)")
    sys.exit(any(seconds > aim for _, seconds, aim in figures))


if __name__ == "__main__":
    main()
