"""``memstate worker``, as its own processes: several at once, killed, stopped, and misused."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memstate_core import Fact, InMemoryStorage, MemoryStore
from memstate_core._bridge import run
from memstate_core.cli.main import main
from memstate_core.facts import Operation
from memstate_core.worker import work
from tests.forking import ForkServer
from tests.servers import redis_server
from tests.worker import apps

pytestmark = pytest.mark.waits

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "import sys; from memstate_core.cli.main import main; sys.exit(main())", "worker"]


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMORY", str(tmp_path))
    monkeypatch.chdir(ROOT)
    return tmp_path


def worker(*arguments: str) -> Any:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def working(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def until_delivered(store: MemoryStore, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while any(lag.pending for lag in store.lag()):
        assert time.monotonic() < deadline, store.lag()
        time.sleep(0.02)


def check(store: MemoryStore) -> None:
    assert apps.index().scan() == {fact["id"]: fact["version"] for fact in store.query()}
    assert not any(store.verify())


def fill(store: MemoryStore, count: int) -> None:
    for number in range(count):
        store.commit(Fact("note", {"text": f"{number}"}, id=f"n{number}", session_id="s"))


@pytest.mark.parametrize("name", ["store", "async_store"])
def test_once(name: str) -> None:
    store = apps.store()
    fill(store, 3)
    before = worker(f"tests.worker.apps:{name}", "--lag")
    assert (before.returncode, before.stderr) == (0, "")
    assert before.stdout.startswith("  index: 3 pending, the oldest for ")
    ended = worker(f"tests.worker.apps:{name}", "--once")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "delivered 3 changes\n  index: 0 pending\n"
    check(store)


def test_a_hook_that_fails_is_shown() -> None:
    store = apps.failing_store()
    store.register_schema("note", apps.Note)
    fill(store, 2)
    ended = worker("tests.worker.apps:failing_store", "--once")
    assert ended.returncode == 1
    assert ended.stdout.startswith("delivered 0 changes\n  failing_store.<locals>.index: 2 pending, the oldest for ")
    assert "2 failing (OSError: the index is away)" in ended.stdout
    assert "could not be told of a change: OSError('the index is away'); it is tried again" in ended.stderr


@pytest.mark.parametrize("name", ["store", "async_store"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_works_until_it_is_told_to_end(name: str, end: signal.Signals) -> None:
    store = apps.store()
    with working(f"tests.worker.apps:{name}", "--poll", "0.05") as process:
        fill(store, 50)
        until_delivered(store)
        check(store)
        process.send_signal(end)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
    assert output.startswith("working; SIGTERM or Ctrl-C ends it\n")
    assert output.endswith("delivered 50 changes so far\n  index: 0 pending\n")


def test_workers_are_killed_all_the_time(programs: ForkServer, memory: Path) -> None:
    """Three at once, each killed at any moment and started again: in the end the index is what storage says."""
    store = apps.store()
    random_ = random.Random(1)
    for round_ in range(6):
        workers = [programs.start("programs:work", memory, "tests.worker.apps:store") for _ in range(3)]
        fill(store, 40)
        store.delete(f"n{random_.randrange(40)}")
        if round_ % 2:
            store.rollback("s", 10)
        time.sleep(random_.uniform(0, 0.5))
        assert [process.kill() for process in workers] == [-9] * 3
    with working("tests.worker.apps:async_store", "--poll", "0.01"):
        until_delivered(store)
    check(store)


def test_a_database_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server(settings=["appendonly=yes", "appendfsync=always"]) as server:
        monkeypatch.setenv("REDIS", server.url)
        store = apps.redis_store()
        started = working("tests.worker.apps:redis_store", "--poll", "0.05", "--report", "0.2")
        with store.storage, started as process:
            store.commit(Fact("note", {"text": "before"}, id="n"))
            until_delivered(store)
            server.kill()
            assert process.stdout is not None
            for line in process.stdout:
                if "cannot be told for now" in line:
                    break
            server.start()
            store.commit(Fact("note", {"text": "after"}, id="n"))
            until_delivered(store)
            assert process.poll() is None


def test_a_hook_that_fails_while_it_is_mended() -> None:
    """The lane was taken over meanwhile, so the fact is mended; the hook fails at that, and the worker goes on."""
    storage = InMemoryStorage()
    told: list[int] = []

    def index(operation: Operation, fact_id: str, fact: Fact | None) -> None:
        assert fact is not None
        told.append(fact.version)
        if len(told) == 1:
            run(storage.write("default", lambda tx: tx.take_lane([name], "thief", 1e12, 2e12)))
        elif len(told) == 2:
            raise OSError("away")

    store = MemoryStore(storage, [index], delivery="deferred", allow_unregistered=True)
    (name,) = (lag.hook for lag in store.lag())
    store.commit(Fact("note", {}, id="n"))
    deadline = time.monotonic() + 20
    work(store, stop=lambda: len(told) == 3 or time.monotonic() > deadline, poll=0.01)
    assert told == [1, 1, 1]
    assert run(storage.read("default", lambda tx: tx.claims())) == []


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("tests.worker.apps", "'tests.worker.apps' names no store; write MODULE:NAME, such as myapp.memory:store"),
        (
            "tests.worker.nothing:store",
            "there is no module 'tests.worker.nothing'; start the command where your code can",
        ),
        ("tests.worker.apps:nothing", "'tests.worker.apps' has no 'nothing'"),
        (
            "tests.worker.apps:number",
            "tests.worker.apps:number is 7, and neither a store nor a function that makes one",
        ),
        ("tests.worker.apps:plain_store", "tests.worker.apps:plain_store has no deferred hook; make the store with"),
    ],
)
def test_it_is_misused(name: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", name]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"memstate worker: {complaint}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--poll=0", "--poll=x", "--report=-1", "--batch=0", "--batch=1.5"])
def test_options_are_checked(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "tests.worker.apps:store", option]) == 2
    assert "is not a " in capsys.readouterr().err


def test_an_error_of_the_users_own_code_is_one_line_and_shown_whole_for_debugging() -> None:
    ended = worker("tests.worker.apps:broken")
    assert ended.returncode == 1
    assert ended.stderr.startswith("memstate worker: ModuleNotFoundError: ")
    assert ended.stderr.count("\n") == 1
    assert "in broken" in worker("tests.worker.apps:broken", "--debug").stderr
