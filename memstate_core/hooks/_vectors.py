"""Vectors: what they must be, and how far apart they are.

This needs numpy, which the vendors of vector indexes bring along.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memstate_core.errors import HookError

Vector = np.ndarray[Any, np.dtype[np.float32]]


def checked_vectors(result: Any, expected: int) -> list[Vector]:
    """The vectors as float32 arrays that nobody changes; a single one may come without the list around it.

    :raises HookError: their number, their dimensions or their values cannot be right.
    """
    try:
        with np.errstate(over="ignore"):
            vectors = [np.array(vector, dtype=np.float32) for vector in result]
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
    for vector in vectors:
        vector.setflags(write=False)
    return vectors


def distances(space: str, query: Vector, vectors: Vector) -> Vector:
    """How far the rows are from the query in ``"cosine"``, ``"ip"``, (squared) ``"l2"`` or ``"l1"`` space."""
    if space == "l2":
        squares: Vector = np.sum((vectors - query) ** 2, axis=1)
        return squares
    if space == "l1":
        sums: Vector = np.sum(np.abs(vectors - query), axis=1)
        return sums
    products: Vector = vectors @ query
    if space == "cosine":
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        products = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return 1 - products


def similarity(space: str, distance: float) -> float:
    """The distance turned round, so that higher is better; the best is 1, but for inner products."""
    return float(1 / (1 + distance) if space in ("l2", "l1") else 1 - distance)
