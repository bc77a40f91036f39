"""Items of LangGraph's store as facts: what is kept of each, its id, and what an index is told of it. Pure.

An item is one fact, and its entry in an index that of the first of its texts. Further texts have facts of their own, of
another type, so that each has its own vector; they are made, changed and removed together with the item's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypedDict

from langgraph.store.base import Item, PutOp, SearchItem, get_text_at_path
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from memstate_core.errors import ValidationFailed
from memstate_core.hooks._mapping import TextFormatter
from memstate_core.schemas import SchemaRegistry

TYPENAME: Final = "store_item"

# Queries on a prefix use an index down to this depth; below it what is found is looked through.
INDEXED_DEPTH: Final = 4
_LONGEST_ID: Final = 400
_SECONDS: Final = 60.0  # a TTL is in minutes

_encoded: Final = json.encoder.encode_basestring_ascii

Namespace = tuple[str, ...]


class StoredItem(BaseModel):
    """The payload of an item.

    ``under`` has the namespace's prefixes by their length, so that queries match whole labels. ``index`` are the paths
    into the value whose texts are indexed. ``ttl`` is in minutes, ``expires_at`` Unix time in seconds; reading an item
    later than its last put postpones the end, which the payload does not show.
    """

    namespace: list[str]
    key: str
    value: dict[str, Any]
    under: dict[str, str]
    index: list[str]
    ttl: float | None
    created_at: str
    expires_at: float | None


SCHEMA_VERSION: Final = 1
INDEX: Final = (*(f"under.{depth}" for depth in range(1, INDEXED_DEPTH + 1)), "expires_at")


def fact_id(typename: str, namespace: Sequence[str], key: str) -> str:
    """The id of an item's fact: each item's own, whatever characters are in its labels and its key."""
    text = f"{typename}:{prefix_text((*namespace, key))}"
    if len(text) <= _LONGEST_ID:
        return text
    return f"{typename}:sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def prefix_text(namespace: Sequence[str]) -> str:
    return f"[{','.join(map(_encoded, namespace))}]"


def prefix_path(namespace: Sequence[str]) -> tuple[str, str] | None:
    """The field, and the value there, by which the items under a prefix are found; None: the prefix is empty."""
    depth = min(len(namespace), INDEXED_DEPTH)
    return (f"under.{depth}", prefix_text(namespace[:depth])) if depth else None


class StoredText(BaseModel):
    """The payload of a further text of an item; ``item`` is the item's id, ``place`` the text's among all of them."""

    item: str
    place: int
    text: str
    under: dict[str, str]


def text_typename(typename: str) -> str:
    return f"{typename}_text"


class Draft(NamedTuple):
    """An item to be put, but for what depends on what is there and when it is written; ``texts`` are payloads by id."""

    fact_id: str
    payload: Mapping[str, Any]
    texts: Mapping[str, str]

    def text(self, created_at: str, now: str) -> str:
        ttl = self.payload["ttl"]
        expires_at = None if ttl is None else datetime.fromisoformat(now).timestamp() + ttl * _SECONDS
        return to_json({**self.payload, "created_at": created_at, "expires_at": expires_at}).decode()


def draft(registry: SchemaRegistry, typename: str, id_: str, op: PutOp, fields: Sequence[str]) -> Draft:
    """What a put comes to; the value is the store's own from here on.

    :raises ValidationFailed: it is not JSON.
    """
    if not isinstance(op.value, Mapping):
        raise ValidationFailed(f"the value of item {op.key!r} in {op.namespace!r} must be a dict, not {op.value!r}")
    index: Any = fields if op.index is None else op.index or ()
    if isinstance(index, str):
        raise ValidationFailed(f"index takes False or a list of paths; write index=[{index!r}]")
    payload = {
        "namespace": op.namespace,
        "key": op.key,
        "value": dict(op.value),
        "under": {
            str(depth): prefix_text(op.namespace[:depth])
            for depth in range(1, min(len(op.namespace), INDEXED_DEPTH) + 1)
        },
        "index": list(index),
        "ttl": 0.0 if op.ttl is None else op.ttl,  # a null would have the whole value looked through for NaN
        "created_at": "",
        "expires_at": 0.0,
    }
    plain = from_json(registry.encode(typename, payload))
    if op.ttl is None:
        plain["ttl"] = None
    further = {
        text_id: registry.encode(
            text_typename(typename), {"item": id_, "place": place, "text": text, "under": plain["under"]}
        )
        for place, (text_id, text) in enumerate(further_texts(id_, plain), start=1)
    }
    return Draft(id_, plain, further)


def texts_of(payload: Mapping[str, Any]) -> list[str]:
    """The texts of an item that are indexed."""
    texts = (text for path in payload["index"] for text in get_text_at_path(payload["value"], path))
    return [text for text in texts if text and not text.isspace()]


def further_texts(id_: str, payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The texts of an item but for the first one, with the ids of their facts."""
    paths = payload["index"]
    if len(paths) < 2 and not any("*" in path or "{" in path for path in paths):
        return []  # there is one at most
    return [(f"{id_}#{place}", text) for place, text in enumerate(texts_of(payload)[1:], start=1)]


def is_alive(payload: Mapping[str, Any], now: float, last_read: float | None = None) -> bool:
    """Whether an item has not expired; ``last_read`` is when reading it last postponed that."""
    expires_at = payload["expires_at"]
    if expires_at is None or expires_at > now:
        return True
    return last_read is not None and last_read + payload["ttl"] * _SECONDS > now


def item(payload: Mapping[str, Any], updated_at: str) -> Item:
    return Item(**_fields(payload, updated_at))


def search_item(payload: Mapping[str, Any], updated_at: str, score: float | None) -> SearchItem:
    return SearchItem(**_fields(payload, updated_at), score=score)


def _fields(payload: Mapping[str, Any], updated_at: str) -> dict[str, Any]:
    return {
        "value": payload["value"],
        "key": payload["key"],
        "namespace": tuple(payload["namespace"]),
        "created_at": datetime.fromisoformat(payload["created_at"]),
        "updated_at": datetime.fromisoformat(updated_at),
    }


# What hooks are told


class IndexOptions(TypedDict):
    """Options that the hooks of vector indexes have in common."""

    target_types: set[str]
    text_formatter: TextFormatter
    metadata_fields: list[str]


def item_index(typename: str = TYPENAME) -> IndexOptions:
    """The options of a hook whose index is for a store's items: ``ChromaSyncHook(client, "items", **item_index())``.

    What is embedded are the texts at the paths that ``index=`` names in the put, or ``fields=`` in the store, each by
    itself. Searches below a namespace are narrowed in the index.
    """
    return IndexOptions(
        target_types={typename, text_typename(typename)},
        text_formatter=_text,
        metadata_fields=[f"under.{depth}" for depth in range(1, INDEXED_DEPTH + 1)],
    )


def _text(payload: dict[str, Any]) -> str | None:
    if "text" in payload and "value" not in payload:
        text: str = payload["text"]
        return text
    texts = texts_of(payload)
    return texts[0] if texts else None
