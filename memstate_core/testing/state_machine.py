"""Random histories of calls, faults and restarts, compared after every step with :mod:`memstate_core.testing.model`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from memstate_core import UNSET, Fact, HookError, NotFoundError, UnavailableError
from memstate_core.filters import compile_filter
from memstate_core.testing import histories
from memstate_core.testing.face import Face
from memstate_core.testing.factories import Clock, StorageFactory, Stores
from memstate_core.testing.faults import Fault, FaultyHook, FaultyStorage, When
from memstate_core.testing.histories import FILTERS, QUERIES
from memstate_core.testing.index import Index, index_hook, similarity
from memstate_core.testing.model import MODELS, Image, Model, Refused, Unit, in_order
from memstate_core.testing.models import Note
from memstate_core.testing.profiles import tries

Outcome = Callable[[], Awaitable[Any]]


class StoreMachine(RuleBasedStateMachine):
    """A store on one storage, used through two objects, with an index beside it."""

    def __init__(self, storages: StorageFactory) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stores = Stores(storages)
        self.clock = Clock()
        self.index = Index()
        self.model = Model()
        self.fault: _Fault | None = None
        self.seen: dict[tuple[str, int], dict[str, Any]] = {}
        self.storage: Any = None
        self.faces: list[Face] = []
        self.hooks: list[FaultyHook] = []
        self._open(storages.new())

    def _open(self, storage: Any) -> None:
        self.storage = FaultyStorage(storage)
        self.hooks = [FaultyHook(index_hook(self.index, storage.is_async)) for _ in range(2)]
        self.faces = [
            self.stores.open([hook], storage=self.storage, clock=self.clock, claim_timeout=0.2) for hook in self.hooks
        ]

    def do(self, call: Outcome) -> Any:
        async def outcome() -> Any:
            return await call()

        # Not Runner.run, which takes over SIGINT at each call: in Python 3.11 that costs more than most calls.
        return self.runner.get_loop().run_until_complete(outcome())

    def teardown(self) -> None:
        self.do(self.stores.storages.aclose)
        self.runner.close()

    # How a call is compared

    def act(self, store: Face, call: Outcome, model_call: Callable[[Model], Any], *, visible: bool = True) -> Any:
        """Do it in the store and in the model, with the fault that is armed, if any; what the store returned.

        ``visible``: whether :meth:`_shown` tells what happened from what did not.
        """
        after = self.model.copy()
        refusal: Refused | None = None
        expected: Any = None
        try:
            expected = model_call(after)
        except Refused as refused:
            refusal, after = refused, self.model
        fault = self.fault if visible else None
        result, error = self._with_fault(store, call, fault)
        if fault is not None and fault.fired:
            assert isinstance(error, HookError | UnavailableError), error
            if isinstance(error, HookError):
                after = self.model
            self.model = after if self._shown(after) == self._there() else self.model
            return None
        if refusal is not None:
            assert isinstance(error, refusal.error), (refusal.error, error)
            if refusal.fact_ids:
                assert error.fact_id in refusal.fact_ids  # type: ignore[attr-defined]
            return None
        if error is not None:
            raise error
        self.model = after
        return result, expected

    def _with_fault(self, store: Face, call: Outcome, fault: _Fault | None) -> tuple[Any, BaseException | None]:
        hook = self.hooks[self.faces.index(store)]
        if fault is not None:
            if fault.operation == "storage":
                self.storage.fault = fault
            else:
                hook.faults = {fault.operation: [fault]}
        try:
            return self.do(call), None
        except Exception as error:
            return None, error
        finally:
            self.storage.fault = None
            hook.faults = {}

    def _shown(self, model: Model) -> Any:
        facts = [image._replace(made=(0, 0)) for image in in_order(model.facts.values())]
        return facts, len(model.journal), model.records

    def _there(self) -> Any:
        async def look() -> Any:
            store = self.faces[0]
            records = {("c", record.key): record.value for record in await store.scanned("c")}
            return [_image(fact) for fact in await store.query()], len(await store.history(limit=None)), records

        return self.do(look)

    def _learn(self, store: Face) -> None:
        """Take over what the store calls its new transactions."""
        unknown = [entry for entry in self.model.journal if not entry.id]
        found = self.do(lambda: store.history(limit=len(unknown))) if unknown else []
        for entry, one in zip(reversed(unknown), found, strict=True):
            entry.id, entry.ts = one.id, one.ts

    @staticmethod
    def unit(work: Callable[[Unit], Any], session_id: Any, operation: str) -> Callable[[Model], Any]:
        """One call as a transaction; ``session_id`` may be a function of the unit."""

        def call(model: Model) -> Any:
            unit = Unit(model)
            line = session_id(unit) if callable(session_id) else session_id
            result = work(unit)
            model.finish(unit, line, operation)
            return result

        return call

    # Writing

    @initialize(calls=histories.beginnings)
    def begin(self, calls: list[Any]) -> None:
        assert self._there() == ([], 0, {})
        for call in calls:
            self.step(0, None, call)

    @rule(who=histories.who, fault=histories.faults, action=histories.actions)
    def step(self, who: int, fault: Any, action: Any) -> None:
        self.fault = None if fault is None else _Fault(*fault)
        kind, *arguments = action
        getattr(self, f"_{kind}")(who, *arguments)

    def _put(self, who: int, *put: Any) -> None:
        fact_id, (typename, payload), session_id, ephemeral, expected = put
        fact = Fact(typename, payload, id=fact_id, source=typename, session_id=session_id, ephemeral=ephemeral)
        done = self.act(
            self.faces[who],
            lambda: self.faces[who].commit(fact, expected_version=expected),
            self.unit(
                lambda unit: unit.put(fact_id, typename, payload, session_id, typename, ephemeral, expected),
                session_id,
                "COMMIT",
            ),
        )
        assert done is None or done[0] == done[1]

    def _model(self, who: int, typed: Any, session_id: str | None) -> None:
        typename, payload = typed
        try:
            instance = MODELS[typename].model_validate(payload)
        except ValueError:
            return
        before = self.model
        done = self.act(
            self.faces[who],
            lambda: self.faces[who].commit_model(instance, session_id=session_id, typename=typename),
            self.unit(lambda unit: unit.put("made", typename, payload, session_id), session_id, "COMMIT"),
            # When the reply is lost, so is the id.
            visible=self.fault is None or self.fault.operation != "storage",
        )
        if "made" in self.model.facts:
            facts = self.do(self.faces[who].query)
            (name,) = {fact["id"] for fact in facts} - set(before.facts)
            self._rename("made", name)
            assert done is None or done[0] == name
        else:
            assert done is None or done[0] == done[1]

    def _rename(self, old: str, new: str) -> None:
        image = self.model.facts.pop(old)._replace(id=new)
        self.model.facts[new] = image
        self.model.latest[new] = self.model.latest.pop(old)
        self.model.journal[-1].changes = {new: (None, image)}

    def _update(self, who: int, fact_id: str, change: Any, expected: int | None) -> None:
        patch, deep = change
        done = self.act(
            self.faces[who],
            lambda: self.faces[who].update(fact_id, patch, deep=deep, expected_version=expected),
            self.unit(lambda unit: unit.update(fact_id, patch, deep, expected), _session_of(fact_id), "UPDATE"),
        )
        assert done is None or done[0] == fact_id

    def _delete(self, who: int, fact_id: str, expected: int | None, session_id: Any = UNSET) -> None:
        self.act(
            self.faces[who],
            lambda: self.faces[who].delete(fact_id, session_id, expected_version=expected),
            self.unit(
                lambda unit: unit.delete(fact_id, expected),
                _session_of(fact_id) if session_id is UNSET else session_id,
                "DELETE",
            ),
        )

    def _promote(self, who: int, session_id: str, selected: bool) -> None:
        selector, selects = _selection(selected)
        done = self.act(
            self.faces[who],
            lambda: self.faces[who].promote_session(session_id, selector),
            self.unit(lambda unit: unit.promote(session_id, selects), session_id, "PROMOTE"),
        )
        assert done is None or done[0] == done[1]

    def _discard(self, who: int, session_id: str) -> None:
        done = self.act(
            self.faces[who],
            lambda: self.faces[who].discard_session(session_id),
            self.unit(lambda unit: unit.discard(session_id), session_id, "DISCARD_SESSION"),
        )
        assert done is None or done[0] == done[1]

    def _record(self, who: int, key: str, value: bytes | None) -> None:
        store = self.faces[who]

        def model_call(model: Model) -> None:
            _put_record(model.records, key, value)

        if value is None:
            self.act(store, lambda: store.delete_record("c", key), model_call)
        else:
            self.act(store, lambda: store.put_record("c", key, value), model_call)

    def _block(self, who: int, session_id: str | None, mark: str | None, calls: list[Any], fails: bool) -> None:
        unit = Unit(self.model)
        store = self.faces[who]

        async def run() -> None:
            async with store.transaction(session_id, mark=mark) as tx:
                # Pairs of the block's savepoint and the model's.
                savepoints = [(tx.savepoint(), unit.copy())]
                for call in calls:
                    if call[0] == "savepoint":
                        savepoints.append((tx.savepoint(), unit.copy()))
                    elif call[0] in ("back", "back to the first"):
                        if call[0] == "back to the first":
                            del savepoints[1:]
                        savepoints[-1][0].rollback()
                        unit.back_to(savepoints[-1][1])
                    else:
                        await self._call_in_block(tx, unit, session_id, call)
                    found = [_image(fact) for fact in await tx.query()]
                    assert found == _bare(unit.facts)
                if fails:
                    raise ZeroDivisionError

        # The calls are made in the model while they are made in the store, so the model's part comes last.
        fault = self.fault
        result, error = self._with_fault(store, run, fault)
        if fault is not None and fault.fired:
            assert isinstance(error, HookError | UnavailableError), error
            done = self.model.copy()
            if not fails and isinstance(error, UnavailableError):
                done.finish(unit, session_id, "TRANSACTION", mark)
            self.model = done if self._shown(done) == self._there() else self.model
            return
        if fails:
            assert isinstance(error, ZeroDivisionError), error
            return
        if error is not None:
            raise error
        assert result is None
        self.model.finish(unit, session_id, "TRANSACTION", mark)

    async def _call_in_block(self, tx: Any, unit: Unit, line: str | None, call: Any) -> None:
        kind, *arguments = call
        kept = unit.copy()
        expected: Any = None
        refusal: Refused | None = None
        try:
            if kind == "put":
                fact_id, (typename, payload), session_id, ephemeral, version = arguments
                session_id = line if session_id is None else session_id
                expected = unit.put(fact_id, typename, payload, session_id, None, ephemeral, version)
            elif kind == "update":
                fact_id, (patch, deep), version = arguments
                expected = unit.update(fact_id, patch, deep, version)
            elif kind == "delete":
                expected = unit.delete(*arguments)
            elif kind == "promote":
                expected = unit.promote(arguments[0], _selection(arguments[1])[1])
            elif kind == "discard":
                expected = unit.discard(*arguments)
            else:
                _put_record(unit.records, *arguments)
        except Refused as refused:
            refusal = refused
            unit.back_to(kept)
        if refusal is None:
            assert await _in_block(tx, kind, arguments) == expected
            return
        with pytest.raises((refusal.error, UnavailableError)) as caught:
            await _in_block(tx, kind, arguments)
        if caught.type is UnavailableError:
            raise caught.value

    # Going back and forth

    def _moved(self, store: Face, call: Outcome, model_call: Callable[[Model], tuple[list[int], set[str]]]) -> None:
        done = self.act(store, call, model_call)
        if done is not None:
            moved, (numbers, kept) = done
            assert [one.id for one in moved] == [self.model.journal[number - 1].id for number in numbers]
            assert set(moved.kept) == kept
            assert (moved.transaction_id is None) == (not numbers)

    def _rollback(self, who: int, session_id: str | None, steps: int, keep: bool) -> None:
        store = self.faces[who]
        self._moved(
            store,
            lambda: store.rollback(session_id, steps, on_conflict="keep" if keep else "raise"),
            lambda model: model.rollback(session_id, steps, keep),
        )

    def _redo(self, who: int, session_id: str | None, steps: int, keep: bool) -> None:
        store = self.faces[who]
        self._moved(
            store,
            lambda: store.redo(session_id, steps, on_conflict="keep" if keep else "raise"),
            lambda model: model.redo(session_id, steps, keep),
        )

    def _rollback_to(self, who: int, place: int, own: bool, keep: bool, by_time: bool) -> None:
        if not self.model.journal:
            return
        entry = self.model.journal[place % len(self.model.journal)]
        session_id = entry.session_id if own else "s"
        store = self.faces[who]
        policy = "keep" if keep else "raise"
        if by_time:
            self._moved(
                store,
                lambda: store.rollback(session_id, to=entry.ts, on_conflict=policy),
                lambda model: model.rollback_to_time(session_id, entry.ts, keep),
            )
        else:
            self._moved(
                store,
                lambda: store.rollback(session_id, to=entry.id, on_conflict=policy),
                lambda model: model.rollback_to(session_id, _resolved(model, session_id, entry.number), keep),
            )

    def _checkout(self, who: int, place: int, own: bool, keep: bool) -> None:
        if not self.model.journal:
            return
        entry = self.model.journal[place % len(self.model.journal)]
        session_id = entry.session_id if own else "s"
        store = self.faces[who]
        to = None if place < 0 else entry.id
        self._moved(
            store,
            lambda: store.checkout(session_id, to, on_conflict="keep" if keep else "raise"),
            lambda model: model.checkout(
                session_id, 0 if place < 0 else _resolved(model, session_id, entry.number), keep
            ),
        )

    def _savepoint(self, who: int, session_id: str | None, name: str) -> None:
        store = self.faces[who]

        def model_call(model: Model) -> str | None:
            head = model.heads.get(session_id, 0)
            model.savepoints[session_id, name] = head
            return model.journal[head - 1].id if head else None

        done = self.act(store, lambda: store.savepoint(session_id, name), model_call, visible=False)
        assert done is not None
        assert done[0] == done[1]

    def _to_savepoint(self, who: int, session_id: str | None, name: str, keep: bool, back: bool) -> None:
        self._to_name(who, session_id, name, keep, back, lambda model: _saved(model, session_id, name))

    def _to_mark(self, who: int, session_id: str | None, mark: str, keep: bool, back: bool) -> None:
        self._to_name(who, session_id, mark, keep, back, lambda model: model.marked(session_id, mark, on_line=back))

    def _to_name(
        self, who: int, session_id: str | None, name: str, keep: bool, back: bool, find: Callable[[Model], int]
    ) -> None:
        store = self.faces[who]
        policy = "keep" if keep else "raise"
        if back:
            self._moved(
                store,
                lambda: store.rollback(session_id, to=name, on_conflict=policy),
                lambda model: model.rollback_to(session_id, find(model), keep),
            )
        else:
            self._moved(
                store,
                lambda: store.checkout(session_id, name, on_conflict=policy),
                lambda model: model.checkout(session_id, find(model), keep),
            )

    # Faults and restarts

    def _recover(self, who: int) -> None:
        self.do(self.faces[who].settle)
        assert self.do(self.faces[0].claims) == []

    def _mend(self, who: int, how: str) -> None:
        self.do(getattr(self.faces[who], how))
        if how == "reindex":
            self.do(self.faces[who].settle)
        for drift in self.do(self.faces[who].verify):
            assert not drift

    def _reopen(self, who: int, closing: bool) -> None:
        if closing:
            for face in self.faces:
                self.do(face.close)
        storage = self.stores.storages.again(self.storage.inner)
        if storage is not self.storage.inner and closing:
            self.do(self.storage.aclose)
        self._open(storage)

    def _register_again(self, who: int, fields: list[str]) -> None:
        self.faces[who].store.register_schema("note", Note, index=fields)

    def _let_time_pass(self, who: int, step: int) -> None:
        self.clock.step = timedelta(seconds=step)

    # What must hold after every step

    @invariant()
    def facts_are_the_models(self) -> None:
        if not self.faces:
            return
        self._learn(self.faces[0])
        number = len(self.seen) + len(self.model.journal)
        store = self.faces[number % 2]
        facts = self.do(store.query)
        assert [_image(fact) for fact in facts] == _bare(self.model.facts)
        for fact in facts:
            assert self.seen.setdefault((fact["id"], fact["version"]), fact) == fact  # a version never changes
        self._checkFILTERS(store, number)

    def _checkFILTERS(self, store: Face, number: int) -> None:
        filters = FILTERS[number % len(FILTERS)]
        matches = compile_filter(filters)
        typename = [None, "note", "user", "draft", "memo"][number % 5]
        session_id: Any = [UNSET, "s", None][number % 3]
        expected = [
            image.id
            for image in in_order(self.model.facts.values())
            if typename in (None, image.type)
            and session_id in (UNSET, image.session_id)
            and (matches is None or matches(image.payload))
        ]

        async def look() -> None:
            assert await store.ids(typename, filters, session_id) == expected
            assert await store.count(typename, filters, session_id) == len(expected)
            assert await store.ids(typename, filters, session_id, limit=2, offset=1) == expected[1:3]

        self.do(look)

    @invariant()
    def the_journal_is_the_models(self) -> None:
        if not self.faces:
            return
        newest = self.model.journal[::-1]
        page = 3 if len(newest) % 7 else None
        found = self.do(lambda: self.faces[1].history(limit=page))
        assert [_entry(one, self.model) for one in found] == [_expected_entry(one) for one in newest[:page]]
        session_id = ["s", "t", None][len(newest) % 3]
        found = self.do(lambda: self.faces[1].history(session_id, limit=4))
        assert [one.id for one in found] == [one.id for one in newest if one.session_id == session_id][:4]
        if newest and newest[0].changes:
            fact_id = next(iter(newest[0].changes))
            found = self.do(lambda: self.faces[1].history(fact_id=fact_id))
            assert [one.id for one in found] == [one.id for one in newest if fact_id in one.changes]

    @invariant()
    def the_index_is_what_is_committed(self) -> None:
        if not self.faces:
            return
        claims = self.do(self.faces[0].claims)
        doubtful = {claim.key.removeprefix("fact:") for claim in claims}
        texts = {
            image.id: (image.version, image.payload["text"])
            for image in self.model.facts.values()
            if image.payload.get("text")
        }
        indexed = {id_: (entry.version, entry.text) for id_, entry in self.index.entries.items()}
        assert _without(indexed, doubtful) == _without(texts, doubtful)
        query = QUERIES[len(self.model.journal) % len(QUERIES)]
        found = self.do(lambda: _search_without_healing(self.faces[0], query))
        assert {one.fact.id: (one.fact.version, one.fact.payload["text"]) for one in found} == texts
        for one in found:
            assert one.score == similarity(query, one.fact.payload["text"])
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


class _Fault(Fault):
    """A fault of storage, or of one of the hook's operations."""

    def __init__(self, operation: str, at: int, when: When, lasting: bool) -> None:
        super().__init__(at, when, lasting=lasting)
        self.operation = operation


async def _search_without_healing(store: Face, query: str) -> list[Any]:
    # A store's first call heals what is in doubt; what it shows before that is what is to be seen here.
    engine = store.store._engine
    looked, engine._looked_for_doubt = engine._looked_for_doubt, True
    found: list[Any] = await store.search(query, limit=50)
    engine._looked_for_doubt = looked
    return found


async def _in_block(tx: Any, kind: str, arguments: list[Any]) -> Any:
    if kind == "put":
        fact_id, (typename, payload), session_id, ephemeral, version = arguments
        fact = Fact(typename, payload, id=fact_id, session_id=session_id)
        return await tx.commit(fact, ephemeral=ephemeral, expected_version=version)
    if kind == "update":
        (patch, deep), version = arguments[1:]
        return await tx.update(arguments[0], patch, deep=deep, expected_version=version)
    if kind == "delete":
        return await tx.delete(arguments[0], expected_version=arguments[1])
    if kind == "promote":
        return await tx.promote_session(arguments[0], _selection(arguments[1])[0])
    if kind == "discard":
        return await tx.discard_session(arguments[0])
    key, value = arguments
    if value is None:
        return await tx.delete_record("c", key)
    return await tx.put_record("c", key, value)


def _session_of(fact_id: str) -> Callable[[Unit], str | None]:
    return lambda unit: unit.facts[fact_id].session_id if fact_id in unit.facts else None


def _selection(selected: bool) -> tuple[dict[str, Any] | None, Callable[[Image], bool] | None]:
    if not selected:
        return None, None
    return {"text": "tea"}, lambda image: image.payload.get("text") == "tea"


def _put_record(records: dict[tuple[str, str], bytes], key: str, value: bytes | None) -> None:
    records.pop(("c", key), None)
    if value is not None:
        records["c", key] = value


def _resolved(model: Model, session_id: str | None, number: int) -> int:
    entry = model.journal[number - 1]
    if entry.session_id != session_id:
        raise Refused(NotFoundError)
    return entry.head


def _saved(model: Model, session_id: str | None, name: str) -> int:
    if (session_id, name) not in model.savepoints:
        raise Refused(NotFoundError)
    return model.savepoints[session_id, name]


def _image(fact: dict[str, Any]) -> Image:
    """A stored fact as the model has it, but for when it was made."""
    plain = {name: value for name, value in fact.items() if name != "ts"}
    return Image(**plain, made=(0, 0))


def _bare(facts: dict[str, Image]) -> list[Image]:
    return [image._replace(made=(0, 0)) for image in in_order(facts.values())]


def _version(fact: Any) -> int:
    return fact.version if fact is not None else 0


def _entry(one: Any, model: Model) -> tuple[Any, ...]:
    numbers = {entry.id: entry.number for entry in model.journal} | {None: 0}
    changes = {change.fact_id: (_version(change.before), _version(change.after)) for change in one.changes}
    return (
        numbers[one.id],
        one.session_id,
        numbers[one.parent],
        numbers[one.position],
        one.operation.value,
        one.mark,
        changes,
    )


def _expected_entry(one: Any) -> tuple[Any, ...]:
    changes = {id_: (_version(before), _version(after)) for id_, (before, after) in one.changes.items()}
    return one.number, one.session_id, one.parent, one.head, one.operation, one.mark, changes


def _without(entries: dict[str, Any], ids: set[str]) -> dict[str, Any]:
    return {id_: entry for id_, entry in entries.items() if id_ not in ids}


class TestStateMachine:
    """Random histories on a storage."""

    def test_whatever_happens_the_store_is_what_the_model_is(self, storages: StorageFactory) -> None:
        machine: Any = lambda: StoreMachine(storages)  # noqa: E731 - anything that makes one will do
        run_state_machine_as_test(machine, settings=tries(9, 1500, steps=50))


__all__ = ["TestStateMachine"]
