"""A transaction that fails leaves nothing: no fact, no journal row, no claim, no entry in any index."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import chromadb
import pytest
from chromadb.config import Settings

from memstate_core import (
    Change,
    ConflictError,
    Fact,
    HookError,
    HookTimeoutError,
    MemoryStoreError,
    NotFoundError,
    TransientError,
    ValidationFailed,
)
from memstate_core.hooks.chroma import ChromaSyncHook
from tests.faults import inspection
from tests.faults.indexes import Index
from tests.faults.kills import CASES
from tests.faults.model import RECORDS, Model, Refused
from tests.faults.stores import FLAVOURS, Awaited, Flavour

STEPS = ["prepare", "before", "half", "after"]
# What is the same on every storage need not meet everything on each.
THOROUGH = ("memory", "sqlite")


class Fault:
    """Raises an error at a step of an index, as often as it is told to."""

    def __init__(self, step: str, error: type[BaseException] = ConnectionError) -> None:
        self.step = step
        self.error = error
        self.times = 0

    def __call__(self, step: str, changes: Sequence[Change]) -> None:
        if self.times and step == self.step:
            self.times -= 1
            raise self.error(f"injected {step}")


class Everything:
    """All that a failed transaction must leave as it was."""

    def __init__(self, flavour: Flavour, store: Awaited, indexes: Sequence[Index]) -> None:
        self.flavour = flavour
        self.store = store
        self.indexes = indexes

    async def now(self) -> Any:
        assert not self.flavour.is_sqlite or inspection.is_free(self.flavour.database)
        return (
            await self.store.facts(),
            await self.store.journal(),
            [index.content() for index in self.indexes],
            inspection.dump(self.flavour.database) if self.flavour.is_sqlite else None,
            await self.store.claims(),
            await self.store.scan_records(RECORDS),
        )

    async def check(self, model: Model) -> None:
        """It is as the model says, and no index has drifted."""
        facts = await self.store.facts()
        assert facts == model.facts
        for index in self.indexes:
            assert index.content() == {id_: (image.version, image.payload) for id_, image in facts.items()}
        assert not any(await self.store.verify())
        if self.flavour.place is not None:
            assert not inspection.differences(self.flavour.place.read_settled_state(), model)


async def prepare(flavour: Flavour, indexes: Sequence[Index], before: Sequence[Any]) -> Model:
    """What happens before the test, in a store without hooks; the indexes follow."""
    model = Model()
    store = flavour.open()
    for op in before:
        await store.perform(op)
        model = model.after(op)
    for index in indexes:
        index.follow(model.facts)
    return model


@pytest.fixture(scope="module")
def client() -> Any:
    return chromadb.EphemeralClient(Settings(anonymized_telemetry=False))


@pytest.fixture
def chroma(flavour: Flavour, client: Any) -> ChromaSyncHook | None:
    """A real index beside the others, in one flavour."""
    if flavour.name != "sqlite":
        return None
    return ChromaSyncHook(client, f"memory-{uuid.uuid4().hex}", inspection.EMBEDDER, text_field="text")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("flavour", "step", "failing"),
    [
        (name, step, failing)
        for name in FLAVOURS
        for number, step in enumerate(STEPS)
        for failing in (("first", "second") if name in THOROUGH else (("first", "second")[number % 2],))
    ],
    indirect=["flavour"],
)
async def test_a_failing_hook(
    flavour: Flavour, client: Any, chroma: ChromaSyncHook | None, case: str, step: str, failing: str
) -> None:
    fault = Fault(step)
    indexes = [Index("first", fault if failing == "first" else None)]
    indexes += [Index("second", fault if failing == "second" else None)]
    store = flavour.open([indexes[0], chroma, indexes[1]] if chroma else indexes)
    everything = Everything(flavour, store, indexes)
    model = await prepare(flavour, indexes, CASES[case].before)
    if chroma is not None:
        await store.reindex(chroma.name)
    before = await everything.now()

    fault.times = 1
    with pytest.raises(HookError, match=f"{failing}.*injected {step}") as failed:
        await store.perform(CASES[case].op)
    error = failed.value
    assert (error.hook, error.operation) == (failing, "prepare" if step == "prepare" else "apply")
    assert isinstance(error.__cause__, ConnectionError)
    assert error.in_doubt == ()
    assert await everything.now() == before
    await everything.check(model)

    # The next rollback undoes the transaction before it; and then all goes on as if nothing had been.
    for op in (["rollback", "a", 1, "raise"], CASES[case].op):
        try:
            model = model.after(op)
        except Refused as refused:
            with pytest.raises(refused.error):
                await store.perform(op)
        else:
            await store.perform(op)
        await everything.check(model)
        if chroma is not None:
            inspection.check_index(client, chroma.collection_name, model.facts)


# asyncio ends its loop at the last three, so these are for test_interrupts.py there.
EXCEPTIONS = [TimeoutError, asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]


@pytest.mark.parametrize(
    ("flavour", "error"),
    [(name, error) for name in FLAVOURS for error in EXCEPTIONS[: 2 if name.startswith("async") else None]],
    indirect=["flavour"],
)
@pytest.mark.parametrize("step", STEPS)
async def test_any_exception_of_a_hook(flavour: Flavour, step: str, error: type[BaseException]) -> None:
    fault = Fault(step, error)
    indexes = [Index("first"), Index("second", fault)]
    store = flavour.open(indexes)
    everything = Everything(flavour, store, indexes)
    model = await prepare(flavour, indexes, CASES["block"].before)
    before = await everything.now()
    fault.times = 1
    with pytest.raises(HookTimeoutError if error is TimeoutError else error):
        await store.perform(CASES["block"].op)
    assert await everything.now() == before
    await store.perform(CASES["block"].op)
    await everything.check(model.after(CASES["block"].op))


# In doubt: the hook cannot be brought back either

NEXT_USES = ("recover", "the same again", "another store")


@pytest.mark.parametrize(
    ("flavour", "case", "next_use"),
    [
        (name, case, next_use)
        for name in FLAVOURS
        for number, case in enumerate(CASES)
        for next_use in (NEXT_USES if name in THOROUGH else (NEXT_USES[number % len(NEXT_USES)],))
    ],
    indirect=["flavour"],
)
async def test_a_hook_that_cannot_be_brought_back(flavour: Flavour, case: str, next_use: str) -> None:
    fault = Fault("after")
    indexes = [Index("first"), Index("second", fault)]
    store = flavour.open(indexes, claim_timeout=0.01)
    everything = Everything(flavour, store, indexes)
    model = await prepare(flavour, indexes, CASES[case].before)
    journal = await store.journal()
    changed = {change.fact_id for change in list(model.after(CASES[case].op).entries.values())[-1].changes}

    fault.times = 2
    with pytest.raises(HookError) as failed:
        await store.perform(CASES[case].op)
    assert set(failed.value.in_doubt) == changed
    assert any("brought back" in note for note in failed.value.__notes__)
    assert await store.facts() == model.facts
    assert await store.journal() == journal
    # The index lies now, and search does not: it answers from storage.
    for result in await store.search("anything", limit=20):
        assert result.fact.payload == model.facts[result.fact.id].payload
    # As long as the hook fails, the facts are refused, and stay as they are.
    fault.times = 100
    with pytest.raises(HookError) as failed:
        await store.perform(CASES[case].op)
    assert failed.value.in_doubt
    with pytest.raises(HookError, match="recover"):
        await store.recover()
    assert await store.facts() == model.facts
    assert await store.journal() == journal
    fault.times = 0
    if next_use == "recover":
        recovered = await store.recover()
        assert set(recovered.healed) == changed
        assert recovered.in_doubt == ()
    elif next_use == "the same again":
        await store.perform(CASES[case].op)
        model = model.after(CASES[case].op)
    else:
        await flavour.open(indexes).get("anything")
    await everything.check(model)


async def test_facts_beside_those_in_doubt_can_be_changed(flavour: Flavour) -> None:
    fault = Fault("before")
    index = Index("index", fault)
    store = flavour.open([index], claim_timeout=0.01)
    await store.commit(Fact("note", {"text": "one"}, id="one"))
    fault.times = 2
    with pytest.raises(HookError):
        await store.update("one", {"text": "changed"})
    # A store without the index must not change what it cannot heal.
    bare = flavour.open(claim_timeout=0.01)
    with pytest.raises(ConflictError, match=r"recover.*'index'"):
        await bare.update("one", {"text": "past the index"})
    recovered = await bare.recover()
    assert recovered.in_doubt == ("one",)
    assert recovered.missing_hooks == ("index",)
    await bare.commit(Fact("note", {"text": "beside it"}))
    await store.commit(Fact("note", {"text": "two"}, id="two"))
    assert index.content()["two"] == (1, {"text": "two", "number": 0})
    assert await bare.recover() == ((), (), ())  # the commit has healed it in passing
    assert index.content()["one"][0] == 1
    await bare.update("one", {"number": 2})


# The database fails, or says no


REFUSALS: dict[str, str] = {
    "journal": "BEFORE INSERT ON memstate_transactions",
    "facts": "BEFORE INSERT ON memstate_facts",
    "claims": "BEFORE INSERT ON memstate_claims",
    "sessions": "BEFORE INSERT ON memstate_sessions",
}


@pytest.mark.parametrize("flavour", ["sqlite", "async sqlite"], indirect=True)
@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refusal_of_the_database(flavour: Flavour, refusal: str) -> None:
    indexes = [Index("first"), Index("second")]
    store = flavour.open(indexes)
    everything = Everything(flavour, store, indexes)
    model = await prepare(flavour, indexes, CASES["block"].before)
    before = await everything.now()
    with sqlite3.connect(flavour.database) as connection:
        connection.execute(f"CREATE TRIGGER refuse {REFUSALS[refusal]} BEGIN SELECT RAISE(ABORT, 'injected'); END")
    with pytest.raises(MemoryStoreError, match="injected"):
        await store.perform(CASES["block"].op)
    with sqlite3.connect(flavour.database) as connection:
        connection.execute("DROP TRIGGER refuse")
    connection.close()
    assert await everything.now() == before
    await store.perform(CASES["block"].op)
    await everything.check(model.after(CASES["block"].op))


# The caller's own mistakes


def _raise(*_: Any) -> Any:
    raise LookupError("the caller's")


async def _error_in_block(store: Awaited) -> None:
    tx = store.store.transaction(session_id="a")
    await _enter(tx)
    try:
        await _in(tx.commit(Fact("note", {"text": "new"}, id="new")))
        await _in(tx.update("note-1", {"text": "changed"}))
        await _in(tx.delete("note-2"))
        tx.put_record(RECORDS, "key", b"value")
        _raise()
    except LookupError as error:
        await _exit(tx, error)
        raise


async def _block_that_is_refused_at_its_end(store: Awaited) -> None:
    tx = store.store.transaction(session_id="a")
    await _enter(tx)
    await _in(tx.get("note-1"))
    await _in(tx.commit(Fact("note", {"text": "new"}, id="new")))
    await _in(tx.update("note-1", {"text": "in the block"}))
    tx.put_record(RECORDS, "key", b"value")
    await store.update("note-1", {"text": "meanwhile"})
    await _exit(tx, None)


async def _in(result: Any) -> Any:
    return await result if asyncio.iscoroutine(result) else result


async def _enter(tx: Any) -> None:
    await _in(tx.__aenter__() if hasattr(tx, "__aenter__") else tx.__enter__())


async def _exit(tx: Any, error: BaseException | None) -> None:
    arguments = (type(error) if error else None, error, None)
    await _in(tx.__aexit__(*arguments) if hasattr(tx, "__aexit__") else tx.__exit__(*arguments))


MISTAKES: dict[str, tuple[type[Exception], Callable[[Awaited], Any]]] = {
    "an error in a block": (LookupError, _error_in_block),
    "a payload that does not fit": (ValidationFailed, lambda s: s.commit(Fact("note", {"text": 1}, id="new"))),
    "a patch that does not fit": (ValidationFailed, lambda s: s.update("note-1", {"text": None})),
    "another type": (ConflictError, lambda s: s.commit(Fact("fields", {}, id="note-1"))),
    "another version": (ConflictError, lambda s: s.update("note-1", {"text": "x"}, expected_version=7)),
    "a version of nothing": (ConflictError, lambda s: s.commit(Fact("note", {"text": "x"}), expected_version=1)),
    "no such fact": (NotFoundError, lambda s: s.delete("nothing")),
    "a selector that fails": (LookupError, lambda s: s.promote_session("a", _raise)),
    "two slots of one name": (ConflictError, lambda s: s.update("slot-5", {"name": "left"})),
    "a place that is not there": (NotFoundError, lambda s: s.rollback("a", to="nowhere")),
    "steps that are no count": (ValueError, lambda s: s.rollback("a", -1)),
    "what another session has changed": (ConflictError, lambda s: s.rollback("b", 1)),
    "a block with a mistake in it": (
        ValidationFailed,
        lambda s: s.perform(["block", "a", [["update", "note-1", {"text": "x"}], ["update", "note-2", {"text": 2}]]]),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake(flavour: Flavour, mistake: str) -> None:
    indexes = [Index("first"), Index("second")]
    store = flavour.open(indexes)
    everything = Everything(flavour, store, indexes)
    others = ["commit", "note-7", "note", {"text": "b's", "number": 0}, "b", False]
    right = ["commit", "slot-5", "slot", {"name": "right", "text": "right"}, None, False]
    model = await prepare(flavour, indexes, [*CASES["block"].before, right, others, [*others[:4], "a", False]])
    before = await everything.now()
    error, make = MISTAKES[mistake]
    with pytest.raises(error):
        await make(store)
    assert await everything.now() == before
    await store.perform(["rollback", "a", 1, "raise"])
    await everything.check(model.after(["rollback", "a", 1, "raise"]))


async def test_a_block_that_another_came_between(flavour: Flavour) -> None:
    index = Index()
    store = flavour.open([index])
    await store.commit(Fact("note", {"text": "one"}, id="note-1"), session_id="a")
    with pytest.raises(ConflictError, match="run the block again") as refused:
        await _block_that_is_refused_at_its_end(store)
    assert (refused.value.expected_version, refused.value.actual_version) == (1, 2)
    assert await store.get("new") is None
    assert await store.get_record(RECORDS, "key") is None
    assert (await store.get("note-1"))["payload"]["text"] == "meanwhile"
    assert len(await store.journal()) == 2
    assert index.content() == {"note-1": (2, {"text": "meanwhile", "number": 0})}


async def test_a_block_whose_answers_are_not_true_any_more(flavour: Flavour) -> None:
    """It was told the id of the fact that had the singleton; another has it now."""
    index = Index()
    store = flavour.open([index])
    slot = {"name": "left", "text": "one"}
    await store.commit(Fact("slot", slot, id="slot-1"))
    tx = store.store.transaction()
    await _enter(tx)
    assert await _in(tx.commit(Fact("slot", slot | {"text": "the block's"}))) == "slot-1"
    await store.delete("slot-1")
    await store.commit(Fact("slot", slot | {"text": "two"}, id="slot-2"))
    with pytest.raises(ConflictError, match=r"returned 'slot-1'.*run the block again") as refused:
        await _exit(tx, None)
    assert isinstance(refused.value, TransientError)
    assert index.content() == {"slot-2": (1, slot | {"text": "two"})}
    assert len(await store.journal()) == 3
