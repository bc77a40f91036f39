"""How a plan becomes a fact: one storage transaction, or the five steps when hooks take part.

With hooks, storage decides. *Prepare* computes the changes and lets the hooks embed; *claim* takes the facts in
a short storage transaction, or in the one that plans if there is nothing to embed; *apply* tells the hooks; *decide*
writes facts, journal and head and drops the claims in one storage transaction, which is the commit. When anything
fails, the hooks are given the committed state again; where even that fails the claims stay, and the facts are in doubt
until :mod:`memstate_core.recovery` has healed them. This is two-phase commit with the storage as the last resource, as
in ``transaction`` and ``zope.sqlalchemy``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from memstate_core._bridge import Interruption, Runtime
from memstate_core.changes import Decode, to_change
from memstate_core.delivery import deferred
from memstate_core.errors import HookError
from memstate_core.facts import Change, FactChange, StoredFact
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.owners import owning
from memstate_core.protocols import (
    Batch,
    Claim,
    ClaimsLost,
    Position,
    Storage,
    StorageTransaction,
)
from memstate_core.recovery import Recovery, busy
from memstate_core.telemetry import count, is_observed, step
from memstate_core.telling import apply, is_prepared, prepare

logger = logging.getLogger("memstate.commit")

T = TypeVar("T")


@dataclass(slots=True)
class Plan:
    """What a transaction comes to: the batch to write, where its session stood, and what the caller gets.

    ``ids_are_new`` says that facts without a ``before`` have ids that were just made, which nobody else can have.
    ``moment`` is that of the storage transaction that it was made in.
    """

    position: Position
    result: Any
    session_id: str | None
    batch: Batch
    ids_are_new: bool = False
    moment: object = None

    @property
    def seq(self) -> int:
        """The transaction's, once it has been written; 0 when there was nothing to write."""
        return self.batch.seq

    @property
    def changes(self) -> Sequence[FactChange]:
        return self.batch.changes

    @property
    def is_claimed(self) -> bool:
        """Whether its facts have been claimed for it."""
        return self.batch.drop_claims_of is not None

    @property
    def moves(self) -> bool:
        """Whether it moves the head, and so depends on where the head is."""
        return self.batch.restores

    def claim_keys(self) -> list[str]:
        """The keys that the transaction must own while hooks are told."""
        keys, places = [], []
        for before, after, _ in self.batch.changes:
            keys.append(f"fact:{(after or before).id}")  # type: ignore[union-attr]
            places += [fact.singleton for fact in (before, after) if fact is not None and fact.singleton is not None]
        if places:
            keys += [f"key:{place}" for place in places]
        if self.batch.restores:
            keys.append(self.session_key())
        return list(dict.fromkeys(keys))

    def session_key(self) -> str:
        return "session:" if self.session_id is None else f"session:={self.session_id}"


Planner = Callable[[StorageTransaction], Awaitable[Plan]]
# A hook that takes part, and the changes that it is told of.
Told = tuple[HookAdapter, list[Change]]


class Held(Exception):
    """Another transaction's claims are in the way."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        super().__init__(claims)
        self.claims = claims


class Stale(Exception):
    """The facts or the head moved on between planning and claiming or deciding."""


@dataclass(slots=True)
class Committer:
    """Carries plans out."""

    storage: Storage
    namespace: str
    runtime: Runtime
    hooks: Sequence[HookAdapter]
    deferred_hooks: Sequence[HookAdapter]
    decode: Decode
    recovery: Recovery
    lease: float
    claim_timeout: float

    async def commit(self, planner: Planner, ahead: Plan | None = None) -> Plan:
        """Carry out what ``planner`` returns, planning anew whenever the ground has shifted meanwhile.

        :param ahead: what is to be tried first.
        :raises HookError: a hook failed; everything is as it was, but for ``in_doubt``.
        :raises BusyError: another transaction's claims did not go away in time.
        """
        if not is_observed():
            return await self._carry_out(planner, ahead)
        with step("commit", namespace=self.namespace) as observed:
            plan = await self._carry_out(planner, ahead)
            if plan.batch.entry is not None:
                observed.set(operation=plan.batch.entry.operation.value, changes=len(plan.changes))
                count("changes", len(plan.changes), operation=plan.batch.entry.operation.value)
        return plan

    async def _carry_out(self, planner: Planner, ahead: Plan | None) -> Plan:
        deadline = None
        pause = 0.001
        while True:
            try:
                first, ahead = ahead, None
                plan = await self._try(planner, first)
                if plan is None:
                    continue
                if plan.position.claimed and self.hooks:
                    await self.recovery.heal_in_passing()  # what is claimed may be what a dead process left behind
                return plan
            except Stale:
                continue
            except Held as held:
                if await self.recovery.heal(held.claims):
                    continue
                now = time.monotonic()
                deadline = deadline or now + self.claim_timeout
                if now >= deadline:
                    raise busy(held.claims, self.claim_timeout) from None
                await self.runtime.sleep(min(pause, deadline - now))
                pause = min(pause * 2, 0.05)

    async def _try(self, planner: Planner, ahead: Plan | None) -> Plan | None:
        """None: a hook failed whose place another one has taken, so that it is worth another try."""
        if not self.hooks:
            return (await self._plan(planner, None))[0]
        if ahead is not None and (told := self._told(ahead)):
            return ahead if await self._commit_with_hooks(ahead, told, None) else None
        if self.runtime.is_async:
            # From planning to claiming it may be cancelled, so that these two are not one.
            plan, told = await self._plan(planner, None)
            return plan if not told or await self._commit_with_hooks(plan, told, None) else None
        with owning() as owner:
            plan, told = await self._plan(planner, owner)
            return plan if not told or await self._commit_with_hooks(plan, told, owner) else None

    async def _plan(self, planner: Planner, owner: str | None) -> tuple[Plan, list[Told]]:
        """The plan, and the hooks that take part, with what each is told; without any, the plan has been written.

        Where there is nothing to prepare, the ``owner`` has claimed the facts already.
        """
        claiming = False

        # With hooks this writes no more than claims. But what is read here is read and changed again when it is
        # written: a database has it in the writer's cache, and not in a reader's, which every commit empties.
        async def work(tx: StorageTransaction) -> tuple[Plan, list[Told]]:
            nonlocal claiming
            plan = await planner(tx)
            told = self._told(plan) if self.hooks else []
            if not told:
                if plan.position.claimed:
                    await refuse_held(tx, [*plan.claim_keys(), plan.session_key()])
                if self.deferred_hooks:
                    plan.batch.deferred = deferred(self.deferred_hooks, plan.changes)
                await tx.write(plan.batch)
            elif owner is None or not tx.is_serial or not all(is_prepared(hook, wanted) for hook, wanted in told):
                plan.moment = tx.moment
            else:
                if plan.position.claimed:
                    await refuse_held(tx, [*plan.claim_keys(), plan.session_key()])
                claiming = True
                with step("claim"):
                    await self._write_claims(tx, plan, told, owner)
            return plan, told

        try:
            return await self.storage.write(self.namespace, work)
        except BaseException as error:
            if claiming and owner is not None:
                await self._release(owner, error)
            raise

    async def _commit_with_hooks(self, plan: Plan, told: Sequence[Told], owner: str | None) -> bool:
        """Steps 1 to 5; False: a hook failed whose place another one has taken, so that it is worth another try."""
        try:
            await self._tell_and_decide(plan, told, owner)
        except HookError as error:
            if error.in_doubt or all([await hook.latest(self.runtime) is hook for hook, _ in told]):
                raise
            return False
        return True

    async def _tell_and_decide(self, plan: Plan, told: Sequence[Told], owner: str | None) -> None:
        batches = None if plan.is_claimed else await self._prepared(told)

        async def critical(interruption: Interruption) -> None:
            if owner is not None:
                await self._own_and_decide(plan, told, batches, owner, interruption)
            else:
                with owning() as own:
                    await self._own_and_decide(plan, told, batches, own, interruption)

        await self.runtime.shielded(critical)

    async def _own_and_decide(
        self, plan: Plan, told: Sequence[Told], batches: Sequence[Any] | None, owner: str, interruption: Interruption
    ) -> None:
        started: list[Told] = []
        with self.runtime.keep_alive(lambda: self.recovery.renew(owner), self.lease / 3):
            try:
                if batches is None:
                    batches = await self._prepared(told)
                else:
                    await self._claim(plan, told, owner)
                for one, batch in zip(told, batches, strict=True):
                    started.append(one)
                    hook, wanted = one
                    await apply(self.runtime, hook, batch, len(wanted))
                    interruption.check()
                await self._decide(plan)
            except BaseException as error:
                # Those two of the claim left nothing behind.
                if started or plan.is_claimed or not isinstance(error, Held | Stale):
                    with step("undo"):
                        await self._compensate(plan, owner, started, error)
                raise

    async def _prepared(self, told: Sequence[Told]) -> list[Any]:
        return [await prepare(self.runtime, hook, wanted) for hook, wanted in told]

    def _told(self, plan: Plan) -> list[Told]:
        changes = [to_change(change, self.decode) for change in plan.changes]
        return [(hook, wanted) for hook in self.hooks if (wanted := hook.wanted(changes))]

    async def _claim(self, plan: Plan, told: Sequence[Told], owner: str) -> None:
        async def work(tx: StorageTransaction) -> None:
            await _check_ground(tx, plan)
            await self._write_claims(tx, plan, told, owner)

        with step("claim", again=(Held, Stale)):
            await self.storage.write(self.namespace, work)

    async def _write_claims(self, tx: StorageTransaction, plan: Plan, told: Sequence[Told], owner: str) -> None:
        expires = time.time() + self.lease
        hooks = tuple([hook.name for hook, _ in told])
        claims = [Claim(key, owner, expires, hooks) for key in plan.claim_keys()]
        await tx.write(Batch(claims=claims))
        plan.batch.drop_claims_of, plan.batch.dropped = owner, len(claims)

    async def _decide(self, plan: Plan) -> None:
        async def work(tx: StorageTransaction) -> None:
            batch = plan.batch
            position = await tx.position(plan.session_id)
            if position.generation != plan.position.generation or (plan.moves and position.head != plan.position.head):
                raise Stale
            if batch.entry is not None and batch.entry.parent != position.head and not plan.moves:
                batch.entry = batch.entry._replace(parent=position.head)
            if self.deferred_hooks:
                batch.deferred = deferred(self.deferred_hooks, plan.changes)
            await tx.write(batch)

        with step("decide", again=(Stale,)):
            try:
                await self.storage.write(self.namespace, work)
            except ClaimsLost:
                raise Stale from None

    async def _compensate(self, plan: Plan, owner: str, started: Sequence[Told], error: BaseException) -> None:
        """Give the hooks that were told the committed state again.

        A failure leaves the claims, ended, and is noted on ``error``; an interruption does so too, and goes on.
        """
        failed: dict[str, None] = {}
        ids = [change.fact_id for change in plan.changes]

        async def look(tx: StorageTransaction) -> tuple[Mapping[str, StoredFact], bool]:
            ours = {claim.key for claim in await tx.claims(plan.claim_keys()) if claim.owner == owner}
            return await tx.facts(ids), ours == set(plan.claim_keys())

        try:
            try:
                committed, ours = await self.storage.read(self.namespace, look, snapshot=True)
            except Exception as cleanup:
                error.add_note(f"the committed state could not be read: {cleanup!r}")
                failed.update(dict.fromkeys(ids))
            else:
                for hook, changes in started:
                    if ours:
                        failed.update(dict.fromkeys(await self._bring_back(hook, changes, committed, error)))
                    else:
                        # The lease ended before the transaction did, and somebody else may own the facts by now.
                        failed.update(dict.fromkeys(await self._mend(hook, changes, error)))
        except BaseException as interruption:
            interruption.add_note(f"while this was being undone: {error!r}")
            await self._release(owner, error, healed=False)
            raise
        if isinstance(error, HookError):
            error.in_doubt = tuple(failed)
        if failed:
            count("in_doubt", len(failed))
            logger.warning(
                "facts in doubt after a transaction that failed: %d; hooks %s could not be told what is committed",
                len(failed),
                ", ".join(repr(hook.name) for hook, _ in started),
            )
        await self._release(owner, error, healed=not failed)

    async def _bring_back(
        self, hook: HookAdapter, changes: Sequence[Change], committed: Mapping[str, StoredFact], error: BaseException
    ) -> list[str]:
        """Undo one hook; the ids of the facts for which that failed."""
        hook = await hook.latest(self.runtime)
        back = [
            Change(
                change.fact_id,
                change.after,
                hook.as_committed(
                    change.fact_id,
                    fact.to_fact(self.decode(fact)) if (fact := committed.get(change.fact_id)) else None,
                ).after,
            )
            for change in changes
        ]
        try:
            await apply(self.runtime, hook, await prepare(self.runtime, hook, back), len(back))
        except Exception as cleanup:
            error.add_note(f"hook {hook.name!r} could not be brought back: {cleanup!r}")
            return [change.fact_id for change in changes]
        return []

    async def _mend(self, hook: HookAdapter, changes: Sequence[Change], error: BaseException) -> list[str]:
        """Undo one hook on facts that are not ours any more; the ids of the facts for which that failed."""
        ids = [change.fact_id for change in changes]
        try:
            await self.recovery.mend(await hook.latest(self.runtime), ids)
        except Exception as cleanup:
            error.add_note(f"hook {hook.name!r} could not be brought back: {cleanup!r}")
            return ids
        return []

    async def _release(self, owner: str, error: BaseException, *, healed: bool = True) -> None:
        """Drop the claims, or end their lease, so that the next transaction on the facts may heal them at once."""
        try:
            if healed:
                await self.storage.write(self.namespace, lambda tx: tx.write(Batch(drop_claims_of=owner)))
            else:
                await self.recovery.renew(owner, until=0.0)
        except Exception as cleanup:
            error.add_note(f"the claims could not be ended; they expire by themselves: {cleanup!r}")


async def refuse_held(tx: StorageTransaction, keys: Sequence[str]) -> None:
    """Raise :class:`Held` when any of the keys is claimed."""
    held = await tx.claims(keys)
    if held:
        raise Held(held)


async def _check_ground(tx: StorageTransaction, plan: Plan) -> None:
    """See that the plan can be carried out on what is there now.

    :raises Held: another transaction has claimed what it needs.
    :raises Stale: its facts, places, head or definitions are not what it was made from any more.
    """
    is_same = plan.moment is not None and tx.moment == plan.moment
    position = plan.position if is_same else await tx.position(plan.session_id)
    if position.claimed:
        await refuse_held(tx, [*plan.claim_keys(), plan.session_key()])
    if is_same:
        return
    if position.generation != plan.position.generation or (plan.moves and position.head != plan.position.head):
        raise Stale
    plan.position = position
    known = [change for change in plan.changes if change.before is not None or not plan.ids_are_new]
    if known:
        now = await tx.facts([change.fact_id for change in known])
        for change in known:
            fact = now.get(change.fact_id)
            if (fact.version if fact else 0) != (change.before.version if change.before else 0):
                raise Stale
        if not plan.moves:
            # A fact that was changed and rolled back meanwhile is as it was, but its next version number is used.
            latest = await tx.latest_versions([change.fact_id for change in known])
            if any(change.after and change.after.version <= latest.get(change.fact_id, 0) for change in known):
                raise Stale
    places = [change.after.singleton for change in plan.changes if change.after and change.after.singleton]
    if places:
        ids = {change.fact_id for change in plan.changes}
        if any(holder.id not in ids for holder in (await tx.holders(places)).values()):
            raise Stale
