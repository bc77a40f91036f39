"""What may be stored, and what can be read of it by others."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import re
import uuid
from typing import Any, NamedTuple, TypedDict

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Interrupt, Send, interrupt
from pydantic import BaseModel

from memstate import InMemoryStorage, MemoryStore, StorageError, ValidationFailed
from memstate_langgraph import MemStateCheckpointer
from memstate_langgraph._serde import StrictSerializer
from tests.langgraph.conftest import Makes
from tests.langgraph.test_sharing import call, records, thread

KEY = b"0123456789abcdef"


class Model(BaseModel):
    name: str


@dataclasses.dataclass
class Plain:
    name: str


class Colour(enum.Enum):
    RED = "red"


class Pair(NamedTuple):
    one: int


class State(TypedDict):
    value: Any


def graph_with(checkpointer: Any, value: Any) -> Any:
    graph: Any = StateGraph(State)
    graph.add_node("n", lambda state: {"value": value})
    graph.add_edge(START, "n")
    graph.add_edge("n", END)
    return graph.compile(checkpointer=checkpointer)


KNOWN = [
    None,
    "text",
    2**60,
    1.5,
    b"bytes",
    [1, [2, {"a": None}]],
    {1: 2, "x": {3}},
    {1, 2},
    dt.datetime(2030, 1, 1, tzinfo=dt.UTC),
    dt.date(2030, 1, 1),
    decimal.Decimal("1.50"),
    uuid.UUID(int=5),
    re.compile("a+"),
    HumanMessage("hello", id="1"),
    [AIMessage("a", tool_calls=[{"name": "t", "args": {"x": 1}, "id": "1"}]), ToolMessage("r", tool_call_id="1")],
    Document("text", metadata={"k": [1]}),
    Send("n", {"a": HumanMessage("x")}),
    [Interrupt("v", id="i")] * 5,
    ["long list"] * 10,
    "x" * 1000,
]
OTHERS = [Model(name="m"), Plain("p"), Colour.RED, Pair(1)]


@pytest.mark.parametrize("value", KNOWN, ids=lambda one: type(one).__name__)
def test_known_values_come_back(value: Any) -> None:
    serde = StrictSerializer()
    assert serde.loads_typed(serde.dumps_typed(value)) == value
    assert serde.loads_typed(serde.dumps_typed(value)) == JsonPlusSerializer().loads_typed(
        JsonPlusSerializer().dumps_typed(value)
    )


@pytest.mark.parametrize("value", KNOWN, ids=lambda one: type(one).__name__)
def test_what_is_written_is_what_langgraph_writes(value: Any) -> None:
    serde = StrictSerializer()
    # The second time the types in it are known.
    assert [serde.dumps_typed(value) for _ in range(2)] == [JsonPlusSerializer().dumps_typed(value)] * 2


def test_a_message_is_looked_into_also_when_its_type_is_known() -> None:
    serde = StrictSerializer()
    serde.dumps_typed(HumanMessage("x"))
    with pytest.raises(ValidationFailed, match="Colour"):
        serde.dumps_typed([HumanMessage("x", additional_kwargs={"deep": Colour.RED})])


@pytest.mark.parametrize("value", OTHERS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: [{"deep": [one]}], lambda one: Send("n", one)])
def test_others_are_refused_when_they_are_written(value: Any, wrap: Any) -> None:
    kind = type(value)
    with pytest.raises(ValidationFailed, match=rf"{kind.__name__}.*allow=\[{kind.__name__}\]"):
        StrictSerializer().dumps_typed(wrap(value))
    serde = StrictSerializer([kind])
    assert serde.loads_typed(serde.dumps_typed(wrap(value))) == wrap(value)


@pytest.mark.parametrize("value", OTHERS, ids=lambda one: type(one).__name__)
def test_others_are_refused_when_they_are_read(value: Any) -> None:
    """Whoever wrote them."""
    written = JsonPlusSerializer(allowed_msgpack_modules=True).dumps_typed([value])
    with pytest.raises(ValidationFailed, match=type(value).__name__):
        StrictSerializer().loads_typed(written)


def test_nothing_is_run_that_only_looks_like_a_type() -> None:
    import ormsgpack

    for code, module, name, argument in (
        (0, "os", "system", "touch /tmp/pwned"),
        (1, "subprocess", "run", (["true"],)),
        (0, "langchain_core.messages.base", "get_msg_title_repr", "x"),
        (0, "langchain_core.messages.utils", "convert_to_messages", []),
        (3, "builtins", "set", "x"),
    ):
        content = (module, name, argument, "fromisoformat")[: 4 if code == 3 else 3]
        data = ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(content)))
        with pytest.raises(ValidationFailed):
            StrictSerializer().loads_typed(("msgpack", data))
    with pytest.raises((ValidationFailed, NotImplementedError)):
        StrictSerializer().loads_typed(("pickle", b"x"))
    with pytest.raises(ValidationFailed, match="JSON"):
        StrictSerializer().loads_typed(("json", b"{}"))


def test_what_cannot_be_stored_says_so() -> None:
    with pytest.raises(ValidationFailed, match="object"):
        StrictSerializer().dumps_typed({"x": object()})


def test_pickle_is_refused() -> None:
    memory = MemoryStore(InMemoryStorage())
    with pytest.raises(ValidationFailed, match="pickle"):
        MemStateCheckpointer(memory, serde=JsonPlusSerializer(pickle_fallback=True))
    with pytest.raises(ValidationFailed, match="pickle"):
        MemStateCheckpointer(
            memory,
            serde=EncryptedSerializer.from_pycryptodome_aes(JsonPlusSerializer(pickle_fallback=True), key=KEY),
        )


async def test_a_graph_is_told_of_the_type(makes_here: Makes) -> None:
    checkpointer = makes_here.checkpointer()
    with pytest.raises(ValidationFailed, match=r"allow=\[Model\]"):
        await call(checkpointer, graph_with(checkpointer, Model(name="m")), "invoke", {"value": 1}, thread("t"))
    allowing = makes_here.checkpointer(checkpointer.memory, allow=[Model, (Plain.__module__, "Plain")])
    graph = graph_with(allowing, [Model(name="m"), Plain("p")])
    await call(allowing, graph, "invoke", {"value": 1}, thread("u"))
    state = await call(allowing, graph, "get_state", thread("u"))
    assert state.values["value"] == [Model(name="m"), Plain("p")]


class TestEncryption:
    def encrypted(self, makes: Makes, store: Any = None, key: bytes = KEY) -> Any:
        return makes.checkpointer(store, serde=EncryptedSerializer.from_pycryptodome_aes(key=key))

    async def test_nothing_of_the_state_can_be_read(self, makes: Makes) -> None:
        checkpointer = self.encrypted(makes)

        def node(state: Any) -> Any:
            interrupt("secret-interrupt")
            return {"value": ["secret-value"] * 9}

        graph: Any = StateGraph(State)
        graph.add_node("n", node)
        graph.add_edge(START, "n")
        graph = graph.compile(checkpointer=checkpointer)
        config = {**thread("t"), "metadata": {"note": "secret-metadata"}}
        await call(checkpointer, graph, "invoke", {"value": "secret-input"}, config)
        await call(checkpointer, graph, "invoke", Command(resume="secret-resume"), config)
        everything = [
            record
            for kind in ("checkpoints", "channels", "writes", "positions", "lines", "finished")
            for record in await records(checkpointer, kind, "t")
        ]
        assert len(everything) > 6
        for key, value in everything:
            assert b"secret" not in value
            assert "secret" not in key
            assert b"value" not in value  # a channel's name
            assert "value" not in key
        again = self.encrypted(makes, checkpointer.memory)
        state = await call(again, again, "get_tuple", thread("t"))
        assert state.checkpoint["channel_values"]["value"] == ["secret-value"] * 9
        assert state.metadata["note"] == "secret-metadata"

    async def test_a_record_is_bound_to_its_place(self, makes_here: Makes) -> None:
        checkpointer = self.encrypted(makes_here)
        graph = graph_with(checkpointer, ["x"] * 9)
        for name in ("t", "u"):
            await call(checkpointer, graph, "invoke", {"value": "v"}, thread(name))
        for kind in ("checkpoints", "channels", "writes"):
            mine, others = await records(checkpointer, kind, "t"), await records(checkpointer, kind, "u")
            for target, source in ((mine[-1], others[-1]), (mine[-1], mine[0])):
                put = checkpointer.memory.put_record(f"langgraph.{kind}:t", target.key, source.value)
                if put is not None:
                    await put
                with pytest.raises(StorageError, match="another place"):
                    await call(checkpointer, checkpointer, "list", thread("t"))
                put = checkpointer.memory.put_record(f"langgraph.{kind}:t", target.key, target.value)
                if put is not None:
                    await put
        assert await call(checkpointer, checkpointer, "list", thread("t"))

    async def test_plain_records_and_other_keys_are_refused(self, makes_here: Makes) -> None:
        plain = makes_here.checkpointer()
        await call(plain, graph_with(plain, "x"), "invoke", {"value": "v"}, thread("t"))
        encrypted = self.encrypted(makes_here, plain.memory)
        with pytest.raises(StorageError, match="not encrypted"):
            await call(encrypted, encrypted, "get_tuple", thread("t"))
        await call(encrypted, graph_with(encrypted, "x"), "invoke", {"value": "v"}, thread("u"))
        with pytest.raises(StorageError, match="is encrypted"):
            await call(plain, plain, "get_tuple", thread("u"))
        other = self.encrypted(makes_here, plain.memory, b"another key 0123")
        with pytest.raises(StorageError, match="another key"):
            await call(other, other, "get_tuple", thread("u"))

    async def test_types_are_known_ones_here_too(self, makes_here: Makes) -> None:
        checkpointer = self.encrypted(makes_here)
        with pytest.raises(ValidationFailed, match="Model"):
            await call(checkpointer, graph_with(checkpointer, Model(name="m")), "invoke", {"value": 1}, thread("t"))
