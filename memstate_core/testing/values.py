"""Values: kept exactly on every storage, or refused before anything is written, with the path of the field."""

from __future__ import annotations

import base64
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, ClassVar
from uuid import UUID

import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel, computed_field, field_validator

from memstate_core import Constraint, Fact, ValidationFailed
from memstate_core.testing.face import Face, case
from memstate_core.testing.factories import Stores, StoreTests
from memstate_core.testing.models import Note


def nested(levels: int) -> Any:
    """Lists and objects in each other."""
    value: Any = "bottom"
    for level in range(levels):
        value = [value] if level % 2 else {"down": value}
    return value


def _circle() -> Any:
    """A list in itself."""
    circle: list[Any] = []
    circle.append(circle)
    return circle


_KEPT: dict[str, Any] = {
    "nothing": None,
    "NUL": "a\0b\0",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85\u2028\ufeff\ufffe\uffff",
    "every plane": "é ß ﬀ 漢 \U0001f9e0 \U0010ffff e\u0301",
    "SQL": "'; DROP TABLE memstate_facts; -- %s ? :a $1 {x}",
    "JSON in text": '{"a": [1, "\\u0000"]}',
    "an empty text": "",
    "large integers": [2**53 + 1, 2**63, -(2**63) - 1, 2**64, 2**200, -(2**4000)],
    "floats": [0.1, 1e308, 5e-324, -0.5, 1 / 3, 1e16, 123456789.123456789],
    "booleans": [True, False],
    "empty things": [[], {}, [[]], {"": {}}],
    "odd keys": {"": 1, "a.b": 2, "$gt": 3, "payload": 4, "NUL \0": 5, "é": 6, '"': 7, "__proto__": 8},
    "order of keys": {"z": 1, "a": 2, "m": {"y": 1, "b": 2}},
    "100 levels": nested(100),
    "a long text": "x" * 100_000,
}
_REFUSED: dict[str, tuple[Any, str]] = {
    "NaN": (math.nan, "data"),
    "infinity": ([1, {"x": math.inf}], "data.1.x"),
    "minus infinity": ({"a": {"b": [-math.inf]}}, "data.a.b.0"),
    "a lone surrogate": ({"a": ["ok", "no \ud800"]}, "data.a.1"),
    "a lone surrogate in a key": ({"a": {"\udc00": 1}}, "data.a."),
    "an object": ([object()], "data"),
    "a very large integer": ([10**5000], "data.0"),
    "bytes that are no text": ([b"\xff"], "data.0"),
    "1000 levels": (nested(1000), "data"),
    "a circle": (_circle(), "data"),
    "NaN in a model in a payload": ([Note(rank=math.nan)], "data.0.rank"),
}


class TestValues(StoreTests):
    """Payloads through commit, get, query, history and rollback."""

    @pytest.mark.parametrize("typename", ["note", "anything"])
    async def test_kept_exactly(self, stores: Stores, typename: str) -> None:
        storage = stores.storages.new()
        for name, value in _KEPT.items():
            store = stores.open(storage=storage, namespace=name, allow_unregistered=True)
            with case(name):
                await self.kept_exactly(store, typename, value)

    async def kept_exactly(self, store: Face, typename: str, value: Any) -> None:
        await store.commit(Fact(typename, {"data": value, "rank": value}, id="n"))
        for fact in (await store.get("n"), (await store.query(typename, {"data": {"$exists": True}}))[0]):
            kept = fact["payload"]["data"]
            assert kept == value
            assert repr(kept) == repr(value)  # 1 is not 1.0 nor True, and keys keep their order
        assert await store.ids(typename, {"data": {"$eq": value}, "rank": {"$eq": value}}) == ["n"]
        await store.update("n", {"text": "x"})
        assert (await store.get("n"))["payload"]["data"] == value
        await store.delete("n")
        await store.rollback(None, 2)
        assert (await store.get("n"))["payload"]["data"] == value

    async def test_ten_megabytes_are_kept_exactly(self, store: Face) -> None:
        text, many = "é" * 5_000_000, list(range(50_000))
        await store.commit(Fact("memo", {"text": text, "data": many}, id="n"))
        await store.delete("n")
        await store.rollback(None)
        payload = (await store.get("n"))["payload"]
        assert payload["text"] == text
        assert payload["data"] == many

    @pytest.mark.parametrize("call", ["commit", "unregistered", "commit_model", "update", "block"])
    async def test_refused_with_the_path(self, stores: Stores, call: str) -> None:
        store = stores.open(allow_unregistered=True)
        await store.commit(Fact("note", {}, id="n"))
        before = await store.everything()

        async def block(value: Any) -> None:
            async with store.transaction() as tx:
                await tx.commit(Fact("note", {}, id="in the block"))
                await tx.commit(Fact("note", {"data": value}))

        calls: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "commit": lambda value: store.commit(Fact("note", {"data": value})),
            "unregistered": lambda value: store.commit(Fact("anything", {"data": value})),
            "commit_model": lambda value: store.commit_model(Note(data=value), typename="note"),
            "update": lambda value: store.update("n", {"data": value}),
            "block": block,
        }
        for name, (value, path) in _REFUSED.items():
            with case(name):
                with pytest.raises(ValidationFailed) as caught:
                    await calls[call](value)
                assert (caught.value.path or "").startswith(path)
                assert path in str(caught.value)
                assert caught.value.typename == ("anything" if call == "unregistered" else "note")
                assert await store.everything() == before

    async def test_what_is_stored_is_what_was_validated(self, stores: Stores) -> None:
        class Cleaned(BaseModel):
            model_config = ConfigDict(extra="ignore")
            name: str
            size: int = 7

            @field_validator("name")
            @classmethod
            def strip(cls, value: str) -> str:
                return value.strip()

        store = stores.open(models=False)
        store.store.register_schema("cleaned", Cleaned, Constraint(singleton_key="name"))
        id_ = await store.commit(Fact("cleaned", {"name": " a ", "size": "3", "more": 1}))
        assert (await store.get(id_))["payload"] == {"name": "a", "size": 3}
        assert await store.commit(Fact("cleaned", {"name": "a"})) == id_
        assert (await store.get(id_))["payload"] == {"name": "a", "size": 7}

    async def test_a_validator_that_raises_anything_is_a_validation_failure(self, stores: Stores) -> None:
        class Moody(BaseModel):
            kind: str

            @field_validator("kind")
            @classmethod
            def never(cls, value: str) -> str:
                if value == "key":
                    raise KeyError(value)
                if value == "stop":
                    raise StopIteration
                return value

        store = stores.open(models=False)
        store.store.register_schema("moody", Moody)
        for kind, cause in (("key", KeyError), ("stop", StopIteration)):
            with pytest.raises(ValidationFailed, match=cause.__name__) as caught:
                await store.commit(Fact("moody", {"kind": kind}))
            assert isinstance(caught.value.__cause__, cause)
        await store.commit(Fact("moody", {"kind": "good"}, id="m"))
        with pytest.raises(ValidationFailed):
            await store.update("m", {"kind": "key"})
        assert len(await store.history()) == 1


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Rich(BaseModel):
    """Everything that a model may hold and JSON cannot."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    moment: datetime
    day: date
    clock: time
    span: timedelta
    id: UUID
    amount: Decimal
    colour: Colour
    level: Level
    raw: bytes
    pair: tuple[int, str]
    unique: set[int]
    frozen: frozenset[str]
    by_number: dict[int, Decimal]
    maybe: datetime | None = None


RICH = Rich(
    moment=datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    day=date(1, 1, 1),
    clock=time(1, 2, 3, 4),
    span=timedelta(days=-1, microseconds=1),
    id=UUID(int=2**128 - 1),
    amount=Decimal("0.100000000000000000000000000001"),
    colour=Colour.RED,
    level=Level.HIGH,
    raw=bytes(range(256)),
    pair=(1, "one"),
    unique={3, 1, 2},
    frozen=frozenset({"a"}),
    by_number={1: Decimal("1.10"), 2**70: Decimal("-0")},
    maybe=datetime(2024, 1, 1, tzinfo=UTC),
)


class Aliased(BaseModel):
    """Names that differ between Python, input and storage."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)
    key: str = Field(alias="theKey")
    many: str = Field("m", validation_alias=AliasChoices("several", "lots"), serialization_alias="many_out")


class Computed(BaseModel):
    """A field that is dumped and no input."""

    model_config = ConfigDict(extra="forbid")
    side: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.side**2

    @computed_field(alias="aliasedArea")  # type: ignore[prop-decorator]
    @property
    def aliased(self) -> int:
        return self.side**2


class Tree(BaseModel):
    """A model in itself."""

    name: str
    children: list[Tree] = []
    limit: ClassVar[int] = 3


class TestModels(StoreTests):
    """Whatever a model holds survives the way through JSON."""

    async def test_rich_types_survive(self, store: Face) -> None:
        store.store.register_schema("rich", Rich, Constraint(singleton_key=("id", "amount")), index=["moment", "level"])
        id_ = await store.commit_model(RICH, session_id="s")
        assert await store.get_model(id_) == RICH
        kept = await store.get_model(id_)
        assert str(kept.amount) == str(RICH.amount)
        assert str(kept.by_number[2**70]) == "-0"
        assert base64.urlsafe_b64decode((await store.get(id_))["payload"]["raw"]) == RICH.raw
        assert await store.ids("rich", {"level": 3}) == [id_]
        assert await store.commit_model(RICH.model_copy(update={"maybe": None}), session_id="s") == id_
        assert (await store.get_model(id_)).maybe is None
        await store.rollback("s")
        await store.update(id_, {"day": "2024-01-01"})
        assert (await store.get_model(id_)).day == date(2024, 1, 1)
        assert (await store.get_model(id_)).raw == RICH.raw

    async def test_plain_data_may_hold_rich_values(self, store: Face) -> None:
        store.store.register_schema("rich", Rich)
        await store.commit(Fact("rich", {**dict(RICH), "raw": base64.urlsafe_b64encode(RICH.raw)}, id="r"))
        assert await store.get_model("r") == RICH
        await store.update("r", {"moment": datetime(2030, 1, 1, tzinfo=UTC), "colour": Colour.RED})
        assert (await store.get_model("r")).moment == datetime(2030, 1, 1, tzinfo=UTC)

    async def test_aliases_are_as_the_model_says(self, store: Face) -> None:
        store.store.register_schema("aliased", Aliased, Constraint(singleton_key="key"), index=["many"])
        id_ = await store.commit_model(Aliased.model_validate({"theKey": "a"}))
        assert (await store.get(id_))["payload"] == {"theKey": "a", "many_out": "m"}
        assert await store.commit(Fact("aliased", {"key": "a", "lots": "l"})) == id_
        assert await store.commit(Fact("aliased", {"theKey": "a", "several": "s"})) == id_
        assert await store.ids("aliased", {"many_out": "s"}) == [id_]
        assert (await store.get_model(id_)).key == "a"
        assert await store.commit_model(Aliased.model_validate({"theKey": "b"})) != id_

    async def test_computed_fields_are_stored_and_no_input(self, store: Face) -> None:
        store.store.register_schema("computed", Computed, Constraint(singleton_key="area"), index=["area"])
        id_ = await store.commit_model(Computed(side=3))
        assert (await store.get(id_))["payload"] == {"side": 3, "area": 9, "aliased": 9}
        assert await store.get_model(id_) == Computed(side=3)
        assert await store.commit(Fact("computed", {"side": -3})) == id_
        await store.update(id_, {"side": 4})
        assert await store.ids("computed", {"area": {"$gt": 9}}) == [id_]

    async def test_models_may_hold_themselves(self, store: Face) -> None:
        Tree.model_rebuild()
        store.store.register_schema("tree", Tree)
        tree = Tree(name="0")
        for level in range(90):
            tree = Tree(name=str(level), children=[tree])
        id_ = await store.commit_model(tree)
        assert await store.get_model(id_) == tree

    async def test_a_model_must_be_dumped_as_an_object(self, store: Face) -> None:
        class Numbers(RootModel[list[int]]):
            pass

        store.store.register_schema("numbers", Numbers)
        with pytest.raises(ValidationFailed, match="object"):
            await store.commit_model(Numbers([1]))
        assert await store.count() == 0


__all__ = ["TestModels", "TestValues"]
