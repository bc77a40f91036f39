"""An index is rebuilt by processes that are killed, while other processes write.

The index is one whose handles do not notice that its name has passed to another, and whose swap takes several requests.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.faults.places import MakePlace
from tests.faults.rebuilds import index, open_store
from tests.forking import ForkServer, wait_until

pytestmark = pytest.mark.waits

STEPS = ["away", "in between", "in place", "swapped"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis"])
def test_beside_processes_that_write(kind: str, processes: ForkServer, make_place: MakePlace, tmp_path: Path) -> None:
    make_place(kind)
    writers = [processes.start("rebuilds:write", tmp_path, seed) for seed in range(3)]
    wait_until(lambda: len(index(tmp_path).scan()) > 20, "facts")
    for _ in range(4):
        processes.run("rebuilds:rebuild_once", tmp_path)
    for writer in writers:
        assert writer.kill() == -9, writer.errors
    processes.run("rebuilds:check", tmp_path)


@pytest.mark.parametrize(("kind", "step"), [*(("sqlite", step) for step in [*STEPS, "any"]), ("postgres", "any")])
def test_killed(kind: str, step: str, processes: ForkServer, make_place: MakePlace, tmp_path: Path) -> None:
    """At each step of the swap and at any moment, with writers under way that are killed as well."""
    rng = random.Random(step)
    make_place(kind)
    for round_ in range(2):
        writers = [processes.start("rebuilds:write", tmp_path, seed) for seed in range(2)]
        wait_until(lambda: len(index(tmp_path).scan()) > 10, "facts")
        rebuilder = processes.start("rebuilds:rebuild", tmp_path, step, step != "any")
        if step == "any":
            wait_until((tmp_path / "rebuilt").exists, "a whole rebuilding")
            time.sleep(rng.random() * 0.2)
        else:
            wait_until((tmp_path / "reached").exists, step)
            (tmp_path / "reached").unlink()
        time.sleep(0.02)  # the writers go on, and meet what is half done
        assert rebuilder.kill() == -9, rebuilder.errors
        if round_ == 0:
            processes.run("rebuilds:rebuild_once", tmp_path)
        for writer in writers:
            assert writer.kill() == -9, writer.errors
        processes.run("rebuilds:check", tmp_path)
    tables = {name for (name,) in index(tmp_path)._execute("SELECT name FROM tables")}
    processes.run("rebuilds:rebuild_once", tmp_path)
    assert "notes" in tables
    assert [name for (name,) in index(tmp_path)._execute("SELECT name FROM tables")] == ["notes"]
    assert not any(open_store(tmp_path).verify())
