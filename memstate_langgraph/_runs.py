"""One run at a time on a thread, whatever process it is in."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Final
from uuid import UUID

import ormsgpack

from memstate_core.engine import Engine
from memstate_core.errors import BusyError
from memstate_core.owners import is_gone, owning
from memstate_core.protocols import Batch, RecordWrite, StorageTransaction
from memstate_langgraph import _keys as keys

_LEASE: Final = 30.0  # seconds; renewed as long as the run lives


class Runs:
    """The runs of this process, each of which holds its thread by a record with an owner and a lease.

    :param timeout: seconds to wait for another run of the same thread.
    :param needed: what lives as long as one of these runs does, since it is told of its end.
    """

    def __init__(self, engine: Engine, timeout: float, needed: object = None) -> None:
        self._engine = engine
        self._needed = needed
        self._timeout = timeout
        self._guard = threading.Lock()
        self._held: dict[UUID, tuple[str, str, contextlib.ExitStack]] = {}

    def holds(self, run_id: UUID) -> bool:
        return run_id in self._held

    async def take(self, thread_id: str, run_id: UUID) -> None:
        """Wait until the thread is free, and hold it until the run has ended.

        :raises BusyError: another run holds it for longer than we wait.
        """
        if self.holds(run_id):
            return
        deadline = time.monotonic() + self._timeout
        pause = 0.001
        with contextlib.ExitStack() as stack:
            owner = stack.enter_context(owning())
            while (holder := await self._try(thread_id, owner)) is not None:
                now = time.monotonic()
                if now >= deadline:
                    raise BusyError(
                        f"thread {thread_id!r} is being run by another ({holder}), which has not ended for "
                        f"{self._timeout} s; wait for it, or give the run a thread of its own"
                    )
                await self._engine.runtime.sleep(min(pause, deadline - now))
                pause = min(pause * 2, 0.05)
            stack.enter_context(self._engine.runtime.keep_alive(lambda: self._renew(thread_id, owner), _LEASE / 3))
            with self._guard:
                self._held[run_id] = thread_id, owner, stack.pop_all()

    async def _try(self, thread_id: str, owner: str) -> str | None:
        """Take the thread if it is free; returns who holds it if it is not."""
        key = keys.thread(thread_id)

        async def work(tx: StorageTransaction) -> str | None:
            record = await tx.record(keys.RUNS, key, is_new=True)
            if record is not None:
                holder, expires = ormsgpack.unpackb(record)
                if expires > time.time() and not is_gone(holder):
                    return str(holder)
            await tx.write(Batch(records=[_record(key, owner)]))
            return None

        found: str | None = await self._engine.storage.write(self._engine.namespace, work)
        return found

    async def _renew(self, thread_id: str, owner: str) -> None:
        key = keys.thread(thread_id)

        async def work(tx: StorageTransaction) -> None:
            if _owner(await tx.record(keys.RUNS, key)) == owner:
                await tx.write(Batch(records=[_record(key, owner)]))

        await self._engine.storage.write(self._engine.namespace, work)

    async def leave(self, run_id: UUID) -> None:
        """The run has ended."""
        with self._guard:
            held = self._held.pop(run_id, None)
        if held is None:
            return
        thread_id, owner, stack = held
        key = keys.thread(thread_id)

        async def work(tx: StorageTransaction) -> None:
            if _owner(await tx.record(keys.RUNS, key)) == owner:
                await tx.write(Batch(records=[RecordWrite(keys.RUNS, key, None)]))

        with stack:
            await self._engine.storage.write(self._engine.namespace, work)


def _record(key: str, owner: str) -> RecordWrite:
    return RecordWrite(keys.RUNS, key, ormsgpack.packb([owner, time.time() + _LEASE]))


def _owner(record: bytes | None) -> str | None:
    return None if record is None else str(ormsgpack.unpackb(record)[0])
