"""memstate itself, as the workload sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from benchmarks.workload import INDEXED, SINGLETON, Note, Preference, Setting
from memstate_core import AsyncMemoryStore, Constraint, MemoryStore
from memstate_core._bridge import run
from memstate_core.protocols import Storage


def register(store: MemoryStore | AsyncMemoryStore) -> None:
    store.register_schema("note", Note)
    store.register_schema("preference", Preference, index=[INDEXED])
    store.register_schema("setting", Setting, Constraint(singleton_key=SINGLETON))


class MemStateSubject:
    """A sync store on a storage that it closes in the end."""

    def __init__(self, storage: Storage, hooks: Iterable[Any] = ()) -> None:
        self._storage = storage
        self.store = MemoryStore(storage, list(hooks))
        register(self.store)
        self.get = self.store.get
        self.rollback = self.store.rollback
        self.promote = self.store.promote_session

    def commit(self, model: BaseModel, session_id: str) -> str:
        return self.store.commit_model(model, session_id=session_id)

    def query(self, topic: str) -> Sequence[Any]:
        return self.store.query("preference", {INDEXED: topic})

    def close(self) -> None:
        self.store.close()
        run(self._storage.aclose())


class AsyncMemStateSubject:
    """The same, awaited."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.store = AsyncMemoryStore(storage)
        register(self.store)
        self.get = self.store.get
        self.rollback = self.store.rollback

    async def commit(self, model: BaseModel, session_id: str) -> str:
        return await self.store.commit_model(model, session_id=session_id)

    async def query(self, topic: str) -> Sequence[Any]:
        return await self.store.query("preference", {INDEXED: topic})

    async def aclose(self) -> None:
        await self.store.close()
        await self._storage.aclose()
