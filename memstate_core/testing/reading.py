"""Reading: get, query, count, the filter language and its indexes, order and pages."""

from __future__ import annotations

import asyncio
import itertools
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memstate_core import Fact, NotFoundError, ValidationFailed
from memstate_core.filters import compile_filter
from memstate_core.testing.face import Face, case
from memstate_core.testing.factories import StorageFactory, Stores, StoreTests
from memstate_core.testing.models import User
from memstate_core.testing.profiles import tries

# Facts by id, and what each filter finds among them: written by hand, from the meaning.
_RANKS: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "one": 1,
    "half": 0.5,
    "huge": 2**70,
    "huger": 2**70 + 1,
    "minus": -(2**70),
    "empty": "",
    "a": "a",
    "b": "b",
    "ab": "ab",
    "digit": "1",
    "long": "x" * 300,
    "longer": "x" * 300 + "y",
    "list": [1, "a", None, [2]],
    "object": {"a": 1, "b": {"c": "deep"}},
    "no list": [],
    "no object": {},
}
_STRINGS = {"empty", "a", "b", "ab", "digit", "long", "longer"}
_NUMBERS = {"zero", "one", "half", "huge", "huger", "minus"}
_FOUND: list[tuple[Any, set[str]]] = [
    (1, {"one"}),
    (1.0, {"one"}),
    ("1", {"digit"}),
    (True, {"true"}),
    (None, {"null"}),
    ([], {"no list"}),
    ({}, {"no object"}),
    ("", {"empty"}),
    (2**70, {"huge"}),
    (float(2**70), {"huge"}),
    ("x" * 300, {"long"}),
    ([1.0, "a", None, [2]], {"list"}),
    ({"b": {"c": "deep"}, "a": 1}, {"object"}),
    ({"$eq": 0}, {"zero"}),
    ({"$eq": False}, set()),
    ({"$ne": 1}, set(_RANKS) - {"one"}),
    ({"$gt": 0}, {"one", "half", "huge", "huger"}),
    ({"$gt": 2**70}, {"huger"}),
    ({"$gte": 2**70}, {"huge", "huger"}),
    ({"$gte": 0.5, "$lt": 2}, {"half", "one"}),
    ({"$lt": 0}, {"minus"}),
    ({"$lte": 0}, {"minus", "zero"}),
    ({"$lt": float("inf")}, _NUMBERS),
    ({"$gt": "a"}, {"b", "ab", "long", "longer"}),
    ({"$gte": "a"}, {"a", "b", "ab", "long", "longer"}),
    ({"$lt": "a"}, {"empty", "digit"}),
    ({"$lte": ""}, {"empty"}),
    ({"$gt": "x" * 300}, {"longer"}),
    ({"$gte": "x" * 300, "$lte": "x" * 300}, {"long"}),
    ({"$gt": 0, "$lt": "z"}, set()),
    ({"$in": [1, "a", None, [], 7]}, {"one", "a", "null", "no list"}),
    ({"$in": []}, set()),
    ({"$nin": ["a", 1]}, set(_RANKS) - {"a", "one"}),
    ({"$exists": True}, set(_RANKS)),
    ({"$exists": False}, set()),
    ({"$contains": "a"}, {"a", "ab", "list", "object"}),
    ({"$contains": 1}, {"list"}),
    ({"$contains": [2]}, {"list"}),
    ({"$contains": ""}, _STRINGS),
    ({"$contains": None}, {"list"}),
    ({"$not": {"$gt": 0}}, set(_RANKS) - {"one", "half", "huge", "huger"}),
    ({"$not": {"$not": {"$eq": "a"}}}, {"a"}),
    ({"$not": 1}, set(_RANKS) - {"one"}),
    ({"$eq": "a", "$ne": "a"}, set()),
]
_PATHS: list[tuple[dict[str, Any], set[str]]] = [
    ({}, set(_RANKS)),
    ({"payload.rank": 1}, {"one"}),
    ({"rank.0": 1}, {"list"}),
    ({"rank.3.0": 2}, {"list"}),
    ({"rank.4": {"$exists": True}}, set()),
    ({"rank.-1": {"$exists": True}}, set()),
    ({"rank.a": 1}, {"object"}),
    ({"rank.b.c": "deep"}, {"object"}),
    ({"payload.rank.b.c": {"$contains": "ee"}}, {"object"}),
    ({"rank.b.c.d": {"$exists": True}}, set()),
    ({"nothing": None}, set()),
    ({"nothing": {"$ne": 1}}, set(_RANKS)),
    ({"nothing": {"$nin": [1]}}, set(_RANKS)),
    ({"nothing": {"$exists": False}}, set(_RANKS)),
    ({"nothing": {"$not": {"$gt": 1}}}, set(_RANKS)),
    ({"text": "t", "rank": "a"}, {"a"}),
    ({"$and": [{"rank": {"$gte": "a"}}, {"rank": {"$lt": "b"}}]}, {"a", "ab"}),
    ({"$or": [{"rank": "a"}, {"rank": 1}]}, {"a", "one"}),
    ({"$or": []}, set()),
    ({"$and": []}, set(_RANKS)),
    ({"$not": {"rank": {"$exists": True}}}, set()),
    ({"$not": {}}, set()),
    ({"rank": {"$gte": "a"}, "$or": [{"rank": "a"}, {"rank": "b"}], "$not": {"rank": "b"}}, {"a"}),
    ({"rank.o'; DROP TABLE x; --": 1}, set()),
    ({'rank."a"': 1}, set()),
    ({"rank.$[0]": 1}, set()),
    ({"rank.*": 1}, set()),
    ({"rank." + "9" * 5000: 1}, set()),
    ({"rank.²": 1}, set()),
    ({"rank..": 1}, set()),
    ({"payload.": 1}, set()),
    ({"lone \ud800": {"$exists": True}}, set()),
    ({"lone \ud800": 1}, set()),
    ({"rank.lone \ud800": 1}, set()),
    ({"rank.nul \0": 1}, set()),
    ({".".join(["rank"] * 1000): 1}, set()),
    ({"rank": "lone \ud800"}, set()),
    ({"rank": {"$gt": "\udfff"}}, set()),
]


class TestGet(StoreTests):
    """One fact, as it is."""

    async def test_what_is_not_there_is_none(self, store: Face) -> None:
        assert await store.get("nothing") is None
        with pytest.raises(NotFoundError, match="'nothing'"):
            await store.get_model("nothing")

    async def test_an_id_is_an_identifier(self, store: Face) -> None:
        for wrong in ("", "nul\0", "lone \ud800", "x" * 513, 7, None):
            with case(wrong):
                for call in (store.get, store.get_model, store.delete):
                    with pytest.raises(ValidationFailed):
                        await call(wrong)
                with pytest.raises(ValidationFailed):
                    await store.update(wrong, {})

    async def test_a_model_needs_its_type_registered(self, stores: Stores, store: Face) -> None:
        await store.commit_model(User(name="A"), "u")
        other = stores.open(storage=store.storage, models=False)
        assert (await other.get("u"))["payload"]["name"] == "A"
        with pytest.raises(NotFoundError, match="not registered"):
            await other.get_model("u")


_SENSELESS: list[Any] = [
    {"rank": {"$near": 1}},
    {"rank": {"$not": {"$near": 1}}},
    {"$nor": []},
    {"rank": {"$gt": 1, "less": 2}},
    {"rank": {"$gt": None}},
    {"rank": {"$lt": True}},
    {"rank": {"$gte": [1]}},
    {"rank": {"$in": "text"}},
    {"rank": {"$nin": 5}},
    {"rank": {"$exists": 1}},
    {"$and": {"rank": 1}},
    {"$or": ["rank"]},
    {"$not": [{"rank": 1}]},
    {"": 1},
    {5: 1},
    {"rank": {1, 2}},
    {"rank": ...},
    {"rank": {"$in": [...]}},
    [("rank", 1)],
    "rank",
]


class TestQuery(StoreTests):
    """Facts by type, session and filter, in order, by pages."""

    async def test_by_type_and_session(self, store: Face) -> None:
        for number, (typename, session_id) in enumerate(
            [("note", "s"), ("memo", "s"), ("note", None), ("memo", None), ("note", "t")]
        ):
            await store.commit(Fact(typename, {}, id=str(number), session_id=session_id))
        assert await store.ids() == ["0", "1", "2", "3", "4"]
        assert await store.ids("note") == ["0", "2", "4"]
        assert await store.ids("note", session_id="s") == ["0"]
        assert await store.ids(session_id=None) == ["2", "3"]
        assert await store.ids("memo", session_id=None) == ["3"]
        assert await store.ids(session_id="nobody") == []
        assert await store.ids("nothing") == []
        assert [await store.count(*arguments) for arguments in ((), ("note",), ("note", None, None))] == [5, 3, 1]
        assert await store.count(session_id="s") == 2

    async def test_every_filter_finds_what_it_should(self, store: Face) -> None:
        async with store.transaction() as tx:
            for typename in ("note", "memo"):
                for name, rank in _RANKS.items():
                    payload = {"rank": rank, "label": rank, "text": "t"}
                    await tx.commit(Fact(typename, payload, id=f"{typename} {name}", session_id=f"of {typename}"))
        for filters, expected in [*_PATHS, *(({"rank": condition}, found) for condition, found in _FOUND)]:
            for typename in ("note", "memo"):
                where = (typename, filters)
                found = {id_.removeprefix(f"{typename} ") for id_ in await store.ids(typename, filters)}
                assert found == expected, where
                assert await store.count(typename, filters) == len(expected), where
                by_session = await store.ids(None, filters, f"of {typename}")
                assert {id_.removeprefix(f"{typename} ") for id_ in by_session} == expected, where
                assert await store.ids(typename, filters, None) == [], where
            assert await store.count(None, filters) == 2 * len(expected)

    async def test_a_senseless_filter_is_an_error(self, store: Face) -> None:
        for filters, typename in itertools.product(_SENSELESS, ("note", None)):
            with case(filters):
                with pytest.raises(ValueError, match=r"."):
                    await store.query(typename, filters)
                with pytest.raises(ValueError, match=r"."):
                    await store.count(typename, filters)

    async def test_pages(self, store: Face) -> None:
        async with store.transaction() as tx:
            for number in range(10):
                await tx.commit(Fact("note", {"rank": number % 2, "text": str(number)}, id=str(number)))
        everything = [str(number) for number in range(10)]
        odd = everything[1::2]
        for limit in (None, 0, 1, 3, 10, 11, 2**70):
            for offset in (0, 1, 9, 10, 11, 2**70):
                end = None if limit is None else offset + limit
                page = {"limit": limit, "offset": offset}
                assert await store.ids(**page) == everything[offset:end], page
                assert await store.ids("note", {"rank": 1}, **page) == odd[offset:end], page
                assert await store.ids("note", {"text": {"$in": odd}}, **page) == odd[offset:end], page
                assert await store.ids(order_by="-text", **page) == everything[::-1][offset:end], page
        for wrong in ({"limit": -1}, {"limit": 1.0}, {"limit": True}, {"offset": -1}, {"offset": None}):
            with pytest.raises(ValueError, match=r"limit|offset"):
                await store.query(**wrong)

    async def test_an_update_does_not_change_the_order(self, store: Face) -> None:
        for id_ in ("b", "a", "c"):
            await store.commit(Fact("note", {"rank": 1}, id=id_))
        await store.update("b", {"text": "later"})
        await store.commit(Fact("note", {"rank": 1}, id="a"))
        assert await store.ids() == await store.ids("note", {"rank": 1}) == ["b", "a", "c"]

    async def test_order_by(self, store: Face) -> None:
        rows: list[tuple[str, Any, str | None]] = [
            ("0", 2, "s"),
            ("1", "b", None),
            ("2", None, "t"),
            ("3", 1.5, "s"),
            ("4", [2], None),
            ("5", "a", "s"),
            ("6", True, None),
            ("7", {"a": 1}, None),
            ("8", 2, None),
            ("9", False, "s"),
        ]
        for id_, rank, session_id in rows:
            await store.commit(Fact("note", {"rank": rank, "data": {"r": rank}}, id=id_, session_id=session_id))
        await store.commit(Fact("law", {"number": 1}, id="law"))
        ascending = ["2", "9", "6", "3", "0", "8", "5", "1", "4", "7", "law"]
        descending = ["7", "4", "1", "5", "0", "8", "3", "6", "9", "2", "law"]
        for name in ("rank", "payload.rank"):
            assert await store.ids(order_by=name) == ascending
            assert await store.ids(order_by=f"-{name}") == descending
        assert await store.ids("note", order_by=["-data.r"]) == descending[:-1]
        assert await store.ids(order_by="-id") == ["law", *"9876543210"]
        assert await store.ids(order_by=("session_id", "-id")) == [*"9530", "2", "law", *"87641"]
        assert await store.ids(order_by=("-session_id", "rank")) == ["2", *"9305", *"6", "8", "1", "4", "7", "law"]
        assert await store.ids(order_by=("-type", "-version")) == [*"0123456789", "law"]
        assert await store.ids(order_by="nothing") == [*"0123456789", "law"]
        await store.update("5", {"text": "new"})
        assert (await store.ids(order_by="-ts"))[0] == (await store.ids(order_by="-version"))[0] == "5"

    async def test_a_senseless_order_is_an_error(self, store: Face) -> None:
        for wrong in ("", "-", 5, ["rank", 5], [None], ...):
            with case(wrong), pytest.raises(ValueError, match="order_by"):
                await store.query(order_by=wrong)

    async def test_a_senseless_type_or_session_is_an_error(self, store: Face) -> None:
        for wrong in ("", "nul\0", "lone \ud800", 5):
            for call in (store.query, store.count):
                with pytest.raises(ValidationFailed):
                    await call(wrong)
                with pytest.raises(ValidationFailed):
                    await call(session_id=wrong)

    async def test_indexes_follow_every_change(self, store: Face) -> None:
        async def found(rank: Any) -> list[str]:
            ids: list[str] = await store.ids("note", {"rank": rank})
            assert await store.count("note", {"rank": rank}) == len(ids)
            return ids

        await store.commit(Fact("note", {"rank": 1}, id="n", session_id="s"))
        await store.update("n", {"rank": 2})
        assert (await found(1), await found(2)) == ([], ["n"])
        await store.rollback("s")
        assert (await found(1), await found(2)) == (["n"], [])
        await store.redo("s")
        assert (await found(1), await found(2)) == ([], ["n"])
        await store.promote_session("s")
        assert await store.ids("note", {"rank": 2}, None) == ["n"]
        await store.delete("n")
        assert (await found(1), await found(2)) == ([], [])
        await store.rollback(None)
        assert await found(2) == ["n"]
        await store.update("n", {"rank": None})
        assert (await found(None), await found(2)) == (["n"], [])
        await store.checkout("s", None, on_conflict="keep")
        assert await found(None) == ["n"]

    async def test_of_several_indexes_any_serves(self, store: Face) -> None:
        async with store.transaction() as tx:
            for number in range(60):
                await tx.commit(Fact("note", {"rank": number % 10, "label": number % 3}, id=str(number)))
        expected = [str(number) for number in range(60) if number % 10 == 4 and number % 3 == 1]
        assert await store.ids("note", {"rank": 4, "label": 1}) == expected
        assert await store.ids("note", {"label": 1, "rank": 4}) == expected
        assert await store.ids("note", {"label": {"$gt": 0, "$lt": 2}, "rank": {"$eq": 4, "$gte": 4}}) == expected
        assert await store.count("note", {"$and": [{"rank": 4}, {"$or": [{"label": 1}]}]}) == len(expected)


_TEXTS = ["", "a", "A", "ab", "b", "é", "e\u0301", "\U0001d11e", "\uffff", "\0", "a\0", "a\0b", "a\x01", "1", "x" * 199]
_TEXTS += ["x" * 200, "x" * 201, "x" * 200 + "\0", "x" * 200 + "\x01", "x" * 200 + "y", "[1]", "null"]
_NUMBERS_TRIED = [0, 1, -1, 1.0, 0.1, 0.5, -0.0, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, 2**63, -(2**63) - 1, 2**64]
_NUMBERS_TRIED += [2**64 + 1, 1e19, 1e308, -1e308, 10**400, 10**400 + 1, -(10**400), 5e-324]
_scalars: st.SearchStrategy[Any] = st.sampled_from([None, True, False, *_TEXTS, *_NUMBERS_TRIED])
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "0", "b.c"]), inner, max_size=2),
    max_leaves=4,
)
_comparable: st.SearchStrategy[Any] = st.sampled_from([*_TEXTS, *_NUMBERS_TRIED, float("inf"), "lone \ud800"])
_condition: st.SearchStrategy[Any] = st.deferred(
    lambda: (
        _values.filter(lambda value: not isinstance(value, dict))
        | st.fixed_dictionaries({}, optional={"$eq": _values, "$ne": _values, "$exists": st.booleans()})
        | st.fixed_dictionaries({}, optional=dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), _comparable))
        | st.fixed_dictionaries({}, optional={name: st.lists(_values, max_size=3) for name in ("$in", "$nin")})
        | st.fixed_dictionaries({"$contains": _scalars})
        | st.fixed_dictionaries({"$not": _condition})
    )
)
_paths = st.sampled_from(["rank", "payload.rank", "label", "rank.a", "rank.0", "data", "nothing"])
_filters = st.recursive(
    st.dictionaries(_paths, _condition, max_size=2),
    lambda inner: (
        st.dictionaries(st.sampled_from(["$and", "$or"]), st.lists(inner, max_size=2), min_size=1, max_size=2)
        | st.fixed_dictionaries({"$not": inner})
    ),
    max_leaves=3,
)


class TestRandomQueries:
    """Whatever the values and the filter: no index and no storage changes the answer."""

    def test_every_storage_answers_as_the_filter_does(self, storages: StorageFactory) -> None:
        stores = Stores(storages)
        numbers = count()

        async def check(ranks: list[Any], filters: list[dict[str, Any]]) -> None:
            store = stores.open(storage=storage, namespace=f"example {next(numbers)}")
            payloads = {str(number): {"rank": rank, "label": rank, "data": rank} for number, rank in enumerate(ranks)}
            async with store.transaction() as tx:
                for typename in ("note", "memo"):
                    for id_, payload in payloads.items():
                        await tx.commit(Fact(typename, payload, id=f"{typename} {id_}"))
            for one in filters:
                matches = compile_filter(one)
                expected = [id_ for id_, payload in payloads.items() if matches is None or matches(payload)]
                for typename in ("note", "memo"):
                    assert await store.ids(typename, one) == [f"{typename} {id_}" for id_ in expected]
                    assert await store.count(typename, one) == len(expected)
                    assert await store.ids(typename, one, limit=1, offset=1) == [
                        f"{typename} {id_}" for id_ in expected[1:2]
                    ]
            await store.close()

        @tries(25, 3000)
        @given(st.lists(_values, max_size=6), st.lists(_filters, max_size=6))
        def example(ranks: list[Any], filters: list[dict[str, Any]]) -> None:
            runner.run(check(ranks, filters))

        with asyncio.Runner() as runner:
            storage = storages.new()
            example()
            runner.run(storages.aclose())


__all__ = ["TestGet", "TestQuery", "TestRandomQueries"]
