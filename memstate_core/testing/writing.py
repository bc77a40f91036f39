"""Writing: commit, update, delete, constraints, working memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import BaseModel

from memstate_core import (
    ConflictError,
    Constraint,
    Fact,
    ImmutableError,
    NotFoundError,
    TransactionContext,
    ValidationFailed,
)
from memstate_core.testing.face import Call, Face, calls, case
from memstate_core.testing.factories import Clock, Stores, StoreTests
from memstate_core.testing.models import Draft, Law, Note, Title, User

_NOT_VALID: dict[str, Any] = {
    "a field of another type": Fact("law", {"number": "seven"}),
    "a field missing": Fact("law", {}),
    "a payload that is a list": Fact("note", ["no", "dict"]),  # type: ignore[arg-type]
    "an empty id": Fact("note", {}, id=""),
    "NUL in an id": Fact("note", {}, id="nul\0"),
    "a lone surrogate in an id": Fact("note", {}, id="lone \ud800"),
    "a long id": Fact("note", {}, id="x" * 513),
    "a number as id": Fact("note", {}, id=7),  # type: ignore[arg-type]
    "an empty type": Fact("", {}),
    "NUL in a source": Fact("note", {}, source="nul\0"),
    "a number as source": Fact("note", {}, source=7),  # type: ignore[arg-type]
    "an empty session": Fact("note", {}, session_id=""),
    "a lone surrogate in a session": Fact("note", {}, session_id="lone \udfff"),
    "ephemeral without a session": Fact("note", {}, ephemeral=True),
    "no fact": "no fact",
    "a model": Note(),
}


class TestCommit(StoreTests):
    """A fact is what was validated, at version 1, and the store's own copy."""

    async def test_a_fact_comes_back_as_it_was_committed(self, stores: Stores, clock: Clock) -> None:
        store = stores.open(clock=clock)
        fact = Fact("note", {"text": "tea"}, id="n", source="chat", session_id="s")
        assert await store.commit(fact) == "n"
        assert await store.get("n") == {
            "id": "n",
            "type": "note",
            "payload": {"text": "tea", "rank": None, "label": None, "data": None},
            "source": "chat",
            "session_id": "s",
            "ts": clock.now.isoformat(timespec="microseconds"),
            "version": 1,
            "ephemeral": False,
        }

    async def test_the_id_is_made_when_none_is_given(self, store: Face) -> None:
        one, two = await store.commit(Fact("note", {})), await store.commit(Fact("note", {}))
        assert one != two
        assert await store.ids() == [one, two]

    async def test_a_known_id_is_an_update_that_replaces_the_payload(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "tea", "rank": 1}, id="n", source="a", session_id="s"))
        await store.commit(Fact("note", {"text": "milk"}, id="n"))
        fact = await store.get("n")
        assert (fact["version"], fact["session_id"], fact["source"]) == (2, None, None)
        assert fact["payload"] == {"text": "milk", "rank": None, "label": None, "data": None}
        assert await store.count() == 1

    async def test_a_fact_keeps_its_type(self, store: Face) -> None:
        await store.commit(Fact("note", {}, id="n"))
        with pytest.raises(ConflictError) as caught:
            await store.commit(Fact("memo", {}, id="n"))
        assert caught.value.fact_id == "n"
        assert await store.journal() == ["COMMIT"]

    async def test_the_session_is_the_argument_then_the_facts_then_the_contexts(self, stores: Stores) -> None:
        store = stores.open(context=lambda: TransactionContext(session_id="context", actor="bot", mark="m1"))
        await store.commit(Fact("note", {}, id="1", session_id="fact"), session_id="argument")
        await store.commit(Fact("note", {}, id="2", session_id="fact"))
        await store.commit(Fact("note", {}, id="3"))
        await store.commit(Fact("note", {}, id="4"), session_id=None)
        await store.commit_model(Draft(), "5")
        assert [fact["session_id"] for fact in await store.query()] == ["argument", "fact", "context", None, "context"]
        newest = (await store.history())[0]
        assert (newest.session_id, newest.actor, newest.mark) == ("context", "bot", "m1")
        await store.update("5", {"text": "x"}, actor="me")
        assert (await store.history(limit=1))[0].actor == "me"
        nobody = stores.open(context=lambda: None)
        await nobody.commit(Fact("note", {}, id="n"))
        (one,) = await nobody.history()
        assert (one.session_id, one.actor, one.mark) == (None, None, None)

    async def test_a_given_time_is_kept_in_utc_and_a_naive_one_refused(self, store: Face) -> None:
        moment = datetime(2020, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
        await store.commit(Fact("note", {}, id="n", ts=moment))
        kept = await store.get("n")
        assert kept["ts"] == "2020-05-01T10:00:00.000000+00:00"
        await store.commit(Fact(**kept))  # what get() returns can be committed
        assert (await store.get("n"))["ts"] == kept["ts"]
        with pytest.raises(ValidationFailed, match="aware"):
            await store.commit(Fact("note", {}, ts="yesterday"))  # type: ignore[arg-type]
        with pytest.raises(ValidationFailed, match="aware"):
            await store.commit(Fact("note", {}, id="m", ts=moment.replace(tzinfo=None)))
        assert await store.ids() == ["n"]

    async def test_nothing_is_shared_with_the_caller(self, store: Face) -> None:
        inner = {"list": [1]}
        payload: dict[str, Any] = {"data": inner}
        fact = Fact("note", payload, id="n")
        await store.commit(fact)
        inner["list"].append(2)
        payload["text"] = "changed"
        fact.session_id = "changed"
        first = await store.get("n")
        assert (first["payload"]["data"], first["payload"]["text"], first["session_id"]) == ({"list": [1]}, "", None)
        first["payload"]["data"]["list"].append(3)
        (queried,) = await store.query("note")
        assert queried["payload"]["data"] == {"list": [1]}
        queried["payload"]["data"] = None
        (entry,) = await store.history()
        entry.changes[0].after.payload["data"]["list"].append(4)
        assert (await store.get("n"))["payload"]["data"] == {"list": [1]}
        assert (await store.history())[0].changes[0].after.payload["data"] == {"list": [1]}

    async def test_an_unregistered_type_is_refused(self, stores: Stores) -> None:
        store = stores.open(models=False)
        with pytest.raises(ValidationFailed, match="register_schema"):
            await store.commit(Fact("anything", {"a": 1}))
        with pytest.raises(ValidationFailed, match=r"register_schema\('note', Note\)"):
            await store.commit_model(Note())
        assert await store.everything() == {"facts": [], "journal": [], "lines": {}, "claims": []}

    async def test_an_unregistered_type_is_taken_when_that_is_allowed(self, stores: Stores) -> None:
        store = stores.open(models=False, allow_unregistered=True)
        await store.commit(Fact("anything", {"b": [1, {"c": None}], "a": 1.5}, id="x"))
        assert (await store.get("x"))["payload"] == {"b": [1, {"c": None}], "a": 1.5}
        await store.update("x", {"a": "new"})
        assert (await store.get("x"))["payload"]["a"] == "new"
        with pytest.raises(ValidationFailed, match="must be a dict"):
            await store.commit(Fact("anything", ["no", "dict"]))  # type: ignore[arg-type]
        with pytest.raises(NotFoundError, match="not registered"):
            await store.get_model("x")

    async def test_what_is_not_valid_is_refused_and_leaves_no_trace(self, store: Face) -> None:
        await store.commit(Fact("note", {}, id="there"))
        before = await store.everything()
        for wrong, fact in _NOT_VALID.items():
            with case(wrong):
                with pytest.raises(ValidationFailed):
                    await store.commit(fact)
                assert await store.everything() == before

    async def test_identifiers_may_be_any_unicode_up_to_512_characters(self, store: Face) -> None:
        names = [
            "é" * 512,
            "\U0001f9e0",
            "'; DROP TABLE memstate_facts; --",
            "%_*?[a]",
            "a b\tc\n",
            "\x01",
            "{}:$.=",
            "ﬀ",
        ]
        for name in names:
            await store.commit(Fact("note", {"text": name}, id=name, source=name, session_id=name))
        for name in names:
            fact = await store.get(name)
            assert (fact["payload"]["text"], fact["source"], fact["session_id"]) == (name, name, name)
            assert await store.ids(session_id=name) == [name]
            assert len(await store.history(name)) == 1

    async def test_ids_that_look_alike_differ(self, store: Face) -> None:
        names = ["a", "A", "a ", " a", "á", "a\u0301", "ａ"]
        for name in names:
            await store.commit(Fact("note", {"text": name}, id=name, session_id=name))
        assert await store.ids() == names
        assert [await store.ids(session_id=name) for name in names] == [[name] for name in names]


class TestCommitModel(StoreTests):
    """Model instances are validated as plain data is."""

    async def test_an_instance_comes_back_as_an_instance(self, store: Face) -> None:
        id_ = await store.commit_model(User(email="a@b", name="A"), source="chat", session_id="s")
        assert await store.get_model(id_) == User(email="a@b", name="A", role="user")
        fact = await store.get(id_)
        assert (fact["type"], fact["source"], fact["session_id"]) == ("user", "chat", "s")

    async def test_a_model_under_two_names_needs_typename(self, store: Face) -> None:
        store.store.register_schema("remark", User)
        with pytest.raises(ValidationFailed, match="'user' and 'remark'"):
            await store.commit_model(User(name="A"))
        id_ = await store.commit_model(User(name="A"), typename="remark")
        assert (await store.get(id_))["type"] == "remark"
        with pytest.raises(ValidationFailed, match="not registered as 'note'"):
            await store.commit_model(User(name="A"), typename="note")

    async def test_an_instance_changed_since_it_was_made_is_validated_again(self, store: Face) -> None:
        law = Law(number=1)
        law.number = "one"  # type: ignore[assignment]
        with pytest.raises(ValidationFailed) as caught:
            await store.commit_model(law)
        assert (caught.value.typename, caught.value.path) == ("law", "number")
        assert await store.count() == 0

    async def test_only_instances_are_taken(self, store: Face) -> None:
        for wrong in ({"text": "x"}, Note, Fact("note", {})):
            with pytest.raises(ValidationFailed, match="commit_model takes"):
                await store.commit_model(wrong)

    async def test_an_instance_of_a_subclass_needs_its_typename(self, store: Face) -> None:
        class Better(Note):
            stars: int = 5

        with pytest.raises(ValidationFailed, match="Better is not registered"):
            await store.commit_model(Better())
        id_ = await store.commit_model(Better(text="x"), typename="note")
        assert (await store.get(id_))["payload"]["text"] == "x"

    async def test_a_known_id_is_an_update(self, store: Face) -> None:
        await store.commit_model(Law(number=1), "law-1")
        await store.commit_model(Draft(topic="t", text="a"), "d")
        assert await store.commit_model(Draft(topic="t", text="b"), "d") == "d"
        assert (await store.get("d"))["version"] == 2


class TestUpdate(StoreTests):
    """A patch changes the fields that it names."""

    async def test_a_patch_changes_its_fields_only(self, store: Face, stores: Stores) -> None:
        await store.commit(Fact("note", {"text": "a", "rank": 1, "data": {"x": 1, "y": {"z": 2}}}, id="n", source="s1"))
        assert await store.update("n", {"rank": 2}) == "n"
        assert await store.update("n", {"payload": {"label": "L"}}) == "n"
        fact = await store.get("n")
        assert fact["payload"] == {"text": "a", "rank": 2, "label": "L", "data": {"x": 1, "y": {"z": 2}}}
        assert (fact["version"], fact["source"]) == (3, "s1")

    async def test_deep_is_a_json_merge_patch(self, store: Face) -> None:
        await store.commit(Fact("note", {"data": {"x": 1, "y": {"z": 2, "w": 3}, "l": [1, 2]}}, id="n"))
        await store.update("n", {"data": {"y": {"z": None, "v": {"u": 4, "t": None}}, "l": [3]}}, deep=True)
        assert (await store.get("n"))["payload"]["data"] == {"x": 1, "y": {"w": 3, "v": {"u": 4}}, "l": [3]}
        await store.update("n", {"data": {"only": 1}})
        assert (await store.get("n"))["payload"]["data"] == {"only": 1}

    async def test_a_field_named_payload_is_a_field(self, stores: Stores) -> None:
        class Parcel(BaseModel):
            payload: dict[str, int]

        store = stores.open()
        store.store.register_schema("parcel", Parcel)
        await store.commit(Fact("parcel", {"payload": {"a": 1}}, id="p"))
        await store.update("p", {"payload": {"b": 2}})
        assert (await store.get("p"))["payload"] == {"payload": {"b": 2}}

    async def test_the_whole_is_validated(self, store: Face) -> None:
        await store.commit(Fact("user", {"email": "a@b"}, id="u"))
        before = await store.everything()
        with pytest.raises(ValidationFailed, match="'u'") as caught:
            await store.update("u", {"name": 5})
        assert (caught.value.typename, caught.value.path) == ("user", "name")
        assert caught.value.errors[0]["loc"] == ("name",)
        for wrong in (None, [("a", 1)], "text"):
            with pytest.raises(ValidationFailed):
                await store.update("u", wrong)
        assert await store.everything() == before

    async def test_an_unknown_fact_is_not_found(self, store: Face) -> None:
        with pytest.raises(NotFoundError, match="'nobody'"):
            await store.update("nobody", {"text": "x"})
        assert await store.history() == []

    async def test_it_is_recorded_under_the_facts_own_session(self, store: Face) -> None:
        await store.commit(Fact("note", {}, id="n", session_id="s"))
        await store.update("n", {"text": "x"}, actor="bot", reason="because")
        newest, _ = await store.history("s")
        assert (newest.operation, newest.actor, newest.reason) == ("UPDATE", "bot", "because")
        assert await store.history(None) == []


class TestDelete(StoreTests):
    """A deleted fact is gone, and its history is not."""

    async def test_a_deleted_fact_is_gone(self, store: Face) -> None:
        await store.commit(Fact("note", {}, id="n", session_id="s"))
        assert await store.delete("n") == "n"
        assert await store.get("n") is None
        assert await store.query() == []
        assert await store.journal("s") == ["DELETE", "COMMIT"]
        with pytest.raises(NotFoundError):
            await store.delete("n")
        with pytest.raises(NotFoundError):
            await store.get_model("n")

    async def test_the_session_that_records_it_can_be_said(self, store: Face) -> None:
        await store.commit(Fact("note", {}, id="n", session_id="s"))
        await store.commit(Fact("note", {}, id="m", session_id="s"))
        await store.delete(session_id="other", fact_id="n")
        await store.delete("m", None)
        assert (await store.journal("other"), await store.journal(None)) == (["DELETE"], ["DELETE"])
        with pytest.raises(ValidationFailed):
            await store.delete("m", "")

    async def test_its_id_can_be_used_again_with_a_version_it_never_had(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "1"}, id="n"))
        await store.update("n", {"text": "2"})
        await store.delete("n")
        await store.commit(Fact("memo", {"text": "3"}, id="n"))
        fact = await store.get("n")
        assert (fact["version"], fact["type"]) == (3, "memo")


class TestExpectedVersion(StoreTests):
    """Compare and set, on every writing call."""

    @pytest.mark.parametrize("call", ["commit", "commit_model", "update", "delete"])
    async def test_the_version_must_be_the_one_expected(self, store: Face, call: str) -> None:
        async def write(version: int | None) -> None:
            if call == "commit":
                await store.commit(Fact("note", {"text": "x"}, id="n"), expected_version=version)
            elif call == "commit_model":
                await store.commit_model(Note(text="x"), "n", typename="note", expected_version=version)
            elif call == "update":
                await store.update("n", {"text": "x"}, expected_version=version)
            else:
                await store.delete("n", expected_version=version)

        await store.commit(Fact("note", {"text": "1"}, id="n"))
        await store.update("n", {"text": "2"})
        before = await store.everything()
        for wrong in (0, 1, 3, 2**40):
            with pytest.raises(ConflictError) as caught:
                await write(wrong)
            error = caught.value
            assert (error.fact_id, error.expected_version, error.actual_version) == ("n", wrong, 2)
        for senseless in (-1, True, "2", 2.0):
            with pytest.raises(ValueError, match="expected_version"):
                await write(senseless)  # type: ignore[arg-type]
        assert await store.everything() == before
        await write(2)
        assert len(await store.history()) == 3

    async def test_zero_means_that_there_is_no_such_fact(self, store: Face) -> None:
        await store.commit(Fact("note", {}, id="n"), expected_version=0)
        assert (await store.get("n"))["version"] == 1
        with pytest.raises(ConflictError) as caught:
            await store.commit(Fact("note", {}, id="m"), expected_version=1)
        assert (caught.value.expected_version, caught.value.actual_version) == (1, 0)
        await store.delete("n")
        await store.commit(Fact("note", {}, id="n"), expected_version=0)
        assert (await store.get("n"))["version"] == 2

    async def test_a_version_is_never_used_twice(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "1"}, id="n"))
        await store.update("n", {"text": "2"})
        await store.rollback(None)
        assert (await store.get("n"))["version"] == 1
        await store.update("n", {"text": "3"})
        assert (await store.get("n"))["version"] == 3
        with pytest.raises(ConflictError):
            await store.update("n", {"text": "4"}, expected_version=2)

    async def test_of_a_singleton_the_version_is_its_holders(self, store: Face) -> None:
        await store.commit_model(User(email="a@b"), "u")
        with pytest.raises(ConflictError) as caught:
            await store.commit_model(User(email="a@b"), expected_version=0)
        assert (caught.value.fact_id, caught.value.actual_version) == ("u", 1)
        assert await store.commit_model(User(email="a@b", name="new"), expected_version=1) == "u"


class TestSingletons(StoreTests):
    """One fact per value; whoever meets it updates it."""

    async def test_a_commit_that_meets_its_singleton_updates_it(self, store: Face) -> None:
        await store.commit(
            Fact("user", {"email": "a@b", "name": "A", "role": "boss"}, id="u", session_id="s1", source="x")
        )
        assert await store.commit(Fact("user", {"email": "a@b", "name": "B"}, id="other"), session_id="s2") == "u"
        fact = await store.get("u")
        assert fact["payload"] == {"email": "a@b", "name": "B", "role": "user"}
        assert (fact["version"], fact["session_id"], fact["source"]) == (2, "s2", None)
        assert await store.get("other") is None
        assert (await store.journal("s1"), await store.journal("s2")) == (["COMMIT"], ["COMMIT"])
        await store.rollback("s2")
        fact = await store.get("u")
        assert (fact["version"], fact["session_id"], fact["source"], fact["payload"]["name"]) == (1, "s1", "x", "A")

    async def test_a_missing_or_null_value_is_not_constrained(self, store: Face) -> None:
        for _ in range(2):
            await store.commit(Fact("user", {}))
            await store.commit(Fact("user", {"email": None}))
        assert await store.count("user") == 4

    async def test_values_compare_as_json(self, store: Face) -> None:
        different = [1, "1", True, "true", 1.5, "", [], {}, [1], [[1]], {"a": 1}, {"a": 2}, "a", "A", 0, False, "null"]
        for value in different:
            await store.commit(Fact("draft", {"topic": value, "text": "first"}, session_id="s"))
        assert await store.count("draft") == len(different)
        for value in (1.0, [1.0], {"a": 1.0}, 0.0, -0.0):
            await store.commit(Fact("draft", {"topic": value, "text": "second"}, session_id="s"))
        assert await store.count("draft") == len(different)
        assert await store.count("draft", {"text": "second"}) == 4
        await store.commit(Fact("draft", {"topic": {"b": 1, "a": [2, {}]}}, session_id="s"))
        await store.commit(Fact("draft", {"topic": {"a": [2, {}], "b": 1}}, session_id="s"))
        assert await store.count("draft") == len(different) + 1

    async def test_long_values_are_told_apart(self, store: Face) -> None:
        for end in "abc":
            await store.commit(Fact("draft", {"topic": "x" * 5000 + end}, session_id="s"))
            await store.commit(Fact("draft", {"topic": "x" * 5000 + end}, session_id="s"))
        assert await store.count("draft") == 3

    async def test_large_numbers_are_told_apart(self, store: Face) -> None:
        for value in (2**53, 2**53 + 1, 2**64, 2**64 + 1, 10**400, 10**400 + 1):
            await store.commit(Fact("draft", {"topic": value}, session_id="s"))
        assert await store.count("draft") == 6

    async def test_the_scope_session_is_one_per_session(self, store: Face) -> None:
        one = await store.commit_model(Draft(topic="t", text="1"), session_id="s1")
        two = await store.commit_model(Draft(topic="t", text="2"), session_id="s2")
        long_term = await store.commit_model(Draft(topic="t", text="3"))
        assert len({one, two, long_term}) == 3
        assert await store.commit_model(Draft(topic="t", text="4"), session_id="s1") == one
        assert await store.commit_model(Draft(topic="t", text="5")) == long_term
        assert await store.count("draft") == 3

    async def test_keys_may_be_several_and_nested(self, stores: Stores) -> None:
        store = stores.open(models=False)
        store.store.register_schema("note", Note, Constraint(singleton_key=("label", "data.city.name")))
        for label, city in (("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")):
            await store.commit(Fact("note", {"label": label, "data": {"city": {"name": city}}}))
        await store.commit(Fact("note", {"label": "a", "data": {}}))
        await store.commit(Fact("note", {"label": "a", "data": None}))
        assert await store.count() == 5

    async def test_an_update_onto_a_taken_value_is_a_conflict(self, store: Face) -> None:
        await store.commit_model(User(email="a"), "a", session_id="s")
        await store.commit_model(User(email="b"), "b")
        before = await store.everything()
        with pytest.raises(ConflictError) as caught:
            await store.update("b", {"email": "a"})
        assert (caught.value.fact_id, caught.value.session_id) == ("a", "s")
        with pytest.raises(ConflictError):
            await store.commit(Fact("user", {"email": "a"}, id="b"))
        assert await store.everything() == before
        await store.update("a", {"email": "c"})
        await store.update("b", {"email": "a"})
        assert [fact["payload"]["email"] for fact in await store.query()] == ["c", "a"]

    async def test_a_value_is_free_when_its_fact_is_gone(self, store: Face) -> None:
        await store.commit_model(User(email="a"), "1")
        await store.delete("1")
        assert await store.commit_model(User(email="a"), "2") == "2"

    async def test_types_do_not_share_values(self, stores: Stores) -> None:
        store = stores.open(models=False)
        for name in ("left", "right"):
            store.store.register_schema(name, User, Constraint(singleton_key="email"))
            await store.commit(Fact(name, {"email": "a"}, id=name))
        assert await store.ids() == ["left", "right"]


class TestImmutable(StoreTests):
    """Written once; only undoing the writing removes it."""

    async def test_no_call_changes_an_immutable_fact(self, store: Face) -> None:
        await store.commit_model(Law(number=1), "law", session_id="s")
        await store.commit_model(Title(name="t"), "title", session_id="s")
        before = await store.everything()
        changes: list[Call] = [
            lambda: store.commit(Fact("law", {"number": 2}, id="law")),
            lambda: store.commit(Fact("law", {"number": 1}, id="law")),
            lambda: store.commit_model(Law(number=2), "law"),
            lambda: store.update("law", {"number": 2}),
            lambda: store.update("law", {}),
            lambda: store.delete("law"),
            lambda: store.commit_model(Title(name="t", text="new")),
            lambda: store.commit_model(Title(name="t", text="new"), "title"),
            lambda: store.discard_session("s"),
        ]
        for call in changes:
            with pytest.raises(ImmutableError) as caught:
                await call()
            assert caught.value.fact_id in ("law", "title")
        assert await store.everything() == before

    async def test_a_rollback_removes_it(self, store: Face) -> None:
        await store.commit_model(Title(name="t"), "title")
        await store.rollback(None)
        assert await store.get("title") is None
        assert await store.commit_model(Title(name="t", text="again"), "other") == "other"

    async def test_it_holds_for_stores_that_never_registered_the_type(self, stores: Stores, store: Face) -> None:
        await store.commit_model(Law(number=1), "law")
        other = stores.open(storage=store.storage, models=False, allow_unregistered=True)
        for call in calls(
            lambda: other.update("law", {"number": 2}),
            lambda: other.delete("law"),
            lambda: other.commit(Fact("law", {"number": 2}, id="law")),
        ):
            with pytest.raises(ImmutableError):
                await call()


class TestSessions(StoreTests):
    """Working memory, promoted or discarded."""

    async def test_promoted_facts_become_long_term(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "keep"}, id="1", session_id="s", source="x"))
        await store.commit(Fact("note", {"text": "work"}, id="2", session_id="s"), ephemeral=True)
        await store.commit(Fact("note", {"text": "other"}, id="3", session_id="t"))
        assert await store.promote_session("s", actor="bot", reason="good") == ["1"]
        fact = await store.get("1")
        assert (fact["session_id"], fact["version"], fact["source"]) == (None, 2, "x")
        assert [(f["id"], f["session_id"]) for f in await store.query()] == [("1", None), ("2", "s"), ("3", "t")]
        newest = (await store.history("s"))[0]
        assert (newest.operation, newest.actor, newest.reason, len(newest.changes)) == ("PROMOTE", "bot", "good", 1)
        assert await store.promote_session("s") == []
        assert len(await store.history("s")) == 3
        await store.rollback("s")
        assert (await store.get("1"))["session_id"] == "s"

    async def test_a_selector_chooses_also_the_ephemeral(self, store: Face) -> None:
        for number in range(4):
            await store.commit(Fact("note", {"rank": number}, id=str(number), session_id="s", ephemeral=number > 1))
        assert await store.promote_session("s", {"rank": {"$gte": 2}}) == ["2", "3"]
        assert [fact["ephemeral"] for fact in await store.query()] == [False] * 4
        assert await store.promote_session("s", lambda fact: fact["id"] == "0") == ["0"]
        assert await store.ids(session_id="s") == ["1"]
        with pytest.raises(ZeroDivisionError):
            await store.promote_session("s", lambda fact: 1 / 0)
        with pytest.raises(ValueError, match=r"\$near"):
            await store.promote_session("s", {"rank": {"$near": 2}})
        assert await store.ids(session_id="s") == ["1"]

    async def test_promoting_onto_a_taken_value_is_a_conflict(self, store: Face) -> None:
        await store.commit_model(Draft(topic="a"), "old")
        await store.commit_model(Draft(topic="b"), "1", session_id="s")
        await store.commit_model(Draft(topic="a"), "2", session_id="s")
        before = await store.everything()
        with pytest.raises(ConflictError):
            await store.promote_session("s")
        assert await store.everything() == before
        assert await store.promote_session("s", {"topic": "b"}) == ["1"]
        assert await store.commit_model(Draft(topic="b", text="new")) == "1"
        assert await store.commit_model(Draft(topic="b"), session_id="s") not in ("1", "2", "old")

    async def test_a_store_wide_singleton_keeps_its_value_when_promoted(self, store: Face) -> None:
        await store.commit_model(User(email="a"), "u", session_id="s")
        await store.promote_session("s")
        assert await store.commit_model(User(email="a")) == "u"

    async def test_a_discarded_session_is_gone_in_one_transaction(self, store: Face) -> None:
        for number in range(5):
            await store.commit(Fact("note", {}, id=str(number), session_id="s", ephemeral=number % 2 == 0))
        await store.commit(Fact("note", {}, id="other"))
        assert await store.discard_session("s", actor="bot", reason="over") == 5
        assert await store.ids() == ["other"]
        newest = (await store.history("s"))[0]
        assert (newest.operation, newest.actor, len(newest.changes)) == ("DISCARD_SESSION", "bot", 5)
        assert await store.discard_session("s") == 0
        assert len(await store.history("s")) == 6
        await store.rollback("s")
        assert await store.ids(session_id="s") == ["0", "1", "2", "3", "4"]

    @pytest.mark.parametrize("call", ["promote_session", "discard_session"])
    async def test_they_need_a_session(self, store: Face, call: str) -> None:
        await store.commit(Fact("note", {}, id="long-term"))
        for wrong in (None, "", 5):
            with pytest.raises(ValidationFailed):
                await getattr(store, call)(wrong)
        assert await store.ids() == ["long-term"]

    async def test_a_thousand_facts_are_promoted_and_discarded_at_once(self, store: Face) -> None:
        async with store.transaction(session_id="s") as tx:
            for number in range(1000):
                await tx.commit(Fact("note", {"rank": number}, id=f"{number:04}"))
        assert await store.promote_session("s", {"rank": {"$lt": 600}}) == [f"{number:04}" for number in range(600)]
        assert await store.discard_session("s") == 400
        assert await store.count() == 600
        await store.rollback("s", 3)
        assert await store.count() == 0
        assert datetime.now(UTC) > (await store.history("s"))[0].ts


__all__ = [
    "TestCommit",
    "TestCommitModel",
    "TestDelete",
    "TestExpectedVersion",
    "TestImmutable",
    "TestSessions",
    "TestSingletons",
    "TestUpdate",
]
