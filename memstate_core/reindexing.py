"""Give indexes every fact anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memstate_core.hooks._adapter import HookAdapter
from memstate_core.paging import EntryPages, FactPages
from memstate_core.progress import Progress, Tally
from memstate_core.protocols import Selection
from memstate_core.rebuilding import Rebuilding
from memstate_core.recovery import Recovery


@dataclass(slots=True)
class Reindexing:
    """Filling indexes for one store."""

    recovery: Recovery
    rebuilding: Rebuilding

    async def rebuild(self, name: str | None, into: Any, progress: Progress | None) -> int:
        """Rebuild a hook's index beside the one in use, as ``into`` makes it; returns how many facts there are.

        :raises ValueError: there is no such hook, or ``into`` is not on its index.
        :raises TypeError: ``into`` cannot be rebuilt beside another index.
        """
        given = HookAdapter(into)
        old = self._hook(given.name if name is None else name)
        if given.beside is None or given.swap is None or given.scan is None:
            raise TypeError(
                f"hook {given.name!r} cannot rebuild its index beside the one in use: it lacks beside, swap or scan"
            )
        if given.is_async and not self.recovery.runtime.is_async:
            raise TypeError(f"hook {given.name!r} is asynchronous; use it with AsyncMemoryStore, or pass its sync twin")
        if given.name != HookAdapter(old.hook).name:
            raise ValueError(
                f"into= is the hook {given.name!r}, which has another index than {old.name!r}; add it to the store as a"
                " hook of its own, or make it on the same index"
            )
        new = HookAdapter(into, "deferred" if old.deferred else "commit", self.recovery.namespace)
        new.name = old.name
        await self.rebuilding.rebuild(old, new, progress)
        return await self._count()

    async def reindex(self, name: str | None, progress: Progress | None) -> int:
        """Give one hook, or all, every fact anew; returns how many facts there are. Entries without a fact are removed.

        :raises ValueError: there is no such hook.
        """
        hooks = list(self.recovery.hooks.values()) if name is None else [self._hook(name)]
        for hook in hooks:
            await self._fill(hook, Tally(hook.name, progress))
        return await self._count()

    async def _count(self) -> int:
        everything = Selection(decode=self.recovery.decode)
        return await self.recovery.storage.read(self.recovery.namespace, lambda tx: tx.count(everything))

    def _hook(self, name: str) -> HookAdapter:
        hooks = self.recovery.hooks
        if name not in hooks:
            raise ValueError(f"there is no hook {name!r}; there are {', '.join(map(repr, hooks)) or 'none'}")
        return hooks[name]

    async def _fill(self, hook: HookAdapter, tally: Tally) -> None:
        recovery = self.recovery
        pages = FactPages(recovery.storage, recovery.namespace, recovery.decode, hook)
        tally.total = await pages.count()
        while page := await pages.next():
            await recovery.mend(hook, [fact.id for fact in page])
            tally.add(len(page))
        if hook.scan is not None:
            # Only now, since removing an entry may move those that the scan has not come to.
            await recovery.mend(hook, await self._without_a_fact(hook))
        tally.finish()

    async def _without_a_fact(self, hook: HookAdapter) -> list[str]:
        """The ids of entries for which there is no fact of a type that the hook wants."""
        found: list[str] = []
        entries = EntryPages(self.recovery.runtime, hook)
        try:
            while page := await entries.next():
                ids = [id_ for id_, _ in page]
                facts = await self.recovery.facts(ids)
                found += [id_ for id_ in ids if id_ not in facts or not hook.wants(facts[id_].type)]
        finally:
            await entries.close()
        return found
