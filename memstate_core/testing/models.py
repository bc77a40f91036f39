"""The types that the kit's tests store."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from memstate_core.schemas import Constraint


class Note(BaseModel):
    """Anything: no constraint. ``rank`` and ``label`` are indexed for ``"note"``, and not for ``"memo"``."""

    text: str = ""
    rank: Any = None
    label: Any = None
    data: Any = None


class User(BaseModel):
    """One per ``email`` in the store."""

    email: str | None = None
    name: str = ""
    role: str = "user"


class Draft(BaseModel):
    """One per ``topic`` in each session."""

    topic: Any = None
    text: str = ""


class Law(BaseModel):
    """Written once."""

    number: int
    text: str = ""


class Title(BaseModel):
    """One per ``name``, written once."""

    name: str
    text: str = ""


def register_all(store: Any) -> None:
    """Register the kit's types: ``note memo user draft law title``."""
    store.register_schema("note", Note, index=["rank", "label"])
    store.register_schema("memo", Note)
    store.register_schema("user", User, Constraint(singleton_key="email"), index=["role"])
    store.register_schema("draft", Draft, Constraint(singleton_key="topic", scope="session"))
    store.register_schema("law", Law, Constraint(immutable=True))
    store.register_schema("title", Title, Constraint(singleton_key="name", immutable=True))
