"""One transaction on one namespace in Redis: the storage protocol in scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from memstate_core.facts import IndexEntry, StoredFact
from memstate_core.protocols import Batch, Delivery, Lane, LaneState, Selection
from memstate_core.storages._places import refuse_shared_places
from memstate_core.storages._redis import outbox, scripts
from memstate_core.storages._redis.asking import Server, encoded
from memstate_core.storages._redis.journal import JournalReading
from memstate_core.storages._redis.keys import lane_key, number_key, span
from memstate_core.storages._redis.known import Known
from memstate_core.storages._redis.records import RecordReading
from memstate_core.storages._redis.values import fields_text, place_text


class RedisTransaction(JournalReading, RecordReading):
    """Reads, and keeps the batch for the storage to write when the work has returned."""

    is_serial = False  # of the ranges that were read, only what is in them is looked at again
    moment = None

    def __init__(self, server: Server, known: Known, **options: bool) -> None:
        super().__init__(server, known, **options)
        self.batch: Batch | None = None
        self.described: list[tuple[str, str, str]] = []
        self.lease: tuple[str, str, str] | None = None

    # The outbox

    async def lanes(self) -> list[LaneState]:
        keys = self._keys
        (answer,) = await self._ask(scripts.WHOLE, (keys.meta, keys.lanes))
        used = sorted(outbox.lane_of_key(name.decode()) for name in answer[::2])
        states = await self._ask(
            outbox.STATES,
            (keys.meta, keys.index, keys.outbox, keys.lanes, *map(keys.stream, used)),
            *[lane_key(lane).encode() for lane in used],
        )
        found = [outbox.state_of(lane, state) for lane, state in zip(used, states, strict=True)]
        return [state for state in found if state is not None]

    async def deliveries(self, lane: Lane, limit: int) -> list[Delivery]:
        keys = self._keys
        fresh, postponed = await self._ask(
            outbox.DELIVERIES,
            (keys.meta, keys.index, keys.outbox, keys.stream(lane)),
            *span("q", lane_key(lane)),
            limit,
        )
        return outbox.deliveries_of(fresh, postponed)[:limit]

    async def take_lane(
        self, hooks: Sequence[str], owner: str, now: float, expires: float, *, gone: Sequence[str] = ()
    ) -> Lane | None:
        keys = self._keys
        lanes = outbox.all_lanes(hooks)
        found, lease = await self._ask(
            outbox.FREE,
            (keys.meta, keys.index, keys.lanes, *map(keys.stream, lanes)),
            repr(now),
            number_key(now),
            len(gone),
            *encoded(gone),
            *[lane_key(lane).encode() for lane in lanes],
        )
        if not found:
            return None
        taken: Lane = lanes[found - 1]
        self.lease = lane_key(taken), lease.decode(), outbox.lease_text(owner, expires)
        return taken

    # Writing

    async def reindex(
        self, typename: str, compute: Callable[[StoredFact], tuple[str | None, tuple[IndexEntry, ...]]]
    ) -> None:
        facts = await self.select(Selection(decode=_never, typename=typename))
        described = [(fact, *compute(fact)) for fact in facts]
        refuse_shared_places((fact.id, place) for fact, place, _ in described)
        self.described += [(fact.id, place_text(place), fields_text(fields)) for fact, place, fields in described]

    async def write(self, batch: Batch) -> None:
        self.batch = batch


def _never(fact: StoredFact) -> dict[str, Any]:
    raise AssertionError("a selection by type decodes nothing")
