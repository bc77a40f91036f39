"""The servers that other tests rely on do what they say, and leave nothing behind."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis as redis_py

from tests.servers import (
    Databases,
    GivenRedis,
    PostgresServer,
    RedisServer,
    pgbouncer,
    postgres_programs,
    postgres_server,
    proxy,
    redis_binaries,
    redis_server,
    shared_postgres,
    shared_redis,
)
from tests.servers.processes import Port, state

pytestmark = pytest.mark.waits

ROOT = Path(__file__).parents[1]
PERSISTENT = ("appendonly=yes", "appendfsync=always")

# What a test session does that is killed: servers are started, and the process waits with their blocks still open.
KILLED = """
import contextlib, os, sys, time
from tests.servers import pgbouncer, postgres_server, redis_server

with postgres_server() as postgres, redis_server() as redis, pgbouncer(postgres.url) as bouncer:
    if os.fork() == 0:
        time.sleep(60)  # a fork, which holds whatever it held, lives on
        os._exit(0)
    for server in (postgres, redis, bouncer):
        print(server.pid, server.place.directory, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


def wait_until_gone(processes: list[int], directories: list[Path], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while any(state(one) not in "ZX" for one in processes) or any(one.exists() for one in directories):
        assert time.monotonic() < deadline, (processes, directories)
        time.sleep(0.02)


def one(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def raw(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def ask(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    return connection.recv(100)


class TestPostgres:
    @pytest.mark.parametrize("version", sorted(postgres_programs()))
    def test_every_version_keeps_what_it_committed_when_it_is_killed(self, version: int) -> None:
        with postgres_server(version=version) as server:
            url = server.database("facts")
            assert int(str(one(url, "SHOW server_version_num"))) // 10000 == version
            assert one(url, "SHOW server_encoding") == "UTF8"
            query = "SELECT datcollate || datctype FROM pg_database WHERE datname = current_database()"
            assert one(url, query) == "C.UTF-8C.UTF-8"
            with psycopg.connect(url) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
            left_open = psycopg.connect(url)
            first = server.pid
            server.kill()
            assert state(first) == "X"
            with pytest.raises(psycopg.OperationalError):
                left_open.execute("SELECT 1")
            left_open.close()
            server.start()
            assert server.pid != first
            assert one(url, "SELECT number FROM kept") == 7
            server.stop()
            assert not server.running
            server.start()
            assert one(url, "SELECT number FROM kept") == 7

    def test_socket_settings_and_room_for_connections(self) -> None:
        with postgres_server(settings=["work_mem=5MB"], fsync=True) as server:
            assert one(server.socket_url, "SHOW work_mem") == "5MB"
            assert one(server.socket_url, "SHOW fsync") == "on"
            assert one(server.url, "SHOW max_connections") == "400"

    def test_databases_are_new_and_each_its_own(self, own_postgres: PostgresServer) -> None:
        first, second = own_postgres.database("twins"), own_postgres.database("twins")
        with psycopg.connect(first) as connection:
            connection.execute("CREATE TABLE only_in_first ()")
        assert one(second, "SELECT to_regclass('only_in_first') IS NULL") is True

    def test_it_never_runs_as_root(self, own_postgres: PostgresServer) -> None:
        owner = os.stat(f"/proc/{own_postgres.pid}").st_uid
        assert owner == (os.geteuid() or pwd.getpwnam("nobody").pw_uid)
        assert own_postgres.data.stat().st_uid == owner

    def test_programs_that_its_user_cannot_reach_are_copied(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As below a home that is private; an ordinary user's server is that user's, and reaches all."""
        programs = next(iter(postgres_programs().values()))
        (tmp_path / "home").mkdir()
        package = programs.parent.parent
        shutil.copytree(programs.parent, tmp_path / "home" / package.name / programs.parent.name, symlinks=True)
        shutil.copytree(package.with_name(f"{package.name}.libs"), tmp_path / "home" / f"{package.name}.libs")
        hidden = tmp_path / "home" / package.name / programs.parent.name / "bin"
        (tmp_path / "home").chmod(0o700)
        monkeypatch.setattr("tests.servers.postgres.postgres_programs", lambda: {18: hidden})
        with postgres_server() as server:
            assert one(server.url, "SELECT 1") == 1
            running = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        if os.geteuid() == 0:
            assert Path(running).is_relative_to(server.place.directory)
        else:
            assert Path(running).parent == hidden

    def test_an_end_at_the_start_is_told_with_its_reason(self) -> None:
        reason = r"(?s)PostgreSQL ended at once.*no_such_setting"
        with pytest.raises(RuntimeError, match=reason), postgres_server(settings=["no_such_setting=1"]):
            pass

    def test_a_missing_version_is_a_failure_that_names_the_remedy(self) -> None:
        remedy = "no PostgreSQL 7 to test with: install it"
        with pytest.raises(RuntimeError, match=remedy), postgres_server(version=7):
            pass


class TestRedis:
    @pytest.mark.parametrize("name", sorted(redis_binaries()))
    def test_every_server_keeps_what_it_answered_when_it_is_killed(self, name: str) -> None:
        with redis_server(binary=redis_binaries()[name], settings=PERSISTENT) as server:
            with redis_py.Redis.from_url(server.url) as client:
                client.set("kept", "7")
                info = client.info("server")
                assert name.split()[1] in (info["redis_version"], info.get("valkey_version"))
            server.kill()
            with pytest.raises(redis_py.ConnectionError), redis_py.Redis.from_url(server.url) as client:
                client.ping()
            server.start()
            with redis_py.Redis.from_url(server.socket_url) as client:
                assert client.get("kept") == b"7"
            server.stop()
            server.start()
            with redis_py.Redis.from_url(server.url) as client:
                assert client.get("kept") == b"7"

    def test_without_settings_nothing_is_kept(self) -> None:
        with redis_server() as server:
            with redis_py.Redis.from_url(server.url) as client:
                client.set("lost", "7")
            server.stop()
            server.start()
            with redis_py.Redis.from_url(server.url) as client:
                assert client.get("lost") is None

    def test_there_is_one_without_asking_the_machine(self) -> None:
        names = {name.split()[0] for name, path in redis_binaries().items() if Path(sys.prefix) in path.parents}
        assert "valkey" in names


class TestGivenServers:
    def test_postgres(self, own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMSTATE_TEST_POSTGRES_URL", own_postgres.url)
        with shared_postgres() as given:
            assert type(given) is Databases
            name = one(given.database(), "SELECT current_database()")
            assert one(given.url, f"SELECT count(*) FROM pg_database WHERE datname = '{name}'") == 1
        assert one(own_postgres.url, f"SELECT count(*) FROM pg_database WHERE datname = '{name}'") == 0

    def test_redis(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMSTATE_TEST_REDIS_URL", "redis://example.invalid/3")
        with shared_redis() as given:
            assert given == GivenRedis("redis://example.invalid/3")


class TestPgBouncer:
    def test_transactions_of_many_connections_share_a_session(self, own_postgres: PostgresServer) -> None:
        url = own_postgres.database("pooled")
        with pgbouncer(url, pool_mode="transaction") as bouncer:
            with psycopg.connect(bouncer.url) as first, psycopg.connect(bouncer.url) as second:
                sessions = set()
                for connection in (first, second, first):
                    sessions.add(connection.execute("SELECT pg_backend_pid()").fetchone())
                    connection.commit()
            assert len(sessions) == 1
            other = own_postgres.database("other")
            assert one(bouncer.through(other), "SELECT current_database()") == other.rpartition("/")[2]


class TestProxy:
    def test_a_lost_reply_was_carried_out(self, own_postgres: PostgresServer) -> None:
        url = own_postgres.database("replies")
        with proxy(url) as broken, psycopg.connect(broken.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE written (number int)")
            fault = broken.lose_reply(2)
            connection.execute("INSERT INTO written VALUES (1)")
            with pytest.raises(psycopg.OperationalError):
                connection.execute("INSERT INTO written VALUES (2)")
            fault.wait()
            assert one(url, "SELECT array_agg(number) FROM written") == [1, 2]

    def test_a_lost_request_was_not(self, own_postgres: PostgresServer) -> None:
        url = own_postgres.database("requests")
        with proxy(own_postgres.url) as broken:
            with psycopg.connect(broken.through(url), autocommit=True) as connection:
                connection.execute("CREATE TABLE written (number int)")
                fault = broken.lose_request(containing=b"(2)")
                connection.execute("INSERT INTO written VALUES (1)")
                assert not fault.happened
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("INSERT INTO written VALUES (2)")
                fault.wait()
            assert one(url, "SELECT array_agg(number) FROM written") == [1]
            # Others are served.
            assert one(broken.url, "SELECT 1") == 1

    def test_a_pipeline_is_one_request(self, redis: GivenRedis | RedisServer) -> None:
        key = f"memstate-test-{os.urandom(8).hex()}"
        with redis_py.Redis.from_url(redis.url) as direct, proxy(redis.url) as broken:
            client = redis_py.Redis.from_url(broken.url, retry=None)
            client.ping()
            fault = broken.lose_reply()
            pipeline = client.pipeline(transaction=True)
            pipeline.set(key, "x" * 300_000)
            pipeline.expire(key, 60)
            with pytest.raises(redis_py.ConnectionError):
                pipeline.execute()
            fault.wait()
            client.close()
            assert direct.strlen(key) == 300_000
            direct.delete(key)

    def test_bytes_are_found_wherever_the_network_parts_them(self, redis: GivenRedis | RedisServer) -> None:
        with proxy(redis.url) as broken, raw(broken.port) as client:
            fault = broken.lose_request(2, containing=b"PING")
            assert ask(client, b"PING\r\n") == b"+PONG\r\n"
            client.sendall(b"PI")
            time.sleep(0.05)
            assert not fault.happened
            with pytest.raises(ConnectionResetError):
                ask(client, b"NG\r\n")
            fault.wait()

    def test_cut_stall_and_down(self, redis: GivenRedis | RedisServer) -> None:
        with proxy(redis.url) as broken:
            with raw(broken.port) as client:
                assert ask(client, b"PING\r\n") == b"+PONG\r\n"
                broken.cut()
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            with raw(broken.port) as client:
                broken.stall()
                client.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    ask(client, b"PING\r\n")
                client.settimeout(10)
                broken.resume()
                assert client.recv(100) == b"+PONG\r\n"
                broken.down()
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            with pytest.raises(ConnectionRefusedError):
                raw(broken.port)
            broken.up()
            with raw(broken.port) as client:
                assert ask(client, b"PING\r\n") == b"+PONG\r\n"

    def test_waiting_for_a_fault_that_does_not_come(self, redis: GivenRedis | RedisServer) -> None:
        with proxy(redis.url) as broken, pytest.raises(TimeoutError, match="1 more requests were to come first"):
            broken.lose_reply().wait(0.01)


class TestWhatIsLeft:
    def test_nothing_when_the_tests_are_killed(self) -> None:
        tests = subprocess.Popen(
            [sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert tests.stdout is not None
        lines = [tests.stdout.readline().split() for _ in range(3)]
        processes, directories = [int(pid) for pid, _ in lines], [Path(directory) for _, directory in lines]
        assert all(map(Path.exists, directories))
        assert not any(state(pid) in "ZX" for pid in processes)
        tests.kill()
        tests.wait()
        tests.stdout.close()
        try:
            wait_until_gone(processes, directories)
        finally:
            os.killpg(tests.pid, signal.SIGKILL)

    def test_nothing_after_a_block(self, own_postgres: PostgresServer) -> None:
        with redis_server() as redis, pgbouncer(own_postgres.url) as bouncer:
            servers = [redis, bouncer]
            processes = [server.pid for server in servers]
        assert [state(pid) for pid in processes] == ["X", "X"]
        assert not any(server.place.directory.exists() for server in servers)

    def test_a_fork_that_lives_on_delays_nothing(self) -> None:
        with redis_server() as server:
            fork = os.fork()
            if fork == 0:
                time.sleep(60)
                os._exit(0)
            started = time.monotonic()
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)
        assert time.monotonic() - started < 5
        assert not server.place.directory.exists()

    def test_no_shared_memory_after_a_kill(self) -> None:
        with postgres_server() as server:
            segment = server.pid_file()[6].split()[1]
            assert segment in segments()
            server.kill()
        assert segment not in segments()

    def test_an_interrupt_of_the_terminal_is_for_the_tests(self, own_postgres: PostgresServer) -> None:
        assert os.getsid(own_postgres.pid) != os.getsid(0)


def segments() -> set[str]:
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def test_a_held_port_is_given_to_nobody_but_can_be_listened_on() -> None:
    with Port() as held:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", held.number))
        with socket.create_server(("127.0.0.1", held.number)):
            socket.create_connection(("127.0.0.1", held.number)).close()
        with socket.create_server(("127.0.0.1", held.number)):
            pass


def test_a_server_runs_once(redis: RedisServer | GivenRedis) -> None:
    with redis_server() as server:
        with pytest.raises(RuntimeError, match="runs already"):
            server.start()
        server.kill()
        with pytest.raises(RuntimeError, match=r"does not run: start\(\) it first"):
            print(server.pid)
        server.start()
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        assert not server.running
