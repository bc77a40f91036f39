"""The commit with hooks: all or nothing, whatever a hook does, and nothing shown that is not committed."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from memstate_core import (
    BusyError,
    Constraint,
    Fact,
    HookError,
    HookTimeoutError,
    ImmutableError,
    MemoryStoreError,
    TransientError,
)
from memstate_core.testing.acts import ACTS, Gate, world
from memstate_core.testing.face import Call, Face, calls
from memstate_core.testing.factories import Stores, StoreTests
from memstate_core.testing.faults import Fault, FaultyHook, When, raising
from memstate_core.testing.index import Index, IndexHook, index_hook
from memstate_core.testing.models import Draft, Note

_ERRORS = [OSError, TimeoutError, KeyboardInterrupt, asyncio.CancelledError, HookError]


class TestFailingHooks(StoreTests):
    """A failed transaction leaves no trace: no fact, no journal entry, no text in an index."""

    @pytest.mark.parametrize("act", ACTS)
    async def test_whatever_fails_everything_is_as_it_was(self, stores: Stores, act: str) -> None:
        places: list[tuple[str, When]] = [
            ("prepare", "before"),
            ("prepare", "after"),
            ("apply", "before"),
            ("apply", "inside"),
            ("apply", "after"),
        ]
        a_world = await world(stores, act)
        assert a_world.hook is not None
        for operation, when in places:
            a_world.hook.faults = {operation: [Fault(1, when, raising(OSError("the index is away")))]}
            with pytest.raises(HookError, match="the index is away") as caught:
                await a_world.act()
            error = caught.value
            assert (error.hook, error.operation, error.in_doubt) == ("index", operation, ())
            assert isinstance(error.__cause__, OSError)
            await a_world.expect(a_world.before)
        a_world.hook.faults = {}
        await a_world.act()
        await a_world.expect(a_world.after)
        await a_world.goes_on()

    @pytest.mark.parametrize("error", _ERRORS, ids=lambda error: error.__name__)
    @pytest.mark.parametrize("operation", ["prepare", "apply"])
    async def test_every_kind_of_error(self, stores: Stores, operation: str, error: type[BaseException]) -> None:
        storage = stores.storages.new()
        if storage.is_async and error is KeyboardInterrupt:
            pytest.skip("it would end the event loop")
        index = Index()
        faulty = FaultyHook(index_hook(index, storage.is_async))
        store = stores.open([faulty], storage=storage)
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        before = await store.everything()
        faulty.faults[operation] = [Fault(1, "after", raising(error("on purpose")))]
        with pytest.raises(HookError if issubclass(error, Exception) else error) as caught:
            await store.update("n", {"text": "new"})
        if issubclass(error, Exception):
            assert isinstance(caught.value, HookError)
            assert isinstance(caught.value, TimeoutError) is isinstance(caught.value, HookTimeoutError)
            assert isinstance(caught.value, TimeoutError) is (error is TimeoutError)
            assert caught.value.hook == "index"
            assert "on purpose" in str(caught.value)
        assert await store.everything() == before
        assert index.versions() == {"n": 1}
        await store.update("n", {"text": "new"})
        assert (index.versions(), (await store.get("n"))["version"]) == ({"n": 2}, 2)

    async def test_hooks_told_before_are_brought_back(self, stores: Stores) -> None:
        storage = stores.storages.new()
        first, second, third = Index(), Index(), Index()
        faulty = FaultyHook(index_hook(second, storage.is_async, name="second"))
        store = stores.open(
            [
                index_hook(first, storage.is_async, name="first"),
                faulty,
                index_hook(third, storage.is_async, name="third"),
            ],
            storage=storage,
        )
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        faulty.faults["apply"] = [Fault(1, "inside")]
        with pytest.raises(HookError) as caught:  # noqa: PT012
            async with store.transaction() as tx:
                await tx.update("n", {"text": "new"})
                await tx.commit(Fact("note", {"text": "new"}, id="m"))
        assert caught.value.hook == "second"
        assert first.versions() == second.versions() == third.versions() == {"n": 1}
        assert [entry.text for index in (first, second) for entry in index.entries.values()] == ["old", "old"]
        assert len(third.batches) == 1

    async def test_hooks_of_one_name_are_numbered(self, stores: Stores) -> None:
        storage = stores.storages.new()
        indexes = [Index(), Index(), Index()]
        store = stores.open([index_hook(index, storage.is_async) for index in indexes], storage=storage)
        await store.commit(Fact("note", {"text": "x"}, id="n"))
        assert [index.versions() for index in indexes] == [{"n": 1}] * 3
        assert [drift.hook for drift in await store.verify()] == ["index", "index#2", "index#3"]
        indexes[1].entries.clear()
        assert await store.reindex("index#2") == 1
        assert indexes[1].versions() == {"n": 1}

    async def test_only_hooks_that_want_the_types_are_asked(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index = Index()
        faulty = FaultyHook(index_hook(index, storage.is_async, target_types={"note"}))
        store = stores.open([faulty], storage=storage)
        faulty.faults = {name: [Fault(1, "before", lasting=True)] for name in ("prepare", "apply")}
        await store.commit(Fact("memo", {"text": "x"}, id="m"))
        await store.put_record("c", "k", b"v")
        await store.savepoint("s", "here")
        async with store.transaction() as tx:
            await tx.update("m", {"text": "y"})
            await tx.put_record("c", "l", b"v")
        await store.rollback(None)
        with pytest.raises(HookError):
            await store.commit(Fact("note", {"text": "x"}))
        assert await store.ids() == ["m"]

    async def test_plain_functions_are_hooks(self, stores: Stores) -> None:
        storage = stores.storages.new()
        told: list[tuple[str, str, str | None]] = []

        def hook(operation: str, fact_id: str, fact: Fact | None) -> None:
            told.append((str(operation), fact_id, fact.payload["text"] if fact else None))
            if fact and fact.payload["text"] == "refused":
                raise OSError("refused")

        async def async_hook(operation: str, fact_id: str, fact: Fact | None) -> None:
            hook(operation, fact_id, fact)

        wanted: Any = async_hook if storage.is_async else hook
        wanted.target_types = {"note"}
        store = stores.open([wanted], storage=storage)
        await store.commit(Fact("note", {"text": "1"}, id="n"))
        await store.commit(Fact("memo", {"text": "1"}, id="m"))
        await store.update("n", {"text": "2"})
        await store.rollback(None)
        await store.delete("n")
        await store.rollback(None)
        assert told == [
            ("COMMIT", "n", "1"),
            ("UPDATE", "n", "2"),
            ("UPDATE", "n", "1"),
            ("DELETE", "n", None),
            ("COMMIT", "n", "1"),
        ]
        told.clear()
        with pytest.raises(HookError) as caught:
            await store.update("n", {"text": "refused"})
        assert caught.value.hook is not None
        assert caught.value.hook.endswith("hook")
        assert told[-1][1:] == ("n", "1")
        told.clear()
        assert await store.reindex() == 2
        assert [(id_, text) for _, id_, text in told] == [("n", "1")]
        with pytest.raises(HookError, match="search"):
            await store.search("text")
        assert await store.verify() == []

    async def test_a_hook_may_raise_hook_errors_of_its_own(self, stores: Stores) -> None:
        storage = stores.storages.new()
        faulty = FaultyHook(index_hook(Index(), storage.is_async))
        store = stores.open([faulty], storage=storage)
        own = HookError("model not found; pass another", hook="mine", operation="embed")
        faulty.faults = {"search": [Fault(1, "before", raising(own))]}
        with pytest.raises(HookError) as caught:
            await store.search("x")
        assert caught.value is own

    async def test_search_and_scan_errors_name_the_hook(self, stores: Stores) -> None:
        storage = stores.storages.new()
        faulty = FaultyHook(index_hook(Index(), storage.is_async))
        store = stores.open([faulty], storage=storage)
        operations: list[tuple[str, Call]] = [
            ("search", lambda: store.search("x")),
            ("scan", store.verify),
            ("scan", store.repair),
        ]
        for operation, call in operations:
            faulty.faults = {operation: [Fault(1, "before", raising(OSError("away")))]}
            with pytest.raises(HookError, match="away") as caught:
                await call()
            assert (caught.value.hook, caught.value.operation) == ("index", operation)
            assert isinstance(caught.value.__cause__, OSError)


class TestInDoubt(StoreTests):
    """When even bringing back fails: the facts wait, everything else goes on, and what is read is right."""

    async def doubtful(self, stores: Stores, **options: Any) -> tuple[Face, FaultyHook, Index]:
        """A store with facts a, b and c (a draft), of which a and c are in doubt: new in the index, old in storage."""
        storage = stores.storages.new()
        index = Index()
        faulty = FaultyHook(index_hook(index, storage.is_async))
        store = stores.open([faulty], storage=storage, claim_timeout=0.03, **options)
        await store.commit(Fact("note", {"text": "old a"}, id="a", session_id="s"))
        await store.commit(Fact("note", {"text": "old b"}, id="b"))
        await store.commit_model(Draft(topic="t", text="old c"), "c")
        faulty.faults["apply"] = [Fault(1, "after"), Fault(2, "before")]
        with pytest.raises(HookError) as caught:  # noqa: PT012
            async with store.transaction() as tx:
                await tx.update("a", {"text": "new a"})
                await tx.update("c", {"text": "new c"})
        assert set(caught.value.in_doubt) == {"a", "c"}
        assert any("brought back" in note for note in caught.value.__notes__)
        assert index.entries["a"].text == "new a"
        faulty.faults.clear()
        return store, faulty, index

    async def test_reads_and_search_answer_what_is_committed(self, stores: Stores) -> None:
        store, _, index = await self.doubtful(stores)
        hook = FaultyHook(index_hook(index, store.storage.is_async))
        hook.faults["apply"] = [Fault(1, "before", lasting=True)]  # it cannot heal, as it would at its first call
        other = stores.open([hook], storage=store.storage)
        assert (await other.get("a"))["payload"]["text"] == "old a"
        assert [f["payload"]["text"] for f in await other.query()] == ["old a", "old b", "old c"]
        for query in ("new a", "old a"):
            found = {one.fact.id: one for one in await other.search(query, limit=10)}
            assert {id_: one.fact.payload["text"] for id_, one in found.items()} == {
                "a": "old a",
                "b": "old b",
                "c": "old c",
            }
        best = (await other.search("old a", limit=1))[0]
        assert (best.fact.id, best.score) == ("a", 1.0)
        assert (await other.search("new c", limit=5))[0].score < 1.0
        assert await other.search("new a", score_threshold=0.9) == []

    async def test_recover_heals(self, stores: Stores) -> None:
        store, faulty, index = await self.doubtful(stores)
        faulty.faults["apply"] = [Fault(1, "before", raising(OSError("still away")))]
        with pytest.raises(HookError, match="still away") as caught:
            await store.recover()
        assert (caught.value.hook, caught.value.operation) == ("index", "recover")
        assert set(caught.value.in_doubt) == {"a", "c"}
        faulty.faults.clear()
        healed = await store.recover()
        assert (set(healed.healed), healed.in_doubt, healed.missing_hooks) == ({"a", "c"}, (), ())
        assert index.versions() == {"a": 1, "b": 1, "c": 1}
        assert index.entries["a"].text == "old a"
        assert await store.claims() == []
        assert await store.recover() == ((), (), ())

    async def test_the_next_transaction_on_them_heals_first(self, stores: Stores) -> None:
        for act in calls(
            lambda store: store.update("a", {"text": "newer a"}),
            lambda store: store.delete("a"),
            lambda store: store.commit_model(Draft(topic="t", text="newer c")),
            lambda store: store.rollback(None),
            lambda store: store.rollback("s"),
            lambda store: store.discard_session("s"),
        ):
            store, _, index = await self.doubtful(stores)
            await act(store)
            assert await store.claims() == []
            assert index.versions() == {fact["id"]: fact["version"] for fact in await store.query()}

    async def test_other_facts_are_free(self, stores: Stores) -> None:
        """Also while the index still refuses those that are in doubt."""
        store, faulty, index = await self.doubtful(stores)
        faulty.faults["apply"] = [Fault(2, "before")]
        await store.update("b", {"text": "new b"})
        assert faulty.faults["apply"][0].fired
        await store.commit(Fact("note", {"text": "n"}, id="n", session_id="s"))
        assert (index.entries["a"].text, index.entries["b"].text) == ("new a", "new b")
        assert len(await store.claims()) > 0

    async def test_the_next_transaction_on_others_heals_in_passing(self, stores: Stores) -> None:
        store, _, index = await self.doubtful(stores)
        await store.update("b", {"text": "new b"})
        assert index.versions() == {"a": 1, "b": 2, "c": 1}
        assert await store.claims() == []

    async def test_a_new_store_heals_at_its_first_call(self, stores: Stores) -> None:
        store, _, index = await self.doubtful(stores)
        again = await stores.reopen(store, [index_hook(index, store.is_async)])
        assert await again.count() == 3
        assert index.versions() == {"a": 1, "b": 1, "c": 1}
        assert await again.claims() == []

    async def test_reads_do_not_need_the_index(self, stores: Stores) -> None:
        store, _, index = await self.doubtful(stores)
        faulty = FaultyHook(index_hook(index, store.is_async))
        faulty.faults["apply"] = [Fault(1, "before", lasting=True)]
        again = stores.open([faulty], storage=store.storage)
        assert (await again.get("a"))["payload"]["text"] == "old a"
        assert await again.count() == 3
        with pytest.raises(HookError) as caught:
            await again.update("a", {"text": "newer a"})
        assert caught.value.operation == "recover"
        faulty.faults.clear()
        await again.update("a", {"text": "newer a"})
        assert index.entries["a"].text == "newer a"

    async def test_a_store_without_the_hook_waits_and_says_what_to_do(self, stores: Stores) -> None:
        store, _, index = await self.doubtful(stores)
        for hooks in ([], [index_hook(Index(), store.is_async, name="another")]):
            other = stores.open(hooks, storage=store.storage, claim_timeout=0.03)
            with pytest.raises(BusyError, match="'index'") as caught:
                await other.update("a", {"text": "newer"})
            assert isinstance(caught.value, TransientError)
            assert caught.value.fact_id == "a"
            with pytest.raises(BusyError):
                await other.commit_model(Draft(topic="t"))
            with pytest.raises(BusyError):
                await other.rollback("s")
            recovered = await other.recover()
            assert (recovered.healed, set(recovered.in_doubt), recovered.missing_hooks) == ((), {"a", "c"}, ("index",))
            assert (await other.get("a"))["payload"]["text"] == "old a"
        assert await store.update("a", {"text": "newer"}) == "a"
        assert index.entries["a"].text == "newer"

    async def test_verify_leaves_them_out_and_repair_heals_the_rest(self, stores: Stores) -> None:
        store, _, index = await self.doubtful(stores)
        index.entries.pop("b")
        (drift,) = await store.verify()
        assert (drift.missing, drift.stale, drift.orphaned) == (("b",), (), ())
        await store.repair()
        assert index.versions()["b"] == 1
        assert await store.reindex() == 3
        assert index.versions() == {"a": 1, "b": 1, "c": 1}
        assert await store.claims() == []

    @pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError], ids=lambda error: error.__name__)
    async def test_an_interruption_while_bringing_back(self, stores: Stores, error: type[BaseException]) -> None:
        storage = stores.storages.new()
        if storage.is_async and error is KeyboardInterrupt:
            pytest.skip("it would end the event loop")
        index = Index()
        faulty = FaultyHook(index_hook(index, storage.is_async))
        store = stores.open([faulty], storage=storage)
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        faulty.faults["apply"] = [Fault(1, "after"), Fault(2, "before", raising(error()))]
        with pytest.raises(error):
            await store.update("n", {"text": "new"})
        assert index.versions() == {"n": 2}
        assert (await store.recover()).healed == ("n",)
        assert index.versions() == {"n": 1}
        await store.update("n", {"text": "newer"})
        assert index.versions() == {"n": (await store.get("n"))["version"]}


class TestBesideAHook(StoreTests):
    """What others see and may do while a hook works."""

    async def test_nobody_sees_what_is_not_decided_and_nobody_else_waits(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index, gate = Index(), Gate()
        faulty = FaultyHook(IndexHook(index))
        slow = stores.open([faulty], storage=storage)
        other = stores.open([IndexHook(index)], storage=storage, claim_timeout=0.03)
        for id_ in "ab":
            await slow.commit(Fact("note", {"text": f"old {id_}"}, id=id_, session_id="s"))
        before = await other.everything()
        faulty.faults["apply"] = [Fault(1, "after", gate)]

        async def change() -> None:
            async with slow.transaction("s") as tx:
                await tx.update("a", {"text": "new a"})
                await tx.commit_model(Draft(topic="t", text="draft"), "d")

        task = slow.beside(change)
        await gate.reached()
        try:
            assert index.entries["a"].text == "new a"
            seen = await other.everything()
            assert (seen["facts"], seen["journal"]) == (before["facts"], before["journal"])
            assert sorted(claim.key.split(":")[0] for claim in seen["claims"]) == ["fact", "fact", "key"]
            assert (await other.search("new a", limit=1))[0].fact.payload["text"].startswith("old")
            await other.update("b", {"text": "newer b"})
            await other.commit(Fact("note", {"text": "c"}, id="c"))
            for call in calls(
                lambda: other.update("a", {"text": "mine"}),
                lambda: other.commit_model(Draft(topic="t"), session_id="s"),
                lambda: other.discard_session("s"),
                lambda: other.commit_model(Draft(topic="u"), "d"),
            ):
                with pytest.raises(BusyError, match="being changed"):
                    await call()
            assert await other.recover() == ((), (), ())
            (drift,) = await other.verify()
            assert not drift
        finally:
            gate.open()
        await task
        assert (await other.get("a"))["payload"]["text"] == "new a"
        assert index.versions() == {"a": 2, "b": 2, "c": 1, "d": 1}
        assert await other.claims() == []
        newest, older, *_ = await other.history("s")
        assert newest.parent == older.id

    async def test_who_waits_long_enough_comes_next(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index, gate = Index(), Gate()
        faulty = FaultyHook(IndexHook(index))
        slow = stores.open([faulty], storage=storage)
        waiting = stores.open([IndexHook(index)], storage=storage, claim_timeout=10)
        plain = stores.open(storage=storage, claim_timeout=10)
        await slow.commit(Fact("note", {"text": "old"}, id="n"))
        faulty.faults["apply"] = [Fault(1, "after", gate)]
        tasks = [slow.beside(lambda: slow.update("n", {"text": "new"}))]
        await gate.reached()
        tasks.append(waiting.beside(lambda: waiting.update("n", {"rank": 1})))
        tasks.append(plain.beside(lambda: plain.update("n", {"label": 1})))
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in tasks)
        gate.open()
        assert await asyncio.gather(*tasks) == ["n", "n", "n"]
        assert (await slow.get("n"))["payload"] == {"text": "new", "rank": 1, "label": 1, "data": None}
        assert (await slow.get("n"))["version"] == 4

    async def test_a_move_waits_for_a_move_of_the_same_session(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index, gate = Index(), Gate()
        faulty = FaultyHook(IndexHook(index))
        slow = stores.open([faulty], storage=storage)
        other = stores.open([IndexHook(index)], storage=storage, claim_timeout=0.03)
        for id_ in "abc":
            await slow.commit(Fact("note", {"text": id_}, id=id_, session_id="s"))
        faulty.faults["apply"] = [Fault(1, "before", gate)]
        task = slow.beside(lambda: slow.rollback("s"))
        await gate.reached()
        try:
            for call in calls(
                lambda: other.rollback("s"),
                lambda: other.commit(Fact("note", {"text": "d"}, id="d", session_id="s")),
                lambda: other.savepoint("s", "name"),
                lambda: other.checkout("s", None),
            ):
                with pytest.raises(BusyError, match=r"fact 'c'|session 's'"):
                    await call()
            await other.commit(Fact("note", {"text": "t"}, id="t", session_id="t"))
        finally:
            gate.open()
        assert [change.fact_id for one in await task for change in one.changes] == ["c"]
        assert await other.ids() == ["a", "b", "t"]
        assert len(await other.rollback("s")) == 1
        assert index.versions() == {"a": 1, "t": 1}

    async def test_a_plan_that_is_out_of_date_is_made_anew(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index = Index()

        async def there_and_back(other: Face) -> None:
            await other.update("n", {"text": "theirs"})
            await other.rollback("s")

        for interfere in calls(
            there_and_back,
            lambda other: other.update("n", {"rank": 1}),
            lambda other: other.delete("n"),
            lambda other: other.rollback("s"),
            lambda other: other.commit_model(Draft(topic="t", text="theirs"), "theirs", session_id="s"),
        ):
            gate = Gate()
            faulty = FaultyHook(IndexHook(index))
            slow = stores.open([faulty], storage=storage, namespace=f"n{id(gate)}")
            other = stores.open([IndexHook(index)], storage=storage, namespace=f"n{id(gate)}")
            index.entries.clear()
            await slow.commit(Fact("note", {"text": "old"}, id="n", session_id="s"))
            faulty.faults["prepare"] = [Fault(1, "after", gate)]

            async def change(slow: Face = slow) -> str:
                await slow.commit(Fact("note", {"text": "new"}, id="n"), session_id="s")
                id_: str = await slow.commit_model(Draft(topic="t", text="mine"), "mine", session_id="s")
                return id_

            task = slow.beside(change)
            await gate.reached()
            await interfere(other)
            gate.open()
            id_ = await task
            facts = {fact["id"]: fact for fact in await other.query()}
            assert facts["n"]["payload"]["text"] == "new"
            assert set(facts) == {"n", id_}
            assert index.versions() == {fact_id: fact["version"] for fact_id, fact in facts.items()}
            made = [one for one in await other.history(fact_id="n") if one.operation != "ROLLBACK"]
            versions = [change.after.version for one in made for change in one.changes if change.after]
            assert len(set(versions)) == len(versions)

    @pytest.mark.parametrize("operation", ["prepare", "apply"])
    async def test_definitions_that_change_meanwhile_hold(self, stores: Stores, operation: str) -> None:
        """Also for a new fact, for which nothing is read before it is claimed."""
        changes: list[tuple[Constraint, Any, type[Exception] | None]] = [
            (Constraint(immutable=True), lambda store: store.update("n", {"text": "new"}), ImmutableError),
            (
                Constraint(singleton_key="text"),
                lambda store: store.commit_model(Note(text="old", label="new"), typename="note"),
                None,
            ),
        ]
        for constraint, change, refusal in changes:
            storage = stores.storages.new()
            index, gate = Index(), Gate()
            faulty = FaultyHook(IndexHook(index))
            slow = stores.open([faulty], storage=storage)
            await slow.commit(Fact("note", {"text": "old"}, id="n"))
            faulty.faults[operation] = [Fault(1, "after", gate)]
            task = slow.beside(partial(change, slow))
            await gate.reached()
            other = stores.open(storage=storage)
            other.store.register_schema("note", Note, constraint)
            await other.count()
            gate.open()
            if refusal is not None:
                with pytest.raises(refusal):
                    await task
                assert index.versions() == {"n": 1}
            else:
                assert await task == "n"  # whose place it is now
                assert [fact["payload"]["label"] for fact in await slow.query("note")] == ["new"]
                assert index.versions() == {"n": 2}

    async def test_an_asynchronous_hook_is_refused_by_a_sync_store(self, stores: Stores) -> None:
        storage = stores.storages.new()
        if storage.is_async:
            pytest.skip("an async store takes both")

        class Sneaky:
            name = "sneaky"

            def apply(self, changes: Any) -> Any:
                return asyncio.sleep(0)

        store = stores.open([Sneaky()], storage=storage)
        with pytest.raises(MemoryStoreError, match="AsyncMemoryStore"):
            await store.commit(Fact("note", {"text": "x"}))
        assert await store.count() == 0


__all__ = ["TestBesideAHook", "TestFailingHooks", "TestInDoubt"]
