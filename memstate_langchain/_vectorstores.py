"""What LangChain's interface does not say of a vector store, for those that are known.

The metadata of all entries are listed page by page. A *listing* is ``listing(vectorstore, cursor)``, which returns some
metadata and where to go on (None: there are no more); the asynchronous ones are awaited.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from langchain_core.vectorstores import VectorStore

Page = tuple[list[dict[str, Any]], Any]

_PAGE: Final = 1000

_CHROMA: Final = "langchain_chroma.vectorstores.Chroma"
_PGVECTOR: Final = "langchain_postgres.vectorstores.PGVector"


def listing_of(vectorstore: VectorStore, asynchronous: bool) -> Callable[[Any, Any], Any] | None:
    """How to list a vector store, if it is one of those that are known."""
    found = next((_LISTINGS[name] for name in names_of(vectorstore) if name in _LISTINGS), None)
    return None if found is None else found[asynchronous]


def names_of(vectorstore: VectorStore) -> list[str]:
    """The full names of its class and of those that this is made from."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(vectorstore).__mro__]


def realm_of(vectorstore: VectorStore) -> str:
    """The collection, if ids must be unique beyond it: PGVector has all collections in one table."""
    return str(vectorstore.collection_name) if _PGVECTOR in names_of(vectorstore) else ""  # type: ignore[attr-defined]


def inner_product_similarity(vectorstore: VectorStore) -> Callable[[float], float] | None:
    """From a distance that is an inner product's to a similarity; None: it is no such, or of an unknown vector store.

    LangChain's relevance of these falls to 0 where the distance is 0, which for Chroma is that of what is the same, and
    for PGVector that of what has nothing in common.
    """
    names = names_of(vectorstore)
    if _PGVECTOR not in names and _CHROMA not in names:
        return None
    if vectorstore._select_relevance_score_fn() is not VectorStore._max_inner_product_relevance_score_fn:
        return None
    return (lambda distance: -distance) if _PGVECTOR in names else (lambda distance: 1 - distance)


def _in_memory(vectorstore: Any, cursor: Any) -> Page:
    return [entry["metadata"] for entry in list(vectorstore.store.values())], None


def _chroma(vectorstore: Any, cursor: Any) -> Page:
    offset = cursor or 0
    page = vectorstore.get(limit=_PAGE, offset=offset, include=["metadatas"])
    count = len(page["ids"])
    return [metadata or {} for metadata in page["metadatas"]], offset + count if count == _PAGE else None


def _qdrant(vectorstore: Any, cursor: Any) -> Page:
    points, following = vectorstore.client.scroll(
        vectorstore.collection_name, limit=_PAGE, offset=cursor, with_payload=True, with_vectors=False
    )
    key = vectorstore.metadata_payload_key
    return [(point.payload or {}).get(key) or {} for point in points], following


def _pgvector(vectorstore: Any, cursor: Any) -> Page:
    with vectorstore.session_maker() as session:
        collection = vectorstore.get_collection(session)
        rows = session.execute(_pgvector_statement(vectorstore, collection, cursor)).all()
    return _pgvector_page(rows)


async def _apgvector(vectorstore: Any, cursor: Any) -> Page:
    await vectorstore.aget_by_ids([])  # which makes what is not there yet
    async with vectorstore.session_maker() as session:
        collection = await vectorstore.aget_collection(session)
        rows = (await session.execute(_pgvector_statement(vectorstore, collection, cursor))).all()
    return _pgvector_page(rows)


def _pgvector_statement(vectorstore: Any, collection: Any, cursor: Any) -> Any:
    from sqlalchemy import select

    entry = vectorstore.EmbeddingStore
    statement = select(entry.id, entry.cmetadata).where(entry.collection_id == collection.uuid)
    if cursor is not None:
        statement = statement.where(entry.id > cursor)
    return statement.order_by(entry.id).limit(_PAGE)


def _pgvector_page(rows: Any) -> Page:
    return [row.cmetadata or {} for row in rows], rows[-1].id if len(rows) == _PAGE else None


_LISTINGS: Final[dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]]] = {
    "langchain_core.vectorstores.in_memory.InMemoryVectorStore": (_in_memory, _in_memory),
    _CHROMA: (_chroma, _chroma),
    "langchain_qdrant.qdrant.QdrantVectorStore": (_qdrant, _qdrant),
    _PGVECTOR: (_pgvector, _apgvector),
}
