"""Chroma as an index that takes part in transactions.

What is asked of Chroma is decided once, in coroutines over a client that either answers at once or is awaited;
:func:`memstate_core._bridge.run` drives them for the sync hook.

What to know about Chroma (1.x):

- An upsert merges metadata into what is there; a key goes when it is given as None.
- The HNSW graph is approximate. Many equal vectors push others out of its reach, so collections made here have a wider
  graph than Chroma's default, and a search that comes back short is completed exactly.
- An embedded client (``EphemeralClient``, ``PersistentClient``) is for one process: its searches miss what another
  process has written to the same path, and after a fork it hangs for ever, a new one on the same path too. Several
  processes need a Chroma server.
- A filter costs as much as it has matches, which for a common type is far more than the search itself.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from memstate_core._bridge import AsyncRuntime, run
from memstate_core.errors import HookError
from memstate_core.facts import Change, Fact, SearchResult
from memstate_core.hooks import _mapping
from memstate_core.protocols import Scope

try:
    import numpy as np
    from chromadb.errors import NotFoundError

    from memstate_core.hooks._vectors import EmbeddingCalls, Vector, checked_vectors, distances, similarity
except ImportError as error:
    raise ImportError('the Chroma hooks need chromadb: pip install "memstate[chroma]"') from error

if TYPE_CHECKING:
    from chromadb.api import AsyncClientAPI, ClientAPI

T = TypeVar("T")

# Twice the neighbours of Chroma's default. Of 2,000 vectors beside 300 (3,000) equal ones, a search then finds 99 %
# (77 %) of the nearest, instead of 91 % (32 %). It costs nothing when searching, and half as much again when writing.
_NEW_INDEX: Final = {"space": "cosine", "max_neighbors": 32}

_PAGE: Final = 1000

# A search for one type asks for this many times its limit of any type first, which is enough where the type is common.
_MORE: Final = 4


@dataclass(frozen=True, slots=True)
class ChromaBatch:
    """A transaction as Chroma is told of it: parallel lists of what is to be there, and the ids of what is not."""

    ids: list[str]
    texts: list[str]
    vectors: list[Vector]
    metadatas: list[dict[str, Any]]
    deleted: list[str]


@dataclass(frozen=True, slots=True)
class _Opened:
    collection: Any
    space: str
    limit: int


class _ChromaHook:
    """Everything but how to call Chroma and the embedding function."""

    _asynchronous: ClassVar[bool]
    _call: Callable[..., Coroutine[Any, Any, Any]]
    _compute: Callable[[Callable[[Any], Any], Any], Coroutine[Any, Any, Any]]

    def __init__(
        self,
        client: ClientAPI | AsyncClientAPI,
        collection_name: str,
        embedding_fn: Any = None,
        target_types: Iterable[str] | None = None,
        text_field: str | None = None,
        text_formatter: _mapping.TextFormatter | None = None,
        metadata_fields: Iterable[str] | None = None,
        metadata_formatter: _mapping.MetadataFormatter | None = None,
    ) -> None:
        self._client: Any = _checked_client(client, self._asynchronous)
        self.collection_name = collection_name
        self.name = f"chroma:{collection_name}"
        self.target_types = _mapping.type_names(target_types)
        self._mapping = _mapping.FactMapping(
            text_field=text_field,
            text_formatter=text_formatter,
            metadata_fields=metadata_fields,
            metadata_formatter=metadata_formatter,
        )
        function = _DefaultEmbedding() if embedding_fn is None else embedding_fn
        self._embedding = EmbeddingCalls(function, self._asynchronous)
        self._opened: _Opened | None = None
        self._pid = os.getpid() if "fastapi" not in str(client.get_settings().chroma_api_impl) else None

    async def _prepare(self, changes: Sequence[Change]) -> ChromaBatch:
        last = {change.fact_id: change.after for change in changes}
        facts = (fact for fact in last.values() if fact is not None)
        indexed = [(fact, text) for fact in facts if (text := self._text(fact)) is not None]
        ids, texts = [fact.id for fact, _ in indexed], [text for _, text in indexed]
        lacking = dict.fromkeys(self._mapping.optional_keys or ())
        metadatas = [lacking | self._mapping.metadata(fact) for fact, _ in indexed]
        vectors = await self._embed(texts, "prepare") if texts else []
        return ChromaBatch(ids, texts, vectors, metadatas, deleted=sorted(last.keys() - set(ids)))

    async def _apply(self, batch: ChromaBatch | Sequence[Change]) -> None:
        if not isinstance(batch, ChromaBatch):
            batch = await self._prepare(batch)
        if not batch.ids and not batch.deleted:
            return
        limit = (await self._open()).limit
        for part in _slices(len(batch.ids), limit):
            metadatas = batch.metadatas[part]
            if self._mapping.optional_keys is None:
                metadatas = await self._without_old_keys(batch.ids[part], metadatas)
            await self._request(
                "upsert",
                ids=batch.ids[part],
                embeddings=batch.vectors[part],
                documents=batch.texts[part],
                metadatas=metadatas,
            )
        for part in _slices(len(batch.deleted), limit):
            await self._request("delete", ids=batch.deleted[part])

    async def _without_old_keys(self, ids: list[str], metadatas: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The metadata with None for every key that an entry has now and shall not keep."""
        there = await self._request("get", ids=ids, include=["metadatas"])
        old = dict(zip(there["ids"], there["metadatas"], strict=True))
        return [dict.fromkeys(old.get(fact_id) or ()) | new for fact_id, new in zip(ids, metadatas, strict=True)]

    async def _search(self, query: str, limit: int, scope: Scope) -> list[SearchResult]:
        if limit < 1:
            return []
        vector = await self._embed_query(query, "search")
        conditions = _mapping.conditions(scope, self.target_types)
        if conditions.keys() == {_mapping.TYPE}:
            found = await self._query(vector, limit * _MORE, None, conditions)
            if len(found) >= limit:
                return found[:limit]
        where = _where(conditions)
        found = await self._query(vector, limit, where)
        if len(found) < limit:
            there = await self._request("get", where=where, limit=len(found) + 1, include=[])
            if len(there["ids"]) > len(found):
                return (await self._search_exactly(vector, where))[:limit]
        return found

    async def _query(
        self, vector: Vector, limit: int, where: dict[str, Any] | None, having: Mapping[str, Any] | None = None
    ) -> list[SearchResult]:
        """The nearest entries of those that match ``where``, without those that lack the metadata ``having``."""
        answer = await self._request(
            "query", query_embeddings=[vector], n_results=limit, where=where, include=["metadatas", "distances"]
        )
        entries = zip(answer["ids"][0], answer["distances"][0], answer["metadatas"][0], strict=True)
        wanted = (having or {}).items()
        return _results((await self._open()).space, (entry for entry in entries if wanted <= (entry[2] or {}).items()))

    async def _search_exactly(self, query: Vector, where: dict[str, Any] | None) -> list[SearchResult]:
        def score(space: str, page: Any) -> list[SearchResult]:
            found = distances(space, query, np.asarray(page["embeddings"], dtype=np.float32))
            return _results(space, zip(page["ids"], found, page["metadatas"], strict=True))

        return sorted(await self._all(score, where, "embeddings"), key=_descending)

    async def _scan(self) -> dict[str, int]:
        def versions(_: str, page: Any) -> list[tuple[str, int]]:
            entries = zip(page["ids"], map(_version, page["metadatas"]), strict=True)
            return [(fact_id, version) for fact_id, version in entries if version is not None]

        return dict(await self._all(versions, None))

    async def _all(self, read: Callable[[str, Any], list[T]], where: dict[str, Any] | None, *include: str) -> list[T]:
        """What ``read`` returns for the space and each page of the entries, in one list."""
        opened = await self._open()
        size, found, offset = min(opened.limit, _PAGE), list[T](), 0
        while True:
            page = await self._request("get", where=where, limit=size, offset=offset, include=["metadatas", *include])
            if not page["ids"]:
                return found
            found += read(opened.space, page)
            offset += len(page["ids"])

    async def _similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        known = [(fact, text) for fact in facts if (text := self._text(fact)) is not None]
        if not known:
            return []
        space = (await self._open()).space
        vectors = np.asarray(await self._embed([text for _, text in known], "search"))
        found = distances(space, await self._embed_query(query, "search"), vectors)
        pairs = zip(known, found, strict=True)
        entries = ((fact.id, distance, {_mapping.VERSION: fact.version}) for (fact, _), distance in pairs)
        return sorted(_results(space, entries), key=_descending)

    def indexes(self, fact: Fact) -> bool:
        """Whether the fact, as it is, belongs into the index."""
        return self._text(fact) is not None

    def _text(self, fact: Fact) -> str | None:
        wanted = self.target_types is None or fact.type in self.target_types
        return self._mapping.text(fact) if wanted else None

    # Chroma
    async def _open(self) -> _Opened:
        if self._pid not in {None, os.getpid()}:
            raise HookError(
                f"hook {self.name!r} has an embedded Chroma client that was made before this process was forked, where"
                " it would hang: start processes by 'spawn', or use a Chroma server",
                hook=self.name,
            )
        opened = self._opened
        if opened is None:
            # Without an embedding function Chroma does not compare it with the one that the collection may remember.
            collection = await self._call(
                self._client.get_or_create_collection,
                name=self.collection_name,
                configuration={"hnsw": dict(_NEW_INDEX)},
                embedding_function=None,
            )
            limit = await self._call(self._client.get_max_batch_size)
            self._opened = opened = _Opened(collection, _space(collection), limit if limit > 0 else _PAGE)
        return opened

    async def _request(self, method: str, **arguments: Any) -> Any:
        try:
            return await self._call(getattr((await self._open()).collection, method), **arguments)
        except NotFoundError:
            # Someone has deleted the collection, and perhaps made it anew.
            self._opened = None
            return await self._call(getattr((await self._open()).collection, method), **arguments)

    # Embedding
    async def _embed(self, texts: list[str], operation: str) -> list[Vector]:
        return await self._vectors(self._embedding.documents, texts, len(texts), operation)

    async def _embed_query(self, text: str, operation: str) -> Vector:
        argument = [text] if self._embedding.query_takes_list else text
        return (await self._vectors(self._embedding.query, argument, 1, operation))[0]

    async def _vectors(self, function: Any, argument: Any, expected: int, operation: str) -> list[Vector]:
        try:
            return checked_vectors(await self._compute(function, argument), expected)
        except HookError as error:
            error.hook, error.operation = self.name, operation
            raise


class ChromaSyncHook(_ChromaHook):
    """Keeps a Chroma collection in step with the facts, through any sync client (which stays the caller's).

    ``embedding_fn`` is a callable from a list of texts to a list of vectors, such as Chroma's embedding functions, or
    an object with LangChain's ``embed_documents`` and ``embed_query``; None: Chroma's default model, which is
    downloaded when first used. Only facts of ``target_types`` are indexed (None: all), under their ids. For the other
    options see :class:`~memstate_core.hooks._mapping.FactMapping`; a fact without text is not in the index.

    The collection is opened on first use, or made, with cosine space; give every store its own. Scores are
    ``1 - distance`` in cosine and inner-product space and ``1 / (1 + distance)`` in L2 space.

    :raises HookError: from every method, when the embedding function returns no proper vectors, or the default one
        fails; what other embedding functions and Chroma raise comes as it is.
    """

    _asynchronous = False

    async def _call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        return function(**arguments)

    async def _compute(self, function: Callable[[Any], Any], argument: Any) -> Any:
        result = function(argument)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise HookError("embedding_fn is asynchronous: pass a plain function, or use AsyncChromaSyncHook")
        return result

    def prepare(self, changes: Sequence[Change]) -> ChromaBatch:
        """Embed what is to be indexed. Where two changes are of one fact, the later one counts."""
        return run(self._prepare(changes))

    def apply(self, changes: ChromaBatch | Sequence[Change]) -> None:
        """One upsert and one delete, or as many as Chroma's largest batch needs."""
        run(self._apply(changes))

    def search(self, query: str, limit: int, scope: Scope = Scope()) -> list[SearchResult]:  # noqa: B008 - immutable
        return run(self._search(query, limit, scope))

    def scan(self) -> dict[str, int]:
        """``{fact id: version}`` of all entries; what others keep in the collection is left out."""
        return run(self._scan())

    def similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        """What a search would say of these facts as they are given, in the index or not, best first."""
        return run(self._similarity(query, facts))


class AsyncChromaSyncHook(_ChromaHook):
    """Same as :class:`ChromaSyncHook`, awaited; ``client`` is what ``await chromadb.AsyncHttpClient()`` returns.

    ``embedding_fn`` may also be a coroutine function, or have LangChain's ``aembed_documents`` and ``aembed_query``; a
    plain one runs in a thread.
    """

    _asynchronous = True

    async def _call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        return await function(**arguments)

    async def _compute(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return await AsyncRuntime().call(function, argument)

    async def prepare(self, changes: Sequence[Change]) -> ChromaBatch:
        """Same as :meth:`ChromaSyncHook.prepare`, awaited."""
        return await self._prepare(changes)

    async def apply(self, changes: ChromaBatch | Sequence[Change]) -> None:
        """Same as :meth:`ChromaSyncHook.apply`, awaited."""
        await self._apply(changes)

    async def search(self, query: str, limit: int, scope: Scope = Scope()) -> list[SearchResult]:  # noqa: B008
        """Same as :meth:`ChromaSyncHook.search`, awaited."""
        return await self._search(query, limit, scope)

    async def scan(self) -> dict[str, int]:
        """Same as :meth:`ChromaSyncHook.scan`, awaited."""
        return await self._scan()

    async def similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        """Same as :meth:`ChromaSyncHook.similarity`, awaited."""
        return await self._similarity(query, facts)


class _DefaultEmbedding:
    """Chroma's default model, loaded once; Chroma's ``DefaultEmbeddingFunction`` loads it anew for every call."""

    def __init__(self) -> None:
        self._function: Any = None

    def __call__(self, texts: list[str]) -> Any:
        from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2

        try:
            if self._function is None:
                self._function = ONNXMiniLM_L6_V2()
            return self._function(texts)
        except Exception as error:
            raise HookError(
                f"Chroma's default embedding function failed ({type(error).__name__}: {error}). It downloads its model"
                f" when first used, to {ONNXMiniLM_L6_V2.DOWNLOAD_PATH}; delete that directory if it is damaged."
                " Offline, pass embedding_fn=: any callable from a list of texts to a list of vectors, or an object"
                " with embed_documents and embed_query (for demos: memstate_core.embedding.LexicalEmbedder())"
            ) from error


def _checked_client(client: Any, asynchronous: bool) -> Any:
    if inspect.iscoroutine(client):
        client.close()
        raise TypeError("chromadb.AsyncHttpClient() is a coroutine: pass client=await chromadb.AsyncHttpClient()")
    if inspect.iscoroutinefunction(client.get_or_create_collection) is not asynchronous:
        wanted, other = ("ChromaSyncHook", "a sync") if asynchronous else ("AsyncChromaSyncHook", "an async")
        raise TypeError(f"{type(client).__qualname__} is {other} client: use {wanted}")
    return client


def _space(collection: Any) -> str:
    configuration: Mapping[str, Any] = collection.configuration_json
    return str((configuration.get("hnsw") or configuration.get("spann") or {}).get("space", "l2"))


def _where(conditions: Mapping[str, Any]) -> dict[str, Any] | None:
    clauses = [{key: value} for key, value in conditions.items()]
    return {"$and": clauses} if len(clauses) > 1 else clauses[0] if clauses else None


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _version(metadata: Mapping[str, Any] | None) -> int | None:
    version = (metadata or {}).get(_mapping.VERSION)
    return version if isinstance(version, int) else None


def _results(space: str, entries: Iterable[tuple[str, float, Any]]) -> list[SearchResult]:
    return [SearchResult(id_, similarity(space, distance), _version(metadata)) for id_, distance, metadata in entries]


def _descending(result: SearchResult) -> float:
    return -result.score
