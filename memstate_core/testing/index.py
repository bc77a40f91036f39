"""An index in memory that is obviously right: the hook that the kit's tests run storages with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple

from memstate_core.facts import UNSET, Change, Fact, SearchResult
from memstate_core.protocols import Scope


class Entry(NamedTuple):
    """What an index keeps of a fact."""

    version: int
    text: str
    type: str
    session_id: str | None


class Index:
    """Texts by fact id; outlives the hooks on it, as an index on a server does."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.batches: list[list[Change]] = []
        self.beside: Index | None = None
        self.removed = False

    def versions(self) -> dict[str, int]:
        return {id_: entry.version for id_, entry in self.entries.copy().items()}


def text_of(fact: Fact | None, target_types: set[str] | None = None) -> str | None:
    """The text under which a fact is found, or None when it has no place in an index."""
    if fact is None or (target_types is not None and fact.type not in target_types):
        return None
    text = fact.payload.get("text")
    return text if isinstance(text, str) and text.strip() else None


def similarity(query: str, text: str) -> float:
    """The share of words in common."""
    left, right = set(query.lower().split()), set(text.lower().split())
    return len(left & right) / max(1, len(left | right))


class _IndexHook:
    def __init__(self, index: Index, target_types: set[str] | None = None, name: str = "index") -> None:
        self.index = index
        self.target_types = target_types
        self.name = name

    def beside(self) -> Any:
        if self.index.beside is not None:
            self.index.beside.removed = True
        self.index.beside = Index()
        return type(self)(self.index.beside, self.target_types, self.name)

    def swap(self, beside: Any) -> None:
        if self.index.beside is None or self.index.beside is not beside.index:
            raise RuntimeError("another index is made beside this one by now")
        self.index.entries, self.index.beside = beside.index.entries, None

    def _apply(self, changes: Sequence[Change]) -> None:
        if self.index.removed:
            raise RuntimeError("this index was removed")
        self.index.batches.append(list(changes))
        for change in changes:
            fact = change.after
            text = text_of(fact, self.target_types)
            if fact is None or text is None:
                self.index.entries.pop(change.fact_id, None)
            else:
                self.index.entries[change.fact_id] = Entry(fact.version, text, fact.type, fact.session_id)

    def _search(self, query: str, limit: int, scope: Scope) -> list[SearchResult]:
        found = [
            SearchResult(id_, similarity(query, entry.text), entry.version)
            for id_, entry in self.index.entries.copy().items()
            if scope.typename in (None, entry.type) and scope.session_id in (UNSET, entry.session_id)
        ]
        return sorted(found, key=lambda result: -result.score)[:limit]

    def _similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        return [
            SearchResult(fact.id, similarity(query, text), fact.version)
            for fact in facts
            if (text := text_of(fact, self.target_types)) is not None
        ]

    def indexes(self, fact: Fact) -> bool:
        """Whether a fact has a place in the index."""
        return text_of(fact, self.target_types) is not None


class IndexHook(_IndexHook):
    """An :class:`Index` as a hook."""

    def prepare(self, changes: Sequence[Change]) -> list[Change]:
        return list(changes)

    def apply(self, changes: Sequence[Change]) -> None:
        self._apply(changes)

    def search(self, query: str, limit: int, scope: Scope) -> list[SearchResult]:
        return self._search(query, limit, scope)

    def similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        return self._similarity(query, facts)

    def scan(self) -> dict[str, int]:
        return self.index.versions()


class AsyncIndexHook(_IndexHook):
    """The same, as coroutines."""

    async def prepare(self, changes: Sequence[Change]) -> list[Change]:
        return list(changes)

    async def apply(self, changes: Sequence[Change]) -> None:
        self._apply(changes)

    async def search(self, query: str, limit: int, scope: Scope) -> list[SearchResult]:
        return self._search(query, limit, scope)

    async def similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        return self._similarity(query, facts)

    async def scan(self) -> dict[str, int]:
        return self.index.versions()


def index_hook(index: Index, is_async: bool, **options: Any) -> IndexHook | AsyncIndexHook:
    """A hook of a flavour."""
    return AsyncIndexHook(index, **options) if is_async else IndexHook(index, **options)


class ListingHook(IndexHook):
    """An :class:`IndexHook` that lists its index one by one, and looks entries up."""

    def scan(self) -> Iterator[tuple[str, int]]:  # type: ignore[override]
        yield from list(self.index.versions().items())

    def lookup(self, ids: Sequence[str]) -> dict[str, int]:
        return _looked_up(self.index, ids)


class AsyncListingHook(AsyncIndexHook):
    """The same, as coroutines."""

    async def scan(self) -> AsyncIterator[tuple[str, int]]:  # type: ignore[override]
        for id_, version in list(self.index.versions().items()):
            yield id_, version

    async def lookup(self, ids: Sequence[str]) -> dict[str, int]:
        return _looked_up(self.index, ids)


def _looked_up(index: Index, ids: Sequence[str]) -> dict[str, int]:
    versions = index.versions()
    return {id_: versions[id_] for id_ in ids if id_ in versions}
