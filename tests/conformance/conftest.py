"""The storages that the conformance kit is run against: each database, in both flavours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memstate_core import AsyncInMemoryStorage, AsyncSQLiteStorage, InMemoryStorage, SQLiteStorage
from memstate_core.storages.postgres import AsyncPostgresStorage, PostgresStorage
from memstate_core.testing import StorageFactory
from tests.schemas import Schemas
from tests.servers import Databases

FACTORIES: dict[str, Callable[[Path], StorageFactory]] = {
    "memory-sync": lambda _: StorageFactory(lambda _: InMemoryStorage(), persistent=False),
    "memory-async": lambda _: StorageFactory(lambda _: AsyncInMemoryStorage(), persistent=False),
    "sqlite-file-sync": lambda path: StorageFactory(
        lambda name: SQLiteStorage(path / f"{name}.db", timeout=5), persistent=True
    ),
    "sqlite-file-async": lambda path: StorageFactory(
        lambda name: AsyncSQLiteStorage(path / f"{name}.db", timeout=5), persistent=True
    ),
    "sqlite-memory-sync": lambda _: StorageFactory(lambda _: SQLiteStorage(":memory:"), persistent=False),
    "sqlite-memory-async": lambda _: StorageFactory(lambda _: AsyncSQLiteStorage(":memory:"), persistent=False),
}
POSTGRES: dict[str, Callable[..., Any]] = {
    "postgres-sync": PostgresStorage,
    # The other one has the index on payloads.
    "postgres-async": lambda url, **options: AsyncPostgresStorage(url, payload_index=True, **options),
}


@pytest.fixture(params=[*FACTORIES, *POSTGRES])
def storages(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageFactory]:
    if request.param in FACTORIES:
        yield FACTORIES[request.param](tmp_path)
        return
    schemas: Schemas = request.getfixturevalue("schemas")
    taken: dict[str, str] = {}

    def make(name: str) -> Any:
        schema = taken.get(name) or taken.setdefault(name, schemas.take())
        return POSTGRES[request.param](schemas.url, schema=schema)

    yield StorageFactory(make, persistent=True)
    schemas.give_back(taken.values())


@pytest.fixture(scope="session")
def schemas(postgres: Databases) -> Schemas:
    return Schemas(postgres.database())


# Cases that do not exist for a flavour; the kit would skip them.
_WITHOUT_A_CASE = [
    ("TestCancelling", "", "-sync"),  # only what waits can be cancelled
    ("test_functions_of_the_users_must_not_use_the_store", "", "-async"),  # a plain function cannot await the store
    ("test_an_asynchronous_hook_is_refused_by_a_sync_store", "", "-async"),
    ("", "KeyboardInterrupt", "-async"),  # it would end the event loop
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = str(Path(__file__).parent)

    def has_no_case(item: pytest.Item) -> bool:
        name, _, parameters = item.nodeid.partition("[")
        return str(item.path).startswith(here) and any(
            test in name and kind in parameters and flavour in parameters for test, kind, flavour in _WITHOUT_A_CASE
        )

    without = [item for item in items if has_no_case(item)]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in set(without)]
