"""Vector stores of every kind that there are packages for, each on an empty index."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import chromadb
import pytest
import pytest_asyncio
import sqlalchemy as sa
from chromadb.config import Settings
from langchain_chroma import Chroma
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_postgres import PGVector
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.langchain.stores import async_store, sync_store
from tests.langchain.words import DIMENSIONS, Words
from tests.servers import Databases
from tests.storages import FACTORIES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what LangChain's suite would skip, the sync tests of classes that say that they have none."""
    items[:] = [
        item
        for item in items
        if getattr(getattr(item, "cls", None), "leaves_out_sync", False) is False
        or inspect.iscoroutinefunction(getattr(item, "function", None))
    ]


_numbers = itertools.count(1)


# From the name of an index, which is new for a new name, to a vector store on it.
MakeVectorStore = Callable[[str], Any]


@pytest.fixture(scope="session")
def pgvector_url(postgres: Databases) -> str:
    return postgres.database("vectors").replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture
def vectorstores(request: pytest.FixtureRequest) -> Iterator[MakeVectorStore]:
    """Vector stores of the kind that the parameter names; those of one name are on one index."""
    prefix = f"langchain_{next(_numbers)}"
    kind: str = request.param
    if kind == "memory":
        made: dict[str, InMemoryVectorStore] = {}
        yield lambda name: made.setdefault(name, InMemoryVectorStore(Words()))
    elif kind == "chroma":
        client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
        cosine: Any = {"hnsw": {"space": "cosine"}}
        yield lambda name: Chroma(f"{prefix}-{name}", Words(), client=client, collection_configuration=cosine)
    elif kind == "qdrant":
        yield from _qdrant(prefix)
    elif kind == "pgvector":
        engine = sa.create_engine(request.getfixturevalue("pgvector_url"))
        yield lambda name: PGVector(Words(), connection=engine, collection_name=f"{prefix}-{name}")
        engine.dispose()
    else:
        # A connection belongs to the loop of its test.
        later = create_async_engine(request.getfixturevalue("pgvector_url"), poolclass=NullPool)
        yield lambda name: PGVector(Words(), connection=later, collection_name=f"{prefix}-{name}")
        asyncio.run(later.dispose())


def _qdrant(prefix: str) -> Iterator[MakeVectorStore]:
    client = QdrantClient(":memory:")

    def make(name: str) -> QdrantVectorStore:
        collection = f"{prefix}-{name}"
        if not client.collection_exists(collection):
            parameters = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
            client.create_collection(collection, parameters)
        return QdrantVectorStore(client, collection, Words())

    yield make
    client.close()


@pytest_asyncio.fixture(params=[kind for kind in FACTORIES if not kind.startswith("sqlite-memory")])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A store with an index, on every storage."""
    make, kind = FACTORIES[request.param]
    storages = make(kind, request)
    storage: Any = storages.new()
    yield async_store(storage) if storage.is_async else sync_store(storage)
    await storages.aclose()
