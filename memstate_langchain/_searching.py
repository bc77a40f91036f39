"""A search of several sessions and types at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memstate_core.facts import ScoredFact, Unset
from memstate_langchain._calls import Face


async def search_in(
    store: Face,
    query: str,
    limit: int,
    sessions: Sequence[str | None | Unset],
    types: Sequence[str] | None = None,
    filters: Any = None,
    score_threshold: float | None = None,
) -> list[ScoredFact]:
    """The best of them all, best first; of facts that are found twice, one is kept.

    :param store: or a view of one.
    :param types: None: of any type.
    """
    found: dict[str, ScoredFact] = {}
    for session_id in sessions:
        for typename in [None] if types is None else types:
            options = {"filters": filters, "score_threshold": score_threshold, "typename": typename}
            for one in await store.search(query, limit, session_id=session_id, **options):
                # Between two searches a fact may have become long-term, and be found by both.
                found.setdefault(one.fact.id, one)
    return sorted(found.values(), key=lambda one: -one.score)[:limit]
