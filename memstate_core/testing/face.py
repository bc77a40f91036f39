"""One face for both stores: everything is awaited, whether it waits or not."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from memstate_core._bridge import run
from memstate_core.async_store import AsyncMemoryStore
from memstate_core.facts import Fact, Transaction
from memstate_core.protocols import Claim, Record, StorageTransaction, Work
from memstate_core.store import MemoryStore

T = TypeVar("T")


class _Awaited:
    """An object whose methods are all awaited."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._target, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            return await result if inspect.isawaitable(result) else result

        return call


class TransactionFace(_Awaited):
    """A transaction block of either store."""

    @property
    def transaction_id(self) -> str | None:
        found: str | None = self._target.transaction_id
        return found

    def savepoint(self) -> Any:
        """The block's savepoint: ``with`` and ``rollback()``, the same in both flavours."""
        return self._target.savepoint()


class Face(_Awaited):
    """A store of either flavour, with the methods of :class:`~memstate_core.MemoryStore`, awaited."""

    def __init__(self, store: MemoryStore | AsyncMemoryStore) -> None:
        super().__init__(store)
        self.store = store
        self.is_async = isinstance(store, AsyncMemoryStore)

    @property
    def storage(self) -> Any:
        return self.store.storage

    @contextlib.asynccontextmanager
    async def transaction(self, *arguments: Any, **options: Any) -> AsyncIterator[TransactionFace]:
        block: Any = self.store.transaction(*arguments, **options)
        if self.is_async:
            async with block as tx:
                yield TransactionFace(tx)
        else:
            with block as tx:
                yield TransactionFace(tx)

    def beside(self, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Start ``work`` beside the caller: as a task, or in a thread when the store is a sync one."""
        if self.is_async:
            return asyncio.create_task(work())
        return asyncio.create_task(asyncio.to_thread(lambda: run(work())))

    # What a test looks at, past the store

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on the storage, in the store's namespace."""
        found: T = await self.storage.read(self.store.namespace, work)
        return found

    async def claims(self) -> list[Claim]:
        return await self.read(lambda tx: tx.claims())

    async def settle(self, seconds: float = 5.0) -> None:
        """Recover until nothing is in doubt any more, waiting for leases to end; some storages end them late."""
        deadline = asyncio.get_running_loop().time() + seconds
        await self.recover()
        while left := await self.claims():
            assert asyncio.get_running_loop().time() < deadline, f"still in doubt after {seconds} s: {left}"
            await asyncio.sleep(0.01)
            await self.recover()

    async def everything(self) -> dict[str, Any]:
        """All that the store has: facts in order, the whole journal, where each line stands and where its redo leads,
        and claims.

        Transactions are numbered by their place in the journal, so that two stores can be compared.
        """
        journal = list(reversed(await self.history(limit=None)))
        numbers = {one.id: number for number, one in enumerate(journal, start=1)}
        places = {0: 0} | {one.seq: number for number, one in enumerate(journal, start=1)}

        async def work(tx: StorageTransaction) -> dict[str, Any]:
            lines = {one.session_id: await tx.position(one.session_id) for one in journal}
            return {
                "lines": {session_id: (places[at.head], places[at.redo]) for session_id, at in lines.items()},
                "claims": await tx.claims(),
            }

        return {
            "facts": await self.query(),
            "journal": [_plain_transaction(one, numbers) for one in journal],
            **await self.read(work),
        }

    async def ids(self, *arguments: Any, **options: Any) -> list[str]:
        """The ids of what a query finds."""
        return [fact["id"] for fact in await self.query(*arguments, **options)]

    async def journal(self, *arguments: Any, **options: Any) -> list[str]:
        """The operations of :meth:`history`."""
        return [one.operation.value for one in await self.history(*arguments, **options)]

    async def scanned(self, collection: str, **options: Any) -> list[Record]:
        found: list[Record] = await self.scan_records(collection, **options)
        return found


def _plain_transaction(one: Transaction, numbers: Mapping[str, int]) -> tuple[Any, ...]:
    changes = {change.fact_id: (_version(change.before), _version(change.after)) for change in one.changes}
    places = [numbers[place] if place else 0 for place in (one.id, one.parent, one.position)]
    return (*places, one.session_id, one.operation.value, one.actor, one.reason, one.mark, one.ts, changes)


def _version(fact: Fact | None) -> int:
    return fact.version if fact is not None else 0


Call = Callable[..., Any]  # of what is to be awaited


def calls(*functions: Call) -> tuple[Call, ...]:
    """Calls to be tried one after the other."""
    return functions


@contextlib.contextmanager
def case(what: object) -> Iterator[None]:
    """One of many cases that are tried on one store, as a new one for each takes longer; an error names it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"the case was {what!a}")
        raise


async def maybe(result: Any | Awaitable[Any]) -> Any:
    """The result of a function that may be a coroutine function."""
    return await result if inspect.isawaitable(result) else result
