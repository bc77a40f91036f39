"""What only PostgreSQL's storages have: what they are made from, migrations, poolers, and connections that break."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from memstate_core import (
    AsyncMemoryStore,
    ClosedError,
    ConflictError,
    Constraint,
    Fact,
    MemoryStore,
    StorageError,
    UnavailableError,
    ValidationFailed,
)
from memstate_core._bridge import run
from memstate_core.facts import FactChange, IndexEntry, Operation, StoredFact
from memstate_core.filters import compile_filter
from memstate_core.protocols import Batch, NewEntry, Position, RecordWrite, Selection
from memstate_core.storages._postgres import writes
from memstate_core.storages._postgres.parts import Ground
from memstate_core.storages._postgres.runner import _TRIM
from memstate_core.storages.postgres import AsyncPostgresStorage, PostgresStorage
from memstate_core.testing.models import User, register_all
from memstate_core.testing.storage_protocol import Raw, entry, fact, selection
from tests.forking import ForkServer
from tests.schemas import Schemas
from tests.servers import pgbouncer, proxy

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def url(schemas: Schemas) -> str:
    return schemas.url


@pytest.fixture
def schema(schemas: Schemas) -> Iterator[str]:
    name = schemas.take()
    yield name
    schemas.give_back([name])


def store_on(storage: PostgresStorage) -> MemoryStore:
    return MemoryStore(storage, allow_unregistered=True)


def use(store: MemoryStore) -> None:
    """A little of everything."""
    store.commit(Fact("note", {"a": 1}, id="n", session_id="s"))
    store.update("n", {"a": 2})
    store.put_record("c", "k", b"v")
    store.rollback("s")
    assert store.query(order_by="ts")[0]["payload"] == {"a": 1}
    assert [one.operation for one in store.history("s")] == ["ROLLBACK", "UPDATE", "COMMIT"]
    assert store.scan_records("c") == [("k", b"v")]


# What they are made from


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_urls(url: str, schema: str, scheme: str) -> None:
    with PostgresStorage(url.replace("postgresql", scheme, 1), schema=schema) as storage:
        use(store_on(storage))


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("kind", ["connection", "pool", "engine"])
def test_what_is_given_stays_the_callers(url: str, schema: str, kind: str, autocommit: bool) -> None:
    given: Any
    if kind == "connection":
        given = psycopg.connect(url, autocommit=autocommit, row_factory=psycopg.rows.dict_row)
    elif kind == "pool":
        given = psycopg_pool.ConnectionPool(url, min_size=1, max_size=2, kwargs={"autocommit": autocommit}, open=True)
    else:
        options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        given = sa.create_engine(url.replace("postgresql", "postgresql+psycopg"), **options)
    storage = PostgresStorage(given, schema=schema)
    store = store_on(storage)
    use(store)
    with pytest.raises(ZeroDivisionError):
        store.promote_session("s", lambda _: 1 / 0)
    storage.close()
    with pytest.raises(ClosedError):
        store.count()
    if kind == "connection":
        assert given.autocommit is autocommit
        assert given.execute("SELECT 1 AS one").fetchone() == {"one": 1}
        given.close()
    elif kind == "pool":
        with given.connection() as connection:
            assert connection.autocommit is autocommit
        given.close()
    else:
        with given.connect() as connection:
            assert connection.execute(sa.text("SELECT 1")).scalar() == 1
        given.dispose()


@pytest.mark.parametrize("kind", ["url", "connection", "pool", "engine"])
async def test_what_is_given_to_the_async_storage(url: str, schema: str, kind: str) -> None:
    given: Any = url
    if kind == "connection":
        given = await psycopg.AsyncConnection.connect(url)
    elif kind == "pool":
        given = psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=2, open=False)
        await given.open()
    elif kind == "engine":
        given = create_async_engine(url.replace("postgresql", "postgresql+psycopg"))
    async with AsyncPostgresStorage(given, schema=schema) as storage:
        store = AsyncMemoryStore(storage, allow_unregistered=True)
        await asyncio.gather(*(store.commit(Fact("note", {"a": n}, session_id="s")) for n in range(5)))
        await store.rollback("s", 2)
        assert await store.count() == 3
    if kind == "connection":
        assert not given.autocommit
        await (await given.execute("SELECT 1")).fetchone()
    if kind in ("connection", "pool"):
        await given.close()
    elif kind == "engine":
        await given.dispose()


def test_a_given_connection_in_a_transaction_is_refused(url: str, schema: str) -> None:
    with psycopg.connect(url) as connection:
        store = store_on(PostgresStorage(connection, schema=schema))
        connection.execute("SELECT 1")
        with pytest.raises(StorageError, match="midst of a transaction"):
            store.count()
        connection.rollback()
        assert store.count() == 0
        assert not connection.autocommit


@pytest.mark.parametrize("kind", [PostgresStorage, AsyncPostgresStorage])
def test_senseless_arguments(kind: Any) -> None:
    for database in (None, 5, b"bytes", "", "no url", "sqlite:///x", "postgresql+asyncpg://x"):
        with pytest.raises(ValidationFailed):
            kind(database)
    for schema in ("", "x" * 64, "nul\0", 5):
        with pytest.raises(ValidationFailed, match="schema"):
            kind("postgresql://x", schema=schema)


def test_flavours_do_not_mix(url: str) -> None:
    with psycopg.connect(url) as connection, pytest.raises(ValidationFailed, match="AsyncConnection"):
        AsyncPostgresStorage(connection)
    with pytest.raises(ValidationFailed, match="psycopg"):
        PostgresStorage(sa.create_engine("sqlite://"))


@pytest.mark.parametrize("name", ['we"ird %s {x} $1 :y', "Ümlaut 😀", "select", "a.b", "'; DROP SCHEMA public; --"])
def test_odd_names_of_schemas(url: str, name: str) -> None:
    with PostgresStorage(url, schema=name) as storage:
        use(store_on(storage))
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = %s LIMIT 1", (name,)).fetchone()
        assert found == (1,)


def test_without_a_schema_the_search_path_says_where(url: str, schema: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(psycopg.sql.Identifier(schema)))
        connection.execute(psycopg.sql.SQL("SET search_path = {}").format(psycopg.sql.Identifier(schema)))
        use(store_on(PostgresStorage(connection)))
    with PostgresStorage(url, schema=schema) as storage:
        assert store_on(storage).count() == 1


def test_the_longest_keys(url: str, schema: str) -> None:
    """A B-tree's entry has at most 2,704 bytes, and these four times as many as characters, hardly to be compressed."""

    def text(seed: int) -> str:
        return "".join(chr(0x1F300 + (seed * 7919 + n * n * 31 + n * 17) % 700) for n in range(512))

    with PostgresStorage(url, schema=schema) as storage:
        stores = [MemoryStore(storage, namespace=text(n), allow_unregistered=True) for n in range(2)]
        for number, store in enumerate(stores):
            store.commit(Fact(text(3), {text(4): text(5)}, id=text(6), session_id=text(7), source=text(8)))
            store.savepoint(text(7), text(9))
            store.put_record(text(10), text(11), str(number).encode())
            store.put_record(text(10), text(12), b"")
            store.update(text(6), {"x": number})
            assert store.rollback(text(7), to=text(9)) != []
        for number, store in enumerate(stores):
            (found,) = store.query(text(3), {text(4): text(5)}, session_id=text(7))
            assert (found["id"], found["version"]) == (text(6), 1)
            assert store.get_record(text(10), text(11)) == str(number).encode()
            assert len(store.history(fact_id=text(6))) == 3


# Migrations

_OPEN = """
import os, sys, time
from memstate_core import Fact, MemoryStore
from memstate_core.storages.postgres import PostgresStorage
url, schema, number, distributed, go = sys.argv[1:]
with PostgresStorage(url, schema=schema, distributed=distributed == "True", pool_size=2) as storage:
    while not os.path.exists(go):
        time.sleep(0.001)
    MemoryStore(storage, allow_unregistered=True).commit(Fact("note", {"n": int(number)}))
"""


@pytest.mark.parametrize("distributed", [False, True])
def test_ten_processes_start_at_once(url: str, distributed: bool, programs: ForkServer, tmp_path: Path) -> None:
    schema, go = f"ten {distributed}", tmp_path / "go"
    started = [
        programs.start("programs:execute", _OPEN, url, schema, str(number), str(distributed), str(go))
        for number in range(10)
    ]
    go.touch()
    for process in started:
        process.finish()
    with PostgresStorage(url, schema=schema) as storage:
        store = store_on(storage)
        assert sorted(fact["payload"]["n"] for fact in store.query()) == list(range(10))
        seqs = [one.seq for one in store.history(None)]
        assert seqs == sorted(seqs, reverse=True)


def test_a_schema_of_a_newer_version_is_left_alone(url: str) -> None:
    with PostgresStorage(url, schema="newer") as storage:
        store_on(storage).count()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO newer.memstate_migrations (number) VALUES (999)")
    with PostgresStorage(url, schema="newer") as storage, pytest.raises(StorageError, match="upgrade memstate"):
        store_on(storage).count()


def test_a_user_who_may_make_no_tables(url: str, schema: str) -> None:
    with PostgresStorage(url, schema=schema) as storage:
        store_on(storage).commit(Fact("note", {}))
    name = psycopg.sql.Identifier(schema)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS memstate_user")
        connection.execute("CREATE ROLE memstate_user")
        connection.execute(psycopg.sql.SQL("GRANT USAGE ON SCHEMA {} TO memstate_user").format(name))
        connection.execute(
            psycopg.sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO memstate_user").format(
                name
            )
        )
    options = {"options": "-c role=memstate_user"}
    with PostgresStorage(url, schema=schema, connect_options=options) as storage:
        store = store_on(storage)
        store.register_schema("user", User, Constraint(singleton_key="email"))
        store.commit(Fact("note", {}))
        store.commit(Fact("user", {"email": "a"}))
        assert store.count() == 3
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP OWNED BY memstate_user")
        connection.execute("DROP ROLE memstate_user")


def test_an_encoding_that_cannot_hold_every_text(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    base, _, _ = url.rpartition("/")
    with PostgresStorage(f"{base}/latin") as storage, pytest.raises(StorageError, match="UTF8"):
        store_on(storage).count()
    with psycopg.connect(f"{base}/latin") as given:
        for _ in range(2):
            with pytest.raises(StorageError, match="UTF8"):
                store_on(PostgresStorage(given)).count()
            assert not given.autocommit
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP DATABASE latin WITH (FORCE)")


# Connections that break


class Broken:
    """A storage behind a proxy, and one that goes straight there."""

    def __init__(self, url: str, schema: str, through: Any) -> None:
        self.proxy = through
        self.storage = PostgresStorage(through.through(url), schema=schema, timeout=5)
        self.store = store_on(self.storage)
        self.straight = store_on(PostgresStorage(url, schema=schema))
        for number in range(8):  # statements are prepared by now
            self.store.commit(Fact("note", {"n": number}, session_id="s"))
            self.store.put_record("c", "before", b"x")

    def close(self) -> None:
        self.storage.close()
        self.straight.storage.close()  # type: ignore[attr-defined]


@pytest.fixture
def broken(url: str, schema: str) -> Iterator[Broken]:
    with proxy(url) as through:
        one = Broken(url, schema, through)
        yield one
        one.close()


@pytest.mark.parametrize("what", ["lose_reply", "lose_request"])
def test_a_connection_that_breaks_in_a_commit_loses_nothing_and_does_nothing_twice(broken: Broken, what: str) -> None:
    store = broken.store
    writing: dict[bytes, Any] = {  # by what only the statement that writes contains
        b"the new one": lambda: store.commit(Fact("note", {"x": "the new one"}, id="new", session_id="s")),
        b"another": lambda: store.update("new", {"x": "another"}),
        b"the record": lambda: store.put_record("c", "k", b"the record"),
        b"ROLLBACK": lambda: store.rollback("s"),
        b"REDO": lambda: store.redo("s"),
        b'"x":"first"': lambda: store.commit(Fact("note", {"x": "first"}, id="first", session_id="of its own")),
        b"DELETE": lambda: store.delete("first"),
        b"SAVE": lambda: store.savepoint("s", "SAVE"),
    }
    for containing, write in writing.items():
        before = len(broken.straight.history())
        fault = getattr(broken.proxy, what)(containing=containing)
        write()
        fault.wait()
        assert len(broken.straight.history()) == before + (containing not in (b"the record", b"SAVE")), containing
    assert broken.straight.get("new")["payload"] == {"x": "another"}  # type: ignore[index]
    assert broken.straight.get_record("c", "k") == b"the record"
    assert broken.straight.get("first") is None
    operations = [one.operation for one in broken.straight.history(limit=6)]
    assert operations == ["DELETE", "COMMIT", "REDO", "ROLLBACK", "UPDATE", "COMMIT"]
    seqs = [one.seq for one in broken.straight.history("s")]
    assert seqs == sorted(set(seqs), reverse=True)


def test_readers_try_again(broken: Broken) -> None:
    for read in (broken.store.count, lambda: broken.store.history(limit=3), lambda: broken.store.query("note")):
        expected = read()
        for what in ("lose_reply", "lose_request"):
            fault = getattr(broken.proxy, what)()
            assert read() == expected
            fault.wait()


def test_an_unreachable_server_says_that_the_outcome_is_unknown(broken: Broken) -> None:
    broken.storage._runner.timeout = 0.5
    fault = broken.proxy.lose_reply(containing=b"nobody knows")
    timer = threading.Thread(target=lambda: (fault.wait(), broken.proxy.down()))
    timer.start()
    with pytest.raises(UnavailableError, match="cannot be told"):
        broken.store.commit(Fact("note", {"x": "nobody knows"}, session_id="s"))
    timer.join()
    with pytest.raises(UnavailableError):
        broken.store.count()
    broken.proxy.up()
    assert broken.store.count() >= 8


def test_a_given_connection_that_breaks_in_a_commit_says_that_the_outcome_is_unknown(url: str, schema: str) -> None:
    with proxy(url) as through, psycopg.connect(through.through(url)) as connection:
        store = store_on(PostgresStorage(connection, schema=schema))
        store.commit(Fact("note", {}))
        through.lose_reply(containing=b"nobody knows")
        with pytest.raises(UnavailableError, match="cannot be told"):
            store.commit(Fact("note", {"x": "nobody knows"}))


def test_a_connection_that_breaks_while_old_ids_are_forgotten_repeats_nothing(broken: Broken) -> None:
    raw = Raw(broken.storage)
    runs: list[int] = []

    async def work(tx: Any) -> None:
        runs.append(1)
        await tx.write(Batch(records=[RecordWrite("c", "k", b"v")]))

    for what in ("lose_reply", "lose_request"):
        broken.storage._runner._writes = 255
        fault = getattr(broken.proxy, what)(containing=b"DELETE FROM")
        run(raw.storage.write("n", work))
        fault.wait()
    assert len(runs) == 2


def test_an_outcome_that_may_be_forgotten_cannot_be_told(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memstate_core.storages._postgres.runner._KEPT", 0.0)
    broken.proxy.lose_request(containing=b"nobody knows")
    with pytest.raises(UnavailableError, match=r"cannot be told.*stopped"):
        broken.store.put_record("c", "k", b"nobody knows")


def test_old_ids_are_forgotten_without_looking_at_all(url: str, schema: str) -> None:
    with PostgresStorage(url, schema=schema) as storage, psycopg.connect(url, autocommit=True) as connection:
        store = store_on(storage)
        store.put_record("c", "k", b"v")
        writes = psycopg.sql.Identifier(schema, "memstate_writes")
        for at, count in (("2 hours", 5), ("0 hours", 5000)):
            connection.execute(
                psycopg.sql.SQL(
                    "INSERT INTO {} (token, at) SELECT gen_random_uuid(), now() - {}::interval "
                    "FROM generate_series(1, {})"
                ).format(writes, at, count)
            )
        connection.execute(psycopg.sql.SQL("ANALYZE {}").format(writes))
        plan = connection.execute(b"EXPLAIN " + storage._runner.text(_TRIM)).fetchall()
        assert "memstate_writes_by_time" in str(plan)
        storage._runner._writes = 255
        store.put_record("c", "k", b"v")
        assert connection.execute(psycopg.sql.SQL("SELECT count(*) FROM {}").format(writes)).fetchone() == (5002,)


def test_sessions_ended_by_the_server_are_replaced(url: str, schema: str) -> None:
    with PostgresStorage(url, schema=schema) as storage:
        store = store_on(storage)
        for number in range(10):
            store.commit(Fact("note", {"n": number}, session_id="s"))
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        assert store.count() == 10
        assert len(store.history("s")) == 10


@pytest.mark.parametrize("kind", ["engine", "pool", "pool whose connections give themselves back"])
def test_a_pool_whose_connections_were_all_ended_is_used_again(url: str, schema: str, kind: str) -> None:
    given: Any
    if kind == "engine":
        given = sa.create_engine(url.replace("postgresql", "postgresql+psycopg"), pool_size=6)
        held = [given.raw_connection() for _ in range(6)]
        for connection in held:
            connection.close()
    else:
        returns = "give" in kind
        given = psycopg_pool.ConnectionPool(url, min_size=6, max_size=6, close_returns=returns, open=True)
        given.wait()
    with PostgresStorage(given, schema=schema, timeout=5) as storage:
        store = store_on(storage)
        for action in (store.count, lambda: store.commit(Fact("note", {}))):
            action()
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            action()
        assert store.count() == 2
    given.dispose() if kind == "engine" else given.close()


def test_what_was_fenced_off_is_never_applied(url: str, schema: str) -> None:
    """A transaction whose connection broke may still be on its way when it is asked for."""
    with PostgresStorage(url, schema=schema) as storage:
        store = store_on(storage)
        runner = storage._runner
        for session_id in ("new", "old"):
            if session_id == "old":
                store.commit(Fact("note", {}, session_id="old"))
            batch = Batch(entry(session_id), [FactChange(None, fact(f"late {session_id}"))])
            latest = store.history(session_id)[0].seq if session_id == "old" else 0
            token = os.urandom(16).hex()
            text, values = writes.statement_of(batch, "default", token, Ground(), latest, shared=False)

            async def fence(batch: Batch = batch, token: str = token, latest: int = latest) -> int | None:
                from memstate_core.storages._postgres.fencing import Lost, fence_off

                tx = type("Tx", (), {"batch": batch})()
                port = await runner.acquire()
                try:
                    return await fence_off(
                        port, runner.prefix, "default", Lost(tx, None, token, latest, OSError(), 0.0)
                    )
                finally:
                    await runner.source.release(port, broken=False)

            assert run(fence()) is None
            with psycopg.connect(url, autocommit=True) as connection, pytest.raises(psycopg.DataError, match="ground"):
                psycopg.RawCursor(connection).execute(runner.text(text), values)
            assert store.get(f"late {session_id}") is None
            store.commit(Fact("note", {}, session_id=session_id))
            assert run(fence()) is None
        # and one that was applied is found
        batch = Batch(entry("old"), [FactChange(None, fact("applied"))])
        with psycopg.connect(url, autocommit=True) as connection:
            (latest,) = connection.execute(
                psycopg.sql.SQL("SELECT latest FROM {}.memstate_sessions WHERE session = '=old'").format(
                    psycopg.sql.Identifier(schema)
                )
            ).fetchone()  # type: ignore[misc]
            token = os.urandom(16).hex()
            text, values = writes.statement_of(batch, "default", token, Ground(), latest, shared=False)
            row = psycopg.RawCursor(connection).execute(runner.text(text), values).fetchone()
        assert run(fence(batch, token, latest)) == row[0]  # type: ignore[index]


# Many at once


def test_an_exhausted_pool_says_so(url: str, schema: str) -> None:
    with PostgresStorage(url, schema=schema, pool_size=1, timeout=0.2) as storage:
        store = store_on(storage)
        store.commit(Fact("note", {}, session_id="s"))
        entered, go = threading.Event(), threading.Event()

        def selector(_: Any) -> bool:
            entered.set()
            return go.wait(10)

        holder = threading.Thread(target=store.promote_session, args=("s", selector))
        holder.start()
        assert entered.wait(10)
        with pytest.raises(UnavailableError, match="in use"):
            store.count()
        go.set()
        holder.join()
        assert store.count() == 1


@pytest.mark.parametrize("given", [False, True])
def test_one_connection_is_enough(url: str, schema: str, given: bool) -> None:
    with psycopg.connect(url) as connection:
        database: Any = connection if given else url
        with PostgresStorage(database, schema=schema, pool_size=1, timeout=2) as storage:
            raw = Raw(storage)
            run(raw.put(fact("a", singleton="x")))
            with pytest.raises(ConflictError, match="singleton"):
                run(raw.put(fact("b", singleton="x")))
            store = MemoryStore(storage)
            register_all(store)
            store.commit_model(User(email="a"))
            run(raw.put(fact("c", singleton="y")))
            run(raw.put(fact("a", 2, singleton="y"), fact("c", 2, singleton="x")))  # they exchange their places
            store.commit_model(User(email="b"), session_id="s")
            with pytest.raises(StorageError, match="within"):
                store.promote_session("s", lambda _: store.count() > 0)


def test_a_given_connection_that_is_closed_says_so(url: str, schema: str) -> None:
    connection = psycopg.connect(url)
    store = store_on(PostgresStorage(connection, schema=schema))
    assert store.count() == 0
    connection.close()
    with pytest.raises(UnavailableError, match="closed"):
        store.count()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_database_with_another_isolation_of_its_own(url: str, schema: str, level: str) -> None:
    options = {"options": "-c default_transaction_isolation=" + level.replace(" ", "\\ ")}
    storages = [PostgresStorage(url, schema=schema, connect_options=options) for _ in range(4)]
    failures: list[BaseException] = []

    def work(storage: PostgresStorage) -> None:
        store = MemoryStore(storage)
        try:
            register_all(store)
            for turn in range(25):
                store.commit_model(User(email="one", name=str(turn)), session_id="s")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(storage,)) for storage in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    (found,) = store_on(storages[0]).query("user")
    assert found["version"] == 100
    for storage in storages:
        storage.close()


def test_races_are_run_again_for_as_long_as_the_timeout(url: str, schema: str) -> None:
    """However often the database gives up waiting for a lock meanwhile."""
    with PostgresStorage(url, schema=schema, connect_options={"options": "-c lock_timeout=20ms"}) as storage:
        store = store_on(storage)
        store.commit(Fact("note", {"n": 0}, id="n", session_id="s"))
        with psycopg.connect(url) as connection:
            facts = psycopg.sql.Identifier(schema, "memstate_facts")
            connection.execute(psycopg.sql.SQL("LOCK TABLE {}").format(facts))
            timer = threading.Timer(1.0, connection.rollback)
            timer.start()
            store.update("n", {"n": 1})
            timer.join()
        assert store.get("n")["version"] == 2  # type: ignore[index]


def test_a_client_that_was_paused_holds_nobody_up(url: str, schema: str) -> None:
    stopped, go = threading.Event(), threading.Event()
    outcome: list[BaseException] = []
    with (
        PostgresStorage(url, schema=schema, timeout=0.5) as paused,
        PostgresStorage(url, schema=schema, timeout=20) as storage,
        PostgresStorage(url, schema=schema) as other,
    ):
        run(Raw(other).put(fact("a")))

        def queueing(storage: PostgresStorage, in_queue: Any) -> None:
            """Write what depends on a fact that changes until the writer stands in the queue."""
            runs = itertools.count(1)

            async def work(tx: Any) -> None:
                (before,) = (await tx.facts(["a"])).values()
                if next(runs) <= 3:
                    run(Raw(other).put(fact("a", before.version + 1)))
                else:
                    in_queue()
                after = before._replace(version=before.version + 1)
                await tx.write(Batch(entry("s"), [FactChange(before, after)]))

            run(storage.write("n", work))

        def pause() -> None:
            stopped.set()
            go.wait(30)

        def be_paused() -> None:
            try:
                queueing(paused, pause)
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=be_paused)
        thread.start()
        assert stopped.wait(10)
        queueing(storage, lambda: None)
        version = run(Raw(other).facts("a"))["a"].version
        go.set()
        thread.join()
        assert [type(error) for error in outcome] == [UnavailableError]
        assert run(Raw(other).facts("a"))["a"].version == version == 8


_INTERRUPTED = """
import random, signal, sys
from memstate_core import Fact, MemoryStore
from memstate_core.storages.postgres import PostgresStorage
url, schema = sys.argv[1:]
armed = False

def interrupt(*_):
    if armed:
        raise KeyboardInterrupt

storage = PostgresStorage(url, schema=schema, pool_size=2, timeout=3)
store = MemoryStore(storage, allow_unregistered=True)
store.commit(Fact("note", {"n": 0}, id="n", session_id="s"))
signal.signal(signal.SIGALRM, interrupt)
interrupted = 0
while interrupted < 1000:
    before = store.get("n")["version"]
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 0.0005))
        store.update("n", {"n": before})
        store.get("n")
    except KeyboardInterrupt:
        interrupted += 1
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert store.get("n")["version"] in (before, before + 1)
assert len(store.history("s", limit=None)) == store.get("n")["version"]
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="timers are of POSIX")
def test_a_thread_that_was_interrupted_uses_the_store_again(url: str, schema: str, programs: ForkServer) -> None:
    programs.run("programs:execute", _INTERRUPTED, url, schema)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are of POSIX")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(url: str, schema: str) -> None:
    with PostgresStorage(url, schema=schema) as storage:
        store = store_on(storage)
        store.commit(Fact("note", {"who": "parent"}))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                store.commit(Fact("note", {"who": "child"}))
                status = 0 if store.count() == 2 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        store.commit(Fact("note", {"who": "parent again"}))
        assert [fact["payload"]["who"] for fact in store.query()] == ["parent", "child", "parent again"]


# Behind a pooler, and on databases that lack something


def test_behind_pgbouncer(url: str, schema: str) -> None:
    with pgbouncer(url) as pooler, PostgresStorage(pooler.through(url), schema=schema) as storage:
        stores = [store_on(storage) for _ in range(8)]
        failures: list[BaseException] = []

        def work(place: int) -> None:
            store = stores[place]
            try:
                for turn in range(25):
                    id_ = store.commit(Fact("note", {"n": turn}, session_id=str(place)))
                    store.update(id_, {"n": -turn})
                    assert store.get(id_)["payload"] == {"n": -turn}  # type: ignore[index]
                    store.history(str(place), limit=2)
                    store.rollback(str(place))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert stores[0].count("note") == 200
        port = run(storage._runner.acquire())
        assert port._prepare is False  # type: ignore[attr-defined]
        run(storage._runner.source.release(port, broken=False))


def test_without_advisory_locks_and_table_locks(url: str, schema: str) -> None:
    seen: list[str] = []
    with PostgresStorage(url, schema=schema, distributed=True) as storage:
        store = MemoryStore(storage)
        register_all(store)
        runner = storage._runner
        acquire = runner.source.acquire

        async def watched(timeout: float) -> Any:
            port = await acquire(timeout)
            execute, script = type(port).execute, type(port).script

            async def run_execute(text: str | bytes, values: Any = ()) -> Any:
                seen.append(text if isinstance(text, str) else text.decode())
                return await execute(port, text, values)

            async def run_script(text: str) -> None:
                seen.append(text)
                await script(port, text)

            port.execute, port.script = run_execute, run_script  # type: ignore[method-assign]
            return port

        runner.source.acquire = watched  # type: ignore[method-assign]
        ids = {store.commit_model(User(email="a", name=str(n)), session_id="s") for n in range(5)}
        assert len(ids) == 1
        assert len(store.rollback("s", 3)) == 3
        assert store.get(ids.pop())["version"] == 2  # type: ignore[index]
    text = " ".join(seen)
    assert "FOR SHARE" in text
    assert "advisory" not in text
    assert "LOCK TABLE" not in text


# The index on payloads


def test_an_index_on_payloads_changes_no_answer(url: str, schema: str) -> None:
    payloads: list[dict[str, Any]] = [
        {"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {"a": [1]}, {"a": {"b": 1}}, {"a": {"b": [1, 2]}},
        {"b": "nul \0", "a": 1}, {"a": 2**60}, {"a": 2**70 + 1}, {"a": 0.1}, {"a": -0.0}, {"a": 1e300}, {"a.b": 1},
        {"a": "x" * 300}, {"a": "é"}, {"a": ["x", "y"]}, {"a": {"0": "x"}}, {}, {"a": "nul \0"}, {"a": 12345678901234},
        {"a\0b": 1},
    ]  # fmt: skip
    filters: list[dict[str, Any]] = [{"a": payload.get("a")} for payload in payloads]
    filters += [{"a\0b": 1}, {"\ud800": 1}, {"a.\ud800": 1}, {".".join("a" * 1000): 1}]
    filters += [{"a.b": 1}, {"a.0": "x"}, {"a": {"$ne": 1}}, {"a": 1, "b": {"$exists": True}}, {"a": {"b": 1}}]
    with (
        PostgresStorage(url, schema=schema, payload_index=False) as plain,
        PostgresStorage(url, schema=schema, payload_index=True) as indexed,
    ):
        store = store_on(plain)
        for payload in payloads:
            store.commit(Fact("t", payload))
        twin = store_on(indexed)
        for one, typename in itertools.product(filters, ("t", None)):
            expected = [found["id"] for found in store.query(typename, one)]
            assert [found["id"] for found in twin.query(typename, one)] == expected, one
            assert twin.count(typename, one) == len(expected)
        with store.transaction() as tx:
            for number in range(3000):
                tx.commit(Fact("t", {"a": f"{number} of many"}))
        with psycopg.connect(url, autocommit=True) as connection:
            plan = plan_of(twin, connection, schema)
        assert "memstate_facts_by_payload" in plan


def plan_of(store: MemoryStore, connection: psycopg.Connection[Any], schema: str) -> str:
    """The plan of a query on a field that is not declared."""
    seen: list[tuple[bytes, Any]] = []
    runner = store.storage._runner  # type: ignore[attr-defined]

    async def note(tx: Any) -> None:
        ask = tx._ask_text

        async def asked(text: bytes, values: Any) -> Any:
            seen.append((text, values))
            return await ask(text, values)

        tx._ask_text = asked
        chosen = selection(predicate=compile_filter({"a": "é"}), as_stored=True)
        await tx.select(chosen)

    run(runner.read("default", note, snapshot=False))
    text, values = seen[0]
    connection.execute(psycopg.sql.SQL("VACUUM ANALYZE {}.memstate_facts").format(psycopg.sql.Identifier(schema)))
    rows = psycopg.RawCursor(connection).execute(b"EXPLAIN " + text, values).fetchall()
    return "\n".join(row[0] for row in rows)


def test_an_index_on_payloads_does_not_hide_what_is_upgraded(url: str, schema: str) -> None:
    from pydantic import BaseModel

    class Old(BaseModel):
        name: str

    class New(BaseModel):
        title: str

    with PostgresStorage(url, schema=schema, payload_index=True) as storage:
        store = MemoryStore(storage)
        store.register_schema("t", Old)
        store.commit_model(Old(name="x"))
        store = MemoryStore(storage)
        store.register_schema("t", New, migrate=lambda payload: {"title": payload["name"]}, version=2)
        assert len(store.query("t", {"title": "x"})) == 1
        assert len(store.query(None, {"title": "x"})) == 1


# The statement that writes


def test_the_common_statement_is_the_one_that_is_built() -> None:
    made = 0
    for exists, head, entries, shared, place, left in itertools.product(
        (False, True),
        (None, 5),
        ((), (IndexEntry("a", 3, "x"),), (IndexEntry("b", 2, 1.5),), (IndexEntry("b", 2, 7),)),
        (False, True),
        (None, "p"),
        (None, "p", "q"),
    ):
        version, ordinal = (4, 77) if exists else (1, -1)
        after = StoredFact("i", "t", '{"a":1}', None, "s", "ts", version, False, 1, place, ordinal)
        before = after._replace(version=3, singleton=left) if exists else None
        new = NewEntry("s", Operation.COMMIT, "a", None, "m", "ts", 4, head, 2)
        batch = Batch(new, [FactChange(before, after, entries)])
        ground = Ground(positions={"s": (Position(4, 0, 2, False), 4)}, facts={"i": 9} if exists else {})
        common = writes._common(batch, "n", "token", ground, 4, shared=shared)
        assert common == writes._built(batch, "n", "token", ground, 4, shared=shared)
        made += 1
        if not exists:  # one that was there before has versions in the archive
            again = Batch(new, [FactChange(None, after._replace(version=2), entries)])
            assert writes._common(again, "n", "token", ground, 4, shared=shared) is None
            assert "max(v.version)" in writes._built(again, "n", "token", ground, 4, shared=shared)[0]
    assert made == 192


def test_many_changes_are_not_compared_with_each_other(url: str, schema: str) -> None:
    """Of a table that was not analysed the planner believes that any condition leaves a row of it."""
    with PostgresStorage(url, schema=schema) as storage, psycopg.connect(url, autocommit=True) as connection:
        store_on(storage).commit(Fact("note", {}, id="first"))
        table = psycopg.sql.Identifier(schema, "memstate_facts")
        columns = "namespace, type, payload, ts, version, ephemeral, schema_version, made_by, stamp, archived, plain"
        connection.execute(
            psycopg.sql.SQL(
                "INSERT INTO {table} (id, ordinal, {columns}) "
                "SELECT n, n, {columns} FROM {table}, generate_series(1, 2000) n"
            ).format(table=table, columns=psycopg.sql.SQL(columns))
        )
        befores = [fact(str(number), ordinal=number, source=str(number)) for number in range(100)]
        afters = [one._replace(version=2, source=None) for one in befores]
        for count, kind in ((5, "changed"), (100, "changed"), (5, "gone"), (100, "gone")):
            pairs = zip(befores, afters if kind == "changed" else [None] * 100, strict=True)
            batch = Batch(entry(), list(itertools.starmap(FactChange, pairs))[:count])
            text, values = writes.statement_of(batch, "default", "token", Ground(), 1, shared=False)
            connection.execute("SET plan_cache_mode = force_generic_plan")
            connection.execute(b"PREPARE many AS " + storage._runner.text(text))
            plan = str(connection.execute(f"EXPLAIN EXECUTE many ({', '.join(['NULL'] * len(values))})").fetchall())
            connection.execute("DEALLOCATE many")
            part = plan[plan.index(f"CTE {kind}") :]
            assert "Hash Cond: (" in part
            assert "memstate_facts_by_ordinal" in part


def test_a_selection_is_of_one_moment(url: str, schema: str) -> None:
    """Also one with a limit that is read in pages, since what matches is found out here."""
    with PostgresStorage(url, schema=schema) as storage, PostgresStorage(url, schema=schema) as other:
        raw, twin = Raw(storage), Raw(other)
        ids = [f"{number:04}" for number in range(600)]
        run(raw.put(*map(fact, ids)))
        seen: list[str] = []

        def decode(stored: StoredFact) -> dict[str, Any]:
            seen.append(stored.id)
            if len(seen) in (1, 150, 500):
                run(twin.put(fact("0010", stored.version + len(seen)), fact("0590", stored.version + len(seen))))
            return {"id": stored.id}

        wanted = compile_filter({"id": {"$in": ids[10::10]}})
        chosen = Selection(decode=decode, predicate=wanted, limit=59)
        found = run(raw.ask(lambda tx: tx.select(chosen)))
        assert [one.id for one in found] == ids[10::10]
        assert found[0].version == found[-1].version > 1


async def test_what_was_only_read_is_as_it_was_when_the_rest_is_written(url: str, schema: str) -> None:
    with PostgresStorage(url, schema=schema) as storage, PostgresStorage(url, schema=schema) as other:
        raw, twin = Raw(storage), Raw(other)
        await raw.put(fact("read"), fact("written"))
        runs: list[int] = []

        async def work(tx: Any) -> None:
            found = await tx.facts(["read", "written"])
            record = (await tx.records([("c", "k"), ("c", "none")])).get(("c", "k"))
            runs.append(found["read"].version)
            if len(runs) == 1:
                await twin.put(fact("read", 2))
            if len(runs) == 2:
                await twin.write(Batch(records=[RecordWrite("c", "k", b"new")]))
            after = found["written"]._replace(version=2, payload=f'{{"saw": {found["read"].version}}}')
            records = [RecordWrite("c", "copy", record or b"none")]
            await tx.write(Batch(entry("s"), [FactChange(found["written"], after)], records=records))

        await asyncio.to_thread(lambda: run(storage.write("n", work)))
        assert runs == [1, 2, 2]
        assert (await raw.facts("written"))["written"].payload == '{"saw": 2}'
        assert await raw.ask(lambda tx: tx.record("c", "copy")) == b"new"


class TestKnownRecords:
    """Records are guessed at where this process saw them last; a wrong guess is nobody's."""

    @staticmethod
    def reads(record: bytes | None, seen: list[Any], *, writes: bool = True) -> Any:
        """A work that notes what it sees, and refuses anything but ``record``, if there is one."""

        async def work(tx: Any) -> bytes | None:
            found: bytes | None = (await tx.records([("c", "k"), ("c", "none")])).get(("c", "k"))
            assert await tx.record("c", "k") == found
            seen.append(found)
            if record is not None and found != record:
                raise ConflictError(f"{found!r}")
            if writes:
                await tx.write(Batch(records=[RecordWrite("c", "copy", found)]))
            return found

        return work

    @pytest.mark.parametrize(("record", "writes"), [(None, True), (None, False), (b"new", True)])
    def test_a_wrong_guess_does_not_count(self, url: str, schema: str, record: bytes | None, writes: bool) -> None:
        with PostgresStorage(url, schema=schema) as storage, PostgresStorage(url, schema=schema) as other:
            raw, twin = Raw(storage), Raw(other)
            run(raw.write(Batch(records=[RecordWrite("c", "k", b"old")])))
            seen: list[Any] = []
            run(storage.write("n", self.reads(None, seen)))
            run(twin.write(Batch(records=[RecordWrite("c", "k", b"new")])))
            assert run(storage.write("n", self.reads(record, seen, writes=writes))) == b"new"
            assert seen == [b"old", b"old", b"new"]
            if writes:
                assert run(twin.ask(lambda tx: tx.record("c", "copy"))) == b"new"
            # Others change it, so it is looked at from now on.
            run(twin.write(Batch(records=[RecordWrite("c", "k", None)])))
            assert run(storage.write("n", self.reads(None, seen))) is None
            assert seen[3:] == [None]

    @pytest.mark.parametrize("order", [("new", None), (None, "new")])
    def test_one_transaction_is_told_of_one_generation(
        self, url: str, schema: str, order: tuple[str | None, ...]
    ) -> None:
        """Who was told of two would read the definitions again and again, to know those of the other one."""
        with PostgresStorage(url, schema=schema) as storage, PostgresStorage(url, schema=schema) as other:
            told: list[set[int]] = []

            async def work(tx: Any) -> None:
                told.append({(await tx.position(session_id)).generation for session_id in order})

            async def commit(tx: Any) -> None:
                await tx.position(None)
                await tx.write(Batch(entry()))

            run(storage.write("n", commit))
            run(Raw(other).write(Batch(definitions={"t": "{}"})))
            run(storage.write("n", work))
            assert all(len(generations) == 1 for generations in told)
            assert told[-1] == {1}

    def test_what_is_not_new_is_found(self, url: str, schema: str) -> None:
        with PostgresStorage(url, schema=schema) as storage, PostgresStorage(url, schema=schema) as other:
            seen: list[bytes | None] = []

            async def work(tx: Any) -> None:
                seen.append(await tx.record("c", "k", is_new=True))
                await tx.write(Batch(records=[RecordWrite("c", "k", (seen[-1] or b"") + b"1" * 300)]))

            for store in (storage, other, storage):
                run(store.write("n", work))
            assert [None if one is None else len(one) for one in seen] == [None, None, 300, None, 600]

    def test_what_is_long_is_not_kept(self, url: str, schema: str) -> None:
        with PostgresStorage(url, schema=schema) as storage, PostgresStorage(url, schema=schema) as other:
            run(Raw(storage).write(Batch(records=[RecordWrite("c", "k", b"x" * 1000)])))
            run(Raw(other).write(Batch(records=[RecordWrite("c", "k", b"y" * 1000)])))
            seen: list[Any] = []
            run(storage.write("n", self.reads(None, seen)))
            assert seen == [b"y" * 1000]


def test_a_version_number_is_not_used_twice(url: str, schema: str) -> None:
    """A fact that is made with an id under which another one came and went since it was looked for."""
    with PostgresStorage(url, schema=schema) as storage, PostgresStorage(url, schema=schema) as other:
        store, raw = store_on(other), Raw(storage, "default")
        runs: list[int] = []

        async def work(tx: Any) -> None:
            assert await tx.facts(["n"]) == {}
            latest = (await tx.latest_versions(["n"])).get("n", 0)
            runs.append(latest)
            if len(runs) == 1:
                store.commit(Fact("note", {"n": 1}, id="n"))
                store.delete("n")
            await tx.write(Batch(entry("s"), [FactChange(None, fact("n", latest + 1))]))

        run(raw.storage.write("default", work))
        assert runs == [0, 1]
        assert store.get("n")["version"] == 2  # type: ignore[index]
        with pytest.raises(ConflictError):
            run(raw.storage.write("default", lambda tx: tx.write(Batch(entry("t"), [FactChange(None, fact("n"))]))))


@pytest.mark.parametrize("look", ["facts", "holders"])
def test_a_fact_that_came_back_since_it_was_selected_is_not_taken_for_the_same(
    url: str, schema: str, look: str
) -> None:
    with PostgresStorage(url, schema=schema) as storage, PostgresStorage(url, schema=schema) as other:
        raw, twin = Raw(storage), Raw(other)
        run(raw.put(fact("a", singleton="p")))
        runs: list[int] = []

        async def work(tx: Any) -> None:
            (before,) = await tx.select(selection(typename="note"))
            latest = (await tx.latest_versions(["a"])).get("a", 1)
            runs.append(latest)
            if len(runs) == 1:
                run(twin.put(fact("a", 2, singleton="p")))
                now = run(twin.facts("a"))["a"]
                run(twin.write(Batch(entry(), [FactChange(now, before)], restores=True)))
            await (tx.facts(["a"]) if look == "facts" else tx.holders(["p"]))
            await tx.write(Batch(entry("s"), [FactChange(before, before._replace(version=latest + 1))]))

        run(storage.write("n", work))
        assert runs == [1, 2]
        assert run(raw.facts("a"))["a"].version == 3


@contextlib.contextmanager
def delayed(url: str, schema: str, session_id: str, write: Callable[[], Any]) -> Iterator[list[BaseException]]:
    """What a thread writes in a session, after its seq was given out, has to wait for the end of the block.

    Yields the errors of it, all of which are there after the block.
    """
    failures: list[BaseException] = []

    def call() -> None:
        try:
            write()
        except BaseException as error:
            failures.append(error)

    with psycopg.connect(url) as connection:  # somebody has the session's row, and in the end does not move it
        sessions = psycopg.sql.Identifier(schema, "memstate_sessions")
        row = psycopg.sql.SQL("SELECT 1 FROM {} WHERE session = {} FOR UPDATE")
        assert connection.execute(row.format(sessions, f"={session_id}")).fetchone()
        thread = threading.Thread(target=call)
        thread.start()
        while not connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0]:  # type: ignore[index]
            assert thread.is_alive()
            time.sleep(0.01)
        yield failures
        connection.rollback()
        thread.join()


def test_a_version_number_is_not_used_twice_for_a_fact_that_nobody_looked_at(url: str, schema: str) -> None:
    """What is decided after hooks were told was looked at by an earlier transaction."""
    with PostgresStorage(url, schema=schema) as storage, PostgresStorage(url, schema=schema) as other:
        raw, twin = Raw(storage), Raw(other)
        run(raw.put(fact("a")))
        run(raw.put(fact("b"), session_id="s"))
        before = run(raw.facts("a"))["a"]
        changed = before._replace(version=2, payload="[]")
        decide = Batch(entry("s"), [FactChange(before, changed)])
        with delayed(url, schema, "s", lambda: run(raw.write(decide))) as failures:
            run(twin.put(fact("a", 2)))
            now = run(twin.facts("a"))["a"]
            run(twin.write(Batch(entry(), [FactChange(now, before)], restores=True)))
        assert [type(error) for error in failures] == [ConflictError]
        assert run(raw.facts("a"))["a"] == before


class TestOrderOfSeqs:
    """Who got the smaller seq came first, also where it had to wait: the journal is replayed in the order of seqs.

    In each test the session "late" has its seq and waits while others change what it is about to change, and make it
    again what it was.
    """

    @pytest.fixture
    def stores(self, url: str, schema: str) -> Iterator[tuple[MemoryStore, MemoryStore]]:
        with PostgresStorage(url, schema=schema) as storage, PostgresStorage(url, schema=schema) as other:
            late, others = MemoryStore(storage), MemoryStore(other)
            for store in (late, others):
                register_all(store)
            late.commit(Fact("note", {"text": "so that there is a session"}), session_id="late")
            yield late, others
            self.check(others)

    def check(self, store: MemoryStore) -> None:
        """Replaying the journal gives the facts, and no place ever has two."""
        facts: dict[str, Any] = {}
        for transaction in reversed(store.history(limit=None)):
            for change in transaction.changes:
                assert facts.get(change.fact_id) == change.before
                facts[change.fact_id] = change.after
            places = [fact.payload["email"] for fact in facts.values() if fact and fact.type == "user"]
            assert len(places) == len(set(places))
        now = {fact["id"]: fact["version"] for fact in store.query()}
        assert {id_: fact.version for id_, fact in facts.items() if fact} == now

    def test_a_fact_that_comes_back(self, url: str, schema: str, stores: tuple[MemoryStore, MemoryStore]) -> None:
        late, others = stores
        late.commit(Fact("note", {"text": "late"}, id="n"), session_id="late")
        late.rollback("late")
        with delayed(url, schema, "late", lambda: late.redo("late")) as failures:
            others.commit(Fact("note", {"text": "others"}, id="n"), session_id="others")
            others.rollback("others")
        assert failures == []
        assert late.get("n")["payload"]["text"] == "late"  # type: ignore[index]

    def test_a_fact_that_is_made_anew(self, url: str, schema: str, stores: tuple[MemoryStore, MemoryStore]) -> None:
        late, others = stores
        others.commit(Fact("note", {"text": "others"}, id="n"), session_id="others")
        others.rollback("others")
        commit = Fact("note", {"text": "late"}, id="n")
        with delayed(url, schema, "late", lambda: late.commit(commit, session_id="late")) as failures:
            others.redo("others")
            others.rollback("others")
        assert failures == []
        assert late.get("n")["version"] == 2  # type: ignore[index]

    @pytest.mark.parametrize("leaves", ["deleted", "updated"])
    @pytest.mark.parametrize("enters", ["made", "updated"])
    def test_a_singleton_place(
        self, url: str, schema: str, stores: tuple[MemoryStore, MemoryStore], enters: str, leaves: str
    ) -> None:
        late, others = stores
        late.commit(Fact("user", {"email": "a"}, id="a"), session_id="late")

        def enter() -> None:
            if enters == "made":
                late.commit(Fact("user", {"email": "x"}), session_id="late")
            else:
                late.update("a", {"email": "x"})

        with delayed(url, schema, "late", enter) as failures:
            others.commit(Fact("user", {"email": "x"}, id="b"), session_id="others")
            if leaves == "deleted":
                others.delete("b")
            else:
                others.update("b", {"email": "y"})
        assert failures == []
        assert late.count("user", {"email": "x"}) == 1

    @pytest.mark.parametrize("after", [False, True])
    def test_a_fact_that_nobody_looked_at(
        self, url: str, schema: str, stores: tuple[MemoryStore, MemoryStore], after: bool
    ) -> None:
        late, others = stores
        late.commit(Fact("note", {"text": "late"}, id="n"), session_id="late")
        late.update("n", {"text": "late again"})
        raw = Raw(late.storage, "default")
        now = run(raw.facts("n"))["n"]
        first = run(raw.ask(lambda tx: tx.versions([("n", 1)])))["n", 1]
        change = Batch(entry("late", parent=3), [FactChange(now, first if after else None)], restores=after)
        with delayed(url, schema, "late", lambda: run(raw.write(change))) as failures:
            with others.transaction(session_id="others") as tx:
                tx.update("n", {"text": "others"})
            others.rollback("others")
        assert failures == []
        assert bool(late.get("n")) == after
