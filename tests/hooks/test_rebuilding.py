"""A collection is rebuilt beside the one in use: with another model, by crashes, threads and processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.errors import ChromaError, NotFoundError
from qdrant_client import QdrantClient, models

from memstate_core import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    ConflictError,
    Fact,
    HookError,
    InMemoryStorage,
    LexicalEmbedder,
    MemoryStore,
    SQLiteStorage,
)
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_core.testing.face import Face
from tests.hooks.conftest import EMBEDDED, Awaited, Chroma, Qdrant, remote_settings
from tests.hooks.facts import fact, ids, put
from tests.hooks.test_chroma import ENVIRONMENT, ROOT
from tests.servers.processes import memory_directory

Place = Chroma | Qdrant

OLD, NEW = LexicalEmbedder(64), LexicalEmbedder(96)


class OtherModel(LexicalEmbedder):
    """As many dimensions, other directions."""

    def __call__(self, texts: Any) -> Any:
        return [list(reversed(list(vector))) for vector in super().__call__(texts)]

    embed_documents = __call__

    def embed_query(self, text: str) -> Any:
        return self([text])[0]


def store_on(place: Place, storage: Any = None, **options: Any) -> Face:
    hook = place.hook(**options).target
    if place.is_async:
        return Face(AsyncMemoryStore(storage or AsyncInMemoryStorage(), [hook], allow_unregistered=True))
    return Face(MemoryStore(storage or InMemoryStorage(), [hook], allow_unregistered=True))


async def fill(store: Face, count: int = 12) -> None:
    for number in range(count):
        await store.commit(Fact("note", {"text": f"note number {number}"}, id=f"{number}"))


async def check(store: Face, place: Place) -> None:
    assert not any(await store.verify())
    assert await place.left_behind() == set()


class TestRebuilding:
    @pytest.mark.parametrize(
        ("model", "rebuilt"), [(NEW, False), (OtherModel(64), True)], ids=["dimensions", "directions-rebuilt"]
    )
    async def test_another_model(self, place: Place, model: Any, rebuilt: bool) -> None:
        store = store_on(place, embedding_fn=OLD)
        if rebuilt:
            await store.reindex(into=place.hook(embedding_fn=OLD).target)
        other, verifying = (store_on(place, store.storage, embedding_fn=OLD) for _ in range(2))
        await fill(store)
        assert not any(await verifying.verify())
        assert (await other.search("note number 3", 1))[0].fact.id == "3"
        assert await store.reindex(into=place.hook(embedding_fn=model).target) == 12
        assert (await store.search("note number 3", 1))[0].fact.id == "3"
        await store.update("3", {"text": "told to the new one"})
        assert (await store.search("told to the new one", 1))[0].fact.id == "3"
        # Who has the old model must not write its vectors among the new ones.
        with pytest.raises(HookError, match="was rebuilt with another embedding function") as failed:
            await other.commit(Fact("note", {"text": "of the old model"}, id="refused"))
        for call in (lambda: other.search("note"), other.verify, verifying.verify):
            with pytest.raises(HookError, match="was rebuilt with another embedding function"):
                await call()
        assert not failed.value.in_doubt or (await store.recover()).healed == ("refused",)
        assert await other.get("refused") is None
        again = store_on(place, store.storage, embedding_fn=model)
        await again.commit(Fact("note", {"text": "of the new model"}, id="taken"))
        await check(again, place)
        assert await store.claims() == []

    async def test_the_same_model_goes_on_everywhere(self, place: Place) -> None:
        store = store_on(place)
        other = store_on(place, store.storage)
        await fill(store)
        for number in range(3):
            assert await store.reindex(into=place.hook().target) == 12 + number
            await other.commit(Fact("note", {"text": f"goes on {number}"}, id=f"more {number}"))
            assert (await other.search(f"goes on {number}", 1))[0].fact.id == f"more {number}"
            await check(other, place)

    async def test_what_is_not_there_yet_is_made(self, place: Place) -> None:
        store = store_on(place)
        assert await store.reindex(into=place.hook().target) == 0
        await fill(store, 2)
        await check(store, place)

    @pytest.mark.parametrize("place", EMBEDDED, indirect=True)
    async def test_entries_of_others_are_not_lost(self, place: Place) -> None:
        tenant = MemoryStore(InMemoryStorage(), [place.hook().target], namespace="tenant", allow_unregistered=True)
        tenant.commit(Fact("note", {"text": "theirs"}, id="theirs"))
        store = store_on(place)
        await fill(store)
        with pytest.raises(HookError, match="has entries of others than the namespace 'default'"):
            await store.reindex(into=place.hook().target)
        assert not any(tenant.verify())
        await check(store, place)

    @pytest.mark.parametrize("place", EMBEDDED, indirect=True)
    async def test_a_namespace_with_a_collection_of_its_own(self, place: Place) -> None:
        tenant = MemoryStore(InMemoryStorage(), [place.hook().target], namespace="tenant", allow_unregistered=True)
        await fill(Face(tenant))
        assert tenant.reindex(into=place.hook(embedding_fn=NEW).target) == 12
        assert tenant.search("note number 3", 1)[0].fact.id == "3"
        await check(Face(tenant), place)


class Killed(BaseException):
    """The hook does nothing after it, and the claims have no living owner, as after ``kill -9``."""


# What changes something when a collection is rebuilt: requests by name, and at which of them that is.
CHROMA_REQUESTS = [("modify", 1), ("modify", 2), ("delete_collection", 2), ("delete_collection", 3)]
QDRANT_REQUESTS = [
    ("create_collection", 1),
    ("update_collection_aliases", 1),  # it is new,
    ("update_collection_aliases", 2),  # ready,
    ("delete_collection", 1),
    ("update_collection_aliases", 3),  # and in use
]
KILLED_AT = [
    *itertools.product(["chroma ephemeral"], CHROMA_REQUESTS, ["before", "after"], [False]),
    *itertools.product(["qdrant memory"], QDRANT_REQUESTS, ["before", "after"], [False, True]),
    *itertools.product(["qdrant http"], QDRANT_REQUESTS, ["after"], [False, True]),
]


@pytest.mark.parametrize(("place", "request_", "when", "rebuilt"), KILLED_AT, indirect=["place"])
async def test_killed_between_the_requests(place: Place, request_: tuple[str, int], when: str, rebuilt: bool) -> None:
    store = store_on(place)
    if rebuilt:
        await store.reindex(into=place.hook().target)
    beside = store_on(place, store.storage)
    await fill(store)
    await beside.search("note")  # it has the old collection in its hand
    calls = itertools.count(1)
    hook = place.hook().target

    async def counted(function: Callable[..., Any], **arguments: Any) -> Any:
        here = function.__name__ == request_[0] and next(calls) == request_[1]
        if not here:
            return function(**arguments)
        if when == "after":
            with contextlib.suppress(NotFoundError):
                function(**arguments)
        raise Killed

    hook._names._call = counted
    with pytest.raises(Killed):
        await store.reindex(into=hook)
    # There is an index that is filled, before anybody has healed anything.
    assert (await place.hook().scan()).keys() == {f"{number}" for number in range(12)}
    # Those who were there go on, on whichever collection, and those who come see one that is filled.
    await beside.commit(Fact("note", {"text": "meanwhile"}, id="meanwhile"))
    comes = store_on(place, store.storage)
    assert (await comes.search("note number 3", 1))[0].fact.id == "3"
    await comes.recover()
    assert not any(await comes.verify())
    await beside.update("meanwhile", {"text": "after the healing"})
    assert (await comes.search("after the healing", 1))[0].fact.id == "meanwhile"
    assert not any(await comes.verify())
    assert await comes.claims() == []
    assert await comes.reindex(into=place.hook().target) == 13
    await check(comes, place)


@pytest.mark.parametrize("place", EMBEDDED, indirect=True)
async def test_beside_threads(place: Place) -> None:
    """They share a store, and have stores of their own, in one of which the model changes."""
    storage = InMemoryStorage()
    stores = [MemoryStore(storage, [place.hook().target], allow_unregistered=True) for _ in range(2)]
    ended = threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for count in itertools.count():
                if ended.is_set():
                    return
                store = stores[number % 2]
                with contextlib.suppress(ConflictError):
                    store.commit(Fact("note", {"text": f"{number} {count}"}, id=f"{number} {count % 9}"))
                    store.commit(Fact("note", {"text": f"{number} {count}"}, id="shared"))
                assert store.search(f"{number} {count}", 1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            await asyncio.sleep(0.1)
            stores[number % 2].reindex(into=place.hook().target)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    await check(Face(stores[0]), place)


@pytest.mark.parametrize("place", EMBEDDED, indirect=True)
async def test_the_model_changes_under_threads_of_the_same_store(place: Place) -> None:
    """Their commits fail on the new collection, and are carried out again with the new model."""
    store = MemoryStore(InMemoryStorage(), [place.hook(embedding_fn=OLD).target], allow_unregistered=True)
    ended = threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for count in itertools.count():
                if ended.is_set():
                    return
                store.commit(Fact("note", {"text": f"{number} {count}"}, id=f"{number} {count % 9}"))
                assert store.search(f"{number} {count}", 1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for model in (NEW, OtherModel(96), OtherModel(64), OLD):
            await asyncio.sleep(0.1)
            store.reindex(into=place.hook(embedding_fn=model).target)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    await check(Face(store), place)


WRITER = """
import itertools, sys
from memstate_core import Fact, LexicalEmbedder, MemoryStore, SQLiteStorage
path, vendor, address, name = sys.argv[1:]
if vendor == "chroma":
    import chromadb
    from memstate_core.hooks.chroma import ChromaSyncHook
    host, port = address.split(":")
    hook = ChromaSyncHook(chromadb.HttpClient(host, int(port)), name, LexicalEmbedder(64))
else:
    from qdrant_client import QdrantClient
    from memstate_core.hooks.qdrant import QdrantSyncHook
    hook = QdrantSyncHook(QdrantClient(address), name, LexicalEmbedder(64))
store = MemoryStore(SQLiteStorage(path), [hook], allow_unregistered=True)
for count in itertools.count():
    store.commit(Fact("note", {"text": f"theirs {count}"}, id=f"theirs {count % 30}"))
    assert store.search(f"theirs {count}", 1)
    if count % 5 == 4:
        store.rollback()
    print(count, flush=True)
"""


@pytest.mark.parametrize("vendor", ["chroma", "qdrant"])
async def test_beside_another_process(vendor: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place: Place
    if vendor == "chroma":
        host, port = request.getfixturevalue("chroma_address")
        address = f"{host}:{port}"
        place = Chroma(chromadb.HttpClient(host, port, settings=remote_settings()))
    else:
        address = request.getfixturevalue("qdrant_url")
        place = Qdrant(QdrantClient(address))
    path = tmp_path / "memory.db"
    store = MemoryStore(SQLiteStorage(path), [place.hook().target], allow_unregistered=True)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path, vendor, address, place.name],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as writer:
        try:
            assert writer.stdout is not None
            for _ in range(3):
                for _ in range(4):
                    assert writer.stdout.readline(), writer.stderr and writer.stderr.read()
                store.reindex(into=place.hook().target)
                store.commit(Fact("note", {"text": "ours"}, id="ours"))
            assert writer.stdout.readline(), writer.stderr and writer.stderr.read()
        finally:
            writer.kill()
    store.recover()
    await check(Face(store), place)
    if isinstance(place, Qdrant):
        place.client.close()


KILLED = """
import itertools, os, signal, sys
path = sys.argv[1]

def store_on(client):
    from memstate_core import LexicalEmbedder, MemoryStore, SQLiteStorage
    from memstate_core.hooks.qdrant import QdrantSyncHook
    hooks = [QdrantSyncHook(client, "notes", LexicalEmbedder(64)) for _ in range(2)]
    return MemoryStore(SQLiteStorage(f"{path}/memory.db"), hooks[:1], allow_unregistered=True), hooks[1]

def rebuild(client, at):
    from memstate_core import Fact
    store, hook = store_on(client)
    store.commit(Fact("note", {"text": f"before request {at}"}, id=f"{at}"))
    count = itertools.count(1)

    async def counted(function, **arguments):
        result = function(**arguments)
        if function.__name__ in CHANGING and next(count) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    hook._names._call = counted
    store.reindex(into=hook)
    store.close()

def check(client, at):
    store, hook = store_on(client)
    assert hook.scan(), "nothing in the index in use"
    store.recover()
    assert not any(store.verify())
    assert store.search(f"before request {at}", 1)[0].fact.id == f"{at}"
    assert store.reindex(into=hook) == at
    assert not any(store.verify())
    (alias,) = client.get_aliases().aliases
    assert [alias.collection_name] == [one.name for one in client.get_collections().collections]

CHANGING = ("create_collection", "update_collection_aliases", "delete_collection")

def forked(work, at):
    if (child := os.fork()) == 0:
        from qdrant_client import QdrantClient
        client = QdrantClient(path=f"{path}/qdrant")  # of which there can be one at a time
        work(client, at)
        client.close()
        os._exit(0)
    return os.waitpid(child, 0)[1]

import memstate_core.hooks.qdrant
for at in range(1, 7):
    print(at, forked(rebuild, at), forked(check, at), flush=True)
"""


def test_processes_are_killed_that_have_the_index_on_disk() -> None:
    """After each request that changes something, the first collection being there or another."""
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        command = [sys.executable, "-c", KILLED, directory]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.stdout.splitlines() == [*(f"{at} 9 0" for at in range(1, 6)), "6 0 0"], result.stderr


class TestChroma:
    async def test_what_its_makers_said_of_it_stays(self, chroma: Chroma) -> None:
        await chroma.create(configuration={"hnsw": {"space": "l2"}}, metadata={"made": "by hand"})
        store = store_on(chroma)
        await fill(store)
        await store.reindex(into=chroma.hook().target)
        collection = (await chroma.collection()).target
        assert collection.metadata["made"] == "by hand"
        assert collection.configuration_json["hnsw"]["space"] == "l2"
        await check(store, chroma)

    async def test_a_collection_of_somebody_else_is_in_the_way(self, ephemeral: Chroma) -> None:
        ephemeral.client.create_collection(f"{ephemeral.name}.memstate-new", embedding_function=None)
        store = store_on(ephemeral)
        await fill(store)
        with pytest.raises(HookError, match="is in the way; delete or rename it"):
            await store.reindex(into=ephemeral.hook().target)
        assert not any(await store.verify())

    async def test_deleted_in_the_midst_of_a_request(self, ephemeral: Chroma) -> None:
        """A server then has other words than for a collection that is not there."""
        store = store_on(ephemeral)
        other = store_on(ephemeral, store.storage)
        await fill(store)
        hook: ChromaSyncHook = other.store._engine.hooks[0].hook
        await other.search("note")
        opened: Any = hook._opened

        class Disturbed:
            """The collection, which another one replaces while it is asked."""

            id = opened.collection.id

            def __getattr__(self, name: str) -> Any:
                def ask(**arguments: Any) -> Any:
                    new = ephemeral.hook().target
                    new.swap(new.beside())
                    raise ChromaError("Missing metadata segment")

                return ask

        hook._opened = replace(opened, collection=Disturbed())
        assert await other.search("note number 3", 1) == []  # the new one is empty
        hook._opened = replace(opened, collection=Disturbed())
        await other.update("3", {"text": "changed meanwhile"})
        assert (await other.search("changed meanwhile", 1))[0].fact.id == "3"
        await store.repair()
        await check(other, ephemeral)
        # What fails for another reason fails.
        opened = hook._opened
        hook._opened = replace(opened, collection=Failing(opened.collection))
        with pytest.raises(HookError, match="out of order"):
            await other.search("note")


class Failing:
    def __init__(self, collection: Any) -> None:
        self.id = collection.id

    def __getattr__(self, name: str) -> Any:
        raise ChromaError("out of order")


class TestQdrant:
    async def test_what_its_makers_said_of_it_stays(self, qdrant: Qdrant) -> None:
        params = models.VectorParams(size=64, distance=models.Distance.EUCLID, on_disk=True)
        graph = models.HnswConfigDiff(m=24)
        await qdrant.asked.create_collection(qdrant.name, vectors_config=params, hnsw_config=graph)
        if not qdrant.is_embedded:
            kind = models.PayloadSchemaType.KEYWORD
            await qdrant.asked.create_payload_index(qdrant.name, field_name="theirs", field_schema=kind, wait=True)
        store = store_on(qdrant, metadata_fields=["rank"])
        await fill(store)
        before = await qdrant.asked.get_collection(qdrant.name)
        await store.reindex(into=qdrant.hook(metadata_fields=["rank"]).target)
        after = await qdrant.asked.get_collection(qdrant.name)
        [(_, vectors)] = after.config.params.vectors.items()
        assert vectors == before.config.params.vectors
        assert after.config.hnsw_config == before.config.hnsw_config
        assert after.payload_schema.keys() == before.payload_schema.keys()
        await check(store, qdrant)

    async def test_another_distance(self, in_memory: Qdrant) -> None:
        store = store_on(in_memory)
        others = [store_on(in_memory, store.storage, distance="Cosine") for _ in range(2)]
        await fill(store)
        assert await others[0].search("note")
        await store.reindex(into=in_memory.hook(distance="Dot").target)
        await check(store, in_memory)
        for other in others:
            with pytest.raises(HookError, match="measures by distance='Dot', not by 'Cosine'"):
                await other.search("note")

    async def test_an_alias_of_somebody_else(self, qdrant: Qdrant) -> None:
        """It may have been the name of the hook's collection before, and that one stays."""
        params = models.VectorParams(size=64, distance=models.Distance.COSINE)
        await qdrant.asked.create_collection(f"{qdrant.name}-theirs", vectors_config=params)
        alias = models.CreateAlias(collection_name=f"{qdrant.name}-theirs", alias_name=qdrant.name)
        operation = models.CreateAliasOperation(create_alias=alias)
        await qdrant.asked.update_collection_aliases(change_aliases_operations=[operation])
        store = store_on(qdrant)
        await fill(store)
        assert await store.reindex(into=qdrant.hook().target) == 12
        assert (await qdrant.asked.count(f"{qdrant.name}-theirs")).count == 12
        assert not any(await store.verify())
        assert await qdrant.left_behind() == {f"{qdrant.name}-theirs"}

    async def test_vectors_of_the_one_before_are_refused(self, qdrant: Qdrant) -> None:
        """However a request with them comes to the new one, and though they are as long."""
        store = store_on(qdrant)
        await fill(store, 1)
        for _ in range(2):
            before = await qdrant.asked.get_collection(qdrant.name)
            await store.reindex(into=qdrant.hook().target)
            vectors = before.config.params.vectors
            vector: Any = [1.0] * 64 if isinstance(vectors, models.VectorParams) else {next(iter(vectors)): [1.0] * 64}
            points = [models.PointStruct(id=1, vector=vector)]
            with pytest.raises(Exception, match=r"Unnamed vectors are not allowed|Not existing vector name"):
                await qdrant.asked.upsert(qdrant.name, points=points, wait=True)
        await check(store, qdrant)

    async def test_who_was_stopped_for_too_long_cannot_swap(self, qdrant: Qdrant) -> None:
        await qdrant.hook().apply(put(fact("a")))
        late, other = qdrant.hook(), qdrant.hook()
        begun = await late.beside()
        await other.swap(await other.beside())
        for call in (lambda: late.swap(begun), lambda: Awaited(begun).apply(put(fact("b")))):
            with pytest.raises(Exception, match=r"not the collection any more|not found|Not found"):
                await call()
        assert await qdrant.hook().scan() == {}
        assert await qdrant.left_behind() == set()

    @pytest.mark.parametrize("place", ["qdrant http"], indirect=True)
    async def test_a_first_one_that_is_made_while_the_name_is_free(self, place: Qdrant) -> None:
        store = store_on(place)
        await fill(store)
        hook = place.hook().target

        async def disturbed(function: Callable[..., Any], **arguments: Any) -> Any:
            result = function(**arguments)
            if function.__name__ == "delete_collection":
                params = models.VectorParams(size=64, distance=models.Distance.COSINE)
                with contextlib.suppress(Exception):
                    place.client.create_collection(place.name, vectors_config=params)
            return result

        hook._names._call = disturbed
        assert await store.reindex(into=hook) == 12
        await check(store, place)

    @pytest.mark.parametrize("use", ["prepare", "apply", "search"])
    @pytest.mark.parametrize("place", ["qdrant memory", "qdrant http"], indirect=True)
    async def test_replaced_while_it_is_opened(self, place: Qdrant, use: str) -> None:
        await place.hook().apply(put(fact("a")))
        hook, new = place.hook().target, place.hook().target

        async def swapping(function: Callable[..., Any], **arguments: Any) -> Any:
            result = function(**arguments)
            if function.__name__ == "delete_collection":
                raise Killed
            return result

        async def disturbed(function: Callable[..., Any], **arguments: Any) -> Any:
            result = function(**arguments)
            if function.__name__ == "collection_exists":
                hook._names._call, new._names._call = new._names._call, swapping
                beside = new.beside()
                beside.apply(put(fact("b")))
                with pytest.raises(Killed):  # the name is free now
                    new.swap(beside)
            return result

        hook._names._call = disturbed
        if use == "search":
            assert ids(hook.search("tea", 5)) == ["b"]
        else:
            getattr(hook, use)(put(fact("c")))
            there = {"b", "c"} if use == "apply" else {"b"}
            assert dict(place.hook().target.scan()).keys() == there

    def test_nobody_comes_between_looking_and_making(self, in_memory: Qdrant, monkeypatch: pytest.MonkeyPatch) -> None:
        hook, other = in_memory.hook().target, in_memory.hook().target
        made, waiting = hook._made, threading.Thread(target=lambda: other.lookup(["a"]))

        async def slowly(size: int) -> Any:
            waiting.start()
            waiting.join(0.05)
            assert waiting.is_alive()
            return await made(size)

        monkeypatch.setattr(hook, "_made", slowly)
        hook.apply(put(fact("a")))
        waiting.join()
