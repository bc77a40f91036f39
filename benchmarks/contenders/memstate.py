"""memstate itself, on each of its storages."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from benchmarks.contenders import Candidate, Contender, Facts, close_loop, settled
from benchmarks.injection import Index, Steps


class _Text(BaseModel):
    text: str


class _SteppedStorage:
    """A storage that says where in a read or a write it is."""

    def __init__(self, storage: Any, steps: Steps) -> None:
        self.is_async: bool = storage.is_async
        self.open = storage.open
        self.aclose = storage.aclose
        self._storage = storage
        self._steps = steps

    async def read(self, namespace: str, work: Any, *, snapshot: bool = False) -> Any:
        self._steps("storage: before")
        result = await self._storage.read(namespace, work, snapshot=snapshot)
        self._steps("storage: after")
        return result

    async def write(self, namespace: str, work: Any) -> Any:
        async def with_step(tx: Any) -> Any:
            result = await work(tx)
            self._steps("storage: inside")
            return result

        self._steps("storage: before")
        result = await self._storage.write(namespace, with_step)
        self._steps("storage: after")
        return result


class _Hook:
    def __init__(self, index: Index) -> None:
        self.name = index.name
        self._index = index

    def apply(self, changes: Sequence[Any]) -> None:
        self._index.apply({change.fact_id: change.after and change.after.payload["text"] for change in changes})


class _AsyncHook(_Hook):
    async def apply(self, changes: Sequence[Any]) -> None:
        entries = {change.fact_id: change.after and change.after.payload["text"] for change in changes}
        await self._index.apply_async(entries)


class MemState:
    """A store of either flavour, in a namespace of its own: its calls are awaited where the store's are."""

    def __init__(self, storage: Any, namespace: str, indexes: Sequence[Index], steps: Steps, **options: Any) -> None:
        from memstate_core import AsyncMemoryStore, MemoryStore

        flavour: Any = AsyncMemoryStore if storage.is_async else MemoryStore
        hook = _AsyncHook if storage.is_async else _Hook
        # Whoever holds a fact here never lets it go before it is let go on, so nobody waits for long.
        options = {"claim_timeout": 0.05, **options}
        hooks = [hook(index) for index in indexes]
        self._store = flavour(_SteppedStorage(storage, steps), hooks, namespace=namespace, **options)
        self._store.register_schema("note", _Text)

    def commit(self, fact_id: str, text: str, session_id: str | None) -> Any:
        return self._store.commit(_fact(fact_id, text), session_id)

    def update(self, fact_id: str, text: str) -> Any:
        return self._store.update(fact_id, {"text": text})

    def delete(self, fact_id: str, session_id: str | None) -> Any:
        return self._store.delete(fact_id, session_id)

    def batch(self, session_id: str, texts: Mapping[str, str]) -> Any:
        block = self._store.transaction(session_id)
        return _in_block_async(block, texts) if hasattr(block, "__aenter__") else _in_block(block, texts)

    def promote(self, session_id: str) -> Any:
        return self._store.promote_session(session_id)

    def discard(self, session_id: str) -> Any:
        return self._store.discard_session(session_id)

    def rollback(self, session_id: str, steps: int) -> Any:
        return self._store.rollback(session_id, steps)

    def facts(self) -> Facts:
        return {fact["id"]: (fact["session_id"], fact["payload"]["text"]) for fact in settled(self._store.query())}

    def journal(self, session_id: str) -> list[Any]:
        entries = settled(self._store.history(session_id, limit=None))
        return [
            (entry.operation.value, sorted(change.fact_id for change in entry.changes)) for entry in reversed(entries)
        ]

    def recover(self) -> None:
        settled(self._store.recover())

    def close(self) -> None:
        settled(self._store.close())


class DeferredMemState(MemState):
    """A store that tells its indexes when it is asked to, which is all the recovery there is."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, delivery="deferred")

    def recover(self) -> None:
        self._store.deliver()


def _fact(fact_id: str, text: str) -> Any:
    from memstate_core import Fact

    return Fact("note", {"text": text}, id=fact_id)


def _in_block(block: Any, texts: Mapping[str, str]) -> None:
    with block as tx:
        for fact_id, text in texts.items():
            tx.commit(_fact(fact_id, text))


async def _in_block_async(block: Any, texts: Mapping[str, str]) -> None:
    async with block as tx:
        for fact_id, text in texts.items():
            await tx.commit(_fact(fact_id, text))


@functools.cache
def _storage(kind: str, where: str, is_async: bool) -> Any:
    """One for the whole process, whose namespaces are as good as storages of their own."""
    if kind == "postgres":
        from memstate_core.storages.postgres import AsyncPostgresStorage, PostgresStorage

        storage: Any = (AsyncPostgresStorage if is_async else PostgresStorage)(where, pool_size=2)
    elif kind == "redis":
        from memstate_core.storages.redis import AsyncRedisStorage, RedisStorage

        storage = (AsyncRedisStorage if is_async else RedisStorage)(where)
    else:
        from memstate_core import AsyncInMemoryStorage, AsyncSQLiteStorage, InMemoryStorage, SQLiteStorage

        if kind == "sqlite":
            storage = (AsyncSQLiteStorage if is_async else SQLiteStorage)(where)
        else:
            storage = (AsyncInMemoryStorage if is_async else InMemoryStorage)()
    _shared.callback(lambda: settled(storage.close()))
    return storage


_shared: Final = contextlib.ExitStack()


def close_all() -> None:
    """Close what all contenders of this process share, the loop included."""
    _shared.close()
    _storage.cache_clear()
    close_loop()


def open_memstate(
    directory: Path,
    indexes: Sequence[Index],
    steps: Steps,
    *,
    kind: str,
    where: str,
    is_async: bool = False,
    store: Callable[..., Contender] = MemState,
) -> Contender:
    return store(_storage(kind, where, is_async), directory.name, indexes, steps)


def memstate_on(kind: str, title: str, where: str = "") -> Candidate:
    """memstate on a storage: ``where`` is its URL or path, nothing for memory."""
    opened = functools.partial(open_memstate, kind=kind, where=where)
    return Candidate(
        title,
        opened,
        open_async=functools.partial(opened, is_async=True),
        open_deferred=functools.partial(opened, store=DeferredMemState),
        outlives=kind != "memory",
        modules=(f"memstate_core.storages.{kind}",),
    )
