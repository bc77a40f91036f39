"""The process that is killed: it makes a mistake, and stops in the middle of its commit.

It takes its :class:`Job` as a line of JSON from stdin, writes the line :data:`READY` when it has stopped, and then
waits for ``SIGKILL``. Should the other process be gone instead, it ends without tidying up.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from memstate_core.demo.memory import DATABASE, Memory, opened_client
from memstate_core.demo.mistakes import confuse
from memstate_core.hooks._vector_hook import VectorBatch
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_core.protocols import Hook, StorageTransaction, Work
from memstate_core.storages.sqlite import SQLiteStorage

T = TypeVar("T")

READY: Final = "ready"

# Where a dead process cannot be told from a slow one, its facts are free only after this.
LEASE: Final = 2.0


class Point(StrEnum):
    """Where in the commit the process is killed."""

    CLAIMED = "the index has not been told"
    HALF_APPLIED = "half of the index is written"
    UNDECIDED = "all of the index is written, the database not yet"
    DECIDED = "the database has just committed"


class Job(NamedTuple):
    directory: str
    session_id: str
    speakers: list[str]
    seed: int
    point: str

    def to_line(self) -> str:
        return json.dumps(self._asdict()) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Job:
        return cls(**json.loads(line))


class Stopping:
    """Stops the process at a point of its first commit."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self.applied = False

    def reached(self, point: Point) -> None:
        if point is self.point:
            print(READY, flush=True)
            sys.stdin.read()
            os._exit(1)

    def hook(self, hook: ChromaSyncHook) -> Hook:
        return _Hook(hook, self)


class _Hook:
    """The hook for Chroma, which can be stopped."""

    def __init__(self, hook: ChromaSyncHook, stopping: Stopping) -> None:
        self.hook = hook
        self.stopping = stopping
        self.name = hook.name
        self.prepare = hook.prepare

    def apply(self, changes: Any) -> None:
        self.stopping.reached(Point.CLAIMED)
        if self.stopping.point is Point.HALF_APPLIED:
            self.hook.apply(_half(changes))
        self.stopping.reached(Point.HALF_APPLIED)
        self.hook.apply(changes)
        self.stopping.applied = True


def _half(batch: VectorBatch) -> VectorBatch:
    """What an index has been told of a batch when it is half done: some entries written, nothing deleted."""
    half = slice((len(batch.ids) + 1) // 2)
    return VectorBatch(batch.ids[half], batch.texts[half], batch.vectors[half], batch.metadatas[half], [])


class _Storage(SQLiteStorage):
    """Storage that can be stopped in the transaction that decides: the one after the index was told."""

    def __init__(self, path: Path, stopping: Stopping) -> None:
        super().__init__(path)
        self._stopping = stopping

    async def write(self, namespace: str, work: Work[T]) -> T:
        # Another thread renews the claims meanwhile.
        if not self._stopping.applied or threading.current_thread() is not threading.main_thread():
            return await super().write(namespace, work)

        async def stopped_before_commit(tx: StorageTransaction) -> T:
            result = await work(tx)
            self._stopping.reached(Point.UNDECIDED)
            return result

        result = await super().write(namespace, stopped_before_commit)
        self._stopping.reached(Point.DECIDED)
        return result


def main() -> int:
    line = sys.stdin.readline()
    if not line:
        return 0  # it was not needed
    job = Job.from_line(line)
    stopping = Stopping(Point(job.point))
    directory = Path(job.directory)
    with opened_client(directory) as client, _Storage(directory / DATABASE, stopping) as storage:
        memory = Memory(storage, client, wrap=stopping.hook, lease=LEASE)
        confuse(memory, job.session_id, job.speakers, job.seed)
    return 1  # it should not have got so far


if __name__ == "__main__":
    sys.exit(main())
