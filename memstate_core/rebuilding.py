"""Rebuild an index beside the one in use, and put it in its place, while anybody writes.

The new index is filled with what is committed and caught up from the journal until little is left. Until it takes the
old one's place nobody else knows of it. From then on everybody's changes go to it, but for those of transactions that
were under way: they may have told the old index and decide later. They hold claims, so their end is waited for, and
what they changed is given again. At last the index is compared with storage, as the proof.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from memstate_core.errors import BusyError, HookError, MemoryStoreError
from memstate_core.facts import StoredFact
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.owners import is_behind_us, owning
from memstate_core.paging import FactPages
from memstate_core.progress import Progress, Tally
from memstate_core.protocols import Batch, Claim, StorageTransaction
from memstate_core.recovery import Recovery, index_key, is_abandoned
from memstate_core.verification import Verification

logger = logging.getLogger("memstate.rebuilding")

# So much of the journal is read, and so many facts are given, at a time.
_CHUNK: Final = 500
# After so many rounds of catching up, writers are as fast as we are.
_ROUNDS: Final = 20


@dataclass(slots=True)
class Rebuilding:
    """Rebuilding for one store. ``replace`` lets a hook take another one's place in it."""

    recovery: Recovery
    verification: Verification
    replace: Callable[[HookAdapter, HookAdapter], None]

    async def rebuild(self, old: HookAdapter, new: HookAdapter, progress: Progress | None) -> None:
        """Fill an index for the hook ``new`` and let both take the place of ``old`` and its index.

        Whoever dies or fails before the swap leaves nothing but an index that nobody knows. Whoever does so afterwards
        leaves the claim on the index, which has it brought to what storage says by whoever comes next.

        :raises BusyError: the index is being rebuilt by someone else.
        :raises HookError: the new index could not be made, or not be put in place.
        :raises MemoryStoreError: it is a hook that calls, whose transaction would have to end first.
        """
        recovery = self.recovery
        if any(is_behind_us(claim.owner) for claim in await self._claims(old.name)):
            raise MemoryStoreError(
                f"the index of hook {old.name!r} cannot be rebuilt from inside a hook, since that waits for the"
                " transaction that the hook is being told of: call reindex when it has ended"
            )
        tally = Tally(old.name, progress)
        with owning() as owner, recovery.runtime.keep_alive(lambda: recovery.renew(owner), recovery.lease / 3):
            in_doubt = await self._begin(old.name, owner)
            try:
                beside = HookAdapter(await self._call(new, "beside", new.beside))
                seq = await self._fill(new, beside, tally)
            except BaseException as error:
                await (recovery.renew(owner, until=0.0) if in_doubt else recovery.let_go(owner, error))
                raise
            logger.info("the index of hook %r is about to be put in place", old.name)
            await recovery.runtime.shielded(lambda _: self._take_place(old, new, beside, seq, owner))
            tally.finish()
            logger.info("the index of hook %r was rebuilt", old.name)

    async def _begin(self, name: str, owner: str) -> bool:
        """Claim the index, so that nobody else rebuilds it; whether someone has left it in doubt.

        :raises BusyError: someone else held it for too long; those who heal it let it go soon.
        """
        recovery = self.recovery
        key = index_key(name)

        async def work(tx: StorageTransaction) -> bool | None:
            held = await tx.claims([key])
            if any(not is_abandoned(claim) for claim in held):
                return None
            hooks = held[0].hooks if held else ()
            await tx.write(Batch(claims=[Claim(key, owner, time.time() + recovery.lease, hooks)]))
            return bool(hooks)

        deadline = time.monotonic() + recovery.claim_timeout
        while (in_doubt := await recovery.storage.write(recovery.namespace, work)) is None:
            if time.monotonic() > deadline:
                raise BusyError(
                    f"the index of hook {name!r} is being rebuilt by someone else, who did not end within"
                    f" {recovery.claim_timeout:g} s; try again later"
                )
            await recovery.runtime.sleep(0.02)
        return in_doubt

    async def _fill(self, new: HookAdapter, beside: HookAdapter, tally: Tally) -> int:
        """Give the new index every fact; returns the seq up to which it has what the journal says."""
        recovery = self.recovery
        seq, _ = await self._changed_since(None)
        pages = FactPages(recovery.storage, recovery.namespace, recovery.decode, new)
        tally.total = await pages.count()
        while page := await pages.next():
            await self._give(beside, [fact.id for fact in page], {fact.id: fact for fact in page})
            tally.add(len(page))
        for _ in range(_ROUNDS):
            seq, changed = await self._changed_since(seq)
            for some in _chunks(sorted(changed)):
                await self._give(beside, some, await recovery.facts(some))
                tally.add(len(some))
            if len(changed) < _CHUNK:
                break
        return seq

    async def _give(self, beside: HookAdapter, fact_ids: Sequence[str], facts: dict[str, StoredFact]) -> None:
        """Give the new index facts as they were read; who changes them meanwhile is in the journal by and by."""
        decode = self.recovery.decode
        changes = [
            beside.as_committed(id_, fact.to_fact(decode(fact)) if (fact := facts.get(id_)) else None)
            for id_ in fact_ids
        ]
        batch = await self._call(beside, "prepare", beside.prepare, changes) if beside.prepare else changes
        await self._call(beside, "apply", beside.apply, batch)

    async def _take_place(self, old: HookAdapter, new: HookAdapter, beside: HookAdapter, seq: int, owner: str) -> None:
        """Swap, and bring the new index to what has been decided since the journal's ``seq``."""
        recovery = self.recovery
        await self._put_in_doubt(new.name, owner)
        try:
            old.swapping = True
            try:
                await self._call(new, "swap", new.swap, beside.hook)
                self.replace(old, new)
            finally:
                old.swapping = False
            await self._wait_for_those_under_way(new.name)
            _, changed = await self._changed_since(seq)
            await recovery.mend(new, sorted(changed))
            # The journal may show a transaction after one that has a higher seq.
            await self.verification.mend(new, None)
        except BaseException:
            await recovery.renew(owner, until=0.0)
            raise
        await recovery.drop(owner)

    async def catch_up(self, hook: HookAdapter) -> None:
        """Bring an index to what storage says that was swapped in, perhaps, by someone who went no further."""
        if hook.settle is not None:
            await self._call(hook, "settle", hook.settle)
        await self._wait_for_those_under_way(hook.name)
        await self.verification.mend(hook, None)

    async def _put_in_doubt(self, name: str, owner: str) -> None:
        """Let the claim on the index name the hook.

        :raises BusyError: the claim is not ours any more.
        """
        recovery = self.recovery

        async def work(tx: StorageTransaction) -> None:
            mine = [claim for claim in await tx.claims([index_key(name)]) if claim.owner == owner]
            if not mine:
                raise BusyError(f"someone else rebuilds the index of hook {name!r} by now, since we were stopped")
            await tx.write(Batch(claims=[claim._replace(hooks=(name,)) for claim in mine]))

        await recovery.storage.write(recovery.namespace, work)

    async def _wait_for_those_under_way(self, name: str) -> None:
        """Wait for the end of the transactions that may have told the old index something."""
        recovery = self.recovery
        waiting = {claim.owner for claim in await self._claims(name)}
        while waiting:
            await recovery.heal_in_passing()
            if any(is_abandoned(claim) for claim in await self._claims(name)):
                await self._disown(name)
            # Who left something behind is not waited for: whoever heals it tells the new index.
            waiting &= {claim.owner for claim in await self._claims(name) if not is_abandoned(claim)}
            if waiting:
                await recovery.runtime.sleep(0.02)

    async def _claims(self, name: str) -> list[Claim]:
        """Those of which a hook may have been told."""
        claims = await self.recovery.storage.read(self.recovery.namespace, lambda tx: tx.claims())
        return [claim for claim in claims if _is_under_way(claim, name)]

    async def _disown(self, name: str) -> None:
        """See that who has left facts in doubt, which cannot be healed here and now, does not come back and decide."""
        with owning() as nobody:

            async def work(tx: StorageTransaction) -> None:
                claims = await tx.claims()
                left = [claim for claim in claims if _is_under_way(claim, name) and is_abandoned(claim)]
                await tx.write(Batch(claims=[claim._replace(owner=nobody, expires=0.0) for claim in left]))

            await self.recovery.storage.write(self.recovery.namespace, work)

    async def _changed_since(self, seq: int | None) -> tuple[int, set[str]]:
        """The newest transaction's seq, and the facts that transactions newer than ``seq`` have changed; None: none."""

        async def work(tx: StorageTransaction) -> tuple[int, set[str]]:
            newest = await tx.history(limit=1)
            last = newest[0].seq if newest else 0
            changed: set[str] = set()
            before: int | None = None
            while seq is not None and last > seq:
                page = await tx.history(before=before, limit=_CHUNK)
                newer = [entry for entry in page if entry.seq > seq]
                changed.update(change.fact_id for entry in newer for change in entry.changes)
                if len(newer) < _CHUNK:
                    break
                before = page[-1].seq
            return last, changed

        return await self.recovery.storage.read(self.recovery.namespace, work, snapshot=True)

    async def _call(self, hook: HookAdapter, operation: str, function: Any, *arguments: Any) -> Any:
        try:
            return await self.recovery.runtime.call(function, *arguments)
        except Exception as error:
            in_place = operation in ("swap", "settle")
            state = "which of the two is in use cannot be told" if in_place else "it is as it was"
            raise HookError(
                f"the index of hook {hook.name!r} could not be rebuilt, {state}: {operation} failed:"
                f" {type(error).__name__}: {error}",
                hook=hook.name,
                operation=operation,
            ) from error


def _is_under_way(claim: Claim, hook: str) -> bool:
    return hook in claim.hooks and claim.key != index_key(hook)


def _chunks(fact_ids: Sequence[str]) -> Iterable[Sequence[str]]:
    for start in range(0, len(fact_ids), _CHUNK):
        yield fact_ids[start : start + _CHUNK]
