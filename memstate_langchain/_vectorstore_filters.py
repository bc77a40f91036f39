"""Filters in the languages of vector stores, as far as these are known.

A vector store may leave out what cannot match; the memory store checks every result against the fact itself. So what a
language cannot say exactly is not said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from memstate_core.hooks import _mapping
from memstate_core.hooks._filters import indexed_alike, is_exact_number, translated
from memstate_langchain._vectorstores import names_of

FilterLanguage = Literal["chroma", "comparisons", "function", "qdrant"]

Scalars = Mapping[str, _mapping.Scalar]


class Language(Protocol):
    """How the ``filter`` of a vector store's searches is written; ``dear``: it costs more than the search itself."""

    dear: bool

    def written(self, equal: Scalars, filters: Mapping[str, Any] | None, native: Any) -> Any:
        """One filter for all: metadata that are ``equal`` to these, ours, and the caller's own; None: no filter."""
        ...


class Untranslated:
    """Of a language that is not known, only what the caller has written is passed on."""

    dear = False

    def written(self, equal: Scalars, filters: Mapping[str, Any] | None, native: Any) -> Any:
        return native


class Functions:
    """Functions of a document, as :class:`~langchain_core.vectorstores.InMemoryVectorStore` takes them."""

    dear = True

    def written(
        self, equal: Scalars, filters: Mapping[str, Any] | None, native: Any
    ) -> Callable[[Document], bool] | None:
        if not equal and native is None:
            return None

        def fulfils(document: Document) -> bool:
            return equal.items() <= document.metadata.items() and (native is None or bool(native(document)))

        return fulfils


class Comparisons:
    """``{"field": {"$gt": 1}}``, ``$and`` and ``$or``, as many vector stores have it, PGVector among them.

    Fields must be identifiers there, and lists hold texts, so every value is compared by itself.
    """

    dear = False

    def __init__(self, mapping: _mapping.FactMapping) -> None:
        self._fields = mapping.fields
        self._fingerprint = mapping.fingerprint

    def written(self, equal: Scalars, filters: Mapping[str, Any] | None, native: Any) -> Any:
        clauses: list[Any] = [{key: {"$eq": value}} for key, value in equal.items()]
        if filters is not None and (clause := translated(filters, self)) is not None:
            # Entries with other fields than these may belong to facts that match all the same.
            clauses.append({"$or": [clause, {_mapping.FIELDS: {"$ne": self._fingerprint}}]})
        if native is not None:
            clauses.append(native)
        return {"$and": clauses} if len(clauses) > 1 else clauses[0] if clauses else None

    def field(self, path: str, operator: str, operand: Any, negated: bool) -> dict[str, Any] | None:
        if path not in self._fields or not path.isidentifier() or negated:
            return None
        if operator == "$eq":
            return {path: {"$eq": operand}} if indexed_alike(operand) else None
        if operator == "$in" and operand and all(map(indexed_alike, operand)):
            return self.any_of([{path: {"$eq": one}} for one in operand])
        if operator in ("$gt", "$gte", "$lt", "$lte") and is_exact_number(operand):
            return {path: {operator: operand}}
        return None

    def all_of(self, clauses: list[dict[str, Any]]) -> dict[str, Any]:
        return {"$and": clauses}

    def any_of(self, clauses: list[dict[str, Any]]) -> dict[str, Any]:
        return {"$or": clauses} if len(clauses) > 1 else clauses[0]


class Chroma:
    """Chroma's ``where``."""

    dear = False

    def __init__(self, mapping: _mapping.FactMapping) -> None:
        from memstate_core.hooks._chroma_filters import Dialect

        self._dialect = Dialect(mapping.fields)
        self._fingerprint = mapping.fingerprint

    def written(self, equal: Scalars, filters: Mapping[str, Any] | None, native: Any) -> Any:
        clauses: list[Any] = [{key: value} for key, value in equal.items()]
        if filters is not None and (clause := translated(filters, self._dialect)) is not None:
            others = [{_mapping.FIELDS: {operator: self._fingerprint}} for operator in ("$lt", "$gt")]
            clauses.append({"$or": [clause, *others]})
        if native is not None:
            clauses.append(native)
        return {"$and": clauses} if len(clauses) > 1 else clauses[0] if clauses else None


class Qdrant:
    """Qdrant's conditions, on what lies below the metadata of a point."""

    dear = False

    def __init__(self, mapping: _mapping.FactMapping, metadata_key: str) -> None:
        from memstate_core.hooks._qdrant_filters import Dialect

        # What must not hold is not said: in memory and on disk, older clients take booleans for numbers.
        self._dialect = Dialect(mapping.fields, negates=False)
        self._fingerprint = mapping.fingerprint
        self._metadata_key = metadata_key

    def written(self, equal: Scalars, filters: Mapping[str, Any] | None, native: Any) -> Any:
        from qdrant_client import models

        from memstate_core.hooks._qdrant_filters import equal as equals

        clauses: list[Any] = [self._below(equals(key, value)) for key, value in equal.items()]
        if filters is not None and (clause := translated(filters, self._dialect)) is not None:
            others = models.Filter(must_not=[equals(_mapping.FIELDS, self._fingerprint)])
            clauses.append(self._below(models.Filter(should=[clause, others])))
        if native is not None:
            clauses.append(native)
        return models.Filter(must=clauses) if clauses else None

    def _below(self, condition: Any) -> Any:
        """The condition with keys that lead into the metadata."""
        if hasattr(condition, "key"):
            return condition.model_copy(update={"key": f"{self._metadata_key}.{condition.key}"})
        parts = {name: getattr(condition, name) for name in ("must", "should", "must_not")}
        return condition.model_copy(
            update={name: [self._below(part) for part in some] for name, some in parts.items() if some}
        )


def language_of(vectorstore: VectorStore, language: FilterLanguage | None, mapping: _mapping.FactMapping) -> Language:
    """The language that is asked for, or that of a vector store that is known.

    :raises ValueError: there is no such language.
    """
    if language is None:
        language = next((_KNOWN[name] for name in names_of(vectorstore) if name in _KNOWN), None)
    if language is None:
        return Untranslated()
    if language == "function":
        return Functions()
    if language == "comparisons":
        return Comparisons(mapping)
    if language == "chroma":
        return Chroma(mapping)
    if language == "qdrant":
        return Qdrant(mapping, str(getattr(vectorstore, "metadata_payload_key", "metadata")))
    raise ValueError(
        f"filter_language is 'chroma', 'comparisons', 'function' or 'qdrant', not {language!r}; leave it out for"
        " a vector store of another one"
    )


_KNOWN: dict[str, FilterLanguage] = {
    "langchain_core.vectorstores.in_memory.InMemoryVectorStore": "function",
    "langchain_chroma.vectorstores.Chroma": "chroma",
    "langchain_qdrant.qdrant.QdrantVectorStore": "qdrant",
    "langchain_postgres.vectorstores.PGVector": "comparisons",
}
