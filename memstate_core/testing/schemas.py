"""Schemas that come, go and change under facts that are there."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from memstate_core import (
    ConflictError,
    Constraint,
    Fact,
    ImmutableError,
    SchemaRegistry,
    StorageError,
    ValidationFailed,
)
from memstate_core.errors import NotFoundError
from memstate_core.testing.face import Face, calls, case
from memstate_core.testing.factories import Stores, StoreTests
from memstate_core.testing.models import Note, User


class PersonV1(BaseModel):
    name: str


class PersonV2(BaseModel):
    first: str
    last: str = ""


def split_name(payload: dict[str, Any]) -> dict[str, Any]:
    first, _, last = payload["name"].partition(" ")
    return {"first": first, "last": last}


# Arguments, options, and what the error says.
_REFUSED: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    (("", User), {}, "typename"),
    ((5, User), {}, "typename"),
    (("nul\0", User), {}, "typename"),
    (("user", dict), {}, "Pydantic"),
    (("user", User(name="x")), {}, "Pydantic"),
    (("user", User, "email"), {}, "Constraint"),
    (("user", User), {"index": "email"}, r"index=\['email'\]"),
    (("user", User), {"index": ["nothing"]}, "nothing"),
    (("user", User), {"index": [5]}, "5"),
    (("user", User), {"index": [""]}, "''"),
    (("user", User, Constraint(singleton_key="nothing")), {}, "nothing"),
    (("user", User, Constraint(singleton_key=("email", "no"))), {}, "'no'"),
    (("user", User), {"version": 0}, "version"),
    (("user", User), {"version": "1"}, "version"),
    (("user", User), {"version": True}, "version"),
]


class TestRegistration(StoreTests):
    """What may be registered, and under which names."""

    async def test_what_cannot_be_is_refused(self, stores: Stores) -> None:
        store = stores.open(models=False)
        for arguments, options, says in _REFUSED:
            with case(says), pytest.raises(ValidationFailed, match=says):
                store.store.register_schema(*arguments, **options)
        with pytest.raises(ValidationFailed, match="not registered"):
            await store.commit(Fact("user", {}))

    @pytest.mark.parametrize(
        "options",
        [
            {"scope": "thread"},
            {"singleton_key": 5},
            {"singleton_key": ""},
            {"singleton_key": ()},
            {"singleton_key": [5]},
        ],
        ids=str,
    )
    async def test_a_constraint_says_what_is_wrong_with_it(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationFailed, match="Constraint"):
            Constraint(**options)

    async def test_fields_of_models_within_models(self, store: Face) -> None:
        class City(BaseModel):
            name: str

        class Home(BaseModel):
            model_config = ConfigDict(extra="allow")
            city: City
            near: City | None = None
            tags: list[str] = []
            more: dict[str, Any] = {}

        register = store.store.register_schema
        register("home", Home, Constraint(singleton_key="city.name"), index=["near.name", "tags.0", "more.x", "extra"])
        with pytest.raises(ValidationFailed, match=r"City has no field 'nam'"):
            register("home", Home, index=["city.nam"])
        await store.commit(
            Fact(
                "home",
                {"city": {"name": "a"}, "near": {"name": "b"}, "tags": ["t"], "more": {"x": 1}, "extra": 2},
                id="h",
            )
        )
        for filters in ({"near.name": "b"}, {"tags.0": "t"}, {"more.x": 1}, {"extra": 2}, {"city.name": "a"}):
            assert await store.ids("home", filters) == ["h"], filters
        assert await store.commit(Fact("home", {"city": {"name": "a"}})) == "h"
        assert await store.ids("home", {"tags.0": "t"}) == []

    async def test_a_field_named_payload(self, stores: Stores) -> None:
        class Parcel(BaseModel):
            payload: dict[str, Any]

        store = stores.open(models=False)
        for index in ([], ["payload.payload.x"]):
            store.store.register_schema("parcel", Parcel, index=index)
            await store.commit(Fact("parcel", {"payload": {"x": 1}}, id="p"))
            assert await store.ids("parcel", {"payload.payload.x": 1}) == ["p"]
            assert await store.ids("parcel", {"payload.x": 1}) == []
        store.store.register_schema("parcel", Parcel, Constraint(singleton_key="payload.payload.x"))
        assert await store.commit(Fact("parcel", {"payload": {"x": 1}})) == "p"
        store.store.register_schema("parcel", Parcel, Constraint(singleton_key="payload"))
        assert await store.commit(Fact("parcel", {"payload": {"x": 1.0}})) == "p"

    async def test_a_registry_may_be_shared(self, stores: Stores) -> None:
        registry = SchemaRegistry()
        registry.register("user", User, Constraint(singleton_key="email"))
        assert "user" in registry
        storage = stores.storages.new()
        one, two = (stores.open(storage=storage, models=False, registry=registry) for _ in range(2))
        id_ = await one.commit_model(User(email="a"))
        assert await two.commit_model(User(email="a", name="b")) == id_

    async def test_no_model_is_taken_for_another(self, store: Face) -> None:
        store.store.register_schema("user", Note)  # replaces the model
        with pytest.raises(ValidationFailed, match="User is not registered"):
            await store.commit_model(User())
        with pytest.raises(ValidationFailed, match="'note' and 'memo' and 'user'"):
            await store.commit_model(Note())
        await store.commit_model(Note(text="x"), "n", typename="user")
        assert await store.get_model("n") == Note(text="x")


class TestRegisteredAgain(StoreTests):
    """The same name again: a notebook's cell is run again, a program got a new version."""

    async def test_the_same_again_changes_nothing(self, stores: Stores, store: Face) -> None:
        await store.commit_model(User(email="a"), "u")
        store.store.register_schema("user", User, Constraint(singleton_key="email"), index=["role"])
        assert await store.commit_model(User(email="a", name="x")) == "u"
        other = stores.open(storage=store.storage)
        assert await other.ids("user", {"role": "user"}) == ["u"]
        await other.commit_model(User(email="b"))
        assert await store.count("user", {"role": "user"}) == 2

    async def test_a_constraint_takes_hold_of_facts_that_are_there(self, stores: Stores) -> None:
        store = stores.open(models=False)
        store.store.register_schema("user", User)
        await store.commit_model(User(email="a"), "1", session_id="s")
        await store.commit_model(User(email="b"), "2", session_id="s")
        await store.commit_model(User(email=None), "3")
        store.store.register_schema("user", User, Constraint(singleton_key="email"), index=["name"])
        assert await store.commit_model(User(email="a", name="A")) == "1"
        assert await store.ids("user", {"name": "A"}) == ["1"]
        assert await store.ids("user", {"email": "b"}) == ["2"]
        await store.rollback(None)
        await store.rollback("s", 1)
        assert await store.commit_model(User(email="b")) != "2"
        with pytest.raises(ConflictError):
            await store.redo("s")

    async def test_a_constraint_that_does_not_hold_is_refused_and_says_how_to_go_on(self, stores: Stores) -> None:
        store = stores.open(models=False)
        store.store.register_schema("user", User)
        await store.commit_model(User(email="a"), "1")
        await store.commit_model(User(email="a"), "2")
        store.store.register_schema("user", User, Constraint(singleton_key="email"))
        for _ in range(2):
            with pytest.raises(ConflictError, match="register it without") as caught:
                await store.commit_model(User(email="b"))
            assert caught.value.fact_id == "1"
        store.store.register_schema("user", User)
        await store.delete("2")
        store.store.register_schema("user", User, Constraint(singleton_key="email"))
        assert await store.commit_model(User(email="a", name="x")) == "1"

    async def test_a_constraint_taken_away_holds_no_more(self, store: Face) -> None:
        await store.commit_model(User(email="a"), "1")
        store.store.register_schema("user", User)
        assert await store.commit_model(User(email="a"), "2") == "2"
        await store.commit(Fact("law", {"number": 1}, id="law"))
        store.store.register_schema("law", User)
        await store.update("law", {"name": "changed"})
        assert (await store.get("law"))["version"] == 2

    async def test_a_scope_may_change(self, store: Face) -> None:
        await store.commit_model(User(email="a"), "1", session_id="s")
        store.store.register_schema("user", User, Constraint(singleton_key="email", scope="session"))
        assert await store.commit_model(User(email="a"), "2", session_id="t") == "2"
        assert await store.commit_model(User(email="a"), session_id="s") == "1"
        store.store.register_schema("user", User, Constraint(singleton_key="email"))
        with pytest.raises(ConflictError):
            await store.count()

    async def test_immutability_takes_hold_at_once_everywhere(self, stores: Stores, store: Face) -> None:
        await store.commit_model(User(email="a"), "u")
        other = stores.open(storage=store.storage)
        await other.update("u", {"name": "x"})
        store.store.register_schema("user", User, Constraint(immutable=True))
        assert await store.count() == 1  # any call
        for one in (store, other):
            with pytest.raises(ImmutableError):
                await one.update("u", {"name": "y"})

    async def test_an_older_process_serves_the_indexes_of_a_newer_one(self, stores: Stores) -> None:
        storage = stores.storages.new()
        old, new = (stores.open(storage=storage, models=False) for _ in range(2))
        old.store.register_schema("user", User)
        await old.commit_model(User(name="a"), "1")
        new.store.register_schema("user", User, Constraint(singleton_key="email"), index=["name"])
        assert await new.ids("user", {"name": "a"}) == ["1"]
        await old.commit_model(User(name="b", email="x"), "2")
        await old.update("1", {"name": "c"})
        assert await new.ids("user", {"name": "b"}) == ["2"]
        assert await new.ids("user", {"name": "c"}) == ["1"]
        assert await new.ids("user", {"name": "a"}) == []
        assert await old.ids("user", {"name": "c"}) == ["1"]
        assert await old.commit_model(User(email="x")) == "2"
        async with old.transaction() as tx:
            assert await tx.commit_model(User(email="x", name="d")) == "2"
        assert await new.ids("user", {"name": "d"}) == ["2"]

    async def test_indexes_once_declared_stay_filled(self, stores: Stores, store: Face) -> None:
        await store.commit(Fact("note", {"rank": 1}, id="1"))
        late = stores.open(storage=store.storage, models=False)
        late.store.register_schema("note", Note)  # without an index
        await late.commit_model(Note(rank=1), "2")
        assert await store.ids("note", {"rank": 1}) == ["1", "2"]
        assert await late.ids("note", {"rank": 1}) == ["1", "2"]


class TestMigrations(StoreTests):
    """Payloads of an older form."""

    async def test_without_a_migration_old_facts_load_and_say_what_no_longer_fits(self, store: Face) -> None:
        store.store.register_schema("person", PersonV1)
        await store.commit(Fact("person", {"name": "Ada Lovelace"}, id="p"))
        store.store.register_schema("person", PersonV2, Constraint(singleton_key="first"))
        assert (await store.get("p"))["payload"] == {"name": "Ada Lovelace"}
        assert await store.ids("person", {"name": {"$contains": "Ada"}}) == ["p"]
        for call in calls(lambda: store.get_model("p"), lambda: store.update("p", {"last": "L"})):
            with pytest.raises(ValidationFailed, match=r"'p'.*first") as caught:
                await call()
            assert (caught.value.typename, caught.value.path) == ("person", "first")
        await store.update("p", {"first": "Ada"})
        assert (await store.get_model("p")) == PersonV2(first="Ada")

    @pytest.mark.parametrize("wants_version", [False, True])
    async def test_old_payloads_are_upgraded_when_they_are_read(self, store: Face, wants_version: bool) -> None:
        store.store.register_schema("person", PersonV1)
        await store.commit(Fact("person", {"name": "Ada Lovelace"}, id="p", session_id="s"))
        seen: list[int] = []

        def migrate(payload: dict[str, Any], version: int) -> dict[str, Any]:
            seen.append(version)
            return split_name(payload)

        store.store.register_schema(
            "person",
            PersonV2,
            Constraint(singleton_key="first"),
            index=["last"],
            migrate=migrate if wants_version else split_name,
            version=2,
        )
        upgraded = {"first": "Ada", "last": "Lovelace"}
        assert (await store.get("p"))["payload"] == upgraded
        assert (await store.get("p"))["version"] == 1
        assert await store.get_model("p") == PersonV2(**upgraded)
        assert [f["payload"] for f in await store.query("person", {"last": "Lovelace"})] == [upgraded]
        assert (await store.history())[0].changes[0].after.payload == upgraded
        assert await store.commit_model(PersonV2(first="Ada", last="L")) == "p"
        assert await store.ids("person", {"last": "Lovelace"}) == []
        await store.rollback(None)
        assert await store.ids("person", {"last": "Lovelace"}) == ["p"]
        await store.update("p", {"last": "Byron"})
        assert (await store.get("p"))["payload"] == {"first": "Ada", "last": "Byron"}
        assert set(seen) == ({1} if wants_version else set())

    async def test_migrate_facts_rewrites_them(self, stores: Stores, store: Face) -> None:
        store.store.register_schema("person", PersonV1)
        for number in range(3):
            await store.commit(Fact("person", {"name": f"Ada {number}"}, id=str(number), session_id="s", source="x"))
        store.store.register_schema("person", PersonV2, migrate=split_name, version=2)
        await store.commit(Fact("person", {"first": "new"}, id="new"))
        await store.commit(Fact("note", {}, id="n"))
        assert await store.migrate_facts(actor="bot", reason="v2") == 3
        newest = (await store.history())[0]
        assert (newest.operation, newest.session_id, newest.actor, len(newest.changes)) == ("MIGRATE", None, "bot", 3)
        other = stores.open(storage=store.storage, models=False, allow_unregistered=True)
        assert [f["payload"] for f in await other.query("person")] == [
            *({"first": "Ada", "last": str(number)} for number in range(3)),
            {"first": "new", "last": ""},
        ]
        first = await other.get("0")
        assert (first["version"], first["session_id"], first["source"]) == (2, "s", "x")
        assert await store.migrate_facts() == 0
        assert await store.migrate_facts("person") == 0
        with pytest.raises(NotFoundError, match="nothing"):
            await store.migrate_facts("nothing")
        await store.rollback(None)
        assert (await store.get("0"))["payload"] == {"first": "Ada", "last": "0"}
        assert (await other.get("0"))["payload"] == {"name": "Ada 0"}
        assert await store.migrate_facts("person") == 3

    async def test_immutable_facts_can_be_migrated(self, store: Face) -> None:
        store.store.register_schema("person", PersonV1, Constraint(immutable=True))
        await store.commit(Fact("person", {"name": "Ada L"}, id="p"))
        store.store.register_schema("person", PersonV2, Constraint(immutable=True), migrate=split_name, version=2)
        assert await store.migrate_facts("person") == 1
        with pytest.raises(ImmutableError):
            await store.update("p", {"last": "x"})

    async def test_a_migration_that_fails_names_the_fact(self, store: Face) -> None:
        store.store.register_schema("person", PersonV1)
        await store.commit(Fact("person", {"name": "Ada"}, id="p"))
        await store.commit(Fact("note", {}, id="n"))
        failing: list[tuple[Any, str]] = [
            (lambda payload: payload["missing"], "KeyError"),
            (lambda payload: "text", "str"),
            (lambda payload: {"last": 5}, "first"),
        ]
        for migrate, says in failing:
            store.store.register_schema("person", PersonV2, migrate=migrate, version=2)
            with pytest.raises(ValidationFailed, match=rf"'p'.*{says}|{says}.*'p'"):
                await store.get_model("p")
            with pytest.raises(ValidationFailed):
                await store.migrate_facts("person")
        assert await store.ids("note") == ["n"]
        store.store.register_schema("person", PersonV2, migrate=split_name, version=3)
        assert await store.migrate_facts() == 1
        assert (await store.get_model("p")).first == "Ada"

    async def test_a_migration_that_makes_two_facts_one_is_a_conflict(self, store: Face) -> None:
        store.store.register_schema("person", PersonV1, Constraint(singleton_key="name"))
        for name in ("Ada A", "Ada B"):
            await store.commit(Fact("person", {"name": name}, id=name))
        store.store.register_schema(
            "person", PersonV2, Constraint(singleton_key="first"), migrate=split_name, version=2
        )
        with pytest.raises(ConflictError) as caught:
            await store.count()
        assert caught.value.fact_id == "Ada A"
        store.store.register_schema("person", PersonV2, migrate=split_name, version=2)
        assert await store.migrate_facts() == 2

    async def test_functions_of_the_users_must_not_use_the_store(self, store: Face) -> None:
        if store.is_async:
            pytest.skip("a plain function cannot await the store")
        await store.commit(Fact("note", {}, id="n", session_id="s"))

        with pytest.raises(StorageError, match="within"):
            await store.promote_session("s", lambda _: store.store.commit(Fact("note", {}, id="m")))
        assert await store.ids() == ["n"]
        assert await store.journal() == ["COMMIT"]


__all__ = ["TestMigrations", "TestRegisteredAgain", "TestRegistration"]
