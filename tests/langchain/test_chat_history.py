"""The messages of a chat, and what is undone with them."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from memstate_core import Fact, InMemoryStorage, ValidationFailed
from memstate_core.testing.face import Face
from memstate_langchain import MemStateChatMessageHistory, memory_tools
from tests.langchain.stores import async_store, sync_store

MESSAGES: list[BaseMessage] = [
    SystemMessage("be brief"),
    HumanMessage("hello", id="1", name="ann"),
    AIMessage("", tool_calls=[{"name": "save", "args": {"a": [1, None]}, "id": "c", "type": "tool_call"}]),
    ToolMessage("saved", tool_call_id="c", artifact={"fact": 1}, status="error"),
    HumanMessage([{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:,é"}}]),
    AIMessage("done", usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
]


@pytest.fixture(params=[sync_store, async_store])
def store(request: pytest.FixtureRequest) -> Any:
    return request.param()


async def test_messages_come_back_as_they_were(store: Any) -> None:
    history = MemStateChatMessageHistory(store, "t")
    assert await history.aget_messages() == []
    await history.aadd_messages(MESSAGES[:2])
    await history.aadd_messages(MESSAGES[2:])
    assert await history.aget_messages() == MESSAGES
    assert len(await Face(store).history("t")) == 2
    again = MemStateChatMessageHistory(store, "t")
    assert [type(message) for message in await again.aget_messages()] == [type(message) for message in MESSAGES]


async def test_a_turn_is_undone_with_what_it_has_saved(store: Any) -> None:
    face = Face(store)
    history = MemStateChatMessageHistory(store, "t")
    await history.aadd_messages([HumanMessage("hello"), AIMessage("hello")])
    await history.asavepoint("turn")
    await history.aadd_messages([HumanMessage("I like tea")])
    await face.commit(Fact("preference", {"topic": "tea", "opinion": "likes it"}, session_id="t"))
    await history.aadd_messages([AIMessage("noted")])
    undone = await history.arollback(to="turn")
    assert len(undone) == 3
    assert [message.content for message in await history.aget_messages()] == ["hello", "hello"]
    assert await face.search("tea") == []
    await face.redo("t", 3)
    assert [message.content for message in await history.aget_messages()][-2:] == ["I like tea", "noted"]
    await history.arollback()
    assert (await history.aget_messages())[-1].content == "I like tea"


async def test_they_are_no_memory(store: Any) -> None:
    history = MemStateChatMessageHistory(store, "t")
    await history.aadd_messages([HumanMessage("I like green tea")])
    assert await Face(store).search("green tea") == []
    assert await Face(store).promote_session("t") == []
    assert not (await Face(store).verify()).drift
    assert all("memstate" not in tool.name for tool in memory_tools(store))


async def test_chats_and_sessions_have_nothing_in_common(store: Any) -> None:
    histories = [MemStateChatMessageHistory(store, session, name=name) for session in "tu" for name in ("a", "b")]
    for number, history in enumerate(histories):
        await history.aadd_messages([HumanMessage(str(number))])
    await histories[0].aclear()
    assert [[one.content for one in await history.aget_messages()] for history in histories] == [
        [],
        ["1"],
        ["2"],
        ["3"],
    ]
    await histories[0].arollback()
    assert [one.content for one in await histories[0].aget_messages()] == ["0"]


async def test_what_cannot_be_kept_is_refused_whole(store: Any) -> None:
    history = MemStateChatMessageHistory(store, "t")
    with pytest.raises(ValidationFailed, match="additional_kwargs"):
        await history.aadd_messages([HumanMessage("a"), HumanMessage("b", additional_kwargs={"x": object()})])
    assert await history.aget_messages() == []
    with pytest.raises(ValidationFailed, match="session_id"):
        MemStateChatMessageHistory(store, "")


def test_in_a_sync_program() -> None:
    storage = InMemoryStorage()
    history = MemStateChatMessageHistory(sync_store(storage), "t")
    history.add_user_message("hello")
    history.savepoint("here")
    history.add_ai_message("hi")
    assert [message.content for message in history.messages] == ["hello", "hi"]
    history.rollback(to="here")
    assert str(MemStateChatMessageHistory(sync_store(storage), "t")) == "Human: hello"
    history.clear()
    assert history.messages == []
    with pytest.raises(TypeError, match="AsyncMemoryStore"):
        _ = MemStateChatMessageHistory(async_store(), "t").messages
