"""How many storage transactions a commit takes: each of them is a lock, and on a database a trip to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from memstate_core import Constraint, InMemoryStorage, MemoryStore


class Note(BaseModel):
    text: str


class Setting(BaseModel):
    name: str


class Counting(InMemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    async def write(self, namespace: str, work: Any) -> Any:
        self.writes += 1
        return await super().write(namespace, work)


class NotesOnly:
    target_types = ("note",)

    def __init__(self) -> None:
        self.told: list[Any] = []

    def apply(self, changes: Sequence[Any]) -> None:
        self.told += changes


@pytest.mark.parametrize(("hooked", "model", "writes"), [(False, Note, 1), (True, Setting, 1), (True, Note, 3)])
def test_one_for_what_no_hook_wants_and_three_for_the_rest(hooked: bool, model: type[BaseModel], writes: int) -> None:
    storage, hook = Counting(), NotesOnly()
    store = MemoryStore(storage, [hook] if hooked else [])
    store.register_schema("note", Note)
    store.register_schema("setting", Setting, Constraint(singleton_key="name"))
    store.count()
    storage.writes = 0
    store.commit_model(Note(text="x") if model is Note else Setting(name="x"), session_id="s")
    assert storage.writes == writes
    storage.writes = 0
    store.rollback("s")
    assert storage.writes == writes
    assert len(hook.told) == (2 if writes == 3 else 0)
    assert store.count() == 0
