"""Embedding functions, by whichever of the usual interfaces they come, and what they returned lately.

This needs numpy, which the vendors of vector indexes bring along.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from memstate_core.hooks._vectors import Vector, checked_vectors
from memstate_core.values import count

# How a function is called: at once, or awaited.
Compute = Callable[[Callable[[Any], Any], Any], Awaitable[Any]]


class Embedder:
    """Texts as vectors, which are remembered by text: what has been embedded lately is not embedded again.

    ``function`` takes a list of texts, or has LangChain's ``embed_documents`` and ``embed_query`` (where one can wait,
    ``aembed_documents`` and ``aembed_query`` are preferred). ``size`` is how many vectors are kept at most.

    :raises TypeError: the function is none.
    :raises HookError: from the other methods: it returned no proper vectors.
    """

    def __init__(self, function: Any, asynchronous: bool, size: int) -> None:
        documents = asynchronous and getattr(function, "aembed_documents", None)
        query = documents and getattr(function, "aembed_query", None)
        documents = documents or getattr(function, "embed_documents", None)
        takes_list = documents is None
        if documents is None:
            if not callable(function):
                raise TypeError(
                    "embedding_fn must be a callable from a list of texts to a list of vectors, or have"
                    f" embed_documents, unlike {function!r}"
                )
            documents = function
        query = query or getattr(function, "embed_query", None)
        if query is None:
            query, takes_list = documents, True
        self._documents: Callable[[list[str]], Any] = documents
        self._query: Callable[[Any], Any] = query
        self._query_takes_list = takes_list
        self._documents_kept = _Recent(count("embedding_cache", size))
        self._queries_kept = self._documents_kept if query is documents else _Recent(size)

    async def documents(self, texts: list[str], compute: Compute) -> list[Vector]:
        """The vectors of texts; those not known are computed in one call."""
        vectors = {text: self._documents_kept.get(text) for text in texts}
        unknown = [text for text, vector in vectors.items() if vector is None]
        if unknown:
            computed = checked_vectors(await compute(self._documents, unknown), len(unknown))
            vectors.update(zip(unknown, computed, strict=True))
            self._documents_kept.put(unknown, computed)
        return [vector for text in texts if (vector := vectors[text]) is not None]

    async def query(self, text: str, compute: Compute) -> Vector:
        vector = self._queries_kept.get(text)
        if vector is None:
            argument = [text] if self._query_takes_list else text
            (vector,) = checked_vectors(await compute(self._query, argument), 1)
            self._queries_kept.put([text], [vector])
        return vector


class _Recent:
    """The vectors of the texts that were asked for last. Of a text only its digest is kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._vectors: OrderedDict[bytes, Vector] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, text: str) -> Vector | None:
        key = _digest(text)
        with self._guard:
            vector = self._vectors.get(key)
            if vector is not None:
                self._vectors.move_to_end(key)
            return vector

    def put(self, texts: list[str], vectors: list[Vector]) -> None:
        with self._guard:
            for text, vector in zip(texts[-self._size :], vectors[-self._size :], strict=True):
                self._vectors[_digest(text)] = vector
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
