"""The storages that the conformance kit is run against: each database, in both flavours."""

from __future__ import annotations

import uuid
import zlib
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
from memstate_core.testing.profiles import THOROUGH
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


@pytest.fixture(params=FACTORIES)
def storages(request: pytest.FixtureRequest) -> StorageFactory:
    make, kind = FACTORIES[request.param]
    return make(kind, request)


# Cases that do not exist for a flavour; the kit would skip them.
_WITHOUT_A_CASE = [
    ("TestCancelling", "", "-sync"),  # only what waits can be cancelled
    ("test_functions_of_the_users_must_not_use_the_store", "", "-async"),  # a plain function cannot await the store
    ("test_an_asynchronous_hook_is_refused_by_a_sync_store", "", "-async"),
    ("", "KeyboardInterrupt", "-async"),  # it would end the event loop
]

# The two flavours of a storage that needs a server differ in how they reach it, which these try on both. Each other
# test is the sync one's on one of these storages, and the async one's on the other, in turns; with
# HYPOTHESIS_PROFILE=thorough, both on both.
_SERVED = ("postgres", "redis")
_OF_STORAGES = ("opening", "outbox", "racing", "records", "storage_protocol")

# To a storage these look like commit, update or rollback; what differs is the engine's. Where they are tried at every
# step, one of those that need a server is enough.
_ALIKE = ("commit again", "commit_model", "delete", "rollback to", "redo", "checkout")
_AT_EVERY_STEP = ("test_with_hooks", "test_without_hooks", "test_at_every_await", "test_at_every_call")


def _storage(item: pytest.Item) -> str:
    case = getattr(item, "callspec", None)
    return case.params.get("storages", "") if case else ""


def _is_tried_elsewhere(item: pytest.Item, there: set[str]) -> bool:
    storage = _storage(item)
    database, _, flavour = storage.rpartition("-")
    if database not in _SERVED or item.path.stem.removeprefix("test_") in _OF_STORAGES:
        return False
    turn = zlib.crc32(item.nodeid.replace(storage, "").encode())
    test, _, parameters = item.nodeid.partition("[")
    is_alike = any(one in test for one in _AT_EVERY_STEP) and any(
        parameters.removeprefix(f"{storage}-").startswith(act) for act in _ALIKE
    )
    if is_alike and database != _SERVED[turn // 2 % 2]:
        return True
    twin = item.nodeid.replace(storage, f"{database}-{'sync' if flavour == 'async' else 'async'}")
    return twin in there and (flavour == "async") == bool((turn + _SERVED.index(database)) % 2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def has_no_case(item: pytest.Item) -> bool:
        name, _, parameters = item.nodeid.partition("[")
        return any(
            test in name and kind in parameters and flavour in parameters for test, kind, flavour in _WITHOUT_A_CASE
        )

    ours = [item for item in items if here in item.path.parents]
    without = {item for item in ours if has_no_case(item)}
    if not THOROUGH:
        there = {item.nodeid for item in ours if item not in without}
        without.update(item for item in ours if _is_tried_elsewhere(item, there))
    config.hook.pytest_deselected(items=list(without))
    items[:] = [item for item in items if item not in without]
