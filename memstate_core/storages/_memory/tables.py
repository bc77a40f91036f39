"""What a namespace in memory is made of, and how it changes."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from memstate_core.facts import Entry, IndexEntry, StoredFact
from memstate_core.protocols import Batch, Claim, Delivery, Lane, RecordWrite, Settlement
from memstate_core.storages._ordinals import transaction_of

Ids = dict[str, None]  # an ordered set
Change = tuple[StoredFact | None, StoredFact | None, tuple[IndexEntry, ...]]

_FEW = 64


class Tables:
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


def lay_down(
    data: Tables,
    batch: Batch,
    seq: int,
    changes: Sequence[Change],
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
