"""Give indexes every fact anew."""

from __future__ import annotations

from dataclasses import dataclass

from memstate_core.hooks._adapter import HookAdapter
from memstate_core.paging import EntryPages, FactPages
from memstate_core.progress import Progress, Tally
from memstate_core.protocols import Selection
from memstate_core.recovery import Recovery


@dataclass(slots=True)
class Reindexing:
    """Filling indexes for one store."""

    recovery: Recovery

    async def reindex(self, name: str | None, progress: Progress | None) -> int:
        """Give one hook, or all, every fact anew; returns how many facts there are. Entries without a fact are removed.

        :raises ValueError: there is no such hook.
        """
        recovery = self.recovery
        hooks = list(recovery.hooks.values()) if name is None else [self._hook(name)]
        for hook in hooks:
            await self._fill(hook, Tally(hook.name, progress))
        everything = Selection(decode=recovery.decode)
        return await recovery.storage.read(recovery.namespace, lambda tx: tx.count(everything))

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
