"""A LangChain vector store over facts and the indexes that follow them, for code that expects one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from pydantic import BaseModel, Field

from memstate_core.errors import ConflictError, ValidationFailed
from memstate_core.facts import Fact, new_id
from memstate_core.storages.memory import InMemoryStorage
from memstate_core.store import MemoryStore
from memstate_core.values import check_identifier
from memstate_langchain._calls import Face, Store, checked_store, later, now
from memstate_langchain.vectorstore_hook import VectorStoreHook


class StoredDocument(BaseModel):
    """A document as a fact."""

    text: str
    metadata: dict[str, Any] = Field(default_factory=dict)


class MemStateVectorStore(VectorStore):
    """Documents as facts: each call is one transaction, and can be undone; searches answer from what is stored.

    :param typename: the type of the facts. The hook that indexes them should have ``text_field="text"``.
    :param session_id: the session that the documents belong to; default: the long-term memory.

    Who embeds is the hook. Filters are on the metadata, in the language of :mod:`memstate_core.filters`:
    ``{"author": "ann", "year": {"$gte": 2020}}``; a :class:`~memstate_core.filters.NativeFilter` is passed on.
    """

    def __init__(self, store: Store, typename: str = "document", *, session_id: str | None = None) -> None:
        check_identifier("session_id", session_id, optional=True)
        self.store = checked_store(store)
        self.typename = typename
        self.session_id = session_id
        schema = store.engine.registry.get(typename)
        if schema is None:
            store.register_schema(typename, StoredDocument)
        elif not {"text", "metadata"} <= schema.model.model_fields.keys():
            raise ValidationFailed(
                f"{typename!r} is registered as {schema.model.__name__}, which has no text and metadata: choose another"
                " typename for documents",
                typename=typename,
            )

    # Writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add documents, or replace those that have these ids, in one transaction; returns their ids.

        :raises ConflictError: an id is that of another type's or session's fact; nothing was added.
        """
        facts = self._facts(texts, metadatas, ids)
        return now(self.store, lambda store: self._add(store, facts))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Same as :meth:`add_texts`, awaited."""
        facts = self._facts(texts, metadatas, ids)
        return await later(self.store, lambda store: self._add(store, facts))

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents, if they are there, in one transaction."""
        return now(self.store, lambda store: self._delete(store, ids))

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Same as :meth:`delete`, awaited."""
        return await later(self.store, lambda store: self._delete(store, ids))

    # Reading

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Those that are there, in the order of ``ids``."""
        return now(self.store, lambda store: self._get(store, ids))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Same as :meth:`get_by_ids`, awaited."""
        return await later(self.store, lambda store: self._get(store, ids))

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Any = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """The most similar documents, best first, with their similarity: higher is better."""
        return now(self.store, lambda store: self._search(store, query, k, filter))

    async def asimilarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Any = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Same as :meth:`similarity_search_with_score`, awaited."""
        return await later(self.store, lambda store: self._search(store, query, k, filter))

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Same as :meth:`similarity_search_with_score`, without the scores."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Same as :meth:`similarity_search`, awaited."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, **kwargs)]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda similarity: min(max(similarity, 0.0), 1.0)

    # Making one

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        store: Store | None = None,
        **options: Any,
    ) -> Self:
        """Documents in a ``store``, whose hook embeds them; without one, in a new store in memory.

        :raises ValueError: both a store and an embedding are given, or neither.
        """
        made = cls(_store_for(store, embedding), **options)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        store: Store | None = None,
        **options: Any,
    ) -> Self:
        """Same as :meth:`from_texts`, awaited."""
        made = cls(_store_for(store, embedding), **options)
        await made.aadd_texts(texts, metadatas, ids=ids)
        return made

    # What is done

    def _facts(
        self, texts: Iterable[str], metadatas: Sequence[dict[str, Any]] | None, ids: Sequence[str | None] | None
    ) -> list[tuple[Fact, bool]]:
        """The documents as facts, and for each whether its id is new."""
        texts = list(texts)
        for name, given in (("metadatas", metadatas), ("ids", ids)):
            if given is not None and len(given) != len(texts):
                raise ValueError(f"there are {len(texts)} texts and {len(given)} {name}; give one for each")
        found = []
        for text, metadata, id_ in zip(texts, metadatas or [{}] * len(texts), ids or [None] * len(texts), strict=True):
            payload = {"text": text, "metadata": dict(metadata or {})}
            found.append((Fact(self.typename, payload, id=id_ or new_id(), session_id=self.session_id), not id_))
        return found

    async def _add(self, store: Face, facts: Sequence[tuple[Fact, bool]]) -> list[str]:
        async with store.transaction(session_id=self.session_id) as tx:
            for fact, is_new in facts:
                there = None if is_new else await tx.get(fact.id)
                if there is not None and not self._is_ours(there):
                    raise ConflictError(
                        f"{fact.id!r} is the id of a {there['type']!r} fact of another session or type; choose another",
                        fact_id=fact.id,
                    )
                await tx.commit(fact, session_id=self.session_id)
        return [fact.id for fact, _ in facts]

    async def _delete(self, store: Face, ids: Sequence[str] | None) -> bool:
        if ids is None:
            raise ValueError("delete takes the ids of the documents to delete")
        async with store.transaction(session_id=self.session_id) as tx:
            for id_ in dict.fromkeys(ids):
                fact = await tx.get(id_)
                if fact is not None and self._is_ours(fact):
                    await tx.delete(id_)
        return True

    async def _get(self, store: Face, ids: Sequence[str]) -> list[Document]:
        found = [await store.get(id_) for id_ in ids]
        return [_document(one["id"], one["payload"]) for one in found if one is not None and self._is_ours(one)]

    async def _search(self, store: Face, query: str, k: int, filters: Any) -> list[tuple[Document, float]]:
        filters = on_metadata(filters) if isinstance(filters, Mapping) else filters
        found = await store.search(query, k, filters, session_id=self.session_id, typename=self.typename)
        return [(_document(one.fact.id, one.fact.payload), one.score) for one in found]

    def _is_ours(self, fact: Mapping[str, Any]) -> bool:
        return (fact["type"], fact["session_id"]) == (self.typename, self.session_id)


def on_metadata(filters: Mapping[str, Any]) -> dict[str, Any]:
    """A filter on metadata, as one on the payload that they are in."""
    found: dict[str, Any] = {}
    for key, condition in filters.items():
        if key in ("$and", "$or"):
            found[key] = [on_metadata(part) for part in condition]
        elif key == "$not":
            found[key] = on_metadata(condition)
        else:
            found[key if key.startswith("$") else f"metadata.{key}"] = condition
    return found


def _document(id_: str, payload: Mapping[str, Any]) -> Document:
    return Document(id=id_, page_content=payload["text"], metadata=payload["metadata"])


def _store_for(store: Store | None, embedding: Embeddings | None) -> Store:
    if (store is None) is (embedding is None):
        raise ValueError("pass either store=, whose hook embeds, and None for the embedding, or an embedding alone")
    if store is not None:
        return store
    assert embedding is not None
    return MemoryStore(InMemoryStorage(), [VectorStoreHook(InMemoryVectorStore(embedding), text_field="text")])
