"""Processes that are really killed in the middle of a commit, and what is found afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memstate_core import recovery
from memstate_core.demo import kills
from memstate_core.demo.conversation import INCLUDED, load
from memstate_core.demo.kills import KillError, Outcome, Victim, kill_in_commit
from memstate_core.demo.memory import opened
from memstate_core.demo.victim import READY, Job, Point

pytestmark = pytest.mark.waits


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    conversation = load(INCLUDED)
    with opened(tmp_path) as memory:
        for session in conversation.sessions[:4]:
            memory.remember(conversation, session)
    return tmp_path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def job(directory: Path, point: Point | str) -> Job:
    conversation = load(INCLUDED)
    return Job(str(directory), conversation.sample_id, list(conversation.speakers), 1, point)


def test_recovery_after_a_kill_at_every_point(directory: Path, stack: ExitStack) -> None:
    victims = [stack.enter_context(Victim()) for _ in Point]
    with opened(directory) as memory:
        before = memory.dump()
    outcomes = {
        point: kill_in_commit(victim, directory, job(directory, point), before)
        for point, victim in zip(Point, victims, strict=True)
    }
    # 4 overwritten, 2 focus, 2 invented, 2 deleted; half of what is not deleted is 4.
    assert outcomes == {
        Point.CLAIMED: Outcome(Point.CLAIMED, 0, 10, 10, 0, 0, False, True, 0),
        Point.HALF_APPLIED: Outcome(Point.HALF_APPLIED, 4, 10, 10, 0, 0, False, True, 0),
        Point.UNDECIDED: Outcome(Point.UNDECIDED, 10, 10, 10, 0, 0, False, True, 0),
        Point.DECIDED: Outcome(Point.DECIDED, 0, 0, 0, 0, 0, True, True, 0),
    }


def test_it_dies_of_the_signal(directory: Path, stack: ExitStack) -> None:
    victim = stack.enter_context(Victim())
    victim.kill_at(job(directory, Point.UNDECIDED))
    assert victim.returncode == (-9 if sys.platform != "win32" else 1)


def test_a_process_that_ends_before_is_no_kill(directory: Path, stack: ExitStack) -> None:
    victim = stack.enter_context(Victim())
    with pytest.raises(KillError, match="when elsewhere ended: ValueError: 'elsewhere' is not a valid Point"):
        victim.kill_at(job(directory, "elsewhere"))


def test_a_process_that_does_not_get_there_is_no_kill(
    directory: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills, "_PATIENCE", 0.01)
    victim = stack.enter_context(Victim())
    with pytest.raises(KillError, match=r"did not get there within 0\.01 s"):
        victim.kill_at(job(directory, Point.CLAIMED))


def test_a_victim_that_was_not_needed_is_gone() -> None:
    with Victim() as victim:
        assert victim.returncode is None
    assert victim.returncode is not None


@pytest.mark.parametrize("told", ["", None])
def test_a_victim_without_a_parent_ends(directory: Path, told: str | None) -> None:
    """Told nothing, or told to stop, and then the other end of the pipe is gone."""
    line = told if told is not None else job(directory, Point.CLAIMED).to_line()
    ended = subprocess.run(
        [sys.executable, "-m", "memstate_core.demo.victim"],
        input=line,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert ended.returncode == (0 if told is not None else 1)
    assert ended.stdout.strip() == ("" if told is not None else READY)


def test_where_the_dead_cannot_be_told_from_the_slow_the_lease_ends(
    directory: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "is_gone", lambda owner: False)
    victim = stack.enter_context(Victim())
    with opened(directory) as memory:
        before = memory.dump()
    outcome = kill_in_commit(victim, directory, job(directory, Point.UNDECIDED), before)
    assert outcome == Outcome(Point.UNDECIDED, 10, 10, 10, 0, 0, False, True, 0)
