"""What puts and deletions of items come to on the facts as they are."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import ormsgpack

from memstate_core.intents import Put, Workspace
from memstate_langgraph._store_items import SCHEMA_VERSION, Draft, further_texts, is_alive, text_typename


@dataclass(frozen=True, slots=True)
class WriteItems:
    """Put items and delete others. One that is replaced keeps the time at which it was made."""

    typename: str
    drafts: Sequence[Draft]
    removed: Sequence[str]
    reads: str

    async def apply(self, space: Workspace) -> None:
        ids = [*(draft.fact_id for draft in self.drafts), *self.removed]
        before = await _items_before(space, self.typename, ids)
        texts = {text_id: text for draft in self.drafts for text_id, text in draft.texts.items()}
        await space.read(list(texts))
        await space.read_versions([*(draft.fact_id for draft in self.drafts), *texts])
        for id_ in self.removed:
            if id_ in before:
                space.remove(id_)
        for id_, payload in before.items():
            _remove_texts(space, id_, payload, texts)
        for draft in self.drafts:
            created_at = space.ts
            replaced = before.get(draft.fact_id)
            if replaced is not None and await _not_expired(space, self.reads, draft.fact_id, replaced):
                created_at = replaced["created_at"]
            await _put(space, draft.fact_id, self.typename, draft.text(created_at, space.ts))
        for text_id, text in texts.items():
            await _put(space, text_id, text_typename(self.typename), text)


@dataclass(frozen=True, slots=True)
class RemoveExpired:
    """Delete those of some items that have expired; returns how many."""

    typename: str
    fact_ids: Sequence[str]
    reads: str

    async def apply(self, space: Workspace) -> int:
        removed = 0
        for id_, payload in (await _items_before(space, self.typename, self.fact_ids)).items():
            if not await _not_expired(space, self.reads, id_, payload):
                space.remove(id_)
                _remove_texts(space, id_, payload, ())
                removed += 1
        return removed


async def _items_before(space: Workspace, typename: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The payloads of those of the items that are there; their further texts have been read as well."""
    await space.read(ids)
    found = {id_: fact for id_ in ids if (fact := await space.get(id_)) is not None and fact.type == typename}
    payloads = {id_: space.registry.decode(fact) for id_, fact in found.items()}
    await space.read([text_id for id_, payload in payloads.items() for text_id, _ in further_texts(id_, payload)])
    return payloads


def _remove_texts(space: Workspace, id_: str, payload: Mapping[str, Any], kept: Container[str]) -> None:
    for text_id, _ in further_texts(id_, payload):
        if text_id not in kept:
            space.remove(text_id)


async def _put(space: Workspace, id_: str, typename: str, text: str) -> None:
    # Items are long-term memory, whose session is None; that a thread has put them is in its history.
    await Put(id_, False, typename, text, SCHEMA_VERSION, None, None, None, False, None).apply(space)


async def _not_expired(space: Workspace, reads: str, id_: str, payload: Mapping[str, Any]) -> bool:
    now = datetime.fromisoformat(space.ts).timestamp()
    if is_alive(payload, now):
        return True
    record = await space.tx.record(reads, id_)
    return record is not None and is_alive(payload, now, ormsgpack.unpackb(record))
