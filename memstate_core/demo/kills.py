"""Kill a process in the middle of its commit, and look at what a new store makes of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from memstate_core._bridge import run
from memstate_core.demo.memory import DATABASE, Dump, Memory, differences, opened, unlike
from memstate_core.demo.victim import LEASE, READY, Job, Point
from memstate_core.facts import Transaction
from memstate_core.storages.sqlite import SQLiteStorage
from memstate_core.store import MemoryStore

_PATIENCE: Final = 60.0


class KillError(Exception):
    """The process could not be killed where it should have been."""


class Outcome(NamedTuple):
    """What one kill left behind, and what became of it.

    Right after the kill, ``torn`` entries of the index did not fit storage, and ``in_doubt`` facts were claimed by the
    dead process; ``healed`` of them were put right. ``drift`` is what the store finds then, ``unlike`` what an
    independent comparison finds. If the transaction was ``committed`` all the same, it was rolled back; ``whole`` says
    that all of it had been there, or nothing. In the end ``changed`` facts and entries were not what they were before.
    """

    point: Point
    torn: int
    in_doubt: int
    healed: int
    drift: int
    unlike: int
    committed: bool
    whole: bool
    changed: int


class Victim:
    """A process that will be killed; it is started early, since importing takes it a second."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "memstate_core.demo.victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
        )

    @property
    def returncode(self) -> int | None:
        """None as long as it lives; after ``SIGKILL`` it is -9."""
        return self._process.poll()

    def kill_at(self, job: Job) -> None:
        """Let the process do its job as far as the point, and send it ``SIGKILL`` there.

        :raises KillError: it ended by itself, or did not get there in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        # A pipe cannot be read with a time-out on every system; this ends the pipe.
        timer = threading.Timer(_PATIENCE, give_up)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(job.to_line())
                self._process.stdin.flush()
            answer = self._process.stdout.readline().strip()
        finally:
            timer.cancel()
        if answer != READY:
            self._process.wait()
            reason = f"did not get there within {_PATIENCE:g} s" if late.is_set() else f"ended: {self._last_error()}"
            raise KillError(f"the process that was to be killed when {job.point} {reason}")
        self.close()

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                if file is not None:
                    file.close()


def kill_in_commit(victim: Victim, directory: Path, job: Job, before: Dump) -> Outcome:
    """Kill the process where the job says, open what is left, recover, and undo what was committed."""
    last = _last_transaction(directory)
    victim.kill_at(job)
    with opened(directory) as memory:
        torn = unlike(memory.dump())
        in_doubt = _claimed(memory)
        healed = _recover(memory)
        drift = memory.drift()
        recovered = memory.dump()
        newest = _last_transaction(directory)
        committed = newest is not None and newest != last
        told = {change.fact_id for change in newest.changes} if newest and committed else set()
        whole = told == set(differences(before.facts, recovered.facts))
        if committed:
            memory.store.rollback(job.session_id, reason="the process was killed before it could tell")
        after = memory.dump()
    changed = [*differences(before.facts, after.facts), *differences(before.entries, after.entries)]
    return Outcome(
        Point(job.point),
        len(torn),
        len(in_doubt),
        len(healed),
        drift,
        len(unlike(recovered)) + len(unlike(after)),
        committed,
        whole,
        len(changed),
    )


def _last_transaction(directory: Path) -> Transaction | None:
    with SQLiteStorage(directory / DATABASE) as storage:
        return next(iter(MemoryStore(storage).history(limit=1)), None)


def _claimed(memory: Memory) -> list[str]:
    """The facts that a transaction has claimed: one that is alive, or whose process is dead."""
    claims = run(memory.storage.read(memory.store.namespace, lambda tx: tx.claims()))
    return [claim.key for claim in claims if claim.key.startswith("fact:")]


def _recover(memory: Memory) -> list[str]:
    """Recover until nothing is claimed; where a process cannot be seen to be dead, that takes as long as its lease."""
    healed = list(memory.store.recover().healed)
    deadline = time.monotonic() + 3 * LEASE
    while _claimed(memory) and time.monotonic() < deadline:
        time.sleep(0.05)
        healed += memory.store.recover().healed
    return healed
