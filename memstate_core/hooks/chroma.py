"""Chroma as an index that takes part in transactions.

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

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from memstate_core.errors import HookError
from memstate_core.hooks import _mapping
from memstate_core.hooks._filters import translated

try:
    import numpy as np
    from chromadb.errors import NotFoundError

    from memstate_core.hooks._chroma_filters import Dialect, Where, where_of
    from memstate_core.hooks._chroma_names import ChromaNames
    from memstate_core.hooks._rebuildable import AsyncRebuilding, RebuildableVectorHook, SyncRebuilding, fingerprint
    from memstate_core.hooks._vector_hook import (
        EMBEDDINGS_KEPT,
        AsyncVectorHook,
        Found,
        SyncVectorHook,
        VectorBatch,
        Wanted,
        checked_flavour,
        slices,
    )
    from memstate_core.hooks._vectors import Vector, distances, similarity
except ImportError as error:
    raise ImportError('the Chroma hooks need chromadb: pip install "memstate[chroma]"') from error

if TYPE_CHECKING:
    from chromadb.api import AsyncClientAPI, ClientAPI

T = TypeVar("T")

# Twice the neighbours of Chroma's default. Of 2,000 vectors beside 300 (3,000) equal ones, a search then finds 99 %
# (77 %) of the nearest, instead of 91 % (32 %). It costs nothing when searching, and half as much again when writing.
_NEIGHBORS: Final = 32

_PAGE: Final = 1000
_LISTED: Final = 5000

# Where the metadata of a rebuilt collection has what its embedding function makes of one text.
_MODEL: Final = "memstate_model"


@dataclass(frozen=True, slots=True)
class _Opened:
    collection: Any
    space: str
    limit: int


class _ChromaHook(RebuildableVectorHook):
    """Everything but how to call Chroma and the embedding function."""

    native_filters = Mapping

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
        *,
        embedding_cache: int = EMBEDDINGS_KEPT,
    ) -> None:
        self._client: Any = _checked_client(client, self._asynchronous)
        self.collection_name = collection_name
        mapping = _mapping.FactMapping(
            text_field=text_field,
            text_formatter=text_formatter,
            metadata_fields=metadata_fields,
            metadata_formatter=metadata_formatter,
        )
        super().__init__(
            f"chroma:{collection_name}",
            _DefaultEmbedding() if embedding_fn is None else embedding_fn,
            embedding_cache,
            target_types,
            mapping,
            embedded="fastapi" not in str(client.get_settings().chroma_api_impl),
            dear_filters=True,
        )
        self._dialect = Dialect(mapping.fields)
        self._names = ChromaNames(self._client, self._call, collection_name)
        self._is_beside = False
        self._opened: _Opened | None = None

    async def _write(self, batch: VectorBatch) -> None:
        limit = (await self._open()).limit
        ids = [self._entry_id(fact_id) for fact_id in batch.ids]
        lacking = dict.fromkeys(self._mapping.optional_keys or ())
        for part in slices(len(ids), limit):
            metadatas = [lacking | metadata for metadata in batch.metadatas[part]]
            if self._mapping.optional_keys is None:
                metadatas = await self._without_old_keys(ids[part], metadatas)
            await self._request(
                "upsert",
                ids=ids[part],
                embeddings=batch.vectors[part],
                documents=batch.texts[part],
                metadatas=metadatas,
            )
        for part in slices(len(batch.deleted), limit):
            await self._request("delete", ids=[self._entry_id(fact_id) for fact_id in batch.deleted[part]])

    async def _without_old_keys(self, ids: list[str], metadatas: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The metadata with None for every key that an entry has now and shall not keep."""
        there = await self._request("get", ids=ids, include=["metadatas"])
        old = dict(zip(there["ids"], there["metadatas"], strict=True))
        return [dict.fromkeys(old.get(fact_id) or ()) | new for fact_id, new in zip(ids, metadatas, strict=True)]

    def _entry_id(self, fact_id: str) -> str:
        """The id in Chroma; no other namespace and fact have it, since a store's ids and namespaces have no NUL."""
        return fact_id if self._namespace == "default" else f"{self._namespace}\0{fact_id}"

    def _fact_id(self, entry_id: str) -> str:
        return entry_id if self._namespace == "default" else entry_id.removeprefix(f"{self._namespace}\0")

    async def _nearest(self, vector: Vector, limit: int, wanted: Wanted) -> list[Found]:
        answer = await self._request(
            "query",
            query_embeddings=[vector],
            n_results=limit,
            where=where_of(wanted),
            include=["metadatas", "distances"],
        )
        return self._found(await self._space(), answer["ids"][0], answer["distances"][0], answer["metadatas"][0])

    async def _completed(self, vector: Vector, limit: int, wanted: Wanted, found: list[Found]) -> list[Found]:
        where = where_of(wanted)
        there = await self._request("get", where=where, limit=len(found) + 1, include=[])
        if len(there["ids"]) <= len(found):
            return found

        def scored(space: str, page: Any) -> list[Found]:
            away = distances(space, vector, np.asarray(page["embeddings"], dtype=np.float32))
            return self._found(space, page["ids"], away, page["metadatas"])

        return sorted(await self._all(scored, where, "embeddings"), key=lambda entry: -entry.score)

    def _found(self, space: str, ids: Iterable[str], away: Iterable[float], metadatas: Iterable[Any]) -> list[Found]:
        return [
            Found(self._fact_id(entry_id), similarity(space, distance), metadata or {})
            for entry_id, distance, metadata in zip(ids, away, metadatas, strict=True)
        ]

    async def _page(self, cursor: Any) -> tuple[list[tuple[str, int]], Any]:
        # A filter would be evaluated for the whole collection at each page, and an offset is walked to.
        offset, size = cursor or 0, min((await self._open()).limit, _LISTED)
        page = await self._request("get", limit=size, offset=offset, include=["metadatas"])
        count = len(page["ids"])
        return self._versions(page), offset + count if count == size else None

    async def _lookup(self, ids: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for part in slices(len(ids), (await self._open()).limit):
            entry_ids = [self._entry_id(fact_id) for fact_id in ids[part]]
            found.update(self._versions(await self._request("get", ids=entry_ids, include=["metadatas"])))
        return found

    def _versions(self, page: Any) -> list[tuple[str, int]]:
        """What is of our namespace in a page."""
        ours = _mapping.encodable(self._namespace)
        return [
            (self._fact_id(entry_id), metadata[_mapping.VERSION])
            for entry_id, metadata in zip(page["ids"], page["metadatas"], strict=True)
            if (metadata or {}).get(_mapping.NAMESPACE) == ours
        ]

    async def _all(self, read: Callable[[str, Any], list[T]], where: Where | None, *include: str) -> list[T]:
        """What ``read`` returns for the space and each page of the entries, in one list."""
        opened = await self._open()
        size, found, offset = min(opened.limit, _PAGE), list[T](), 0
        while True:
            page = await self._request("get", where=where, limit=size, offset=offset, include=["metadatas", *include])
            if not page["ids"]:
                return found
            found += read(opened.space, page)
            offset += len(page["ids"])

    async def _space(self) -> str:
        return (await self._open()).space

    def _translated(self, filters: Mapping[str, Any]) -> Where | None:
        clause = translated(filters, self._dialect)
        if clause is None:
            return None
        # Entries with other fields than these may belong to facts that match all the same. A comparison with what no
        # entry has costs nothing, while $ne costs as much as it has matches.
        fields = self._mapping.fingerprint
        return {"$or": [clause, {_mapping.FIELDS: {"$lt": fields}}, {_mapping.FIELDS: {"$gt": fields}}]}

    # Chroma
    async def _open(self) -> _Opened:
        self._check_process()
        opened = self._opened
        if opened is None:
            opened = await self._opening(await self._names.current(_configuration()))
            if (model := (opened.collection.metadata or {}).get(_MODEL)) is not None:
                await self._check_model(model)
            self._opened = opened
        return opened

    async def _opening(self, collection: Any) -> _Opened:
        limit = await self._call(self._client.get_max_batch_size)
        return _Opened(collection, _space(collection), limit if limit > 0 else _PAGE)

    async def _request(self, method: str, **arguments: Any) -> Any:
        opened = await self._open()
        try:
            return await self._call(getattr(opened.collection, method), **arguments)
        except Exception as error:
            # Of a collection that is deleted in the midst of a request, a server says that something is missing in it.
            if self._is_beside or not (isinstance(error, NotFoundError) or await self._is_replaced(opened)):
                raise
        # Someone has deleted the collection, and perhaps made it anew, or put another one in its place.
        self._opened = None
        return await self._call(getattr((await self._open()).collection, method), **arguments)

    async def _is_replaced(self, opened: _Opened) -> bool:
        try:
            current = await self._names.named(self.collection_name)
        except Exception:
            return False
        return current is None or bool(current.id != opened.collection.id)

    # Another collection in place of this one
    async def _beside(self) -> Self:
        self._check_process()
        await self._refuse_others()
        current = await self._names.current(_configuration())
        # What the collection's makers have said of it stays, but for how it is searched, which is in its configuration.
        kept = {key: value for key, value in (current.metadata or {}).items() if not key.startswith("hnsw:")}
        model = fingerprint(await self._probed("beside"))
        made = await self._names.begin(_configuration(_space(current)), {**kept, _MODEL: model})
        hook = copy.copy(self)
        hook._is_beside, hook._opened = True, await self._opening(made)
        return hook

    async def _swap(self, beside: _ChromaHook) -> None:
        assert beside._opened is not None
        await self._refuse_others()
        try:
            await self._names.swap(beside._opened.collection)
        except Exception:
            with contextlib.suppress(Exception):
                await self._settle()  # which gives the old one its name back
            raise
        await self._settle()

    async def _settle(self) -> None:
        self._opened = None
        await self._names.settle(_configuration())

    async def _has_others(self) -> bool:
        others = {_mapping.NAMESPACE: {"$ne": _mapping.encodable(self._namespace)}}
        current = await self._names.current(_configuration())
        return bool((await self._call(current.get, where=others, limit=1, include=[]))["ids"])


class ChromaSyncHook(SyncRebuilding, SyncVectorHook, _ChromaHook):
    """Keeps a Chroma collection in step with the facts, through any sync client (which stays the caller's).

    ``embedding_fn`` is a callable from a list of texts to a list of vectors, such as Chroma's embedding functions, or
    an object with LangChain's ``embed_documents`` and ``embed_query``; None: Chroma's default model, which is
    downloaded when first used. ``embedding_cache`` is how many vectors are remembered, so that a text that was embedded
    lately is not embedded again. Only facts of ``target_types`` are indexed (None: all), under their ids. For the other
    options see :class:`~memstate_core.hooks._mapping.FactMapping`; a fact without text is not in the index.

    The collection is opened on first use, or made, with cosine space. Stores whose namespaces differ may share it;
    hooks of one store may not. Scores are ``1 - distance`` in cosine and inner-product space and ``1 / (1 + distance)``
    in L2 space. Filters narrow the search in Chroma by the ``metadata_fields``; a
    :class:`~memstate_core.filters.NativeFilter` is a ``where`` on the metadata.

    :raises HookError: from every method, when the embedding function returns no proper vectors, or the default one
        fails; what other embedding functions and Chroma raise comes as it is.
    """


class AsyncChromaSyncHook(AsyncRebuilding, AsyncVectorHook, _ChromaHook):
    """Same as :class:`ChromaSyncHook`, awaited; ``client`` is what ``await chromadb.AsyncHttpClient()`` returns.

    ``embedding_fn`` may also be a coroutine function, or have LangChain's ``aembed_documents`` and ``aembed_query``; a
    plain one runs in a thread.
    """


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
    return checked_flavour(client, "get_or_create_collection", asynchronous, "ChromaSyncHook")


def _configuration(space: str = "cosine") -> dict[str, Any]:
    return {"hnsw": {"space": space, "max_neighbors": _NEIGHBORS}}


def _space(collection: Any) -> str:
    configuration: Mapping[str, Any] = collection.configuration_json
    return str((configuration.get("hnsw") or configuration.get("spann") or {}).get("space", "l2"))
