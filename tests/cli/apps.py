"""Stores as an application would have them, for the commands; ``MEMORY`` is where they keep their data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from memstate_core import AsyncMemoryStore, AsyncSQLiteStorage, Change, MemoryStore, SQLiteStorage
from memstate_core.facts import Fact, Operation
from tests.faults.indexes import FileIndex
from tests.faults.rebuilds import NamedTables


def directory() -> Path:
    return Path(os.environ["MEMORY"])


def index(name: str = "index") -> FileIndex:
    return FileIndex(directory() / f"{name}.db", name=name)


def store() -> MemoryStore:
    return MemoryStore(
        SQLiteStorage(directory() / "memory.db"), [index(), index("second")], allow_unregistered=True, claim_timeout=0.1
    )


async def async_store() -> AsyncMemoryStore:
    storage = AsyncSQLiteStorage(directory() / "memory.db")
    return AsyncMemoryStore(storage, [index(), index("second")], allow_unregistered=True)


def rebuilt_index() -> NamedTables:
    return NamedTables(directory() / "named.db")


def rebuilt_store() -> MemoryStore:
    return MemoryStore(SQLiteStorage(directory() / "memory.db"), [rebuilt_index()], allow_unregistered=True)


def away(step: str, changes: Sequence[Change]) -> None:
    raise OSError("the index is away")


def failing_store() -> MemoryStore:
    hook = FileIndex(directory() / "index.db", away)
    return MemoryStore(SQLiteStorage(directory() / "memory.db"), [hook], allow_unregistered=True)


def bare_store() -> MemoryStore:
    return MemoryStore(SQLiteStorage(directory() / "memory.db"), allow_unregistered=True)


def unlisted_store() -> MemoryStore:
    """With a hook that cannot be listed."""

    def mirror(operation: Operation, fact_id: str, fact: Fact | None) -> None: ...

    return MemoryStore(SQLiteStorage(directory() / "memory.db"), [mirror], allow_unregistered=True)
