"""The facts as they were: views of the past, replays, and whose history a change in a context is."""

from __future__ import annotations

from typing import Any

import pytest

from memstate_core import Fact, NotFoundError, Operation, TransactionContext, moves
from memstate_core.facts import transaction_seq
from memstate_core.past import difference, located
from memstate_core.protocols import Position, StorageTransaction
from memstate_core.testing.face import Face, maybe
from memstate_core.testing.factories import Stores, StoreTests
from memstate_core.testing.index import Index, index_hook


class TestPast(StoreTests):
    """``store.at(…)`` and replays."""

    async def put(self, store: Face, fact_id: str, n: int, session_id: str | None = "s") -> str:
        await store.commit(Fact("note", {"rank": n}, id=fact_id), session_id)
        newest: Any = (await store.history(session_id, limit=1))[0]
        found: str = newest.id
        return found

    async def seen(self, view: Any) -> dict[str, int]:
        return {fact["id"]: fact["payload"]["rank"] for fact in await maybe(view.query("note"))}

    async def test_a_view_shows_what_was(self, store: Face) -> None:
        first = await self.put(store, "a", 1)
        await self.put(store, "b", 1)
        last = await self.put(store, "a", 2)
        await store.delete("b")
        await self.put(store, "elsewhere", 9, "other")
        view = store.store.at(first, "s")
        assert await self.seen(view) == {"a": 1, "elsewhere": 9}
        assert await self.seen(store.store.at(last, "s")) == {"a": 2, "b": 1, "elsewhere": 9}
        assert await self.seen(store.store.at(None, "s")) == {"elsewhere": 9}
        assert (await maybe(view.get("a")))["version"] == 1
        assert await maybe(view.get("b")) is None
        assert await maybe(view.count("note", {"rank": 1})) == 1
        assert await maybe(view.count("note", {"rank": 2})) == 0
        assert await self.seen(store.store) == {"a": 2, "elsewhere": 9}
        with pytest.raises(NotFoundError):
            await maybe(store.store.at("tx-999999", "s").get("a"))

    async def test_a_view_of_another_line(self, store: Face) -> None:
        await self.put(store, "a", 1)
        left = await self.put(store, "b", 1)
        await store.rollback("s")
        await self.put(store, "c", 1)
        assert await self.seen(store.store.at(left, "s")) == {"a": 1, "b": 1}

    async def test_what_others_have_changed_is_as_it_is(self, store: Face) -> None:
        await self.put(store, "a", 1)
        await self.put(store, "b", 1)
        await self.put(store, "b", 2, "other")
        assert await self.seen(store.store.at(None, "s")) == {"b": 2}

    async def test_a_search_in_the_past(self, stores: Stores) -> None:
        storage = stores.storages.new()
        store = stores.open([index_hook(Index(), storage.is_async)], storage=storage)
        await store.commit(Fact("note", {"text": "red apple"}, id="a"), "s")
        then = (await store.history("s", limit=1))[0]
        await store.update("a", {"text": "blue sky"})
        await store.commit(Fact("note", {"text": "red rose"}, id="b"), "s")
        found = await maybe(store.store.at(then, "s").search("red"))
        assert [(one.fact.id, one.fact.payload["text"], one.score) for one in found] == [("a", "red apple", 0.5)]
        assert [one.fact.id for one in await store.search("red", score_threshold=0.1)] == ["b"]

    async def test_the_difference_of_two_places(self, store: Face) -> None:
        first = await self.put(store, "a", 1)
        await self.put(store, "a", 2)
        last = await self.put(store, "b", 1)
        engine = store.store.engine
        changes = await difference(engine, "s", located("s", first), located("s", last))
        told = {
            one.fact_id: (one.before and one.before.payload["rank"], one.after and one.after.payload["rank"])
            for one in changes
        }
        assert told == {"a": (1, 2), "b": (None, 1)}
        back = await difference(engine, "s", located("s", last), located("s", None))
        assert sorted((one.fact_id, one.after) for one in back) == [("a", None), ("b", None)]

    async def test_a_replay_keeps_what_it_is_told(self, store: Face) -> None:
        base = await self.put(store, "a", 1)
        dropped = await self.put(store, "a", 2)
        kept = await self.put(store, "b", 1)
        await self.put(store, "c", 1)
        await store.rollback("s")
        await self.put(store, "d", 1)
        elsewhere = (await store.history(fact_id="c"))[-1].id
        seqs = [transaction_seq(one) or 0 for one in (kept, elsewhere)]

        async def route(tx: StorageTransaction, position: Position) -> moves.Route:
            return await moves.replay(tx, position, transaction_seq(base) or 0, seqs)

        moved = await moves.move(store.store.engine, "s", Operation.REPLAY, route, "raise", None, None)
        assert await self.seen(store.store) == {"a": 1, "b": 1, "c": 1}
        newest = (await store.history("s", limit=1))[0]
        assert (newest.operation, newest.id, newest.position) == (Operation.REPLAY, moved.transaction_id, newest.id)
        assert dropped in [one.id for one in moved.undone]
        await self.put(store, "e", 1)
        await store.rollback("s", 2)
        assert await self.seen(store.store) == {"a": 2, "b": 1, "d": 1}
        await store.redo("s", 2)
        assert await self.seen(store.store) == {"a": 1, "b": 1, "c": 1, "e": 1}

    async def test_a_context_says_whose_history_a_change_is(self, stores: Stores) -> None:
        given: list[TransactionContext | None] = [None]
        store = stores.open(context=lambda: given[0])
        await self.put(store, "a", 1, None)
        await self.put(store, "b", 1, None)
        given[0] = TransactionContext("s", mark="m", actor="who")
        await store.update("a", {"rank": 2})
        await store.delete("b")
        assert [one.operation for one in await store.history("s")] == [Operation.DELETE, Operation.UPDATE]
        assert {(one.mark, one.actor) for one in await store.history("s")} == {("m", "who")}
        given[0] = None
        await store.rollback("s", 2)
        assert await self.seen(store.store) == {"a": 1, "b": 1}
        assert (await store.get("a"))["session_id"] is None
        await store.update("a", {"rank": 3})
        assert (await store.history(fact_id="a", limit=1))[0].session_id is None


__all__ = ["TestPast"]
