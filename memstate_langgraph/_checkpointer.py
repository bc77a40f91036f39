"""What the checkpointers of both flavours have in common."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any, Literal, Self, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from memstate_core.async_store import AsyncMemoryStore
from memstate_core.errors import ValidationFailed
from memstate_core.facts import Change
from memstate_core.past import difference
from memstate_core.store import MemoryStore
from memstate_langgraph._cache import Cache
from memstate_langgraph._callbacks import listen
from memstate_langgraph._codec import Codec
from memstate_langgraph._hearing import look_at
from memstate_langgraph._nodes import attribute
from memstate_langgraph._saver import Saver
from memstate_langgraph._serde import TypeName, serializer
from memstate_langgraph._tags import acting_as, current_node
from memstate_langgraph._wrapping import Wrapped
from memstate_langgraph.rewind import Rewinder, Rewinding

OnDelete = Literal["keep", "discard"]


class Checkpointer(BaseCheckpointSaver[str]):
    """What both checkpointers have."""

    def __init__(
        self,
        memory: MemoryStore | AsyncMemoryStore,
        serde: SerializerProtocol | None,
        allow: Collection[type | TypeName],
        rewind: Rewinding,
        run_timeout: float,
        inner: BaseCheckpointSaver[Any] | None,
        on_delete_thread: OnDelete,
    ) -> None:
        if rewind not in ("auto", "manual", "off"):
            raise ValueError(f"rewind is 'auto', 'manual' or 'off', not {rewind!r}")
        if inner is not None and (serde is not None or allow):
            raise ValidationFailed("serde= and allow= are the inner saver's; give them to that one")
        super().__init__(serde=serializer(serde, allow) if inner is None else inner.serde)
        if on_delete_thread not in ("keep", "discard"):
            raise ValueError(f"on_delete_thread is 'keep' or 'discard', not {on_delete_thread!r}")
        self.memory: Any = memory
        self.discards = on_delete_thread == "discard"
        rewinder = Rewinder(memory.engine, rewind, run_timeout)
        self.inner = inner
        self._saver: Saver | Wrapped = (
            Saver(memory.engine, Cache(), rewinder) if inner is None else Wrapped(memory.engine, inner, rewinder)
        )
        self._known_codec: Codec | None = None
        listen(rewinder, is_async=memory.engine.runtime.is_async)
        if rewind != "off":
            attribute(memory, rewinder)

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> Self:
        """A copy whose serializer takes further types, which LangGraph finds in a graph's schemas."""
        if self.inner is None:
            return cast(Self, super().with_allowlist(extra_allowlist))
        clone = copy.copy(self)
        clone.inner = self.inner.with_allowlist(extra_allowlist)
        clone._saver = Wrapped(self.memory.engine, clone.inner, self._saver.rewinder)
        return clone

    @property
    def _codec(self) -> Codec:
        # with_allowlist() replaces the serializer of a copy.
        if self._known_codec is None or self._known_codec.serde is not self.serde:
            self._known_codec = Codec(self.serde)
        return self._known_codec

    def acting_here(self) -> AbstractContextManager[None]:
        """Inside of a node: what lets other threads act for it, ``with acting:`` around what they do.

        LangChain's executors and ``asyncio`` carry the node along by themselves; a bare thread or executor does not.

        :raises RuntimeError: no node is running here.
        """
        node = current_node()
        if node is None:
            raise RuntimeError("acting_here() is for a node of a graph that is run with this checkpointer")
        return acting_as(node)

    async def _difference(self, before: RunnableConfig, after: RunnableConfig) -> list[Change]:
        (thread_id, start), (other, end) = map(self._saver.rewinder.located, (before, after))
        if thread_id != other:
            raise ValidationFailed(f"thread {thread_id!r} and thread {other!r} have different memories")
        return await difference(self.memory.engine, thread_id, start, end)

    def _looked(self, config: RunnableConfig, found: CheckpointTuple | None) -> CheckpointTuple | None:
        """Remember a look at the root from outside of any run, in the context of the call."""
        configurable = config["configurable"]
        if not configurable.get("checkpoint_ns") and not self._saver.rewinder.is_run(config):
            look_at(str(configurable["thread_id"]), found)
        return found

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Versions sort by their number; a random part tells those of two branches apart."""
        if self.inner is not None:
            return cast(str, self.inner.get_next_version(current, channel))
        # A thread that another saver has begun may have numbers.
        number = 0 if current is None else int(str(current).partition(".")[0])
        return f"{number + 1:032}.{random.random():016}"
