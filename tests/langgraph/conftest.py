"""Memories, checkpointers and LangGraph stores on every storage, in both flavours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from memstate import AsyncMemoryStore, MemoryStore
from memstate_core.testing import StorageFactory
from memstate_langgraph import AsyncMemStateCheckpointer, AsyncMemStateStore, MemStateCheckpointer, MemStateStore
from tests.storages import FACTORIES

KINDS = [kind for kind in FACTORIES if not kind.startswith("sqlite-memory")]


class Makes:
    """Makes memories, checkpointers and LangGraph stores on storages of one kind."""

    def __init__(self, storages: StorageFactory) -> None:
        self.storages = storages

    def store(self, storage: Any = None, **options: Any) -> Any:
        storage = self.storages.new() if storage is None else storage
        flavour: Any = AsyncMemoryStore if storage.is_async else MemoryStore
        return flavour(storage, allow_unregistered=True, **options)

    def checkpointer(self, store: Any = None, **options: Any) -> Any:
        store = self.store() if store is None else store
        flavour: Any = AsyncMemStateCheckpointer if store.storage.is_async else MemStateCheckpointer
        return flavour(store, **options)

    def items(self, store: Any = None, **options: Any) -> Any:
        store = self.store() if store is None else store
        flavour: Any = AsyncMemStateStore if store.storage.is_async else MemStateStore
        return flavour(store, **options)


@pytest_asyncio.fixture(params=KINDS)
async def makes(request: pytest.FixtureRequest) -> AsyncIterator[Makes]:
    make, kind = FACTORIES[request.param]
    storages = make(kind, request)
    yield Makes(storages)
    await storages.aclose()


@pytest_asyncio.fixture(params=["memory-sync", "memory-async", "sqlite-file-sync", "sqlite-file-async"])
async def makes_here(request: pytest.FixtureRequest) -> AsyncIterator[Makes]:
    """The same on what needs no server."""
    make, kind = FACTORIES[request.param]
    storages = make(kind, request)
    yield Makes(storages)
    await storages.aclose()


@pytest_asyncio.fixture(params=["memory-sync", "memory-async"])
async def makes_in_memory(request: pytest.FixtureRequest) -> AsyncIterator[Makes]:
    make, kind = FACTORIES[request.param]
    storages = make(kind, request)
    yield Makes(storages)
    await storages.aclose()
