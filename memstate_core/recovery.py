"""Finish what is in doubt, compare indexes with storage, and mend or rebuild them."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from memstate_core._bridge import Interruption, Runtime
from memstate_core.changes import Decode
from memstate_core.errors import BusyError, HookError
from memstate_core.facts import StoredFact
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.owners import is_alive, is_gone, owning
from memstate_core.protocols import Batch, Claim, Selection, Storage, StorageTransaction

logger = logging.getLogger("memstate")

_PAUSE: Final = 1.0  # seconds

# So many facts are given to a hook at a time when an index is mended or rebuilt.
_CHUNK = 500


class Recovered(NamedTuple):
    """What :meth:`~memstate_core.MemoryStore.recover` did: ids of facts healed, and of those still in doubt.

    A fact stays in doubt when one of the hooks that were told of it is not among the store's (``missing_hooks`` names
    them), and is not counted while the transaction that changes it is alive.
    """

    healed: tuple[str, ...] = ()
    in_doubt: tuple[str, ...] = ()
    missing_hooks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Drift:
    """How an index differs from storage, by fact id, for each hook that can be compared.

    ``missing`` are facts that the index lacks, ``stale`` those it has in another version, ``orphaned`` entries
    whose fact does not exist or has no place in the index. Facts that a transaction is changing right now are left out.
    """

    hook: str
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    orphaned: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.missing) + len(self.stale) + len(self.orphaned)


@dataclass(slots=True)
class Recovery:
    """Healing for one store."""

    storage: Storage
    namespace: str
    runtime: Runtime
    decode: Decode
    lease: float
    claim_timeout: float
    _by_name: dict[str, HookAdapter] = field(default_factory=dict)
    _pause_ends: float = 0.0

    def add(self, hook: HookAdapter) -> None:
        """Take a hook in; one whose name is taken gets a number, the same at every start."""
        name, number = hook.name, 1
        while hook.name in self._by_name:
            number += 1
            hook.name = f"{name}#{number}"
        self._by_name[hook.name] = hook

    async def heal_abandoned(self) -> Recovered:
        """Heal what transactions left in doubt whose lease has ended or whose process is gone.

        :raises HookError: a hook failed again; the facts stay in doubt.
        """
        claims = await self.storage.read(self.namespace, lambda tx: tx.claims())
        abandoned = [claim for claim in claims if _abandoned(claim)]
        mine, missing = self._split(abandoned)
        if mine:
            await self._heal(mine)
        return Recovered(_fact_ids(mine), _fact_ids(missing), tuple(self._unknown_hooks(missing)))

    async def heal_in_passing(self) -> None:
        """Heal what was left in doubt while something else is done, which must not fail for it.

        A hook that fails is left alone for a while: whoever needs the facts themselves tries again, and is told.
        """
        if time.monotonic() < self._pause_ends:
            return
        try:
            await self.heal_abandoned()
        except HookError:
            self._pause_ends = time.monotonic() + _PAUSE
            logger.warning("facts are still in doubt", exc_info=True)

    async def heal(self, claims: Sequence[Claim]) -> bool:
        """Heal those claims that are abandoned; whether there were any, so that their keys are free now."""
        abandoned, _ = self._split([claim for claim in claims if _abandoned(claim)])
        if not abandoned:
            return False
        owners = {claim.owner for claim in abandoned}
        everything = await self.storage.read(self.namespace, lambda tx: tx.claims())
        return await self._heal([claim for claim in everything if claim.owner in owners])

    def _split(self, claims: Sequence[Claim]) -> tuple[list[Claim], list[Claim]]:
        """Claims whose hooks this store has, and the others."""
        mine = [claim for claim in claims if not self._unknown_hooks([claim])]
        return mine, [claim for claim in claims if self._unknown_hooks([claim])]

    def _unknown_hooks(self, claims: Iterable[Claim]) -> list[str]:
        return list(dict.fromkeys(name for claim in claims for name in claim.hooks if name not in self._by_name))

    async def _heal(self, claims: Sequence[Claim]) -> bool:
        """Take the claims over, tell the hooks the committed state, drop the claims; whether any were ours to take."""
        keys = [claim.key for claim in claims]

        async def take_over(tx: StorageTransaction, owner: str) -> list[Claim]:
            expires = time.time() + self.lease
            held = [claim for claim in await tx.claims(keys) if _abandoned(claim)]
            if held:
                await tx.write(Batch(claims=[claim._replace(owner=owner, expires=expires) for claim in held]))
            return held

        async def heal(_: Interruption) -> bool:
            with owning() as owner, self.runtime.keep_alive(lambda: self.renew(owner), self.lease / 3):
                taken = await self.storage.write(self.namespace, lambda tx: take_over(tx, owner))
                told: dict[str, list[str]] = defaultdict(list)
                for claim in taken:
                    for name in claim.hooks:
                        told[name].extend(_fact_ids([claim]))
                await self._bring_back_and_let_go(
                    owner, [(self._by_name[name], some) for name, ids in told.items() for some in _chunks(ids)]
                )
                return bool(taken)

        return await self.runtime.shielded(heal)

    async def renew(self, owner: str, *, until: float | None = None) -> None:
        """Renew an owner's lease; ``until`` (Unix time) another end than the usual one."""
        if until is None and not is_alive(owner):
            return  # interrupted on its way out

        async def work(tx: StorageTransaction) -> None:
            expires = time.time() + self.lease if until is None else until
            mine = [claim._replace(expires=expires) for claim in await tx.claims() if claim.owner == owner]
            if mine:
                await tx.write(Batch(claims=mine))

        await self.storage.write(self.namespace, work)

    async def _bring_back_and_let_go(self, owner: str, work: Sequence[tuple[HookAdapter, Sequence[str]]]) -> None:
        """Give hooks the committed state of facts that we own; what fails stays claimed, its lease ended."""
        try:
            for hook, fact_ids in work:
                await self._bring_back(hook, fact_ids)
        except BaseException:
            await self.renew(owner, until=0.0)
            raise
        await self.storage.write(self.namespace, lambda tx: tx.write(Batch(drop_claims_of=owner)))

    async def _bring_back(self, hook: HookAdapter, fact_ids: Sequence[str]) -> None:
        """Give a hook the committed state of facts that are claimed by us."""
        facts = await self.storage.read(self.namespace, lambda tx: tx.facts(fact_ids))
        changes = [
            hook.as_committed(id_, fact.to_fact(self.decode(fact)) if (fact := facts.get(id_)) else None)
            for id_ in fact_ids
        ]
        try:
            batch = await self.runtime.call(hook.prepare, changes) if hook.prepare else changes
            await self.runtime.call(hook.apply, batch)
        except Exception as error:
            raise HookError(
                f"hook {hook.name!r} could not be given the committed state of {len(changes)} "
                f"fact{'s' * (len(changes) != 1)}: {type(error).__name__}: {error}; "
                "they stay in doubt, call recover() when it works again",
                hook=hook.name,
                operation="recover",
                in_doubt=fact_ids,
            ) from error

    async def mend(self, hook: HookAdapter, fact_ids: Sequence[str]) -> None:
        """Claim facts, give a hook their committed state, and let them go; what others hold is waited for.

        :raises BusyError: another transaction held one of the facts for too long.
        """
        for some in _chunks(fact_ids):
            waiting = list(some)
            deadline = time.monotonic() + self.claim_timeout
            while waiting:
                free, held = await self._mend_free(hook, waiting)
                if free:
                    deadline = time.monotonic() + self.claim_timeout
                elif not await self.heal(held):
                    if time.monotonic() > deadline:
                        raise busy(held, self.claim_timeout)
                    await self.runtime.sleep(0.01)
                done = set(free)
                waiting = [id_ for id_ in waiting if id_ not in done]

    async def _mend_free(self, hook: HookAdapter, fact_ids: Sequence[str]) -> tuple[list[str], list[Claim]]:
        """Mend what nobody holds; returns those ids, and the claims on the others."""

        async def mend(_: Interruption) -> tuple[list[str], list[Claim]]:
            with owning() as owner, self.runtime.keep_alive(lambda: self.renew(owner), self.lease / 3):
                free, held = await self._claim_free(owner, hook, fact_ids)
                if free:
                    await self._bring_back_and_let_go(owner, [(hook, free)])
                return free, held

        return await self.runtime.shielded(mend)

    async def _claim_free(
        self, owner: str, hook: HookAdapter, fact_ids: Sequence[str]
    ) -> tuple[list[str], list[Claim]]:
        async def work(tx: StorageTransaction) -> tuple[list[str], list[Claim]]:
            held = await tx.claims([f"fact:{id_}" for id_ in fact_ids])
            taken = {claim.key for claim in held}
            free = [id_ for id_ in fact_ids if f"fact:{id_}" not in taken]
            expires = time.time() + self.lease
            await tx.write(Batch(claims=[Claim(f"fact:{id_}", owner, expires, (hook.name,)) for id_ in free]))
            return free, held

        return await self.storage.write(self.namespace, work)

    async def verify(self) -> list[Drift]:
        """Compare each index that can be scanned with storage.

        :raises HookError: a hook failed to scan or to say what belongs into its index.
        """
        return [await self._compare(hook) for hook in self._by_name.values() if hook.scan is not None]

    async def _compare(self, hook: HookAdapter) -> Drift:
        assert hook.scan is not None

        async def moment(tx: StorageTransaction) -> tuple[int, set[str]]:
            newest, moving = await _moment(tx)
            return newest, moving | (await _undelivered(tx, hook.name) if hook.deferred else set())

        newest, moving = await self.storage.read(self.namespace, moment, snapshot=True)
        try:
            indexed: dict[str, int] = dict(await self.runtime.call(hook.scan))
        except Exception as error:
            raise HookError(
                f"hook {hook.name!r} could not be scanned: {error}", hook=hook.name, operation="scan"
            ) from error

        async def look(tx: StorageTransaction) -> tuple[list[StoredFact], set[str]]:
            _, moving_now = await moment(tx)
            return await tx.select(Selection(decode=self.decode)), moving_now | await _changed_since(tx, newest)

        facts, moving_now = await self.storage.read(self.namespace, look, snapshot=True)
        moving |= moving_now  # what was being changed, or was changed, since the scan began may rightly differ
        expected = {fact.id: fact.version for fact in facts if self._belongs(hook, fact)}
        return Drift(
            hook.name,
            missing=tuple(id_ for id_ in expected if id_ not in indexed and id_ not in moving),
            stale=tuple(
                id_ for id_, version in indexed.items() if expected.get(id_, version) != version and id_ not in moving
            ),
            orphaned=tuple(id_ for id_ in indexed if id_ not in expected and id_ not in moving),
        )

    def _belongs(self, hook: HookAdapter, fact: StoredFact) -> bool:
        """Whether a fact has a place in a hook's index."""
        return hook.wants(fact.type) and (hook.indexes is None or hook.indexes(fact.to_fact(self.decode(fact))))

    async def _all_facts(self) -> list[StoredFact]:
        selection = Selection(decode=self.decode)
        return await self.storage.read(self.namespace, lambda tx: tx.select(selection))

    async def repair(self) -> list[Drift]:
        """Bring each index that can be scanned back to what storage says; returns what was mended."""
        drifts = await self.verify()
        for drift in drifts:
            wrong = [*drift.missing, *drift.stale, *drift.orphaned]
            await self.mend(self._by_name[drift.hook], wrong)
        return drifts

    async def reindex(self, name: str | None) -> int:
        """Give one hook, or all, every fact anew; returns how many facts. Entries without a fact are removed.

        :raises ValueError: there is no such hook.
        """
        if name is not None and name not in self._by_name:
            raise ValueError(f"there is no hook {name!r}; there are {', '.join(map(repr, self._by_name)) or 'none'}")
        hooks = list(self._by_name.values()) if name is None else [self._by_name[name]]
        facts = await self._all_facts()
        for hook in hooks:
            ids = dict.fromkeys(fact.id for fact in facts if hook.wants(fact.type))
            if hook.scan is not None:
                ids.update(dict.fromkeys(await self.runtime.call(hook.scan)))
            await self.mend(hook, list(ids))
        return len(facts)


async def _moment(tx: StorageTransaction) -> tuple[int, set[str]]:
    """The newest transaction's seq, and the facts that are being changed."""
    newest = await tx.history(limit=1)
    return newest[0].seq if newest else 0, set(_fact_ids(await tx.claims()))


async def _undelivered(tx: StorageTransaction, hook: str) -> set[str]:
    """The facts of which a hook is still to be told."""
    lanes = [state for state in await tx.lanes() if state.lane.hook == hook]
    return {one.change.fact_id for state in lanes for one in await tx.deliveries(state.lane, state.pending)}


async def _changed_since(tx: StorageTransaction, seq: int) -> set[str]:
    """The facts that transactions newer than ``seq`` have changed."""
    changed: set[str] = set()
    before: int | None = None
    while True:
        page = await tx.history(before=before, limit=_CHUNK)
        for entry in page:
            if entry.seq <= seq:
                return changed
            changed.update(change.fact_id for change in entry.changes)
        if not page:
            return changed
        before = page[-1].seq


def _abandoned(claim: Claim) -> bool:
    return claim.expires < time.time() or is_gone(claim.owner)


def _fact_ids(claims: Iterable[Claim]) -> tuple[str, ...]:
    return tuple(claim.key.removeprefix("fact:") for claim in claims if claim.key.startswith("fact:"))


def _chunks(fact_ids: Sequence[str]) -> Iterable[Sequence[str]]:
    for start in range(0, len(fact_ids), _CHUNK):
        yield fact_ids[start : start + _CHUNK]


def busy(claims: Sequence[Claim], waited: float) -> BusyError:
    """What to raise when claims did not go away."""
    claim = claims[0]
    kind, _, name = claim.key.partition(":")
    what = {"fact": f"fact {name!r}", "key": f"the singleton value {name}", "session": f"session {name[1:]!r}"}[kind]
    state = "is in doubt after a failure" if claim.expires < time.time() or is_gone(claim.owner) else "is being changed"
    hooks = ", ".join(map(repr, claim.hooks))
    return BusyError(
        f"{what} {state} by another transaction, which did not end within {waited:g} s; try again"
        + (f", or call recover() on a store that has the hooks {hooks}" if "doubt" in state else ""),
        fact_id=name if kind == "fact" else None,
    )
