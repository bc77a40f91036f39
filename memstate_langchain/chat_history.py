"""The messages of a chat, in the history of their session: what is undone there is undone with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, messages_from_dict
from pydantic import BaseModel

from memstate_core.errors import ValidationFailed
from memstate_core.facts import Fact, Moved
from memstate_core.hooks._adapter import INTERNAL
from memstate_core.moves import Target
from memstate_core.values import check_identifier
from memstate_langchain._calls import Face, Store, checked_store, later, now

_MESSAGE: Final = f"{INTERNAL}message"


class _Message(BaseModel):
    """A message of the chat ``name``, as :func:`~langchain_core.messages.messages_from_dict` takes it."""

    name: str
    message: dict[str, Any]


class MemStateChatMessageHistory(BaseChatMessageHistory):
    """The messages of a session's chat, as ephemeral facts, which no hook is told of unless it asks.

    Each call is one transaction in the history of the session, in between those that change its memory.

    :param name: a session may have several chats.
    """

    def __init__(self, store: Store, session_id: str, *, name: str = "chat") -> None:
        check_identifier("session_id", session_id)
        check_identifier("name", name)
        self.store = checked_store(store)
        self.session_id = session_id
        self.name = name
        if _MESSAGE not in store.engine.registry:
            store.register_schema(_MESSAGE, _Message, index=["name"])

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """All messages, oldest first."""
        return now(self.store, self._read)

    async def aget_messages(self) -> list[BaseMessage]:
        """Same as :attr:`messages`, awaited."""
        return await later(self.store, self._read)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Add messages, in one transaction.

        :raises ValidationFailed: one holds what is no JSON; none was added.
        """
        now(self.store, lambda store: self._add(store, messages))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Same as :meth:`add_messages`, awaited."""
        await later(self.store, lambda store: self._add(store, messages))

    def clear(self) -> None:
        """Delete all messages of this chat, and nothing else of its session, in one transaction."""
        now(self.store, self._clear)

    async def aclear(self) -> None:
        """Same as :meth:`clear`, awaited."""
        await later(self.store, self._clear)

    def rollback(self, steps: int = 1, to: Target | None = None) -> Moved:
        """Undo the last transactions of the session, those that changed its memory included.

        See :meth:`memstate_core.MemoryStore.rollback`; a turn is undone whole by ``to=`` a savepoint before it.
        """
        undone: Moved = now(self.store, lambda store: store.rollback(self.session_id, steps, to))
        return undone

    async def arollback(self, steps: int = 1, to: Target | None = None) -> Moved:
        """Same as :meth:`rollback`, awaited."""
        undone: Moved = await later(self.store, lambda store: store.rollback(self.session_id, steps, to))
        return undone

    def savepoint(self, name: str) -> None:
        """Name the place where the session stands, for :meth:`rollback`."""
        now(self.store, lambda store: store.savepoint(self.session_id, name))

    async def asavepoint(self, name: str) -> None:
        """Same as :meth:`savepoint`, awaited."""
        await later(self.store, lambda store: store.savepoint(self.session_id, name))

    # What is done

    async def _facts(self, store: Face) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await store.query(_MESSAGE, {"name": self.name}, self.session_id)
        return found

    async def _read(self, store: Face) -> list[BaseMessage]:
        return messages_from_dict([fact["payload"]["message"] for fact in await self._facts(store)])

    async def _add(self, store: Face, messages: Sequence[BaseMessage]) -> None:
        facts = [Fact(_MESSAGE, {"name": self.name, "message": _plain(message)}) for message in messages]
        async with store.transaction(session_id=self.session_id) as tx:
            for fact in facts:
                await tx.commit(fact, ephemeral=True)

    async def _clear(self, store: Face) -> None:
        async with store.transaction(session_id=self.session_id) as tx:
            for fact in await self._facts(tx):
                await tx.delete(fact["id"])


def _plain(message: BaseMessage) -> dict[str, Any]:
    try:
        return {"type": message.type, "data": message.model_dump(mode="json")}
    except Exception as error:
        raise ValidationFailed(
            f"a {type(message).__name__} holds what cannot be kept as JSON, perhaps in its additional_kwargs: {error}"
        ) from error
