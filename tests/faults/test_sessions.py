"""Going back in one session changes nothing that another session has written since, whatever the two have done."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memstate_core import ConflictError, InMemoryStorage, MemoryStore, Moved
from memstate_core.testing.profiles import tries
from tests.faults.indexes import Index
from tests.faults.model import SINGLETON, Model, Op, Refused, perform, register
from tests.faults.places import KINDS, MakePlace
from tests.faults.races import check_history

pytestmark = pytest.mark.waits

# Few of each, so that they meet.
SESSIONS = st.sampled_from(["a", "b", None])
NOTES = st.sampled_from(["note 1", "note 2"])
SLOTS = st.sampled_from(["slot 1", "slot 2"])
TEXTS = st.integers(0, 10**6).map("text {}".format)
PLACES = st.sampled_from(["left", "right"])
STEPS = st.integers(1, 4)
MODES = st.sampled_from(["raise", "keep"])

note = st.tuples(
    st.just("commit"), NOTES, st.just("note"), st.fixed_dictionaries({"text": TEXTS, "number": st.just(0)}), SESSIONS
).map(lambda op: [*op, False])
slot = st.tuples(
    st.just("commit"), SLOTS, st.just(SINGLETON), st.fixed_dictionaries({"name": PLACES, "text": TEXTS}), SESSIONS
).map(lambda op: [*op, False])
update = st.tuples(st.just("update"), NOTES | SLOTS, st.fixed_dictionaries({"text": TEXTS})).map(list)
rename = st.tuples(st.just("update"), SLOTS, st.fixed_dictionaries({"name": PLACES})).map(list)
delete = st.tuples(st.just("delete"), NOTES | SLOTS, SESSIONS).map(list)
one = note | slot | update | rename | delete
block = st.tuples(st.just("block"), SESSIONS, st.lists(one, min_size=1, max_size=4)).map(list)
whole = st.tuples(st.sampled_from(["promote", "discard"]), st.sampled_from(["a", "b"])).map(list)
back = st.tuples(st.just("rollback"), SESSIONS, STEPS, MODES).map(list)
forth = st.tuples(st.just("redo"), SESSIONS, STEPS, MODES).map(list)
elsewhere = st.tuples(st.just("checkout"), SESSIONS, st.integers(0, 30)).map(list)
operations = st.lists(one | one | block | whole | back | back | forth | elsewhere, min_size=4, max_size=30)


@pytest.fixture(params=["memory", *KINDS])
def storage(request: pytest.FixtureRequest, make_place: MakePlace) -> Iterator[Any]:
    with InMemoryStorage() if request.param == "memory" else make_place(request.param).storage() as storage:
        yield storage


namespaces = (f"example {number}" for number in itertools.count())


def put(fact_id: str, session: str | None, text: str = "text") -> Op:
    return ["commit", fact_id, "note", {"text": text, "number": 0}, session, False]


def slot_of(fact_id: str, session: str | None) -> Op:
    return ["commit", fact_id, SINGLETON, {"name": "left", "text": fact_id}, session, False]


# Servers take longer.
TRIES = {"memory": 150, "sqlite": 60, "postgres": 25, "redis": 25}


def test_sessions_are_isolated(storage: Any, request: pytest.FixtureRequest) -> None:
    # What could go wrong first: another session's update, deletion, singleton, and a promoted fact.
    @example([put("note 1", "a"), put("note 1", "b"), ["rollback", "a", 1, "raise"]])
    @example([put("note 1", "a"), put("note 2", "a"), ["delete", "note 1", "b"], ["rollback", "a", 2, "keep"]])
    @example([put("note 1", "a"), ["promote", "a"], put("note 1", None, "later"), ["rollback", "a", 2, "keep"]])
    @example([slot_of("slot 1", "a"), ["delete", "slot 1", "a"], slot_of("slot 2", "b"), ["rollback", "a", 1, "keep"]])
    @example([slot_of("slot 1", "a"), ["delete", "slot 1", "a"], slot_of("slot 2", "b"), ["rollback", "a", 1, "raise"]])
    @given(operations)
    @tries(TRIES[request.node.callspec.params["storage"]], 3000)
    def check(ops: list[Op]) -> None:
        index = Index()
        with MemoryStore(storage, [index], namespace=next(namespaces)) as store:
            register(store)
            model = Model()
            for op in ops:
                if (known := _with_known_target(op, model)) is not None:
                    model = _step(store, model, known)
            assert index.content() == {fact["id"]: (fact["version"], fact["payload"]) for fact in store.query()}
            check_history(store)

    check()


def _with_known_target(op: Op, model: Model) -> Op | None:
    """The operation as it makes sense here: a checkout goes to a transaction that the session has."""
    if op[0] == "redo" and not model.can_tell_redo(op[1]):
        return None
    if op[0] == "checkout":
        line = [entry.seq for entry in model.entries.values() if entry.session_id == op[1] and entry.head == entry.seq]
        return ["checkout", op[1], line[op[2] % len(line)]] if line else None
    return op


def _step(store: MemoryStore, model: Model, op: Op) -> Model:
    """Carry an operation out on both and compare."""
    before = {fact["id"]: fact for fact in store.query()}
    last = _last(store)
    writers = {id_: _writer(store, id_, fact["version"]) for id_, fact in before.items()} if op[0] == "rollback" else {}
    try:
        expected = model.after(op)
    except Refused as refused:
        with pytest.raises(refused.error):
            perform(store, op)
        assert {fact["id"]: fact for fact in store.query()} == before
        assert _last(store) == last
        return model
    result = perform(store, op)
    if len(expected.entries) > len(model.entries):
        assert _last(store) > last
    else:
        assert _last(store) == last
    after = {fact["id"]: fact for fact in store.query()}
    # The property itself, without the model: a fact as another session wrote it is as it was.
    for fact_id, writer in writers.items():
        assert writer == op[1] or after.get(fact_id) == before[fact_id], f"{op} changed {fact_id} of {writer}"
    if isinstance(result, Moved) and result.kept:
        assert op[-1] == "keep"
        assert all(after.get(fact_id) == before.get(fact_id) for fact_id in result.kept)
    assert _plain(after) == {
        id_: (image.version, image.payload, image.session_id) for id_, image in expected.facts.items()
    }
    return expected


def _writer(store: MemoryStore, fact_id: str, version: int) -> str | None:
    """The session that made a version of a fact, whatever was undone since."""
    for entry in store.history(fact_id=fact_id):
        (change,) = entry.changes
        if entry.position == entry.id and change.after is not None and change.after.version == version:
            return entry.session_id
    raise AssertionError(f"nobody made version {version} of {fact_id}")


def _last(store: MemoryStore) -> int:
    """The seq of the newest transaction."""
    return next((transaction.seq for transaction in store.history(limit=1)), 0)


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return {id_: (fact["version"], fact["payload"], fact["session_id"]) for id_, fact in facts.items()}


@pytest.mark.parametrize("on_conflict", ["raise", "keep"])
def test_a_deleted_fact_of_another_session_stays_deleted(storage: Any, on_conflict: Any) -> None:
    with MemoryStore(storage, namespace=next(namespaces)) as store:
        register(store)
        perform(store, put("note 1", "a"))
        store.update("note 1", {"text": "changed by a"})
        store.delete("note 1", session_id="b")
        if on_conflict == "raise":
            with pytest.raises(ConflictError, match="session 'b'") as refused:
                store.rollback("a", 1)
            assert (refused.value.fact_id, refused.value.session_id) == ("note 1", "b")
            assert refused.value.transaction_id == store.history("b")[0].id
        else:
            assert store.rollback("a", 1, on_conflict="keep").kept == ("note 1",)
        assert store.query() == []
        # What b did can be undone by b, and then a's by a.
        store.rollback("b")
        assert store.get("note 1")["payload"]["text"] == "changed by a"
