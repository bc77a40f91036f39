"""Stores of both flavours behind one face: what the tests call is awaited, whether it waits or not."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memstate_core import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    AsyncSQLiteStorage,
    InMemoryStorage,
    MemoryStore,
    SQLiteStorage,
)
from tests.faults.indexes import Index
from tests.faults.model import RECORDS, Image, Op, perform, record_of, register

FLAVOURS = ["memory", "sqlite", "async memory", "async sqlite"]


@dataclass
class Flavour:
    """One kind of storage, and stores on it."""

    name: str
    database: Path

    def __post_init__(self) -> None:
        kinds = {
            "memory": InMemoryStorage,
            "async memory": AsyncInMemoryStorage,
            "sqlite": lambda: SQLiteStorage(self.database),
            "async sqlite": lambda: AsyncSQLiteStorage(self.database),
        }
        self.storage: Any = kinds[self.name]()

    @property
    def is_async(self) -> bool:
        return self.name.startswith("async")

    @property
    def is_sqlite(self) -> bool:
        return self.name.endswith("sqlite")

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
        if op[0] != "block" or not isinstance(self.store, AsyncMemoryStore):
            return await awaited(perform(self.store, op))
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

    async def journal(self) -> list[Any]:
        return list(await self.history(limit=None))


async def awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
