"""One of the ranks that ``bench.equality`` starts: works through the cases, rank 0 writes the answers.

torchrun --nproc-per-node 2 -m bench.equality_ranks cases.json folder
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from bench import correctness, tryout
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
        (folder / f"rank{rank}.txt").write_text(f"rank {rank}: {tryout.told(error)}")
        raise
    dist.barrier()
    os._exit(0)  # gloo's threads may outlive the interpreter's end, which then aborts


def _compare(axis: str, row: Row, rank: int) -> Compared:
    """The error is of the latents; of the decoded picture where the row's VAE is what is compared."""
    import torch.distributed as dist

    alone = row.model_copy(update={"parallel": PLAIN["parallel"], "vae": PLAIN["vae"]})
    decoded = axis == "vae"
    expected = None
    if rank == 0:
        with tryout.as_in_a_fresh_process():
            expected = correctness.painted(alone, decoded=decoded)
    dist.barrier()
    with tryout.as_in_a_fresh_process():
        found = correctness.painted(row, decoded=decoded, verified=True)
    error = relative_error(found, expected) if rank == 0 else 0.0
    return correctness.compared((axis, row.stack[axis], row), "constructed", error=error)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
