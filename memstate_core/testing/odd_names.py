"""Names and values full of what is syntax elsewhere: they are data everywhere, and nothing leaves its namespace."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memstate_core import Fact, MemoryStoreError, ValidationFailed
from memstate_core.filters import compile_filter
from memstate_core.storages.memory import InMemoryStorage
from memstate_core.testing.face import Face, calls
from memstate_core.testing.factories import Clock, StorageFactory, Stores, StoreTests
from memstate_core.testing.models import Note
from memstate_core.testing.profiles import tries

# What quotes, matches anything, separates, is put in place of something, or is more than one character somewhere.
_ODD = "'\"`%_*?:.{}[]()$#@\\/|;,-+=^~&<>! \t\n\r\x01\x1f\x7f\xa0\u0301\u200d\u2028\ufeff\uffff\U0001f9e0é0aA"
_COMMON = ["acme", "acme-corp", "acme_corp", "acme%", "acme*", "a", "{a}", "$1", "%s", "a.b", "$gt", "payload", "null"]
_names = st.sampled_from(_COMMON) | st.text(_ODD, min_size=1, max_size=5)
_pools = st.lists(_names, min_size=2, max_size=4, unique=True)
# Refused as names; as values of a payload the first two are kept.
_WRONG = ["", "nul\0", "\0", "lone \ud800"]


class _Twins:
    """A store and its twin in memory: every call must come to the same."""

    def __init__(self, store: Face, twin: Face) -> None:
        self._stores = store, twin

    async def same(self, call: Callable[[Face], Awaitable[Any]]) -> Any:
        results = [await _outcome(call, store) for store in self._stores]
        assert results[0] == results[1]
        return results[0]

    async def everything(self) -> Any:
        return await self.same(lambda store: store.everything())

    async def fill(self, pool: Sequence[str]) -> None:
        """Name everything that has a name after each of a pool."""
        for number, name in enumerate(pool):
            other = pool[number - 1]
            payload = {"text": name, "rank": name, "label": {name: other}, "data": {other: {name: number}}}

            async def block(store: Face, name: str = name, other: str = other, payload: Any = payload) -> None:
                async with store.transaction(name, mark=other, actor=name, reason=other) as tx:
                    await tx.commit(Fact("note", payload, id=name))
                    await tx.commit(Fact(f"type {name}", {name: other, "text": name}, id=f"{name} {other}"))
                    await tx.put_record(name, other, name.encode())
                    await tx.put_record("all", name, other.encode())

            await self.same(block)
            await self.same(lambda store, name=name, other=other: _done(store.savepoint(name, other)))  # type: ignore[misc]
            await self.same(lambda store, name=name: store.update(name, {"text": "updated"}))  # type: ignore[misc]

    async def ask(self, name: str, other: str) -> None:
        """Ask for everything by its name."""
        await self.same(lambda store: store.get(name))
        await self.same(lambda store: store.query(f"type {name}"))
        await self.same(lambda store: store.count(session_id=name))
        for path in (name, f"payload.{name}", f"label.{name}", f"data.{other}.{name}"):
            for condition in (other, {"$exists": True}, {"$gte": other}, {"$in": [name, 0]}, {"$contains": other}):
                await self.same(lambda store, p=path, c=condition: store.query(filters={p: c}))  # type: ignore[misc]
        for filters in ({"rank": name}, {f"label.{name}": other}, {"rank": {"$gt": name}}, {"text": {"$ne": name}}):
            await self.same(lambda store, f=filters: store.query("note", f, order_by=name))  # type: ignore[misc]
        for options in ({"session_id": name}, {"fact_id": name}, {"mark": other}):
            await self.same(lambda store, o=options: store.journal(**o))  # type: ignore[misc]
        await self.same(lambda store: store.get_record(name, other))
        await self.same(lambda store: store.scanned("all", start=name))
        await self.same(lambda store: store.scanned("all", end=name, reverse=True))

    async def go_back(self, name: str, other: str) -> None:
        await self.same(lambda store: _count(store.rollback(name, to=other)))
        await self.same(lambda store: _count(store.redo(name)))
        await self.same(lambda store: store.delete_record(name, other))
        await self.same(lambda store: store.delete(name))
        await self.same(lambda store: store.promote_session(name, {name: other}))


async def _done(call: Awaitable[Any]) -> None:
    await call  # and no word of what it returned: a transaction's id is another one on each storage


async def _count(moved: Awaitable[Any]) -> int:
    return len(await moved)


async def _outcome(call: Callable[[Face], Awaitable[Any]], store: Face) -> Any:
    """What a call returned, or what it was refused with."""
    try:
        return await call(store)
    except (MemoryStoreError, ValueError) as error:
        return type(error), getattr(error, "path", None), re.sub(r"tx-\d+", "tx", str(error))


def _register(store: Face, pool: Sequence[str]) -> None:
    store.store.register_schema("note", Note, index=["rank", *(f"label.{name}" for name in pool)])


class TestOddNames:
    """Every storage answers as the one in memory does."""

    def test_odd_names_mean_nothing(self, storages: StorageFactory) -> None:
        stores = Stores(storages)
        twins = Stores(StorageFactory(lambda _: InMemoryStorage(), persistent=False))
        numbers = count()

        async def check(pool: Sequence[str], namespaces: Sequence[str]) -> None:
            here = next(numbers)
            opened = []
            for namespace in namespaces:
                pair = _Twins(
                    *(
                        each.open(
                            storage=storage,
                            models=False,
                            namespace=f"{namespace}{here}",
                            allow_unregistered=True,
                            clock=Clock(),
                        )
                        for each, storage in ((stores, storage), (twins, memory))
                    )
                )
                for store in pair._stores:
                    _register(store, pool)
                opened.append(pair)
            first, *others = opened
            await first.fill(pool)
            for pair in others:
                await pair.fill(pool[:1])
            left = [await pair.everything() for pair in others]
            for number, name in enumerate(pool):
                await first.ask(name, pool[number - 1])
            for number, name in enumerate(pool):
                await first.go_back(name, pool[number - 1])
                await first.same(lambda store, name=name: store.discard_session(name))  # type: ignore[misc]
            await first.everything()
            assert [await pair.everything() for pair in others] == left
            for pair in opened:
                for store in pair._stores:
                    await store.close()

        @tries(7, 1000)
        @example(["acme", "acme-corp", "acme%"], ["acme", "acme-corp", "acme_corp"])
        @example(["a.b", "$gt", "payload.a", "0"], ["{a}", "a", "*"])
        @example(["';--", '"', "\\", "$1"], ["%s", "%", "_"])
        @given(_pools, _pools)
        def one(pool: list[str], namespaces: list[str]) -> None:
            runner.run(check(pool, namespaces))

        with asyncio.Runner() as runner:
            storage, memory = storages.new(), twins.storages.new()
            one()
            runner.run(storages.aclose())


class TestNoNames(StoreTests):
    """What is no name is none on any storage."""

    @pytest.mark.parametrize("wrong", _WRONG, ids=ascii)
    async def test_it_is_refused(self, stores: Stores, wrong: str) -> None:
        """The same way, and before anything is written; in a filter it is a path or a value like any other."""
        store = stores.open(allow_unregistered=True)
        payload = {"data": {"\0": "nul\0", "": 1}}
        await store.commit(Fact("thing", payload, id="n", session_id="s"))
        before = await store.everything()
        for call in calls(
            lambda: store.commit(Fact("note", {}, id=wrong)),
            lambda: store.commit(Fact(wrong, {})),
            lambda: store.commit(Fact("note", {}), session_id=wrong),
            lambda: store.update(wrong, {}),
            lambda: store.delete(wrong),
            lambda: store.get(wrong),
            lambda: store.query(wrong),
            lambda: store.query(session_id=wrong),
            lambda: store.rollback(wrong),
            lambda: store.redo(wrong),
            lambda: store.discard_session(wrong),
            lambda: store.promote_session(wrong),
            lambda: store.savepoint(wrong, "name"),
            lambda: store.savepoint("s", wrong),
            lambda: store.put_record(wrong, "k", b""),
        ):
            with pytest.raises(ValidationFailed):
                await call()
        with pytest.raises(ValidationFailed, match="namespace"):
            stores.open(namespace=wrong)
        assert await store.everything() == before
        for path in (f"data.{wrong}", f"{wrong}data", f"data.x{wrong}"):
            for condition in (wrong, {"$gt": wrong}, {"$contains": wrong}, {"$ne": 1}):
                matches = compile_filter({path: condition})
                assert matches is not None
                assert await store.ids(filters={path: condition}) == ["n"] * matches(payload)
        assert await store.ids(filters={"data.\0": "nul\0"}) == ["n"]


__all__ = ["TestNoNames", "TestOddNames"]
