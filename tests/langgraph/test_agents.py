"""Agents of ``create_agent``: their tools' memory and store go where the agent goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware, ToolRetryMiddleware
from langchain_core.messages import AIMessage, HumanMessage, ToolCall
from langchain_core.tools import StructuredTool
from langgraph.types import Command, interrupt

from memstate import AsyncMemoryStore, Fact
from tests.langchain.scripted import Scripted
from tests.langgraph.conftest import Makes
from tests.langgraph.test_rewinding import maybe
from tests.langgraph.test_sharing import call, thread

NOTES = ("notes",)
DONE = AIMessage("done")


def notes(*texts: str) -> AIMessage:
    """A message that calls the tool once for each text."""
    return AIMessage("", tool_calls=[ToolCall(name="note", args={"text": one}, id=one) for one in texts])


class Agent:
    """An agent with one tool, which commits a fact, and puts it into the store too.

    :ivar trouble: what the tool does in turn when it has written, or half of it.
    """

    def __init__(self, makes: Makes, middleware: Sequence[Any] = (), *, at_once: bool = False) -> None:
        self.checkpointer = makes.checkpointer()
        self.memory = self.checkpointer.memory
        self.items = makes.items(self.memory)
        self.model = Scripted()
        self.trouble: list[Callable[[str], Any]] = []
        self.ran: list[str] = []

        def trouble(text: str) -> None:
            self.ran.append(text)
            if self.trouble:
                self.trouble.pop(0)(text)

        def fact(text: str) -> Fact:
            return Fact("item", {"name": text})

        async def wait(text: str) -> str:
            """Note something."""
            if at_once:
                async with self.memory.transaction() as tx:
                    await tx.commit(fact(text))
                    trouble(text)
            else:
                await self.memory.commit(fact(text))
                trouble(text)
            await self.items.aput(NOTES, text, {"text": text})
            return f"noted {text}"

        def run(text: str) -> str:
            """Note something."""
            if at_once:
                with self.memory.transaction() as tx:
                    tx.commit(fact(text))
                    trouble(text)
            else:
                self.memory.commit(fact(text))
                trouble(text)
            self.items.put(NOTES, text, {"text": text})
            return f"noted {text}"

        is_async = isinstance(self.memory, AsyncMemoryStore)
        tool = StructuredTool.from_function(None if is_async else run, wait if is_async else None, name="note")
        self.graph = create_agent(
            self.model, [tool], middleware=middleware, checkpointer=self.checkpointer, store=self.items
        )

    async def runs(self, given: Any, *lines: AIMessage, config: Any = None) -> Any:
        self.model.lines[:] = [*lines, DONE]
        return await call(self.checkpointer, self.graph, "invoke", given, config or thread("t"))

    async def hears(self, text: str, *lines: AIMessage, config: Any = None) -> Any:
        return await self.runs({"messages": [HumanMessage(text)]}, *lines, config=config)

    async def before(self, node: str) -> Any:
        history = await call(self.checkpointer, self.graph, "get_state_history", thread("t"))
        return next(one.config for one in history if node in one.next)

    async def latest(self) -> Any:
        return (await call(self.checkpointer, self.graph, "get_state", thread("t"))).config

    async def facts(self) -> list[str]:
        found = await maybe(self.memory.query("item", session_id="t"))
        return sorted(fact["payload"]["name"] for fact in found)

    async def remembers(self, *texts: str) -> bool:
        """Whether memory and store have this, each of it once."""
        items = await call(self.checkpointer, self.items, "search", NOTES)
        return await self.facts() == sorted(item.key for item in items) == sorted(texts)


async def test_going_back(makes_here: Makes) -> None:
    agent = Agent(makes_here)
    await agent.hears("I like tea.", notes("tea"))
    first = await agent.latest()
    await agent.hears("And milk and rum.", notes("milk", "rum"))
    second = await agent.latest()
    assert await agent.remembers("tea", "milk", "rum")

    found = await agent.hears("No, wine.", notes("wine"), config=first)
    assert await agent.remembers("tea", "wine")
    assert [one.text for one in found["messages"] if one.type == "tool"] == ["noted tea", "noted wine"]

    await maybe(agent.checkpointer.rewind(second))
    assert await agent.remembers("tea", "milk", "rum")
    await agent.runs(None, config=await agent.before("tools"))
    assert sorted(agent.ran) == ["milk", "rum", "tea", "wine", "wine"]
    assert await agent.remembers("tea", "wine")


async def test_a_tool_that_asks(makes_here: Makes) -> None:
    """What it has committed before is tentative; what the tool beside it has done stays done."""
    agent = Agent(makes_here)

    def ask(text: str) -> None:
        if text == "rum":
            interrupt("Rum?")

    agent.trouble = [ask] * 4
    found = await agent.hears("Milk and rum.", notes("milk", "rum"))
    assert [one.value for one in found["__interrupt__"]] == ["Rum?"]
    assert await agent.facts() == ["milk", "rum"]
    asked = await agent.latest()
    await agent.runs(Command(resume="yes"))
    assert sorted(agent.ran) == ["milk", "rum", "rum"]
    assert await agent.remembers("milk", "rum")

    await agent.runs(Command(resume="no"), config=asked)
    assert await agent.remembers("milk", "rum")


@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_a_human_who_decides(makes_in_memory: Makes, decision: str) -> None:
    agent = Agent(makes_in_memory, [HumanInTheLoopMiddleware({"note": True})])
    await agent.hears("Tea.", notes("tea"))
    assert await agent.remembers()
    start = await agent.before("model")
    await agent.runs(Command(resume={"decisions": [{"type": decision}]}))
    assert await agent.remembers(*(["tea"] if decision == "approve" else []))
    await agent.runs(None, notes("milk"), config=start)
    assert await agent.remembers()
    await agent.runs(Command(resume={"decisions": [{"type": "approve"}]}))
    assert await agent.remembers("milk")


def fail(_: str) -> None:
    raise OSError("down")


async def test_a_tool_that_fails_and_is_run_again(makes_here: Makes) -> None:
    """What it had committed is taken back at once; what the tools beside it have done is not done again."""
    agent = Agent(makes_here)
    await agent.hears("Tea.", notes("tea"))
    agent.trouble = [fail]
    with pytest.raises(OSError, match="down"):
        await agent.hears("Rum.", notes("rum"))
    assert await agent.remembers("tea")
    await agent.runs(None)
    assert agent.ran == ["tea", "rum", "rum"]
    assert await agent.remembers("tea", "rum")


async def test_a_tool_that_is_tried_again_within_its_node(makes_in_memory: Makes) -> None:
    """The node has not failed, so it is the tool's transaction that leaves nothing of an attempt."""
    retry = ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False)
    agent = Agent(makes_in_memory, [retry], at_once=True)
    agent.trouble = [fail, fail]
    await agent.hears("Tea.", notes("tea"))
    assert agent.ran == ["tea"] * 3
    assert await agent.remembers("tea")
    await agent.runs(None, config=await agent.before("tools"))
    assert await agent.remembers("tea")
