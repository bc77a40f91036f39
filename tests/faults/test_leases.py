"""Leases: a live transaction keeps its facts however slow it is; one that was stopped for too long loses them."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from memstate_core import Fact, Recovered
from tests.faults.leases import LEASE, open_store
from tests.faults.places import KINDS, MakePlace, Place
from tests.faults.races import Shared
from tests.forking import ForkServer, Worker, wait_until

pytestmark = pytest.mark.waits


@pytest.fixture(params=KINDS)
def fields(request: pytest.FixtureRequest, make_place: MakePlace, tmp_path: Path) -> Path:
    """A store's directory with one fact."""
    make_place(request.param)
    store, _ = open_store(tmp_path)
    store.commit(Fact("fields", {}, id="fields"))
    return tmp_path


def wait_until_stopped(worker: Worker) -> None:
    def stopped() -> bool:
        assert not worker.errors, worker.errors
        return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    wait_until(stopped, "the stop")


def check(directory: Path, **expected: int) -> None:
    """Both updates survived, one after the other, and the index has the last."""
    state = Shared(directory).check()
    assert state.facts["fields"].payload == {"text": "four fields", "a": 0, "b": 0, "c": 0, "d": 0, **expected}
    assert state.facts["fields"].version == len(state.entries) == 1 + len(expected)
    store, index = open_store(directory)
    assert not any(store.verify())
    assert index.content() == {"fields": (state.facts["fields"].version, state.facts["fields"].payload)}


def test_a_slow_transaction_keeps_its_facts(processes: ForkServer, fields: Path) -> None:
    slow = processes.start("leases:write_slowly", fields)
    wait_until(lambda: (fields / "slow").exists() or slow.errors, "the slow step")
    store, _ = open_store(fields)
    assert store.recover() == Recovered()
    store.update("fields", {"b": 1})
    slow.finish()
    after = [change.after for entry in store.history(limit=2) for change in entry.changes]
    assert [(fact.payload["a"], fact.payload["b"]) for fact in after if fact] == [(1, 1), (1, 0)]
    check(fields, a=1, b=1)


@pytest.mark.parametrize("expected_version", [None, 1])
@pytest.mark.parametrize("step", ["before", "half", "after"])
def test_stopped_for_longer_than_the_lease(
    processes: ForkServer, fields: Path, step: str, expected_version: int | None
) -> None:
    stopped = processes.start("leases:stop_in_the_midst", fields, step, expected_version)
    wait_until_stopped(stopped)
    store, _ = open_store(fields)
    store.update("fields", {"b": 1})  # takes the claims over when the lease has ended
    check(fields, b=1)
    stopped.signal(signal.SIGCONT)
    stopped.finish()
    check(fields, b=1, **{} if expected_version else {"a": 1})


@pytest.mark.parametrize("expected_version", [None, 1])
@pytest.mark.parametrize("stop", ["before", "half", "after"])
@pytest.mark.parametrize("wait", ["before", "half", "after"])
def test_it_carries_on_while_another_is_in_the_midst(
    processes: ForkServer, fields: Path, stop: str, wait: str, expected_version: int | None
) -> None:
    """What the stopped one does with the index when it wakes up must not survive the other's commit."""
    stopped = processes.start("leases:stop_in_the_midst", fields, stop, expected_version)
    wait_until_stopped(stopped)
    other = processes.start("leases:wait_in_the_midst", fields, wait)
    wait_until(lambda: (fields / "waited").exists() or other.errors, "the other's step")
    stopped.signal(signal.SIGCONT)
    time.sleep(LEASE)  # so that it notices; if it does not yet, this test only tries less hard
    (fields / "go on").touch()
    other.finish()
    stopped.finish()
    check(fields, b=1, **{} if expected_version else {"a": 1})
    assert Place.of(fields).claims() == []


def test_another_process_dies_while_this_one_goes_on(processes: ForkServer, fields: Path) -> None:
    """A store that has looked for facts in doubt when it was opened finds those of later crashes too."""
    store, index = open_store(fields)
    store.update("fields", {"c": 1})
    other = processes.start("leases:wait_in_the_midst", fields, "after")
    wait_until(lambda: (fields / "waited").exists() or other.errors, "the other's step")
    assert index.content()["fields"][1]["b"] == 1
    assert other.kill() == -9
    assert [found.fact.payload["b"] for found in store.search("four fields")] == [0]
    assert Place.of(fields).claims() == []
    assert index.content()["fields"][1]["b"] == 0
    assert not any(store.verify())


def test_a_process_that_cannot_be_seen_is_not_gone(
    processes: ForkServer, fields: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ``/proc`` shows everybody only his own processes (``hidepid``), another's transaction is left alone."""
    slow = processes.start("leases:write_slowly", fields)
    wait_until(lambda: (fields / "slow").exists() or slow.errors, "the slow step")
    read_text = Path.read_text

    def read_what_is_seen(self: Path, *arguments: Any, **options: Any) -> str:
        if self.parts[:3] == ("/", "proc", str(slow.pid)):
            raise FileNotFoundError(self)
        return read_text(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_what_is_seen)
    store, _ = open_store(fields)
    assert store.recover() == Recovered()
    store.update("fields", {"b": 1})
    monkeypatch.undo()
    slow.finish()
    _, first = (entry.changes[0].after for entry in store.history(limit=2))
    assert first is not None
    assert first.payload["a"] == 1, "the slow one lost its facts"
    check(fields, a=1, b=1)
