"""Facts and changes as hooks are given them, and what they find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memstate_core.facts import Change, Fact, SearchResult


def fact(fact_id: str, content: Any = "I am vegetarian", *, version: int = 1, **options: Any) -> Fact:
    payload = {"content": content, **options.pop("payload", {})}
    return Fact(**{"type": "note", "payload": payload, "id": fact_id, "version": version, **options})


def put(*facts: Fact) -> list[Change]:
    return [Change(fact.id, None, fact) for fact in facts]


def drop(*fact_ids: str) -> list[Change]:
    return [Change(fact_id, fact(fact_id), None) for fact_id in fact_ids]


def ids(results: Sequence[SearchResult]) -> list[str]:
    return [result.fact_id for result in results]
