"""Deferred delivery: what commits put into the outbox is brought to the hooks afterwards, by any number of workers.

All changes of one fact go through one lane of the outbox, and a lane is leased to one worker at a time, so a hook is
told of each fact's changes in order. A worker that dies has its lane taken over and delivered again: at least once,
which idempotent hooks turn into exactly once. What fails is tried again later, and holds up nothing but its own fact.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from memstate_core._bridge import Interruption, Runtime
from memstate_core.changes import Decode, Images
from memstate_core.facts import Change, ChangedVersions, Fact, FactChange, StoredFact
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.owners import is_gone, owning
from memstate_core.protocols import (
    Batch,
    ClaimsLost,
    Deferred,
    Delivery,
    Lane,
    LaneState,
    Settlement,
    Storage,
    StorageTransaction,
    lane_of,
)
from memstate_core.recovery import Recovery
from memstate_core.telemetry import step

logger = logging.getLogger("memstate.delivery")

# So many changes are brought to a hook at a time.
BATCH: Final = 100
# So much is kept of what a hook failed with, in characters.
_ERROR_LENGTH: Final = 1000
# After so many failures in a row it is the hook that is down, and not a fact that it cannot take.
_DOWN: Final = 3
_FIRST_PAUSE: Final = 0.5  # seconds; doubled at every failure
_LONGEST_PAUSE: Final = 300.0


class Lag(NamedTuple):
    """How far a hook is behind: changes still to be delivered, and the age of the oldest in seconds (0: none).

    ``failing`` of them have failed before; ``error`` is what the oldest one failed with, if it did.
    """

    hook: str
    pending: int = 0
    failing: int = 0
    oldest: float = 0.0
    error: str | None = None


class Delivered(NamedTuple):
    """What one step of a worker came to: changes delivered, and changes to be tried again later."""

    hook: str
    delivered: int
    postponed: int


def deferred(hooks: Iterable[HookAdapter], changes: Sequence[FactChange]) -> list[Deferred]:
    """What goes into the outbox for a transaction."""
    now = time.time()
    return [
        Deferred(lane_of(hook.name, id_), ChangedVersions(id_, _version(before), _version(after)), now)
        for hook in hooks
        for before, after, _ in changes
        for id_, typename in [((after or before).id, (after or before).type)]  # type: ignore[union-attr]
        if hook.wants(typename)
    ]


def _version(fact: StoredFact | None) -> int:
    return 0 if fact is None else fact.version


@dataclass(slots=True)
class Group:
    """Successive deliveries of one fact, with the versions that they speak of."""

    fact_id: str
    deliveries: list[Delivery]
    images: Images


@dataclass(slots=True)
class Deliverer:
    """Delivery for one store's deferred hooks."""

    storage: Storage
    namespace: str
    runtime: Runtime
    decode: Decode
    recovery: Recovery
    lease: float
    hooks: list[HookAdapter] = field(default_factory=list)

    async def step(self, limit: int = BATCH) -> Delivered | None:
        """Take a lane and deliver up to ``limit`` changes of it; None: nothing is due that nobody else delivers."""

        async def critical(interruption: Interruption) -> Delivered | None:
            with owning() as owner:
                lane = await self._take(owner)
                if lane is None:
                    return None
                with self.runtime.keep_alive(lambda: self._settle(lane, owner, renew=True), self.lease / 3):
                    try:
                        return await self._deliver(lane, owner, limit, interruption)
                    except BaseException as error:
                        await self._let_go(lane, owner, error)
                        raise

        return await self.runtime.shielded(critical)

    async def drain(self, limit: int | None) -> int:
        """Deliver what is due now, up to about ``limit`` changes; returns how many were delivered."""
        delivered = 0
        while limit is None or delivered < limit:
            step = await self.step(BATCH if limit is None else min(BATCH, limit - delivered))
            if step is None:
                break
            delivered += step.delivered
        return delivered

    async def lag(self) -> list[Lag]:
        """Of every deferred hook, and of every other name in the outbox."""
        states = await self.storage.read(self.namespace, lambda tx: tx.lanes(), snapshot=True)
        lags = {hook.name: Lag(hook.name) for hook in self.hooks}
        now = time.time()
        for state in states:
            lag = lags.get(state.lane.hook, Lag(state.lane.hook))
            oldest = state.oldest
            lags[state.lane.hook] = Lag(
                state.lane.hook,
                lag.pending + state.pending,
                lag.failing + state.failing,
                max(lag.oldest, now - oldest.at if oldest else 0.0),
                lag.error or (oldest.error if oldest else None),
            )
        return list(lags.values())

    async def _take(self, owner: str) -> Lane | None:
        names = [hook.name for hook in self.hooks]

        async def take(gone: Sequence[str] = ()) -> Lane | None:
            now = time.time()
            return await self.storage.write(
                self.namespace, lambda tx: tx.take_lane(names, owner, now, now + self.lease, gone=gone)
            )

        lane = await take()
        if lane is None:
            states = await self.storage.read(self.namespace, lambda tx: tx.lanes())
            gone = [state.owner for state in states if _is_abandoned(state)]
            lane = await take([name for name in gone if name]) if gone else None
        return lane

    async def _deliver(self, lane: Lane, owner: str, limit: int, interruption: Interruption) -> Delivered:
        hook = next(hook for hook in self.hooks if hook.name == lane.hook)
        groups, postponed = await self._due(lane, limit)
        delivered: list[Delivery] = []
        if groups:
            delivered, failed = await self._tell_each(hook, groups, interruption)
            postponed += failed
        try:
            await self._settle(lane, owner, delivered, postponed)
        except ClaimsLost:
            # The lease ended before we did, and somebody else may have told the hook of something newer meanwhile.
            await self.recovery.mend(hook, [group.fact_id for group in groups])
        return Delivered(hook.name, len(delivered), len(postponed))

    async def _tell_each(
        self, hook: HookAdapter, groups: Sequence[Group], interruption: Interruption
    ) -> tuple[list[Delivery], list[Delivery]]:
        """Tell a hook of all at once, as a commit would, or, when it fails, of each fact alone; returns what was
        delivered and what is to be tried again.
        """
        error = await self._tell(hook, groups)
        if error is None:
            return [one for group in groups for one in group.deliveries], []
        delivered: list[Delivery] = []
        postponed: list[Delivery] = []
        failures = 0
        for place, group in enumerate(groups):
            if len(groups) > 1:
                error = await self._tell(hook, [group])
            if error is None:
                delivered += group.deliveries
                failures = 0
                continue
            failures += 1
            down = failures == _DOWN
            for one in groups[place:] if down else [group]:
                postponed += _later(one, error)
            logger.warning("hook %r could not be told of a change: %r; it is tried again", hook.name, error)
            if down or interruption.pending is not None:
                break
        return delivered, postponed

    async def _due(self, lane: Lane, limit: int) -> tuple[list[Group], list[Delivery]]:
        """What to deliver now, by fact, and what must wait behind an earlier change of its fact."""
        now = time.time()

        async def work(tx: StorageTransaction) -> tuple[list[Delivery], list[Delivery], Images]:
            wanted = limit
            while True:
                found = await tx.deliveries(lane, wanted)
                due, waiting = _sorted_out(found, now, limit)
                if len(due) == limit or len(found) < wanted:
                    break
                wanted *= 4  # what is not due yet holds up nothing that comes after it
            versions = {(one.change.fact_id, version) for one in due for version in one.change[1:] if version}
            return due, waiting, await tx.versions(list(versions))

        due, waiting, images = await self.storage.read(self.namespace, work, snapshot=True)
        groups: dict[str, Group] = {}
        for one in due:
            fact_id = one.change.fact_id
            groups.setdefault(fact_id, Group(fact_id, [], images)).deliveries.append(one)
        return list(groups.values()), waiting

    async def _tell(self, hook: HookAdapter, groups: Sequence[Group]) -> Exception | None:
        """Bring changes to a hook; returns what it failed with, or what a schema's ``migrate`` did."""
        try:
            changes = [change for group in groups for change in hook.in_a_row(self._changes(group))]
            batch: Any = changes
            if hook.prepare:
                with step("prepare", hook=hook.name, changes=len(changes)):
                    batch = await self.runtime.call(hook.prepare, changes)
            with step("apply", hook=hook.name, changes=len(changes)):
                await self.runtime.call(hook.apply, batch)
        except Exception as error:
            return error
        return None

    def _changes(self, group: Group) -> list[Change]:
        def fact(version: int) -> Fact | None:
            image = group.images.get((group.fact_id, version))
            return None if image is None else image.to_fact(self.decode(image))

        return [Change(group.fact_id, fact(one.change.before), fact(one.change.after)) for one in group.deliveries]

    async def _settle(
        self,
        lane: Lane,
        owner: str,
        delivered: Sequence[Delivery] = (),
        postponed: Sequence[Delivery] = (),
        *,
        renew: bool = False,
    ) -> None:
        """Write what came of it and let the lane go, or ``renew`` its lease."""
        expires = time.time() + self.lease if renew else 0.0
        settlement = Settlement(lane, owner, expires, delivered, postponed)
        await self.storage.write(self.namespace, lambda tx: tx.write(Batch(settlement=settlement)))

    async def _let_go(self, lane: Lane, owner: str, error: BaseException) -> None:
        try:
            await self._settle(lane, owner)
        except Exception as cleanup:
            error.add_note(f"lane {lane.number} of {lane.hook!r} could not be let go; its lease ends: {cleanup!r}")


def _sorted_out(found: Sequence[Delivery], now: float, limit: int) -> tuple[list[Delivery], list[Delivery]]:
    """Up to ``limit`` deliveries that are due, and those that must wait as long as an earlier one of their fact."""
    due: list[Delivery] = []
    waiting: list[Delivery] = []
    waits: dict[str, float] = {}
    for one in found:
        fact_id = one.change.fact_id
        if one.due > now or fact_id in waits:
            until = waits.setdefault(fact_id, one.due)
            if one.due < until:
                waiting.append(one._replace(due=until))
        elif len(due) < limit:
            due.append(one)
    return due, waiting


def _is_abandoned(state: LaneState) -> bool:
    return state.owner is not None and is_gone(state.owner)


def _later(group: Group, error: Exception) -> list[Delivery]:
    """The deliveries of a fact that its hook could not be told of, to be tried again after a pause that grows."""
    first, *rest = group.deliveries
    pause = min(_FIRST_PAUSE * 2 ** min(first.attempts, 16), _LONGEST_PAUSE) * random.uniform(0.75, 1.25)
    due = time.time() + pause
    failed = first._replace(attempts=first.attempts + 1, due=due, error=_text_of(error))
    return [failed, *(one._replace(due=due) for one in rest)]


def _text_of(error: Exception) -> str:
    """What every storage can keep of an error, which may say anything."""
    text = f"{type(error).__name__}: {error}"[:_ERROR_LENGTH]
    return text.encode(errors="replace").decode().replace("\0", "?")
