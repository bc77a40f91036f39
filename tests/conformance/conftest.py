"""The storages that the conformance kit is run against: each database, in both flavours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memstate_core import AsyncInMemoryStorage, AsyncSQLiteStorage, InMemoryStorage, SQLiteStorage
from memstate_core.testing import StorageFactory

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


@pytest.fixture(params=FACTORIES)
def storages(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return FACTORIES[request.param](tmp_path)
