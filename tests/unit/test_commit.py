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


class Preparing(NotesOnly):
    def prepare(self, changes: Sequence[Any]) -> Sequence[Any]:
        return changes


@pytest.mark.parametrize(
    ("hook", "model", "fact_id", "writes"),
    [
        (None, Note, None, (1, 1)),
        (NotesOnly(), Setting, None, (1, 1)),
        (NotesOnly(), Note, None, (2, 2)),
        (NotesOnly(), Note, "given", (2, 2)),
        (Preparing(), Note, None, (2, 2)),  # nothing need be read to make a fact with a new id
        (Preparing(), Note, "given", (3, 2)),
    ],
)
def test_one_for_what_no_hook_wants_and_a_third_where_one_prepares(
    hook: NotesOnly | None, model: type[BaseModel], fact_id: str | None, writes: tuple[int, int]
) -> None:
    storage = Counting()
    store = MemoryStore(storage, [hook] if hook else [])
    store.register_schema("note", Note)
    store.register_schema("setting", Setting, Constraint(singleton_key="name"))
    store.count()
    storage.writes = 0
    store.commit_model(Note(text="x") if model is Note else Setting(name="x"), fact_id, session_id="s")
    assert storage.writes == writes[0]
    storage.writes = 0
    store.rollback("s")  # of what goes there is nothing to prepare
    assert storage.writes == writes[1]
    assert hook is None or len(hook.told) == (2 if model is Note else 0)
    assert store.count() == 0


def test_definitions_that_change_while_a_new_fact_is_planned() -> None:
    """Another thread of the same store learns of newer ones in between."""
    storage = Counting()
    hook = Preparing()
    store = MemoryStore(storage, [hook])
    store.register_schema("note", Note)
    store.count()
    definitions = store._engine.definitions

    class Changing(int):
        """A generation that is never what it was."""

        def __eq__(self, other: object) -> bool:
            definitions.generation = int(self)
            return False

        __hash__ = int.__hash__

    definitions.generation = Changing(definitions.generation)
    fact_id = store.commit_model(Note(text="x"))
    assert store.get(fact_id)["payload"] == {"text": "x"}
    assert [change.fact_id for change in hook.told] == [fact_id]
