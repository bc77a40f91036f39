"""Every flavour of Chroma and of Qdrant behind one face: what the tests call is awaited, whether it waits or not."""

from __future__ import annotations

import contextlib
import copy
import inspect
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.config import Settings
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client.embed import schema_parser

from memstate_core.embedding import LexicalEmbedder
from memstate_core.hooks.chroma import AsyncChromaSyncHook, ChromaSyncHook
from memstate_core.hooks.qdrant import AsyncQdrantSyncHook, QdrantSyncHook
from memstate_core.testing.hooks import scan
from tests.servers import chroma_server, qdrant_server
from tests.servers.processes import memory_directory

# Every client has a copy of all that is known of its requests, to make which takes longer than most tests; it need not
# be a deep one.
schema_parser.deepcopy = copy.copy

# Made once, as that takes longer than many tests, and copied, as clients write into them.
_SETTINGS = Settings(anonymized_telemetry=False)


def settings() -> Settings:
    """All clients of Chroma's that are embedded in a process must have the same."""
    return _SETTINGS.model_copy()


def remote_settings() -> Settings:
    """Without certificates, which no server here has, and which take longer to read than most tests."""
    return _SETTINGS.model_copy(update={"chroma_server_ssl_verify": False})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs what needs a server, so that there is one of each: they take seconds to start."""
    here = Path(__file__).parent
    for item in items:
        case = getattr(item, "callspec", None)
        needed = {"async_http", "chroma_address", "qdrant_url"} & set(getattr(item, "fixturenames", ()))
        if here in item.path.parents and (needed or (case and any("http" in str(one) for one in case.params.values()))):
            item.add_marker(pytest.mark.xdist_group("indexes"))


class Awaited:
    """An object whose methods are awaited, even where they answer at once."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.target, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            if name == "scan":
                return await scan(self.target)
            result = method(*arguments, **options)
            return await result if inspect.isawaitable(result) else result

        return call


class Chroma:
    """A client, with hooks and collections under names that no other test uses."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.name = f"memory-{uuid.uuid4().hex}"

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.client.get_or_create_collection)

    def hook(self, **options: Any) -> Any:
        options = {"collection_name": self.name, "embedding_fn": LexicalEmbedder(64), **options}
        return Awaited((AsyncChromaSyncHook if self.is_async else ChromaSyncHook)(self.client, **options))

    async def create(self, **options: Any) -> Any:
        return Awaited(
            await Awaited(self.client).create_collection(self.name, **{"embedding_function": None, **options})
        )

    async def collection(self) -> Any:
        return Awaited(await Awaited(self.client).get_collection(self.name, embedding_function=None))

    async def delete(self) -> None:
        await Awaited(self.client).delete_collection(self.name)

    async def names(self) -> set[str]:
        return {collection.name for collection in await Awaited(self.client).list_collections()}

    async def left_behind(self) -> set[str]:
        """The collections of the hooks but for the one in use."""
        return {name for name in await self.names() if name.startswith(self.name)} - {self.name}


@pytest.fixture(scope="session")
def chroma_address() -> Iterator[tuple[str, int]]:
    with chroma_server() as address:
        yield address


@pytest.fixture(scope="session")
def chroma_directory() -> Iterator[str]:
    """Of one database for all tests; to make it takes longer than most of them."""
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        yield directory


async def opened_chroma(flavour: str, request: pytest.FixtureRequest) -> Chroma:
    client: Any
    if flavour == "ephemeral":
        client = chromadb.EphemeralClient(settings())
    elif flavour == "persistent":
        client = chromadb.PersistentClient(request.getfixturevalue("chroma_directory"), settings())
    else:
        host, port = request.getfixturevalue("chroma_address")
        if flavour == "http":
            client = chromadb.HttpClient(host, port, settings=remote_settings())
        else:
            client = await chromadb.AsyncHttpClient(host, port, settings=remote_settings())
    return Chroma(client)


@pytest.fixture(params=["ephemeral", "persistent", "http", "async http"])
async def chroma(request: pytest.FixtureRequest) -> Chroma:
    return await opened_chroma(request.param, request)


@pytest.fixture
def ephemeral() -> Chroma:
    """For what does not depend on the client."""
    return Chroma(chromadb.EphemeralClient(settings()))


@pytest.fixture
async def async_http(chroma_address: tuple[str, int]) -> Chroma:
    host, port = chroma_address
    return Chroma(await chromadb.AsyncHttpClient(host, port, settings=remote_settings()))


class Qdrant:
    """A client, with hooks and a collection under a name that no other test uses."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.name = f"memory-{uuid.uuid4().hex}"

    @property
    def is_async(self) -> bool:
        return isinstance(self.client, AsyncQdrantClient)

    @property
    def is_embedded(self) -> bool:
        return "Local" in type(self.client._client).__name__

    @property
    def asked(self) -> Any:
        """The client, whose methods are awaited."""
        return Awaited(self.client)

    def hook(self, **options: Any) -> Any:
        options = {"collection_name": self.name, "embedding_fn": LexicalEmbedder(64), **options}
        return Awaited((AsyncQdrantSyncHook if self.is_async else QdrantSyncHook)(self.client, **options))

    async def payloads(self) -> dict[str, dict[str, Any]]:
        """What the points have beside their vectors, by fact id."""
        points, _ = await self.asked.scroll(self.name, limit=10_000)
        return {point.payload["memstate_fact_id"]: point.payload for point in points}

    async def left_behind(self) -> set[str]:
        """The collections of the hooks, and their aliases, but for the one in use."""
        collections = {one.name for one in (await self.asked.get_collections()).collections}
        aliases = {one.alias_name: one.collection_name for one in (await self.asked.get_aliases()).aliases}
        names = {name for name in collections | aliases.keys() if name.startswith(self.name)}
        # Where a server has both, the collection of the name is hidden by the alias.
        hidden = {self.name} if self.name in collections and self.name in aliases else set()
        return (names - {self.name, aliases.get(self.name)}) | hidden


@pytest.fixture(scope="session")
def qdrant_url() -> Iterator[str]:
    with qdrant_server() as url:
        yield url


@contextlib.asynccontextmanager
async def opened_qdrant(flavour: str, request: pytest.FixtureRequest) -> AsyncIterator[Qdrant]:
    kind, place = (AsyncQdrantClient if "async" in flavour else QdrantClient), flavour.rpartition(" ")[2]
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        if place == "memory":
            client = kind(":memory:")
        elif place == "disk":
            client = kind(path=directory)  # of a file for each collection, which syncs every point
        else:
            client = kind(request.getfixturevalue("qdrant_url"), verify=False)  # as with Chroma
        yield Qdrant(client)
        await Awaited(client).close()


@pytest.fixture(params=["memory", "disk", "http", "async http"])
async def qdrant(request: pytest.FixtureRequest) -> AsyncIterator[Qdrant]:
    async with opened_qdrant(request.param, request) as place:
        yield place


@pytest.fixture(params=["memory", "disk", "http", "async memory", "async http"])
async def every_qdrant(request: pytest.FixtureRequest) -> AsyncIterator[Qdrant]:
    async with opened_qdrant(request.param, request) as place:
        yield place


@pytest.fixture
def in_memory() -> Iterator[Qdrant]:
    """For what does not depend on the client."""
    client = QdrantClient(":memory:")
    yield Qdrant(client)
    client.close()


# What a test of any index takes: the vendor and the flavour.
CHROMA = [f"chroma {flavour}" for flavour in ("ephemeral", "persistent", "http", "async http")]
QDRANT = [f"qdrant {flavour}" for flavour in ("memory", "disk", "http", "async memory", "async http")]
EMBEDDED = ["chroma ephemeral", "qdrant memory"]


@pytest.fixture(params=[*CHROMA, *QDRANT])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Chroma | Qdrant]:
    vendor, _, flavour = request.param.partition(" ")
    if vendor == "chroma":
        yield await opened_chroma(flavour, request)
    else:
        async with opened_qdrant(flavour, request) as opened:
            yield opened
