"""Finish what is in doubt, and bring index entries to what storage says."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from memstate_core._bridge import Interruption, Runtime
from memstate_core.changes import Decode
from memstate_core.errors import BusyError, HookError
from memstate_core.facts import StoredFact
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.owners import is_alive, is_gone, owning
from memstate_core.protocols import Batch, Claim, ClaimsLost, Storage, StorageTransaction
from memstate_core.telemetry import count, step

logger = logging.getLogger("memstate.recovery")

_PAUSE: Final = 1.0  # seconds

# So many facts are given to a hook at a time when an index is mended or rebuilt.
_CHUNK: Final = 500

T = TypeVar("T")


class Recovered(NamedTuple):
    """What :meth:`~memstate_core.MemoryStore.recover` did: ids of facts healed, and of those still in doubt.

    A fact stays in doubt when one of the hooks that were told of it is not among the store's (``missing_hooks`` names
    them), and is not counted while the transaction that changes it is alive.
    """

    healed: tuple[str, ...] = ()
    in_doubt: tuple[str, ...] = ()
    missing_hooks: tuple[str, ...] = ()


@dataclass(slots=True)
class Recovery:
    """Healing for one store."""

    storage: Storage
    namespace: str
    runtime: Runtime
    decode: Decode
    lease: float
    claim_timeout: float
    hooks: dict[str, HookAdapter] = field(default_factory=dict)
    # How a whole index is brought to what storage says while others write.
    catch_up: Callable[[HookAdapter], Coroutine[Any, Any, None]] = field(init=False)
    _pause_ends: float = 0.0

    def add(self, hook: HookAdapter) -> None:
        """Take a hook in; one whose name is taken gets a number, the same at every start."""
        name, number = hook.name, 1
        while hook.name in self.hooks:
            number += 1
            hook.name = f"{name}#{number}"
        self.hooks[hook.name] = hook

    async def facts(self, fact_ids: Sequence[str]) -> dict[str, StoredFact]:
        """The current facts among them."""
        return await self.storage.read(self.namespace, lambda tx: tx.facts(fact_ids))

    async def heal_abandoned(self) -> Recovered:
        """Heal what transactions left in doubt whose lease has ended or whose process is gone.

        :raises HookError: a hook failed again; the facts stay in doubt.
        """
        claims = await self.storage.read(self.namespace, lambda tx: tx.claims())
        abandoned = [claim for claim in claims if is_abandoned(claim)]
        mine, missing = self._split(abandoned)
        facts = [claim for claim in mine if not _is_of_index(claim)]
        if facts:
            await self._heal(facts)
        for claim in mine:
            if _is_of_index(claim):
                await self._heal_index(claim)
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
        abandoned, _ = self._split([claim for claim in claims if is_abandoned(claim)])
        if not abandoned:
            return False
        owners = {claim.owner for claim in abandoned}
        everything = await self.storage.read(self.namespace, lambda tx: tx.claims())
        return await self._heal([claim for claim in everything if claim.owner in owners and not _is_of_index(claim)])

    def _split(self, claims: Sequence[Claim]) -> tuple[list[Claim], list[Claim]]:
        """Claims whose hooks this store has, and the others."""
        mine = [claim for claim in claims if not self._unknown_hooks([claim])]
        return mine, [claim for claim in claims if self._unknown_hooks([claim])]

    def _unknown_hooks(self, claims: Iterable[Claim]) -> list[str]:
        return list(dict.fromkeys(name for claim in claims for name in claim.hooks if name not in self.hooks))

    async def _heal(self, claims: Sequence[Claim]) -> bool:
        """Take the claims over, tell the hooks the committed state, drop the claims; whether any were ours to take."""

        async def heal(_: Interruption) -> bool:
            with owning() as owner, self.runtime.keep_alive(lambda: self.renew(owner), self.lease / 3):
                taken = await self._take_over(owner, [claim.key for claim in claims])
                told: dict[str, list[str]] = defaultdict(list)
                for claim in taken:
                    for name in claim.hooks:
                        told[name].extend(_fact_ids([claim]))
                await self._bring_back_and_let_go(
                    owner, [(self.hooks[name], some) for name, ids in told.items() for some in _chunks(ids)]
                )
                if taken:
                    healed = len(_fact_ids(taken))
                    count("healed", healed)
                    logger.info(
                        "facts healed: %d; hooks %s were told what is committed", healed, ", ".join(map(repr, told))
                    )
                return bool(taken)

        with step("recover", namespace=self.namespace):
            return await self.runtime.shielded(heal)

    async def _heal_index(self, claim: Claim) -> None:
        """Finish what a rebuilding left: its index was perhaps in use already, and not caught up with yet."""

        async def heal(_: Interruption) -> None:
            with owning() as owner, self.runtime.keep_alive(lambda: self.renew(owner), self.lease / 3):
                try:
                    for taken in await self._take_over(owner, [claim.key]):
                        for name in taken.hooks:
                            await self.catch_up(self.hooks[name])
                except BaseException:
                    await self.renew(owner, until=0.0)
                    raise
                await self.drop(owner)

        with step("recover", namespace=self.namespace):
            await self.runtime.shielded(heal)

    async def _take_over(self, owner: str, keys: Sequence[str]) -> list[Claim]:
        """Make those claims ours that are abandoned; returns them."""

        async def work(tx: StorageTransaction) -> list[Claim]:
            expires = time.time() + self.lease
            held = [claim for claim in await tx.claims(keys) if is_abandoned(claim)]
            if held:
                await tx.write(Batch(claims=[claim._replace(owner=owner, expires=expires) for claim in held]))
            return held

        return await self.storage.write(self.namespace, work)

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
                await self.bring_back(hook, fact_ids)
        except BaseException:
            await self.renew(owner, until=0.0)
            raise
        await self.drop(owner)

    async def bring_back(self, hook: HookAdapter, fact_ids: Sequence[str]) -> None:
        """Give a hook the committed state of facts that nobody else can change, or tell it of."""
        facts = await self.facts(fact_ids)
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
                free, held = await self._claim_free(owner, (hook.name,), fact_ids)
                if free:
                    await self._bring_back_and_let_go(owner, [(hook, free)])
                return free, held

        return await self.runtime.shielded(mend)

    async def while_unchanging(
        self, fact_ids: Sequence[str], look: Callable[[Sequence[str]], Coroutine[Any, Any, T]]
    ) -> T:
        """Call ``look`` with those facts that nobody is changing, while nobody can; again if that was not so."""

        async def critical(interruption: Interruption) -> T:
            with owning() as owner, self.runtime.keep_alive(lambda: self.renew(owner), self.lease / 3):
                while True:
                    # No hook is told of anything, so if we die, there is nothing to heal: whoever comes lets go.
                    free, _ = await self._claim_free(owner, (), fact_ids)
                    try:
                        found = await look(free)
                    except BaseException as error:
                        await self.let_go(owner, error)
                        raise
                    try:
                        await self.drop(owner, len(free))
                    except ClaimsLost as error:  # we were stopped for longer than the lease
                        await self.let_go(owner, error)
                        interruption.check()
                    else:
                        return found

        return await self.runtime.shielded(critical)

    async def drop(self, owner: str, expected: int | None = None) -> None:
        """Drop an owner's claims.

        :raises ClaimsLost: they are not as many as ``expected``; none is dropped.
        """
        batch = Batch(drop_claims_of=owner, dropped=expected)
        await self.storage.write(self.namespace, lambda tx: tx.write(batch))

    async def let_go(self, owner: str, error: BaseException) -> None:
        """Drop an owner's claims after an error."""
        try:
            await self.drop(owner)
        except Exception as cleanup:
            error.add_note(f"the claims could not be ended; they expire by themselves: {cleanup!r}")

    async def _claim_free(
        self, owner: str, hooks: tuple[str, ...], fact_ids: Sequence[str]
    ) -> tuple[list[str], list[Claim]]:
        async def work(tx: StorageTransaction) -> tuple[list[str], list[Claim]]:
            held = await tx.claims([f"fact:{id_}" for id_ in fact_ids])
            taken = {claim.key for claim in held}
            free = [id_ for id_ in fact_ids if f"fact:{id_}" not in taken]
            expires = time.time() + self.lease
            await tx.write(Batch(claims=[Claim(f"fact:{id_}", owner, expires, hooks) for id_ in free]))
            return free, held

        return await self.storage.write(self.namespace, work)


def is_abandoned(claim: Claim) -> bool:
    """Whether its owner is gone, or has not renewed its lease."""
    return claim.expires < time.time() or is_gone(claim.owner)


def index_key(hook: str) -> str:
    """What is claimed by who rebuilds a hook's index. Once that is about to be in use, the claim names the hook."""
    return f"index:{hook}"


def _is_of_index(claim: Claim) -> bool:
    return claim.key.startswith("index:")


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
