"""``store.at(…)``: a store to read from, as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memstate_core import search
from memstate_core._bridge import run
from memstate_core.block import plain
from memstate_core.facts import UNSET, ScoredFact, Unset
from memstate_core.past import Past
from memstate_core.protocols import Selection
from memstate_core.store_base import Filters, StoreBase


class _View:
    def __init__(self, store: StoreBase, past: Past) -> None:
        self._store = store
        self._past = past

    async def _selection(
        self,
        typename: str | None,
        filters: Filters | None,
        session_id: str | None | Unset,
        limit: int | None = None,
        offset: int = 0,
        order_by: str | Sequence[str] | None = None,
    ) -> Selection:
        engine = self._past.engine
        await engine.ready()
        await engine.definitions.known()
        return engine.selection(typename, filters, session_id, limit, offset, order_by)

    async def _get(self, fact_id: str) -> dict[str, Any] | None:
        return self._store.as_dict(await self._past.get(fact_id))

    async def _query(self, *arguments: Any) -> list[dict[str, Any]]:
        found = await self._past.select(await self._selection(*arguments))
        return plain(found, self._past.engine.registry.decode)

    async def _count(self, *arguments: Any) -> int:
        return await self._past.count(await self._selection(*arguments))

    async def _search(self, *arguments: Any) -> list[ScoredFact]:
        return await search.search(self._past.engine, *arguments, past=self._past)


class MemoryView(_View):
    """The facts as they were when a session stood elsewhere; see :meth:`MemoryStore.at`.

    Its methods are those of :class:`MemoryStore`. A fact that has changed since is found by a search if its index can
    tell how similar a text is, as the hooks of this package can.
    """

    def get(self, fact_id: str) -> dict[str, Any] | None:
        """Same as :meth:`MemoryStore.get`, then."""
        return run(self._get(fact_id))

    def query(
        self,
        typename: str | None = None,
        filters: Filters | None = None,
        session_id: str | None | Unset = UNSET,
        limit: int | None = None,
        offset: int = 0,
        order_by: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Same as :meth:`MemoryStore.query`, then."""
        return run(self._query(typename, filters, session_id, limit, offset, order_by))

    def count(
        self, typename: str | None = None, filters: Filters | None = None, session_id: str | None | Unset = UNSET
    ) -> int:
        """Same as :meth:`MemoryStore.count`, then."""
        return run(self._count(typename, filters, session_id))

    def search(
        self,
        query: str,
        limit: int = 5,
        filters: Filters | None = None,
        score_threshold: float | None = None,
        session_id: str | None | Unset = UNSET,
        typename: str | None = None,
    ) -> list[ScoredFact]:
        """Same as :meth:`MemoryStore.search`, then."""
        return run(self._search(query, limit, filters, score_threshold, session_id, typename))


class AsyncMemoryView(_View):
    """Same as :class:`MemoryView`, awaited."""

    async def get(self, fact_id: str) -> dict[str, Any] | None:
        """Same as :meth:`MemoryStore.get`, then, awaited."""
        return await self._get(fact_id)

    async def query(
        self,
        typename: str | None = None,
        filters: Filters | None = None,
        session_id: str | None | Unset = UNSET,
        limit: int | None = None,
        offset: int = 0,
        order_by: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Same as :meth:`MemoryStore.query`, then, awaited."""
        return await self._query(typename, filters, session_id, limit, offset, order_by)

    async def count(
        self, typename: str | None = None, filters: Filters | None = None, session_id: str | None | Unset = UNSET
    ) -> int:
        """Same as :meth:`MemoryStore.count`, then, awaited."""
        return await self._count(typename, filters, session_id)

    async def search(
        self,
        query: str,
        limit: int = 5,
        filters: Filters | None = None,
        score_threshold: float | None = None,
        session_id: str | None | Unset = UNSET,
        typename: str | None = None,
    ) -> list[ScoredFact]:
        """Same as :meth:`MemoryStore.search`, then, awaited."""
        return await self._search(query, limit, filters, score_threshold, session_id, typename)
