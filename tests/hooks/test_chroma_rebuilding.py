"""A Chroma collection is rebuilt beside the one in use: with another model, by crashes, threads and processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.errors import ChromaError, NotFoundError

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
from memstate_core.hooks._chroma_names import ChromaNames
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_core.testing.face import Face
from tests.hooks.conftest import Chroma, settings
from tests.hooks.test_chroma import ENVIRONMENT, ROOT

OLD, NEW = LexicalEmbedder(64), LexicalEmbedder(96)


class OtherModel(LexicalEmbedder):
    """As many dimensions, other directions."""

    def __call__(self, texts: Any) -> Any:
        return [list(reversed(list(vector))) for vector in super().__call__(texts)]

    embed_documents = __call__

    def embed_query(self, text: str) -> Any:
        return self([text])[0]


def store_on(chroma: Chroma, storage: Any = None, **options: Any) -> Face:
    hook = chroma.hook(**options).target
    if chroma.is_async:
        return Face(AsyncMemoryStore(storage or AsyncInMemoryStorage(), [hook], allow_unregistered=True))
    return Face(MemoryStore(storage or InMemoryStorage(), [hook], allow_unregistered=True))


async def fill(store: Face, count: int = 12) -> None:
    for number in range(count):
        await store.commit(Fact("note", {"text": f"note number {number}"}, id=f"{number}"))


async def check(store: Face, chroma: Chroma) -> None:
    assert not any(await store.verify())
    assert {name for name in await chroma.names() if name.startswith(chroma.name)} == {chroma.name}


class TestRebuilding:
    @pytest.mark.parametrize("model", [NEW, OtherModel(64)], ids=["dimensions", "directions"])
    async def test_another_model(self, chroma: Chroma, model: Any) -> None:
        store = store_on(chroma, embedding_fn=OLD)
        other = store_on(chroma, store.storage, embedding_fn=OLD)
        await fill(store)
        assert (await other.search("note number 3", 1))[0].fact.id == "3"
        assert await store.reindex(into=chroma.hook(embedding_fn=model).target) == 12
        assert (await store.search("note number 3", 1))[0].fact.id == "3"
        await store.update("3", {"text": "told to the new one"})
        assert (await store.search("told to the new one", 1))[0].fact.id == "3"
        # Who has the old model must not write its vectors among the new ones.
        with pytest.raises(HookError, match="was rebuilt with another embedding function") as failed:
            await other.commit(Fact("note", {"text": "of the old model"}, id="refused"))
        for call in (lambda: other.search("note"), other.verify):
            with pytest.raises(HookError, match="was rebuilt with another embedding function"):
                await call()
        assert not failed.value.in_doubt or (await store.recover()).healed == ("refused",)
        assert await other.get("refused") is None
        again = store_on(chroma, store.storage, embedding_fn=model)
        await again.commit(Fact("note", {"text": "of the new model"}, id="taken"))
        await check(again, chroma)
        assert await store.claims() == []

    async def test_the_same_model_goes_on_everywhere(self, chroma: Chroma) -> None:
        store = store_on(chroma)
        other = store_on(chroma, store.storage)
        await fill(store)
        for number in range(3):
            assert await store.reindex(into=chroma.hook().target) == 12 + number
            await other.commit(Fact("note", {"text": f"goes on {number}"}, id=f"more {number}"))
            assert (await other.search(f"goes on {number}", 1))[0].fact.id == f"more {number}"
            await check(other, chroma)

    async def test_what_is_not_there_yet_is_made(self, chroma: Chroma) -> None:
        store = store_on(chroma)
        assert await store.reindex(into=chroma.hook().target) == 0
        await fill(store, 2)
        await check(store, chroma)

    async def test_what_its_makers_said_of_it_stays(self, chroma: Chroma) -> None:
        await chroma.create(configuration={"hnsw": {"space": "l2"}}, metadata={"made": "by hand"})
        store = store_on(chroma)
        await fill(store)
        await store.reindex(into=chroma.hook().target)
        collection = (await chroma.collection()).target
        assert collection.metadata["made"] == "by hand"
        assert collection.configuration_json["hnsw"]["space"] == "l2"
        await check(store, chroma)

    async def test_entries_of_others_are_not_lost(self, ephemeral: Chroma) -> None:
        tenant = MemoryStore(InMemoryStorage(), [ephemeral.hook().target], namespace="tenant", allow_unregistered=True)
        tenant.commit(Fact("note", {"text": "theirs"}, id="theirs"))
        store = store_on(ephemeral)
        await fill(store)
        with pytest.raises(HookError, match="has entries of others than the namespace 'default'"):
            await store.reindex(into=ephemeral.hook().target)
        assert not any(tenant.verify())
        await check(store, ephemeral)

    async def test_a_namespace_with_a_collection_of_its_own(self, ephemeral: Chroma) -> None:
        tenant = MemoryStore(InMemoryStorage(), [ephemeral.hook().target], namespace="tenant", allow_unregistered=True)
        await fill(Face(tenant))
        assert tenant.reindex(into=ephemeral.hook(embedding_fn=NEW).target) == 12
        assert tenant.search("note number 3", 1)[0].fact.id == "3"
        await check(Face(tenant), ephemeral)

    async def test_a_collection_of_somebody_else_is_in_the_way(self, ephemeral: Chroma) -> None:
        ephemeral.client.create_collection(f"{ephemeral.name}.memstate-new", embedding_function=None)
        store = store_on(ephemeral)
        await fill(store)
        with pytest.raises(HookError, match="is in the way; delete or rename it"):
            await store.reindex(into=ephemeral.hook().target)
        assert not any(await store.verify())


async def test_deleted_in_the_midst_of_a_request(ephemeral: Chroma) -> None:
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


class Killed(BaseException):
    """The hook does nothing after it, and the claims have no living owner, as after ``kill -9``."""


# The requests of a swap: what is called on a collection or the client, at its n-th time.
REQUESTS = [("modify", 1), ("modify", 2), ("delete_collection", 2), ("delete_collection", 3)]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("request_", "at"), REQUESTS)
async def test_killed_between_the_requests_of_a_swap(ephemeral: Chroma, request_: str, at: int, when: str) -> None:
    store = store_on(ephemeral)
    beside = store_on(ephemeral, store.storage)
    await fill(store)
    await beside.search("note")  # it has the old collection in its hand
    calls = itertools.count(1)
    hook = ephemeral.hook().target

    async def counted(function: Callable[..., Any], **arguments: Any) -> Any:
        here = function.__name__ == request_ and next(calls) == at
        if not here:
            return function(**arguments)
        if when == "after":
            with contextlib.suppress(NotFoundError):
                function(**arguments)
        raise Killed

    hook._names = ChromaNames(hook._client, counted, hook.collection_name)
    with pytest.raises(Killed):
        await store.reindex(into=hook)
    # Those who were there go on, on whichever collection, and those who come see one that is filled.
    await beside.commit(Fact("note", {"text": "meanwhile"}, id="meanwhile"))
    comes = store_on(ephemeral, store.storage)
    assert (await comes.search("note number 3", 1))[0].fact.id == "3"
    await comes.recover()
    assert not any(await comes.verify())
    await beside.update("meanwhile", {"text": "after the healing"})
    assert (await comes.search("after the healing", 1))[0].fact.id == "meanwhile"
    assert not any(await comes.verify())
    assert await comes.claims() == []
    assert await comes.reindex(into=ephemeral.hook().target) == 13
    await check(comes, ephemeral)


async def test_beside_threads(ephemeral: Chroma) -> None:
    """They share a store, and have stores of their own, in one of which the model changes."""
    storage = InMemoryStorage()
    stores = [MemoryStore(storage, [ephemeral.hook().target], allow_unregistered=True) for _ in range(2)]
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
            stores[number % 2].reindex(into=ephemeral.hook().target)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    await check(Face(stores[0]), ephemeral)


async def test_the_model_changes_under_threads_of_the_same_store(ephemeral: Chroma) -> None:
    """Their commits fail on the new collection, and are carried out again with the new model."""
    store = MemoryStore(InMemoryStorage(), [ephemeral.hook(embedding_fn=OLD).target], allow_unregistered=True)
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
            store.reindex(into=ephemeral.hook(embedding_fn=model).target)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    await check(Face(store), ephemeral)


WRITER = """
import itertools, sys, chromadb
from memstate_core import Fact, LexicalEmbedder, MemoryStore, SQLiteStorage
from memstate_core.hooks.chroma import ChromaSyncHook
path, host, port, name = sys.argv[1:]
hook = ChromaSyncHook(chromadb.HttpClient(host, int(port)), name, LexicalEmbedder(64))
store = MemoryStore(SQLiteStorage(path), [hook], allow_unregistered=True)
for count in itertools.count():
    store.commit(Fact("note", {"text": f"theirs {count}"}, id=f"theirs {count % 30}"))
    assert store.search(f"theirs {count}", 1)
    if count % 5 == 4:
        store.rollback()
    print(count, flush=True)
"""


async def test_beside_another_process(chroma_address: tuple[str, int], tmp_path: Path) -> None:
    host, port = chroma_address
    chroma = Chroma(chromadb.HttpClient(host, port, settings=settings()))
    path = tmp_path / "memory.db"
    store = MemoryStore(SQLiteStorage(path), [chroma.hook().target], allow_unregistered=True)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path, host, str(port), chroma.name],
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
                store.reindex(into=chroma.hook().target)
                store.commit(Fact("note", {"text": "ours"}, id="ours"))
            assert writer.stdout.readline(), writer.stderr and writer.stderr.read()
        finally:
            writer.kill()
    store.recover()
    await check(Face(store), chroma)
    assert isinstance(store._engine.hooks[0].hook, ChromaSyncHook)
