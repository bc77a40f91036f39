"""Ends what one process started, and removes its directory, once that process is gone.

``python guard.py DIRECTORY PARENT`` reads ``+ID`` for a process that was started and ``-ID`` for one that ended,
a line each, and acts on the line ``end`` or when its standard input ends. A fork can hold that open for longer, so the
parent is watched too.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time

ENDING_SECONDS = 5.0


def watch(parent: int) -> set[int]:
    """Returns the processes that still run when nobody needs them any more.

    :param parent: who started this; it may have ended before this could ask who that was.
    """
    running: set[int] = set()
    unread = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], 1.0)[0]:
            continue
        data = os.read(0, 4096)
        if not data:
            break
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            if line == b"end":
                return running
            (running.add if line.startswith(b"+") else running.discard)(int(line[1:]))
    return running


def end(processes: set[int]) -> None:
    # PostgreSQL and Redis shut down on SIGINT, and PostgreSQL takes its shared memory along.
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGINT)
    deadline = time.monotonic() + ENDING_SECONDS
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{process}") for process in processes):
        time.sleep(0.02)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)


def remove(directory: str) -> None:
    # What was killed may have children that write for another moment.
    deadline = time.monotonic() + ENDING_SECONDS
    while os.path.exists(directory) and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.02)


if __name__ == "__main__":
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    end(watch(int(sys.argv[2])))
    remove(sys.argv[1])
