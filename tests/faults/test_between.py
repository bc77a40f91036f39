"""Something comes between two steps of a commit: the outcome is that of one after the other, whatever it was."""

from __future__ import annotations

import contextlib
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from memstate_core import (
    BusyError,
    Change,
    ConflictError,
    InMemoryStorage,
    MemoryStore,
    NotFoundError,
)
from memstate_core._bridge import run
from memstate_core.protocols import Work
from tests.faults.conftest import new_place
from tests.faults.indexes import Index
from tests.faults.kills import CASES
from tests.faults.model import Model, Op, Refused, nth, perform, register
from tests.faults.places import KINDS, MakePlace
from tests.faults.races import check_history

StorageOf = Callable[[str], Any]


class Between:
    """A storage that lets something happen just before the ``nth`` of its writes from now."""

    is_async = False

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self._happening: Callable[[], None] | None = None
        self._nth = 0

    def let_happen(self, happening: Callable[[], None], nth: int) -> None:
        self._happening, self._nth = happening, nth

    async def read(self, namespace: str, work: Work[Any], *, snapshot: bool = False) -> Any:
        return await self._storage.read(namespace, work, snapshot=snapshot)

    async def write(self, namespace: str, work: Work[Any]) -> Any:
        self._nth -= 1
        if self._nth == 0 and self._happening is not None:
            self._happening()
        return await self._storage.write(namespace, work)

    async def open(self) -> None:
        await self._storage.open()

    async def aclose(self) -> None:
        await self._storage.aclose()


def note(fact_id: str, session: str | None) -> Op:
    return ["commit", fact_id, "note", {"text": f"another {fact_id}", "number": 7}, session, False]


# Each is a list of operations that come between together.
OTHERS: dict[str, list[Op]] = {
    "a new fact in the session": [note("note-8", "a")],
    "the same new fact": [note("note-1", "a")],
    "the same new fact, gone again": [note("note-5", "b"), ["delete", "note-5", "b"]],
    "an update": [["update", "note-2", {"text": "another"}]],
    "an update, taken back": [["update", "note-2", {"text": "another"}], ["rollback", "a", 1, "raise"]],
    "two updates, one taken back": [
        ["update", "note-2", {"text": "another"}],
        ["update", "note-2", {"text": "yet another"}],
        ["rollback", "a", 1, "raise"],
    ],
    "deleted by another session": [["delete", "note-2", "b"]],
    "deleted and made anew": [["delete", "note-2", "a"], note("note-2", "a")],
    "the slot": [["commit", "slot-7", "slot", {"name": "left", "text": "another"}, "b", False]],
    "the slot of another fact": [
        ["delete", "slot-1", None],
        ["commit", "slot-7", "slot", {"name": "left", "text": "another"}, "b", False],
    ],
    "rolled back": [["rollback", "a", 1, "keep"]],
    "redone": [["redo", "a", 1, "keep"]],
    "promoted": [["promote", "a"]],
    "discarded": [["discard", "a"]],
    "everything gone": [["discard", "a"], ["rollback", None, 9, "keep"]],
}


@pytest.fixture(scope="module")
def storage_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageOf]:
    """The one storage of a kind."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def storage_of(kind: str) -> Any:
            if kind == "memory":
                return stack.enter_context(InMemoryStorage())
            place = stack.enter_context(new_place(request, kind, tmp_path_factory.mktemp("between")))
            return stack.enter_context(place.storage())

        yield storage_of


NAMESPACES = map(str, itertools.count())


@pytest.fixture(params=["memory", "others"])
def storages(request: pytest.FixtureRequest, storage_of: StorageOf) -> Iterator[Any]:
    """The others are taken in turn; which is first is left to the test's name."""
    if request.param == "memory":
        return map(storage_of, itertools.repeat("memory"))
    first = zlib.crc32(request.node.name.encode()) % len(KINDS)
    return map(storage_of, itertools.cycle(KINDS[first:] + KINDS[:first]))


def apply_to(model: Model, ops: Sequence[Op]) -> Model:
    """The model after those of the operations that are not refused."""
    for op in ops:
        with contextlib.suppress(Refused):
            model = model.after(op)
    return model


def orders(model: Model, op: Op, others: Sequence[Op]) -> list[Model]:
    """The model after the others and then the one, and the other way round."""
    found = [apply_to(model, [*others, op])]
    if op[0] != "checkout" or all(name != "redo" for name, *_ in others):  # what that comes to is not for the model
        found.append(apply_to(model, [op, *others]))
    return found


def is_claimed(store: MemoryStore) -> bool:
    """Whether anybody claims anything."""
    return bool(run(store.storage.read(store.namespace, lambda tx: tx.claims())))


def attempt(store: MemoryStore, op: Op) -> bool:
    """Whether it was carried out."""
    try:
        perform(store, op)
    except BusyError:
        raise
    except (ConflictError, NotFoundError):
        return False
    return True


def set_up(storage: Any, case: str) -> tuple[MemoryStore, MemoryStore, Index, Model, Between]:
    """The store that is tested, another one on the same index, in a new namespace of the storage, and the model."""
    index = Index()
    between = Between(storage)
    namespace = next(NAMESPACES)
    bare = MemoryStore(storage, namespace=namespace)
    store, other = (MemoryStore(each, [index], namespace=namespace, claim_timeout=0.01) for each in (between, storage))
    for each in (bare, store, other):
        register(each)
    model = Model()
    for op in CASES[case].before:
        perform(bare, op)
        model = model.after(op)
    index.follow(model.facts)
    other.count()
    store.count()
    return store, other, index, model, between


def check(store: MemoryStore, index: Index, *expected: Model) -> None:
    """Facts and journal are those of one of the models, and the index follows the facts."""
    facts = {fact["id"]: (fact["version"], fact["payload"]) for fact in store.query()}
    candidates = [{id_: (i.version, i.payload) for id_, i in model.facts.items()} for model in expected]
    assert facts in candidates, f"{facts} instead of {candidates[0]}"
    assert len(store.history(limit=None)) in [len(model.entries) for model in expected]
    check_history(store)
    assert index.content() == facts
    assert not any(store.verify())
    assert store.recover() == ((), (), ())


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("case", CASES)
def test_between_plan_and_claim(storages: Iterator[Any], case: str, others: str) -> None:
    """As an embedding takes long; and before each transaction of the storage up to the claim.

    Where there is nothing to embed, the facts may be claimed as soon as it is planned.
    """
    op = CASES[case].op
    for place in ("prepare", 1, 2):
        store, other, index, model, between = set_up(next(storages), case)
        happened: list[bool] = []
        claimed: list[bool] = []

        def happen(step: str = "prepare", changes: Sequence[Change] = ()) -> None:
            if step == "prepare" and not happened and not claimed:
                if is_claimed(other):
                    claimed.append(all(change.after is None for change in changes))
                    return
                happened.append(True)
                for each in OTHERS[others]:
                    attempt(other, each)

        if place == "prepare":
            index.fault = happen
        else:
            between.let_happen(happen, int(place))
        try:
            attempt(store, op)
            expected = orders(model, op, OTHERS[others] if happened else [])
        except BusyError as error:
            # A block was told something else than what would now happen; it did nothing.
            assert case == "block"
            assert "run the block again" in str(error)
            expected = [apply_to(model, OTHERS[others])]
        assert happened or (claimed == [True] and place != 1)
        check(store, index, *expected)


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("op", [["promote", "a"], ["discard", "a"], ["rollback", "a", 1, "keep"]], ids=lambda op: op[0])
def test_there_was_nothing_to_do_at_first(storages: Iterator[Any], op: Op, others: str) -> None:
    """A transaction that no index is told of when it is planned, and that has much to tell when it is carried out."""
    happened: list[int] = []
    for place in (1, 2):  # before it is planned, if a transaction is needed for that; and before it is written
        store, other, index, model, between = set_up(next(storages), "commit")

        def happen() -> None:
            happened.append(place)
            for each in OTHERS[others]:
                attempt(other, each)

        between.let_happen(happen, place)
        attempt(store, op)
        if place in happened:
            check(store, index, apply_to(model, [*OTHERS[others], op]))
    assert happened


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("case", CASES)
def test_between_claim_and_decision(storages: Iterator[Any], case: str, others: str) -> None:
    """What does not concern the claimed facts is done; the rest is refused as long as it waits."""
    store, other, index, model, _ = set_up(next(storages), case)
    done: list[Op] = []
    tried: list[Op] = []

    def happen(step: str, changes: Sequence[Change]) -> None:
        if step == "after" and not tried:
            for each in OTHERS[others]:
                tried.append(each)
                try:
                    if not attempt(other, each):
                        break
                except BusyError:
                    break  # what builds on it makes no sense
                done.append(each)

    index.fault = happen
    attempt(store, CASES[case].op)
    assert tried
    check(store, index, *orders(model, CASES[case].op, done))


@pytest.mark.parametrize("kind", KINDS)
def test_the_database_has_each_version_once(make_place: MakePlace, kind: str) -> None:
    """What came between had the version number that was planned; the journal keeps both."""
    place = make_place(kind)
    with place.storage() as storage:
        plain = MemoryStore(storage)
        index = Index()
        store = MemoryStore(storage, [index])
        for each in (plain, store):
            register(each)
        perform(plain, note("note-1", "a"))

        def happen(step: str, changes: Sequence[Change]) -> None:
            index.fault = None
            plain.update("note-1", {"text": "theirs"})
            plain.rollback("a")

        index.fault = happen
        store.update("note-1", {"text": "ours"})
        state = place.read_state()
        assert state.facts["note-1"].version == 3
        store.rollback("a")
        store.checkout("a", nth(store.history(limit=None), 2))
        (fact,) = store.query()
        assert (fact["version"], fact["payload"]["text"]) == (2, "theirs")
        place.read_state()
