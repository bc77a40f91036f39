"""Listing checkpoints in pages, so that a long thread is not read at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from memstate_core.protocols import StorageTransaction
from memstate_langgraph import _keys as keys
from memstate_langgraph._codec import Codec, StoredCheckpoint
from memstate_langgraph._places import Place
from memstate_langgraph._reading import Reader, thread_id_of

_PAGE: Final = 32


class Listing:
    """One call of ``list``; :meth:`page` gives what comes next until there is no more.

    Within a call, what several checkpoints have in common is made once.
    """

    def __init__(
        self,
        read: Callable[[Callable[[StorageTransaction], Any]], Any],
        codec: Codec,
        config: RunnableConfig | None,
        filter: Mapping[str, Any] | None,  # noqa: A002
        before: RunnableConfig | None,
        limit: int | None,
    ) -> None:
        self._read = read
        self._codec = codec
        self._filter = filter
        self._left = limit
        self._end: str | None = (before.get("configurable") or {}).get("checkpoint_id") if before else None
        self._place = Place(config) if config is not None else None
        in_namespace = config is not None and config["configurable"].get("checkpoint_ns") is not None
        self._work = self._of_namespace if in_namespace else self._of_many
        self._reader: Reader | None = None
        self._finished = limit is not None and limit <= 0

    async def page(self) -> list[CheckpointTuple] | None:
        """The next ones; None: there are no more."""
        if self._finished:
            return None
        page, self._end, self._reader = await self._read(self._work)
        self._left = None if self._left is None else self._left - len(page)
        self._finished = self._end is None or self._left == 0
        found: list[CheckpointTuple] = page
        return found

    async def _of_many(self, tx: StorageTransaction) -> tuple[list[CheckpointTuple], None, None]:
        """All namespaces of a thread, or of all threads, at once: they are sorted by id together."""
        if self._place is not None:
            threads = [self._place.thread_id]
        else:
            threads = [thread_id_of(record.value) for record in await tx.scan(keys.THREADS)]
        readers = {thread_id: Reader(tx, self._codec, thread_id, share=True) for thread_id in threads}
        found = [one for reader in readers.values() for one in await reader.checkpoints()]
        found.sort(key=lambda one: one.checkpoint_id, reverse=True)
        chosen = [one for one in found if self._fits(one)]
        return [await readers[one.thread_id].checkpoint_tuple(one) for one in chosen[: self._left]], None, None

    async def _of_namespace(self, tx: StorageTransaction) -> tuple[list[CheckpointTuple], str | None, Reader]:
        place = self._place
        assert place is not None
        reader = self._reader or Reader(tx, self._codec, place.thread_id, share=True)
        reader.tx = tx
        if place.checkpoint_id is not None:
            only = await reader.checkpoint(place.checkpoint_ns, place.checkpoint_id)
            found = [only] if only is not None else []
        else:
            size = _PAGE if self._left is None or self._filter else min(self._left, _PAGE)
            found = await reader.checkpoints(place.checkpoint_ns, self._end, size)
        chosen = [one for one in found if self._fits(one)]
        page = [await reader.checkpoint_tuple(one) for one in chosen[: self._left]]
        return page, found[-1].checkpoint_id if found and place.checkpoint_id is None else None, reader

    def _fits(self, one: StoredCheckpoint) -> bool:
        wanted = self._place.checkpoint_id if self._place is not None else None
        if one.hidden or wanted not in (None, one.checkpoint_id):
            return False
        if self._end is not None and one.checkpoint_id >= self._end:
            return False
        if not self._filter:
            return True
        metadata: Mapping[str, Any] = self._codec.metadata(one)
        return all(metadata.get(key) == value for key, value in self._filter.items())
