"""Stores as an application would have them, for ``memstate worker``; ``MEMORY`` is where they keep their data."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import BaseModel

from memstate_core import AsyncMemoryStore, AsyncSQLiteStorage, MemoryStore, SQLiteStorage
from memstate_core.facts import Fact, Operation
from memstate_core.storages.redis import RedisStorage
from tests.faults.indexes import FileIndex


class Note(BaseModel):
    text: str = ""


def directory() -> Path:
    return Path(os.environ["MEMORY"])


def index() -> FileIndex:
    return FileIndex(directory() / "index.db")


def slow_index() -> FileIndex:
    return FileIndex(directory() / "index.db", lambda step, changes: time.sleep(0.002))


def store() -> MemoryStore:
    made = MemoryStore(SQLiteStorage(directory() / "memory.db"), [slow_index()], delivery="deferred", lease=1.0)
    made.register_schema("note", Note)
    return made


async def async_store() -> AsyncMemoryStore:
    made = AsyncMemoryStore(
        AsyncSQLiteStorage(directory() / "memory.db"), [slow_index()], delivery="deferred", lease=1.0
    )
    made.register_schema("note", Note)
    return made


def plain_store() -> MemoryStore:
    """Without a deferred hook."""
    return MemoryStore(SQLiteStorage(directory() / "memory.db"))


def failing_store() -> MemoryStore:
    def index(operation: Operation, fact_id: str, fact: Fact | None) -> None:
        raise OSError("the index is away")

    return MemoryStore(SQLiteStorage(directory() / "memory.db"), [index], delivery="deferred")


def redis_store() -> MemoryStore:
    storage = RedisStorage(os.environ["REDIS"], prefix="worker", timeout=0.2)
    return MemoryStore(storage, [index()], delivery="deferred", allow_unregistered=True)


def broken() -> MemoryStore:
    raise ModuleNotFoundError("no module named elsewhere", name="elsewhere")


number = 7
