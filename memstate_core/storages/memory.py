"""Storage in this process's memory: it defines what the others must do, and forgets everything at the end."""

from __future__ import annotations

import heapq
import sys
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from memstate_core._bridge import run
from memstate_core.errors import ClosedError
from memstate_core.facts import (
    UNSET,
    ChangedVersions,
    Entry,
    IndexEntry,
    StoredFact,
    Unset,
)
from memstate_core.filters import Range, sort_facts
from memstate_core.intents import matches
from memstate_core.protocols import (
    Batch,
    Claim,
    ClaimsLost,
    Delivery,
    Lane,
    LaneState,
    NewEntry,
    Position,
    Record,
    RecordWrite,
    Savepoint,
    Selection,
    Settlement,
    Work,
)
from memstate_core.storages._forks import tell_of_forks
from memstate_core.storages._locks import refuse_nesting
from memstate_core.storages._ordinals import ordinal, taken_seq, transaction_of
from memstate_core.storages._places import refuse_shared_places, shared_place

T = TypeVar("T")

Ids = dict[str, None]  # an ordered set
_Change = tuple[StoredFact | None, StoredFact | None, tuple[IndexEntry, ...]]


_FEW = 64


class _Namespace:
    """Everything of one namespace."""

    def __init__(self) -> None:
        self.facts: dict[str, StoredFact] = {}
        # facts and by_type are in the order of ordinals, but for those that came back and stand at their end.
        self.came_back: Ids = {}
        self.last_ordinal = -1
        # Versions that were replaced or removed; like in a database, the current ones are only among the facts.
        self.archive: dict[str, dict[int, StoredFact]] = {}
        self.fields: dict[str, tuple[IndexEntry, ...]] = {}
        self.by_type: dict[str, Ids] = defaultdict(dict)
        self.by_session: dict[str | None, Ids] = defaultdict(dict)
        self.by_field: dict[tuple[str, str], dict[tuple[int, Any], Ids]] = defaultdict(dict)
        self.places: dict[str, str] = {}
        self.entries: dict[int, Entry] = {}
        # Of each fact all transactions but the one that made it, which its first version's ordinal names.
        self.by_fact: dict[str, list[int]] = defaultdict(list)
        self.by_line: dict[str | None, list[int]] = defaultdict(list)
        self.by_mark: dict[str, list[int]] = defaultdict(list)
        self.heads: dict[str | None, tuple[int, int]] = {}
        self.savepoints: dict[tuple[str | None, str], int] = {}
        self.records: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.record_keys: dict[str, list[str]] = defaultdict(list)
        self.claims: dict[str, Claim] = {}
        self.outbox: dict[Lane, dict[tuple[int, str], Delivery]] = defaultdict(dict)
        self.lane_leases: dict[Lane, tuple[str, float]] = {}
        self.definitions: dict[str, str] = {}
        self.generation = 0

    @property
    def has_anything(self) -> bool:
        """Whether anything is kept here; asking makes a namespace, too."""
        return bool(self.entries or self.savepoints or self.definitions or any(self.records.values()))

    # What follows mutates. It is called with everything checked, so that nothing can fail midway, and can be repeated
    # from the start when an interruption came midway.

    def take_out(self, fact: StoredFact) -> None:
        if fact.id in self.fields:
            self._put_fields(fact, ())
        self._leave_place(fact)
        self.by_type[fact.type].pop(fact.id, None)
        self.by_session[fact.session_id].pop(fact.id, None)
        self.came_back.pop(fact.id, None)
        self.facts.pop(fact.id, None)

    def put_in(self, fact: StoredFact, fields: tuple[IndexEntry, ...]) -> None:
        id_ = fact.id
        if fact.ordinal > self.last_ordinal:
            self.last_ordinal = fact.ordinal
        else:
            self.came_back[id_] = None
        self.facts[id_] = fact
        self.by_type[fact.type][id_] = None
        self.by_session[fact.session_id][id_] = None
        if fact.singleton is not None:
            self.places[fact.singleton] = id_
        if fields:
            self._put_fields(fact, fields)

    def put_in_place_of(self, before: StoredFact, fact: StoredFact, fields: tuple[IndexEntry, ...]) -> None:
        """Change a fact where it is, which keeps everything in order."""
        self.facts[fact.id] = fact
        if fact.session_id != before.session_id:
            self.by_session[before.session_id].pop(fact.id, None)
            self.by_session[fact.session_id][fact.id] = None
        if fact.singleton != before.singleton:
            self._leave_place(before)
        if fact.singleton is not None:
            self.places[fact.singleton] = fact.id
        if fields or fact.id in self.fields:
            self._put_fields(fact, fields)

    def _leave_place(self, fact: StoredFact) -> None:
        if fact.singleton is not None and self.places.get(fact.singleton) == fact.id:
            del self.places[fact.singleton]

    def _put_fields(self, fact: StoredFact, fields: tuple[IndexEntry, ...]) -> None:
        old = self.fields.get(fact.id, ())
        if old != fields:
            for path, kind, key in old:
                values = self.by_field[fact.type, path]
                values.get((kind, key), {}).pop(fact.id, None)
                if not values.get((kind, key), True):
                    del values[kind, key]
            for path, kind, key in fields:
                self.by_field[fact.type, path].setdefault((kind, key), {})[fact.id] = None
        if fields:
            self.fields[fact.id] = fields
        else:
            self.fields.pop(fact.id, None)

    def in_order(self, typename: str | None) -> Iterable[str]:
        """The ids of all facts, or of those of a type, in the order of their ordinals."""
        if len(self.came_back) > _FEW + len(self.facts) // 8:
            facts = dict(sorted(self.facts.items(), key=lambda item: item[1].ordinal))
            by_type: dict[str, Ids] = defaultdict(dict)
            for fact in facts.values():
                by_type[fact.type][fact.id] = None
            self.facts, self.by_type = facts, by_type
            self.came_back = {}
        ids: Iterable[str] = self.facts if typename is None else self.by_type.get(typename, ())
        if not self.came_back:
            return ids

        def place(fact_id: str) -> int:
            return self.facts[fact_id].ordinal

        back = sorted((id_ for id_ in self.came_back if typename in (None, self.facts[id_].type)), key=place)
        return heapq.merge((id_ for id_ in ids if id_ not in self.came_back), back, key=place)

    def record_entry(self, entry: Entry, touched: Sequence[str]) -> None:
        seq = entry.seq
        self.entries[seq] = entry
        _append(self.by_line[entry.session_id], seq)
        if entry.mark is not None:
            _append(self.by_mark[entry.mark], seq)
        by_fact = self.by_fact
        for fact_id in touched:  # there may be many
            seqs = by_fact[fact_id]
            if not seqs or seqs[-1] != seq:
                seqs.append(seq)

    def touching(self, fact_id: str) -> Iterable[int]:
        """The seqs of the transactions that changed a fact, newest first."""
        yield from reversed(self.by_fact.get(fact_id, ()))
        past = self.archive.get(fact_id)
        first = self.facts.get(fact_id) if past is None else next(iter(past.values()))
        if first is not None and (seq := transaction_of(first.ordinal)) in self.entries:
            yield seq

    def settle(self, settlement: Settlement) -> None:
        deliveries = self.outbox[settlement.lane]
        for one in settlement.delivered:
            deliveries.pop((one.seq, one.change.fact_id), None)
        for one in settlement.postponed:
            deliveries[one.seq, one.change.fact_id] = one
        if not deliveries:
            del self.outbox[settlement.lane]
        if settlement.expires:
            self.lane_leases[settlement.lane] = settlement.owner, settlement.expires
        else:
            self.lane_leases.pop(settlement.lane, None)

    def put_record(self, write: RecordWrite) -> None:
        keys, records = self.record_keys[write.collection], self.records[write.collection]
        place = bisect_left(keys, write.key)
        known = place < len(keys) and keys[place] == write.key
        if write.value is None:
            if known:
                del keys[place]
            records.pop(write.key, None)
            return
        records[write.key] = bytes(write.value)
        if not known:
            keys.insert(place, write.key)


def _append(seqs: list[int], seq: int) -> None:
    if not seqs or seqs[-1] != seq:
        seqs.append(seq)


class _MemoryTransaction:
    """Reads at once; what it writes is laid down when its work has returned."""

    __slots__ = ("_data", "_next_seq", "seq", "staged")

    is_serial = True

    def __init__(self, namespace: _Namespace, next_seq: int) -> None:
        self._data = namespace
        self._next_seq = next_seq
        self.staged: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        # The last one that is in use when what was staged is laid down.
        self.seq = next_seq - 1

    async def facts(self, ids: Sequence[str]) -> dict[str, StoredFact]:
        facts = self._data.facts
        return {id_: facts[id_] for id_ in ids if id_ in facts}

    async def latest_versions(self, ids: Sequence[str]) -> dict[str, int]:
        archive = self._data.archive
        # A version is archived before a higher one is made, so the last one is the highest.
        return {id_: next(reversed(archive[id_])) for id_ in ids if id_ in archive}

    async def holders(self, singletons: Sequence[str]) -> dict[str, StoredFact]:
        data = self._data
        return {place: data.facts[data.places[place]] for place in singletons if place in data.places}

    async def versions(self, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], StoredFact]:
        found: dict[tuple[str, int], StoredFact] = {}
        for id_, version in wanted:
            current = self._data.facts.get(id_)
            if current is not None and current.version == version:
                found[id_, version] = current
            else:
                found[id_, version] = self._data.archive[id_][version]
        return found

    async def select(self, selection: Selection) -> list[StoredFact]:
        facts = self._data.facts
        end = None if selection.limit is None else min(selection.offset + selection.limit, sys.maxsize)
        candidates, ordered = self._candidates(selection)
        found = (facts[id_] for id_ in candidates if matches(facts[id_], selection))
        if ordered and not selection.order:
            return list(islice(found, selection.offset, end))
        return sort_facts(found, selection.order, selection.decode)[selection.offset : end]

    async def count(self, selection: Selection) -> int:
        facts = self._data.facts
        return sum(matches(facts[id_], selection) for id_ in self._candidates(selection)[0])

    def _candidates(self, selection: Selection) -> tuple[Iterable[str], bool]:
        """The ids of a small set that holds all matches, and whether they are in the order of their ordinals."""
        data = self._data
        if selection.typename is not None and selection.predicate is not None:
            for range_ in selection.predicate.ranges:
                if range_.path in selection.indexed:
                    return self._in_range(selection.typename, range_), False
        if not isinstance(selection.session_id, Unset):
            of_session = data.by_session.get(selection.session_id, {})
            if selection.typename is None or len(of_session) < len(data.by_type.get(selection.typename, ())):
                return of_session, False
        return data.in_order(selection.typename), True

    def _in_range(self, typename: str, range_: Range) -> list[str]:
        values = self._data.by_field.get((typename, range_.path), {})
        if range_.low == range_.high:
            return list(values.get((range_.kind, range_.low), ()))
        return [
            id_
            for (kind, key), ids in values.items()
            if kind == range_.kind
            and (range_.low is None or key >= range_.low)
            and (range_.high is None or key <= range_.high)
            for id_ in ids
        ]

    async def position(self, session_id: str | None) -> Position:
        data = self._data
        head, redo = data.heads.get(session_id, (0, 0))
        return Position(head, redo, data.generation, bool(data.claims))

    async def entries(self, seqs: Sequence[int]) -> dict[int, Entry]:
        entries = self._data.entries
        return {seq: entries[seq] for seq in seqs if seq in entries}

    async def line(self, seq: int, *, above: int = 0, limit: int | None = None) -> list[Entry]:
        found: list[Entry] = []
        while seq > above and (limit is None or len(found) < limit):
            entry = self._data.entries[seq]
            found.append(entry)
            seq = entry.parent
        return found

    async def history(
        self,
        *,
        session_id: str | None | Unset = UNSET,
        fact_id: str | None = None,
        mark: str | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        data = self._data
        seqs: Iterable[int]
        if fact_id is not None:
            seqs = data.touching(fact_id)
        elif mark is not None:
            seqs = reversed(data.by_mark.get(mark, []))
        elif not isinstance(session_id, Unset):
            seqs = reversed(data.by_line.get(session_id, []))
        else:
            seqs = reversed(data.entries)
        entries = (data.entries[seq] for seq in seqs if before is None or seq < before)
        found = (
            entry
            for entry in entries
            if (isinstance(session_id, Unset) or entry.session_id == session_id)
            and (mark is None or entry.mark == mark)
        )
        return list(islice(found, limit))

    async def savepoint(self, session_id: str | None, name: str) -> int | None:
        return self._data.savepoints.get((session_id, name))

    async def savepoints(self, known: Sequence[str | None]) -> list[Savepoint]:
        return [Savepoint(*place, seq) for place, seq in self._data.savepoints.items()]

    async def collections(self) -> list[str]:
        return sorted(name for name, records in self._data.records.items() if records)

    async def record(self, collection: str, key: str, *, is_new: bool = False) -> bytes | None:
        return self._data.records.get(collection, {}).get(key)

    async def records(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        records = self._data.records
        found = ((place, records.get(place[0], {}).get(place[1])) for place in wanted)
        return {place: value for place, value in found if value is not None}

    async def scan(
        self,
        collection: str,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Record]:
        keys = self._data.record_keys.get(collection, [])
        low = 0 if start is None else bisect_left(keys, start)
        high = len(keys) if end is None else bisect_left(keys, end)
        chosen = keys[low:high]
        if reverse:
            chosen.reverse()
        records = self._data.records[collection] if chosen else {}
        return [Record(key, records[key]) for key in chosen[:limit]]

    async def lanes(self) -> list[LaneState]:
        data = self._data
        states = []
        for lane in sorted(data.outbox.keys() | data.lane_leases.keys()):
            deliveries = data.outbox.get(lane, {}).values()
            failing = sum(one.attempts > 0 for one in deliveries)
            owner, expires = data.lane_leases.get(lane, (None, 0.0))
            states.append(LaneState(lane, len(deliveries), next(iter(deliveries), None), failing, owner, expires))
        return states

    async def deliveries(self, lane: Lane, limit: int) -> list[Delivery]:
        return list(islice(self._data.outbox.get(lane, {}).values(), limit))

    async def take_lane(
        self, hooks: Sequence[str], owner: str, now: float, expires: float, *, gone: Sequence[str] = ()
    ) -> Lane | None:
        data = self._data
        waiting = []
        for lane, deliveries in data.outbox.items():
            holder, ends = data.lane_leases.get(lane, (None, 0.0))
            free = holder is None or holder in gone or ends < now
            if free and lane.hook in hooks:
                waiting += [(one.seq, lane) for one in islice((d for d in deliveries.values() if d.due <= now), 1)]
        if not waiting:
            return None
        taken = min(waiting)[1]
        self.staged.append((data.lane_leases.__setitem__, (taken, (owner, expires))))
        return taken

    async def claims(self, keys: Sequence[str] | None = None) -> list[Claim]:
        claims = self._data.claims
        return list(claims.values()) if keys is None else [claims[key] for key in keys if key in claims]

    async def definitions(self) -> dict[str, str]:
        return dict(self._data.definitions)

    async def reindex(
        self, typename: str, compute: Callable[[StoredFact], tuple[str | None, tuple[IndexEntry, ...]]]
    ) -> None:
        data = self._data
        facts = sorted((data.facts[id_] for id_ in data.by_type.get(typename, ())), key=lambda fact: fact.ordinal)
        described = [(fact, *compute(fact)) for fact in facts]
        refuse_shared_places((fact.id, place) for fact, place, _ in described)

        def lay_down() -> None:
            for fact, place, fields in described:
                data.put_in_place_of(fact, fact._replace(singleton=place), fields)

        self.staged.append((lay_down, ()))

    async def write(self, batch: Batch) -> None:
        if batch.dropped is not None:
            held = sum(claim.owner == batch.drop_claims_of for claim in self._data.claims.values())
            if held != batch.dropped:
                raise ClaimsLost
        if batch.settlement is not None:
            holder, _ = self._data.lane_leases.get(batch.settlement.lane, (None, 0.0))
            if holder != batch.settlement.owner:
                raise ClaimsLost
        seq = 0
        if batch.entry is not None:
            seq = batch.entry.seq or self._next_seq
            if batch.entry.seq and seq <= next(reversed(self._data.entries), 0):
                raise taken_seq(seq)
            self.seq = max(seq, self._next_seq - 1)
        batch.seq = seq
        archive = self._data.archive
        changes: list[_Change] = []
        versions: list[ChangedVersions] = []
        touched: list[str] = []
        placed: list[tuple[str, str]] = []
        for place, change in enumerate(batch.changes):
            before, after, fields = change
            if after is None:
                if before is None:
                    continue
                versions.append(ChangedVersions(before.id, before.version, 0))
                changes.append(change)
                touched.append(before.id)
                continue
            fact_id = after.id
            versions.append(ChangedVersions(fact_id, 0 if before is None else before.version, after.version))
            if after.ordinal < 0:
                # _replace takes ten times as long.
                changes.append((before, StoredFact._make((*after[:-1], ordinal(seq, place))), fields))
                if before is not None or fact_id in archive:
                    touched.append(fact_id)
            else:
                changes.append(change)
                touched.append(fact_id)
            if after.singleton is not None:
                placed.append((after.singleton, fact_id))
        if placed:
            self._check_places(placed, {change.fact_id for change in versions})
        entry = None if batch.entry is None else _entry(batch.entry, seq, tuple(versions))
        # No closure: that would be a cycle.
        self.staged.append((_lay_down, (self._data, batch, seq, changes, entry, touched)))

    def _check_places(self, placed: Iterable[tuple[str, str]], leaving: Container[str]) -> None:
        """The uniqueness that a database would enforce by an index, of (place, fact id) pairs.

        Facts whose ids are in ``leaving`` give up the places that they had.
        """
        places = self._data.places
        taken: dict[str, str] = {}
        for place, fact_id in placed:
            other = taken.setdefault(place, fact_id)
            if other == fact_id:
                other = places.get(place, fact_id)
                if other in leaving:
                    continue
            if other != fact_id:
                raise shared_place(place, other, fact_id)


def _entry(new: NewEntry, seq: int, versions: tuple[ChangedVersions, ...]) -> Entry:
    session_id, operation, actor, reason, mark, ts, parent, head, _, _ = new
    return Entry(seq, session_id, parent, seq if head is None else head, operation, actor, reason, mark, ts, versions)


def _lay_down(
    data: _Namespace,
    batch: Batch,
    seq: int,
    changes: Sequence[_Change],
    entry: Entry | None,
    touched: Sequence[str],
) -> None:
    for before, after, _ in changes:
        if before is not None:
            data.archive.setdefault(before.id, {}).setdefault(before.version, before)
            if after is None or after.ordinal != before.ordinal:
                data.take_out(before)
    for before, after, fields in changes:
        if after is None:
            continue
        if before is not None and after.ordinal == before.ordinal:
            data.put_in_place_of(before, after, fields)
        else:
            data.put_in(after, fields)
    if batch.entry is not None and entry is not None:
        data.record_entry(entry, touched)
        data.heads[entry.session_id] = entry.head, batch.entry.redo
    if batch.savepoint is not None:
        data.savepoints[batch.savepoint.session_id, batch.savepoint.name] = batch.savepoint.seq
    for record in batch.records:
        data.put_record(record)
    if batch.definitions:
        data.definitions.update(batch.definitions)
        data.generation += 1
    if batch.drop_claims_of is not None:
        data.claims = {key: claim for key, claim in data.claims.items() if claim.owner != batch.drop_claims_of}
    for claim in batch.claims:
        data.claims[claim.key] = claim
    for lane, change, at in batch.deferred:
        data.outbox[lane][seq, change.fact_id] = Delivery(seq, change, at)
    if batch.settlement is not None:
        data.settle(batch.settlement)


class InMemoryStorage:
    """Storage in memory, for tests, notebooks and short-lived agents.

    May be shared by threads and by several stores. A forked process goes on with a copy of its own.
    """

    is_async = False

    def __init__(self) -> None:
        self._namespaces: dict[str, _Namespace] = defaultdict(_Namespace)
        self._lock = threading.RLock()
        self._seq = 0
        self._closed = False
        tell_of_forks(self)

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self, *, in_child: bool) -> None:
        self._lock.release()

    async def open(self) -> None:
        self._check_open()

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        self._check_open()
        refuse_nesting(self._lock)
        with self._lock:
            return await work(_MemoryTransaction(self._namespaces[namespace], 0))

    async def write(self, namespace: str, work: Work[T]) -> T:
        self._check_open()
        refuse_nesting(self._lock)
        with self._lock:
            tx = _MemoryTransaction(self._namespaces[namespace], self._seq + 1)
            result = await work(tx)
            if tx.staged:
                self._lay_down(tx)
            return result

    async def namespaces(self) -> list[str]:
        self._check_open()
        refuse_nesting(self._lock)
        with self._lock:
            return sorted(name for name, data in self._namespaces.items() if data.has_anything)

    def _lay_down(self, tx: _MemoryTransaction) -> None:
        """Do what was staged, to its end also when Ctrl-C comes meanwhile: nothing in it can fail by itself."""
        interruption: BaseException | None = None
        while True:
            try:
                for step, arguments in tx.staged:
                    step(*arguments)
                self._seq = tx.seq
                break
            except Exception:
                raise
            except BaseException as error:
                interruption = interruption or error
        if interruption is not None:
            raise interruption

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this InMemoryStorage was closed; what it held is gone, make a new one")

    async def aclose(self) -> None:
        self._closed = True
        self._namespaces.clear()

    def close(self) -> None:
        """Forget everything."""
        run(self.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncInMemoryStorage(InMemoryStorage):
    """The same for an :class:`~memstate_core.AsyncMemoryStore`; it never waits."""

    is_async = True

    async def connect(self) -> None:
        """Nothing to connect to; here so that storages can be exchanged."""
        await self.open()

    async def create_tables(self) -> None:
        """Nothing to create; here so that storages can be exchanged."""
        await self.open()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
