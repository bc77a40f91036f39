"""Models that are not validated again: which those are, and that nobody can tell."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Any, Generic, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from memstate_core import ValidationFailed
from memstate_core.plain_models import field_types, has_types
from memstate_core.schemas import NO_DEFINITION, Schema
from memstate_core.testing.profiles import tries
from memstate_core.values import MAX_DIGITS

T = TypeVar("T")


class Plain(BaseModel):
    text: str
    count: int = 3
    share: float = Field(default=0.5, description="of all")
    done: bool = Field(default_factory=bool)
    note: str | None = None


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)

    text: str


class WithMore(Plain):
    more: int | None = 1


def test_plain_models_are_known_by_their_types() -> None:
    none = type(None)
    plain = {"text": (str,), "count": (int,), "share": (float,), "done": (bool,), "note": (str, none)}
    assert field_types(Plain) == plain
    assert field_types(Frozen) == {"text": (str,)}
    assert field_types(WithMore) == {**plain, "more": (int, none)}


class Limited(BaseModel):
    text: str = Field(max_length=3)


class Stripped(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)

    text: str


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")

    text: str


class Aliased(BaseModel):
    text: str = Field(alias="words")


class Excluded(BaseModel):
    text: str
    secret: str = Field(default="", exclude=True)


class Nested(BaseModel):
    inner: Plain


class Listed(BaseModel):
    texts: list[str]


class Either(BaseModel):
    value: int | str


class Validated(BaseModel):
    text: Annotated[str, AfterValidator(str.upper)]


class FieldValidated(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def _upper(cls, value: str) -> str:
        return value.upper()


class ModelValidated(BaseModel):
    text: str

    @model_validator(mode="after")
    def _refuse(self) -> ModelValidated:
        if self.text == "no":
            raise ValueError("no")
        return self


class Serialized(BaseModel):
    text: Annotated[str, PlainSerializer(str.upper)]


class DefaultSerialized(BaseModel):
    text: str = "x"

    @field_serializer("text")
    def _upper(self, value: str) -> str:
        return value.upper()


class ModelSerialized(BaseModel):
    text: str

    @model_serializer
    def _dump(self) -> dict[str, Any]:
        return {"text": self.text * 2}


class Computed(BaseModel):
    text: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def length(self) -> int:
        return len(self.text)


class Initialized(BaseModel):
    text: str

    def __init__(self, **data: Any) -> None:
        super().__init__(**{**data, "text": str(data["text"]).upper()})


class PostInitialized(BaseModel):
    text: str

    def model_post_init(self, _: Any) -> None:
        self.text = self.text.upper()


class Private(BaseModel):
    text: str
    _seen: int = PrivateAttr(default=0)


class Root(RootModel[str]):
    pass


class Tree(BaseModel):
    text: str
    left: Tree | None = None


class Generalized(BaseModel, Generic[T]):
    value: T


NOT_PLAIN = [
    Limited,
    Stripped,
    Extra,
    Aliased,
    Excluded,
    Nested,
    Listed,
    Either,
    Validated,
    FieldValidated,
    ModelValidated,
    Serialized,
    DefaultSerialized,
    ModelSerialized,
    Computed,
    Initialized,
    PostInitialized,
    Private,
    Root,
    Tree,
    Generalized,
    Generalized[list[str]],
]


@pytest.mark.parametrize("model", NOT_PLAIN, ids=lambda model: model.__name__)
def test_where_anything_else_matters_a_model_is_not_plain(model: type[BaseModel]) -> None:
    assert field_types(model) is None


@pytest.mark.filterwarnings("ignore:.*json_encoders")
def test_nor_is_it_with_encoders_of_its_own() -> None:
    class Encoded(BaseModel):
        model_config = ConfigDict(json_encoders={str: str.upper})

        text: str

    assert field_types(Encoded) is None


def outcome(schema: Schema, instance: BaseModel) -> tuple[str, Any]:
    try:
        return "text", schema.encode_model(instance)
    except ValidationFailed as error:
        return "refused", str(error)


def schemas(model: type[BaseModel]) -> tuple[Schema, Schema]:
    """One that looks at types, and one that always validates."""
    fast, slow = (Schema("plain", model, NO_DEFINITION, None) for _ in range(2))
    assert fast._plain is not None
    slow._plain = None
    return fast, slow


class Text(str):
    __slots__ = ()


ODD = st.one_of(
    st.text(st.characters(), max_size=5),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.binary(max_size=3),
    st.sampled_from(["\ud800", "\0", "null", "NaN", Text("own"), 10**400, -(10**5000), 1e308, -0.0, 1.0, [], {}]),
)

FITTING: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(),
    "count": st.integers(),
    "share": st.floats(),
    "done": st.booleans(),
    "note": st.none() | st.text(),
}


@tries(300, 10_000)
@given(st.fixed_dictionaries({}, optional={name: values | ODD for name, values in FITTING.items()}), st.booleans())
@example({"text": "x", "share": math.nan}, False)
@example({"text": "x", "count": 10**5000}, False)
@example({"text": "x", "count": True}, False)
@example({"text": "x", "share": 1}, False)
@example({"text": "x" * MAX_DIGITS}, False)
def test_what_is_stored_or_refused_is_the_same_as_when_all_is_validated(values: dict[str, Any], taken: bool) -> None:
    instance = Plain.model_construct(**values)
    if taken:
        instance.__dict__.pop("note")
    fast, slow = schemas(Plain)
    assert outcome(fast, instance) == outcome(slow, instance)


def test_a_plain_instance_is_not_validated() -> None:
    fast, slow = schemas(Plain)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was validated")

    fast._validate_json = refuse
    instance = Plain(text="x", note="y")
    assert outcome(fast, instance) == outcome(slow, instance)


class Cached(BaseModel):
    text: str

    @cached_property
    def length(self) -> int:
        return len(self.text)


def test_what_is_cached_beside_the_fields_is_not_stored() -> None:
    instance = Cached(text="x")
    assert instance.length == 1
    fast, slow = schemas(Cached)
    assert outcome(fast, instance) == outcome(slow, instance) == ("text", '{"text":"x"}')


class Vague(Plain):
    @field_serializer("count")
    def _vague(self, _: int) -> str:
        return "many"


@pytest.mark.parametrize(("model", "kind"), [(WithMore, "text"), (Vague, "refused")])
def test_an_instance_of_a_subclass_is_validated_as_the_model_that_was_registered(model: type[Plain], kind: str) -> None:
    fast, slow = schemas(Plain)
    instance = model(text="x")
    assert outcome(fast, instance) == outcome(slow, instance)
    assert outcome(fast, instance)[0] == kind
    assert "more" not in outcome(fast, instance)[1]


def test_all_fields_must_be_there() -> None:
    types = field_types(Plain)
    assert types is not None
    assert has_types(Plain(text="x"), types)
    assert not has_types(Plain.model_construct(), {**types, "other": (str,)})
    assert not has_types(Plain.model_construct(text=Text("x")), types)
