"""A rank as ``bench.runner.processes`` sees it, that imports nothing slow: what it does when it is asked
``answer`` stands in the environment, as ``RANK_0="..."``:

``hang``, ``kill``, ``segfault``, ``close`` its connection and live on, ``abort`` as of itself, ``watchdog``
as NCCL aborts whoever waited in vain, ``peer``: fail as gloo lets whoever waited in vain, ``raise``. Behind
a word there may be the seconds to wait before: ``abort 0.5``. Into the folder ``READY`` it writes a file of
its rank's name when it can be asked.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bench.record import Code, Status
from bench.runner.messages import Failed


def act(what: str, connection: Connection) -> None:
    if what == "hang":
        time.sleep(600)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "close":
        connection.close()
        time.sleep(600)
    elif what == "watchdog":
        print("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)", flush=True)
        os.abort()
    elif what == "abort":
        os.abort()
    else:
        failed = Status(code=Code.CRASHED, reason={"peer": "Timed out waiting", "raise": "mine"}[what])
        connection.send(Failed(failed, of_a_peer=what == "peer"))


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    with Connection(int(sys.argv[1])) as connection:
        connection.recv()
        (Path(os.environ["READY"]) / os.environ["RANK"]).touch()
        connection.recv()
        what, _, seconds = os.environ[f"RANK_{os.environ['RANK']}"].partition(" ")
        time.sleep(float(seconds or 0))
        print("progress bar", flush=True)
        act(what, connection)
        connection.recv()
