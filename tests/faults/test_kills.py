"""``kill -9`` of a real process, at any moment and at every step.

The databases are real ones, and the index beside an SQLite file is a real persistent Chroma.

A process checks what its predecessor left (no drift, the journal whole, nothing lost that had returned), carries on
with random operations and is killed in turn. The kills are real ones, from outside, at random times.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import inspection
from tests.faults.kills import CASES, USES, Files, client_name, points_of
from tests.faults.places import MakePlace
from tests.faults.watching import POINTS, Board
from tests.forking import ForkServer, Worker, read_log, wait_until

pytestmark = pytest.mark.waits

# For each kind of storage 200 kills; those with Chroma take longer, so that they are spread.
BATCHES = [(kind, batch) for kind, count in (("sqlite", 8), ("postgres", 4), ("redis", 4)) for batch in range(count)]
KILLS = {"sqlite": 25, "postgres": 50, "redis": 50}

# Where a process may be killed; some kills are aimed, so that these are not all met in the longest step.
AIMS = [point for point in POINTS if point.partition(":")[0] in ("reading", "prepare", "claim", "apply", "decide")]


@pytest.mark.parametrize(("kind", "batch"), BATCHES)
def test_killed_at_random(
    kind: str,
    batch: int,
    processes: ForkServer,
    make_place: MakePlace,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    rng = random.Random(batch)
    place = make_place(kind)
    files = Files(tmp_path)
    board = Board(files.board)
    fell: Counter[str] = Counter()
    left: Counter[bool] = Counter()
    for number in range(KILLS[kind]):
        aim = AIMS[(batch * KILLS[kind] + number) // 3 % len(AIMS)] if number % 3 == 0 else "starting"
        board.at("starting")
        board.linger_at("starting")
        worker = processes.start("kills:work_until_killed", tmp_path, rng.getrandbits(32), rng.choice(list(USES)))
        _wait_for_the_moment(worker, board, aim, rng, 0.04 if place.is_served else 0.06)
        assert worker.kill() == -9, worker.errors
        fell[board.point] += 1
        place.wait_until_gone(client_name(worker.pid))
        left[bool(place.claims())] += 1
    processes.run("kills:check_only", tmp_path, "recover")
    record_property("kills", dict(fell))
    record_property("left claims", left[True])
    print(dict(fell), "left claims:", left[True], "operations:", len(read_log(files.log)) // 2)
    # The kills were kills in the midst of work: of several kinds, with claims left behind, and without.
    assert left[True]
    assert left[False]
    assert len(fell) >= 5


def _wait_for_the_moment(worker: Worker, board: Board, aim: str, rng: random.Random, seconds: float) -> None:
    if aim == "starting" and rng.random() < 0.2:  # as it looks at what its predecessor left
        wait_until(lambda: board.point != "starting" or worker.errors, "the start")
        time.sleep(rng.uniform(0, 0.05))
        return
    wait_until(lambda: board.point not in ("starting", "recovering") or worker.errors, "the first operation")
    if aim == "starting":
        time.sleep(rng.uniform(0, seconds))
        return
    time.sleep(rng.uniform(0, seconds / 2))
    board.linger_at(aim)
    wait_until(lambda: board.point == aim or worker.errors, aim)
    time.sleep(rng.uniform(0, 0.001))


# What was in flight has happened when the process was killed after one of these; before, it has not.
COMMITTED = {"decide: committed", "commit: committed"}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_every_step(case: str, processes: ForkServer, tmp_path: Path) -> None:
    begun = _begun(processes, tmp_path, case)
    points = _passed(processes, shutil.copytree(begun, tmp_path / "0"), "kills:be_killed_in", case, None, 0, False)
    assert {"claim: committed", "apply: done", "decide: written", "decide: committed"} <= {point for point, _ in points}
    claimed = points.index(("claim: committed", 1)) + 1
    assert ("apply: half done", 1) in points or case in ("commit", "commit a singleton", "update", "delete")
    killed = []
    for number, (point, n) in enumerate(points, start=1):
        directory = shutil.copytree(begun, tmp_path / str(number))
        assert processes.start("kills:be_killed_in", directory, case, point, n, False).wait() == -9, (point, n)
        assert bool(inspection.claims(directory / "memory.db")) is (number >= claimed and point not in COMMITTED)
        killed.append((directory, list(USES)[number % len(USES)], "done" if point in COMMITTED else "undone"))
    processes.run("kills:check_left", killed)


@pytest.mark.parametrize("case", ["block", "promote", "rollback"])
def test_killed_while_undoing_what_a_hook_refused(case: str, processes: ForkServer, tmp_path: Path) -> None:
    begun = _begun(processes, tmp_path, case)
    points = _passed(processes, shutil.copytree(begun, tmp_path / "0"), "kills:be_killed_in", case, None, 0, True)
    applied = points.index(("apply: done", 1))
    undoing = points[applied + 1 :]
    assert {"apply: half done", "apply: done", "release: written", "release: committed"} <= {p for p, _ in undoing}
    killed = []
    for number, (point, n) in enumerate(undoing, start=1):
        directory = shutil.copytree(begun, tmp_path / str(number))
        assert processes.start("kills:be_killed_in", directory, case, point, n, True).wait() == -9, (point, n)
        assert bool(inspection.claims(directory / "memory.db")) is (point != "release: committed")
        killed.append((directory, list(USES)[number % len(USES)], "undone"))
    processes.run("kills:check_left", killed)


@pytest.mark.parametrize("left_at", ["claim: committed", "apply: half done", "decide: written"])
def test_killed_while_healing(left_at: str, processes: ForkServer, tmp_path: Path) -> None:
    left = _begun(processes, tmp_path, "block")
    assert processes.start("kills:be_killed_in", left, "block", left_at, 1, False).wait() == -9
    points = _passed(
        processes, shutil.copytree(left, tmp_path / "0"), "kills:be_killed_in_recovery", "recover", None, 0
    )
    assert {"claim: written", "apply: half done", "apply: done", "release: written"} <= {point for point, _ in points}
    killed = []
    for number, (point, n) in enumerate(points, start=1):
        directory = shutil.copytree(left, tmp_path / str(number))
        use = list(USES)[number % 6]  # not the last one, whose storage says nothing of where it is
        assert processes.start("kills:be_killed_in_recovery", directory, use, point, n).wait() == -9, (point, n)
        killed.append((directory, "recover", "undone"))
    processes.run("kills:check_left", killed)


def _begun(processes: ForkServer, tmp_path: Path, case: str) -> Path:
    """A directory in which all has happened that comes before the operation of a case."""
    directory = tmp_path / "begun"
    directory.mkdir()
    processes.run("kills:come_before", directory, case)
    return directory


def _passed(processes: ForkServer, directory: Path, function: str, *arguments: object) -> list[tuple[str, int]]:
    """What a process passes that is not killed."""
    processes.run(function, directory, *arguments)
    return points_of(directory)
