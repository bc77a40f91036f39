"""Going back and forth: rollback, redo, checkout, savepoints, history."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Any

import pytest

from memstate_core import (
    ConflictError,
    Fact,
    NotFoundError,
    TransactionContext,
    ValidationFailed,
)
from memstate_core.testing.face import Face, calls, case
from memstate_core.testing.factories import Clock, Stores, StoreTests
from memstate_core.testing.models import Draft, User


async def texts(store: Face, *ids: str) -> list[str | None]:
    """The ``text`` of facts; None for those that are not there."""
    return [fact["payload"]["text"] if (fact := await store.get(id_)) else None for id_ in ids]


async def three_steps(store: Face, session_id: str | None = "s") -> list[str]:
    """Fact ``n`` with the texts 1, 2, 3, by three transactions of a session; their ids, oldest first."""
    await store.commit(Fact("note", {"text": "1"}, id="n", session_id=session_id))
    await store.update("n", {"text": "2"})
    await store.update("n", {"text": "3"})
    return [one.id for one in reversed(await store.history(session_id))]


class TestRollback(StoreTests):
    """The last transactions of a session are undone, as one transaction."""

    async def test_a_step_is_a_transaction(self, store: Face) -> None:
        ids = await three_steps(store)
        undone = await store.rollback("s")
        assert [one.id for one in undone] == [ids[2]]
        assert await texts(store, "n") == ["2"]
        assert [one.id for one in await store.rollback(session_id="s", steps=2)] == [ids[1], ids[0]]
        assert await texts(store, "n") == [None]

    async def test_the_fact_is_exactly_as_it_was(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "1", "data": [1]}, id="n", session_id="s", source="x"), ephemeral=True)
        before = await store.get("n")
        await store.commit(Fact("note", {"text": "2"}, id="n"), session_id="s")
        await store.rollback("s")
        assert await store.get("n") == before
        await store.delete("n")
        await store.rollback("s")
        assert await store.get("n") == before

    async def test_the_order_of_facts_is_as_it_was(self, store: Face) -> None:
        for id_ in ("c", "a", "b"):
            await store.commit(Fact("note", {}, id=id_, session_id="s"))
        await store.delete("c")
        await store.rollback("s")
        assert await store.ids() == ["c", "a", "b"]
        await store.update("a", {"text": "x"})
        assert await store.ids() == ["c", "a", "b"]

    async def test_the_order_of_many_that_come_back_is_as_it_was(self, store: Face) -> None:
        ids = [f"{number * 7 % 200:03}" for number in range(200)]
        async with store.transaction("s") as tx:
            for id_ in ids:
                await tx.commit(Fact("note" if id_ < "150" else "memo", {"rank": int(id_) % 3}, id=id_))
        for id_ in ids[5:25]:
            await store.delete(id_)
        assert await store.discard_session("s") == 180
        await store.commit(Fact("note", {"rank": 1}, id="later", session_id="t"))
        await store.rollback("s")
        assert await store.ids(session_id="s") == ids[:5] + ids[25:]
        await store.rollback("s", 20)
        assert await store.ids() == [*ids, "later"]
        assert await store.ids("memo") == [id_ for id_ in ids if id_ >= "150"]
        assert await store.ids("note", {"rank": 1}) == [
            *(id_ for id_ in ids if id_ < "150" and int(id_) % 3 == 1),
            "later",
        ]
        assert await store.ids(limit=7, offset=3) == ids[3:10]

    async def test_more_steps_than_there_are_undo_all(self, store: Face) -> None:
        await three_steps(store)
        assert len(await store.rollback("s", 99)) == 3
        moved = await store.rollback("s", 99)
        assert (list(moved), moved.transaction_id) == ([], None)
        assert await store.journal("s") == ["ROLLBACK", "UPDATE", "UPDATE", "COMMIT"]

    async def test_no_steps_undo_nothing(self, store: Face) -> None:
        await three_steps(store)
        assert await store.rollback("s", 0) == []
        assert await store.rollback("nobody") == []
        assert await texts(store, "n") == ["3"]
        assert len(await store.history()) == 3

    async def test_steps_must_be_a_count(self, store: Face) -> None:
        await three_steps(store)
        for steps, call in itertools.product((-1, 1.0, "1", True, None), (store.rollback, store.redo)):
            with case(steps), pytest.raises(ValueError, match="steps"):
                await call("s", steps)
        assert await texts(store, "n") == ["3"]

    async def test_a_count_may_be_huge(self, store: Face) -> None:
        await three_steps(store)
        assert len(await store.rollback("s", 2**70)) == 3
        assert len(await store.redo("s", 2**70)) == 3

    async def test_the_long_term_line_has_its_own_history(self, store: Face) -> None:
        await three_steps(store)
        await store.commit(Fact("note", {"text": "long"}, id="l"))
        await store.update("l", {"text": "longer"})
        assert len(await store.rollback(1)) == 1
        assert await texts(store, "n", "l") == ["3", "long"]
        assert len(await store.rollback(None)) == 1
        assert len(await store.rollback()) == 0
        assert await texts(store, "n", "l") == ["3", None]
        assert await store.journal(None) == ["ROLLBACK", "ROLLBACK", "UPDATE", "COMMIT"]

    async def test_the_session_must_be_an_identifier(self, store: Face) -> None:
        for wrong in ("", "nul\0", "lone \ud800", "x" * 513):
            for call in calls(
                store.rollback,
                store.redo,
                lambda session_id: store.checkout(session_id, None),
                lambda session_id: store.savepoint(session_id, "name"),
            ):
                with case(wrong), pytest.raises(ValidationFailed):
                    await call(wrong)

    async def test_it_is_one_transaction_in_the_journal(self, store: Face, stores: Stores) -> None:
        ids = await three_steps(store)
        moved = await store.rollback("s", 2, actor="bot", reason="wrong")
        newest = (await store.history("s"))[0]
        assert (newest.operation, newest.actor, newest.reason) == ("ROLLBACK", "bot", "wrong")
        assert (newest.id, newest.parent, newest.position) == (moved.transaction_id, ids[2], ids[0])
        (change,) = newest.changes
        assert (change.fact_id, change.before.version, change.after.version) == ("n", 3, 1)
        assert change.operation == "UPDATE"
        assert (moved.undone, moved.redone, moved.kept) == (list(moved), [], ())
        assert [one.changes[0].before.payload["text"] for one in moved] == ["2", "1"]

    async def test_what_cancels_out_is_no_change(self, store: Face) -> None:
        await store.commit(Fact("note", {}, id="n", session_id="s"))
        await store.delete("n")
        assert len(await store.rollback("s", 2)) == 2
        assert (await store.history("s"))[0].changes == ()
        assert await store.query() == []
        assert len(await store.redo("s", 2)) == 2
        assert await store.query() == []

    async def test_several_facts_of_one_transaction_go_together(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "1"}, id="a", session_id="s"))
        await store.commit(Fact("note", {"text": "1"}, id="b", session_id="s"))
        async with store.transaction(session_id="s") as tx:
            await tx.update("a", {"text": "2"})
            await tx.delete("b")
            await tx.commit(Fact("note", {"text": "1"}, id="c"))
        assert await texts(store, "a", "b", "c") == ["2", None, "1"]
        await store.rollback("s")
        assert await texts(store, "a", "b", "c") == ["1", "1", None]

    async def test_a_singleton_that_changed_hands_goes_back(self, store: Face) -> None:
        await store.commit_model(User(email="x"), "a", session_id="s")
        await store.update("a", {"email": "y"})
        await store.commit_model(User(email="x"), "b", session_id="s")
        await store.delete("a")
        assert await store.commit_model(User(email="y"), "c", session_id="s") == "c"
        await store.rollback("s", 4)
        assert [(f["id"], f["payload"]["email"]) for f in await store.query()] == [("a", "x")]
        await store.redo("s", 4)
        assert [(f["id"], f["payload"]["email"]) for f in await store.query()] == [("b", "x"), ("c", "y")]
        assert await store.commit_model(User(email="y", name="new")) == "c"

    async def test_hundreds_of_transactions_go_back_at_once(self, store: Face) -> None:
        async with store.transaction(session_id="s") as tx:
            for number in range(500):
                await tx.commit(Fact("note", {"rank": number}, id=str(number)))
        for number in range(300):
            await store.update(str(number % 7), {"rank": -number})
        assert len(await store.rollback("s", 300)) == 300
        assert [fact["payload"]["rank"] for fact in await store.query(limit=9)] == list(range(9))
        assert len(await store.redo("s", 299)) == 299
        assert (await store.get("4"))["payload"]["rank"] == -298
        assert len(await store.rollback("s", 10**6)) == 300
        assert await store.count() == 0


class TestRollbackTo(StoreTests):
    """To a transaction, a savepoint, a mark or a time."""

    async def test_to_a_transaction(self, store: Face) -> None:
        ids = await three_steps(store)
        assert [one.id for one in await store.rollback("s", to=ids[1])] == [ids[2]]
        assert await texts(store, "n") == ["2"]
        first = (await store.history("s"))[-1]
        assert [one.id for one in await store.rollback("s", to=first)] == [ids[1]]
        assert await store.rollback("s", to=first) == []
        assert await texts(store, "n") == ["1"]

    async def test_to_where_a_rollback_led(self, store: Face) -> None:
        ids = await three_steps(store)
        moved = await store.rollback("s", 2)
        await store.update("n", {"text": "4"})
        await store.rollback("s", to=moved.transaction_id)
        assert await texts(store, "n") == ["1"]
        await store.redo("s")
        assert await texts(store, "n") == ["4"]
        with pytest.raises(NotFoundError):
            await store.rollback("s", to=ids[2])

    async def test_to_a_savepoint(self, store: Face) -> None:
        assert await store.savepoint("s", "start") is None
        ids = await three_steps(store)
        assert await store.savepoint("s", "here") == ids[2]
        await store.update("n", {"text": "4"})
        await store.delete("n")
        assert len(await store.rollback("s", to="here")) == 2
        assert await texts(store, "n") == ["3"]
        assert len(await store.rollback("s", to="start")) == 3
        assert await texts(store, "n") == [None]
        await store.redo("s", 2)
        assert await store.savepoint("s", "here") == ids[1]
        await store.redo("s")
        await store.rollback("s", to="here")
        assert await texts(store, "n") == ["2"]

    async def test_savepoints_belong_to_their_session(self, store: Face) -> None:
        await three_steps(store)
        await store.savepoint("s", "here")
        await store.savepoint(None, "long")
        for session_id, name in ((None, "here"), ("other", "here"), ("s", "long")):
            with pytest.raises(NotFoundError, match=name):
                await store.rollback(session_id, to=name)
        for wrong in ("", "nul\0", 5, None):
            with pytest.raises(ValidationFailed):
                await store.savepoint("s", wrong)
        assert await store.journal() == ["UPDATE", "UPDATE", "COMMIT"]

    async def test_to_a_mark_is_to_the_last_transaction_that_has_it(self, store: Face) -> None:
        for number in range(6):
            async with store.transaction(session_id="s", mark=f"m{number // 2}") as tx:
                await tx.commit(Fact("note", {"text": str(number)}, id="n"))
        await store.rollback("s", to="m1")
        assert await texts(store, "n") == ["3"]
        assert [one.changes[0].after.payload["text"] for one in await store.history("s", mark="m1")] == ["3", "2"]
        await store.rollback("s", to="m0")
        assert await texts(store, "n") == ["1"]
        with pytest.raises(NotFoundError, match="m2"):
            await store.rollback("s", to="m2")
        await store.checkout("s", "m2")
        assert await texts(store, "n") == ["5"]

    async def test_a_mark_of_another_branch_is_not_found(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "1"}, id="n", session_id="s"))
        for mark in ("left", "right"):
            async with store.transaction(session_id="s", mark=mark) as tx:
                await tx.update("n", {"text": mark})
            await store.rollback("s")
        await store.redo("s")
        with pytest.raises(NotFoundError):
            await store.rollback("s", to="left")
        assert await texts(store, "n") == ["right"]
        await store.checkout("s", "left")
        assert await texts(store, "n") == ["left"]

    async def test_a_newer_transaction_with_the_mark_on_a_branch_that_was_left_is_not_meant(self, store: Face) -> None:
        async def change(text: str, mark: str | None = None) -> None:
            async with store.transaction("s", mark=mark) as tx:
                await tx.commit(Fact("note", {"text": text}, id="n"))

        await change("marked", "m")
        await change("2")
        await store.rollback("s")
        await change("left", "m")
        await store.rollback("s")
        await change("3")
        await change("4")
        assert len(await store.rollback("s", to="m")) == 2
        assert await texts(store, "n") == ["marked"]
        await store.checkout("s", "m")  # of any branch the newest
        assert await texts(store, "n") == ["left"]

    async def test_marks_come_from_the_context_too(self, stores: Stores) -> None:
        marks = iter("abcdefgh")
        store = stores.open(context=lambda: TransactionContext(session_id="s", mark=next(marks)))
        await store.commit(Fact("note", {"text": "1"}, id="n", session_id="s"))
        await store.update("n", {"text": "2"})
        by_mark = {one.mark: one.changes[0].after.payload["text"] for one in await store.history()}
        assert sorted(by_mark.values()) == ["1", "2"]
        first = next(mark for mark, text in by_mark.items() if text == "1")
        await store.rollback("s", to=first)
        assert await texts(store, "n") == ["1"]
        assert (await store.history(limit=1))[0].mark in "abcdefgh"

    async def test_to_a_time(self, stores: Stores, clock: Clock) -> None:
        store = stores.open(clock=clock)
        await three_steps(store)
        times = [one.ts for one in reversed(await store.history("s"))]
        assert times == sorted(times)
        await store.rollback("s", to=times[2])
        assert await texts(store, "n") == ["3"]
        await store.rollback("s", to=times[2] - timedelta(microseconds=1))
        assert await texts(store, "n") == ["2"]
        await store.redo("s")
        await store.rollback("s", to=times[0] + timedelta(microseconds=1))
        assert await texts(store, "n") == ["1"]
        await store.rollback("s", to=times[0] - timedelta(days=1))
        assert await texts(store, "n") == [None]
        with pytest.raises(ValidationFailed, match="aware"):
            await store.rollback("s", to=datetime(2020, 1, 1))  # noqa: DTZ001

    async def test_equal_times_do_not_matter(self, stores: Stores, clock: Clock) -> None:
        clock.step = timedelta(0)
        store = stores.open(clock=clock)
        ids = await three_steps(store)
        assert [one.id for one in reversed(await store.history("s"))] == ids
        await store.rollback("s")
        assert await texts(store, "n") == ["2"]
        assert await store.rollback("s", to=clock.now) == []
        assert len(await store.rollback("s", to=clock.now - timedelta(seconds=1))) == 2

    async def test_an_unknown_place_is_not_found(self, store: Face) -> None:
        await three_steps(store)
        for to in ("tx-99999", "tx-0", "tx-", "tx-x", "tx--1", "tx-1e3", "nothing", "tx-" + "9" * 400):
            with case(to):
                with pytest.raises(NotFoundError):
                    await store.rollback("s", to=to)
                with pytest.raises(NotFoundError):
                    await store.checkout("s", to)
        assert await store.journal() == ["UPDATE", "UPDATE", "COMMIT"]

    async def test_a_senseless_place_is_an_error(self, store: Face) -> None:
        await three_steps(store)
        for to in (5, 1.5, ["tx-1"], "", "nul\0", "lone \ud800"):
            with case(to):
                with pytest.raises(ValueError, match=r"^to "):
                    await store.rollback("s", to=to)
                with pytest.raises(ValueError, match=r"^to "):
                    await store.checkout("s", to)
        assert await texts(store, "n") == ["3"]

    async def test_a_transaction_of_another_session_is_not_found(self, store: Face) -> None:
        ids = await three_steps(store)
        await store.commit(Fact("note", {}, id="m"))
        for session_id in (None, "other"):
            with pytest.raises(NotFoundError):
                await store.rollback(session_id, to=ids[0])
            with pytest.raises(NotFoundError):
                await store.checkout(session_id, ids[0])
        assert await store.ids() == ["n", "m"]


class TestRedo(StoreTests):
    """What the last rollback undid, while nothing was committed since."""

    async def test_redo_goes_forward_again(self, store: Face) -> None:
        ids = await three_steps(store)
        as_it_was = await store.get("n")
        await store.rollback("s", 3)
        redone = await store.redo("s", 2)
        assert ([one.id for one in redone], redone.redone) == (ids[:2], list(redone))
        assert await texts(store, "n") == ["2"]
        assert [one.id for one in await store.redo("s", 9)] == ids[2:]
        assert await store.get("n") == as_it_was
        assert await store.redo("s") == []
        newest = (await store.history("s"))[0]
        assert (newest.operation, newest.position) == ("REDO", ids[2])

    async def test_rollbacks_add_up(self, store: Face) -> None:
        await three_steps(store)
        await store.rollback("s")
        await store.rollback("s")
        assert len(await store.redo("s", 5)) == 2
        assert await texts(store, "n") == ["3"]
        await store.rollback("s", 2)
        await store.redo("s")
        await store.rollback("s", 2)
        assert len(await store.redo("s", 5)) == 3

    async def test_a_commit_ends_it(self, store: Face) -> None:
        await three_steps(store)
        await store.rollback("s", 2)
        await store.commit(Fact("note", {"text": "new"}, id="m", session_id="s"))
        assert await store.redo("s", 5) == []
        assert await texts(store, "n", "m") == ["1", "new"]
        await store.rollback("s")
        await store.redo("s", 5)
        assert await texts(store, "n", "m") == ["1", "new"]

    async def test_another_sessions_commit_does_not_end_it(self, store: Face) -> None:
        await three_steps(store)
        await store.rollback("s")
        await store.commit(Fact("note", {}, id="m", session_id="t"))
        await store.savepoint("s", "name")
        await store.put_record("c", "k", b"v")
        assert len(await store.redo("s")) == 1

    async def test_a_failed_commit_does_not_end_it(self, store: Face) -> None:
        await three_steps(store)
        await store.rollback("s")
        with pytest.raises(ValidationFailed):
            await store.commit(Fact("note", {"text": 5}, id="n"), session_id="s")
        with pytest.raises(ConflictError):
            await store.update("n", {"text": "x"}, expected_version=9)
        assert len(await store.redo("s")) == 1

    async def test_no_steps_redo_nothing(self, store: Face) -> None:
        await three_steps(store)
        await store.rollback("s")
        assert await store.redo("s", 0) == []
        assert await texts(store, "n") == ["2"]
        assert len(await store.redo("s")) == 1

    async def test_the_next_change_has_a_new_version(self, store: Face) -> None:
        await three_steps(store)
        await store.rollback("s", 2)
        await store.redo("s")
        await store.update("n", {"text": "4"})
        assert (await store.get("n"))["version"] == 4


class TestCheckout(StoreTests):
    """Any place of the tree."""

    async def test_to_a_branch_that_was_left(self, store: Face) -> None:
        ids = await three_steps(store)
        await store.rollback("s", 2)
        await store.update("n", {"text": "other 2"})
        await store.update("n", {"text": "other 3"})
        other = (await store.history("s"))[0].id
        moved = await store.checkout("s", ids[2])
        assert await texts(store, "n") == ["3"]
        assert ([one.id for one in moved.redone], len(moved.undone)) == ([ids[1], ids[2]], 2)
        newest = (await store.history("s"))[0]
        assert (newest.operation, newest.position, newest.parent) == ("CHECKOUT", ids[2], other)
        assert (newest.changes[0].before.version, newest.changes[0].after.version) == (5, 3)
        await store.checkout("s", other)
        assert await texts(store, "n") == ["other 3"]
        await store.rollback("s", 2)
        assert await texts(store, "n") == ["1"]

    async def test_to_before_the_first(self, store: Face) -> None:
        await three_steps(store)
        assert len(await store.checkout("s", None)) == 3
        assert await store.query() == []
        assert (await store.history("s"))[0].position is None
        assert len(await store.redo("s", 3)) == 3

    async def test_to_where_one_is_changes_nothing(self, store: Face) -> None:
        ids = await three_steps(store)
        moved = await store.checkout("s", ids[2])
        assert (moved, moved.transaction_id) == ([], None)
        assert len(await store.history("s")) == 3

    async def test_a_checkout_upwards_can_be_redone(self, store: Face) -> None:
        ids = await three_steps(store)
        await store.checkout("s", ids[0])
        assert [one.id for one in await store.redo("s")] == [ids[1]]
        await store.checkout("s", ids[2])
        assert await store.redo("s") == []

    async def test_a_checkout_along_what_can_be_redone_keeps_the_rest(self, store: Face) -> None:
        ids = await three_steps(store)
        await store.rollback("s", 3)
        await store.checkout("s", ids[1])
        assert await texts(store, "n") == ["2"]
        assert [one.id for one in await store.redo("s", 5)] == [ids[2]]

    async def test_a_checkout_to_another_branch_ends_redo(self, store: Face) -> None:
        ids = await three_steps(store)
        await store.rollback("s", 2)
        await store.update("n", {"text": "other"})
        other = (await store.history("s"))[0].id
        await store.rollback("s")
        await store.checkout("s", ids[1])
        assert await store.redo("s", 5) == []
        await store.rollback("s")
        await store.checkout("s", other)
        assert await store.redo("s", 5) == []
        assert await texts(store, "n") == ["other"]

    async def test_the_next_change_is_a_new_branch(self, store: Face) -> None:
        ids = await three_steps(store)
        await store.checkout("s", ids[0])
        await store.update("n", {"text": "new"})
        newest = (await store.history("s"))[0]
        assert (newest.parent, newest.position) == (ids[0], newest.id)
        assert (await store.get("n"))["version"] == 4
        await store.checkout("s", ids[2])
        await store.checkout("s", newest)
        assert await texts(store, "n") == ["new"]


class TestConflicts(StoreTests):
    """What another session has changed since is not undone."""

    async def test_a_fact_that_another_session_changed_stays(self, store: Face) -> None:
        await store.commit_model(User(email="a", name="1"), "u", session_id="s")
        await store.commit(Fact("note", {"text": "mine"}, id="n", session_id="s"))
        await store.commit_model(User(email="a", name="2"), session_id="t")
        (theirs,) = await store.history("t")
        before = await store.everything()
        with pytest.raises(ConflictError, match="keep") as caught:
            await store.rollback("s", 2)
        error = caught.value
        assert (error.fact_id, error.session_id, error.transaction_id) == ("u", "t", theirs.id)
        assert await store.everything() == before
        assert len(await store.rollback("s", 1)) == 1
        with pytest.raises(ConflictError):
            await store.rollback("s", 1)
        await store.rollback("t")
        await store.rollback("s")
        assert await store.query() == []

    async def test_keep_undoes_the_rest(self, store: Face) -> None:
        await store.commit_model(User(email="a", name="1"), "u", session_id="s")
        await store.commit(Fact("note", {"text": "mine"}, id="n", session_id="s"))
        await store.commit_model(User(email="a", name="2"), session_id="t")
        moved = await store.rollback("s", 2, on_conflict="keep")
        assert (len(moved), moved.kept) == (2, ("u",))
        assert [(f["id"], f["version"]) for f in await store.query()] == [("u", 2)]
        moved = await store.redo("s", 2, on_conflict="keep")
        assert (len(moved), moved.kept) == (2, ("u",))
        assert [(f["id"], f["version"]) for f in await store.query()] == [("u", 2), ("n", 1)]
        with pytest.raises(ConflictError):
            await store.checkout("s", None)
        assert (await store.checkout("s", None, on_conflict="keep")).kept == ("u",)

    async def test_a_fact_changed_in_turns_is_kept_whole(self, store: Face) -> None:
        await store.commit_model(User(email="a", name="1"), "u", session_id="s")
        await store.commit_model(User(email="a", name="2"), session_id="t")
        await store.commit_model(User(email="a", name="3"), session_id="s")
        assert (await store.rollback("s", 2, on_conflict="keep")).kept == ("u",)
        assert (await store.get("u"))["version"] == 3

    async def test_a_deleted_fact_is_a_conflict_too(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "1"}, id="n", session_id="s"))
        await store.update("n", {"text": "2"})
        await store.delete("n", session_id="t")
        with pytest.raises(ConflictError) as caught:
            await store.rollback("s")
        assert (caught.value.fact_id, caught.value.session_id) == ("n", "t")
        assert (await store.rollback("s", 2, on_conflict="keep")).kept == ("n",)
        assert await store.get("n") is None
        await store.rollback("t")
        assert await texts(store, "n") == ["2"]

    async def test_the_same_content_at_another_version_is_a_conflict(self, store: Face) -> None:
        await store.commit_model(User(email="a", name="1"), "u", session_id="s")
        await store.commit_model(User(email="a", name="1"), session_id="t")
        with pytest.raises(ConflictError):
            await store.rollback("s")

    async def test_an_undone_change_of_another_session_is_none(self, store: Face) -> None:
        await store.commit_model(User(email="a", name="1"), "u", session_id="s")
        await store.commit_model(User(email="a", name="2"), session_id="t")
        await store.rollback("t")
        assert len(await store.rollback("s")) == 1
        with pytest.raises(ConflictError):
            await store.redo("t")

    async def test_a_singleton_value_that_was_given_away_is_a_conflict(self, store: Face) -> None:
        await store.commit_model(User(email="a"), "u", session_id="s")
        await store.delete("u")
        await store.commit_model(User(email="a"), "v", session_id="t")
        await store.commit(Fact("note", {"text": "x"}, id="n", session_id="s"))
        before = await store.everything()
        with pytest.raises(ConflictError) as caught:
            await store.rollback("s", 2)
        assert (caught.value.fact_id, caught.value.session_id) == ("u", "t")
        assert await store.everything() == before
        moved = await store.rollback("s", 2, on_conflict="keep")
        assert moved.kept == ("u",)
        assert await store.ids() == ["v"]
        await store.rollback("t")
        assert (await store.checkout("s", None, on_conflict="keep")).kept == ("u",)
        assert await store.query() == []

    async def test_a_kept_fact_may_block_another(self, store: Face) -> None:
        # b took a's value in the same session; b was changed since, so it stays, so a cannot come back.
        await store.commit_model(User(email="x"), "a", session_id="s")
        await store.update("a", {"email": "y"})
        await store.commit_model(User(email="x"), "b", session_id="s")
        await store.commit_model(User(email="x", name="theirs"), session_id="t")
        moved = await store.rollback("s", 2, on_conflict="keep")
        assert sorted(moved.kept) == ["a", "b"]
        assert [(f["id"], f["payload"]["email"]) for f in await store.query()] == [("a", "y"), ("b", "x")]

    async def test_blocking_goes_on_in_a_chain(self, store: Face) -> None:
        # Values moved along a -> b -> c; c's last value is taken by another session's fact.
        for id_, email in (("a", "1"), ("b", "2"), ("c", "3")):
            await store.commit_model(User(email=email), id_, session_id="s")
        await store.update("c", {"email": "4"})
        await store.update("b", {"email": "3"})
        await store.update("a", {"email": "2"})
        await store.commit_model(User(email="1"), "z", session_id="t")
        moved = await store.rollback("s", 3, on_conflict="keep")
        assert set(moved.kept) == {"a", "b", "c"}
        assert [f["payload"]["email"] for f in await store.query()] == ["2", "3", "4", "1"]
        await store.rollback("t")
        await store.redo("s", 3, on_conflict="keep")
        await store.checkout("s", None, on_conflict="keep")
        assert await store.query() == []

    async def test_of_two_that_would_both_come_back_to_one_value_the_first_does(self, store: Face) -> None:
        await store.commit_model(User(email="x"), "a", session_id="s")
        await store.commit_model(User(email="x"), "a", session_id="t")
        await store.update("a", {"email": "y"})  # recorded under t, whose fact it is now
        await store.commit_model(User(email="x"), "b", session_id="s")
        await store.rollback("s")
        await store.rollback("t", 2)
        await store.rollback("s")
        assert await store.query() == []
        with pytest.raises(ConflictError) as caught:
            await store.redo("s", 2)
        assert caught.value.fact_id == "b"
        moved = await store.redo("s", 2, on_conflict="keep")
        assert (len(moved), moved.kept) == (2, ("b",))
        assert [(f["id"], f["payload"]["email"]) for f in await store.query()] == [("a", "x")]

    async def test_session_scoped_values_do_not_conflict(self, store: Face) -> None:
        await store.commit_model(Draft(topic="a"), "1", session_id="s")
        await store.delete("1")
        await store.commit_model(Draft(topic="a"), "2", session_id="t")
        await store.rollback("s")
        assert await store.ids() == ["1", "2"]

    async def test_promoting_is_a_change_that_conflicts(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "1"}, id="n", session_id="s"))
        await store.promote_session("s")
        await store.update("n", {"text": "2"})
        with pytest.raises(ConflictError):
            await store.rollback("s")
        await store.rollback(None)
        await store.rollback("s", 2)
        assert await store.query() == []

    async def test_on_conflict_is_raise_or_keep(self, store: Face) -> None:
        for call in (store.rollback, store.redo):
            with pytest.raises(ValueError, match="on_conflict"):
                await call("s", on_conflict="ignore")
        with pytest.raises(ValueError, match="on_conflict"):
            await store.checkout("s", None, on_conflict=None)


class TestHistory(StoreTests):
    """The journal: everything that happened, newest first."""

    async def test_it_says_who_what_when_and_why(self, stores: Stores, clock: Clock) -> None:
        store = stores.open(clock=clock)
        await store.commit(Fact("note", {"text": "1"}, id="n", session_id="s", source="x"), actor="a", reason="r")
        committed = clock.now
        await store.update("n", {"text": "2"})
        await store.delete("n", actor="d")
        deleted, updated, made = await store.history("s")
        assert (made.operation, made.actor, made.reason, made.ts, made.mark) == ("COMMIT", "a", "r", committed, None)
        assert (made.parent, updated.parent, deleted.parent) == (None, made.id, updated.id)
        assert (made.position, updated.position, deleted.position) == (made.id, updated.id, deleted.id)
        assert made.seq < updated.seq < deleted.seq
        assert len({made.id, updated.id, deleted.id}) == 3
        (change,) = updated.changes
        assert (change.fact_id, change.operation) == ("n", "UPDATE")
        assert (change.before.payload["text"], change.before.version, change.before.source) == ("1", 1, "x")
        assert (change.after.payload["text"], change.after.version, change.after.ts) == ("2", 2, updated.ts)
        assert (made.changes[0].before, made.changes[0].operation) == (None, "COMMIT")
        assert (deleted.changes[0].after, deleted.changes[0].operation) == (None, "DELETE")
        assert change.inverse.before == change.after

    async def test_by_session_fact_and_mark(self, store: Face) -> None:
        for session_id in ("s", "t", None):
            async with store.transaction(session_id=session_id, mark="m") as tx:
                await tx.commit(Fact("note", {}, id=f"1{session_id}"))
                await tx.commit(Fact("note", {}, id=f"2{session_id}"))
        await store.update("1s", {"text": "x"})
        await store.rollback("s")
        assert await store.journal() == ["ROLLBACK", "UPDATE", "TRANSACTION", "TRANSACTION", "TRANSACTION"]
        assert await store.journal("s") == ["ROLLBACK", "UPDATE", "TRANSACTION"]
        assert await store.journal(None) == ["TRANSACTION"]
        assert await store.journal("nobody") == []
        assert await store.journal(fact_id="1s") == ["ROLLBACK", "UPDATE", "TRANSACTION"]
        assert await store.journal(fact_id="2s") == ["TRANSACTION"]
        assert await store.journal(fact_id="nothing") == []
        for one in await store.history(fact_id="1s"):
            assert [change.fact_id for change in one.changes] == ["1s"]
        assert len((await store.history("s", fact_id="2s"))[0].changes) == 1
        assert len(await store.history(mark="m")) == 3
        assert [one.session_id for one in await store.history("t", mark="m", fact_id="1t")] == ["t"]
        assert await store.history("t", fact_id="1s") == []

    async def test_of_a_fact_that_came_and_went(self, store: Face) -> None:
        for session_id in ("s", "t"):
            await store.commit(Fact("note", {}, id="n", session_id=session_id))
            await store.rollback(session_id)
            await store.redo(session_id)
            await store.delete("n")
        operations = ["DELETE", "REDO", "ROLLBACK", "COMMIT"]
        assert await store.journal(fact_id="n") == [*operations, *operations]
        assert await store.journal("s", fact_id="n") == operations

    async def test_of_a_fact_that_was_made_anew_in_one_transaction(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "1"}, id="n", session_id="s"))
        async with store.transaction(session_id="s") as tx:
            await tx.delete("n")
            await tx.commit(Fact("note", {"text": "2"}, id="n"))
        assert await store.journal(fact_id="n") == ["TRANSACTION", "COMMIT"]
        await store.rollback("s")
        assert await store.journal(fact_id="n") == ["ROLLBACK", "TRANSACTION", "COMMIT"]

    @pytest.mark.parametrize("by", ["all", "session", "fact", "mark"])
    async def test_it_is_paged(self, store: Face, by: str) -> None:
        for number in range(11):
            async with store.transaction(session_id="s", mark="m") as tx:
                await tx.commit(Fact("note", {"text": str(number)}, id="n"))
            await store.commit(Fact("note", {}, session_id="t"))
        options = {"all": {}, "session": {"session_id": "s"}, "fact": {"fact_id": "n"}, "mark": {"mark": "m"}}[by]
        whole = await store.history(limit=None, **options)
        assert len(whole) == (22 if by == "all" else 11)
        assert [one.seq for one in whole] == sorted((one.seq for one in whole), reverse=True)
        pages, before = [], None
        while page := await store.history(limit=4, before=before, **options):
            assert len(page) <= 4
            pages.extend(page)
            before = page[-1] if len(pages) % 3 == 0 else page[-1].id if len(pages) % 3 == 1 else page[-1].seq
        assert pages == whole
        assert await store.history(limit=0, **options) == []
        assert await store.history(before=whole[-1], **options) == []
        assert await store.history(before=2**70, limit=2**70, **options) == whole
        for one in await store.history(limit=None):  # a page may begin anywhere
            expected = [other for other in whole if other.seq < one.seq][:3]
            assert await store.history(before=one, limit=3, **options) == expected

    async def test_the_limit_is_a_hundred_unless_given(self, store: Face) -> None:
        for _ in range(105):
            await store.commit(Fact("note", {}))
        assert len(await store.history()) == 100
        assert len(await store.history(limit=None)) == 105

    async def test_moves_are_in_it_but_no_steps(self, store: Face) -> None:
        await three_steps(store)
        await store.rollback("s", 2)
        await store.redo("s")
        await store.checkout("s", None)
        assert await store.journal("s") == ["CHECKOUT", "REDO", "ROLLBACK", "UPDATE", "UPDATE", "COMMIT"]
        assert await store.rollback("s") == []
        assert len(await store.redo("s", 9)) == 3

    async def test_senseless_arguments_are_errors(self, store: Face) -> None:
        await three_steps(store)
        wrong: list[dict[str, Any]] = [
            {"limit": -1},
            {"limit": "5"},
            {"limit": True},
            {"before": "nothing"},
            {"before": 1.5},
            {"before": True},
            {"fact_id": "lone \ud800"},
            {"session_id": "lone \ud800"},
            {"mark": "lone \ud800"},
        ]
        for options in wrong:
            with case(options), pytest.raises(ValueError, match=r"limit|transaction|fact_id|session_id|mark"):
                await store.history(**options)

    async def test_history_outlives_everything(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "secret"}, id="n", session_id="s"))
        await store.discard_session("s")
        await store.rollback("s", 9)
        made = (await store.history("s"))[-1]
        assert made.changes[0].after.payload["text"] == "secret"


__all__ = ["TestCheckout", "TestConflicts", "TestHistory", "TestRedo", "TestRollback", "TestRollbackTo"]
