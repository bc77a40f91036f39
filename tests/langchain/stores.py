"""Stores with an index, of both flavours, and the models of a small memory."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel, Field, field_validator

from memstate_core import AsyncInMemoryStorage, AsyncMemoryStore, Constraint, InMemoryStorage, MemoryStore
from memstate_langchain import AsyncVectorStoreHook, VectorStoreHook
from tests.langchain.words import Words


class Preference(BaseModel):
    """What somebody likes or dislikes."""

    topic: str = Field(description="What it is about, in one word.")
    opinion: str = Field(description="What they think of it.")
    strength: int = Field(3, ge=1, le=5)

    @field_validator("topic")
    @classmethod
    def _one_word(cls, topic: str) -> str:
        if " " in topic:
            raise ValueError("one word only")
        return topic.lower()


class Allergy(BaseModel):
    substance: str
    reaction: Literal["mild", "severe"]


class Setting(BaseModel):
    """Fields that are named as parameters are."""

    config: str
    run_manager: str = ""
    payload: dict[str, Any] = {}


def register(store: Any) -> Any:
    store.register_schema("preference", Preference, Constraint("topic", scope="session"))
    store.register_schema("allergy", Allergy, Constraint("substance", immutable=True))
    store.register_schema("app setting", Setting)
    return store


def sync_store(storage: Any = None, **options: Any) -> MemoryStore:
    vectorstore = InMemoryVectorStore(Words())
    found: MemoryStore = register(MemoryStore(storage or InMemoryStorage(), [VectorStoreHook(vectorstore)], **options))
    return found


def async_store(storage: Any = None, **options: Any) -> AsyncMemoryStore:
    hook = AsyncVectorStoreHook(InMemoryVectorStore(Words()))
    found: AsyncMemoryStore = register(AsyncMemoryStore(storage or AsyncInMemoryStorage(), [hook], **options))
    return found


def thread(name: str, **others: Any) -> dict[str, Any]:
    """The config of a run."""
    return {"configurable": {"thread_id": name, **others}}
