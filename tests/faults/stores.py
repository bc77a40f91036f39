"""Stores of both flavours behind one face: what the tests call is awaited, whether it waits or not."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memstate_core import AsyncInMemoryStorage, AsyncMemoryStore, InMemoryStorage, MemoryStore
from memstate_core.protocols import Claim
from tests.faults.indexes import Index
from tests.faults.model import RECORDS, Image, Op, nth, perform, record_of, register
from tests.faults.places import PATIENCE, Place

# Of each server's storage one flavour, as they differ in who waits, and the conformance kit is run against both.
FLAVOURS = ["memory", "sqlite", "postgres", "async memory", "async sqlite", "async redis"]


@dataclass
class Flavour:
    """One kind of storage, and stores on it; ``place`` is None for one in memory. ``kept``: see :class:`Place`."""

    name: str
    place: Place | None
    timeout: float = PATIENCE
    kept: bool = False

    def __post_init__(self) -> None:
        if self.place is None:
            self.storage: Any = AsyncInMemoryStorage() if self.is_async else InMemoryStorage()
        elif self.is_async:
            self.storage = self.place.async_storage(self.timeout)
        else:
            self.storage = self.place.storage(self.timeout, kept=self.kept)

    @property
    def is_async(self) -> bool:
        return self.name.startswith("async")

    @property
    def is_sqlite(self) -> bool:
        return self.name.endswith("sqlite")

    @property
    def database(self) -> Path:
        """The file, if it is one."""
        assert self.place is not None
        return Path(self.place.where)

    def open(self, hooks: Sequence[Any] = (), **options: Any) -> Awaited:
        """A store with these hooks; indexes come in the flavour of the store."""
        flavoured = [hook.asynchronous() if self.is_async and isinstance(hook, Index) else hook for hook in hooks]
        store = (AsyncMemoryStore if self.is_async else MemoryStore)(self.storage, flavoured, **options)
        register(store)
        return Awaited(store)

    async def close(self) -> None:
        await awaited(self.storage.close())


class Awaited:
    """A store whose methods are awaited, even where they answer at once."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return await awaited(method(*arguments, **options))

        return call

    async def perform(self, op: Op) -> Any:
        """Carry out an operation of :mod:`tests.faults.model`."""
        if not isinstance(self.store, AsyncMemoryStore) or op[0] not in ("block", "checkout"):
            return await awaited(perform(self.store, op))
        if op[0] == "checkout":
            return await self.store.checkout(op[1], nth(await self.store.history(limit=None), op[2]))
        async with self.store.transaction(session_id=op[1]) as tx:
            tx.put_record(RECORDS, "block", record_of(op[2]).encode())
            for name, *arguments in op[2]:
                await awaited(tx.delete(arguments[0]) if name == "delete" else perform(tx, [name, *arguments]))
        return tx.transaction_id

    async def facts(self) -> dict[str, Image]:
        """The current facts as the model has them."""
        return {
            fact["id"]: Image(fact["version"], fact["type"], fact["payload"], fact["session_id"], fact["ephemeral"])
            for fact in await self.query()
        }

    async def claims(self) -> list[Claim]:
        claims: list[Claim] = await self.store.storage.read(self.store.namespace, lambda tx: tx.claims())
        return claims

    async def journal(self) -> list[Any]:
        return list(await self.history(limit=None))


async def awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
