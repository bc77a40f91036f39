"""What a move does to facts: undoing, doing again, and stopping where others have been."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memstate_core.changes import images_of, plan_move, to_change, to_transaction, touched
from memstate_core.facts import Change, ChangedVersions, Entry, Fact, FactChange, Operation, StoredFact, Transaction
from memstate_core.testing.profiles import tries

TS = "2030-01-01T00:00:00.000000+00:00"


def entry(seq: int, *changes: tuple[str, int, int], parent: int = 0) -> Entry:
    versions = tuple(ChangedVersions(*change) for change in changes)
    return Entry(seq, "s", parent, seq, "UPDATE", "actor", None, "mark", TS, versions)


def stored(id_: str, version: int) -> StoredFact:
    return StoredFact(id_, "note", json.dumps({"v": version}), None, "s", TS, version, False, 1, None, 1)


def decode(fact: StoredFact) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(fact.payload)
    return payload


def test_undoing_goes_back_step_by_step() -> None:
    first, second, third = entry(1, ("a", 0, 1)), entry(2, ("a", 1, 2), ("b", 0, 1)), entry(3, ("b", 1, 0))
    assert plan_move([third], [], {"a": 2}) == ({"b": 1}, ())
    assert plan_move([third, second], [], {"a": 2}) == ({"a": 1}, ())
    assert plan_move([third, second, first], [], {"a": 2}) == ({"a": 0}, ())
    assert plan_move([], [], {"a": 2}) == ({}, ())


def test_doing_again_goes_forward() -> None:
    first, second = entry(1, ("a", 0, 1)), entry(2, ("a", 1, 2), ("b", 0, 1))
    assert plan_move([], [first, second], {}) == ({"a": 2, "b": 1}, ())


def test_a_checkout_undoes_one_branch_and_does_the_other() -> None:
    left, right = entry(2, ("a", 1, 2)), entry(3, ("a", 1, 3), ("b", 0, 1))
    assert plan_move([left], [right], {"a": 2}) == ({"a": 3, "b": 1}, ())
    assert plan_move([right], [left], {"a": 3, "b": 1}) == ({"a": 2, "b": 0}, ())


def test_what_another_has_changed_is_a_conflict_from_there_on() -> None:
    first, second = entry(1, ("a", 0, 1), ("b", 0, 1)), entry(2, ("a", 1, 2), ("b", 1, 2))
    assert plan_move([second, first], [], {"a": 3, "b": 2}) == ({"b": 0}, ("a",))
    assert plan_move([second], [], {"b": 2}).conflicts == ("a",)
    assert plan_move([], [second], {"a": 1, "b": 2}).conflicts == ("b",)


@tries(200, 20_000)
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, unique=True), max_size=8), st.data())
def test_undoing_any_history_and_doing_it_again(history: list[list[str]], data: st.DataObject) -> None:
    states: list[dict[str, int]] = [{}]
    entries = []
    for seq, ids in enumerate(history, start=1):
        now = dict(states[-1])
        changes = []
        for id_ in ids:
            version = data.draw(st.sampled_from([0, 10 * seq])) if now.get(id_) else 10 * seq
            changes.append((id_, now.get(id_, 0), version))
            now[id_] = version
        states.append(now)
        entries.append(entry(seq, *changes))
    here, there = (data.draw(st.integers(0, len(entries))) for _ in range(2))
    up, down = entries[there:here][::-1], entries[here:there]
    targets, conflicts = plan_move(up, down, {id_: version for id_, version in states[here].items() if version})
    assert conflicts == ()
    reached = {**states[here], **targets}
    assert {id_: v for id_, v in reached.items() if v} == {id_: v for id_, v in states[there].items() if v}
    assert all(states[here].get(id_, 0) != version for id_, version in targets.items())


def test_touched_and_images() -> None:
    entries = [entry(1, ("a", 0, 1), ("b", 1, 0)), entry(2, ("a", 1, 2))]
    assert touched(entries) == ["a", "b"]
    assert sorted(images_of(entries)) == [("a", 1), ("a", 2), ("b", 1)]
    assert images_of([]) == []


def test_an_inverse_swaps_before_and_after() -> None:
    before, after = Fact("note", {}, id="a", version=1), Fact("note", {}, id="a", version=2)
    change = Change("a", before, after)
    assert change.inverse == Change("a", after, before)
    assert change.inverse.inverse == change
    assert change.operation is Operation.UPDATE
    assert Change("a", None, after).operation is Operation.COMMIT
    assert Change("a", None, after).inverse.operation is Operation.DELETE
    assert Change("a", None, None).operation is Operation.DELETE


def test_changes_as_hooks_see_them() -> None:
    change = to_change(FactChange(stored("a", 1), stored("a", 2)), decode)
    assert change.before is not None
    assert change.after is not None
    assert (change.fact_id, change.before.payload, change.after.version) == ("a", {"v": 1}, 2)
    made = to_change(FactChange(None, stored("a", 1)), decode)
    assert (made.fact_id, made.before) == ("a", None)
    gone = to_change(FactChange(stored("a", 1), None), decode)
    assert (gone.fact_id, gone.after) == ("a", None)


def test_transactions_as_users_see_them() -> None:
    images = {("a", 1): stored("a", 1), ("a", 2): stored("a", 2)}
    one = to_transaction(entry(7, ("a", 1, 2), ("b", 0, 0), parent=3), images, decode)
    assert (one.id, one.seq, one.parent, one.position) == ("tx-7", 7, "tx-3", "tx-7")
    assert (one.operation, one.actor, one.mark, one.ts.isoformat()) == (
        "UPDATE",
        "actor",
        "mark",
        "2030-01-01T00:00:00+00:00",
    )
    first, second = one.changes
    assert first.before is not None
    assert first.before.payload == {"v": 1}
    assert (second.before, second.after) == (None, None)
    root = to_transaction(entry(1)._replace(head=0), images, decode)
    assert (root.parent, root.position, tuple(root.changes)) == (None, None, ())


def test_every_value_of_a_transaction_is_in_its_place() -> None:
    one = to_transaction(entry(7), {}, decode)
    time = datetime.fromisoformat(TS)
    same = Transaction("tx-7", 7, "s", Operation.UPDATE, "actor", None, "mark", time, None, "tx-7", ())
    assert (one, repr(one)) == (same, repr(same))
    with pytest.raises(FrozenInstanceError):
        one.seq = 8  # type: ignore[misc]
