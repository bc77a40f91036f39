"""Any LangChain vector store as an index that takes part in transactions.

What to know about vector stores:

- Not all of them replace an entry that is added again, and some keep what its metadata had, so what is there is deleted
  first. Some refuse to delete what is not there, so they are asked.
- Ids may have to be UUIDs, and PGVector has those of all collections in one table. A fact whose id is a UUID keeps it
  as long as nobody else can have it; the others get one that is computed from theirs.
- They embed on their own, when they are told; a vector store whose embeddings are cached (``CacheBackedEmbeddings``)
  embeds nothing twice when a transaction is undone.
- What a score means is not the same everywhere, what *relevance* means is: 1 is best.
"""

from __future__ import annotations

import copy
import inspect
import math
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, Self

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from memstate_core._async_bridge import AsyncRuntime
from memstate_core._bridge import run
from memstate_core.errors import HookError
from memstate_core.facts import Change, Fact, SearchResult
from memstate_core.hooks import _mapping
from memstate_core.protocols import Scope
from memstate_langchain._scores import cosine_of, rising_line
from memstate_langchain._vectorstore_filters import FilterLanguage, language_of
from memstate_langchain._vectorstores import inner_product_similarity, listing_of, realm_of

FACT_ID: Final = "memstate_fact_id"

_ENTRY_IDS: Final = uuid.UUID("5f0b4f6e-1d0a-4a37-9a57-6a6f2f1f7a10")

# So many entries of an index are compared with their scores, to learn how it scores.
_COMPARED: Final = 8


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """A transaction as a vector store is told of it."""

    documents: list[Document]
    deleted: list[str]


class _Scored(NamedTuple):
    document: Document
    score: float


class _VectorStoreHook:
    """Everything but how the vector store is called."""

    #: A filter in the language of the vector store may be anything.
    native_filters: ClassVar[type] = object
    _asynchronous: ClassVar[bool]
    _call: Callable[..., Coroutine[Any, Any, Any]]
    _call_function: Callable[..., Coroutine[Any, Any, Any]]
    _namespace: str = "default"

    def __init__(
        self,
        vectorstore: VectorStore,
        *,
        target_types: Iterable[str] | None = None,
        text_field: str | None = None,
        text_formatter: _mapping.TextFormatter | None = None,
        metadata_fields: Iterable[str] | None = None,
        metadata_formatter: _mapping.MetadataFormatter | None = None,
        name: str | None = None,
        similarity_fn: Callable[[float], float] | None = None,
        filter_language: FilterLanguage | None = None,
        list_metadata: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
        batch_size: int = 500,
    ) -> None:
        if not isinstance(vectorstore, VectorStore):
            raise TypeError(f"{type(self).__name__} takes a LangChain VectorStore, not {vectorstore!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size is a whole number from 1, not {batch_size!r}")
        collection = getattr(vectorstore, "collection_name", None)
        kind = type(vectorstore).__name__
        self.vectorstore = vectorstore
        self.name = name or (f"{kind}:{collection}" if isinstance(collection, str) else kind)
        self.target_types = _mapping.type_names(target_types)
        self._mapping = _mapping.FactMapping(
            text_field=text_field,
            text_formatter=text_formatter,
            metadata_fields=metadata_fields,
            metadata_formatter=metadata_formatter,
        )
        self._similarity_fn = similarity_fn
        if similarity_fn is None and not _tells_relevance(vectorstore):
            if not isinstance(vectorstore, InMemoryVectorStore):
                raise TypeError(
                    f"{kind} does not say what its scores mean: pass similarity_fn=, a function from its score to a"
                    " similarity (higher is better), such as lambda distance: 1 - distance"
                )
            self._similarity_fn = float
        self._language = language_of(vectorstore, filter_language, self._mapping)
        self._realm = realm_of(vectorstore)
        self._listing = listing_of(vectorstore, self._asynchronous)
        if list_metadata is not None:
            given = list_metadata
            self._listing = lambda vectorstore, cursor: (list(given()), None)
        self._batch_size = batch_size

    def for_namespace(self, namespace: str) -> Self:
        """The same hook for the store of a namespace, which sees none of the others' entries."""
        if namespace == self._namespace:
            return self
        hook = copy.copy(self)
        hook._namespace = namespace
        return hook

    def indexes(self, fact: Fact) -> bool:
        """Whether the fact, as it is, belongs into the index."""
        return self._text(fact) is not None

    def entry_id(self, fact_id: str) -> str:
        """Under which id the vector store has a fact."""
        if self._namespace == "default" and not self._realm and _is_uuid(fact_id):
            return fact_id
        return str(uuid.uuid5(_ENTRY_IDS, _mapping.encodable("\0".join((self._realm, self._namespace, fact_id)))))

    def _text(self, fact: Fact) -> str | None:
        wanted = self.target_types is None or fact.type in self.target_types
        text = self._mapping.text(fact) if wanted else None
        return None if text is None else _clean(text)

    # Writing
    def _batch(self, changes: Sequence[Change]) -> DocumentBatch:
        last = {change.fact_id: change.after for change in changes}
        facts = (fact for fact in last.values() if fact is not None)
        documents = {fact.id: self._document(fact, text) for fact in facts if (text := self._text(fact)) is not None}
        return DocumentBatch(list(documents.values()), sorted(last.keys() - documents.keys()))

    def _document(self, fact: Fact, text: str) -> Document:
        metadata = {
            _clean(key): _clean(value) if isinstance(value, str) else value
            for key, value in self._mapping.metadata(fact, self._namespace).items()
        }
        metadata[FACT_ID] = _mapping.encodable(fact.id)
        return Document(id=self.entry_id(fact.id), page_content=text, metadata=metadata)

    async def _apply(self, batch: DocumentBatch | Sequence[Change]) -> None:
        if not isinstance(batch, DocumentBatch):
            batch = self._batch(batch)
        for documents in _parts(batch.documents, self._batch_size):
            ids = [str(document.id) for document in documents]
            await self._delete(ids)
            # A vector store may keep the metadata that it is given, and the batch may be told again.
            await self._call("add_documents", copy.deepcopy(documents), ids=ids)
        for deleted in _parts(batch.deleted, self._batch_size):
            await self._delete([self.entry_id(fact_id) for fact_id in deleted])

    async def _delete(self, ids: list[str]) -> None:
        try:
            there = await self._call("get_by_ids", ids)
        except NotImplementedError:
            pass
        else:
            # Not every vector store gives its documents their ids.
            ids = [document.id or self.entry_id(document.metadata[FACT_ID]) for document in there]
        if ids and await self._call("delete", ids) is False:
            raise HookError(
                f"{type(self.vectorstore).__name__}.delete says that it has not deleted {len(ids)} entries",
                hook=self.name,
                operation="apply",
            )

    # Searching
    async def _search(self, query: str, limit: int, scope: Scope) -> list[SearchResult]:
        common, rare = _mapping.conditions(scope, self._namespace, self.target_types)
        equal = common | rare
        # Where a filter is dear, what holds for most entries is looked for in the answer.
        written = self._language.written(rare if self._language.dear else equal, scope.filters, scope.native)
        asked = limit
        while limit > 0:
            answer = await self._nearest(query, asked, written)
            found = [
                SearchResult(entry.document.metadata[FACT_ID], entry.score, entry.document.metadata[_mapping.VERSION])
                for entry in answer
                if equal.items() <= entry.document.metadata.items()
            ]
            # What the filter could not say may have taken the places of what is wanted.
            if len(found) >= limit or len(answer) < asked:
                return found[:limit]
            asked *= 4
        return []

    async def _nearest(self, query: str, limit: int, written: Any) -> list[_Scored]:
        """The nearest entries, best first, with similarities."""
        options = {} if written is None else {"filter": written}
        similarity_fn = self._similarity_fn or inner_product_similarity(self.vectorstore)
        if similarity_fn is None:
            answer = await self._call("_similarity_search_with_relevance_scores", query, k=limit, **options)
        else:
            raw = await self._call("similarity_search_with_score", query, k=limit, **options)
            answer = [(document, similarity_fn(score)) for document, score in raw]
        found: list[_Scored] = []
        for document, score in answer:
            # A relevance may rise where a similarity falls; the order of the index is what holds.
            found.append(_Scored(document, min(float(score), found[-1].score if found else math.inf)))
        return found

    @property
    def _embeddings(self) -> Any:
        return self.vectorstore.embeddings

    async def _similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        known = [(fact, text) for fact in facts if (text := self._text(fact)) is not None]
        if not known:
            return []
        # The index tells how it scores by what it says of a few of its own entries.
        near = await self._nearest(query, _COMPARED, None)
        texts = [*(text for _, text in known), *(entry.document.page_content for entry in near)]
        name = "aembed_{}" if self._asynchronous else "embed_{}"
        vectors = await self._call_function(getattr(self._embeddings, name.format("documents")), texts)
        vector = await self._call_function(getattr(self._embeddings, name.format("query")), query)
        cosines = [cosine_of(vector, other) for other in vectors]
        points = [(cosine, entry.score) for cosine, entry in zip(cosines[len(known) :], near, strict=True)]
        slope, start = rising_line(points)
        scored = [
            SearchResult(fact.id, slope * cosine + start, fact.version)
            for (fact, _), cosine in zip(known, cosines, strict=False)
        ]
        return sorted(scored, key=lambda result: -result.score)

    # Listing
    async def _page(self, cursor: Any) -> tuple[list[tuple[str, int]], Any]:
        assert self._listing is not None
        metadatas, cursor = await self._call_function(self._listing, self.vectorstore, cursor)
        return self._versions(metadatas), cursor

    async def _lookup(self, ids: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for part in _parts(ids, self._batch_size):
            documents = await self._call("get_by_ids", [self.entry_id(fact_id) for fact_id in part])
            found.update(self._versions(document.metadata for document in documents))
        return found

    def _versions(self, metadatas: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
        """What is of our namespace."""
        ours = _mapping.encodable(self._namespace)
        return [
            (metadata[FACT_ID], metadata[_mapping.VERSION])
            for metadata in metadatas
            if metadata.get(_mapping.NAMESPACE) == ours and FACT_ID in metadata
        ]


class VectorStoreHook(_VectorStoreHook):
    """Keeps a LangChain vector store in step with the facts, through its synchronous methods.

    :param similarity_fn: from the score of ``similarity_search_with_score`` to a similarity, where higher is better.
        Default: the relevance that the vector store computes.
    :param filter_language: how its searches are filtered: ``"comparisons"`` (``{"field": {"$gt": 1}}`` with ``$and``
        and ``$or``), ``"function"`` (of a document), ``"chroma"`` or ``"qdrant"``. Default: that of a vector store that
        is known (the one in memory, Chroma, Qdrant, PGVector), else none: then a search asks for more until enough of
        it matches.
    :param list_metadata: returns the metadata of every entry, for a vector store that is not known; without it,
        ``verify`` and ``repair`` leave this index out.
    :param batch_size: how many entries a request has at most.

    For the other options see :class:`~memstate_core.hooks._mapping.FactMapping`. Stores whose namespaces differ may
    share a vector store; what was put into it otherwise is left alone, and never found.
    """

    _asynchronous = False

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.vectorstore, method)(*arguments, **options)

    async def _call_function(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def prepare(self, changes: Sequence[Change]) -> DocumentBatch:
        """What is to be in the index. Where two changes are of one fact, the later one counts."""
        return self._batch(changes)

    def apply(self, changes: DocumentBatch | Sequence[Change]) -> None:
        """Up to three requests for each ``batch_size`` entries."""
        run(self._apply(changes))

    def search(self, query: str, limit: int, scope: Scope = Scope()) -> list[SearchResult]:  # noqa: B008 - immutable
        return run(self._search(query, limit, scope))

    def lookup(self, ids: Sequence[str]) -> dict[str, int]:
        """``{fact id: version}`` of the entries of these facts."""
        return run(self._lookup(ids))

    @property
    def scan(self) -> Callable[[], Iterator[tuple[str, int]]] | None:
        """Fact id and version of all entries of the namespace; None: they cannot be listed."""
        return None if self._listing is None else self._scan

    @property
    def similarity(self) -> Callable[[str, Sequence[Fact]], list[SearchResult]] | None:
        """What a search would say of facts as they are given; None: the vector store does not show its embeddings.

        Exact where scores are in proportion to cosines, and near it elsewhere.
        """
        if self._embeddings is None:
            return None
        return lambda query, facts: run(self._similarity(query, facts))

    def _scan(self) -> Iterator[tuple[str, int]]:
        cursor = None
        while True:
            page, cursor = run(self._page(cursor))
            yield from page
            if cursor is None:
                return


class AsyncVectorStoreHook(_VectorStoreHook):
    """Same as :class:`VectorStoreHook`, through the vector store's asynchronous methods."""

    _asynchronous = True

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        name = f"_a{method[1:]}" if method.startswith("_") else f"a{method}"
        return await getattr(self.vectorstore, name)(*arguments, **options)

    async def _call_function(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await AsyncRuntime().call(function, *arguments)

    async def prepare(self, changes: Sequence[Change]) -> DocumentBatch:
        """Same as :meth:`VectorStoreHook.prepare`."""
        return self._batch(changes)

    async def apply(self, changes: DocumentBatch | Sequence[Change]) -> None:
        """Same as :meth:`VectorStoreHook.apply`, awaited."""
        await self._apply(changes)

    async def search(self, query: str, limit: int, scope: Scope = Scope()) -> list[SearchResult]:  # noqa: B008
        """Same as :meth:`VectorStoreHook.search`, awaited."""
        return await self._search(query, limit, scope)

    async def lookup(self, ids: Sequence[str]) -> dict[str, int]:
        """Same as :meth:`VectorStoreHook.lookup`, awaited."""
        return await self._lookup(ids)

    @property
    def scan(self) -> Callable[[], AsyncIterator[tuple[str, int]]] | None:
        """Same as :attr:`VectorStoreHook.scan`, asynchronously."""
        return None if self._listing is None else self._scan

    @property
    def similarity(self) -> Callable[[str, Sequence[Fact]], Coroutine[Any, Any, list[SearchResult]]] | None:
        """Same as :attr:`VectorStoreHook.similarity`, awaited."""
        return None if self._embeddings is None else self._similarity

    async def _scan(self) -> AsyncIterator[tuple[str, int]]:
        cursor = None
        while True:
            page, cursor = await self._page(cursor)
            for entry in page:
                yield entry
            if cursor is None:
                return


def _tells_relevance(vectorstore: VectorStore) -> bool:
    kind = type(vectorstore)
    return any(
        inspect.getattr_static(kind, name) is not inspect.getattr_static(VectorStore, name)
        for name in ("_select_relevance_score_fn", "_similarity_search_with_relevance_scores")
    )


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _clean(text: str) -> str:
    """The text without NUL, which some databases do not take; storage keeps the exact one."""
    return text.replace("\0", "\ufffd")


def _parts(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
