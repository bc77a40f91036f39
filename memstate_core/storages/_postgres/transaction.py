"""One transaction that writes on PostgreSQL: what it reads, it relies on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic_core import to_json

from memstate_core.facts import IndexEntry, StoredFact
from memstate_core.filters import ABSENT
from memstate_core.protocols import Batch, Claim, Lane, Position, Selection
from memstate_core.storages._known_records import KnownRecords, Place
from memstate_core.storages._places import refuse_shared_places
from memstate_core.storages._postgres import outbox
from memstate_core.storages._postgres import statements as sql
from memstate_core.storages._postgres.fact_writes import (
    CLEAR_FIELDS,
    CLEAR_PLACES,
    SET_FIELDS,
    SET_PLACES,
    field_key,
    numeric,
)
from memstate_core.storages._postgres.parts import Ground, as_sent
from memstate_core.storages._postgres.ports import Rows
from memstate_core.storages._postgres.positions import Positions
from memstate_core.storages._postgres.reading import WIDTH, Ask, ReadTransaction, fact_of
from memstate_core.storages._postgres.tables import sent


class Contradiction(Exception):
    """One transaction was told of two generations of the definitions: by a wrong guess, or at different moments."""


class NeedsExclusiveRight(Exception):
    """The definitions are to be changed, for which all other writers have to wait."""


class WriteTransaction(ReadTransaction):
    """One that notes what it has seen, so that its batch is written only where that still holds.

    The batch is kept until the work has returned. ``guessed`` says that something was not read but known from before,
    and ``guessed_records`` which records. ``begin`` begins a real transaction, for what cannot be put off.
    """

    def __init__(
        self,
        ask: Ask,
        namespace: str,
        prefix: str,
        *,
        documents: bool,
        guesses: Positions | None,
        known_records: KnownRecords | None,
        exclusive: bool,
        begin: Callable[[], Awaitable[Any]],
    ) -> None:
        super().__init__(ask, namespace, prefix, documents=documents)
        self.ground = Ground()
        self.batch: Batch | None = None
        self.guessed = False
        self.guessed_records: set[Place] = set()
        self._begin = begin
        self._guesses = guesses
        self._known_records = known_records
        self._exclusive = exclusive
        self._latest: dict[str, int] = {}

    async def facts(self, ids: Sequence[str]) -> dict[str, StoredFact]:
        found: dict[str, StoredFact] = {}
        if len(ids) == 1:
            (row,) = await self._ask(sql.FACT_TO_WRITE, id=ids[0])
            stamp, latest = row[WIDTH:]
            self._latest[ids[0]] = latest or 0
            self._saw(ids[0], stamp)
            if stamp is not None:
                found[ids[0]] = fact_of(row)
        elif ids:
            stamps: dict[str, int] = {}
            for row in await self._ask(sql.FACTS_TO_WRITE, ids=list(ids)):
                found[row[0]] = fact_of(row)
                stamps[row[0]], self._latest[row[0]] = row[WIDTH:]
            for id_ in ids:
                self._saw(id_, stamps.get(id_))
        return found

    async def holders(self, singletons: Sequence[str]) -> dict[str, StoredFact]:
        found: dict[str, StoredFact] = {}
        self.ground.places.update(singletons)
        rows: Rows = ()
        if len(singletons) == 1:
            rows = await self._ask(sql.HOLDER_TO_WRITE, place=singletons[0])
        elif singletons:
            rows = await self._ask(sql.HOLDERS_TO_WRITE, places=list(singletons))
        for row in rows:
            stamp, latest = row[WIDTH:]
            fact = fact_of(row)
            self._saw(fact.id, stamp)
            self._latest[fact.id] = latest
            assert fact.singleton is not None
            found[fact.singleton] = fact
        return found

    def _saw(self, fact_id: str, stamp: int | None) -> None:
        """What was seen first counts: if a fact was found otherwise since, its transaction must run again."""
        self.ground.facts.setdefault(fact_id, self.ground.selected.get(fact_id, stamp))

    async def latest_versions(self, ids: Sequence[str]) -> dict[str, int]:
        unknown = [id_ for id_ in ids if id_ not in self._latest]
        found = await super().latest_versions(unknown)
        self._latest.update({id_: found.get(id_, 0) for id_ in unknown})
        return {id_: self._latest[id_] for id_ in ids if self._latest[id_]}

    async def select(self, selection: Selection) -> list[StoredFact]:
        rows = await self._selected(selection)
        selected, latest = self.ground.selected, self._latest
        for row in rows:
            selected.setdefault(row[0], row[WIDTH])
            latest[row[0]] = row[WIDTH + 1]
        return [fact_of(row) for row in rows]

    async def position(self, session_id: str | None) -> Position:
        known = self.ground.positions.get(session_id)
        if known is not None:
            return known[0]
        seen = self.ground.positions
        generations = {position.generation for position, _ in seen.values()} if seen else set()
        if self._guesses is not None:
            known = self._guesses.guess(self._name, session_id)
            if known is not None and generations.difference({known[0].generation}):
                known = None
            self.guessed = self.guessed or known is not None
        if known is None:
            known = await self.real_position(session_id)
        if generations.difference({known[0].generation}):
            raise Contradiction
        self.ground.positions[session_id] = known
        return known[0]

    async def record(self, collection: str, key: str, *, is_new: bool = False) -> bytes | None:
        place = collection, key
        guesses = self._guessed(place, are_new=is_new)
        value = await super().record(collection, key) if guesses is None else guesses[place]
        self.ground.records.setdefault(place, value)
        return value

    def _guessed(self, *places: Place, are_new: bool = False) -> dict[Place, bytes | None] | None:
        """What the records are known as, if all of them are."""
        known = self._known_records
        guesses = known.guess(self._name, places, are_new=are_new) if known is not None and places else None
        if guesses is not None:
            self.guessed = True
            self.guessed_records.update(guesses)
        return guesses

    async def real_records(self, places: Sequence[Place]) -> dict[Place, bytes | None]:
        """What the records are that may have been guessed."""
        found = await super().records(places)
        return {place: found.get(place) for place in places}

    async def records(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        guesses = self._guessed(*wanted)
        if guesses is None:
            found = await super().records(wanted)
        else:
            found = {place: value for place, value in guesses.items() if value is not None}
        for place in wanted:
            self.ground.records.setdefault(place, found.get(place))
        return found

    async def claims(self, keys: Sequence[str] | None = None) -> list[Claim]:
        found = await super().claims(keys)
        by_key: dict[str, Claim | None] = {claim.key: claim for claim in found}
        for key in by_key if keys is None else keys:
            self.ground.claims.setdefault(key, by_key.get(key))
        return found

    async def take_lane(
        self, hooks: Sequence[str], owner: str, now: float, expires: float, *, gone: Sequence[str] = ()
    ) -> Lane | None:
        await self._ask_text(sent(outbox.MAKE_LANES, self._prefix), (self._namespace, as_sent(list(hooks))))
        await self._begin()
        values = (self._namespace, as_sent(list(hooks)), owner, now, expires, as_sent(list(gone)))
        rows = await self._ask_text(sent(outbox.TAKE_LANE, self._prefix), values)
        return Lane(*rows[0]) if rows else None

    async def reindex(
        self, typename: str, compute: Callable[[StoredFact], tuple[str | None, tuple[IndexEntry, ...]]]
    ) -> None:
        if not self._exclusive:
            raise NeedsExclusiveRight
        facts = [StoredFact._make(row) for row in await self._ask(sql.FACTS_OF_TYPE, type=typename)]
        described = [(fact, *compute(fact)) for fact in facts]
        refuse_shared_places((fact.id, place) for fact, place, _ in described)
        for text in (CLEAR_PLACES, CLEAR_FIELDS):
            await self._change(text, typename)
        await self._change(
            SET_PLACES, [{"id": fact.id, "singleton": place} for fact, place, _ in described if place is not None]
        )
        fields = []
        for fact, _, entries in described:
            for path, kind, value in entries:
                if kind == ABSENT:
                    continue
                is_text = isinstance(value, str)
                fields.append(
                    {
                        "ordinal": fact.ordinal,
                        "field": field_key(self._namespace, typename, path),
                        "kind": kind,
                        "number": None if is_text else numeric(value),  # type: ignore[arg-type]
                        "text": value if is_text else None,
                    }
                )
        await self._change(SET_FIELDS, fields)

    async def _change(self, text: str, value: Any) -> None:
        if value:
            given = value if isinstance(value, str) else to_json(value).decode()
            await self._ask_text(sent(text, self._prefix), (self._namespace, given))

    async def write(self, batch: Batch) -> None:
        if batch.definitions and not self._exclusive:
            raise NeedsExclusiveRight
        self.batch = batch
