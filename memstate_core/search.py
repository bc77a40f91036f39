"""Search: the indexes propose, storage answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from memstate_core.engine import Engine
from memstate_core.errors import HookError
from memstate_core.facts import ScoredFact, SearchResult, StoredFact, Unset
from memstate_core.filters import NativeFilter, Test, also
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.intents import matches
from memstate_core.past import Past
from memstate_core.protocols import Scope, Selection, StorageTransaction
from memstate_core.values import count

SearchFilters = Mapping[str, Any] | NativeFilter | BaseModel

# The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).
RANK_CONSTANT = 60


async def search(
    engine: Engine,
    query: str,
    limit: int,
    filters: SearchFilters | None,
    score_threshold: float | None,
    session_id: str | None | Unset,
    typename: str | None,
    *,
    past: Past | None = None,
    test: Test | None = None,
) -> list[ScoredFact]:
    """See :meth:`memstate_core.MemoryStore.search`; ``past``: among the facts as they were then.

    ``test``: a condition on payloads beside the filters, which no index is told of.
    """
    if not isinstance(query, str):
        raise ValueError(f"search takes a text, not {query!r}")
    limit = count("limit", limit)
    native: Any = None
    if isinstance(filters, NativeFilter):
        native, filters = filters.filter, None
    elif isinstance(filters, BaseModel):
        native, filters = filters, None
    selection = engine.selection(typename, filters, session_id)
    if test is not None:
        selection = replace(selection, predicate=also(selection.predicate, test))
    searching = [
        hook for hook in engine.hooks if hook.search is not None and (typename is None or hook.wants(typename))
    ]
    if not searching:
        raise HookError(
            "no hook of this store can search"
            + (f" facts of type {typename!r}" if typename else "")
            + "; make the store with a hook that has an index, such as ChromaSyncHook",
            operation="search",
        )
    if native is not None:
        _check_native(searching, native)
    await engine.ready()
    if not limit:
        return []
    # An index has payloads as they were written. Where a schema upgrades them since, only storage knows what matches.
    scope = Scope(selection.typename, selection.session_id, filters if selection.as_stored else None, native)
    ranked = [
        await _ranked_by_latest(engine, hook, query, limit, selection, scope, score_threshold, past)
        for hook in searching
    ]
    if len(ranked) == 1:
        return [ScoredFact(fact.to_fact(engine.registry.decode(fact)), score) for fact, score in ranked[0]]
    return _merged(engine, ranked, limit)


def _check_native(hooks: Sequence[HookAdapter], native: Any) -> None:
    for hook in hooks:
        if not hook.takes(native):
            raise HookError(
                f"hook {hook.name!r} takes no filter of type {type(native).__name__}; give typename= of facts that only"
                " hooks with such filters are told of, or a filter in the language of memstate_core.filters",
                hook=hook.name,
                operation="search",
            )


def _merged(engine: Engine, ranked: Sequence[Sequence[tuple[StoredFact, float]]], limit: int) -> list[ScoredFact]:
    """Reciprocal rank fusion; each fact keeps the best similarity that an index gave it."""
    facts: dict[str, StoredFact] = {}
    scores: dict[str, float] = {}
    ranks: dict[str, float] = {}
    for results in ranked:
        for rank, (fact, score) in enumerate(results, start=1):
            facts[fact.id] = fact
            scores[fact.id] = max(score, scores.get(fact.id, score))
            ranks[fact.id] = ranks.get(fact.id, 0.0) + 1 / (RANK_CONSTANT + rank)
    best = sorted(ranks, key=lambda id_: (-ranks[id_], -scores[id_]))[:limit]
    return [ScoredFact(facts[id_].to_fact(engine.registry.decode(facts[id_])), scores[id_]) for id_ in best]


async def _ranked_by_latest(
    engine: Engine,
    hook: HookAdapter,
    query: str,
    limit: int,
    selection: Selection,
    scope: Scope,
    score_threshold: float | None,
    past: Past | None,
) -> list[tuple[StoredFact, float]]:
    """The same; once more when the hook fails since another one has taken its place."""
    try:
        return await _ranked(engine, hook, query, limit, selection, scope, score_threshold, past)
    except HookError:
        latest = await hook.latest(engine.runtime)
        if latest is hook:
            raise
        return await _ranked_by_latest(engine, latest, query, limit, selection, scope, score_threshold, past)


async def _ranked(
    engine: Engine,
    hook: HookAdapter,
    query: str,
    limit: int,
    selection: Selection,
    scope: Scope,
    score_threshold: float | None,
    past: Past | None,
) -> list[tuple[StoredFact, float]]:
    """The best ``limit`` facts of one index that match, asking for more until there are enough or no more."""
    in_doubt: list[StoredFact] | None = None
    # Where a filter costs many times the search, what is near is looked through first: if facts that match are common,
    # there are enough.
    asked = scope._replace(filters=None) if hook.dear_filters else scope
    wanted = limit if selection.predicate is None else limit * 4
    while True:
        # What is being changed before or after the index is asked may be in it otherwise than it is committed.
        claimed = await engine.storage.read(engine.namespace, _claimed)
        if claimed:
            await engine.recovery.heal_in_passing()
        found: Sequence[SearchResult] = await _ask(engine, hook, query, wanted, asked)

        async def read(
            tx: StorageTransaction, found: Sequence[SearchResult] = found, claimed: set[str] = claimed
        ) -> tuple[dict[str, StoredFact], set[str]]:
            doubtful = claimed | await _claimed(tx)
            facts = await tx.facts([*dict.fromkeys([*(result.fact_id for result in found), *doubtful])])
            if past is not None:
                was = await past.overlay(tx)
                doubtful |= was.keys()
                facts = {id_: fact for id_, fact in facts.items() if id_ not in was}
                facts |= {id_: fact for id_, fact in was.items() if fact is not None}
            return facts, doubtful

        facts, doubtful = await engine.storage.read(engine.namespace, read)
        results: dict[str, tuple[StoredFact, float]] = {}
        # An entry of another version than storage's is being written, or was when a process died: its score
        # speaks of a text that is not the committed one. Such facts are scored by their committed text instead.
        for result in found:
            fact = facts.get(result.fact_id)
            if fact is None or not matches(fact, selection):
                continue
            if result.version is not None and result.version != fact.version:
                doubtful.add(fact.id)
            elif fact.id not in doubtful or (hook.similarity is None and scope.native is None):
                results.setdefault(fact.id, (fact, float(result.score)))
        # Whether a text that the index does not have fulfils a filter in its own language, only the index could tell.
        if doubtful and hook.similarity is not None and in_doubt is None and scope.native is None:
            in_doubt = [
                fact
                for id_ in doubtful
                if (fact := facts.get(id_)) is not None and hook.wants(fact.type) and matches(fact, selection)
            ]
        if in_doubt:
            results.update(await _scored(engine, hook, query, in_doubt))
        best = sorted(results.values(), key=lambda pair: -pair[1])
        if score_threshold is not None:
            best = [pair for pair in best if pair[1] >= score_threshold]
        exhausted = len(found) < wanted or (
            score_threshold is not None and bool(found) and float(found[-1].score) < score_threshold
        )
        if len(best) >= limit or exhausted:
            return best[:limit]
        if asked == scope:
            wanted *= 4
        asked = scope
        in_doubt = None


async def _claimed(tx: StorageTransaction) -> set[str]:
    """The ids of the facts that are being changed."""
    return {claim.key.removeprefix("fact:") for claim in await tx.claims() if claim.key.startswith("fact:")}


async def _ask(engine: Engine, hook: HookAdapter, query: str, wanted: int, scope: Scope) -> list[SearchResult]:
    assert hook.search is not None
    try:
        return list(await engine.runtime.call(hook.search, query, wanted, scope))
    except Exception as error:
        if isinstance(error, HookError):
            raise
        raise HookError(
            f"hook {hook.name!r} failed to search: {type(error).__name__}: {error}", hook=hook.name, operation="search"
        ) from error


async def _scored(
    engine: Engine, hook: HookAdapter, query: str, facts: Sequence[StoredFact]
) -> dict[str, tuple[StoredFact, float]]:
    assert hook.similarity is not None
    by_id = {fact.id: fact for fact in facts}
    typed = [fact.to_fact(engine.registry.decode(fact)) for fact in facts]
    scored: Sequence[SearchResult] = await engine.runtime.call(hook.similarity, query, typed)
    return {result.fact_id: (by_id[result.fact_id], float(result.score)) for result in scored}
