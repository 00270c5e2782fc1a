"""One of the ranks that ``bench.equality`` starts: works through the cases, rank 0 writes the answers.

torchrun --nproc-per-node 2 -m bench.equality_ranks cases.json folder
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from bench import correctness, tryout
from bench.axes import AXES
from bench.correctness import Compared
from bench.matrix import PLAIN, Row
from bench.record import write_atomically
from bench.runner.outputs import relative_error


def main(asked: Path, folder: Path) -> None:
    import torch
    import torch.distributed as dist
    from diffusers.utils import logging

    logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    rank = dist.get_rank()
    try:
        for number, (axis, values) in enumerate(json.loads(asked.read_text())):
            found = _compare(axis, Row.model_validate(values), rank)
            if rank == 0:
                write_atomically(folder / f"{number}.json", found.model_dump_json())
    except BaseException as error:
        told = " ".join(f"rank {rank}: {type(error).__name__}: {error}".split())
        (folder / f"rank{rank}.txt").write_text(told[:400])
        raise
    dist.barrier()
    os._exit(0)  # gloo's threads may outlive the interpreter's end, which then aborts


def _compare(axis: str, row: Row, rank: int) -> Compared:
    """The error is of the latents; of the decoded picture where the row's VAE is what is compared."""
    import torch.distributed as dist

    alone = row.model_copy(update={"parallel": PLAIN["parallel"], "vae": PLAIN["vae"]})
    picture = axis == "vae"
    expected = _output(alone, verified=False, picture=picture) if rank == 0 else None
    dist.barrier()
    found = _output(row, verified=True, picture=picture)
    error = relative_error(found, expected) if rank == 0 else 0.0
    return correctness.compared((axis, row.stack[axis], row), "constructed", error=error)


def _output(row: Row, *, verified: bool, picture: bool) -> Any:
    """Latents, or with ``picture`` what they are decoded to, of the row's first request: float32, on the
    host. Before it is rounded to bytes: one in a thousand pixels lies near enough to the border."""
    import torch

    with tryout.as_in_a_fresh_process():
        session = tryout.session_of(row)
        tryout.apply(session)
        found = session.run(latents=True).latents
        if picture:
            vae = session.pipe.vae
            with torch.no_grad():
                found = vae.decode(found.to(session.device, vae.dtype), return_dict=False)[0].float().cpu()
        if verified:
            for axis, option in row.stack.items():
                AXES[axis][option].verify(session)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
