"""One transaction on a namespace in memory: the storage protocol on plain dictionaries."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice
from typing import Any

from memstate_core.facts import UNSET, ChangedVersions, Entry, IndexEntry, StoredFact, Unset
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
    Savepoint,
    Selection,
)
from memstate_core.storages._memory.tables import Change, Tables, lay_down
from memstate_core.storages._ordinals import ordinal, taken_seq
from memstate_core.storages._places import refuse_shared_places, shared_place


class MemoryTransaction:
    """Reads at once; what it writes is laid down when its work has returned."""

    __slots__ = ("_data", "_next_seq", "seq", "staged")

    is_serial = True
    moment = None

    def __init__(self, namespace: Tables, next_seq: int) -> None:
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

        def lay_down_again() -> None:
            for fact, place, fields in described:
                data.put_in_place_of(fact, fact._replace(singleton=place), fields)

        self.staged.append((lay_down_again, ()))

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
        changes: list[Change] = []
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
        self.staged.append((lay_down, (self._data, batch, seq, changes, entry, touched)))

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
