"""Points in Qdrant: what of a fact is in one, and how they are written."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from qdrant_client import models

from memstate_core.hooks import _mapping
from memstate_core.hooks._vector_hook import VectorBatch, slices

T = TypeVar("T")

TEXT: Final = "memstate_text"
FACT_ID: Final = "memstate_fact_id"

# What is looked at in what a search finds.
SEEN: Final = [FACT_ID, _mapping.VERSION, _mapping.NAMESPACE, _mapping.TYPE]

_IDS: Final = uuid.UUID("6f4be9a0-5d0f-4a0e-9a52-1d3c0b9f7c11")
# The point in a rebuilt collection that has what its embedding function makes of one text.
MODEL_ID: Final = str(uuid.uuid5(_IDS, "model"))
MODEL: Final = "memstate_model"

# So many bytes go into one request, about; a server takes 32 MB unless it is told otherwise.
_REQUEST_BYTES: Final = 8_000_000
_NUMBER_BYTES: Final = 20
_DELETED_AT_ONCE: Final = 10_000


def point_id(namespace: str, fact_id: str) -> str:
    return str(uuid.uuid5(_IDS, _mapping.encodable(f"{namespace}\0{fact_id}")))


def model_point(fingerprint: str) -> models.PointStruct:
    """It has no vector, so no search finds it."""
    return models.PointStruct(id=MODEL_ID, vector={}, payload={MODEL: fingerprint})


def requests(
    batch: VectorBatch, namespace: str, vectors: str | None
) -> list[list[models.UpsertOperation | models.DeleteOperation]]:
    """What to send at once: everything where there is little, so that a transaction is one request.

    ``vectors`` is the name of the collection's vectors, if they have one.
    """
    operations = list(_operations(batch, namespace, vectors))
    return [operations] if len(operations) <= 2 else [[one] for one in operations]


def _operations(
    batch: VectorBatch, namespace: str, vectors: str | None
) -> Iterator[models.UpsertOperation | models.DeleteOperation]:
    points: list[models.PointStruct] = []
    size = 0
    for fact_id, text, vector, metadata in zip(batch.ids, batch.texts, batch.vectors, batch.metadatas, strict=True):
        payload = {FACT_ID: _mapping.encodable(fact_id), TEXT: text, **metadata}
        added = len(vector) * _NUMBER_BYTES + len(repr(payload))
        if points and size + added > _REQUEST_BYTES:
            yield models.UpsertOperation(upsert=models.PointsList(points=points))
            points, size = [], 0
        given: Any = vector.tolist() if vectors is None else {vectors: vector.tolist()}
        points.append(models.PointStruct(id=point_id(namespace, fact_id), vector=given, payload=payload))
        size += added
    if points:
        yield models.UpsertOperation(upsert=models.PointsList(points=points))
    for part in slices(len(batch.deleted), _DELETED_AT_ONCE):
        ids: list[Any] = [point_id(namespace, fact_id) for fact_id in batch.deleted[part]]
        yield models.DeleteOperation(delete=models.PointIdsList(points=ids))


def versions(points: Iterable[Any]) -> list[tuple[str, int]]:
    """Fact ids and versions of points."""
    return [(str(point.payload[FACT_ID]), int(point.payload[_mapping.VERSION])) for point in points]
