"""Ranks as ``bench.equality_ranks``: the first case is answered, at the second one rank is lost. No rank
begins a case before the one before it is answered, as real ones meet in every case.

How, is the last word of the folder's first case's ``why``: ``hangs``, ``dies`` or ``refuses``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from bench import correctness
from bench.matrix import Row
from bench.record import write_atomically

if __name__ == "__main__":
    asked, folder, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"])
    for number, (axis, values) in enumerate(json.loads(asked.read_text())):
        while number and not (folder / f"{number - 1}.json").exists():
            time.sleep(0.01)
        row = Row.model_validate(values)
        how = row.why.split()[-1]
        if how == "answers":
            if rank == 0:
                found = correctness.compared((axis, row.stack[axis], row), "constructed", error=0.0)
                write_atomically(folder / f"{number}.json", found.model_dump_json())
        elif rank == 1 and how == "dies":
            print("it cannot go on", file=sys.stderr, flush=True)
            os._exit(7)
        elif rank == 1 and how == "refuses":
            (folder / "rank1.txt").write_text("rank 1: Unavailable: no such thing here")
            sys.exit(1)
        else:
            time.sleep(600)
