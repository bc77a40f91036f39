"""Faults on purpose: steps at which a contender can be broken, what breaks it there, and indexes with such steps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Act = Callable[[], object]


class Unreachable(ConnectionError):
    """What an index or a database raises that fails on purpose."""


class Interrupted(KeyboardInterrupt):
    """What Ctrl-C raises, told from the one of who watches the trials."""


def fail() -> None:
    raise Unreachable("away (a fault on purpose)")


def time_out() -> None:
    raise TimeoutError("no answer in time (a fault on purpose)")


def interrupt() -> None:
    raise Interrupted


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(slots=True)
class Fault:
    """Happens at the ``at``-th step of those that it ``counts``, and at each later one of which ``then`` is true."""

    act: Act
    at: int = 1
    counts: Callable[[str], bool] = lambda _: True
    then: Callable[[str], bool] = lambda _: False
    fired: bool = field(default=False, init=False)
    _seen: int = field(default=0, init=False)

    def step(self, step: str) -> None:
        if self.fired:
            if self.then(step):
                self.act()
            return
        self._seen += self.counts(step)
        if self._seen == self.at:
            self.fired = True
            self.act()


class NowAndThen:
    """A fault that makes a share of an index's messages fail, before or after they were carried out."""

    def __init__(self, index: str, share: float) -> None:
        self._index = index
        self._share = share
        self._random = random.Random(0)
        self._due = ""

    def step(self, step: str) -> None:
        index, _, place = step.partition(": ")
        if index != self._index:
            return
        if place == "before":
            failing = self._random.random() < self._share
            self._due = self._random.choice(("before", "wrote")) if failing else ""
        if place == self._due:
            self._due = ""
            fail()


class Steps:
    """Told of every step of a contender and its indexes; while :meth:`watched`, it notes them and lets a fault act.

    The steps are ``"storage: before"``, ``"storage: inside"`` (done, but not committed) and ``"storage: after"`` of
    each call to storage, and for an index ``"first: before"`` each message and ``"first: wrote"`` after each entry.
    """

    def __init__(self) -> None:
        self._passed: list[str] | None = None
        self._fault: Fault | NowAndThen | None = None

    def __call__(self, step: str) -> None:
        if self._passed is None:
            return
        self._passed.append(step)
        if self._fault is not None:
            self._fault.step(step)

    @contextlib.contextmanager
    def watched(self, fault: Fault | NowAndThen | None = None) -> Iterator[list[str]]:
        self._passed, self._fault = [], fault
        try:
            yield self._passed
        finally:
            self._passed = self._fault = None


class Index:
    """Texts by fact id, as a vector index keeps documents; ``twice``: every message arrives twice."""

    def __init__(self, name: str, steps: Steps, *, twice: bool = False) -> None:
        self.name = name
        self._steps = steps
        self._times = 2 if twice else 1
        self._texts: dict[str, str] = {}

    def apply(self, entries: Mapping[str, str | None]) -> None:
        """One message: these facts have these texts now, or are gone (None)."""
        for _ in range(self._times):
            self._steps(f"{self.name}: before")
            for fact_id, text in entries.items():
                self._write(fact_id, text)
                self._steps(f"{self.name}: wrote")

    async def apply_async(self, entries: Mapping[str, str | None]) -> None:
        """The same by a client that waits for the network."""
        await asyncio.sleep(0)
        self.apply(entries)
        await asyncio.sleep(0)

    def texts(self) -> dict[str, str]:
        return dict(self._texts)

    def twin(self, steps: Steps) -> Index:
        """The same index by another client."""
        twin = Index(self.name, steps)
        twin._texts = self._texts
        return twin

    def _write(self, fact_id: str, text: str | None) -> None:
        if text is None:
            self._texts.pop(fact_id, None)
        else:
            self._texts[fact_id] = text


class FileIndex(Index):
    """The same in a file, which outlives the process that writes to it."""

    def __init__(self, name: str, steps: Steps, directory: Path) -> None:
        super().__init__(name, steps)
        self._path = directory / f"{name}.index"
        self._execute("CREATE TABLE IF NOT EXISTS entries (id TEXT PRIMARY KEY, text TEXT)")

    def texts(self) -> dict[str, str]:
        return dict(self._execute("SELECT id, text FROM entries"))

    def _write(self, fact_id: str, text: str | None) -> None:
        if text is None:
            self._execute("DELETE FROM entries WHERE id = ?", fact_id)
        else:
            self._execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", fact_id, text)

    def _execute(self, sql: str, *parameters: Any) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None, timeout=60)) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # processes are killed, the machine is not
            return connection.execute(sql, parameters).fetchall()


class CancelledAt:
    """Awaits something, and cancels its own task when that waits for the ``at``-th time."""

    def __init__(self, work: Awaitable[Any], at: int) -> None:
        self._work = work
        self._at = at
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._work.__await__()
        sent, error = None, None
        while True:
            try:
                waiting = inner.send(sent) if error is None else inner.throw(error)
            except StopIteration as done:
                return done.value
            self.waits += 1
            if self.waits == self._at:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            sent, error = None, None
            try:
                sent = yield waiting
            except BaseException as raised:  # the cancellation, or what the wait ended with
                error = raised
