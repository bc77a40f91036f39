"""What any hook must do: follow every transaction, whatever it is told twice, and propose what storage answers."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from memstate_core import Change, Fact, HookError
from memstate_core.testing.face import Face, calls, maybe
from memstate_core.testing.factories import HookFactory, HookTests, Stores
from memstate_core.testing.faults import Fault, FaultyHook, raising
from memstate_core.testing.models import Note

_TEXTS = {
    "tea": "green tea with lemon",
    "coffee": "black coffee without sugar",
    "train": "the night train to Vienna leaves late",
    "garden": "tomatoes grow in the garden",
    "music": "a quiet evening of piano music",
}


# What an index keeps otherwise than JSON has it, and what looks like it.
_PAYLOADS: list[dict[str, Any]] = [
    {"rank": 1, "label": "a", "data": {"city": "Rome"}},
    {"rank": 1.0, "label": "A", "data": {"city": None}},
    {"rank": 1.5, "label": "", "data": ["a", "b"]},
    {"rank": "1", "label": "a b", "data": ["a"]},
    {"rank": True, "label": ["a"], "data": "a"},
    {"rank": 0, "label": '["a"]', "data": '{"city": "Rome"}'},
    {"rank": False, "label": {"a": 1}, "data": 1},
    {"rank": -3, "label": None, "data": [1, "a", None]},
    {"rank": 2**53, "label": "é", "data": {"city": ["Rome", "Oslo"]}},
    {"rank": 2**53 + 1, "label": '"; --', "data": []},
    {"rank": 2**70, "label": str(2**70), "data": [2**70, 1]},
    {"rank": [1, 2], "label": "\u2028\U0001f9e0", "data": [[1], {"a": 1}]},
    {"rank": None, "data": {}},
    {"rank": 1e300, "label": "b", "data": [True]},
    {},
]
_SCALARS: list[Any] = [1, 1.5, 0, True, False, "1", "a", "A", "", "é", '["a"]', 2**53, 2**53 + 1, 2**70, str(2**70), -3]
_FILTERS: list[dict[str, Any]] = [
    *({field: value} for field in ("rank", "label", "data") for value in [*_SCALARS, None, ["a"], [], {}]),
    *({field: {"$ne": value}} for field in ("rank", "label") for value in _SCALARS),
    *({"data": {"$contains": value}} for value in _SCALARS),
    *({"rank": {operator: value}} for operator in ("$gt", "$gte", "$lt", "$lte") for value in (0, 1, 1.5, 2**53, "1")),
    *({"rank": {"$exists": value}} for value in (True, False)),
    *(
        {"label": {operator: value}}
        for operator in ("$in", "$nin")
        for value in (["a", "é"], ["a", 1], [None, "a"], [])
    ),
    *({"rank": {operator: value}} for operator in ("$in", "$nin") for value in ([1, 2.0], [0, True, "1"], [2**70])),
    {"rank": {"$gte": 0, "$lt": 1.5}},
    {"data.city": "Rome"},
    {"payload.data.city": {"$in": ["Rome", "Oslo"]}},
    {"data.city.0": "Rome"},
    {"data.0": "a"},
    {"nowhere": "a"},
    {"nowhere": {"$ne": "a"}},
    {"$and": [{"rank": 1}, {"label": "a"}]},
    {"$or": [{"rank": 0}, {"label": "a"}, {"data": {"$contains": "b"}}]},
    {"$or": [{"rank": 0}, {"nowhere": "a"}]},
    {"$not": {"rank": 1, "label": "a"}},
    {"$not": {"$or": [{"rank": 1}, {"label": {"$ne": "b"}}]}},
    {"$and": [{"$or": [{"rank": {"$gt": 0}}, {"label": ""}]}, {"$not": {"data": "a"}}]},
    {"rank": {"$not": {"$gt": 0, "$lt": 2}}},
    {"label": {"$not": {"$in": ["a", "b"]}}},
    {"$or": []},
    {"$and": []},
    {},
]


def fact(id_: str, text: str | None, version: int = 1, typename: str = "note", session_id: str | None = None) -> Fact:
    """A fact as a hook is given it."""
    payload = {"text": text, "rank": None, "label": None, "data": None}
    return Fact(typename, payload, id=id_, version=version, session_id=session_id)


async def tell(hook: Any, *changes: Change) -> None:
    """What the store does with a hook: prepare, then apply."""
    batch: Any = list(changes)
    if hasattr(hook, "prepare"):
        batch = await maybe(hook.prepare(batch))
    await maybe(hook.apply(batch))


async def scan(hook: Any) -> dict[str, int]:
    """What is in the index."""
    found = await maybe(hook.scan())
    return dict([entry async for entry in found] if hasattr(found, "__aiter__") else found)


class _Base(HookTests):
    @pytest.fixture
    def hook(self, make_hook: HookFactory) -> Any:
        return make_hook.new()

    @pytest.fixture
    def store(self, stores: Stores, hook: Any) -> Face:
        return stores.open([hook])


class TestApply(_Base):
    """Batches say what each fact is to be; the index is made so, whatever it was."""

    async def test_it_is_idempotent_and_keyed_by_fact_id(self, hook: Any) -> None:
        made = [Change(id_, None, fact(id_, text)) for id_, text in _TEXTS.items()]
        for _ in range(2):
            await tell(hook, *made)
            assert await scan(hook) == dict.fromkeys(_TEXTS, 1)
        for _ in range(2):
            await tell(hook, Change("tea", fact("tea", "x"), fact("tea", "jasmine tea", 2)))
            assert (await scan(hook))["tea"] == 2
        for _ in range(2):
            await tell(hook, Change("tea", fact("tea", "jasmine tea", 2), None))
            assert "tea" not in await scan(hook)

    async def test_before_does_not_matter(self, hook: Any) -> None:
        await tell(hook, Change("a", fact("a", "never there", 4), fact("a", "apple", 5)))
        await tell(hook, Change("a", None, fact("a", "older apple", 2)))
        assert await scan(hook) == {"a": 2}
        await tell(hook, Change("b", None, None), Change("c", fact("c", "never there"), None))
        assert await scan(hook) == {"a": 2}

    async def test_an_empty_batch_is_nothing(self, hook: Any) -> None:
        await tell(hook)
        assert await scan(hook) == {}

    async def test_preparing_changes_nothing(self, hook: Any) -> None:
        if not hasattr(hook, "prepare"):
            pytest.skip("the hook prepares nothing")
        await tell(hook, Change("a", None, fact("a", "apple")))
        changes = [Change("a", fact("a", "apple"), None), Change("b", None, fact("b", "berry"))]
        batch = await maybe(hook.prepare(changes))
        assert await scan(hook) == {"a": 1}
        await maybe(hook.apply(batch))
        assert await scan(hook) == {"b": 1}

    async def test_equal_texts_are_different_entries(self, hook: Any) -> None:
        await tell(hook, *(Change(str(n), None, fact(str(n), "the same")) for n in range(20)))
        assert len(await scan(hook)) == 20
        await tell(hook, Change("7", fact("7", "the same"), None))
        assert set(await scan(hook)) == {str(n) for n in range(20)} - {"7"}

    @pytest.mark.parametrize("text", ["", " \n\t", None])
    async def test_a_text_that_becomes_empty_leaves(self, hook: Any, text: str | None) -> None:
        await tell(hook, Change("a", None, fact("a", "apple")), Change("b", None, fact("b", text)))
        assert await scan(hook) == {"a": 1}
        await tell(hook, Change("a", fact("a", "apple"), fact("a", text, 2)))
        assert await scan(hook) == {}
        await tell(hook, Change("a", fact("a", text, 2), fact("a", "apple", 3)))
        assert await scan(hook) == {"a": 3}

    async def test_any_id_and_any_text(self, hook: Any) -> None:
        names = [
            "é" * 512,
            "\U0001f9e0",
            "'; DROP TABLE x; --",
            '"',
            "%_*?[]{}",
            "a b\tc\n",
            "\x01",
            "$and",
            "../..",
            "0",
        ]
        texts = ["NUL \0 in it", "\U0001f9e0", "'; DROP TABLE x; --", "x" * 100_000, "\x01\x02", "漢字", "{}", "null"]
        changes = [Change(name, None, fact(name, name)) for name in names]
        changes += [Change(f"text {n}", None, fact(f"text {n}", text)) for n, text in enumerate(texts)]
        await tell(hook, *changes)
        assert await scan(hook) == {change.fact_id: 1 for change in changes}
        await tell(hook, *(change.inverse for change in changes))
        assert await scan(hook) == {}

    async def test_a_large_batch(self, hook: Any) -> None:
        changes = [Change(f"{n}", None, fact(f"{n}", f"entry number {n}")) for n in range(1500)]
        await tell(hook, *changes)
        assert len(await scan(hook)) == 1500
        await tell(hook, *(change.inverse for change in changes[:1499]))
        assert await scan(hook) == {"1499": 1}

    async def test_another_hook_on_the_index_goes_on(self, hook: Any, make_hook: HookFactory) -> None:
        await tell(hook, Change("a", None, fact("a", "apple")))
        again = make_hook.again(hook)
        assert await scan(again) == {"a": 1}
        await tell(again, Change("a", fact("a", "apple"), fact("a", "apricot", 2)))
        assert await scan(hook) == {"a": 2}
        assert getattr(again, "name", None) == getattr(hook, "name", None)


class TestFollowing(_Base):
    """After every call the index holds what storage holds."""

    async def check(self, store: Face, hook: Any) -> None:
        facts = {f["id"]: f["version"] for f in await store.query() if (f["payload"].get("text") or "").strip()}
        assert await scan(hook) == facts
        assert await store.claims() == []

    async def test_every_call_is_followed(self, store: Face, hook: Any) -> None:
        await store.commit(Fact("note", {"text": "one"}, id="1", session_id="s"))
        await self.check(store, hook)
        await store.update("1", {"text": "one and a half"})
        await self.check(store, hook)
        async with store.transaction(session_id="s") as tx:
            await tx.commit(Fact("note", {"text": "two"}, id="2"))
            await tx.commit(Fact("note", {"text": "three"}, id="3"), ephemeral=True)
            await tx.update("1", {"text": "one again"})
            await tx.delete("3")
            await tx.commit(Fact("memo", {"text": "three again"}, id="3"))
        await self.check(store, hook)
        await store.update("2", {"text": ""})
        await self.check(store, hook)
        for move in calls(
            lambda: store.rollback("s"),
            lambda: store.rollback("s", 2),
            lambda: store.redo("s", 2),
            lambda: store.checkout("s", None),
            lambda: store.redo("s", 9),
            lambda: store.promote_session("s"),
            lambda: store.rollback("s"),
            lambda: store.delete("1"),
            lambda: store.discard_session("s"),
            lambda: store.rollback("s"),
        ):
            await move()
            await self.check(store, hook)
        assert set(await scan(hook)) == {"3"}

    async def test_what_fails_leaves_the_index(self, store: Face, hook: Any) -> None:
        await store.commit(Fact("note", {"text": "one"}, id="1"))
        with pytest.raises(ValueError, match="text"):
            await store.commit(Fact("note", {"text": 5}, id="1"))
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with store.transaction() as tx:
                await tx.update("1", {"text": "two"})
                raise ZeroDivisionError
        assert await scan(hook) == {"1": 1}

    async def test_only_the_wanted_types_are_told(self, stores: Stores, make_hook: HookFactory) -> None:
        hook = make_hook.new({"note"})
        store = stores.open([hook])
        async with store.transaction() as tx:
            await tx.commit(Fact("note", {"text": "wanted"}, id="1"))
            await tx.commit(Fact("memo", {"text": "not wanted"}, id="2"))
        await store.commit(Fact("memo", {"text": "not wanted"}, id="3"))
        assert await scan(hook) == {"1": 1}
        await store.reindex()
        assert await scan(hook) == {"1": 1}
        assert [len(drift) for drift in await store.verify()] == [0]
        assert [found.fact.id for found in await store.search("wanted")] == ["1"]
        with pytest.raises(HookError, match="memo"):
            await store.search("wanted", typename="memo")

    async def test_a_fact_whose_type_leaves_is_removed(self, stores: Stores, make_hook: HookFactory) -> None:
        hook = make_hook.new({"note"})
        store = stores.open([hook])
        await store.commit(Fact("note", {"text": "a note"}, id="1"))
        first = (await store.history())[0]
        await store.delete("1")
        await store.commit(Fact("memo", {"text": "a memo"}, id="1"))
        assert await scan(hook) == {}
        await store.checkout(None, first)
        assert await scan(hook) == {"1": 1}
        await store.redo(None, 2)
        assert (await store.get("1"))["type"] == "memo"
        assert await scan(hook) == {}

    async def test_it_is_brought_back_when_a_transaction_fails(self, stores: Stores, make_hook: HookFactory) -> None:
        hook = make_hook.new()
        faulty = FaultyHook(hook)
        store = stores.open([faulty])
        await store.commit(Fact("note", {"text": "one"}, id="1"))
        faulty.faults["apply"] = [Fault(1, "after", raising(OSError("gone")))]
        with pytest.raises(HookError):  # noqa: PT012
            async with store.transaction() as tx:
                await tx.update("1", {"text": "two"})
                await tx.commit(Fact("note", {"text": "new"}, id="2"))
        await self.check(store, hook)

    async def test_it_is_healed_when_even_that_fails(self, stores: Stores, make_hook: HookFactory) -> None:
        hook = make_hook.new()
        faulty = FaultyHook(hook)
        store = stores.open([faulty])
        await store.commit(Fact("note", {"text": "green tea"}, id="1"))
        faulty.faults["apply"] = [Fault(1, "after", raising(OSError("gone"))), Fault(2, "before", lasting=True)]
        with pytest.raises(HookError) as caught:  # noqa: PT012
            async with store.transaction() as tx:
                await tx.update("1", {"text": "black coffee"})
                await tx.commit(Fact("note", {"text": "new"}, id="2"))
        assert set(caught.value.in_doubt) == {"1", "2"}
        # Search does not wait for the healing: it never shows a text that is not committed.
        for query in ("green tea", "black coffee", "new"):
            for found in await store.search(query):
                assert (found.fact.id, found.fact.payload["text"]) == ("1", "green tea")
        faulty.faults.clear()
        healed = await store.recover()
        assert set(healed.healed) == {"1", "2"}
        await self.check(store, hook)


class TestMending(_Base):
    """Verify says what differs, repair mends it, reindex makes everything anew."""

    @pytest_asyncio.fixture
    async def broken(self, store: Face, hook: Any) -> Face:
        """An index that has lost one fact, has another in an old version, and has one that never was."""
        for id_, text in _TEXTS.items():
            await store.commit(Fact("note", {"text": text}, id=id_))
        await store.update("tea", {"text": "black tea"})
        await tell(
            hook,
            Change("tea", None, fact("tea", _TEXTS["tea"], 1)),
            Change("coffee", None, None),
            Change("ghost", None, fact("ghost", "a ghost of green tea")),
        )
        return store

    async def test_verify_says_what_differs(self, broken: Face) -> None:
        (drift,) = await broken.verify()
        assert (drift.missing, drift.stale, drift.orphaned) == (("coffee",), ("tea",), ("ghost",))
        assert len(drift) == 3

    async def test_search_shows_nothing_of_it(self, broken: Face) -> None:
        for found in await broken.search("a ghost of green tea", limit=10):
            assert found.fact.id != "ghost"
            assert found.fact.payload["text"] != _TEXTS["tea"]
        perfect = (await broken.search(_TEXTS["train"], limit=1))[0].score
        for found in await broken.search(_TEXTS["tea"], limit=10):
            # The index has this very text; but it is not the committed one, which must be what is scored.
            assert found.score < perfect

    async def test_repair_mends_it(self, broken: Face, hook: Any) -> None:
        (mended,) = await broken.repair()
        assert len(mended) == 3
        assert not (await broken.verify())[0]
        assert await scan(hook) == {**dict.fromkeys(_TEXTS, 1), "tea": 2}
        assert [found.fact.id for found in await broken.search(_TEXTS["coffee"], limit=1)] == ["coffee"]

    async def test_reindex_makes_everything_anew(self, broken: Face, hook: Any) -> None:
        assert await broken.reindex() == 5
        assert not (await broken.verify())[0]
        assert await scan(hook) == {**dict.fromkeys(_TEXTS, 1), "tea": 2}

    async def test_facts_without_a_place_in_the_index_are_no_drift(self, store: Face, hook: Any) -> None:
        await store.commit(Fact("note", {"text": ""}, id="empty"))
        await store.commit(Fact("note", {"text": "full"}, id="full"))
        assert not (await store.verify())[0]
        await store.reindex()
        assert await scan(hook) == {"full": 1}

    async def test_a_hook_may_be_added_later(self, stores: Stores, make_hook: HookFactory) -> None:
        first = make_hook.new()
        store = stores.open([first])
        await store.commit(Fact("note", {"text": "green tea"}, id="1"))
        later = make_hook.new({"memo", "note"})
        store.store.add_hook(later)
        await store.commit(Fact("memo", {"text": "black tea"}, id="2"))
        assert await scan(first) == {"1": 1, "2": 1}
        assert await scan(later) == {"2": 1}
        assert [len(drift) for drift in await store.verify()] == [0, 1]
        assert [len(drift) for drift in await store.repair()] == [0, 1]
        assert await scan(later) == {"1": 1, "2": 1}

    async def test_an_index_may_be_filled_afterwards(self, stores: Stores, make_hook: HookFactory) -> None:
        store = stores.open()
        for id_, text in _TEXTS.items():
            await store.commit(Fact("note", {"text": text}, id=id_))
        hook = make_hook.new()
        late = stores.open([hook], storage=store.storage)
        (drift,) = await late.verify()
        assert set(drift.missing) == set(_TEXTS)
        assert await late.reindex(drift.hook) == 5
        assert await scan(hook) == dict.fromkeys(_TEXTS, 1)
        with pytest.raises(ValueError, match="nothing"):
            await late.reindex("nothing")


class TestSearch(_Base):
    """The index proposes, storage answers."""

    @pytest_asyncio.fixture
    async def filled(self, store: Face) -> Face:
        for number, (id_, text) in enumerate(_TEXTS.items()):
            session_id = "s" if number % 2 else None
            await store.commit(Fact("note", {"text": text, "rank": number}, id=id_, session_id=session_id))
        await store.commit(Fact("memo", {"text": _TEXTS["tea"], "rank": 9}, id="memo"))
        return store

    async def test_the_most_similar_first(self, filled: Face) -> None:
        for id_, text in _TEXTS.items():
            found = await filled.search(text, limit=6, typename="note")
            assert found[0].fact.id == id_
            scores = [one.score for one in found]
            assert scores == sorted(scores, reverse=True)
            assert scores[0] > scores[-1]
            assert len({one.fact.id for one in found}) == len(found) == 5
        first = (await filled.search(_TEXTS["train"], limit=1))[0]
        assert (first.fact.payload, first.fact.version) == (Note(text=_TEXTS["train"], rank=2).model_dump(), 1)
        assert first.fact.ts is not None

    async def test_the_limit_is_reached_whenever_so_many_match(self, filled: Face) -> None:
        for limit in (0, 1, 3, 6, 100):
            assert len(await filled.search("green tea", limit=limit)) == min(limit, 6)
        assert len(await filled.search("green tea", limit=3, filters={"rank": {"$gt": 1}})) == 3
        assert [one.fact.id for one in await filled.search("green tea", filters={"rank": 4})] == ["music"]
        assert await filled.search("green tea", filters={"rank": 99}) == []

    async def test_filters_find_what_is_far_away(self, store: Face) -> None:
        async with store.transaction() as tx:
            for number in range(300):
                await tx.commit(Fact("note", {"text": f"green tea number {number}", "rank": 0}, id=str(number)))
            for number in range(3):
                await tx.commit(Fact("note", {"text": f"far away {number}", "rank": 1}, id=f"far {number}"))
        found = await store.search("green tea", limit=3, filters={"rank": 1})
        assert {one.fact.id for one in found} == {"far 0", "far 1", "far 2"}

    async def test_filters_mean_what_they_mean_to_query(self, store: Face) -> None:
        async with store.transaction() as tx:
            for number, payload in enumerate(_PAYLOADS):
                typename = "memo" if number % 3 == 2 else "note"
                await tx.commit(Fact(typename, {"text": f"number {number}", **payload}, id=str(number)))
        for filters in _FILTERS:
            expected = await store.ids(None, filters)
            found = await store.search("number 1", limit=100, filters=filters)
            assert {one.fact.id for one in found} == set(expected), filters
        for filters in _FILTERS[::9]:
            found = await store.search("number 1", limit=100, filters=filters)
            best = await store.search("number 1", limit=2, filters=filters)
            assert [one.score for one in best] == pytest.approx([one.score for one in found[:2]], abs=1e-6), filters

    async def test_filters_follow_what_changes(self, filled: Face) -> None:
        async def ids(filters: dict[str, Any]) -> set[str]:
            return {one.fact.id for one in await filled.search("green tea", limit=10, filters=filters)}

        assert await ids({"label": "hot"}) == set()
        await filled.update("tea", {"label": "hot", "rank": 50})
        assert await ids({"label": "hot"}) == await ids({"rank": {"$gte": 50}}) == {"tea"}
        await filled.update("tea", {"label": ["hot", "sweet"]})
        assert await ids({"label": "hot"}) == set()
        assert await ids({"label": {"$contains": "sweet"}}) == {"tea"}
        await filled.rollback(None, 2)
        assert await ids({"label": "hot"}) == await ids({"rank": 50}) == set()
        assert await ids({"rank": 0}) == {"tea"}

    async def test_filters_of_a_schema_that_upgrades(self, make_hook: HookFactory, stores: Stores) -> None:
        hook = make_hook.new()
        before = stores.open([hook], models=False)
        before.store.register_schema("note", Note)
        await before.commit(Fact("note", {"text": "green tea", "label": "old"}, id="1"))
        after = stores.open([make_hook.again(hook)], storage=before.storage, models=False)
        after.store.register_schema("note", Note, migrate=lambda payload: {**payload, "label": "new"}, version=2)
        assert [one.fact.id for one in await after.search("green tea", filters={"label": "new"})] == ["1"]
        assert await after.search("green tea", filters={"label": "old"}) == []

    async def test_by_session_and_type(self, filled: Face) -> None:
        async def ids(**options: Any) -> set[str]:
            return {one.fact.id for one in await filled.search("green tea", limit=10, **options)}

        assert await ids() == {*_TEXTS, "memo"}
        assert await ids(session_id="s") == {"coffee", "garden"}
        assert await ids(session_id=None) == {"tea", "train", "music", "memo"}
        assert await ids(typename="memo") == {"memo"}
        assert await ids(typename="note", session_id="s") == {"coffee", "garden"}
        assert await ids(session_id="nobody") == await ids(typename="nothing") == set()
        await filled.promote_session("s")
        assert await ids(session_id="s") == set()
        assert len(await ids(session_id=None)) == 6
        await filled.rollback("s")
        assert await ids(session_id="s") == {"coffee", "garden"}

    async def test_the_threshold_is_a_least_similarity(self, filled: Face) -> None:
        everything = await filled.search(_TEXTS["tea"], limit=10, typename="note")
        best, worst = everything[0].score, everything[-1].score
        assert len(await filled.search(_TEXTS["tea"], limit=10, typename="note", score_threshold=worst)) == 5
        above = await filled.search(_TEXTS["tea"], limit=10, typename="note", score_threshold=(best + worst) / 2)
        assert {one.fact.id for one in above} == {one.fact.id for one in everything if one.score >= (best + worst) / 2}
        assert await filled.search(_TEXTS["tea"], score_threshold=best + 1) == []

    async def test_nothing_is_found_in_an_empty_index(self, store: Face) -> None:
        assert await store.search("green tea") == []

    async def test_facts_come_from_storage(self, filled: Face, stores: Stores) -> None:
        behind = stores.open(storage=filled.storage)  # without the hook
        await behind.delete("memo")
        await behind.update("tea", {"rank": 77})
        found = {one.fact.id: one.fact for one in await filled.search(_TEXTS["tea"], limit=10)}
        assert "memo" not in found
        if "tea" in found:
            assert (found["tea"].payload["rank"], found["tea"].version) == (77, 2)
        first = (await filled.search(_TEXTS["train"]))[0].fact
        first.payload["text"] = "changed by the caller"
        assert (await filled.search(_TEXTS["train"]))[0].fact.payload["text"] == _TEXTS["train"]

    async def test_odd_queries(self, filled: Face) -> None:
        for query in ("", " ", "\0", "'; DROP TABLE x; --", "x" * 10_000, "漢字", "\x01"):
            assert len(await filled.search(query, limit=10)) == 6
        for wrong in (None, 5, ["green"]):
            with pytest.raises(ValueError, match="text"):
                await filled.search(wrong)
        for limit in (-1, 1.0, "5"):
            with pytest.raises(ValueError, match="limit"):
                await filled.search("tea", limit=limit)
        with pytest.raises(ValueError, match=r"\$near"):
            await filled.search("tea", filters={"rank": {"$near": 5}})

    async def test_several_indexes_are_merged(self, stores: Stores, make_hook: HookFactory) -> None:
        notes, memos = make_hook.new({"note"}), make_hook.new({"memo"})
        store = stores.open([notes, memos])
        for id_, text in _TEXTS.items():
            await store.commit(Fact("note", {"text": text}, id=f"note {id_}"))
            await store.commit(Fact("memo", {"text": text}, id=f"memo {id_}"))
        found = [one.fact.id for one in await store.search(_TEXTS["train"], limit=4)]
        assert set(found[:2]) == {"note train", "memo train"}
        assert len(set(found)) == 4
        await store.update("note tea", {"label": "x"})
        assert [one.fact.id for one in await store.search("tea", filters={"label": "x"})] == ["note tea"]
        both = stores.open([make_hook.again(notes, {"note"}), make_hook.new()], storage=store.storage)
        await both.reindex()
        ids = [one.fact.id for one in await both.search(_TEXTS["train"], limit=10)]
        assert len(set(ids)) == len(ids) == 10
        assert [one.fact.id for one in await both.search(_TEXTS["train"], typename="memo", limit=1)] == ["memo train"]


__all__ = ["TestApply", "TestFollowing", "TestMending", "TestSearch"]
