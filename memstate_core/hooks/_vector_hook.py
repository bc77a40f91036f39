"""What the hooks of all vector indexes have in common: everything but the requests themselves.

It is decided once, in coroutines that wait for nothing but a vendor's client and the embedding function, which either
answer at once or are awaited; :func:`memstate_core._bridge.run` drives them for the sync hooks.
"""

from __future__ import annotations

import abc
import contextlib
import copy
import inspect
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, Self

import numpy as np

from memstate_core._async_bridge import AsyncRuntime
from memstate_core._bridge import run
from memstate_core.errors import HookError
from memstate_core.facts import Change, Fact, SearchResult
from memstate_core.hooks import _mapping
from memstate_core.hooks._embedding import Embedder
from memstate_core.hooks._vectors import Vector, distances, similarity
from memstate_core.protocols import Scope

# Where filters are dear, a search for one type asks for this many times its limit of any type first, which is enough
# where the type is common.
_MORE: Final = 4

# How many vectors a hook remembers unless it is told otherwise: 6 MB of 384 dimensions, 48 MB of 3,072.
EMBEDDINGS_KEPT: Final = 4096


@dataclass(frozen=True, slots=True)
class VectorBatch:
    """A transaction as an index is told of it: parallel lists of what is to be there, and the ids of what is not."""

    ids: list[str]
    texts: list[str]
    vectors: list[Vector]
    metadatas: list[_mapping.Metadata]
    deleted: list[str]


class Found(NamedTuple):
    """An entry that a search came upon."""

    fact_id: str
    score: float
    metadata: Mapping[str, Any]


class Wanted(NamedTuple):
    """Which entries a search is for: those with metadata ``equal`` to these that fulfil the ``clauses``.

    Clauses are in the index's own language.
    """

    equal: dict[str, _mapping.Scalar]
    clauses: tuple[Any, ...]


class VectorHook(abc.ABC):
    """A hook but for its vendor, and for whether it waits."""

    name: str
    #: The vendor's filters, as :class:`~memstate_core.protocols.Scope` may have one.
    native_filters: ClassVar[type | tuple[type, ...]]
    _asynchronous: ClassVar[bool]
    _call: Callable[..., Coroutine[Any, Any, Any]]
    _compute: Callable[[Callable[[Any], Any], Any], Coroutine[Any, Any, Any]]
    _namespace: str = "default"

    def __init__(
        self,
        name: str,
        embedding_fn: Any,
        embedding_cache: int,
        target_types: Iterable[str] | None,
        mapping: _mapping.FactMapping,
        *,
        embedded: bool,
        dear_filters: bool,
    ) -> None:
        self.name = name
        self.target_types = _mapping.type_names(target_types)
        self._mapping = mapping
        self._embedder = Embedder(embedding_fn, self._asynchronous, embedding_cache)
        # An index within the process, which a fork takes apart.
        self._embedded = embedded
        self._pid = os.getpid()
        #: Filters cost many times the search itself.
        self.dear_filters = dear_filters

    def for_namespace(self, namespace: str) -> Self:
        """The same hook for the store of a namespace, which sees none of the others' entries.

        Stores ask for it; a hook that is used by itself is for the namespace "default".
        """
        if namespace == self._namespace:
            return self
        hook = copy.copy(self)
        hook._namespace = namespace
        return hook

    # Writing
    async def _prepare(self, changes: Sequence[Change]) -> VectorBatch:
        last = {change.fact_id: change.after for change in changes}
        facts = (fact for fact in last.values() if fact is not None)
        indexed = [(fact, text) for fact in facts if (text := self._text(fact)) is not None]
        ids, texts = [fact.id for fact, _ in indexed], [text for _, text in indexed]
        metadatas = [self._mapping.metadata(fact, self._namespace) for fact, _ in indexed]
        vectors = await self._embed(texts, "prepare") if texts else []
        if vectors:
            await self._check(vectors[0])
        return VectorBatch(ids, texts, vectors, metadatas, deleted=sorted(last.keys() - set(ids)))

    async def _apply(self, batch: VectorBatch | Sequence[Change]) -> None:
        if not isinstance(batch, VectorBatch):
            batch = await self._prepare(batch)
        if batch.ids or batch.deleted:
            await self._write(batch)

    # Searching
    async def _search(self, query: str, limit: int, scope: Scope) -> list[SearchResult]:
        if limit < 1:
            return []
        vector = await self._embed_query(query, "search")
        common, rare = _mapping.conditions(scope, self._namespace, self.target_types)
        clauses = (None if scope.filters is None else self._translated(scope.filters), scope.native)
        wanted = Wanted(common | rare, tuple(clause for clause in clauses if clause is not None))
        found: list[Found] = []
        more = True
        if self.dear_filters:
            asked = limit * _MORE if _mapping.TYPE in common else limit
            nearest = await self._nearest(vector, asked, Wanted(rare, wanted.clauses))
            found = [entry for entry in nearest if common.items() <= entry.metadata.items()]
            more = len(nearest) == asked
        if len(found) < limit and more:
            found = await self._nearest(vector, limit, wanted)
        if len(found) < limit:
            found = await self._completed(vector, limit, wanted, found)
        return [SearchResult(fact_id, score, _version(metadata)) for fact_id, score, metadata in found[:limit]]

    async def _similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        known = [(fact, text) for fact in facts if (text := self._text(fact)) is not None]
        if not known:
            return []
        space = await self._space()
        vectors = np.asarray(await self._embed([text for _, text in known], "search"))
        found = distances(space, await self._embed_query(query, "search"), vectors)
        scored = [
            SearchResult(fact.id, similarity(space, distance), fact.version)
            for (fact, _), distance in zip(known, found, strict=True)
        ]
        return sorted(scored, key=lambda result: -result.score)

    def indexes(self, fact: Fact) -> bool:
        """Whether the fact, as it is, belongs into the index."""
        return self._text(fact) is not None

    def _text(self, fact: Fact) -> str | None:
        wanted = self.target_types is None or fact.type in self.target_types
        return self._mapping.text(fact) if wanted else None

    # Embedding
    async def _embed(self, texts: list[str], operation: str) -> list[Vector]:
        with self._attributing(operation):
            return await self._embedder.documents(texts, self._compute)

    async def _embed_query(self, text: str, operation: str) -> Vector:
        with self._attributing(operation):
            return await self._embedder.query(text, self._compute)

    @contextlib.contextmanager
    def _attributing(self, operation: str) -> Iterator[None]:
        try:
            yield
        except HookError as error:
            error.hook, error.operation = self.name, operation
            raise

    def _check_process(self) -> None:
        if self._embedded and self._pid != os.getpid():
            raise HookError(
                f"hook {self.name!r} has an embedded client that was made before this process was forked, where it"
                " would hang, or part from its parent's: start processes by 'spawn', or use a server",
                hook=self.name,
            )

    # What a vendor is asked. Each opens the collection, and makes it if need be, when it is first used.
    async def _check(self, vector: Vector) -> None:  # noqa: B027 - nothing, where the vendor says it well
        """
        :raises HookError: the collection is for vectors of another length. One that is not there yet is not made.
        """

    @abc.abstractmethod
    async def _write(self, batch: VectorBatch) -> None: ...

    @abc.abstractmethod
    async def _nearest(self, vector: Vector, limit: int, wanted: Wanted) -> list[Found]:
        """The nearest entries, best first, with the metadata that searches ask for.

        Where several namespaces share an index and ``wanted`` does not say which, there may be any in it.
        """

    @abc.abstractmethod
    async def _completed(self, vector: Vector, limit: int, wanted: Wanted, found: list[Found]) -> list[Found]:
        """``found``, or what an approximate search may have missed, since there are fewer than ``limit``."""

    @abc.abstractmethod
    async def _page(self, cursor: Any) -> tuple[list[tuple[str, int]], Any]:
        """Ids and versions of some entries of the namespace, and where to go on (None: there are no more).

        ``cursor`` is what the page before has said; None: from the start.
        """

    @abc.abstractmethod
    async def _lookup(self, ids: Sequence[str]) -> dict[str, int]: ...

    @abc.abstractmethod
    async def _space(self) -> str:
        """How the collection measures distances, as :func:`~memstate_core.hooks._vectors.distances` calls it."""

    @abc.abstractmethod
    def _translated(self, filters: Mapping[str, Any]) -> Any | None:
        """A clause that every entry of a fact that matches fulfils, as far as can be known; None: there is none."""


class SyncVectorHook(VectorHook):
    """The methods of a hook, for a client that answers at once."""

    _asynchronous = False

    async def _call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        return function(**arguments)

    async def _compute(self, function: Callable[[Any], Any], argument: Any) -> Any:
        result = function(argument)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise HookError(
                f"embedding_fn is asynchronous: pass a plain function, or use Async{type(self).__name__} in an"
                " AsyncMemoryStore"
            )
        return result

    def prepare(self, changes: Sequence[Change]) -> VectorBatch:
        """Embed what is to be indexed and was not lately. Where two changes are of one fact, the later one counts."""
        return run(self._prepare(changes))

    def apply(self, changes: VectorBatch | Sequence[Change]) -> None:
        """As few requests as the index's largest batch allows."""
        run(self._apply(changes))

    def search(self, query: str, limit: int, scope: Scope = Scope()) -> list[SearchResult]:  # noqa: B008 - immutable
        return run(self._search(query, limit, scope))

    def scan(self) -> Iterator[tuple[str, int]]:
        """Fact id and version of all entries of the namespace, which are asked for page by page."""
        cursor = None
        while True:
            page, cursor = run(self._page(cursor))
            yield from page
            if cursor is None:
                return

    def lookup(self, ids: Sequence[str]) -> dict[str, int]:
        """``{fact id: version}`` of the entries of these facts."""
        return run(self._lookup(ids))

    def similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        """What a search would say of these facts as they are given, in the index or not, best first."""
        return run(self._similarity(query, facts))


class AsyncVectorHook(VectorHook):
    """Same as :class:`SyncVectorHook`, awaited. A plain embedding function runs in a thread."""

    _asynchronous = True

    async def _call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        return await function(**arguments)

    async def _compute(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return await AsyncRuntime().call(function, argument)

    async def prepare(self, changes: Sequence[Change]) -> VectorBatch:
        """Same as :meth:`SyncVectorHook.prepare`, awaited."""
        return await self._prepare(changes)

    async def apply(self, changes: VectorBatch | Sequence[Change]) -> None:
        """Same as :meth:`SyncVectorHook.apply`, awaited."""
        await self._apply(changes)

    async def search(self, query: str, limit: int, scope: Scope = Scope()) -> list[SearchResult]:  # noqa: B008
        """Same as :meth:`SyncVectorHook.search`, awaited."""
        return await self._search(query, limit, scope)

    async def scan(self) -> AsyncIterator[tuple[str, int]]:
        """Same as :meth:`SyncVectorHook.scan`, asynchronously."""
        cursor = None
        while True:
            page, cursor = await self._page(cursor)
            for entry in page:
                yield entry
            if cursor is None:
                return

    async def lookup(self, ids: Sequence[str]) -> dict[str, int]:
        """Same as :meth:`SyncVectorHook.lookup`, awaited."""
        return await self._lookup(ids)

    async def similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        """Same as :meth:`SyncVectorHook.similarity`, awaited."""
        return await self._similarity(query, facts)


def checked_flavour(client: Any, method: str, asynchronous: bool, sync_hook: str) -> Any:
    """The client, whose ``method`` must be a coroutine function or not.

    :raises TypeError: it is a client of the other flavour.
    """
    if inspect.iscoroutinefunction(getattr(client, method)) is not asynchronous:
        wanted, other = (sync_hook, "a sync") if asynchronous else (f"Async{sync_hook}", "an async")
        raise TypeError(f"{type(client).__qualname__} is {other} client: use {wanted}")
    return client


def slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _version(metadata: Mapping[str, Any]) -> int | None:
    version = metadata.get(_mapping.VERSION)
    return version if isinstance(version, int) else None
