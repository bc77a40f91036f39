"""The storages that tests are run against: each database, in both flavours."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memstate import (
    AsyncInMemoryStorage,
    AsyncPostgresStorage,
    AsyncRedisStorage,
    AsyncSQLiteStorage,
    InMemoryStorage,
    PostgresStorage,
    RedisStorage,
    SQLiteStorage,
)
from memstate_core.testing import StorageFactory
from tests.schemas import Schemas


def _in_memory(kind: Any, request: pytest.FixtureRequest) -> StorageFactory:
    return StorageFactory(lambda _: kind(), persistent=False)


def _in_a_file(kind: Any, request: pytest.FixtureRequest) -> StorageFactory:
    path: Path = request.getfixturevalue("tmp_path")
    return StorageFactory(lambda name: kind(path / f"{name}.db", timeout=5), persistent=True)


def _on_postgres(kind: Any, request: pytest.FixtureRequest) -> StorageFactory:
    """Every database of a test is a schema, which is used again by later tests."""
    schemas: Schemas = request.getfixturevalue("schemas")
    # The connections of one of the two are used again.
    database = schemas.url if kind.is_async else request.getfixturevalue("engine")
    taken: dict[str, str] = {}
    request.addfinalizer(lambda: schemas.give_back(taken.values()))

    def make(name: str) -> Any:
        schema = taken.get(name) or taken.setdefault(name, schemas.take())
        # One of the two has the index on payloads.
        return kind(database, schema=schema, payload_index=kind.is_async)

    return StorageFactory(make, persistent=True)


def _on_redis(kind: Any, request: pytest.FixtureRequest) -> StorageFactory:
    """Every database of a test is a prefix."""
    url, prefix = request.getfixturevalue("redis").url, uuid.uuid4().hex
    return StorageFactory(lambda name: kind(url, prefix=f"{prefix}-{name}"), persistent=True)


FACTORIES: dict[str, tuple[Callable[[Any, pytest.FixtureRequest], StorageFactory], Any]] = {
    "memory-sync": (_in_memory, InMemoryStorage),
    "memory-async": (_in_memory, AsyncInMemoryStorage),
    "sqlite-file-sync": (_in_a_file, SQLiteStorage),
    "sqlite-file-async": (_in_a_file, AsyncSQLiteStorage),
    # Its twin differs from this as that of a file does.
    "sqlite-memory-sync": (_in_memory, lambda: SQLiteStorage(":memory:")),
    "postgres-sync": (_on_postgres, PostgresStorage),
    "postgres-async": (_on_postgres, AsyncPostgresStorage),
    "redis-sync": (_on_redis, RedisStorage),
    "redis-async": (_on_redis, AsyncRedisStorage),
}
