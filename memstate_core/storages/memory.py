"""Storage in this process's memory: it defines what the others must do, and forgets everything at the end."""

from __future__ import annotations

import threading
from collections import defaultdict
from types import TracebackType
from typing import Self, TypeVar

from memstate_core._bridge import run
from memstate_core.errors import ClosedError
from memstate_core.protocols import Work
from memstate_core.storages._forks import tell_of_forks
from memstate_core.storages._locks import refuse_nesting
from memstate_core.storages._memory.tables import Tables
from memstate_core.storages._memory.transaction import MemoryTransaction

T = TypeVar("T")


class InMemoryStorage:
    """Storage in memory, for tests, notebooks and short-lived agents.

    May be shared by threads and by several stores. A forked process goes on with a copy of its own.
    """

    is_async = False

    def __init__(self) -> None:
        self._namespaces: dict[str, Tables] = defaultdict(Tables)
        self._lock = threading.RLock()
        self._seq = 0
        self._closed = False
        tell_of_forks(self)

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self, *, in_child: bool) -> None:
        self._lock.release()

    async def open(self) -> None:
        self._check_open()

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        self._check_open()
        refuse_nesting(self._lock)
        with self._lock:
            return await work(MemoryTransaction(self._namespaces[namespace], 0))

    async def write(self, namespace: str, work: Work[T]) -> T:
        self._check_open()
        refuse_nesting(self._lock)
        with self._lock:
            tx = MemoryTransaction(self._namespaces[namespace], self._seq + 1)
            result = await work(tx)
            if tx.staged:
                self.lay_down(tx)
            return result

    async def namespaces(self) -> list[str]:
        self._check_open()
        refuse_nesting(self._lock)
        with self._lock:
            return sorted(name for name, data in self._namespaces.items() if data.has_anything)

    def lay_down(self, tx: MemoryTransaction) -> None:
        """Do what was staged, to its end also when Ctrl-C comes meanwhile: nothing in it can fail by itself."""
        interruption: BaseException | None = None
        while True:
            try:
                for step, arguments in tx.staged:
                    step(*arguments)
                self._seq = tx.seq
                break
            except Exception:
                raise
            except BaseException as error:
                interruption = interruption or error
        if interruption is not None:
            raise interruption

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this InMemoryStorage was closed; what it held is gone, make a new one")

    async def aclose(self) -> None:
        self._closed = True
        self._namespaces.clear()

    def close(self) -> None:
        """Forget everything."""
        run(self.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncInMemoryStorage(InMemoryStorage):
    """The same for an :class:`~memstate_core.AsyncMemoryStore`; it never waits."""

    is_async = True

    async def connect(self) -> None:
        """Nothing to connect to; here so that storages can be exchanged."""
        await self.open()

    async def create_tables(self) -> None:
        """Nothing to create; here so that storages can be exchanged."""
        await self.open()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
