"""Key-value stores: as records, and as what a session can undo."""

from __future__ import annotations

import math
from typing import Any

import pytest
from langchain_tests.integration_tests import BaseStoreAsyncTests, BaseStoreSyncTests
from pydantic import BaseModel

from memstate_core import AsyncInMemoryStorage, AsyncMemoryStore, InMemoryStorage, MemoryStore, ValidationFailed
from memstate_core.testing.face import Face
from memstate_langchain import MemStateByteStore, MemStateStore
from tests.langchain.stores import async_store, sync_store

BYTES = (b"foo", b"\0\xff", b"")
VALUES = ({"a": [1, None, "é"]}, "text", 1.5)


class Point(BaseModel):
    x: int
    y: int = 0


@pytest.fixture(params=[None, "t"], ids=["records", "session"])
def session_id(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.param
    return found


class TestBytes(BaseStoreSyncTests[bytes]):
    @pytest.fixture
    def kv_store(self, session_id: str | None) -> MemStateByteStore:
        return MemStateByteStore(sync_store(), session_id=session_id)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return BYTES


class TestBytesLater(BaseStoreAsyncTests[bytes]):
    @pytest.fixture(params=[sync_store, async_store])
    async def kv_store(self, request: pytest.FixtureRequest, session_id: str | None) -> MemStateByteStore:
        return MemStateByteStore(request.param(), session_id=session_id)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return BYTES


class TestJson(BaseStoreSyncTests[Any]):
    @pytest.fixture
    def kv_store(self, session_id: str | None) -> MemStateStore:
        return MemStateStore(sync_store(), session_id=session_id)

    @pytest.fixture
    def three_values(self) -> tuple[Any, Any, Any]:
        return VALUES


class TestModelsLater(BaseStoreAsyncTests[Any]):
    @pytest.fixture
    async def kv_store(self, session_id: str | None) -> MemStateStore:
        return MemStateStore(async_store(), session_id=session_id, model=Point)

    @pytest.fixture
    def three_values(self) -> tuple[Any, Any, Any]:
        return Point(x=1), Point(x=2, y=3), Point(x=-1)


@pytest.fixture(params=[sync_store, async_store])
def store(request: pytest.FixtureRequest) -> Any:
    return request.param()


async def test_what_a_session_keeps_is_undone_with_it(store: Any) -> None:
    face = Face(store)
    cache = MemStateStore(store, session_id="t")
    await cache.amset([("a", 1), ("b", 2)])
    assert len(await face.history("t")) == 1
    await cache.amset([("a", 3)])
    await cache.amdelete(["b", "nothing"])
    await face.rollback("t", 2)
    assert await cache.amget(["a", "b"]) == [1, 2]
    await face.rollback("t")
    assert await cache.amget(["a", "b"]) == [None, None]
    await face.redo("t", 2)
    assert await cache.amget(["a", "b"]) == [3, 2]
    assert await face.promote_session("t") == []  # it is no memory
    assert await face.search("value") == []
    await face.discard_session("t")
    assert [key async for key in cache.ayield_keys()] == []


async def test_without_a_session_there_is_no_history(store: Any) -> None:
    cache = MemStateStore(store)
    await cache.amset([("a", 1)])
    assert await Face(store).history() == []
    assert await Face(store).query() == []


async def test_a_transaction_that_fails_sets_nothing(store: Any, session_id: str | None) -> None:
    cache = MemStateStore(store, session_id=session_id)
    for wrong in (math.nan, object(), {1: "a"}, Point(x=1)):
        with pytest.raises(ValidationFailed):
            await cache.amset([("a", 1), ("b", wrong)])
    for key in ("", "\0", "x" * 513):
        with pytest.raises(ValidationFailed, match="key"):
            await cache.amset([("a", 1), (key, 2)])
    assert await cache.amget(["a", "b"]) == [None, None]


async def test_names_and_sessions_have_nothing_in_common(store: Any) -> None:
    stores = [MemStateStore(store, name, session_id=session) for name in ("one", "two") for session in (None, "t", "u")]
    for number, one in enumerate(stores):
        await one.amset([("a", number), (f"b{number}", number)])
    for number, one in enumerate(stores):
        assert await one.amget(["a"]) == [number]
        assert [key async for key in one.ayield_keys()] == ["a", f"b{number}"]
    assert [key async for key in MemStateStore(store, "on").ayield_keys()] == []


async def test_keys_by_prefix_page_by_page(store: Any, session_id: str | None) -> None:
    cache = MemStateByteStore(store, session_id=session_id)
    keys = ["a", "ab", "ab\x01", "ab\U0010ffff", "é", "ac", *(f"n{number:04}" for number in range(1100))]
    await cache.amset([(key, b"") for key in keys])
    assert [key async for key in cache.ayield_keys()] == sorted(keys)
    assert [key async for key in cache.ayield_keys(prefix="ab")] == ["ab", "ab\x01", "ab\U0010ffff"]
    assert len([key async for key in cache.ayield_keys(prefix="n")]) == 1100
    assert [key async for key in cache.ayield_keys(prefix="z")] == []


async def test_what_has_become_of_a_model(store: Any) -> None:
    await MemStateStore(store).amset([("a", {"x": "no number"})])
    with pytest.raises(ValueError, match="x"):
        await MemStateStore(store, model=Point).amget(["a"])
    with pytest.raises(ValidationFailed, match="Point"):
        await MemStateStore(store, model=Point).amset([("a", {"x": 1})])
    with pytest.raises(ValidationFailed, match="bytes"):
        await MemStateByteStore(store).amset([("a", "text")])  # type: ignore[list-item]


def test_a_hook_may_keep_its_embeddings_in_the_store_that_it_indexes() -> None:
    """What is kept there for a session is no memory, or it would be indexed as well."""
    told: list[str] = []
    store = MemoryStore(
        InMemoryStorage(), [lambda operation, fact_id, fact: told.append(fact_id)], allow_unregistered=True
    )
    cache = MemStateByteStore(store, session_id="t")
    cache.mset([("a", b"1")])
    cache.mdelete(["a"])
    store.rollback("t", 2)
    assert told == []
    assert not store.verify().drift


def test_keys_of_a_sync_call() -> None:
    cache = MemStateByteStore(sync_store())
    cache.mset([(f"{number:04}", b"") for number in range(600)])
    assert len(list(cache.yield_keys())) == 600
    with pytest.raises(TypeError, match="AsyncMemoryStore"):
        MemStateByteStore(AsyncMemoryStore(AsyncInMemoryStorage())).mget(["a"])
