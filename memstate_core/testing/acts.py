"""A small world of facts, and one act of every kind upon it: what the tests of faults try to break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from memstate_core.facts import Fact
from memstate_core.storages.memory import InMemoryStorage
from memstate_core.testing.face import Face
from memstate_core.testing.factories import Clock, StorageFactory, Stores
from memstate_core.testing.faults import FaultyHook
from memstate_core.testing.index import Entry, Index, IndexHook, index_hook
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


class Images(NamedTuple):
    """The world before and after an act, as :meth:`Face.everything` gives it, and what an index has of it before."""

    before: dict[str, Any]
    after: dict[str, Any]
    indexed: dict[str, Entry]


class World:
    """A store with the world built, for one act; its index and its hook, unless it has none.

    ``before`` and ``after`` are what the store has then. As long as the act has only failed, the world is as it was,
    and serves for the next attempt.
    """

    def __init__(self, store: Face, act: str, images: Images, clock: Clock, index: Index, hook: FaultyHook | None):
        self.store = store
        self.before, self.after, _ = images
        self.index = index
        self.hook = hook
        self._act = ACTS[act]
        self._clock = clock
        self._now = clock.now

    async def act(self) -> None:
        """Attempt the act, at the time at which the others were."""
        self._clock.now = self._now
        await self._act(self.store)

    async def expect(self, *expected: dict[str, Any]) -> dict[str, Any]:
        """The store is one of these, its index follows it, and nothing is left over."""
        found = await self.store.everything()
        assert found in expected
        texts = {fact["id"]: fact["version"] for fact in found["facts"] if (fact["payload"].get("text") or "").strip()}
        if self.hook is not None:
            assert self.index.versions() == texts
        for drift in await self.store.verify():
            assert not drift, drift
        return found

    async def is_as_before(self) -> bool:
        """Whether nothing has happened; else all has, and the store goes on from there."""
        if await self.expect(self.before, self.after) == self.before:
            return True
        await self.goes_on()
        return False

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


_known: dict[str, Images] = {}


async def _images(act: str) -> Images:
    """As a twin in memory has it."""
    if act not in _known:
        index = Index()
        storages = StorageFactory(lambda _: InMemoryStorage(), persistent=False)
        twin = Stores(storages).open([IndexHook(index)], clock=Clock())
        await build(twin)
        before, indexed = await twin.everything(), dict(index.entries)
        await ACTS[act](twin)
        after = await twin.everything()
        assert after != before
        await twin.close()
        _known[act] = Images(before, after, indexed)
    return _known[act]


async def world(stores: Stores, act: str, *, storage: Any = None, hooks: bool = True, **options: Any) -> World:
    """Build a world."""
    images = await _images(act)
    index, clock = Index(), Clock()
    storage = stores.storages.new() if storage is None else storage
    hook = FaultyHook(index_hook(index, storage.is_async)) if hooks else None
    # To tell the index is most of the work, and what it has to be told is known.
    await build(stores.open(storage=storage, clock=clock, **options))
    index.entries.update(images.indexed)
    store = stores.open([hook] if hook else [], storage=storage, clock=clock, **options)
    assert await store.everything() == images.before
    return World(store, act, images, clock, index, hook)


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
