"""Compare indexes with storage, and mend what differs.

A first walk compares page by page, while others write, so that what it finds to be different may only have been seen
at different moments. Each of these *suspects* is looked at again while nobody can change its fact, and only what still
differs is drift.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from memstate_core._displayed import Displayed
from memstate_core.errors import HookError
from memstate_core.facts import StoredFact
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.paging import EntryPages, FactPages
from memstate_core.progress import Progress, Tally
from memstate_core.protocols import StorageTransaction, lane_of
from memstate_core.recovery import Recovery

# So many suspects are looked at again at a time; in an index that can only be scanned, by scanning it.
_CHUNK: Final = 500
_CHUNK_SCANNED: Final = 5000


@dataclass(frozen=True, slots=True)
class Drift(Displayed):
    """How an index differs from storage, by fact id.

    ``missing`` are facts that the index lacks, ``stale`` those it has in another version, ``orphaned`` entries
    whose fact does not exist or has no place in the index. Facts that a transaction is changing right now are left out.
    ``facts`` and ``entries`` are how many were compared.
    """

    hook: str
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    orphaned: tuple[str, ...] = ()
    facts: int = 0
    entries: int = 0

    def __len__(self) -> int:
        return len(self.missing) + len(self.stale) + len(self.orphaned)

    def __str__(self) -> str:
        found = [f"{len(ids):,} {kind}" for kind, ids in self.by_kind().items() if ids]
        facts = f"{self.facts:,} fact{'s' * (self.facts != 1)}"
        entries = f"{self.entries:,} entr{'y' if self.entries == 1 else 'ies'}"
        return f"{self.hook}: {', '.join(found) or 'no drift'} ({facts} and {entries} compared)"

    def by_kind(self) -> dict[str, tuple[str, ...]]:
        return {"missing": self.missing, "stale": self.stale, "orphaned": self.orphaned}

    @property
    def fact_ids(self) -> tuple[str, ...]:
        return (*self.missing, *self.stale, *self.orphaned)


class Report(Displayed, list[Drift]):
    """What was compared: a :class:`Drift` for each hook whose index can be listed.

    ``unlisted`` names the hooks without ``scan``, of which nothing can be told.
    """

    def __init__(self, drifts: Iterable[Drift] = (), unlisted: Sequence[str] = ()) -> None:
        super().__init__(drifts)
        self.unlisted = tuple(unlisted)

    @property
    def drift(self) -> int:
        """How many entries differ, in all indexes together."""
        return sum(map(len, self))

    def __str__(self) -> str:
        lines = [*map(str, self), *(f"{hook}: cannot be listed, so not compared" for hook in self.unlisted)]
        return "\n".join(lines) or "no hooks"


@dataclass(slots=True)
class Verification:
    """Comparing and mending for one store."""

    recovery: Recovery

    async def verify(self, progress: Progress | None) -> Report:
        """Compare each index that can be listed with storage.

        :raises HookError: a hook failed to list its index, or to say what belongs into it.
        """
        hooks = list(self.recovery.hooks.values())
        drifts = [await self._compare(hook, Tally(hook.name, progress)) for hook in hooks if hook.scan is not None]
        return Report(drifts, [hook.name for hook in hooks if hook.scan is None])

    async def repair(self, progress: Progress | None) -> Report:
        """Bring each index that can be listed back to what storage says; returns what was mended."""
        report = Report(unlisted=[hook.name for hook in self.recovery.hooks.values() if hook.scan is None])
        for hook in list(self.recovery.hooks.values()):
            if hook.scan is not None:
                report.append(await self.mend(hook, progress))
        return report

    async def mend(self, hook: HookAdapter, progress: Progress | None) -> Drift:
        """Bring one index back to what storage says."""
        tally = Tally(hook.name, progress)
        drift = await self._compare(hook, tally)
        tally.total += len(drift)
        for some in _chunks(drift.fact_ids, _CHUNK):
            await self.recovery.mend(hook, some)
            tally.add(len(some))
        return drift

    async def _compare(self, hook: HookAdapter, tally: Tally) -> Drift:
        recovery = self.recovery
        pages = FactPages(recovery.storage, recovery.namespace, recovery.decode, hook)
        expected = await pages.count()
        tally.total = 2 * expected
        suspects: dict[str, None] = {}
        seen: set[str] | None = set() if hook.lookup is None else None
        entries = await self._walk_entries(hook, suspects, seen, tally)
        tally.total, tally.done = entries + expected, entries
        facts = await self._walk_facts(hook, pages, suspects, seen, tally)
        wrong: dict[str, str] = {}
        for some in _chunks(list(suspects), _CHUNK if hook.lookup else _CHUNK_SCANNED):
            wrong |= await recovery.while_unchanging(some, lambda free: self._differences(hook, free))
        tally.finish()

        def of(kind: str) -> tuple[str, ...]:
            return tuple(id_ for id_, found in wrong.items() if found == kind)

        return Drift(hook.name, of("missing"), of("stale"), of("orphaned"), facts, entries)

    async def _walk_entries(
        self, hook: HookAdapter, suspects: dict[str, None], seen: set[str] | None, tally: Tally
    ) -> int:
        """Compare what the index has with storage, for a first time; returns how many entries there were."""
        count = 0
        entries = EntryPages(self.recovery.runtime, hook)
        try:
            while page := await entries.next():
                facts = await self.recovery.facts([id_ for id_, _ in page])
                suspects.update((id_, None) for id_, version in page if self._place(hook, facts.get(id_)) != version)
                if seen is not None:
                    seen.update(id_ for id_, _ in page)
                count += len(page)
                tally.add(len(page))
        finally:
            await entries.close()
        return count

    async def _walk_facts(
        self, hook: HookAdapter, pages: FactPages, suspects: dict[str, None], seen: set[str] | None, tally: Tally
    ) -> int:
        """Compare what storage has with the index, for a first time; returns how many facts there were."""
        count = 0
        while page := await pages.next():
            there = seen if seen is not None else await self._look_up(hook, [fact.id for fact in page])
            lacking = [fact for fact in page if fact.id not in there]
            suspects.update((fact.id, None) for fact in lacking if self._place(hook, fact) is not None)
            count += len(page)
            tally.add(len(page))
        return count

    async def _differences(self, hook: HookAdapter, fact_ids: Sequence[str]) -> dict[str, str]:
        """How the index differs from storage, by fact id; what a deferred hook is still to be told is no difference."""
        if not fact_ids:
            return {}
        pending = await self._undelivered(hook, fact_ids) if hook.deferred else set()
        facts = await self.recovery.facts(fact_ids)
        indexed = await self._indexed(hook, fact_ids)
        differences: dict[str, str] = {}
        for id_ in fact_ids:
            place, version = self._place(hook, facts.get(id_)), indexed.get(id_)
            if place != version and id_ not in pending:
                differences[id_] = "orphaned" if place is None else "missing" if version is None else "stale"
        return differences

    def _place(self, hook: HookAdapter, fact: StoredFact | None) -> int | None:
        """The version in which a fact belongs into a hook's index; None: it has no place there."""
        if fact is None or not hook.wants(fact.type):
            return None
        belongs = hook.indexes is None or hook.indexes(fact.to_fact(self.recovery.decode(fact)))
        return fact.version if belongs else None

    async def _indexed(self, hook: HookAdapter, fact_ids: Sequence[str]) -> Mapping[str, int]:
        """The versions in which the index has facts, now."""
        if hook.lookup is not None:
            return await self._look_up(hook, fact_ids)
        wanted, found = set(fact_ids), dict[str, int]()
        entries = EntryPages(self.recovery.runtime, hook)
        try:
            while page := await entries.next():
                found.update((id_, version) for id_, version in page if id_ in wanted)
        finally:
            await entries.close()
        return found

    async def _look_up(self, hook: HookAdapter, fact_ids: Sequence[str]) -> Mapping[str, int]:
        assert hook.lookup is not None
        try:
            found: Mapping[str, int] = await self.recovery.runtime.call(hook.lookup, fact_ids)
        except Exception as error:
            raise HookError(
                f"hook {hook.name!r} could not look up {len(fact_ids)} entries: {error}",
                hook=hook.name,
                operation="lookup",
            ) from error
        return found

    async def _undelivered(self, hook: HookAdapter, fact_ids: Sequence[str]) -> set[str]:
        """Those of the facts of which a hook is still to be told."""
        wanted = set(fact_ids)
        lanes = {lane_of(hook.name, id_) for id_ in wanted}

        async def work(tx: StorageTransaction) -> set[str]:
            pending: set[str] = set()
            for state in await tx.lanes():
                if state.lane in lanes:
                    deliveries = await tx.deliveries(state.lane, state.pending)
                    pending.update(one.change.fact_id for one in deliveries if one.change.fact_id in wanted)
            return pending

        return await self.recovery.storage.read(self.recovery.namespace, work, snapshot=True)


def _chunks(fact_ids: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    for start in range(0, len(fact_ids), size):
        yield fact_ids[start : start + size]
