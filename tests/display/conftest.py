"""A session with branches, and texts that want to be more than texts."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from memstate_core import Constraint, InMemoryStorage, MemoryStore

HOSTILE = '<script>alert("x")</script>&\x1b[2J\u202e'


class Preference(BaseModel):
    topic: str
    content: str


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore(InMemoryStorage())
    store.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    return store


@pytest.fixture
def branched(store: MemoryStore) -> MemoryStore:
    """``tx-1 ─ tx-2`` was left, ``tx-1 ─ tx-4`` was left, and from the beginning there is ``tx-6``."""

    def prefer(topic: str, content: str, **options: str) -> None:
        store.commit_model(Preference(topic=topic, content=content), session_id="chat", **options)

    prefer("food", "vegetarian")
    prefer("food", "steak", reason="a joke")
    store.rollback("chat")
    prefer("city", "Rome")
    store.rollback("chat", steps=2)
    prefer("music", "jazz")
    return store
