"""Export and import: the copy of a namespace is as the original, and goes on as it does."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from memstate_core import (
    ConflictError,
    Constraint,
    Fact,
    MemoryStoreError,
    ValidationFailed,
    exporting,
    importing,
)
from memstate_core.all_namespaces import export_all, import_all
from memstate_core.exporting import Line, export_namespace
from memstate_core.importing import import_namespace, unfinished
from memstate_core.protocols import Storage, StorageTransaction
from memstate_core.storages._ordinals import transaction_of
from memstate_core.storages.memory import AsyncInMemoryStorage, InMemoryStorage
from memstate_core.testing.face import Face
from memstate_core.testing.factories import Clock, Stores, StoreTests
from memstate_core.testing.histories import FILTERS

_SESSIONS = ["s", "t", None, "l" * 150]
_TYPES = ["note", "user", "draft", "law", "title"]


async def exported(face: Face, namespace: str = "default") -> list[Line]:
    """The lines of a namespace, as they are in a file."""
    texts: list[str] = []
    await export_namespace(face.storage, namespace, lambda line: texts.append(json.dumps(line)), texts.clear)
    return [json.loads(text) for text in texts]


async def imported(face: Face, lines: list[Line], namespace: str = "default") -> Any:
    return await import_namespace(face.storage, namespace, [json.loads(json.dumps(line)) for line in lines])


async def all_exported(storage: Storage) -> list[Line]:
    """The lines of all namespaces, without the name of this very export."""
    lines: list[Line] = []
    await export_all(storage, lines.append, _mark(lines))
    return _unnamed(lines)


def _mark(lines: list[Line]) -> Callable[[], Callable[[], None]]:
    def mark() -> Callable[[], None]:
        place = len(lines)

        def begin() -> None:
            del lines[place:]

        return begin

    return mark


def _unnamed(lines: list[Line]) -> list[Line]:
    return [{name: value for name, value in line.items() if name != "export"} for line in lines]


def numbered(lines: list[Line]) -> list[Line]:
    """The lines with transactions numbered from 1: a storage may leave numbers out."""
    seqs = [int(line["transaction"]) for line in lines if "transaction" in line]
    places = {seq: place for place, seq in enumerate([0, *seqs])}
    found = []
    for line in lines:
        if "transaction" in line:
            numbers: Line = {
                name: places[line[name]] for name in ("transaction", "parent", "head", "redo") if name in line
            }
            facts = [{**fact, "ordinal": _numbered(fact["ordinal"], places)} for fact in line["facts"]]
            found.append({**line, **numbers, "facts": facts})
        elif "savepoint" in line:
            found.append({**line, "seq": places[line["seq"]]})
        elif "memstate" not in line:
            found.append(line)
    return found


def _numbered(ordinal: int, places: dict[int, int]) -> tuple[int, int]:
    return places[transaction_of(ordinal)], ordinal - (transaction_of(ordinal) << 20)


async def seqs_of(face: Face) -> list[int]:
    return [one.seq for one in await face.history(limit=None)][::-1]


async def do(face: Face, chance: random.Random) -> Any:
    """Something at random; returns what came of it. Two stores with equal content and chance do the same."""
    session, id_ = chance.choice(_SESSIONS), f"f{chance.randrange(8)}"
    text, number, choice = chance.choice("xyz"), chance.randrange(3), chance.randrange(13)
    typename, marked = chance.choice(_TYPES), chance.choice([None, "m1", "m2"])
    place, keep = chance.random(), chance.choice(["raise", "keep", "keep"])
    seqs = await seqs_of(face)
    point = f"tx-{seqs[int(place * len(seqs))]}" if seqs else "tx-1"
    payloads: dict[str, dict[str, Any]] = {
        "note": {"text": text, "rank": number, "data": {"k": [1.5, 10**30, "\u20ac\0"]}},
        "user": {"email": text, "name": text},
        "draft": {"topic": number, "text": text},
        "law": {"number": number},
        "title": {"name": text, "text": text},
    }
    payload = payloads[typename]
    try:
        if choice < 4:
            ephemeral = session is not None and number == 0
            return await face.commit(Fact(typename, payload, id=id_, source=marked), session, ephemeral, text, marked)
        if choice == 4:
            return await face.update(id_, {"text": text}, "me", None)
        if choice == 5:
            return await face.delete(id_, session)
        if choice == 6:
            async with face.transaction(session_id=session, mark=marked, reason=text) as tx:
                await tx.commit(Fact("note", {"text": text}, id=f"{id_}b"))
                await tx.commit(Fact("note", {"text": text}, id=f"{id_}c"))
                await tx.delete(id_)
                await tx.commit(Fact("note", {"text": "again"}, id=id_))
            return None
        if choice == 7 and session is not None:
            return await (face.promote_session(session) if number else face.discard_session(session))
        if choice == 8:
            return await face.savepoint(session, text)
        if choice == 9:
            return await face.put_record(f"c{text}", id_, f"{number}".encode()) if number else None
        if choice == 10:
            return len(await face.redo(session, number, on_conflict=keep))
        if choice == 11:
            return len(await face.checkout(session, chance.choice([point, text, None]), on_conflict=keep))
        to = chance.choice([None, None, point, text, marked])
        return len(await face.rollback(session, number, to, on_conflict=keep))
    except MemoryStoreError as error:
        return type(error)


async def answers(face: Face) -> list[Any]:
    """What a store says of itself."""
    places = {seq: place for place, seq in enumerate(await seqs_of(face))}
    said: list[Any] = [await face.query(), await face.query(session_id="s", order_by="-ts")]
    for typename in _TYPES:
        said += [await face.query(typename, filters) for filters in FILTERS]
    for one in await face.history(limit=None):
        said.append((places[one.seq], one.session_id, one.operation, one.actor, one.reason, one.mark, one.ts))
        said += [(change.fact_id, change.before, change.after) for change in one.changes]
    for number in range(8):
        said.append([places[one.seq] for one in await face.history(fact_id=f"f{number}", limit=None)])
    for mark in ("m1", "m2"):
        said.append([places[one.seq] for one in await face.history(mark=mark, limit=None)])
    for session in _SESSIONS:
        position = await face.read(_position(session))
        said.append([places.get(seq, -1) for seq in position[:2]])
    for text in "xyz":
        said.append(await face.scan_records(f"c{text}"))
    return said


def _position(session_id: str | None) -> Callable[[StorageTransaction], Any]:
    return lambda tx: tx.position(session_id)


class TestTransfer(StoreTests):
    @pytest.fixture
    def memory(self, stores: Stores) -> Callable[..., Face]:
        """Makes stores in memory, of the flavour of those that are tested."""
        kind = AsyncInMemoryStorage if stores.storages.new().is_async else InMemoryStorage

        def make(**options: Any) -> Face:
            return stores.open(storage=kind(), **options)

        return make

    @pytest.mark.parametrize("seed", range(2))
    async def test_a_copy_is_as_the_original_and_goes_on_as_it_does(
        self, stores: Stores, memory: Callable[..., Face], seed: int
    ) -> None:
        clock = Clock()
        original = stores.open(clock=clock)
        chance = random.Random(seed)
        for _ in range(70):
            await do(original, chance)
        lines = await exported(original)
        copies = []
        for copy in (memory(clock=clock), stores.open(clock=clock)):
            done = await imported(copy, lines)
            assert done.counts == lines[-1]["end"]
            assert (done.resumed, done.undemanded) == (None, ())
            assert not await unfinished(copy.storage, "default")
            assert [line for line in await exported(copy) if "memstate" not in line] == lines[1:]
            assert await answers(copy) == await answers(original)
            copies.append(copy)
        moment = clock.now
        for step in range(40):
            came = []
            for face in (original, *copies):
                clock.now = moment
                came.append(await do(face, random.Random(seed * 1000 + step)))
            moment = clock.now
            assert came[1:] == came[:1] * 2, step
        expected = numbered(await exported(original))
        for copy in copies:
            assert numbered(await exported(copy)) == expected
            assert await answers(copy) == await answers(original)

    async def test_what_was_interrupted_goes_on(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (exporting, importing):
            monkeypatch.setattr(module, "PAGE", 3)
        original = stores.open()
        chance = random.Random(7)
        for _ in range(40):
            await do(original, chance)
        records = [(f"k{number}", bytes([number, 255])) for number in range(7)]
        for key, value in records:
            await original.put_record("c", key, value)
        lines = await exported(original)
        transactions = [number for number, line in enumerate(lines) if "transaction" in line]
        copy = stores.open(models=False)
        with pytest.raises(ValidationFailed):
            await imported(copy, [{**lines[0], "export": "other"}])  # of which there is nothing yet
        for end in (1, transactions[3], transactions[-1] + 1, len(lines) - 1):
            with pytest.raises(ValidationFailed, match="its last line is missing"):
                await imported(copy, lines[:end])
            assert await unfinished(copy.storage, "default")
            with pytest.raises(ConflictError, match="is not complete"):
                await exported(copy)
            if end > 1:
                with pytest.raises(ConflictError, match="a part of another export"):
                    await imported(copy, [{**lines[0], "export": "other"}, *lines[1:]])
        assert await copy.scanned("c") == records
        done = await imported(copy, lines)
        assert done.resumed == f"tx-{lines[transactions[-1]]['transaction']}"
        assert (await exported(copy))[1:] == lines[1:]
        with pytest.raises(ConflictError, match="is not empty"):
            await imported(copy, lines)
        assert (await exported(copy))[1:] == lines[1:]

    async def test_all_namespaces(
        self, stores: Stores, memory: Callable[..., Face], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exporting, "PAGE", 3)
        names = ["a", "b/{c}", "\u20ac"]
        storage = stores.storages.new()
        assert await all_exported(storage) == [{"memstate": 1, "namespaces": []}, {"end": {"namespaces": 0}}]
        chance = random.Random(3)
        originals = [stores.open(storage=storage, namespace=name) for name in names]
        for _ in range(40):
            await do(chance.choice(originals), chance)
        await stores.open(storage=storage, namespace="nothing was written there", models=False).count()
        lines: list[Line] = []
        counts = await export_all(storage, lines.append, _mark(lines))
        assert list(counts) == names
        for copy in (memory().storage, stores.storages.new()):
            assert {name: done.counts for name, done in (await import_all(copy, lines)).items()} == counts
            assert await copy.namespaces() == names
            assert await all_exported(copy) == _unnamed(lines)
            with pytest.raises(ConflictError, match="namespace 'a' is not empty"):
                await import_all(copy, lines)
        for face in originals:
            name = face.store.namespace
            one = stores.open(models=False)
            assert list(await import_all(one.storage, lines, only=name)) == [name]
            assert await one.storage.namespaces() == [name]
            assert (await exported(stores.open(storage=one.storage, namespace=name), name))[1:] == (
                await exported(face, name)
            )[1:]
        with pytest.raises(ValidationFailed, match="the export has no namespace 'd'; it has 'a', "):
            await import_all(storage, lines, only="d")

    async def test_what_types_demand_holds_in_the_copy(self, stores: Stores) -> None:
        original = stores.open()
        await original.commit(Fact("user", {"email": "x"}, id="u"))
        await original.commit(Fact("law", {"number": 1}, id="l"))
        await original.delete("u")
        copy = stores.open(models=False, allow_unregistered=True)
        await imported(copy, await exported(original))
        await copy.commit(Fact("user", {"email": "x"}, id="v"), "s")
        assert await copy.commit(Fact("user", {"email": "x"}, id="w"), "s") == "v"
        with pytest.raises(ConflictError, match="cannot come back"):
            await copy.rollback(None)
        with pytest.raises(MemoryStoreError, match="immutable"):
            await copy.update("l", {"number": 2})

    async def test_what_only_code_can_read_is_demanded_when_it_has_come(self, stores: Stores) -> None:
        class Person(BaseModel):
            email: str

        old, demand = {"mail": "x"}, Constraint(singleton_key="email")
        original = stores.open(models=False, allow_unregistered=True)
        await original.commit(Fact("person", old, id="p"))
        await original.commit(Fact("place", {"name": "x"}, id="q"))

        def register(face: Face) -> None:
            face.store.register_schema(
                "person", Person, demand, migrate=lambda payload: {"email": payload["mail"]}, version=2
            )

        register(original)
        await original.commit(Fact("person", {"email": "y"}, id="r"))
        copy = stores.open(models=False, allow_unregistered=True)
        done = await imported(copy, await exported(original))
        assert done.undemanded == ("person",)
        assert (await copy.get("p"))["payload"] == old
        theirs = stores.open(storage=copy.storage, models=False)
        register(theirs)
        assert await theirs.commit(Fact("person", {"email": "x"}, id="s")) == "p"
        assert await theirs.commit(Fact("person", {"email": "y"}, id="t")) == "r"
        assert await theirs.ids("person", {"email": "y"}) == ["r"]

    async def test_nothing_is_imported_over_what_is_there(self, stores: Stores) -> None:
        original = stores.open()
        await original.commit(Fact("note", {"text": "tea"}, id="a"))
        lines = await exported(original)
        for act in ("fact", "record"):
            copy = stores.open()
            if act == "fact":
                await copy.commit(Fact("note", {"text": "coffee"}, id="b"))
            else:
                await copy.put_record("c", "k", b"v")
            before = (await exported(copy))[1:]
            with pytest.raises(ConflictError, match="is not empty"):
                await imported(copy, lines)
            assert (await exported(copy))[1:] == before

    async def test_lines_that_are_no_export(self, stores: Stores) -> None:
        original = stores.open()
        for number in range(3):
            await original.commit(Fact("note", {"text": "tea"}, id=f"{number}"))
        lines = await exported(original)
        first = next(number for number, line in enumerate(lines) if "transaction" in line)
        (made,) = lines[first]["facts"]
        for given, complaint in (
            ([], "this is no export"),
            ([{"id": 1}], "this is no export"),
            ([{**lines[0], "memstate": 2}], "an export of format 2"),
            ([lines[0], {"what": 1}], "line 2: not what"),
            ([lines[0], {**lines[first], "operation": "GUESS"}], "line 2: not what"),
            ([lines[0], {**lines[first], "session_id": "a\0"}], "line 2: the session .*NUL"),
            ([lines[0], {**lines[first], "parent": "1"}], "line 2: not what"),
            ([lines[0], {**lines[first], "facts": [{**made, "id": ""}]}], "line 2: a fact's id must not be empty"),
            ([lines[0], {**lines[first], "facts": [{**made, "payload": "[]"}]}], "line 2: .*payload is no object"),
            ([lines[0], {"record": "c", "key": "k", "value": "?"}], "line 2: not what"),
            ([*lines[:-2], lines[-1]], "it should have"),
        ):
            with pytest.raises(ValidationFailed, match=complaint):
                await imported(stores.open(), given)
        with pytest.raises(ConflictError, match="does not follow"):
            await imported(stores.open(), [*lines[: first + 1], *lines[first + 2 :]])


__all__ = ["TestTransfer"]
