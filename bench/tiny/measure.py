"""What skipping costs, and what using Tiny FLUX costs: ``python -m bench.tiny.measure`` writes
``measures.json``.

Two sweeps over held-out prompts, each picture against the same prompt and seed at 28 uncached steps:
diffusers' own FirstBlockCache by threshold, and fewer steps. And the cost of a load and of a request.
"""

from __future__ import annotations

import json
import math
import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import FirstBlockCacheConfig

from bench.pictures import psnr_db as pair_psnr_db
from bench.record import write_atomically
from bench.tiny import STEPS, WEIGHTS, checker, models
from bench.tiny.draw import control_map
from bench.tiny.generate import generate
from bench.tiny.loop import environment
from bench.tiny.scenes import Scenes, sample, words
from bench.tiny.score import ATTRIBUTES, SEED, full_captions, seeds, share

MEASURES = WEIGHTS.parent / "measures.json"
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 2.0)
STEP_COUNTS = (20, 14, 10, 7, 5, 3, 2, 1)


@contextmanager
def counting_computed_steps(transformer: Any) -> Any:
    """Yields a list that grows by one whenever the last block really attends: a skipped step never does."""
    computed: list[int] = []
    last = transformer.single_transformer_blocks[-1].attn
    handle = last.register_forward_hook(lambda *_: computed.append(1))
    try:
        yield computed
    finally:
        handle.remove()


def psnr_db(pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
    """(n,) of (n, h, w, 3) uint8; infinite for equal pictures."""
    values = [pair_psnr_db(a, b) for a, b in zip(pictures, references, strict=True)]
    return np.array([math.inf if value is None else value for value in values])


def all_right(scenes: Scenes, pictures: np.ndarray) -> list[bool]:
    """Whether background, colour, position, shape and size are all as asked."""
    readings = [checker.read(p) for p in pictures]
    return [
        all(getattr(asked, a) == getattr(read, a) for a in ATTRIBUTES)
        for asked, read in zip(words(scenes), readings, strict=True)
    ]


def _line(scenes: Scenes, pictures: np.ndarray, references: np.ndarray, computed: int) -> dict[str, Any]:
    psnr_p50_db = float(np.median(psnr_db(pictures, references)))
    line = {
        "computed_steps_per_request": round(computed / len(scenes), 2),
        "psnr_p50_db": None if math.isinf(psnr_p50_db) else round(psnr_p50_db, 2),
        "all_right": share(all_right(scenes, pictures)),
    }
    print(line, flush=True)
    return line


def sweeps(tiny: models.TinyFlux, scenes: Scenes) -> dict[str, list[dict[str, Any]]]:
    """One request at a time: a cache decides for its whole batch."""
    prompts, transformer = full_captions(scenes), tiny.pipe.transformer

    def run(steps: int) -> tuple[np.ndarray, int]:
        with counting_computed_steps(transformer) as computed:
            pictures = generate(tiny, prompts, seeds(len(scenes)), steps=steps, batch=1)
        return pictures, len(computed)

    references, computed = run(STEPS)
    uncached = _line(scenes, references, references, computed)
    cached = [{"threshold": 0.0, **uncached}]
    for threshold in THRESHOLDS:
        transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        pictures, computed = run(STEPS)
        transformer.disable_cache()
        cached.append({"threshold": threshold, **_line(scenes, pictures, references, computed)})
    shorter = [{"steps": STEPS, **uncached}]
    for steps in STEP_COUNTS:
        pictures, computed = run(steps)
        shorter.append({"steps": steps, **_line(scenes, pictures, references, computed)})
    return {"fbcache": cached, "steps": shorter}


def cost_at_use(weights: Path, repeats: int = 7) -> dict[str, Any]:
    """Seconds of a load after imports and of warm requests (the median), and this process's peak memory."""
    started = time.perf_counter()
    tiny = models.load(weights)
    loaded = time.perf_counter() - started
    scene = sample(1, SEED, held_out=True)
    canny = {"control_image": control_map("canny", scene)}

    def median_seconds(**options: Any) -> float:
        taken = []
        for _ in range(repeats):
            begun = time.perf_counter()
            generate(tiny, full_captions(scene), [SEED], **options)
            taken.append(time.perf_counter() - begun)
        return round(sorted(taken[1:])[len(taken[1:]) // 2], 3)

    return {
        "load_seconds": round(loaded, 3),
        "txt2img_seconds": median_seconds(),
        "controlnet_txt2img_seconds": median_seconds(control="canny", inputs=canny),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "dtype": "fp32",
    }


@click.command(help=__doc__)
@click.option("--weights", type=click.Path(path_type=Path, exists=True), default=WEIGHTS, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=MEASURES, show_default=True)
@click.option("--count", default=48, show_default=True, help="Held-out prompts of the sweeps.")
@click.option("--only", type=click.Choice(["sweeps", "cost"]), help="Keep the other part as it stands.")
def main(weights: Path, out: Path, count: int, only: str | None) -> None:
    measures = json.loads(out.read_text()) if out.exists() else {}
    if only != "sweeps":
        # First, so that the peak is of one pipeline in use and of nothing else.
        measures["cost"] = {**cost_at_use(weights), "environment": environment("cpu")}
        print(measures["cost"])
    if only != "cost":
        scenes = sample(count, SEED, held_out=True)
        measures["sweeps"] = {**sweeps(models.load(weights), scenes), "environment": environment("cpu")}
    write_atomically(out, json.dumps(measures, indent=1) + "\n")


if __name__ == "__main__":
    main()
