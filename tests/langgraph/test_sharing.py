"""Storage grows with what is new, and what goes leaves nothing behind."""

from __future__ import annotations

import inspect
from copy import deepcopy
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, RemoveMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from memstate import InMemoryStorage, MemoryStore
from memstate_langgraph import MemStateCheckpointer
from memstate_langgraph._cache import Cache
from memstate_langgraph._codec import Codec
from memstate_langgraph._fingerprint import fingerprint_of
from memstate_langgraph._lists import ListVersion, next_version, pieces_of, version_of
from tests.langgraph.conftest import Makes


class State(TypedDict):
    messages: Annotated[list[Any], add_messages]


USAGE: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}


def chat(checkpointer: Any, answer: Any = None) -> Any:
    graph: Any = StateGraph(State)
    graph.add_node("answer", answer or (lambda state: {"messages": [AIMessage(f"answer {len(state['messages'])}")]}))
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile(checkpointer=checkpointer)


async def call(checkpointer: Any, target: Any, name: str, *arguments: Any, **options: Any) -> Any:
    is_async = checkpointer.memory.engine.runtime.is_async
    result = getattr(target, f"a{name}" if is_async else name)(*arguments, **options)
    if hasattr(result, "__aiter__"):
        return [one async for one in result]
    if inspect.isawaitable(result):
        return await result
    return list(result) if inspect.isgenerator(result) else result


async def records(checkpointer: Any, kind: str, thread_id: str) -> list[Any]:
    found = checkpointer.memory.scan_records(f"langgraph.{kind}:{thread_id}")
    return await found if inspect.isawaitable(found) else found


async def ran(checkpointer: Any) -> list[str]:
    """The threads that are noted for runs, once for each run."""
    found = checkpointer.memory.scan_records("langgraph.ran")
    return sorted(record.value.decode() for record in (await found if inspect.isawaitable(found) else found))


def thread(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


def texts(values: Any) -> list[str]:
    return [message.content for message in values["messages"]]


class TestSharing:
    async def test_a_message_is_stored_once(self, makes: Makes) -> None:
        checkpointer = makes.checkpointer()
        graph = chat(checkpointer)
        config = thread("t")
        for turn in range(12):
            await call(checkpointer, graph, "invoke", {"messages": [HumanMessage(f"question-{turn:03}")]}, config)
        stored = [record.value for record in await records(checkpointer, "channels", "t")]
        for turn in range(4, 12):
            assert sum(b"question-%03d" % turn in value for value in stored) <= 2  # in the input, and in the list
        history = await call(checkpointer, graph, "get_state_history", config)
        assert len(history[0].values["messages"]) == 24
        for one in history:
            length = len(one.values.get("messages", []))
            assert texts({"messages": one.values.get("messages", [])}) == texts(history[0].values)[:length]

    async def test_a_process_that_knows_nothing_shares_too(self, makes: Makes) -> None:
        store = makes.store()
        config = thread("t")
        for turn in range(8):
            checkpointer = makes.checkpointer(store)  # a new one each time: nothing is remembered
            await call(
                checkpointer, chat(checkpointer), "invoke", {"messages": [HumanMessage(f"question-{turn:03}")]}, config
            )
        stored = [record.value for record in await records(checkpointer, "channels", "t")]
        assert sum(b"question-007" in value for value in stored) <= 2
        assert sum(len(value) for value in stored) < 12_000
        state = await call(checkpointer, chat(checkpointer), "get_state", config)
        assert texts(state.values)[-2:] == ["question-007", "answer 15"]

    async def test_what_was_loaded_is_not_encoded_again(
        self, makes_here: Makes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = makes_here.store()
        config = thread("t")
        encoded: list[int] = []
        items = Codec.items
        monkeypatch.setattr(Codec, "items", lambda self, values: (encoded.append(len(values)), items(self, values))[1])
        for turn in range(8):
            checkpointer = makes_here.checkpointer(store)  # a new one each time: nothing is remembered
            graph = chat(checkpointer)
            await call(checkpointer, graph, "invoke", {"messages": [HumanMessage(f"q{turn}")]}, config)
        assert max(encoded) <= 4  # a list of so many is the first that is stored item by item
        state = await call(checkpointer, graph, "get_state", config)
        assert texts(state.values)[-2:] == ["q7", "answer 15"]

    @pytest.mark.parametrize("is_remembered", [True, False])
    async def test_a_message_that_was_changed_in_place_is_stored_as_it_is(
        self, makes_here: Makes, is_remembered: bool
    ) -> None:
        checkpointer = makes_here.checkpointer()

        def answer(state: Any) -> Any:
            if len(state["messages"]) > 6:
                state["messages"][1].content = f"changed {len(state['messages'])}"
                state["messages"][2].additional_kwargs["note"] = [len(state["messages"])]
            return {"messages": [AIMessage("answer")]}

        config = thread("t")
        for turn in range(6):
            if not is_remembered:
                checkpointer = makes_here.checkpointer(checkpointer.memory)
            graph = chat(checkpointer, answer)
            await call(checkpointer, graph, "invoke", {"messages": [HumanMessage(f"q{turn}")]}, config)
        state = await call(checkpointer, graph, "get_state", config)
        assert state.values["messages"][1].content == "changed 11"
        assert state.values["messages"][2].additional_kwargs == {"note": [11]}
        history = await call(checkpointer, graph, "get_state_history", config)
        assert history[6].values["messages"][1].content == "changed 7"

    async def test_branches_share_what_came_before(self, makes_here: Makes) -> None:
        checkpointer = makes_here.checkpointer()
        graph = chat(checkpointer)
        config = thread("t")
        for turn in range(8):
            text = f"question-{turn:03}" + "." * 500
            await call(checkpointer, graph, "invoke", {"messages": [HumanMessage(text)]}, config)
        before = sum(len(record.value) for record in await records(checkpointer, "channels", "t"))
        history = await call(checkpointer, graph, "get_state_history", config)
        for _ in range(5):
            await call(checkpointer, graph, "invoke", {"messages": [HumanMessage("branch")]}, history[0].config)
        after = sum(len(record.value) for record in await records(checkpointer, "channels", "t"))
        assert after - before < 6_000

    @pytest.mark.parametrize("kept", [7])
    async def test_a_window_is_written_anew_now_and_then(self, kept: int) -> None:
        """A list that loses at one end what it gains at the other does not grow, nor does what reading it costs."""
        checkpointer = MemStateCheckpointer(MemoryStore(InMemoryStorage()))

        def answer(state: Any) -> Any:
            gone = [RemoveMessage(one.id) for one in state["messages"][:-kept]]
            return {"messages": [AIMessage("answer" * 50), *gone]}

        graph = chat(checkpointer, answer)
        config = thread("t")
        for turn in range(50):
            graph.invoke({"messages": [HumanMessage(f"q{turn}" * 50)]}, config)
        cached = checkpointer._saver._cache._lists._values.values()
        assert max(one.depth for one in cached) < 6 * kept + 10
        assert len(graph.get_state(config).values["messages"]) == kept + 1


class TestLists:
    """How a list is put together from another."""

    def test_of_what_is_remembered_versions_with_a_successor_go_first(self) -> None:
        cache = Cache()

        def keep(thread_id: str, key: str, base: str | None = None) -> None:
            cache.keep_list(b"", thread_id, ListVersion(key, (), 0, key, 1, 0), base)

        keep("quiet", "1")
        for number in range(500):
            keep("busy", f"{number}", f"{number - 1}" if number else None)
        assert cache.list_version(b"", "quiet", "1") is not None
        assert cache.list_version(b"", "busy", "499") is not None
        for number in range(500):
            keep(f"other {number}", "1")
        assert cache.list_version(b"", "quiet", "1") is None
        assert cache.list_version(b"", "busy", "499") is None

    def test_pieces_make_the_list_again(self) -> None:
        base = [b"a", b"b", b"c", b"d"]
        for items in (
            base,
            [],
            [b"x"],
            [b"a", b"b", b"x", b"d"],
            [b"c", b"d", b"x"],
            [b"d", b"c", b"b", b"a"],
            [b"a", b"a", b"b", b"x", b"x", b"c"],
            [b"a", b"b", b"c", b"d", b"e", b"f"],
        ):
            known = ListVersion("1", tuple(base), 4, "1", 1, 4)
            version, record = next_version("2", tuple(items), known, None)
            again = version_of("2", record, known if record.base is not None else None)
            assert again == version
            assert (version.items, version.size) == (tuple(items), len(items))
        assert pieces_of([*base, b"e"], base) == [(0, 4), b"e"]
        assert pieces_of([b"a", b"x", b"c", b"d"], base) == [(0, 1), b"x", (2, 2)]

    @pytest.mark.parametrize(
        "change",
        [
            lambda one: setattr(one, "content", "other"),
            lambda one: setattr(one, "name", "n"),
            lambda one: setattr(one, "content", ["text"]),
            lambda one: setattr(one, "extra", "x"),
            lambda one: one.additional_kwargs.update(x="y"),
            lambda one: one.response_metadata.update(x=1),
            lambda one: one.tool_calls.append({"name": "n", "args": {}, "id": "1", "type": "tool_call"}),
            lambda one: setattr(one, "__class__", AIMessageChunk),
            lambda one: one.__init__("other"),
        ],
    )
    @pytest.mark.parametrize("place", [0, 1])
    def test_a_message_that_is_changed_in_place_is_seen(self, place: int, change: Any) -> None:
        values = [AIMessage("a", id="1"), AIMessage("b", id="2", usage_metadata=USAGE), AIMessage("c", id="3")]
        seen = fingerprint_of(values)
        assert seen is not None
        assert seen.fits(values)
        assert seen.fits([*values, HumanMessage("more")])
        assert seen.fits(deepcopy(values))
        assert not seen.fits(values[:2])
        change(values[place])
        assert not seen.fits(values)
        assert seen.unchanged(values) == [place != 0, False, True]

    def test_containers_that_were_empty_may_be_others_and_be_filled_later(self) -> None:
        shared: dict[str, Any] = {}
        values = [AIMessage(str(number), additional_kwargs=shared) for number in range(3)]
        before = values[0].additional_kwargs = values[1].additional_kwargs = {}
        seen = fingerprint_of(values)
        assert seen is not None
        before["x"] = "y"
        assert not seen.fits(values)
        assert seen.unchanged(values) == [False, False, True]
        assert not seen.fits(deepcopy(values))
        values[0].additional_kwargs = values[1].additional_kwargs = now = {}
        assert seen.unchanged(values) == [True, True, True]
        before.clear()
        assert seen.fits(values)
        now["x"] = "y"
        assert not seen.fits(values)
        assert seen.unchanged(values) == [False, False, True]
        now.clear()
        values[0].additional_kwargs = []  # type: ignore[assignment]
        assert not seen.fits(values)

    def test_what_is_equal_and_stored_otherwise_is_no_match(self) -> None:
        def of(*values: Any) -> Any:
            return [AIMessage("", additional_kwargs={"x": one}) for one in values]

        for one, other in ((1, True), (1, 1.0), (0.0, -0.0), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ([1], [True])):
            for values, others in ((of(one), of(other)), ([one], [other]), (of("x", one), of("x", other))):
                seen = fingerprint_of(values)
                assert seen is not None
                assert seen.fits(values)
                assert not seen.fits(others)
        seen = fingerprint_of([AIMessage("", extra=1)])
        assert seen is not None
        assert not seen.fits([AIMessage("", extra=True)])

    def test_a_fingerprint_goes_on(self) -> None:
        values: list[Any] = ["x", AIMessage("a", usage_metadata=USAGE), {"a": 1}, HumanMessage("b"), None, 2]
        values += [AIMessage(str(number), usage_metadata=USAGE) for number in range(20)]
        whole = fingerprint_of(values)
        for count in (1, 3, 5, 12):
            first, second = fingerprint_of(values[:count]), fingerprint_of(values[count:])
            assert first is not None
            assert second is not None
            assert first.joined(second) == whole
            assert first.fits(values)
            assert first.joined(second).fits(deepcopy(values))

    def test_of_some_values_there_is_no_fingerprint(self) -> None:
        assert fingerprint_of([{1, 2}]) is None
        assert fingerprint_of([(1, 2)]) is None
        assert fingerprint_of([HumanMessage("a", extra={1, 2})]) is None
        seen = fingerprint_of([HumanMessage("a")])
        assert seen is not None
        assert not seen.fits([HumanMessage("a", extra={1})])


class Counted(TypedDict):
    items: Annotated[list[str], DeltaChannel(lambda state, writes: [*state, *(one for w in writes for one in w)])]


class TestRemoving:
    async def fill(self, checkpointer: Any, thread_id: str, turns: int = 5) -> Any:
        graph = chat(checkpointer)
        for turn in range(turns):
            await call(checkpointer, graph, "invoke", {"messages": [HumanMessage(f"q{turn}")]}, thread(thread_id))
        return graph

    async def everything(self, checkpointer: Any, thread_id: str) -> list[Any]:
        kinds = ("checkpoints", "channels", "writes", "positions", "lines", "finished", "ran")
        return [record for kind in kinds for record in await records(checkpointer, kind, thread_id)]

    async def test_a_deleted_thread_leaves_nothing(self, makes: Makes) -> None:
        checkpointer = makes.checkpointer()
        await self.fill(checkpointer, "t")
        graph = await self.fill(checkpointer, "u")
        await call(checkpointer, checkpointer, "delete_thread", "t")
        assert await self.everything(checkpointer, "t") == []
        assert texts((await call(checkpointer, graph, "get_state", thread("u"))).values)[0] == "q0"
        assert not (await call(checkpointer, graph, "get_state", thread("t"))).values
        await self.fill(checkpointer, "t", 2)
        assert texts((await call(checkpointer, graph, "get_state", thread("t"))).values)[::2] == ["q0", "q1"]

    async def test_what_stays_is_whole(self, makes: Makes) -> None:
        checkpointer = makes.checkpointer()
        graph = await self.fill(checkpointer, "t")
        before = (await call(checkpointer, graph, "get_state", thread("t"))).values
        await call(checkpointer, checkpointer, "prune", ["t"], strategy="keep_latest")
        history = await call(checkpointer, graph, "get_state_history", thread("t"))
        assert [one.values for one in history] == [before]
        assert len(await records(checkpointer, "checkpoints", "t")) == 1
        used = len(await records(checkpointer, "channels", "t"))
        await call(checkpointer, graph, "invoke", {"messages": [HumanMessage("more")]}, thread("t"))
        assert texts((await call(checkpointer, graph, "get_state", thread("t"))).values)[-2] == "more"
        await call(checkpointer, checkpointer, "prune", ["t"], strategy="keep_latest")
        assert len(await records(checkpointer, "channels", "t")) <= used + 2

    async def run(self, checkpointer: Any, thread_id: str, *turns: int) -> Any:
        """Turns that are runs with an id."""
        graph = chat(checkpointer)
        for turn in turns:
            config = {**thread(thread_id), "metadata": {"run_id": f"run-{turn}"}}
            await call(checkpointer, graph, "invoke", {"messages": [HumanMessage(f"q{turn}")]}, config)
        return graph

    async def test_a_run_that_is_deleted_takes_nothing_along(self, makes: Makes) -> None:
        checkpointer = makes.checkpointer()
        graph = await self.run(checkpointer, "t", 0, 1, 2, 3)
        before = (await call(checkpointer, graph, "get_state", thread("t"))).values
        await call(checkpointer, checkpointer, "delete_for_runs", ["run-1", "run-2"])
        history = await call(checkpointer, graph, "get_state_history", thread("t"))
        assert history[0].values == before
        assert {one.metadata["run_id"] for one in history} == {"run-0", "run-3"}
        assert await ran(checkpointer) == ["t", "t"]

    async def test_a_run_is_deleted_wherever_it_was(self, makes_here: Makes) -> None:
        checkpointer = makes_here.checkpointer()
        graph = await self.run(checkpointer, "t", 0, 1)
        await self.run(checkpointer, "u", 1, 2)
        await call(checkpointer, checkpointer, "copy_thread", "t", "copy")
        assert await ran(checkpointer) == ["copy", "copy", "t", "t", "u", "u"]
        await call(checkpointer, checkpointer, "delete_for_runs", ["run-1", "unknown"])
        for thread_id, left in (("t", {"run-0"}), ("copy", {"run-0"}), ("u", {"run-2"})):
            history = await call(checkpointer, graph, "get_state_history", thread(thread_id))
            assert {one.metadata["run_id"] for one in history} == left
        # A run that goes on where it was deleted is noted again, also by who noted it before.
        await self.run(checkpointer, "t", 1)
        assert await ran(checkpointer) == ["copy", "t", "t", "u"]
        await call(checkpointer, makes_here.checkpointer(checkpointer.memory), "delete_for_runs", ["run-0", "run-1"])
        assert await ran(checkpointer) == ["u"]
        await call(checkpointer, checkpointer, "delete_thread", "u")
        assert await ran(checkpointer) == []

    @pytest.mark.parametrize("how", ["prune", "delete_for_runs"])
    async def test_delta_channels_stay_whole(self, makes: Makes, how: str) -> None:
        checkpointer = makes.checkpointer()
        builder: Any = StateGraph(Counted)
        builder.add_node("n", lambda state: {"items": [f"n{len(state['items'])}"]})
        builder.add_edge(START, "n")
        builder.add_edge("n", END)
        graph = builder.compile(checkpointer=checkpointer)
        for turn in range(4):
            config = {**thread("t"), "metadata": {"run_id": f"run-{turn}"}}
            await call(checkpointer, graph, "invoke", {"items": [f"in{turn}"]}, config)
        before = (await call(checkpointer, graph, "get_state", thread("t"))).values["items"]
        assert len(before) == 8
        if how == "prune":
            await call(checkpointer, checkpointer, "prune", ["t"])
        else:
            await call(checkpointer, checkpointer, "delete_for_runs", ["run-0", "run-1", "run-2"])
        again = makes.checkpointer(checkpointer.memory)
        graph = builder.compile(checkpointer=again)
        assert (await call(again, graph, "get_state", thread("t"))).values["items"] == before
        history = await call(again, graph, "get_state_history", thread("t"))
        assert {one.metadata.get("run_id") for one in history} == {"run-3"}
        await call(again, graph, "invoke", {"items": ["more"]}, thread("t"))
        assert (await call(again, graph, "get_state", thread("t"))).values["items"][:9] == [*before, "more"]

    async def test_a_put_does_not_build_on_what_another_process_has_removed(self, makes: Makes) -> None:
        store = makes.store()
        one, other = makes.checkpointer(store), makes.checkpointer(store)
        graph = await self.fill(one, "t")
        await call(other, other, "prune", ["t"])
        await call(one, graph, "invoke", {"messages": [HumanMessage("more")]}, thread("t"))
        fresh = makes.checkpointer(store)
        assert len((await call(fresh, chat(fresh), "get_state", thread("t"))).values["messages"]) == 12
        await call(other, other, "delete_thread", "t")
        await call(one, graph, "invoke", {"messages": [HumanMessage("again")]}, thread("t"))
        assert texts((await call(fresh, chat(fresh), "get_state", thread("t"))).values)[0] == "again"

    async def test_a_list_that_another_process_has_made_anew_is_read(self, makes_here: Makes) -> None:
        store = makes_here.store()
        one, other = makes_here.checkpointer(store), makes_here.checkpointer(store)
        config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}

        async def put(saver: Any, values: list[str]) -> None:
            checkpoint = {**empty_checkpoint(), "id": "1", "channel_versions": {"items": "1"}}
            checkpoint["channel_values"] = {"items": values}
            await call(saver, saver, "put", config, checkpoint, {}, {"items": "1"})

        async def items(saver: Any) -> list[str]:
            found = await call(saver, saver, "get_tuple", config)
            return list(found.checkpoint["channel_values"]["items"])

        await put(one, list("abcd"))
        assert await items(one) == list("abcd")
        await call(other, other, "delete_thread", "t")
        await put(other, list("wxyz"))
        assert await items(one) == list("wxyz")

    async def test_a_copy_stands_for_itself(self, makes: Makes) -> None:
        checkpointer = makes.checkpointer()
        graph = await self.fill(checkpointer, "t")
        await call(checkpointer, checkpointer, "copy_thread", "t", "copy")
        await call(checkpointer, checkpointer, "delete_thread", "t")
        state = await call(checkpointer, graph, "get_state", thread("copy"))
        assert texts(state.values)[::2] == ["q0", "q1", "q2", "q3", "q4"]
        await call(checkpointer, graph, "invoke", {"messages": [HumanMessage("more")]}, thread("copy"))
        assert len((await call(checkpointer, graph, "get_state", thread("copy"))).values["messages"]) == 12
