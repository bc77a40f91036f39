"""Qdrant as an index that takes part in transactions: in memory, on disk, and on a server.

What to know about Qdrant (client 1.14 and newer):

- Ids of points are UUIDs or numbers. A point's id is made from namespace and fact id; the payload has the real ones.
- In memory and on disk (``QdrantClient(":memory:")``, ``QdrantClient(path=…)``) it is Python code without an index, for
  one process and up to some 20,000 entries. A filter costs many times the search itself there, and nothing guards it
  against threads, so the hooks of a client take turns.
- An alias can be moved to another collection at once, while a collection keeps its name. See ``_qdrant_names``.
- On a server, a payload index on a field answers conditions on it alone: it must be of a kind that has all values that
  the conditions are about. Numbers are therefore indexed, and asked for, as floats.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Self, TypeVar
from weakref import WeakKeyDictionary

from memstate_core.errors import HookError
from memstate_core.hooks import _mapping
from memstate_core.hooks._filters import translated

try:
    from qdrant_client import AsyncQdrantClient, QdrantClient, models
    from qdrant_client.local.async_qdrant_local import AsyncQdrantLocal
    from qdrant_client.local.qdrant_local import QdrantLocal

    from memstate_core.hooks._qdrant_collections import (
        KINDS,
        OURS,
        SPACES,
        Opened,
        checked_distance,
        indexes_like,
        options_like,
    )
    from memstate_core.hooks._qdrant_filters import Dialect, between, equal, filter_of, key_of
    from memstate_core.hooks._qdrant_names import QdrantNames, vectors_in, vectors_of
    from memstate_core.hooks._qdrant_points import (
        FACT_ID,
        MODEL,
        MODEL_ID,
        SEEN,
        model_point,
        point_id,
        requests,
        versions,
    )
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
    from memstate_core.hooks._vectors import Vector, similarity
except ImportError as error:
    raise ImportError('the Qdrant hooks need qdrant-client: pip install "memstate[qdrant]"') from error

T = TypeVar("T")

logger: Final = logging.getLogger("memstate.hooks")

_PAGE: Final = 1000
_EMBEDDED_PAGE: Final = 10_000

# Clients within the process, and whose turn it is with them.
_turns: Final[WeakKeyDictionary[Any, threading.RLock]] = WeakKeyDictionary()
_turns_guard: Final = threading.Lock()


class _QdrantHook(RebuildableVectorHook):
    """Everything but how to call Qdrant and the embedding function."""

    native_filters = models.Filter

    def __init__(
        self,
        client: QdrantClient | AsyncQdrantClient,
        collection_name: str,
        embedding_fn: Any,
        target_types: Iterable[str] | None = None,
        text_field: str | None = None,
        text_formatter: _mapping.TextFormatter | None = None,
        metadata_fields: Iterable[str] | None = None,
        metadata_formatter: _mapping.MetadataFormatter | None = None,
        distance: models.Distance | str | None = None,
        *,
        embedding_cache: int = EMBEDDINGS_KEPT,
    ) -> None:
        self._client: Any = checked_flavour(client, "get_collection", self._asynchronous, "QdrantSyncHook")
        self.collection_name = collection_name
        mapping = _mapping.FactMapping(
            text_field=text_field,
            text_formatter=text_formatter,
            metadata_fields=metadata_fields,
            metadata_formatter=metadata_formatter,
            keep_lists=True,
        )
        embedded = isinstance(getattr(client, "_client", None), QdrantLocal | AsyncQdrantLocal)
        super().__init__(
            f"qdrant:{collection_name}",
            embedding_fn,
            embedding_cache,
            target_types,
            mapping,
            embedded=embedded,
            dear_filters=embedded,
        )
        self._dialect = Dialect(mapping.fields, negates=not embedded)
        self._distance = checked_distance(distance)
        self._names = QdrantNames(self._client, self._call, collection_name)
        # What requests go to: what has the name, or the one that is made beside it.
        self._asked = collection_name
        self._opened: Opened | None = None
        self._indexed: set[str] = set()

    def _turn(self) -> contextlib.AbstractContextManager[Any]:
        """Keeps others from a client that nothing guards; where there is one thread, nobody comes in between."""
        return contextlib.nullcontext()

    async def _check(self, vector: Vector) -> None:
        self._check_process()
        self._check_size(self._opened or await self._known(), vector, "prepare")

    async def _write(self, batch: VectorBatch) -> None:
        async def write(opened: Opened | None) -> None:
            if opened is None:
                return
            if batch.vectors:
                self._check_size(opened, batch.vectors[0], "apply")
                await self._index(self._kinds(batch.metadatas))
            for operations in requests(batch, self._namespace, opened.vectors):
                await self._ask(
                    "batch_update_points",
                    update_operations=operations,
                    wait=True,
                    ordering=models.WriteOrdering.STRONG,
                )

        await self._on_what_is_there(write, len(batch.vectors[0]) if batch.vectors else None)

    async def _nearest(self, vector: Vector, limit: int, wanted: Wanted) -> list[Found]:
        return await self._query(vector, limit, wanted)

    async def _completed(self, vector: Vector, limit: int, wanted: Wanted, found: list[Found]) -> list[Found]:
        return found if self._embedded else await self._query(vector, limit, wanted, exact=True)

    async def _query(self, vector: Vector, limit: int, wanted: Wanted, *, exact: bool = False) -> list[Found]:
        async def query(opened: Opened | None) -> list[Found]:
            if opened is None:
                return []
            self._check_size(opened, vector, "search")
            answer = await self._ask(
                "query_points",
                query=vector.tolist(),
                using=opened.vectors,
                query_filter=filter_of(wanted),
                search_params=models.SearchParams(exact=True) if exact else None,
                limit=limit,
                with_payload=SEEN,
                with_vectors=False,
            )
            return [
                Found(str(point.payload[FACT_ID]), _similarity(opened.space, point.score), point.payload)
                for point in answer.points
                if FACT_ID in (point.payload or {})
            ]

        return await self._on_what_is_there(query)

    async def _page(self, cursor: Any) -> tuple[list[tuple[str, int]], Any]:
        ours = models.Filter(must=[equal(_mapping.NAMESPACE, _mapping.encodable(self._namespace))])

        if cursor is None and not self._is_beside:
            # Who goes through the whole index shall know if it is another model's by now.
            self._opened = None

        async def page(opened: Opened | None) -> tuple[list[tuple[str, int]], Any]:
            if opened is None:
                return [], None
            points, following = await self._ask(
                "scroll",
                scroll_filter=ours,
                limit=_EMBEDDED_PAGE if self._embedded else _PAGE,
                offset=cursor,
                with_payload=SEEN,
                with_vectors=False,
            )
            return versions(points), following

        return await self._on_what_is_there(page)

    async def _lookup(self, ids: Sequence[str]) -> dict[str, int]:
        async def lookup(opened: Opened | None) -> dict[str, int]:
            if opened is None:
                return {}
            found: dict[str, int] = {}
            for part in slices(len(ids), _PAGE):
                point_ids = [point_id(self._namespace, fact_id) for fact_id in ids[part]]
                points = await self._ask("retrieve", ids=point_ids, with_payload=SEEN, with_vectors=False)
                found.update(versions(points))
            return found

        return await self._on_what_is_there(lookup)

    async def _space(self) -> str:
        opened = await self._open()
        return SPACES[self._distance or models.Distance.COSINE] if opened is None else opened.space

    def _translated(self, filters: Mapping[str, Any]) -> models.Filter | None:
        clause = translated(filters, self._dialect)
        if clause is None:
            return None
        # Entries with other fields than these may belong to facts that match all the same.
        fields = self._mapping.fingerprint
        others = [between(_mapping.FIELDS, lt=fields), between(_mapping.FIELDS, gt=fields)]
        return models.Filter(should=[clause, *others])

    # Qdrant
    async def _open(self, size: int | None = None) -> Opened | None:
        """The collection; one that is not there is made when ``size`` says for which vectors, or else None."""
        self._check_process()
        opened = self._opened
        if opened is None:
            # Old clients make a collection within the process though there is an alias of the name by now.
            with self._turn():
                opened = await self._look() or (None if size is None else await self._made(size))
            if opened is None:
                return None
            await self._refuse_other_models(opened)
            await self._index(OURS)
            self._opened = opened
        return opened

    async def _known(self) -> Opened | None:
        """The collection, if it is there, whose model is ours."""
        if (opened := await self._look()) is not None:
            await self._refuse_other_models(opened)
        return opened

    async def _look(self) -> Opened | None:
        if (info := await self._names.info()) is None:
            return None
        vectors, params = vectors_in(info)
        if params is None or params.multivector_config is not None:
            raise HookError(
                f"the collection {self.collection_name!r} has named, sparse or multiple vectors; a hook needs one with"
                " a single vector for each point: pass another collection_name, and it is made",
                hook=self.name,
            )
        if self._distance not in (None, params.distance):
            raise HookError(
                f"the collection {self.collection_name!r} measures by distance={params.distance.value!r}, not by"
                f" {self._distance.value!r}: leave distance out, or pass another collection_name",
                hook=self.name,
            )
        self._indexed = set(info.payload_schema or ())
        return Opened(params.size, SPACES[params.distance], vectors)

    async def _refuse_other_models(self, opened: Opened) -> None:
        if opened.vectors is not None:
            for point in await self._ask("retrieve", ids=[MODEL_ID], with_payload=[MODEL], with_vectors=False):
                await self._check_model(point.payload[MODEL])

    async def _made(self, size: int) -> Opened | None:
        distance = self._distance or models.Distance.COSINE
        try:
            await self._ask("create_collection", vectors_config=models.VectorParams(size=size, distance=distance))
        except Exception:
            # Somebody else may have made it just now.
            if (opened := await self._look()) is None:
                raise
            return opened
        self._indexed = set()
        return Opened(size, SPACES[distance])

    async def _index(self, kinds: Mapping[str, Any]) -> None:
        """Let a server index fields of the payload that searches ask for; without that they are only slower."""
        if self._embedded:
            return
        for key, kind in kinds.items():
            if key in self._indexed:
                continue
            try:
                await self._ask("create_payload_index", field_name=key, field_schema=kind, wait=True)
            except Exception as error:
                logger.warning("hook %r could not index the field %r in Qdrant: %r", self.name, key, error)
            self._indexed.add(key)

    def _kinds(self, metadatas: Iterable[_mapping.Metadata]) -> dict[str, Any]:
        """The fields that filters may ask for and that are not indexed yet, with the kind of index for their values."""
        kinds: dict[str, Any] = {}
        for metadata in metadatas:
            for field in self._mapping.fields & metadata.keys():
                key, value = key_of(field), metadata[field]
                if isinstance(value, list):
                    value = value[0] if value else None
                if key is not None and key not in self._indexed and value is not None:
                    kinds.setdefault(key, KINDS[type(value)])
        return kinds

    async def _ask(self, method: str, **arguments: Any) -> Any:
        return await self._call(getattr(self._client, method), collection_name=self._asked, **arguments)

    async def _on_what_is_there(self, work: Callable[[Opened | None], Awaitable[T]], size: int | None = None) -> T:
        """What ``work`` returns; when it fails since somebody has deleted or replaced the collection, once more."""
        opened: Opened | None = None
        try:
            opened = await self._open(size)
            return await work(opened)
        except Exception:
            if self._is_beside:
                raise
            self._opened = None
            if not await self._is_replaced(opened):
                raise
        return await work(await self._open(size))

    async def _is_replaced(self, before: Opened | None) -> bool:
        try:
            return await self._look() != before
        except HookError:
            return True  # by one that is not for us, which is said when it is tried again
        except Exception:
            return False

    def _check_size(self, opened: Opened | None, vector: Vector, operation: str) -> None:
        if opened is not None and opened.size != len(vector):
            raise HookError(
                f"the collection {self.collection_name!r} has vectors of {opened.size} dimensions, and embedding_fn"
                f" returned {len(vector)}: pass the embedding function that it was filled with, or another"
                " collection_name",
                hook=self.name,
                operation=operation,
            )

    # Another collection in place of this one
    @property
    def _is_beside(self) -> bool:
        return self._asked != self.collection_name

    async def _beside(self) -> Self:
        self._check_process()
        await self._refuse_others()
        vector = await self._probed("beside")
        info = await self._names.info()
        _, params = (None, None) if info is None else vectors_in(info)
        distance = self._distance or (models.Distance.COSINE if params is None else params.distance)
        size = len(vector)
        if params is None:
            params = models.VectorParams(size=size, distance=distance)
        options = {} if info is None else options_like(info.config)
        hook = copy.copy(self)
        hook._asked = await self._names.begin(params.model_copy(update={"size": size, "distance": distance}), options)
        hook._opened, hook._indexed = Opened(size, SPACES[distance], vectors_of(hook._asked)), set()
        await hook._index(OURS if info is None else indexes_like(info))
        await hook._ask("upsert", points=[model_point(fingerprint(vector))], wait=True)
        return hook

    async def _swap(self, beside: _QdrantHook) -> None:
        await self._refuse_others()
        self._opened = None
        await self._names.swap(beside._asked)

    async def _settle(self) -> None:
        self._opened = None
        await self._names.settle()

    async def _has_others(self) -> bool:
        if await self._names.info() is None:
            return False
        others = models.Filter(must_not=[equal(_mapping.NAMESPACE, _mapping.encodable(self._namespace))])
        points, _ = await self._ask("scroll", scroll_filter=others, limit=2, with_payload=False, with_vectors=False)
        return any(str(point.id) != MODEL_ID for point in points)


class QdrantSyncHook(SyncRebuilding, SyncVectorHook, _QdrantHook):
    """Keeps a Qdrant collection in step with the facts, through a ``QdrantClient`` (which stays the caller's).

    ``embedding_fn`` is a callable from a list of texts to a list of vectors, or an object with LangChain's
    ``embed_documents`` and ``embed_query``. ``embedding_cache`` is how many vectors are remembered, so that a text that
    was embedded lately is not embedded again. Only facts of ``target_types`` are indexed (None: all), under ids made
    from theirs. For the other options see :class:`~memstate_core.hooks._mapping.FactMapping`; a fact without text is
    not in the index.

    The collection is opened on first use, or made for vectors as long as those of ``embedding_fn``, and on a server the
    fields that searches ask for are indexed. ``distance`` is ``"Cosine"`` (the default), ``"Dot"``, ``"Euclid"`` or
    ``"Manhattan"``; a collection that is there keeps its own. Stores whose namespaces differ may share a collection;
    hooks of one store may not. Scores are Qdrant's own by cosine and dot product, ``1 / (1 + distance²)`` by Euclid (as
    in Chroma's L2 space) and ``1 / (1 + distance)`` by Manhattan. Filters narrow the search in Qdrant by the
    ``metadata_fields``, which points have under their whole paths (``"address.city"`` is one key, to be quoted in
    filters of Qdrant's own); those are ``models.Filter``.

    A collection that was rebuilt (:meth:`MemoryStore.reindex <memstate_core.MemoryStore.reindex>` with ``into``) has a
    name of its own, and ``collection_name`` is an alias of it. Its vectors have a name too, and one point is no fact.

    :raises HookError: from every method, when the embedding function returns no proper vectors, or others than the
        collection has; what embedding functions and Qdrant raise comes as it is.
    """

    def _turn(self) -> contextlib.AbstractContextManager[Any]:
        return _turn_with(self._client) if self._embedded else contextlib.nullcontext()

    async def _call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        with self._turn():
            return function(**arguments)


class AsyncQdrantSyncHook(AsyncRebuilding, AsyncVectorHook, _QdrantHook):
    """Same as :class:`QdrantSyncHook`, awaited, through an ``AsyncQdrantClient``.

    ``embedding_fn`` may also be a coroutine function, or have LangChain's ``aembed_documents`` and ``aembed_query``; a
    plain one runs in a thread.
    """


def _turn_with(client: Any) -> threading.RLock:
    with _turns_guard:
        return _turns.setdefault(client, threading.RLock())


def _similarity(space: str, score: float) -> float:
    """Qdrant's score as a similarity; by cosine and dot product it is one."""
    if space == "l2":
        return similarity(space, score * score)
    return similarity(space, score) if space == "l1" else score
