"""A store object is used on both sides of a fork, also when other threads were in the midst of something."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from memstate_core import MemoryStore, SQLiteStorage
from tests.faults import inspection
from tests.faults.indexes import FileIndex
from tests.faults.model import register
from tests.faults.races import Shared
from tests.forking import ForkServer, read_log, wait_until

pytestmark = pytest.mark.waits


def test_all_go_on(processes: ForkServer, tmp_path: Path) -> None:
    processes.run("forks:all_go_on", tmp_path)
    state = Shared(tmp_path).check()
    names = ("parent", "child 1", "child 2", "grandchild")
    assert set(state.facts) == {"counter", *(f"{name} {number}" for name in names for number in range(20))}


@pytest.mark.parametrize("side", ["the parent closes", "the child closes", "the child ends"])
def test_one_side_closes(processes: ForkServer, tmp_path: Path, side: str) -> None:
    processes.run("forks:one_side_closes", tmp_path, side)
    facts = set(Shared(tmp_path).check().facts)
    one, other = ("parent", "child") if side == "the parent closes" else ("child", "parent")
    assert facts == {"before", f"{one} 1", *(f"{other} {number}" for number in range(1, 10))}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_from_a_busy_parent(processes: ForkServer, tmp_path: Path, kind: str) -> None:
    processes.run("forks:from_a_busy_parent", tmp_path, kind)
    if kind == "sqlite":
        assert set(Shared(tmp_path).check().facts) >= {f"child {number}" for number in range(40)}


def test_asynchronous(processes: ForkServer, tmp_path: Path) -> None:
    processes.run("forks:asynchronous", tmp_path)
    assert len(Shared(tmp_path).check().facts) == 60


def test_leases_in_the_child(processes: ForkServer, tmp_path: Path) -> None:
    processes.run("forks:leases_in_the_child", tmp_path)
    state = Shared(tmp_path).check()
    fact = state.facts["fields"]
    assert (fact.version, fact.payload["a"], fact.payload["b"]) == (3, 1, 1)
    assert FileIndex(tmp_path / "index.db").content() == {"fields": (3, fact.payload)}


def test_a_child_does_not_keep_its_parents_claims_alive(processes: ForkServer, tmp_path: Path) -> None:
    """Also for those who cannot ask whether the parent lives, such as a process on another machine."""
    parent = processes.start("forks:leave_claims_to_a_child", tmp_path)
    wait_until(lambda: (read_log(tmp_path / "parent") and read_log(tmp_path / "child")) or parent.errors, "the fork")
    parent.kill()
    (child,) = read_log(tmp_path / "child")
    try:
        store = MemoryStore(SQLiteStorage(tmp_path / "memory.db"))
        register(store)
        wait_until(lambda: store.count(filters={"text": "child"}), "the child's work")
        worked = store.get("child")["version"]
        wait_until(lambda: store.get("child")["version"] > worked, "more of it")
        ends = _ends(tmp_path / "memory.db", "fact:parent")
        time.sleep(0.5)
        assert ends is not None
        assert _ends(tmp_path / "memory.db", "fact:parent") == ends, "the child renews its parent's lease"
    finally:
        os.kill(child, signal.SIGKILL)
    index = FileIndex(tmp_path / "index.db")
    store = MemoryStore(SQLiteStorage(tmp_path / "memory.db"), [index])
    register(store)
    assert "parent" in index.scan()
    assert store.recover().healed == ("parent",)
    assert store.get("parent") is None
    assert "parent" not in index.scan()
    assert "fact:parent" not in inspection.claims(tmp_path / "memory.db")


def _ends(path: Path, key: str) -> Any:
    """When the lease of a claim ends."""
    with inspection.opened(path) as connection:
        row = connection.execute("SELECT expires FROM memstate_claims WHERE key = ?", (key,)).fetchone()
    return row and row[0]
