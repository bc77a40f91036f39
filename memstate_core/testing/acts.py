"""A small world of facts, and one act of every kind upon it: what the tests of faults try to break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from memstate_core.facts import Fact
from memstate_core.storages.memory import InMemoryStorage
from memstate_core.testing.face import Face
from memstate_core.testing.factories import Clock, StorageFactory, Stores
from memstate_core.testing.faults import FaultyHook
from memstate_core.testing.index import Index, index_hook
from memstate_core.testing.models import Draft


async def build(store: Face) -> None:
    """Facts of three lines, something to redo in session ``s``, and a savepoint in it."""
    await store.commit(Fact("note", {"text": "one"}, id="a", session_id="s"))
    await store.savepoint("s", "first")
    await store.commit_model(Draft(topic="t", text="draft"), "d", session_id="s")
    await store.commit(Fact("note", {"text": "working"}, id="w", session_id="s"), ephemeral=True)
    await store.commit(Fact("note", {"text": "long"}, id="l"))
    await store.update("a", {"text": "two"})
    await store.rollback("s")


async def _block(store: Face) -> None:
    async with store.transaction("s", mark="m") as tx:
        await tx.update("a", {"text": "in a block"})
        await tx.delete("d")
        await tx.commit_model(Draft(topic="t", text="another"), "e")
        await tx.commit(Fact("note", {"text": "made in a block"}, id="n"))
        await tx.update("l", {"text": ""})
        await tx.put_record("c", "k", b"v")


ACTS: dict[str, Callable[[Face], Awaitable[Any]]] = {
    "commit": lambda store: store.commit(Fact("note", {"text": "new"}, id="n", session_id="s")),
    "commit again": lambda store: store.commit(Fact("note", {"text": "again"}, id="a"), "t"),
    "commit_model": lambda store: store.commit_model(Draft(topic="t", text="other"), "x", session_id="s"),
    "update": lambda store: store.update("a", {"text": "changed"}),
    "delete": lambda store: store.delete("l"),
    "block": _block,
    "promote": lambda store: store.promote_session("s"),
    "discard": lambda store: store.discard_session("s"),
    "rollback": lambda store: store.rollback("s", 2),
    "rollback to": lambda store: store.rollback("s", to="first"),
    "redo": lambda store: store.redo("s"),
    "checkout": lambda store: store.checkout("s", None),
}


class World:
    """A store with the world built, its index, and what an act would make of it.

    ``before`` and ``after`` are what :meth:`Face.everything` gives.
    """

    def __init__(self, store: Face, index: Index | None, before: dict[str, Any], after: dict[str, Any]) -> None:
        self.store = store
        self.index = index
        self.before = before
        self.after = after

    async def expect(self, *expected: dict[str, Any]) -> dict[str, Any]:
        """The store is one of these, its index follows it, nothing is left over, and it goes on from there."""
        found = await self.store.everything()
        assert found in expected
        texts = {fact["id"]: fact["version"] for fact in found["facts"] if (fact["payload"].get("text") or "").strip()}
        if self.index is not None:
            assert self.index.versions() == texts
        for drift in await self.store.verify():
            assert not drift, drift
        return found

    async def goes_on(self) -> None:
        """The next rollback undoes the session's last transaction, and redo does it again."""
        now = await self.store.query()
        for session_id in ("s", None):
            undone = await self.store.rollback(session_id, on_conflict="keep")
            assert len(undone) <= 1
            if undone:
                assert [one.id for one in await self.store.redo(session_id, on_conflict="keep")] == [undone[0].id]
        assert await self.store.query() == now
        await self.store.rollback("s", 99, on_conflict="keep")
        await self.store.redo("s", 99, on_conflict="keep")
        await self.store.commit(Fact("note", {"text": "goes on"}, id="goes on", session_id="s"))
        assert await self.store.claims() == []
        for drift in await self.store.verify():
            assert not drift, drift


_known: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}


async def _images(act: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The world before and after an act, as storage in memory has it."""
    if act not in _known:
        twin = Stores(StorageFactory(lambda _: InMemoryStorage(), persistent=False)).open(clock=Clock())
        await build(twin)
        before = await twin.everything()
        await ACTS[act](twin)
        after = await twin.everything()
        assert after != before
        await twin.close()
        _known[act] = before, after
    return _known[act]


async def world(
    stores: Stores,
    act: str,
    *,
    storage: Any = None,
    made: list[FaultyHook] | None = None,
    hooks: bool = True,
    **options: Any,
) -> World:
    """Build a world, and find out on a twin in memory what the act makes of it; its hook goes to ``made``."""
    before, after = await _images(act)
    index = Index()
    storage = stores.storages.new() if storage is None else storage
    wrapped: list[FaultyHook] = []
    if hooks:
        hook = FaultyHook(index_hook(index, storage.is_async))
        wrapped = [hook]
        if made is not None:
            made.append(hook)
    store = stores.open(wrapped, storage=storage, clock=Clock(), **options)
    await build(store)
    assert await store.everything() == before
    return World(store, index if hooks else None, before, after)


class Gate:
    """Stops whoever calls it, in a thread, until it is opened."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()

    def __call__(self) -> None:
        self._reached.set()
        assert self._open.wait(20), "the gate was not opened"

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, 20), "the gate was not reached"

    def open(self) -> None:
        self._open.set()
