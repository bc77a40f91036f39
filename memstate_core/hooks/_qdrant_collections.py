"""Collections in Qdrant: how they measure, what is indexed in them, and how one is made like another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from qdrant_client import models

from memstate_core.hooks import _mapping

SPACES: Final = {
    models.Distance.COSINE: "cosine",
    models.Distance.DOT: "ip",
    models.Distance.EUCLID: "l2",
    models.Distance.MANHATTAN: "l1",
}

# The fields that every search may ask for, and those of payloads by their values, with the kinds of their indexes.
OURS: Final[Mapping[str, Any]] = {
    _mapping.NAMESPACE: models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
    _mapping.TYPE: models.PayloadSchemaType.KEYWORD,
    _mapping.SESSION_ID: models.PayloadSchemaType.KEYWORD,
    _mapping.LONG_TERM: models.PayloadSchemaType.BOOL,
    _mapping.FIELDS: models.PayloadSchemaType.FLOAT,
    _mapping.LISTS: models.PayloadSchemaType.KEYWORD,
}
KINDS: Final[Mapping[type, Any]] = {
    str: models.PayloadSchemaType.KEYWORD,
    bool: models.PayloadSchemaType.BOOL,
    int: models.PayloadSchemaType.FLOAT,
    float: models.PayloadSchemaType.FLOAT,
}

# What is said of a collection when it is made, where it is in what Qdrant says of it, and as what it is said.
_CONFIGURED: Final[Mapping[str, tuple[str, type[Any]]]] = {
    "hnsw_config": ("hnsw_config", models.HnswConfigDiff),
    "optimizers_config": ("optimizer_config", models.OptimizersConfigDiff),
    "wal_config": ("wal_config", models.WalConfigDiff),
}
_KEPT: Final = ("quantization_config", "strict_mode_config", "metadata")
_PARAMS: Final = ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload")


class Opened(NamedTuple):
    """``vectors`` is their name, None in a collection that was not made beside another one."""

    size: int
    space: str
    vectors: str | None = None


def checked_distance(distance: models.Distance | str | None) -> models.Distance | None:
    if distance is None:
        return None
    for known in SPACES:
        if str(getattr(distance, "value", distance)).lower() == known.value.lower():
            return known
    names = ", ".join(repr(known.value) for known in SPACES)
    raise ValueError(f"distance must be one of {names}, not {distance!r}")


def options_like(config: models.CollectionConfig) -> dict[str, Any]:
    """How to make a collection like one, but for its vectors."""
    options = {
        key: kind(**told.model_dump(exclude_none=True))
        for key, (name, kind) in _CONFIGURED.items()
        if (told := getattr(config, name))
    }
    options |= {key: getattr(config, key, None) for key in _KEPT}
    options |= {key: getattr(config.params, key) for key in _PARAMS}
    return {key: value for key, value in options.items() if value is not None}


def indexes_like(info: models.CollectionInfo) -> dict[str, Any]:
    """The indexes on payloads of a collection, and ours."""
    return {key: index.params or index.data_type for key, index in info.payload_schema.items()} | dict(OURS)
