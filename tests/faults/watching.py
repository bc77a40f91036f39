"""A storage and a hook that say how far a commit has got, so that one can end the process there.

They are the real ones; what is said comes from the storage protocol alone, so it does not depend on how the engine is
built. Between two neighbouring points lies one step of the commit, or one side of a ``COMMIT``.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memstate_core import Change
from memstate_core.hooks._vector_hook import VectorBatch
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_core.protocols import Batch, StorageTransaction, Work
from tests.faults.indexes import FileIndex

POINTS = (
    "starting",
    "recovering",
    "between two calls",
    "reading",
    "prepare: begins",
    "prepare: done",
    "claim: begins",
    "claim: written",
    "claim: committed",
    "apply: begins",
    "apply: half done",
    "apply: done",
    "decide: begins",
    "decide: written",
    "decide: committed",
    "release: begins",
    "release: written",
    "release: committed",
    "expire: begins",
    "expire: written",
    "expire: committed",
    "commit: begins",
    "commit: written",
    "commit: committed",
    "define: begins",
    "define: written",
    "define: committed",
)

At = Callable[[str], None]


class Board:
    """Two bytes in a file, which another process sees: the last point that was passed, and one at which to linger."""

    def __init__(self, path: str | Path) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(file, mmap.PAGESIZE)
        self._memory = mmap.mmap(file, mmap.PAGESIZE)
        os.close(file)

    @property
    def point(self) -> str:
        return POINTS[self._memory[0]]

    def at(self, point: str) -> None:
        self._memory[0] = place = POINTS.index(point)
        if place and place == self._memory[1]:
            time.sleep(0.05)

    def linger_at(self, point: str) -> None:
        """Some points are passed so quickly that a kill from outside would hardly ever meet them."""
        self._memory[1] = POINTS.index(point)


class KillAt:
    """Ends this process when a point is passed for the ``n``-th time; without one, only notes what is passed."""

    def __init__(self, point: str | None = None, n: int = 1) -> None:
        self._point = point
        self._n = n
        self.passed: list[str] = []
        self.armed = False

    def __call__(self, point: str) -> None:
        if not self.armed:
            return
        self.passed.append(point)
        if point == self._point and self.passed.count(point) == self._n:
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedStorage:
    """A storage that tells ``at`` of every write; a server's does all of it between "written" and "committed"."""

    is_async = False

    def __init__(self, storage: Any, at: At) -> None:
        self._storage = storage
        self._at = at

    async def open(self) -> None:
        await self._storage.open()

    async def aclose(self) -> None:
        await self._storage.aclose()

    async def read(self, namespace: str, work: Work[Any], *, snapshot: bool = False) -> Any:
        self._at("reading")
        return await self._storage.read(namespace, work, snapshot=snapshot)

    async def write(self, namespace: str, work: Work[Any]) -> Any:
        watched: list[_WatchedTransaction] = []

        async def watch(tx: StorageTransaction) -> Any:
            watched.append(_WatchedTransaction(tx, self._at))
            return await work(watched[-1])  # type: ignore[arg-type]

        result = await self._storage.write(namespace, watch)
        self._at(f"{watched[-1].step}: committed" if watched[-1].step else "reading")
        return result


class _WatchedTransaction:
    def __init__(self, tx: StorageTransaction, at: At) -> None:
        self._tx = tx
        self._at = at
        self.step = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)

    async def write(self, batch: Batch) -> None:
        self.step = _step(batch)
        self._at(f"{self.step}: begins")
        await self._tx.write(batch)
        self._at(f"{self.step}: written")


def _step(batch: Batch) -> str:
    if batch.claims:
        return "claim" if all(claim.expires for claim in batch.claims) else "expire"
    if batch.drop_claims_of is not None:
        return "release" if batch.entry is None else "decide"
    return "define" if batch.definitions else "commit"


class WatchedChroma(ChromaSyncHook):
    """Chroma, told in two halves, with a point between them."""

    at: At

    def prepare(self, changes: Sequence[Change]) -> VectorBatch:
        self.at("prepare: begins")
        batch = super().prepare(changes)
        self._first_half = changes[: len(changes) // 2]
        self.at("prepare: done")
        return batch

    def apply(self, changes: Any) -> None:
        self.at("apply: begins")
        if self._first_half:
            super().apply(super().prepare(self._first_half))
            self.at("apply: half done")
        super().apply(changes)
        self.at("apply: done")


_OF_AN_INDEX = {
    "prepare": ("prepare: begins", "prepare: done"),
    "before": ("apply: begins",),
    "half": ("apply: half done",),
    "after": ("apply: done",),
}


def watched_file_index(path: Path, at: At) -> FileIndex:
    """An index in a file, with the same points."""

    def tell(step: str, changes: Sequence[Change]) -> None:
        for point in _OF_AN_INDEX[step]:
            at(point)

    return FileIndex(path, tell)
