"""What the processes of ``test_leases.py`` do: be stopped in the midst of a commit for longer than its lease."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memstate_core import Change, ConflictError, MemoryStore
from tests.faults.indexes import FileIndex
from tests.faults.model import register
from tests.faults.places import Place

LEASE = 0.3
# For who must not lose it, though the machine stands still for a moment.
LONG_LEASE = 1.5


def open_store(directory: str | Path, fault: Any = None, lease: float = LEASE) -> tuple[MemoryStore, FileIndex]:
    index = FileIndex(Path(directory) / "index.db", fault)
    store = MemoryStore(Place.of(directory).storage(), [index], lease=lease, claim_timeout=100)
    register(store)
    return store, index


def stop_in_the_midst(directory: str, step: str, expected_version: int | None) -> None:
    """Stop as on ``SIGSTOP`` when a step of the index is reached; carry on when told to.

    With ``expected_version`` the update is not tried again on what another has made of the fact meanwhile.
    """
    stopped = False

    def stop(now: str, changes: object) -> None:
        nonlocal stopped
        if now == step and not stopped:
            stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)

    store, _ = open_store(directory, stop)
    if expected_version is None:
        store.update("fields", {"a": 1})
        return
    try:
        store.update("fields", {"a": 1}, expected_version=expected_version)
    except ConflictError as error:
        assert error.actual_version == expected_version + 1
    else:
        raise AssertionError("it did not notice")


def wait_in_the_midst(directory: str, step: str) -> None:
    """Wait at a step of the index until a file is there: of the commit itself, and not of the healing before it."""
    here = Path(directory)

    def wait(now: str, changes: Sequence[Change]) -> None:
        if now == step and any(change.after and change.after.payload["b"] for change in changes):
            (here / "waited").touch()
            while not (here / "go on").exists():
                time.sleep(0.001)

    store, _ = open_store(directory, wait)
    store.update("fields", {"b": 1})


def write_slowly(directory: str) -> None:
    """Take two leases' time in the index."""

    def be_slow(now: str, changes: object) -> None:
        if now == "half":
            (Path(directory) / "slow").touch()
            time.sleep(2 * LONG_LEASE)

    store, _ = open_store(directory, be_slow, LONG_LEASE)
    store.update("fields", {"a": 1})
