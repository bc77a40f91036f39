"""The storage protocol itself: what each method of a storage transaction answers, and that writing is atomic."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from memstate_core import UNSET, ClosedError, ConflictError, Operation, StorageError
from memstate_core.facts import ChangedVersions, Entry, FactChange, IndexEntry, StoredFact
from memstate_core.filters import compile_filter, compile_order, index_entries
from memstate_core.protocols import (
    Batch,
    Claim,
    ClaimsLost,
    NewEntry,
    Position,
    Record,
    RecordWrite,
    Savepoint,
    Selection,
    Storage,
    StorageTransaction,
    Work,
)
from memstate_core.testing.factories import StorageFactory, Stores, StoreTests

T = TypeVar("T")

TS = "2030-01-01T00:00:00.000000+00:00"


def fact(id_: str, version: int = 1, **options: Any) -> StoredFact:
    """A version of a fact; its payload holds its id and version."""
    given = {
        "type": "note",
        "payload": json.dumps({"id": id_, "v": version}),
        "source": None,
        "session_id": None,
        "ts": TS,
        "ephemeral": False,
        "schema_version": 1,
        "singleton": None,
        "ordinal": -1,
        **options,
    }
    return StoredFact(id=id_, version=version, **given)


def entry(session_id: str | None = None, parent: int = 0, **options: Any) -> NewEntry:
    given = {"operation": Operation.COMMIT, "actor": None, "reason": None, "mark": None, "ts": TS, **options}
    return NewEntry(session_id=session_id, parent=parent, **given)


def decode(stored: StoredFact) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(stored.payload)
    return payload


def selection(**options: Any) -> Selection:
    return Selection(decode=decode, **options)


class Raw:
    """One namespace of a storage, a call at a time."""

    def __init__(self, storage: Any, namespace: str = "n") -> None:
        self.storage = storage
        self.namespace = namespace

    async def ask(self, work: Work[T]) -> T:
        found: T = await self.storage.read(self.namespace, work)
        return found

    async def write(self, batch: Batch) -> int:
        await self.storage.write(self.namespace, lambda tx: tx.write(batch))
        return batch.seq

    async def put(self, *facts: StoredFact, session_id: str | None = None, parent: int = 0, **options: Any) -> int:
        """Make each fact current, in one transaction; what is current now is read first, as the engine does."""

        async def work(tx: StorageTransaction) -> Batch:
            now = await tx.facts([one.id for one in facts])
            changes = []
            for one in facts:
                before = now.get(one.id)
                placed = one._replace(ordinal=before.ordinal) if before is not None else one
                changes.append(FactChange(before, placed, options.get("fields", ())))
            batch = Batch(entry(session_id, parent), changes)
            await tx.write(batch)
            return batch

        batch: Batch = await self.storage.write(self.namespace, work)
        return batch.seq

    async def facts(self, *ids: str) -> dict[str, StoredFact]:
        """In the order in which they were asked for, which no storage promises."""
        found = await self.ask(lambda tx: tx.facts(ids))
        return {id_: found[id_] for id_ in ids if id_ in found}

    async def selected(self, **options: Any) -> list[str]:
        """The ids that a selection finds; it counts as many, its limit aside."""
        found = [one.id for one in await self.ask(lambda tx: tx.select(selection(**options)))]
        if options.get("limit") is None and not options.get("offset"):
            assert await self.ask(lambda tx: tx.count(selection(**options))) == len(found)
        return found

    async def everything(self) -> list[Any]:
        """All of the namespace that can be asked for."""

        async def work(tx: StorageTransaction) -> list[Any]:
            return [
                await tx.select(selection()),
                await tx.history(),
                await tx.position(None),
                await tx.position("s"),
                await tx.claims(),
                await tx.definitions(),
                await tx.scan("c"),
                await tx.savepoint("s", "name"),
            ]

        return await self.ask(work)


class _Base(StoreTests):
    @pytest.fixture
    def raw(self, stores: Stores) -> Raw:
        return Raw(stores.storages.new())


class TestFacts(_Base):
    """Versions of facts, of which at most one is current."""

    async def test_a_fact_comes_back_as_it_was_written(self, raw: Raw) -> None:
        written = StoredFact("a", "note", '{"é": 1}', "source", "s", TS, 1, True, 3, "place", -1)
        await raw.put(written)
        found = (await raw.facts("a", "nothing"))["a"]
        assert found == written._replace(ordinal=found.ordinal)
        assert found.ordinal >= 0
        assert (type(found), bool(found.ephemeral)) == (StoredFact, True)
        assert await raw.facts() == {}

    async def test_versions_are_kept_and_the_latest_is_known(self, raw: Raw) -> None:
        for version in (1, 2, 3):
            await raw.put(fact("a", version))
        await raw.put(fact("b"))
        current = (await raw.facts("a"))["a"]
        assert current.version == 3
        await raw.write(Batch(entry(), [FactChange(current, None)]))
        assert await raw.facts("a") == {}
        latest = await raw.ask(lambda tx: tx.latest_versions(["a", "b", "nothing"]))
        assert latest in ({"a": 3, "b": 1}, {"a": 3})  # of what is current it need not speak
        assert await raw.ask(lambda tx: tx.latest_versions(["a"])) == {"a": 3}
        assert await raw.ask(lambda tx: tx.latest_versions([])) == {}
        found = await raw.ask(lambda tx: tx.versions([("a", 1), ("a", 3), ("b", 1)]))
        assert {key: decode(one) for key, one in found.items()} == {
            ("a", 1): {"id": "a", "v": 1},
            ("a", 3): {"id": "a", "v": 3},
            ("b", 1): {"id": "b", "v": 1},
        }
        assert await raw.ask(lambda tx: tx.versions([])) == {}

    async def test_an_older_version_is_made_current_again(self, raw: Raw) -> None:
        await raw.put(fact("a", 1, singleton="x", session_id="s"))
        first = (await raw.facts("a"))["a"]
        await raw.put(fact("a", 2, singleton="y"))
        second = (await raw.facts("a"))["a"]
        await raw.write(Batch(entry(), [FactChange(second, first)], restores=True))
        assert (await raw.facts("a"))["a"] == first
        assert await raw.selected(session_id="s") == ["a"]
        assert set(await raw.ask(lambda tx: tx.holders(["x", "y"]))) == {"x"}
        await raw.write(Batch(entry(), [FactChange(first, None)], restores=True))
        assert await raw.facts("a") == {}
        await raw.write(Batch(entry(), [FactChange(None, second)], restores=True))
        assert (await raw.facts("a"))["a"] == second
        assert await raw.ask(lambda tx: tx.latest_versions(["a"])) == {"a": 2}

    async def test_facts_are_ordered_by_when_they_were_made(self, raw: Raw) -> None:
        await raw.put(fact("c"), fact("a"), fact("b"))
        await raw.put(fact("0"))
        await raw.put(fact("a", 2), fact("d"))
        assert await raw.selected() == ["c", "a", "b", "0", "d"]
        ordinals = [one.ordinal for one in await raw.ask(lambda tx: tx.select(selection()))]
        assert ordinals == sorted(set(ordinals))

    async def test_a_place_has_one_holder(self, raw: Raw) -> None:
        await raw.put(fact("a", singleton="x"), fact("b", singleton="y"), fact("c"))
        holders = await raw.ask(lambda tx: tx.holders(["x", "y", "z"]))
        assert {place: one.id for place, one in holders.items()} == {"x": "a", "y": "b"}
        before = await raw.everything()
        both = [fact("e", singleton="n"), fact("f", singleton="n")]
        for clashing in ([fact("d", singleton="x")], [fact("c", 2, singleton="y")], both):
            with pytest.raises(ConflictError):
                await raw.put(*clashing)
        assert await raw.everything() == before
        await raw.put(fact("a", 2, singleton="y"), fact("b", 2, singleton="x"))
        holders = await raw.ask(lambda tx: tx.holders(["x", "y"]))
        assert {place: one.id for place, one in holders.items()} == {"x": "b", "y": "a"}
        gone = (await raw.facts("a"))["a"]
        await raw.write(Batch(entry(), [FactChange(gone, None), FactChange(None, fact("d", singleton="y"))]))
        assert (await raw.ask(lambda tx: tx.holders(["y"])))["y"].id == "d"

    async def test_many_at_once(self, raw: Raw) -> None:
        ids = [f"{number:05}" for number in range(3000)]
        await raw.put(*(fact(id_, singleton=f"p{id_}") for id_ in ids))
        assert list(await raw.selected()) == ids
        assert len(await raw.facts(*ids, "nothing")) == 3000
        assert len(await raw.ask(lambda tx: tx.versions([(id_, 1) for id_ in ids]))) == 3000
        assert len(await raw.ask(lambda tx: tx.holders([f"p{id_}" for id_ in ids]))) == 3000
        (written,) = await raw.ask(lambda tx: tx.history())
        assert len(written.changes) == 3000
        gone = [FactChange(one, None) for one in (await raw.facts(*ids)).values()]
        await raw.write(Batch(entry(), gone, restores=True))
        assert await raw.selected() == []
        assert await raw.ask(lambda tx: tx.latest_versions(ids)) == dict.fromkeys(ids, 1)

    async def test_many_change_as_one_would(self, raw: Raw) -> None:
        """Whatever they have in common, with each other or with what they were."""
        ids = [f"{number:02}" for number in range(40)]
        odd = ['"', "'", "\\", "{}", "é\u2028", "null", "NULL", "", "a,\n\tb", None]
        made = [
            fact(id_, source=odd[place % len(odd)], session_id="s", singleton=f"p{id_}" if place % 2 else None)
            for place, id_ in enumerate(ids)
        ]
        await raw.put(*made)
        found = await raw.facts(*ids)
        assert {id_: one._replace(ordinal=-1) for id_, one in found.items()} == {one.id: one for one in made}
        kept: dict[tuple[str, int], StoredFact] = {}
        alike = {"session_id": None, "ephemeral": True, "ts": "2031"}
        each: list[Any] = [
            lambda one: {},
            lambda one: alike,
            lambda one: {"singleton": None if one.singleton else f"q{one.id}"},
            lambda one: {"source": None, "payload": "{}", "schema_version": 2},
            lambda one: {"source": one.id, "session_id": one.id, "payload": f'{{"é": "\\\\u0000{one.id}"}}'},
            lambda one: {"ephemeral": one.id > "20", "session_id": "t" if one.id > "30" else None},
        ]
        for version, difference in enumerate(each, 2):
            before = await raw.facts(*ids)
            kept.update(((one.id, one.version), one) for one in before.values())
            wanted = {id_: one._replace(version=version, **difference(one)) for id_, one in before.items()}
            await raw.put(*wanted.values())
            await self._are_current(raw, wanted)
        assert await raw.ask(lambda tx: tx.versions(list(kept))) == kept
        for versions in ([1] * 40, [1 + place % 6 for place in range(40)], [7] * 40):
            now = await raw.facts(*ids)
            kept.update(((one.id, one.version), one) for one in now.values())
            back = {id_: kept[id_, version] for id_, version in zip(ids, versions, strict=True)}
            changes = [FactChange(now[id_], back[id_]) for id_ in ids if now[id_] != back[id_]]
            await raw.write(Batch(entry(), changes, restores=True))
            await self._are_current(raw, back)
        await raw.put(*(one._replace(version=8) for one in back.values()))
        assert await raw.ask(lambda tx: tx.versions(list(kept))) == kept
        gone = await raw.facts(*ids)
        assert {one.version for one in gone.values()} == {8}
        await raw.write(Batch(entry(), [FactChange(one, None) for one in gone.values()]))
        await raw.put(*(fact(id_, 9) for id_ in reversed(ids)))
        now = await raw.facts(*ids)
        await raw.write(Batch(entry(), [FactChange(now[id_], gone[id_]) for id_ in ids], restores=True))
        await self._are_current(raw, gone)

    async def _are_current(self, raw: Raw, wanted: dict[str, StoredFact]) -> None:
        assert await raw.facts(*wanted) == wanted
        for session_id in {one.session_id for one in wanted.values()} | {"s", "t"}:
            expected = [id_ for id_, one in wanted.items() if one.session_id == session_id]
            assert await raw.selected(session_id=session_id) == expected
        places = [f"{letter}{id_}" for letter in "pq" for id_ in wanted]
        holders = await raw.ask(lambda tx: tx.holders(places))
        assert holders == {one.singleton: one for one in wanted.values() if one.singleton is not None}

    async def test_answers_are_the_callers_own(self, raw: Raw) -> None:
        await raw.put(fact("a"), session_id="s")
        await raw.write(Batch(claims=[Claim("k", "o", 1.0, ("h",))], records=[RecordWrite("c", "k", b"v")]))
        before = await raw.everything()
        for answer in before:
            if isinstance(answer, list | dict):
                answer.clear()
        (await raw.facts("a")).clear()
        (await raw.ask(lambda tx: tx.line(1))).clear()
        assert len((await raw.everything())[0]) == len((await raw.everything())[1]) == 1
        assert len((await raw.everything())[4]) == len((await raw.everything())[6]) == 1


class TestSelect(_Base):
    """Selections: type, session, predicate, order, page, and indexes on declared paths."""

    @pytest_asyncio.fixture
    async def filled(self, raw: Raw) -> Raw:
        for number in range(12):
            rank = number % 4
            await raw.put(
                fact(
                    str(number),
                    type="note" if number % 3 else "memo",
                    session_id=[None, "s", "t"][number % 3],
                    payload=json.dumps({"rank": rank, "name": f"n{number}"}),
                ),
                fields=index_entries({"rank": rank, "name": f"n{number}"}, ("rank", "name")),
            )
        return raw

    async def test_conditions(self, filled: Raw) -> None:
        numbers = range(12)
        assert await filled.selected(typename="memo") == [str(n) for n in numbers if n % 3 == 0]
        assert await filled.selected(session_id="s") == [str(n) for n in numbers if n % 3 == 1]
        assert await filled.selected(session_id=None) == [str(n) for n in numbers if n % 3 == 0]
        assert await filled.selected(session_id=UNSET) == [str(n) for n in numbers]
        assert await filled.selected(typename="note", session_id="t") == [str(n) for n in numbers if n % 3 == 2]
        assert await filled.selected(typename="memo", session_id="t") == []

    async def test_indexed_and_not_answer_alike(self, filled: Raw) -> None:
        filters: list[dict[str, Any]] = [
            {"rank": 1},
            {"rank": {"$gt": 1}},
            {"rank": {"$gte": 1, "$lt": 3}},
            {"rank": {"$lte": 0}},
            {"rank": "1"},
            {"rank": 1, "name": "n5"},
            {"name": {"$gte": "n5"}},
            {"name": {"$lt": "n2"}, "rank": {"$ne": 0}},
            {"rank": {"$in": [1, 2]}},
            {"$or": [{"rank": 0}, {"name": "n1"}]},
        ]
        pages = itertools.cycle([(2, 0), (2, 1), (None, 3), (0, 0), (99, 99)])
        for one, typename, session_id in itertools.product(filters, ("note", "memo", None), (UNSET, None, "s")):
            where = {"typename": typename, "session_id": session_id, "predicate": compile_filter(one)}
            expected = [
                stored.id
                for stored in await filled.ask(lambda tx: tx.select(selection()))
                if typename in (None, stored.type)
                and session_id in (UNSET, stored.session_id)
                and where["predicate"](decode(stored))
            ]
            for indexed in ((), ("rank",), ("name",), ("rank", "name")):
                for limit, offset in ((None, 0), next(pages)):
                    end = None if limit is None else offset + limit
                    found = await filled.selected(**where, indexed=indexed, limit=limit, offset=offset)
                    assert found == expected[offset:end], (one, where, indexed, limit, offset)

    async def test_order(self, filled: Raw) -> None:
        ranked = sorted(range(12), key=lambda n: (n % 4, n))
        order = compile_order("rank")
        assert await filled.selected(order=order) == [str(n) for n in ranked]
        assert await filled.selected(order=order, limit=3, offset=2) == [str(n) for n in ranked[2:5]]
        assert await filled.selected(order=order, limit=0) == []
        backwards = compile_order(("-rank", "-id"))
        expected = sorted(range(12), key=lambda n: (n % 4, str(n)), reverse=True)
        assert await filled.selected(order=backwards) == [str(n) for n in expected]

    async def test_pages_go_on_behind_an_ordinal(self, filled: Raw) -> None:
        ordinals = {stored.id: stored.ordinal for stored in await filled.ask(lambda tx: tx.select(selection()))}
        conditions: list[dict[str, Any]] = [
            {},
            {"typename": "note"},
            {"session_id": "s"},
            {"session_id": None},
            {"typename": "note", "session_id": "t"},
            {"predicate": compile_filter({"rank": {"$gte": 2}})},
            {"typename": "note", "predicate": compile_filter({"rank": 2}), "indexed": ("rank",)},
            {"typename": "note", "predicate": compile_filter({"rank": {"$gte": 1}}), "indexed": ("rank",)},
        ]
        for where in conditions:
            everything = await filled.selected(**where)
            assert len(everything) > 1
            for limit in (1, 2, 99):
                paged: list[str] = []
                while page := await filled.selected(**where, limit=limit, after=ordinals[paged[-1]] if paged else -1):
                    paged += page
                assert paged == everything, (where, limit)
            for place, id_ in enumerate(everything):
                rest = {**where, "after": ordinals[id_]}
                assert await filled.selected(**rest) == everything[place + 1 :]
                assert await filled.selected(**rest, limit=2, offset=1) == everything[place + 2 : place + 4]
                assert await filled.selected(**rest, order=compile_order("-id")) == sorted(
                    everything[place + 1 :], reverse=True
                )
        stored = (await filled.facts("4"))["4"]
        await filled.write(Batch(entry(), [FactChange(stored, stored._replace(version=2))]))
        assert await filled.selected(after=ordinals["3"], limit=2) == ["4", "5"]
        await filled.write(Batch(entry(), [FactChange((await filled.facts("4"))["4"], None)]))
        assert await filled.selected(after=ordinals["3"], limit=2) == ["5", "6"]

    async def test_decode_says_what_a_payload_is(self, raw: Raw) -> None:
        await raw.put(fact("a"), fact("b"))
        upgraded = Selection(
            decode=lambda stored: {"name": stored.id.upper()},
            predicate=compile_filter({"name": {"$gte": "B"}}),
            order=compile_order("-name"),
        )
        assert [one.id for one in await raw.ask(lambda tx: tx.select(upgraded))] == ["b"]
        assert await raw.ask(lambda tx: tx.count(upgraded)) == 1

    async def test_gone_facts_are_not_selected(self, filled: Raw) -> None:
        stored = (await filled.facts("4"))["4"]
        await filled.write(Batch(entry(), [FactChange(stored, None)]))
        where = {"typename": "note", "predicate": compile_filter({"rank": 0}), "indexed": ("rank",)}
        assert await filled.selected(**where) == ["8"]
        assert "4" not in await filled.selected()
        fields = index_entries(decode(stored), ("rank", "name"))
        await filled.write(Batch(entry(), [FactChange(None, stored, fields)], restores=True))
        assert await filled.selected(**where) == ["4", "8"]
        fewer = index_entries({"name": "n4"}, ("rank", "name"))
        changed = stored._replace(version=2, payload=json.dumps({"name": "n4"}))
        await filled.write(Batch(entry(), [FactChange(stored, changed, fewer)]))
        assert await filled.selected(**where) == ["8"]
        missing = {**where, "predicate": compile_filter({"rank": {"$exists": False}})}
        assert await filled.selected(**missing) == ["4"]


class TestJournal(_Base):
    """Entries, lines, history, positions and savepoints."""

    async def test_an_entry_says_what_was_given(self, raw: Raw) -> None:
        await raw.put(fact("a"))
        before = (await raw.facts("a"))["a"]
        new = NewEntry("s", Operation.TRANSACTION, "actor", "réason", "mark", TS, 7)
        changes = [
            FactChange(before, fact("a", 2)._replace(ordinal=before.ordinal)),
            FactChange(None, fact("b")),
        ]
        seq = await raw.write(Batch(new, changes))
        expected = Entry(
            seq,
            "s",
            7,
            seq,
            "TRANSACTION",
            "actor",
            "réason",
            "mark",
            TS,
            (ChangedVersions("a", 1, 2), ChangedVersions("b", 0, 1)),
        )
        assert await raw.ask(lambda tx: tx.entries([seq, seq + 99])) == {seq: expected}
        assert await raw.ask(lambda tx: tx.entries([])) == {}
        assert (await raw.ask(lambda tx: tx.history()))[0] == expected
        move = await raw.write(Batch(entry("s", seq, operation=Operation.ROLLBACK, head=7, redo=seq)))
        stored = (await raw.ask(lambda tx: tx.entries([move])))[move]
        assert (stored.head, stored.operation, stored.changes) == (7, "ROLLBACK", ())

    async def test_seqs_grow_and_a_write_without_entry_has_none(self, raw: Raw) -> None:
        assert await raw.write(Batch(records=[RecordWrite("c", "k", b"")])) == 0
        seqs = [await raw.put(fact(str(number))) for number in range(5)]
        assert seqs == sorted(set(seqs))
        assert seqs[0] > 0
        other = Raw(raw.storage, "other")
        others = [await other.put(fact("a")), await other.put(fact("b"))]  # whether they share numbers is not fixed
        assert 0 < others[0] < others[1]
        assert await raw.put(fact("a")) > seqs[-1]

    async def test_the_position_of_a_session(self, raw: Raw) -> None:
        assert await raw.ask(lambda tx: tx.position("s")) == Position(0, 0, 0, False)
        first = await raw.write(Batch(entry("s")))
        second = await raw.write(Batch(entry("s", first)))
        assert await raw.ask(lambda tx: tx.position("s")) == Position(second, 0, 0, False)
        assert await raw.ask(lambda tx: tx.position(None)) == Position(0, 0, 0, False)
        await raw.write(Batch(entry("s", second, head=first, redo=second)))
        assert await raw.ask(lambda tx: tx.position("s")) == Position(first, second, 0, False)
        await raw.write(Batch(entry("s", first, head=0, redo=second)))
        assert (await raw.ask(lambda tx: tx.position("s")))[:2] == (0, second)
        third = await raw.write(Batch(entry("s")))
        assert (await raw.ask(lambda tx: tx.position("s")))[:2] == (third, 0)
        for odd in ("", "=s", "None", "="):
            assert (await raw.ask(lambda tx, odd=odd: tx.position(odd)))[0] == 0  # type: ignore[misc]
        await raw.write(Batch(definitions={"note": "{}"}, claims=[Claim("k", "o", 1.0, ())]))
        assert await raw.ask(lambda tx: tx.position("s")) == Position(third, 0, 1, True)
        assert await Raw(raw.storage, "other").ask(lambda tx: tx.position("s")) == Position(0, 0, 0, False)

    async def test_a_line_is_a_transaction_and_its_ancestors(self, raw: Raw) -> None:
        seqs = [0]
        for _ in range(6):
            seqs.append(await raw.write(Batch(entry("s", seqs[-1]))))
            await raw.write(Batch(entry("other")))
        branch = await raw.write(Batch(entry("s", seqs[2])))

        async def line(seq: int, **options: Any) -> list[int]:
            return [one.seq for one in await raw.ask(lambda tx: tx.line(seq, **options))]

        newest_first = seqs[:0:-1]
        assert await line(seqs[6]) == newest_first
        assert await line(branch) == [branch, seqs[2], seqs[1]]
        assert await line(0) == []
        for above in (0, seqs[1], seqs[3], seqs[3] + 1, seqs[6], seqs[6] + 99):
            expected = [seq for seq in newest_first if seq > above]
            assert await line(seqs[6], above=above) == expected
            for limit in (0, 1, 3, 99):
                assert await line(seqs[6], above=above, limit=limit) == expected[:limit]

    async def test_history_fulfils_every_condition(self, raw: Raw) -> None:
        entries: list[Entry] = []

        async def record(batch: Batch) -> None:
            seq = await raw.write(batch)
            entries.append((await raw.ask(lambda tx: tx.entries([seq])))[seq])

        for number in range(24):
            session_id = [None, "s", "t"][number % 3]
            mark = ["m", None, "k", None][number % 4]
            ids = ["a", "b"] if number % 2 else ["b"]
            now = await raw.facts(*ids)
            changes = []
            for id_ in ids:
                before = now.get(id_)
                version = before.version + 1 if before else 1
                changes.append(
                    FactChange(before, fact(id_, version)._replace(ordinal=before.ordinal if before else -1))
                )
            await record(Batch(entry(session_id, mark=mark), changes))
        now = await raw.facts("a", "b")
        a, b = now["a"], now["b"]
        older = (await raw.ask(lambda tx: tx.versions([("a", 1)])))["a", 1]
        await record(Batch(entry("s", head=0), [FactChange(a, older)], restores=True))
        await record(Batch(entry(), [FactChange(older, None), FactChange(b, None)], restores=True))
        await record(Batch(entry("s"), [FactChange(None, fact("a", a.version + 1))]))
        await record(Batch(entry(mark="m"), [FactChange(None, b)], restores=True))
        await record(Batch(entry(), [FactChange(b, fact("b", b.version + 5, ordinal=b.ordinal))]))
        sessions: list[Any] = [UNSET, None, "s", "nobody"]
        conditions = itertools.product(sessions, (None, "a", "b", "nothing"), (None, "m", "nothing"))
        belows = [None, 0, *(entries[place].seq for place in (0, 10, -1, -3, -5)), entries[-1].seq + 1, 1 << 60]
        pages = list(itertools.product(belows, (None, 0, 1, 4)))
        for number, (line, fact_id, mark) in enumerate(conditions):
            expected = [
                one
                for one in reversed(entries)
                if line in (UNSET, one.session_id)
                and (fact_id is None or fact_id in [change.fact_id for change in one.changes])
                and mark in (None, one.mark)
            ]
            where: dict[str, Any] = {"session_id": line, "fact_id": fact_id, "mark": mark}
            assert await raw.ask(lambda tx, where=where: tx.history(**where)) == expected, where  # type: ignore[misc]
            # Each has a third of the pages, and those that differ in one thing have different ones.
            for below, limit in pages[(number // 3 + number) % 3 :: 3]:
                page = {**where, "before": below, "limit": limit}
                wanted = [one for one in expected if below is None or one.seq < below][:limit]
                assert await raw.ask(lambda tx, page=page: tx.history(**page)) == wanted, page  # type: ignore[misc]

    async def test_savepoints(self, raw: Raw) -> None:
        async def at(session_id: str | None, name: str) -> int | None:
            return await raw.ask(lambda tx: tx.savepoint(session_id, name))

        await raw.write(Batch(savepoint=Savepoint("s", "name", 3)))
        await raw.write(Batch(savepoint=Savepoint(None, "name", 0)))
        assert (await at("s", "name"), await at(None, "name")) == (3, 0)
        assert (await at("t", "name"), await at("s", "nam"), await at("", "name")) == (None, None, None)
        await raw.write(Batch(savepoint=Savepoint("s", "name", 9)))
        assert (await at("s", "name"), await at(None, "name")) == (9, 0)
        assert await Raw(raw.storage, "other").ask(lambda tx: tx.savepoint("s", "name")) is None
        # All there are; one is of a session with a long id.
        long = "l" * 500
        given = [Savepoint(long, "a", 1), Savepoint(None, "b\u20ac", 2)]
        for one in given:
            await raw.write(Batch(savepoint=one))
        known = [Savepoint("s", "name", 9), Savepoint(None, "name", 0), *given]
        found = await raw.ask(lambda tx: tx.savepoints([None, long, "t"]))
        assert sorted(found, key=str) == sorted(known, key=str)
        found = await raw.ask(lambda tx: tx.savepoints([]))
        assert sorted({*found, given[0]}, key=str) == sorted(known, key=str)
        assert await Raw(raw.storage, "other").ask(lambda tx: tx.savepoints([None, "s"])) == []

    async def test_a_seq_can_be_asked_for(self, raw: Raw) -> None:
        assert await raw.put(fact("a")) == 1
        for seq, parent, after in ((7, 1, 8), (1000, 8, 1001)):
            asked = Batch(entry(None, parent, seq=seq), [FactChange(None, fact(f"f{seq}"))])
            await _with_position(raw, asked)
            assert asked.seq == seq
            assert await raw.ask(lambda tx: tx.position(None)) == (seq, 0, 0, False)
            assert await raw.put(fact(f"f{after}"), parent=seq) == after
        assert [one.seq for one in await raw.ask(lambda tx: tx.history())] == [1001, 1000, 8, 7, 1]
        assert [one.seq for one in await raw.ask(lambda tx: tx.line(1001))] == [1001, 1000, 8, 7, 1]
        assert [one.seq for one in await raw.ask(lambda tx: tx.history(fact_id="f1000"))] == [1000]
        assert await raw.selected() == ["a", "f7", "f8", "f1000", "f1001"]
        before = await raw.everything()
        for session_id in (None, "s"):
            with pytest.raises(ConflictError, match="transaction 1001 is taken"):
                await _with_position(raw, Batch(entry(session_id, seq=1001), [FactChange(None, fact("b"))]))
        assert await raw.everything() == before


async def _with_position(raw: Raw, batch: Batch) -> None:
    """Write as the engine does, who knows where the session stands and what the facts are."""

    async def work(tx: StorageTransaction) -> None:
        assert batch.entry is not None
        await tx.position(batch.entry.session_id)
        await tx.facts([change.fact_id for change in batch.changes])
        await tx.write(batch)

    await raw.storage.write(raw.namespace, work)


class TestTheRest(_Base):
    """Records, claims, definitions."""

    async def test_records(self, raw: Raw) -> None:
        await raw.write(Batch(records=[RecordWrite("c", key, key.encode()) for key in "bdac"]))
        await raw.write(Batch(records=[RecordWrite("c", "b", b"new"), RecordWrite("c", "d", None)]))
        await raw.write(Batch(records=[RecordWrite("c", "nothing", None), RecordWrite("d", "a", b"d")]))
        assert await raw.ask(lambda tx: tx.record("c", "b")) == b"new"
        assert await raw.ask(lambda tx: tx.record("c", "d")) is None
        assert await raw.ask(lambda tx: tx.record("nothing", "a")) is None
        wanted = [("c", "b"), ("c", "d"), ("d", "a"), ("nothing", "a"), ("c", "a")]
        kept = {("c", "b"): b"new", ("d", "a"): b"d", ("c", "a"): b"a"}
        for snapshot in (False, True):
            read = raw.storage.read
            assert await read(raw.namespace, lambda tx: tx.records(wanted), snapshot=snapshot) == kept
            assert await read(raw.namespace, lambda tx: tx.records([]), snapshot=snapshot) == {}
        assert await raw.ask(lambda tx: tx.scan("c")) == [Record("a", b"a"), Record("b", b"new"), Record("c", b"c")]
        assert [one.key for one in await raw.ask(lambda tx: tx.scan("c", start="b", end="c"))] == ["b"]
        assert [one.key for one in await raw.ask(lambda tx: tx.scan("c", reverse=True, limit=2))] == ["c", "b"]
        assert await raw.ask(lambda tx: tx.scan("c", start="z")) == []
        assert await raw.ask(lambda tx: tx.scan("c", start="b", end="a")) == []
        many = [("m", f"{number}") for number in range(70)]
        await raw.write(Batch(records=[RecordWrite(*place, b"m") for place in many]))
        assert await raw.ask(lambda tx: tx.records([*many, ("m", "nothing")])) == dict.fromkeys(many, b"m")

    async def test_collections(self, raw: Raw) -> None:
        assert await raw.ask(lambda tx: tx.collections()) == []
        names = ["a", "b", "ab", "\u20ac", "A", "a.b"]
        writes = [RecordWrite(name, f"{number}", b"x") for name in names for number in range(3)]
        await raw.write(Batch(records=writes))
        await raw.write(Batch(records=[RecordWrite("gone", "k", b"x")]))
        await raw.write(Batch(records=[RecordWrite("gone", "k", None), RecordWrite("ab", "1", None)]))
        assert await raw.ask(lambda tx: tx.collections()) == sorted(names)
        assert await Raw(raw.storage, "other").ask(lambda tx: tx.collections()) == []
        # They are told as they are, or not at all.
        long = "l" * 500
        await raw.write(Batch(records=[RecordWrite(long, "k", b"x")]))
        with contextlib.suppress(StorageError):
            assert await raw.ask(lambda tx: tx.collections()) == sorted([*names, long])

    async def test_namespaces(self, raw: Raw) -> None:
        storage: Storage = raw.storage
        assert await storage.namespaces() == []
        written = {
            "a b/{c}%": Batch(entry("s")),
            "A": Batch(savepoint=Savepoint("s", "here", 0)),
            "\u20ac*": Batch(records=[RecordWrite("c", "k", b"x")]),
            "b": Batch(definitions={"note": "text"}),
        }
        for name, batch in written.items():
            await Raw(storage, name).write(batch)
        assert await storage.namespaces() == sorted(written)
        # Nothing was written there, or nothing is left of it.
        assert await Raw(storage, "asked").ask(lambda tx: tx.position(None)) == Position(0, 0, 0, False)
        await Raw(storage, "claimed").write(Batch(claims=[Claim("fact:a", "o", 1.0, ())]))
        for value in (b"x", None):
            await Raw(storage, "gone").write(Batch(records=[RecordWrite("c", "k", value)]))
        assert await storage.namespaces() == sorted(written)
        long = "l" * 500
        await Raw(storage, long).write(written["b"])
        with contextlib.suppress(StorageError):  # as with collections
            assert await storage.namespaces() == sorted([*written, long])

    async def test_records_are_written_in_the_transaction_that_read_them(self, raw: Raw) -> None:
        async def work(tx: StorageTransaction) -> list[bytes | None]:
            found = [await tx.record("c", key, is_new=key != "new") for key in ("old", "new", "nothing")]
            more = await tx.records([("c", "left"), ("c", "gone"), ("c", "nothing")])
            found += [more.get(("c", key)) for key in ("left", "gone")]
            writes = [RecordWrite("c", key, b"2") for key in ("old", "new", "unread")]
            await tx.write(Batch(records=[*writes, RecordWrite("c", "gone", None)]))
            return found

        await raw.write(Batch(records=[RecordWrite("c", key, b"1") for key in ("old", "left", "gone")]))
        assert await raw.storage.write("n", work) == [b"1", None, None, b"1", b"1"]
        kept = [tuple(one) for one in await raw.ask(lambda tx: tx.scan("c"))]
        assert kept == [("left", b"1"), ("new", b"2"), ("old", b"2"), ("unread", b"2")]

    async def test_claims(self, raw: Raw) -> None:
        one, two, three = (Claim(f"fact:{n}", owner, n + 0.5, ("h", "é")) for n, owner in enumerate(["x", "x", "y"]))
        await raw.write(Batch(claims=[one, two, three]))
        assert sorted(await raw.ask(lambda tx: tx.claims())) == [one, two, three]
        assert await raw.ask(lambda tx: tx.claims(["fact:1", "nothing"])) == [two]
        assert await raw.ask(lambda tx: tx.claims([])) == []
        renewed = one._replace(owner="z", expires=99.0, hooks=())
        await raw.write(Batch(claims=[renewed]))
        assert await raw.ask(lambda tx: tx.claims(["fact:0"])) == [renewed]
        assert await Raw(raw.storage, "other").ask(lambda tx: tx.claims()) == []
        await raw.write(Batch(drop_claims_of="x"))
        assert sorted(await raw.ask(lambda tx: tx.claims())) == [renewed, three]
        await raw.write(Batch(drop_claims_of="nobody"))
        await raw.write(Batch(claims=[two], drop_claims_of="z"))
        assert sorted(await raw.ask(lambda tx: tx.claims())) == [two, three]
        keys = [f"fact:{number}" for number in range(2500)]
        await raw.write(Batch(claims=[Claim(key, "many", 1.0, ()) for key in keys], drop_claims_of="y"))
        assert len(await raw.ask(lambda tx: tx.claims(keys))) == 2500
        await raw.write(Batch(drop_claims_of="many"))
        assert (await raw.ask(lambda tx: tx.position(None))).claimed is False

    async def test_claims_that_are_lost_refuse_the_write(self, raw: Raw) -> None:
        mine = [Claim(f"fact:{number}", "me", 1.0, ()) for number in range(3)]
        await raw.write(Batch(claims=[*mine, Claim("fact:3", "other", 1.0, ())]))
        before = await raw.everything()
        for wrong in (0, 2, 4):
            batch = Batch(
                entry("s"),
                [FactChange(None, fact("a"))],
                records=[RecordWrite("c", "k", b"v")],
                drop_claims_of="me",
                dropped=wrong,
            )
            with pytest.raises(ClaimsLost):
                await raw.write(batch)
            assert await raw.everything() == before
        with pytest.raises(ClaimsLost):
            await raw.write(Batch(entry("s"), drop_claims_of="nobody", dropped=1))
        await raw.write(Batch(entry("s"), [FactChange(None, fact("a"))], drop_claims_of="me", dropped=3))
        assert [one.owner for one in await raw.ask(lambda tx: tx.claims())] == ["other"]
        assert await raw.selected() == ["a"]

    async def test_definitions_raise_the_generation(self, raw: Raw) -> None:
        assert await raw.ask(lambda tx: tx.definitions()) == {}
        await raw.write(Batch(definitions={"a": "1", "b": "é"}))
        await raw.write(Batch(definitions={"a": "2"}))
        await raw.write(Batch(entry("s")))
        assert await raw.ask(lambda tx: tx.definitions()) == {"a": "2", "b": "é"}
        assert (await raw.ask(lambda tx: tx.position(None))).generation == 2

    async def test_reindex_gives_current_facts_their_place_and_fields(self, raw: Raw) -> None:
        for version in (1, 2):
            await raw.put(fact("a", version, payload=json.dumps({"rank": version, "place": f"a{version}"})))
        await raw.put(fact("b", payload=json.dumps({"rank": 1, "place": "b"})))
        await raw.put(fact("x", type="memo", payload=json.dumps({"rank": 1, "place": "a2"})))

        def compute(stored: StoredFact) -> tuple[str | None, tuple[IndexEntry, ...]]:
            payload = decode(stored)
            return payload["place"], index_entries(payload, ("rank",))

        async def work(tx: StorageTransaction) -> None:
            await tx.reindex("note", compute)
            await tx.write(Batch(definitions={"note": "new"}))

        await raw.storage.write(raw.namespace, work)

        async def found(rank: int) -> list[str]:
            predicate = compile_filter({"rank": rank})
            return await raw.selected(typename="note", predicate=predicate, indexed=("rank",))

        assert (await found(1), await found(2)) == (["b"], ["a"])
        assert set(await raw.ask(lambda tx: tx.holders(["a1", "a2", "b"]))) == {"a2", "b"}
        assert {one.singleton for one in (await raw.facts("a", "b")).values()} == {"a2", "b"}
        now = (await raw.facts("a"))["a"]
        older = (await raw.ask(lambda tx: tx.versions([("a", 1)])))["a", 1]
        place, fields = compute(older)
        await raw.write(Batch(entry(), [FactChange(now, older._replace(singleton=place), fields)], restores=True))
        assert (await found(1), await found(2)) == (["a", "b"], [])
        assert set(await raw.ask(lambda tx: tx.holders(["a1", "a2"]))) == {"a1"}
        await raw.storage.write(raw.namespace, lambda tx: tx.reindex("note", lambda _: (None, ())))
        assert (await found(1), await raw.ask(lambda tx: tx.holders(["a1"]))) == ([], {})

    async def test_reindex_refuses_two_facts_in_one_place(self, raw: Raw) -> None:
        for id_ in "abc":
            await raw.put(fact(id_))
        gone = (await raw.facts("a"))["a"]
        await raw.write(Batch(entry(), [FactChange(gone, None)]))
        before = await raw.everything()

        async def work(tx: StorageTransaction) -> None:
            await tx.reindex("note", lambda stored: ("place", ()))
            await tx.write(Batch(definitions={"note": "new"}))

        with pytest.raises(ConflictError) as caught:
            await raw.storage.write(raw.namespace, work)
        assert caught.value.fact_id == "b"
        assert await raw.everything() == before
        await raw.storage.write(raw.namespace, lambda tx: tx.reindex("note", lambda one: (one.id, ())))
        assert set(await raw.ask(lambda tx: tx.holders(["a", "b", "c"]))) == {"b", "c"}


class TestAtomicity(_Base):
    """All of a storage transaction, or nothing."""

    def batch(self, before: StoredFact | None = None) -> Batch:
        """Something of everything."""
        changes = [FactChange(None, fact("new", singleton="p"), index_entries({"rank": 1}, ("rank",)))]
        if before is not None:
            changes.append(FactChange(before, None))
        return Batch(
            entry("s"),
            changes,
            savepoint=Savepoint("s", "name", 1),
            records=[RecordWrite("c", "k", b"v"), RecordWrite("c", "old", None)],
            definitions={"note": "{}"},
            claims=[Claim("k", "o", 1.0, ("h",))],
            drop_claims_of="old",
        )

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, asyncio.CancelledError])
    async def test_what_raises_leaves_no_trace(self, raw: Raw, error: type[BaseException]) -> None:
        await raw.put(fact("a"), session_id="s")
        await raw.write(Batch(records=[RecordWrite("c", "old", b"")], claims=[Claim("old", "old", 1.0, ())]))
        before = await raw.everything()
        current = (await raw.facts("a"))["a"]

        async def work(tx: StorageTransaction) -> None:
            await tx.reindex("note", lambda stored: (f"place of {stored.id}", ()))
            await tx.write(self.batch(current))
            raise error("on purpose")

        if raw.storage.is_async and error is KeyboardInterrupt:
            pytest.skip("it would end the event loop")
        with pytest.raises(error):
            await raw.storage.write(raw.namespace, work)
        assert await raw.everything() == before
        assert await raw.ask(lambda tx: tx.holders(["p", "place of a"])) == {}
        assert await raw.ask(lambda tx: tx.latest_versions(["new"])) == {}
        seq = await raw.write(self.batch(current))
        after = await raw.everything()
        assert after[2].generation == 1
        assert after[3].head == seq
        assert after[4] == [Claim("k", "o", 1.0, ("h",))]
        assert after[6] == [Record("k", b"v")]

    async def test_a_refused_write_leaves_no_trace(self, raw: Raw) -> None:
        await raw.put(fact("a", singleton="p"))
        before = await raw.everything()
        with pytest.raises(ConflictError):
            await raw.write(self.batch())
        assert await raw.everything() == before

    async def test_the_result_of_the_work_is_returned(self, raw: Raw) -> None:
        """Also when it writes nothing."""

        async def work(tx: StorageTransaction) -> list[int]:
            assert await tx.facts(["a"]) == {}
            return [1]

        assert await raw.storage.write("n", work) == await raw.storage.read("n", work) == [1]
        assert await raw.storage.read("n", work, snapshot=True) == [1]

    async def test_a_snapshot_is_of_one_moment(self, raw: Raw, storages: StorageFactory) -> None:
        await raw.put(fact("a"))
        other = Raw(storages.again(raw.storage)) if storages.persistent else None
        seen: list[Sequence[str]] = []

        async def work(tx: StorageTransaction) -> None:
            seen.append(list(await tx.facts(["a", "b"])))
            if other is not None and not raw.storage.is_async:
                await other.put(fact("b"))
            seen.append(list(await tx.facts(["a", "b"])))

        await raw.storage.read("n", work, snapshot=True)
        assert seen == [["a"], ["a"]]

    async def test_namespaces_share_nothing(self, raw: Raw) -> None:
        empty = await Raw(raw.storage, "other").everything()
        await raw.write(self.batch())
        other = Raw(raw.storage, "other")
        assert await other.everything() == empty
        assert await other.facts("new") == {}
        assert await other.ask(lambda tx: tx.holders(["p"])) == {}
        assert await other.ask(lambda tx: tx.latest_versions(["new"])) == {}
        seq = (await raw.ask(lambda tx: tx.history()))[0].seq
        assert await other.ask(lambda tx: tx.entries([seq])) == {}
        assert await other.ask(lambda tx: tx.history(fact_id="new")) == []
        await other.write(self.batch())
        await other.write(Batch(drop_claims_of="o"))
        assert len(await raw.ask(lambda tx: tx.claims())) == 1
        await other.storage.write("other", lambda tx: tx.reindex("note", lambda _: (None, ())))
        assert set(await raw.ask(lambda tx: tx.holders(["p"]))) == {"p"}

    async def test_what_is_written_is_there_for_the_next(self, raw: Raw, storages: StorageFactory) -> None:
        await raw.write(self.batch())
        before = await raw.everything()
        again = Raw(storages.again(raw.storage))
        assert await again.everything() == before
        if storages.persistent:
            await raw.storage.aclose()
            assert await again.everything() == before
            with pytest.raises(ClosedError):
                await raw.everything()


__all__ = ["TestAtomicity", "TestFacts", "TestJournal", "TestSelect", "TestTheRest"]
