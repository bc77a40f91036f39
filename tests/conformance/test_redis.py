"""What only Redis's storages have: clients, keys, scripts, replies that are lost, and servers of several makes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis as driver
import redis.asyncio as async_driver
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from redis.backoff import NoBackoff
from redis.retry import Retry

from memstate import (
    AsyncMemoryStore,
    AsyncRedisStorage,
    ClosedError,
    ConflictError,
    Constraint,
    Fact,
    MemoryStore,
    RedisStorage,
    StorageError,
    TransientError,
    UnavailableError,
    ValidationFailed,
)
from memstate_core._bridge import run
from memstate_core.facts import ChangedVersions
from memstate_core.protocols import Batch, Claim, ClaimsLost, Deferred, Lane, RecordWrite, Selection, StorageTransaction
from memstate_core.storages._redis import port as redis_port
from memstate_core.storages._redis.keys import Keys, number_key
from memstate_core.storages._redis.port import packed
from memstate_core.testing.storage_protocol import entry
from tests.forking import ForkServer
from tests.servers import RedisServer, proxy, redis_binaries, redis_server
from tests.servers.processes import Port

BINARIES = redis_binaries()


class Setting(BaseModel):
    name: str
    value: int = 0


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def client(redis: Any) -> Iterator[driver.Redis]:
    with driver.Redis.from_url(redis.url) as client:
        yield client


@pytest.fixture(scope="module")
def own_server() -> Iterator[RedisServer]:
    """One that tests may count the commands of, and turn off."""
    with redis_server(settings=["appendonly=yes", "appendfsync=always"]) as server:
        yield server


@contextlib.contextmanager
def opened(server: Any, **options: Any) -> Iterator[MemoryStore]:
    with RedisStorage(server, **{"prefix": uuid.uuid4().hex, **options}) as storage:
        yield MemoryStore(storage, allow_unregistered=True)


def everyday(store: MemoryStore) -> None:
    """A little of everything."""
    store.register_schema("setting", Setting, Constraint(singleton_key="name"), index=["value"])
    for value in range(3):
        store.commit_model(Setting(name="é", value=value), session_id="s")
    assert [fact["payload"]["value"] for fact in store.query("setting", {"value": {"$gt": 1}})] == [2]
    store.put_record("c", "k\u00e9", b"\xff\x00\r\n")
    assert store.scan_records("c") == [("k\u00e9", b"\xff\x00\r\n")]
    assert store.get_record("c", "k\u00e9") == b"\xff\x00\r\n"
    store.commit(Fact("note", {"text": "\0 \U0001f600 é"}, id="n", session_id="s"))
    assert store.get("n")["payload"] == {"text": "\0 \U0001f600 é"}  # type: ignore[index]
    assert store.query("setting", limit=2**62, offset=2**62) == []
    store.rollback("s", steps=2)
    assert [fact["payload"]["value"] for fact in store.query("setting")] == [1]
    assert [one.operation for one in store.history("s")] == ["ROLLBACK", *["COMMIT"] * 4]


class TestOpening:
    @pytest.mark.parametrize("kind", ["url", "socket", "client", "decoding", "latin-1", "RESP3", "one connection"])
    def test_servers_and_clients(self, own_server: RedisServer, kind: str) -> None:
        url = own_server.url
        options: dict[str, dict[str, Any]] = {
            "client": {},
            "decoding": {"decode_responses": True},
            "latin-1": {"decode_responses": True, "encoding": "latin-1"},
            "RESP3": {"protocol": 3, "decode_responses": True},
            "one connection": {"single_connection_client": True},
        }
        given: Any = {"url": url, "socket": own_server.socket_url}.get(kind) or driver.Redis.from_url(
            url, **options[kind]
        )
        with opened(given) as store:
            everyday(store)
        with pytest.raises(ClosedError):
            store.count()
        if not isinstance(given, str):
            assert given.ping()  # what was given stays open
            given.close()

    @pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}], ids=str)
    async def test_async_clients(self, redis: Any, prefix: str, options: dict[str, Any]) -> None:
        client = async_driver.Redis.from_url(redis.url, **options)
        async with AsyncRedisStorage(client, prefix=prefix) as storage:
            store = AsyncMemoryStore(storage, allow_unregistered=True)
            await store.commit(Fact("note", {"a": "é"}, id="n"))
            assert (await store.query("note"))[0]["payload"] == {"a": "é"}
        assert await client.ping()
        await client.aclose()

    @pytest.mark.parametrize("kind", [RedisStorage, AsyncRedisStorage])
    def test_senseless_arguments(self, kind: Any) -> None:
        for server in (None, 5, b"bytes", "", "localhost", "http://localhost"):
            with pytest.raises(ValidationFailed, match="URL"):
                kind(server)
        other = async_driver.Redis() if kind is RedisStorage else driver.Redis()
        with pytest.raises(ValidationFailed, match=r"redis\.Redis|redis\.asyncio\.Redis"):
            kind(other)
        for prefix in ("", None, 5, "a\0"):
            with pytest.raises(ValidationFailed, match="prefix"):
                kind("redis://localhost", prefix=prefix)

    def test_a_server_that_is_not_there(self) -> None:
        with opened("redis://user:secret@127.0.0.1:1/0") as store:
            for call in (store.count, lambda: store.commit(Fact("note", {}))):
                with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1/0") as caught:
                    call()
                assert isinstance(caught.value, TransientError)
                assert "secret" not in str(caught.value)

    def test_one_storage_in_two_event_loops(self, redis: Any, prefix: str) -> None:
        storage = AsyncRedisStorage(redis.url, prefix=prefix)
        store = AsyncMemoryStore(storage, allow_unregistered=True)

        async def use(close: bool) -> int:
            await store.commit(Fact("note", {}))
            count = await store.count()
            await storage._port.close()  # type: ignore[union-attr]
            return count

        assert [asyncio.run(use(False)), asyncio.run(use(True))] == [1, 2]

    def test_a_policy_that_deletes_facts_is_refused(self) -> None:
        with redis_server(settings=["maxmemory=100mb", "maxmemory-policy=allkeys-lru"]) as server:
            with opened(server.url) as store, pytest.raises(StorageError, match="noeviction"):
                store.count()
            with driver.Redis.from_url(server.url) as client:
                client.config_set("maxmemory-policy", "noeviction")
            with opened(server.url) as store:
                everyday(store)

    def test_a_user_that_may_not_ask_for_the_policy(self, own_server: RedisServer, prefix: str) -> None:
        with driver.Redis.from_url(own_server.url) as admin:
            admin.execute_command("ACL", "SETUSER", "narrow", "on", ">pw", f"~{prefix}:*", "+@all", "-info", "-config")
        with opened(f"redis://narrow:pw@127.0.0.1:{own_server.port}/0", prefix=prefix) as store:
            everyday(store)
        elsewhere = opened(f"redis://narrow:pw@127.0.0.1:{own_server.port}/0")
        with elsewhere as store, pytest.raises(StorageError, match="refused the client"):
            store.commit(Fact("note", {}))
        stranger = opened(f"redis://narrow:wrong@127.0.0.1:{own_server.port}/0")
        with stranger as store, pytest.raises(StorageError, match="refused the client"):
            store.count()

    @pytest.mark.parametrize("name", BINARIES)
    def test_every_make(self, name: str) -> None:
        with redis_server(binary=BINARIES[name]) as server, opened(server.url) as store:
            everyday(store)


class TestKeys:
    def test_prefixes_share_nothing(self, redis: Any, client: driver.Redis) -> None:
        base = uuid.uuid4().hex
        names = [f"{base}{end}" for end in ("", "{", "}", "{a}", ":", ":{", "*", "%", "é", " ", "'")]
        for name in names:
            with opened(redis.url, prefix=name) as store:
                store.commit(Fact("note", {"name": name}))
        for name in names:
            with opened(redis.url, prefix=name) as store:
                assert [fact["payload"]["name"] for fact in store.query()] == [name]
        for prefix, namespace in (
            ("a", "b:c"),
            ("a:b", "c"),
            ("a", "{b"),
            ("a{", "b"),
            ("a", ""),
            ("a", "%"),
            ("a", "25"),
        ):
            keys = Keys(prefix, namespace)
            # What the cluster hashes is between the first brace and the next one after it, and must not be empty.
            assert keys.base.count("{") == keys.base.count("}") == 1
            assert "{}" not in keys.base
        pairs = [("a", "b:c"), ("a:b", "c"), ("a", "{b"), ("a{", "b"), ("a", ""), ("a", "%"), ("a", "%25"), ("a", ":")]
        assert len({Keys(*pair).base for pair in pairs}) == len(pairs)

    @given(st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)), min_size=2))
    def test_numbers_order_as_numbers(self, numbers: list[int | float]) -> None:
        for left, right in itertools.pairwise(numbers):
            assert (number_key(left) < number_key(right)) == (left < right)
            assert (number_key(left) == number_key(right)) == (left == right)

    def test_numbers_around_the_floats(self) -> None:
        near = [n + d for n in (2**53, 2**62, -(2**53), -(2**62), 0) for d in (-1025, -1, 0, 1, 2, 1023, 1025)]
        numbers: list[int | float] = [*near, *map(float, near), 2**63 - 1, -(2**63), float("inf"), 5e-324, -5e-324]
        for left in numbers:
            for right in numbers:
                assert (number_key(left) < number_key(right)) == (left < right)

    def test_a_key_that_is_not_ours(self, redis: Any, client: driver.Redis, prefix: str) -> None:
        client.set(Keys(prefix, "default").journal, "mine")
        with opened(redis.url, prefix=prefix) as store, pytest.raises(StorageError, match="prefix"):
            store.commit(Fact("note", {}))
        assert client.get(Keys(prefix, "default").journal) == b"mine"

    @pytest.mark.parametrize("name", ["facts", "versions", "places", "index", "journal", "claims", "meta"])
    def test_a_key_of_the_wrong_type_leaves_nothing_half_written(
        self, redis: Any, client: driver.Redis, prefix: str, name: str
    ) -> None:
        keys = Keys(prefix, "default")
        with opened(redis.url, prefix=prefix) as store:
            store.register_schema("setting", Setting, Constraint(singleton_key="name"), index=["value"])
            store.commit_model(Setting(name="a"), session_id="s")
            key: bytes = getattr(keys, name)
            client.delete(key)
            client.set(key, "spoilt")
            before = {one: client.dump(one) for one in keys.data}
            for call in (
                lambda: store.commit_model(Setting(name="b"), session_id="s"),
                lambda: store.commit_model(Setting(name="a", value=2), session_id="s"),
                lambda: store.rollback("s"),
            ):
                with pytest.raises(StorageError):
                    call()
                assert {one: client.dump(one) for one in keys.data} == before

    def test_a_newer_format_is_left_alone(self, redis: Any, client: driver.Redis, prefix: str) -> None:
        with opened(redis.url, prefix=prefix) as old:
            old.commit(Fact("note", {}, id="n", session_id="s"))
            client.hset(Keys(prefix, "default").meta, "format", "999")
            with pytest.raises(StorageError, match="upgrade memstate"):
                old.commit(Fact("note", {}, session_id="s"))
            for call in (MemoryStore.count, lambda store: store.commit(Fact("note", {}))):
                with opened(redis.url, prefix=prefix) as store, pytest.raises(StorageError, match="upgrade memstate"):
                    call(store)
        assert client.hlen(Keys(prefix, "default").journal) == 1

    def test_a_server_that_was_flushed_is_begun_anew(self, prefix: str) -> None:
        with redis_server() as server, opened(server.url, prefix=prefix) as store:
            store.commit(Fact("note", {}, session_id="s"))
            with driver.Redis.from_url(server.url) as client:
                client.flushall()
            store.commit(Fact("note", {}, id="n", session_id="s"))
            assert [fact["id"] for fact in store.query()] == ["n"]
            assert [one.id for one in store.history("s")] == ["tx-1"]


def calls(client: driver.Redis) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): one["calls"] for name, one in client.info("commandstats").items()}


class TestRoundTrips:
    @pytest.fixture
    def counted(self, own_server: RedisServer) -> Iterator[tuple[MemoryStore, Callable[[], dict[str, int]]]]:
        with opened(own_server.url) as store, driver.Redis.from_url(own_server.url) as client:
            store.register_schema("setting", Setting, Constraint(singleton_key="name"), index=["value"])
            for number in range(300):
                store.commit_model(Setting(name=str(number), value=number // 10), session_id=f"s{number % 3}")
            client.config_resetstat()
            yield store, lambda: calls(client)

    def test_of_writes(self, counted: tuple[MemoryStore, Callable[[], dict[str, int]]]) -> None:
        store, count = counted
        before = count().get("evalsha", 0)

        def trips() -> int:
            nonlocal before
            now = count()["evalsha"]
            made, before = now - before, now
            return made

        store.commit(Fact("note", {}, session_id="s0"))
        store.commit(Fact("note", {}, session_id="s0"))
        store.put_record("c", "k", b"")
        # A fact whose id is not new by construction is looked for.
        assert trips() == 5
        store.register_schema("note", Setting)
        store.commit_model(Setting(name="x"), typename="note", session_id="s0")
        trips()
        for _ in range(3):
            store.commit_model(Setting(name="x"), typename="note", session_id="s0")
        assert trips() == 3
        store.commit_model(Setting(name="7"), typename="setting", session_id="s0")
        assert trips() == 2
        store.rollback("s0")
        assert trips() == 2
        store.rollback("s0", steps=50)
        assert trips() == 2
        assert len(store.promote_session("s1")) == 100
        assert trips() <= 3
        assert not count().keys() & {"keys", "scan", "hscan", "sscan", "zscan"}

    def test_queries_on_an_index_read_what_they_find(
        self, counted: tuple[MemoryStore, Callable[[], dict[str, int]]]
    ) -> None:
        store, count = counted
        before = count().get("hget", 0)
        assert len(store.query("setting", {"value": 7})) == 10
        assert len(store.query("setting", {"value": {"$gte": 29}})) == 10
        assert store.count("setting", {"value": 7}) == 10
        assert len(store.query("setting", limit=5, offset=100)) == 5
        assert len(store.history("s0", limit=5)) == 5
        assert count()["hget"] - before < 45


class TestWhatIsSent:
    def test_a_payload_that_stays_is_not_sent_back(
        self, redis: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[bytes] = []

        def recorded(command: tuple[Any, ...]) -> bytes:
            sent.append(packed(command))
            return sent[-1]

        payloads = [{"text": f"{number} é \U0001f600 \0" * 200, "share": 0.1 + 0.2} for number in range(5)]
        with opened(redis.url, prefix=prefix) as store:
            ids = [store.commit(Fact("note", payload, session_id="s")) for payload in payloads]
            kept = [store.get(id_) for id_ in ids]
            store.query(session_id="s")
            monkeypatch.setattr(redis_port, "packed", recorded)
            assert store.promote_session("s") == ids
            assert sum(map(len, sent)) < 2500
            promoted = [store.get(id_) for id_ in ids]
            assert [(fact["payload"], fact["version"], fact["session_id"]) for fact in promoted if fact] == [
                (payload, 2, None) for payload in payloads
            ]
            (entry,) = store.history("s", limit=1)
            assert [change.before.payload for change in entry.changes if change.before] == payloads
            store.rollback("s")
            assert [store.get(id_) for id_ in ids] == kept

    def test_what_facts_share_is_told_from_what_they_do_not(self, redis: Any, prefix: str) -> None:
        class Thing(BaseModel):
            value: Any

        values = [1, True, "1", 1.5, None, 1]
        with opened(redis.url, prefix=prefix) as store:
            for typename in ("thing", "other"):
                store.register_schema(typename, Thing, index=["value"])
            with store.transaction(session_id="s") as tx:
                for value in values:
                    tx.commit(Fact("thing", {"value": value}))
                tx.commit(Fact("other", {"value": 1}))
                tx.commit(Fact("other", {"value": 1}, source="x"))
                tx.commit(Fact("other", {"value": 1}, ephemeral=True))
            for value in values:
                found = [fact["payload"]["value"] for fact in store.query("thing", {"value": value})]
                assert found == [one for one in values if (one, type(one)) == (value, type(value))]
            assert [(fact["source"], fact["ephemeral"]) for fact in store.query("other", {"value": 1})] == [
                (None, False),
                ("x", False),
                (None, True),
            ]

    def test_no_version_is_given_twice(self, redis: Any, prefix: str) -> None:
        """Whether the highest one is current, went away, or another process left it behind."""
        with opened(redis.url, prefix=prefix) as one, opened(redis.url, prefix=prefix) as two:
            for store in (one, two):
                store.register_schema("setting", Setting, Constraint(singleton_key="name"))

            def commit(store: MemoryStore, name: str = "x", session_id: str = "s") -> int:
                fact = store.get(store.commit_model(Setting(name=name), fact_id=name, session_id=session_id))
                assert fact is not None
                return int(fact["version"])

            assert [commit(one), commit(two), commit(one)] == [1, 2, 3]
            two.rollback("s")
            assert commit(one) == 4
            one.rollback("s", steps=2)
            assert commit(two) == 5
            one.delete("x", session_id="s")
            assert commit(two) == 6
            assert commit(two) == 7
            one.rollback("s", steps=2)
            two.redo("s")
            assert commit(one) == 8
            # Only the stamp says that it is not what it was.
            assert [commit(one, "y"), commit(two, "y", "t")] == [1, 2]
            two.rollback("t")
            assert commit(one, "y") == 3


class TestLostReplies:
    @pytest.fixture
    def broken(self, redis: Any) -> Iterator[Any]:
        with proxy(redis.url) as between:
            yield between

    @pytest.mark.parametrize("reply", [True, False], ids=["reply", "request"])
    @pytest.mark.parametrize("options", [{}, {"retry": 3}], ids=["own client", "a client that retries"])
    def test_nothing_is_applied_twice(self, broken: Any, prefix: str, reply: bool, options: dict[str, Any]) -> None:
        given: Any = broken.url
        if options:
            given = driver.Redis.from_url(broken.url, retry=Retry(NoBackoff(), options["retry"]))
        lose = broken.lose_reply if reply else broken.lose_request
        with opened(given, prefix=prefix) as store:
            store.commit(Fact("note", {"n": 0}, id="n", session_id="s"))
            acts: list[Callable[[], Any]] = [
                lambda: store.commit(Fact("note", {}, session_id="s")),
                lambda: store.update("n", {"n": store.get("n")["payload"]["n"] + 1}),  # type: ignore[index]
                lambda: store.rollback("s"),
                lambda: store.redo("s"),
                lambda: store.put_record("c", "k", b"v"),
                lambda: store.savepoint("s", "here"),
            ]
            for number, act in enumerate(acts):
                # The script that writes is the one that is told its attempt's slot.
                fault = lose(containing=b":slot:")
                act()
                fault.wait()
                assert len(store.history()) == 1 + min(number + 1, 4)
            assert store.get("n")["payload"] == {"n": 1}  # type: ignore[index]
            assert store.get("n")["version"] == 2  # type: ignore[index]
        if options:
            given.close()

    def test_a_deferred_change_is_put_in_once(self, broken: Any, prefix: str) -> None:
        with RedisStorage(broken.url, prefix=prefix) as storage:
            lane = Lane("index", 3)
            batch = Batch(entry("s"), deferred=[Deferred(lane, ChangedVersions("f", 0, 1), 1.0)])
            run(storage.open())
            fault = broken.lose_reply(containing=b":slot:")
            run(storage.write("n", lambda tx: tx.write(batch)))
            fault.wait()
            assert len(run(storage.read("n", lambda tx: tx.deliveries(lane, 9)))) == 1

            async def take(owner: str) -> Lane | None:
                return await storage.write("n", lambda tx: tx.take_lane(["index"], owner, 1.0, 2.0))

            fault = broken.lose_reply(containing=b":slot:")
            assert run(take("w")) == lane
            fault.wait()
            assert run(take("x")) is None

    def test_claims_are_lost_once(self, broken: Any, prefix: str) -> None:
        """The retry of a write that dropped its claims gets the first answer, not that they are gone."""
        with RedisStorage(broken.url, prefix=prefix) as storage:
            claims = [Claim(f"fact:{number}", "me", 1.0, ()) for number in range(3)]
            run(storage.write("n", lambda tx: tx.write(Batch(claims=claims))))
            fault = broken.lose_reply(containing=b":slot:")
            batch = Batch(entry("s"), drop_claims_of="me", dropped=3)
            run(storage.write("n", lambda tx: tx.write(batch)))
            fault.wait()
            assert batch.seq == 1
            with pytest.raises(ClaimsLost):
                run(storage.write("n", lambda tx: tx.write(batch)))

    def test_an_outcome_that_stays_unknown_is_said_to_be(self, broken: Any, prefix: str) -> None:
        with opened(broken.url, prefix=prefix, timeout=0.3) as store:
            store.commit(Fact("note", {}, session_id="s"))
            broken.stall()
            with pytest.raises(UnavailableError, match="unknown"):
                store.put_record("c", "k", b"")
            broken.resume()
            broken.down()
            with pytest.raises(UnavailableError):
                store.count()
            broken.up()
            before = len(store.history())
            store.commit(Fact("note", {}, session_id="s"))
            assert len(store.history()) == before + 1

    def test_a_writer_that_wakes_after_its_lease_writes_nothing(self, redis: Any, broken: Any, prefix: str) -> None:
        claim = Claim("fact:n", "sleeper", 1.0, ())
        with RedisStorage(broken.url, prefix=prefix) as sleeper, RedisStorage(redis.url, prefix=prefix) as other:
            run(sleeper.write("n", lambda tx: tx.write(Batch(claims=[claim]))))
            caught: list[BaseException] = []

            def write() -> None:
                try:
                    batch = Batch(entry("s"), drop_claims_of="sleeper", dropped=1)
                    run(sleeper.write("n", lambda tx: tx.write(batch)))
                except BaseException as error:
                    caught.append(error)

            broken.stall()
            thread = threading.Thread(target=write)
            thread.start()
            run(other.write("n", lambda tx: tx.write(Batch(claims=[claim._replace(owner="other")]))))
            broken.resume()
            thread.join()
            assert [type(error) for error in caught] == [ClaimsLost]
            assert run(other.read("n", lambda tx: tx.history())) == []


@contextlib.contextmanager
def cluster_server() -> Iterator[RedisServer]:
    """A cluster of one."""
    settings = ["cluster-enabled=yes", "cluster-config-file=nodes.conf"]
    with Port() as bus, redis_server(settings=[*settings, f"cluster-port={bus.number}"]) as server:
        with driver.Redis.from_url(server.url) as node:
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in node.execute_command("CLUSTER", "INFO"):
                threading.Event().wait(0.02)
        yield server


class TestServer:
    def test_scripts_that_were_forgotten_are_sent_again(self, own_server: RedisServer, prefix: str) -> None:
        with opened(own_server.url, prefix=prefix) as store, driver.Redis.from_url(own_server.url) as client:
            store.commit(Fact("note", {}, id="n", session_id="s"))
            client.script_flush()
            store.update("n", {"a": 1})
            client.script_flush()
            assert [one.operation for one in store.history("s")] == ["UPDATE", "COMMIT"]

    def test_it_is_killed_and_comes_back(self, own_server: RedisServer, prefix: str) -> None:
        with opened(own_server.url, prefix=prefix, timeout=30) as store:
            done: list[str] = []
            stop = threading.Event()

            def write() -> None:
                while not stop.is_set():
                    done.append(store.commit(Fact("note", {}, session_id="s")))

            thread = threading.Thread(target=write)
            thread.start()
            for _ in range(3):
                stop.wait(0.3)
                own_server.kill()
                stop.wait(0.1)
                own_server.start()
            stop.wait(0.3)
            stop.set()
            thread.join()
            assert len(done) > 3
            assert [fact["id"] for fact in store.query()] == done
            assert len(store.history("s", limit=None)) == len(done)

    def test_a_full_memory_leaves_nothing_half_written(self, prefix: str) -> None:
        with (
            redis_server() as server,
            opened(server.url, prefix=prefix) as store,
            driver.Redis.from_url(server.url) as client,
        ):
            store.register_schema("setting", Setting, Constraint(singleton_key="name"), index=["value"])
            store.commit_model(Setting(name="a"), session_id="s")
            keys = Keys(prefix, "default")
            before = {one: client.dump(one) for one in keys.data}
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 100_000)
            acts: list[Callable[[], Any]] = [
                lambda: store.commit_model(Setting(name="b"), session_id="s"),
                lambda: store.commit_model(Setting(name="a", value=2), session_id="s"),
                lambda: store.rollback("s"),
                lambda: store.put_record("c", "k", b"x" * 1000),
            ]
            for act in acts:
                with pytest.raises(UnavailableError, match="nothing was written"):
                    act()
                assert {one: client.dump(one) for one in keys.data} == before
            assert store.count() == 1
            client.config_set("maxmemory", 0)
            for act in acts:
                act()

    @pytest.mark.parametrize(
        ("stop", "go_on"),
        [
            ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
            ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ],
    )
    @pytest.mark.parametrize("name", BINARIES)
    def test_a_server_that_takes_no_writes_for_now_is_waited_for(
        self, prefix: str, name: str, stop: str, go_on: str
    ) -> None:
        with (
            redis_server(binary=BINARIES[name]) as server,
            driver.Redis.from_url(server.url) as client,
            opened(server.url, prefix=prefix) as store,
        ):
            store.commit(Fact("note", {}, session_id="s"))
            client.execute_command(*stop.split())
            with (
                opened(server.url, prefix=prefix, timeout=0.2, wait_replicas=1, wait_timeout=0.1) as impatient,
                pytest.raises(UnavailableError, match="for now"),
            ):
                impatient.commit(Fact("note", {}, session_id="s"))
            timer = threading.Timer(0.3, lambda: client.execute_command(*go_on.split()))
            timer.start()
            store.commit(Fact("note", {}, id="n", session_id="s"))
            timer.join()
            assert store.get("n") is not None
            assert store.count() == 2

    @pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), 0.0001, 10.0])
    def test_replicas_are_not_waited_for_without_end(self, prefix: str, seconds: float) -> None:
        for kind in (RedisStorage, AsyncRedisStorage):
            with pytest.raises(ValidationFailed, match=r"wait_timeout must be .* less than timeout=10"):
                kind("redis://localhost", wait_replicas=1, wait_timeout=seconds)

    def test_replicas_are_waited_for(self, prefix: str) -> None:
        with redis_server() as server:
            with opened(server.url, prefix=prefix, wait_replicas=1, wait_timeout=0.05) as store:
                with pytest.raises(UnavailableError, match="0 of 1 replicas"):
                    store.commit(Fact("note", {}, id="n"))
                assert store.get("n") is not None
            with redis_server(settings=[f"replicaof=127.0.0.1 {server.port}"]) as replica:
                with opened(server.url, prefix=prefix, wait_replicas=1, wait_timeout=9) as store:
                    everyday(store)
                    store.commit(Fact("note", {}, id="m"))
                with driver.Redis.from_url(replica.url) as client:
                    assert client.hexists(Keys(prefix, "default").facts, "m")

    def test_a_cluster_keeps_a_namespace_on_one_slot(self, prefix: str) -> None:
        with cluster_server() as server:
            cluster = driver.RedisCluster.from_url(server.url, decode_responses=True)
            with RedisStorage(cluster, prefix=prefix) as storage:
                for namespace in ("a", "{b}", "}{", "", "é"):
                    if namespace:
                        everyday(MemoryStore(storage, namespace=namespace, allow_unregistered=True))
                batch = Batch(records=[RecordWrite("c", "k", b"v")])
                run(storage.write("", lambda tx: tx.write(batch)))
                assert run(storage.read("", lambda tx: tx.record("c", "k"))) == b"v"
                assert run(storage.namespaces()) == ["", "a", "{b}", "}{", "é"]
                with pytest.raises(ValidationFailed, match="min-replicas-to-write"):
                    RedisStorage(cluster, wait_replicas=1)
            cluster.close()

            async def use() -> None:
                cluster = async_driver.RedisCluster.from_url(server.url)
                async with AsyncRedisStorage(cluster, prefix=prefix) as storage:
                    store = AsyncMemoryStore(storage, namespace="a", allow_unregistered=True)
                    await store.commit(Fact("note", {}, id="m"))
                    assert await store.count() == 2
                    assert await storage.namespaces() == ["", "a", "{b}", "}{", "é"]
                await cluster.aclose()

            asyncio.run(use())

    @pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    def test_a_cluster_that_is_away(self, prefix: str) -> None:
        with cluster_server() as server, driver.RedisCluster.from_url(server.url) as cluster:
            with opened(cluster, prefix=prefix, timeout=0.3) as store:
                store.count()
                server.kill()
                with pytest.raises(UnavailableError, match="for now"):
                    store.count()
                with pytest.raises(UnavailableError, match="unknown"):
                    store.put_record("c", "k", b"v")
            with opened(cluster, prefix=prefix, timeout=30) as store:
                timer = threading.Timer(0.3, server.start)
                server.start()
                store.count()
                server.kill()
                timer.start()
                store.put_record("c", "k", b"v")
                timer.join()
                assert store.get_record("c", "k") == b"v"
        gc.collect()  # the driver forgets the connections to a node that went away, here and not in another test


_BEGIN = """
import os, sys, time
from memstate import Fact, MemoryStore, RedisStorage
url, prefix, number, go = sys.argv[1:]
store = MemoryStore(RedisStorage(url, prefix=prefix), allow_unregistered=True)
while not os.path.exists(go):
    time.sleep(0.001)
store.commit(Fact("setting", {"name": number}), session_id=number)
"""


class TestProcesses:
    def test_ten_begin_at_once(self, redis: Any, prefix: str, programs: ForkServer, tmp_path: Path) -> None:
        go = tmp_path / "go"
        started = [
            programs.start("programs:execute", _BEGIN, redis.url, prefix, str(number), str(go)) for number in range(10)
        ]
        go.touch()
        for process in started:
            process.finish()
        with opened(redis.url, prefix=prefix) as store:
            assert store.count("setting") == 10
            assert len(store.history()) == 10


class TestRaces:
    def test_snapshots_are_of_one_moment_while_others_write(self, redis: Any, prefix: str) -> None:
        with opened(redis.url, prefix=prefix) as store, opened(redis.url, prefix=prefix) as reader:
            with store.transaction() as tx:
                for id_ in "ab":
                    tx.commit(Fact("note", {"n": 0}, id=id_))
            stop = threading.Event()

            def write() -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    with store.transaction() as tx:
                        for id_ in "ab":
                            tx.update(id_, {"n": number})

            async def work(tx: StorageTransaction) -> list[str]:
                first = (await tx.facts(["a"]))["a"]
                await tx.scan("c")
                second = (await tx.facts(["b"]))["b"]
                return [json.loads(one.payload)["n"] for one in (first, second)]

            thread = threading.Thread(target=write)
            thread.start()
            seen = set()
            try:
                for _ in range(150):
                    first, second = run(reader.storage.read("default", work, snapshot=True))
                    assert first == second
                    seen.add(first)
            finally:
                stop.set()
                thread.join()
            assert len(seen) > 3

    def test_a_select_in_pieces_misses_nothing_while_facts_move(
        self, redis: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("facts", "journal", "records"):
            monkeypatch.setattr(f"memstate_core.storages._redis.{module}.COUNT", 3)
        with opened(redis.url, prefix=prefix) as store:
            store.register_schema("setting", Setting, index=["value"])
            for number in range(12):
                store.commit_model(Setting(name=str(number), value=number), str(number))
            stop = threading.Event()
            failures: list[BaseException] = []

            def write() -> None:
                try:
                    for turn in range(10**6):
                        if stop.is_set():
                            return
                        store.update(str(turn % 12), {"value": turn * 7 % 24})
                except BaseException as error:
                    failures.append(error)

            thread = threading.Thread(target=write)
            thread.start()
            try:
                for _ in range(100):
                    found = [fact["id"] for fact in store.query("setting", {"value": {"$gte": 0}})]
                    assert sorted(found) == sorted(map(str, range(12)))
            finally:
                stop.set()
                thread.join()
            assert failures == []

    def test_a_scan_in_pieces_is_of_one_moment(self, redis: Any, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("facts", "journal", "records"):
            monkeypatch.setattr(f"memstate_core.storages._redis.{module}.COUNT", 3)
        with opened(redis.url, prefix=prefix) as store, opened(redis.url, prefix=prefix) as reader:

            def put(value: int) -> None:
                with store.transaction() as tx:
                    for number in range(10):
                        tx.put_record("c", f"k{number}", b"%d" % value)

            put(0)
            stop = threading.Event()

            def write() -> None:
                for value in itertools.count(1):
                    if stop.is_set():
                        return
                    put(value)

            thread = threading.Thread(target=write)
            thread.start()
            try:
                for turn in range(100):
                    found = reader.scan_records("c", limit=8 if turn % 3 else None, reverse=turn % 2 == 0)
                    assert len(found) == (8 if turn % 3 else 10)
                    assert len({record.value for record in found}) == 1
            finally:
                stop.set()
                thread.join()

    def test_a_dead_holder_of_the_lock_holds_up_nobody_for_long(
        self, redis: Any, client: driver.Redis, prefix: str
    ) -> None:
        with opened(redis.url, prefix=prefix, timeout=5) as store:
            store.commit(Fact("note", {}, session_id="s"))
            keys = Keys(prefix, "default")
            client.hset(keys.meta, "lock", "dead")
            client.set(keys.lock, "dead", px=300)
            store.commit(Fact("note", {}, session_id="s"))
            assert store.count() == 2
        with opened(redis.url, prefix=prefix, timeout=0.1) as store:
            client.set(Keys(prefix, "default").lock, "dead", px=60_000)
            with pytest.raises(UnavailableError, match="others wrote"):
                store.commit(Fact("note", {}, session_id="s"))
            assert store.count() == 2
            client.delete(Keys(prefix, "default").lock)

    def test_what_was_read_is_verified(self, redis: Any, prefix: str) -> None:
        """Whatever comes between the reading and the writing of a work has it run again."""

        def fact_in(session_id: str, id_: str) -> None:
            with other.transaction(session_id="another") as tx:  # the session's own head stays where it is
                tx.commit(Fact("note", {}, id=id_, session_id=session_id))

        Read = Callable[[StorageTransaction], Any]
        selection = Selection(decode=lambda fact: {}, session_id="s")
        reads: dict[str, tuple[Read, Callable[[], Any]]] = {
            "facts": (lambda tx: tx.facts(["n"]), lambda: other.update("n", {"a": 1})),
            "a fact that is not there": (lambda tx: tx.facts(["new"]), lambda: fact_in("t", "new")),
            "a fact that came back": (
                lambda tx: tx.facts(["n"]),
                lambda: (other.update("n", {"a": 2}), other.rollback("n")),
            ),
            "latest versions": (lambda tx: tx.latest_versions(["n"]), lambda: other.update("n", {"a": 3})),
            "a selection": (lambda tx: tx.select(selection), lambda: fact_in("s", "m")),
            "a selection that changes": (lambda tx: tx.select(selection), lambda: other.update("m", {"a": 4})),
            "a part of a selection": (
                lambda tx: tx.select(replace(selection, limit=1)),
                lambda: other.update("m", {"a": 5}),
            ),
            "facts to be reindexed": (
                lambda tx: tx.reindex("note", lambda fact: (None, ())),
                lambda: fact_in("s", "r"),
            ),
            "a count": (lambda tx: tx.count(selection), lambda: fact_in("s", "o")),
            "a position": (lambda tx: tx.position("p"), lambda: other.commit(Fact("note", {}, session_id="p"))),
            "a savepoint": (lambda tx: tx.savepoint("s", "here"), lambda: other.savepoint("s", "here")),
            "the history": (lambda tx: tx.history(), lambda: fact_in("s", "h")),
            "a record": (lambda tx: tx.record("c", "k"), lambda: other.put_record("c", "k", b"")),
            "some records": (lambda tx: tx.records([("c", "k")]), lambda: other.put_record("c", "k", b"x")),
            "records": (lambda tx: tx.scan("c"), lambda: other.put_record("c", "l", b"")),
            "a claim": (lambda tx: tx.claims(["fact:x"]), lambda: claim("fact:x")),
            "all claims": (lambda tx: tx.claims(), lambda: claim("fact:y")),
        }

        def claim(key: str) -> None:
            batch = Batch(claims=[Claim(key, "somebody", 1.0, ())])
            run(other.storage.write("default", lambda tx: tx.write(batch)))

        with opened(redis.url, prefix=prefix) as store, opened(redis.url, prefix=prefix) as other:
            store.commit(Fact("note", {}, id="n", session_id="n"))
            for name, (read, change) in reads.items():
                answers: list[Any] = []

                async def work(
                    tx: StorageTransaction, read: Read = read, change: Any = change, answers: list[Any] = answers
                ) -> None:
                    answers.append(await read(tx))
                    if len(answers) == 1:
                        change()
                    await tx.write(Batch(records=[RecordWrite("written", "k", b"")]))

                run(store.storage.write("default", work))
                assert len(answers) == 2, name

    def test_a_record_is_not_disturbed_by_what_is_not_read(self, redis: Any, prefix: str) -> None:
        """It is believed to be what it was, and verified; others of the namespace may be written meanwhile."""
        with opened(redis.url, prefix=prefix) as store, opened(redis.url, prefix=prefix) as other:
            seen: list[Any] = []

            async def work(tx: StorageTransaction) -> None:
                seen.append(await tx.record("c", "k", is_new=True))
                other.put_record("c", "other", b"x")
                await tx.write(Batch(records=[RecordWrite("c", "k", (seen[-1] or b"") + b"1")]))

            for _ in range(3):
                run(store.storage.write("default", work))
            assert seen == [None, b"1", b"11"]
            other.put_record("c", "k", b"2")
            run(store.storage.write("default", work))
            assert seen[3:] == [b"111", b"2"]
            # Others change it, so it is looked at from now on.
            other.put_record("c", "k", b"3")
            run(store.storage.write("default", work))
            assert seen[5:] == [b"3"]

    @pytest.mark.parametrize("size", [1, 1000])
    def test_a_wrong_belief_about_a_record_is_nobodys(self, redis: Any, prefix: str, size: int) -> None:
        with opened(redis.url, prefix=prefix) as store, opened(redis.url, prefix=prefix) as other:
            seen: list[Any] = []

            async def look(tx: StorageTransaction) -> Any:
                seen.append((await tx.records([("c", "k"), ("c", "none")])).get(("c", "k")))
                return seen[-1]

            async def refuse(tx: StorageTransaction) -> None:
                if await look(tx) != b"new" * size:
                    raise ConflictError("not yet")

            for work in (look, refuse):
                store.put_record("c", "k", b"old" * size)
                other.put_record("c", "k", b"new" * size)
                assert run(store.storage.write("default", work)) in (None, b"new" * size)
                assert seen[-1] == b"new" * size

    def test_a_selection_is_not_disturbed_by_what_is_not_in_it(self, redis: Any, prefix: str) -> None:
        selection = Selection(decode=lambda fact: {}, typename="memo", session_id="s")
        with opened(redis.url, prefix=prefix) as store, opened(redis.url, prefix=prefix) as other:
            store.commit(Fact("memo", {}, session_id="s"))
            runs = 0

            async def work(tx: StorageTransaction) -> None:
                nonlocal runs
                runs += 1
                await tx.select(selection)
                await tx.reindex("memo", lambda fact: (None, ()))
                other.commit(Fact("note", {}, session_id="t"))
                await tx.write(Batch(records=[RecordWrite("written", "k", b"")]))

            run(store.storage.write("default", work))
            assert runs == 1

    def test_a_lock_whose_reply_was_lost_is_had(self, redis: Any, prefix: str) -> None:
        with proxy(redis.url) as between, RedisStorage(between.url, prefix=prefix) as storage:
            run(storage.open())
            began = time.monotonic()

            async def lock() -> None:
                async with storage._core._locked(storage._core._namespaces.get("n"), began + 9):
                    pass

            run(lock())  # from now on the server knows the script
            fault = between.lose_reply(containing=b":lock")
            run(lock())
            fault.wait()
            assert time.monotonic() - began < 3

    def test_what_was_believed_is_verified(self, redis: Any, prefix: str) -> None:
        with opened(redis.url, prefix=prefix) as one, opened(redis.url, prefix=prefix) as two:
            one.commit(Fact("note", {}, id="a", session_id="s"))
            assert two.rollback("s") != []
            one.commit(Fact("note", {}, id="b", session_id="s"))
            two.commit(Fact("note", {}, id="c", session_id="s"))
            parents = {entry.id: entry.parent for entry in one.history("s")}
            assert parents == {"tx-1": None, "tx-2": "tx-1", "tx-3": None, "tx-4": "tx-3"}
            assert [len(store.rollback("s", steps=9)) for store in (one, two)] == [2, 0]
            two.redo("s", 9)
            assert len(one.rollback("s", steps=9)) == 2

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are of POSIX")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_has_connections_and_slots_of_its_own(self, redis: Any, prefix: str) -> None:
        with opened(redis.url, prefix=prefix) as store:
            store.commit(Fact("note", {}, session_id="s"))
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    for _ in range(50):
                        store.commit(Fact("note", {}, session_id="child"))
                    status = 0
                finally:
                    os._exit(status)
            for _ in range(50):
                store.commit(Fact("note", {}, session_id="s"))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert store.count() == len(store.history(limit=None)) == 101

    def test_a_fact_that_others_made_meanwhile_is_a_conflict(self, redis: Any, prefix: str) -> None:
        with opened(redis.url, prefix=prefix) as store:
            store.commit(Fact("note", {}, id="n"))
            with pytest.raises(ConflictError, match="version"):
                store.update("n", {}, expected_version=7)
