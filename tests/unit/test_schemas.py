"""Registrations, what storage is told of them, and how payloads become text and models again."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from memstate_core import Constraint, NotFoundError, SchemaRegistry, ValidationFailed
from memstate_core.facts import StoredFact
from memstate_core.filters import equal
from memstate_core.schemas import NO_DEFINITION, Definition, describe, place_of
from memstate_core.testing.profiles import tries
from memstate_core.values import merge


class Address(BaseModel):
    city: str = "x"


class Person(BaseModel):
    name: str
    age: int | None = None
    home: Address = Address()
    work: Address | None = None
    extra: dict[str, Any] = {}


def stored(payload: Any, typename: str = "person", schema_version: int = 1) -> StoredFact:
    return StoredFact("f", typename, json.dumps(payload), None, None, "2030", 1, False, schema_version, None, 1)


def registry(**options: Any) -> SchemaRegistry:
    made = SchemaRegistry()
    made.register("person", Person, **options)
    return made


def test_a_definition_survives_storage() -> None:
    for definition in (
        NO_DEFINITION,
        Definition(("a", "b.c"), "session", True, ("a", "é"), 3),
        Definition(indexed=("x",)),
    ):
        assert Definition.from_text(definition.to_text()) == definition


def test_indexes_are_never_taken_away() -> None:
    old = Definition(singleton=("email",), indexed=("role", "email"))
    new = Definition(singleton=("name",), indexed=("age",), immutable=True).merged_over(old)
    assert new.indexed == ("role", "email", "age", "name")
    assert (new.singleton, new.immutable) == (("name",), True)
    assert Definition(singleton=("name",)).merged_over(None).indexed == ("name",)


def test_only_immutability_changes_nothing_in_the_indexes() -> None:
    one = Definition(indexed=("a",))
    assert one.indexes_like(one._replace(immutable=True))
    assert not one.indexes_like(None)
    assert not one.indexes_like(one._replace(indexed=("a", "b")))
    assert not one.indexes_like(one._replace(scope="session"))
    assert not one.indexes_like(one._replace(schema_version=2))


_values = st.recursive(
    st.sampled_from([True, False, 0, 1, 1.0, 2, "", "1", "a", "],[", '"', "x" * 500, 2**64, 10**30]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)
_session = st.sampled_from([None, "", "s", "null", '"s"'])


@tries(300, 20_000)
@given(*[st.tuples(st.sampled_from(["t", "u"]), _values, _values, _session)] * 2, st.sampled_from(["store", "session"]))
def test_places_are_equal_when_type_values_and_session_are(one: Any, two: Any, scope: str) -> None:
    definition = Definition(("a", "b"), scope)

    def place(which: Any) -> str | None:
        typename, a, b, session_id = which
        return place_of(definition, typename, {"a": a, "b": b}, session_id)

    same = (
        one[0] == two[0] and equal(one[1], two[1]) and equal(one[2], two[2]) and (scope == "store" or one[3] == two[3])
    )
    assert (place(one) == place(two)) is same
    assert 0 < len(place(one) or "") <= 400


def test_a_missing_value_has_no_place() -> None:
    definition = Definition(("a", "b.c"))
    for payload in ({}, {"a": 1}, {"a": None, "b": {"c": 1}}, {"a": 1, "b": {}}, {"a": 1, "b": None}):
        assert place_of(definition, "t", payload, None) is None
    assert place_of(definition, "t", {"a": 1, "b": {"c": False}}, None) is not None
    assert place_of(NO_DEFINITION, "t", {"a": 1}, None) is None
    assert describe(NO_DEFINITION, "t", {"a": 1}, None) == (None, ())
    place, fields = describe(definition.merged_over(None), "t", {"a": 1}, None)
    assert place is None
    assert [field.path for field in fields] == ["a", "b.c"]


def test_paths_are_resolved_by_the_model() -> None:
    class Aliased(BaseModel):
        model_config = ConfigDict(serialize_by_alias=True)
        inner: Annotated[Address, Field(alias="inside")]
        plain: str = "x"
        out: str = Field("x", serialization_alias="outside")

    made = SchemaRegistry()
    schema = made.register(
        "aliased", Aliased, Constraint("inner.city"), index=["inside.city", "out", "outside", "payload.plain"]
    )
    assert schema.definition.singleton == ("inside.city",)
    assert schema.definition.indexed == ("inside.city", "outside", "outside", "plain")
    person = registry(index=["home.city", "work.city", "extra.any.thing"]).get("person")
    assert person is not None
    assert person.definition.indexed == ("home.city", "work.city", "extra.any.thing")
    registry(index=["extra.any", "name.below"])  # what is below a field that is no model cannot be told
    for wrong in ("town", "home.town"):
        with pytest.raises(ValidationFailed, match=wrong.rpartition(".")[2]) as caught:
            registry(index=[wrong])
        assert (caught.value.typename, caught.value.path) == ("person", wrong)


def test_registering_again_replaces_and_other_names_remain() -> None:
    made = registry()
    made.register("human", Person)
    with pytest.raises(ValidationFailed, match="'person' and 'human'"):
        made.for_model(Person)
    assert made.for_model(Person, "human").typename == "human"
    made.register("person", Address)
    assert made.for_model(Person).typename == "human"
    assert made.for_model(Address).typename == "person"
    assert set(made.typenames()) == {"person", "human"}
    assert "person" in made
    assert "nobody" not in made
    assert made.get("nobody") is None
    with pytest.raises(ValidationFailed, match="not registered as 'person'"):
        made.for_model(Person, "person")


def test_a_subclass_may_be_committed_under_its_bases_name() -> None:
    class Better(Person):
        stars: int = 5

    made = registry()
    assert made.for_model(Better, "person").model is Person
    with pytest.raises(ValidationFailed, match=r"register_schema\('better', Better\)"):
        made.for_model(Better)


def test_encode_fills_in_what_is_missing_and_says_what_does_not_fit() -> None:
    made = registry()
    assert json.loads(made.encode("person", {"name": "A"})) == {
        "name": "A",
        "age": None,
        "home": {"city": "x"},
        "work": None,
        "extra": {},
    }
    with pytest.raises(ValidationFailed) as caught:
        made.encode("person", {"name": 5, "home": {"city": []}})
    error = caught.value
    assert (error.typename, error.path, len(error.errors)) == ("person", "name", 2)
    assert "name" in str(error)
    assert "home.city" in str(error)
    with pytest.raises(ValidationFailed) as caught:
        made.encode("person", {"name": "A", "extra": {"x": [1, math.nan]}})
    assert caught.value.path == "extra.x.1"


def test_a_validator_of_the_whole_names_the_payload() -> None:
    def never(value: Any) -> Any:
        raise ValueError("never")

    class Whole(BaseModel):
        kind: Annotated[str, AfterValidator(never)]

    made = SchemaRegistry()
    made.register("whole", Whole)
    with pytest.raises(ValidationFailed, match="never") as caught:
        made.encode("whole", {"kind": "x"})
    assert caught.value.path == "kind"


def test_decode_upgrades_only_what_is_older() -> None:
    def migrate(payload: dict[str, Any], version: int) -> dict[str, Any]:
        return {**payload, "from": version}

    made = registry(migrate=migrate, version=3)
    assert made.decode(stored({"name": "A"}, schema_version=1)) == {"name": "A", "from": 1}
    assert made.decode(stored({"name": "A"}, schema_version=2)) == {"name": "A", "from": 2}
    assert made.decode(stored({"name": "A"}, schema_version=3)) == {"name": "A"}
    assert made.decode(stored({"name": "A"}, schema_version=4)) == {"name": "A"}
    assert made.decode(stored({"a": 1}, "other")) == {"a": 1}
    assert registry(version=3).decode(stored({"name": "A"})) == {"name": "A"}


def test_load_says_which_fact_no_longer_fits() -> None:
    made = registry()
    assert made.load(stored({"name": "A"})) == Person(name="A")
    with pytest.raises(ValidationFailed, match=r"fact 'f'.*age") as caught:
        made.load(stored({"name": "A", "age": "old"}))
    assert caught.value.path == "age"
    with pytest.raises(NotFoundError, match="'other'"):
        made.load(stored({}, "other"))


@pytest.mark.parametrize(
    ("payload", "patch", "merged"),
    [
        # RFC 7396, appendix A, for objects.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_deep_patch_is_a_json_merge_patch(payload: Any, patch: Any, merged: Any) -> None:
    before = json.dumps(payload)
    assert merge(payload, patch, deep=True) == merged
    assert json.dumps(payload) == before


def test_a_shallow_patch_replaces_whole_fields() -> None:
    assert merge({"a": {"b": 1}, "c": 2}, {"a": {"d": None}}, deep=False) == {"a": {"d": None}, "c": 2}
