"""The published ``memstate`` 0.5.1, in a process in which that is what ``memstate`` means."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from benchmarks.contenders import Candidate, Facts, settled
from benchmarks.injection import Index, Steps


class _Text(BaseModel):
    text: str


class _Stepped:
    """An object that says before and after each call of a method."""

    def __init__(self, inner: Any, steps: Steps) -> None:
        self._inner = inner
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self._steps("storage: before")
            result = method(*arguments, **options)
            self._steps("storage: after")
            return result

        async def call_async(*arguments: Any, **options: Any) -> Any:
            self._steps("storage: before")
            result = await method(*arguments, **options)
            self._steps("storage: after")
            return result

        return call_async if inspect.iscoroutinefunction(method) else call


class Published:
    """``memstate`` 0.5.1 on SQLite, in a process where that is what ``memstate`` means.

    Its hooks do what its own for Chroma do, which are told of one fact at a time.
    """

    def __init__(self, directory: Path, indexes: Sequence[Index], steps: Steps, *, is_async: bool = False) -> None:
        import memstate

        self._memstate: Any = memstate
        path = str(directory / "facts.db")
        self._storage = self._memstate.AsyncSQLiteStorage(path) if is_async else self._memstate.SQLiteStorage(path)
        if is_async:
            settled(self._storage.connect())
        store = self._memstate.AsyncMemoryStore if is_async else self._memstate.MemoryStore
        told = self._told_async if is_async else self._told
        self._store = store(_Stepped(self._storage, steps), [functools.partial(told, index) for index in indexes])
        self._store.register_schema("note", _Text)

    @staticmethod
    def _entries(operation: Any, fact_id: str, fact: Any) -> dict[str, str | None] | None:
        if operation.value == "DISCARD_SESSION":
            return None
        return {fact_id: None if operation.value == "DELETE" else fact.payload["text"]}

    def _told(self, index: Index, operation: Any, fact_id: str, fact: Any) -> None:
        if (entries := self._entries(operation, fact_id, fact)) is not None:
            index.apply(entries)

    async def _told_async(self, index: Index, operation: Any, fact_id: str, fact: Any) -> None:
        if (entries := self._entries(operation, fact_id, fact)) is not None:
            await index.apply_async(entries)

    def commit(self, fact_id: str, text: str, session_id: str | None) -> Any:
        fact = self._memstate.Fact(id=fact_id, type="note", payload={"text": text})
        return self._store.commit(fact, session_id=session_id)

    def update(self, fact_id: str, text: str) -> Any:
        return self._store.update(fact_id, {"payload": {"text": text}})

    def delete(self, fact_id: str, session_id: str | None) -> Any:
        return self._store.delete(session_id, fact_id)

    def promote(self, session_id: str) -> Any:
        return self._store.promote_session(session_id)

    def discard(self, session_id: str) -> Any:
        return self._store.discard_session(session_id)

    def rollback(self, session_id: str, steps: int) -> Any:
        return self._store.rollback(session_id, steps)

    def facts(self) -> Facts:
        facts = settled(self._storage.query())
        return {fact["id"]: (fact["session_id"], fact["payload"]["text"]) for fact in facts}

    def journal(self, session_id: str) -> list[Any]:
        entries = settled(self._storage.get_tx_log(session_id, limit=1_000_000))
        return [(entry["op"], entry["fact_id"]) for entry in reversed(entries)]

    def close(self) -> None:
        settled(self._storage.close())


PUBLISHED: Final = Candidate("memstate 0.5.1", Published, open_async=functools.partial(Published, is_async=True))
