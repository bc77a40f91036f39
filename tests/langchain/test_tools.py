"""The tools that a model calls, in the ways in which it does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from memstate_core import AsyncMemoryStore, Fact, HookError, InMemoryStorage, MemoryStore
from memstate_core.testing.face import Face
from memstate_langchain import memory_tools
from tests.langchain.stores import Preference, async_store, register, sync_store, thread


class Toolbox:
    """The tools of a store, called as a model calls them, in a thread."""

    def __init__(self, store: MemoryStore | AsyncMemoryStore, **options: Any) -> None:
        self.store = Face(store)
        self.tools = {tool.name: tool for tool in memory_tools(store, destructive=True, **options)}

    async def message(self, name: str, thread_id: str = "t", **arguments: Any) -> ToolMessage:
        call = {"name": name, "args": arguments, "id": "1", "type": "tool_call"}
        found = await self.tools[name].ainvoke(call, thread(thread_id, user_id="ann"))
        assert isinstance(found, ToolMessage)
        return found

    async def call(self, name: str, thread_id: str = "t", **arguments: Any) -> Any:
        message = await self.message(name, thread_id, **arguments)
        assert message.status == "success", message.content
        assert json.loads(str(message.content)) == message.artifact
        return message.artifact

    async def refusal(self, name: str, thread_id: str = "t", **arguments: Any) -> str:
        before = await self.store.query()
        message = await self.message(name, thread_id, **arguments)
        assert message.status == "error", message.content
        assert await self.store.query() == before
        assert "Nothing was changed" in str(message.content)
        return str(message.content)


@pytest.fixture(params=[sync_store, async_store])
def box(request: pytest.FixtureRequest) -> Toolbox:
    return Toolbox(request.param())


async def test_a_memory_is_kept_with_them(box: Toolbox) -> None:
    saved = await box.call("save_preference", topic="Tea", opinion="likes green tea")
    fact_id = saved["saved"]
    fact = await box.store.get(fact_id)
    assert fact["payload"] == {"topic": "tea", "opinion": "likes green tea", "strength": 3}
    assert (fact["session_id"], fact["source"]) == ("t", "agent")
    again = await box.call("save_preference", topic="tea", opinion="likes black tea")
    assert again["saved"] == fact_id
    updated = await box.call("update_preference", fact_id=fact_id, strength=5)
    assert updated["payload"] == {"topic": "tea", "opinion": "likes black tea", "strength": 5}
    await box.call("save_allergy", substance="nuts", reaction="severe")

    found = await box.call("search_memory", query="tea", limit=1)
    assert (found[0]["fact_id"], found[0]["payload"]["opinion"]) == (fact_id, "likes black tea")
    found = await box.call("search_memory", query="tea", type="allergy")
    assert [one["payload"]["substance"] for one in found] == ["nuts"]

    history = await box.call("memory_history", fact_id=fact_id)
    assert [one["operation"] for one in history] == ["UPDATE", "COMMIT", "COMMIT"]
    assert history[0]["changes"][0]["before"]["strength"] == 3
    assert {one["by"] for one in history} == {"ann"}
    assert len(await box.call("memory_history")) == 4

    undone = await box.call("undo_memory", steps=3)
    assert len(undone["undone"]) == 3
    assert (await box.store.get(fact_id))["payload"]["opinion"] == "likes green tea"
    await box.call("forget_memory", fact_id=fact_id)
    assert await box.store.query() == []
    assert await box.call("search_memory", query="tea") == []
    assert not (await box.store.verify())[0]


async def test_what_is_wrong_is_told_to_the_model(box: Toolbox) -> None:
    assert "opinion" in await box.refusal("save_preference", topic="tea")
    assert "one word only" in await box.refusal("save_preference", topic="green tea", opinion="likes it")
    assert "reaction" in await box.refusal("save_allergy", substance="nuts", reaction="fatal")
    saved = await box.call("save_allergy", substance="nuts", reaction="mild")
    assert "immutable" in await box.refusal("save_allergy", substance="nuts", reaction="severe")
    for name, arguments in (("update_allergy", {"reaction": "severe"}), ("forget_memory", {})):
        assert "immutable" in await box.refusal(name, fact_id=saved["saved"], **arguments)
    fact_id = (await box.call("save_preference", topic="tea", opinion="likes it"))["saved"]
    assert "strength" in await box.refusal("update_preference", fact_id=fact_id, strength=9)
    assert "no field" in await box.refusal("update_preference", fact_id=fact_id)
    assert "fact_id" in await box.refusal("update_preference", strength=2)
    assert "no allergy" in await box.refusal("update_allergy", fact_id=fact_id, reaction="mild")
    assert "nobody" in await box.refusal("forget_memory", fact_id="nobody")
    assert "query" in await box.refusal("search_memory")
    assert "limit" in await box.refusal("search_memory", query="tea", limit=1000)
    assert "type" in await box.refusal("search_memory", query="tea", type="secret")
    assert "steps" in await box.refusal("undo_memory", steps=0)


async def test_a_model_reaches_no_other_session(box: Toolbox) -> None:
    theirs = (await box.call("save_preference", "theirs", topic="tea", opinion="likes it"))["saved"]
    shared = await box.store.commit(Fact("preference", {"topic": "tea", "opinion": "is good for all"}))
    # What it says of sessions and users is at most a field that the model of the type does not have.
    mine = (await box.call("save_preference", topic="tea", opinion="hates it", session_id="theirs", user_id="x"))[
        "saved"
    ]
    assert (await box.store.get(mine))["session_id"] == "t"
    assert {one["fact_id"] for one in await box.call("search_memory", query="tea")} == {mine, shared}
    assert theirs in await box.refusal("update_preference", fact_id=theirs, opinion="hates it")
    assert theirs in await box.refusal("forget_memory", fact_id=theirs)
    assert await box.call("memory_history", fact_id=theirs) == []
    assert "long-term" in await box.refusal("forget_memory", fact_id=shared)
    assert "long-term" in await box.refusal("update_preference", fact_id=shared, opinion="is bad")
    await box.call("undo_memory", steps=20)
    assert {one["id"] for one in await box.store.query()} == {theirs, shared}


async def test_names_of_fields_and_types_do_not_matter(box: Toolbox) -> None:
    saved = await box.call("save_app_setting", config="dark", run_manager="r", payload={"config": 1})
    await box.call("update_app_setting", fact_id=saved["saved"], payload={"a": 2})
    fact = await box.store.get(saved["saved"])
    assert (fact["type"], fact["payload"]) == (
        "app setting",
        {"config": "dark", "run_manager": "r", "payload": {"a": 2}},
    )


def test_a_model_sees_the_fields_of_the_type() -> None:
    box = Toolbox(sync_store())
    assert box.tools["save_preference"].args_schema is Preference
    function = convert_to_openai_tool(box.tools["save_preference"])["function"]
    assert function["description"].startswith("Save a preference to memory. What somebody likes or dislikes.")
    assert "only one for each topic" in function["description"]
    assert function["parameters"]["properties"]["topic"]["description"] == "What it is about, in one word."
    assert function["parameters"]["required"] == ["topic", "opinion"]
    function = convert_to_openai_tool(box.tools["update_preference"])["function"]
    assert function["parameters"]["required"] == ["fact_id"]
    assert "default" not in function["parameters"]["properties"]["strength"]
    assert "cannot be changed" in box.tools["save_allergy"].description
    enum = convert_to_openai_tool(box.tools["search_memory"])["function"]["parameters"]["properties"]["type"]
    assert "app setting" in json.dumps(enum)


def test_which_tools_there_are() -> None:
    store = sync_store()
    names = [tool.name for tool in memory_tools(store, ["allergy"])]
    assert names == ["save_allergy", "update_allergy", "search_memory", "memory_history"]
    unindexed = register(MemoryStore(InMemoryStorage()))
    assert [tool.name for tool in memory_tools(unindexed, ["allergy"], destructive=True)] == [
        *("save_allergy", "update_allergy", "memory_history", "forget_memory", "undo_memory")
    ]
    with pytest.raises(ValueError, match=r"no type called 'nothing'; types takes names, such as .*'allergy'"):
        memory_tools(store, ["nothing"])
    with pytest.raises(ValueError, match="register_schema"):
        memory_tools(MemoryStore(InMemoryStorage()))
    with pytest.raises(TypeError, match="MemoryStore"):
        memory_tools(5)  # type: ignore[arg-type]
    store.register_schema("app/setting", Preference)
    with pytest.raises(ValueError, match="save_app_setting"):
        memory_tools(store)


def test_types_that_were_left_out_are_out_of_reach() -> None:
    store = sync_store()
    store.commit(Fact("preference", {"topic": "tea", "opinion": "likes it"}, session_id="t", id="1"))
    tools = {tool.name: tool for tool in memory_tools(store, ["allergy"], destructive=True)}
    assert json.loads(tools["search_memory"].invoke({"query": "tea"}, thread("t"))) == []
    assert "tea" not in tools["memory_history"].invoke({}, thread("t"))
    assert "there is no" in tools["forget_memory"].invoke({"fact_id": "1"}, thread("t"))


def test_the_session_comes_from_the_config() -> None:
    store = sync_store()
    (save,) = (tool for tool in memory_tools(store) if tool.name == "save_preference")
    with pytest.raises(ValueError, match="thread_id"):
        save.invoke({"topic": "tea", "opinion": "likes it"})
    assert store.count() == 0
    (save,) = (tool for tool in memory_tools(store, session=None) if tool.name == "save_preference")
    save.invoke({"topic": "tea", "opinion": "likes it"})
    by_user: Any = lambda config: f"user {config['configurable']['user_id']}"  # noqa: E731
    (save,) = (tool for tool in memory_tools(store, session=by_user) if tool.name == "save_preference")
    save.invoke({"topic": "tea", "opinion": "likes it"}, thread("t", user_id="ann"))
    assert [one["session_id"] for one in store.query()] == [None, "user ann"]


def test_the_namespace_comes_from_the_config() -> None:
    storage = InMemoryStorage()
    stores = {name: sync_store(storage, namespace=name) for name in ("one", "two")}
    registry = stores["one"].engine.registry
    tools = memory_tools(lambda config: stores[config["configurable"]["tenant"]], registry=registry)
    tools[0].invoke({"topic": "tea", "opinion": "likes it"}, thread("t", tenant="two"))
    assert (stores["one"].count(), stores["two"].count()) == (0, 1)
    with pytest.raises(ValueError, match="registry"):
        memory_tools(lambda config: stores["one"])


async def test_a_sync_call_of_an_async_store_says_so() -> None:
    tool = memory_tools(async_store())[0]
    with pytest.raises(TypeError, match="AsyncMemoryStore"):
        tool.invoke({"topic": "tea", "opinion": "likes it"}, thread("t"))


def test_what_the_model_cannot_help_is_raised_and_leaves_nothing() -> None:
    def broken(operation: Any, fact_id: str, fact: Any) -> None:
        if fact is not None:
            raise OSError("the index is down")

    store = register(MemoryStore(InMemoryStorage(), [broken]))
    with pytest.raises(HookError, match="the index is down"):
        memory_tools(store)[0].invoke({"topic": "tea", "opinion": "likes it"}, thread("t"))
    assert (store.query(), store.history()) == ([], [])


def test_a_tool_node_calls_them() -> None:
    store = sync_store()
    node = ToolNode(memory_tools(store))
    builder = StateGraph(MessagesState)
    builder.add_node("tools", node)
    builder.add_edge(START, "tools")
    builder.add_edge("tools", END)
    graph = builder.compile()
    calls = [
        {"name": "save_preference", "args": {"topic": "tea", "opinion": "likes it"}, "id": "1", "type": "tool_call"},
        {"name": "save_preference", "args": {"topic": "tea"}, "id": "2", "type": "tool_call"},
    ]
    messages = graph.invoke({"messages": [AIMessage("", tool_calls=calls)]}, thread("t"))["messages"]
    assert [message.status for message in messages[1:]] == ["success", "error"]
    assert [one["session_id"] for one in store.query()] == ["t"]


_EXAMPLES: dict[str, dict[str, Any]] = {
    "save_preference": {"topic": "tea", "opinion": "likes it"},
    "update_preference": {"fact_id": "1", "strength": 4},
    "search_memory": {"query": "tea"},
    "memory_history": {},
    "forget_memory": {"fact_id": "1"},
    "undo_memory": {"steps": 1},
}


@pytest.fixture(params=_EXAMPLES)
def tool_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class _Standard:
    @pytest.fixture(autouse=True)
    def _named(self, tool_name: str) -> None:
        store = sync_store()
        store.commit(Fact("preference", {"topic": "tea", "opinion": "likes it"}, id="1"))
        tools = memory_tools(store, ["preference"], session=None, destructive=True)
        self.made = {tool.name: tool for tool in tools}[tool_name]

    @property
    def tool_constructor(self) -> BaseTool:
        return self.made

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return _EXAMPLES[self.made.name]


class TestUnit(_Standard, ToolsUnitTests):  # type: ignore[misc]
    pass


class TestIntegration(_Standard, ToolsIntegrationTests):  # type: ignore[misc]
    pass
