"""Vectors: where they come from, what they must be, and how far apart they are.

This needs numpy, which the vendors of vector indexes bring along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from memstate_core.errors import HookError

Vector = np.ndarray[Any, np.dtype[np.float32]]


class EmbeddingCalls:
    """The functions that embed documents and queries, whichever of the usual interfaces they come by."""

    def __init__(self, function: Any, asynchronous: bool) -> None:
        documents = asynchronous and getattr(function, "aembed_documents", None)
        query = documents and getattr(function, "aembed_query", None)
        documents = documents or getattr(function, "embed_documents", None)
        self.query_takes_list = documents is None
        if documents is None:
            if not callable(function):
                raise TypeError(f"embedding_fn must be callable or have embed_documents, unlike {function!r}")
            documents = function
        query = query or getattr(function, "embed_query", None)
        if query is None:
            query, self.query_takes_list = documents, True
        self.documents: Callable[[list[str]], Any] = documents
        self.query: Callable[[Any], Any] = query


def checked_vectors(result: Any, expected: int) -> list[Vector]:
    """The vectors as float32 arrays; a single one may come without the list around it.

    :raises HookError: their number, their dimensions or their values cannot be right.
    """
    try:
        with np.errstate(over="ignore"):
            vectors = [np.asarray(vector, dtype=np.float32) for vector in result]
    except (TypeError, ValueError) as error:
        raise HookError(f"embedding_fn returned {type(result).__name__}, not a list of vectors of numbers") from error
    if expected == 1 and vectors and all(vector.ndim == 0 for vector in vectors):
        vectors = [np.stack(vectors)]
    if len(vectors) != expected:
        raise HookError(
            f"embedding_fn returned {len(vectors)} vectors for {expected} texts; it must return one for each"
        )
    shapes = {vector.shape for vector in vectors}
    if len(shapes) > 1 or any(len(shape) != 1 or not shape[0] for shape in shapes):
        raise HookError(f"embedding_fn returned vectors of shapes {sorted(shapes)}; all must have one same length")
    if not all(np.isfinite(vector).all() for vector in vectors):
        raise HookError("embedding_fn returned a vector that holds NaN or infinity as float32")
    return vectors


def distances(space: str, query: Vector, vectors: Vector) -> Vector:
    """How far the rows are from the query in ``"cosine"``, ``"ip"`` or (squared) ``"l2"`` space, as HNSW has it."""
    if space == "l2":
        squares: Vector = np.sum((vectors - query) ** 2, axis=1)
        return squares
    products: Vector = vectors @ query
    if space == "cosine":
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        products = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return 1 - products


def similarity(space: str, distance: float) -> float:
    """The distance turned round, so that higher is better; the best is 1, but for inner products."""
    return float(1 / (1 + distance) if space == "l2" else 1 - distance)
