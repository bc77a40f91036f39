"""Who holds a claim, and whether that process still exists.

An owner's name carries its host, PID namespace, process id and start time, so that another process of
the same host can tell that it is gone; everyone else waits for the lease to end.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Final

_alive: set[str] = set()

# The owners on whose behalf one is called, in whichever thread or task: of a transaction that tells a hook, say.
_behind: Final[ContextVar[tuple[str, ...]]] = ContextVar("memstate_owners", default=())


@functools.lru_cache(maxsize=1)
def _host() -> str:
    """Where process ids mean the same: host, boot and PID namespace; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return f"{os.uname().nodename}/{boot}/{namespace}"


def _started(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot; ``"ended"``: not reaped yet; None: not to be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return "ended" if fields[0] in "ZX" else fields[19]


def _may_run(pid: int, started: str) -> bool:
    """Whether a process may still be there; where ``/proc`` hides others' processes, a signal's delivery tells."""
    seen = _started(pid)
    if seen is not None:
        return seen == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@functools.lru_cache(maxsize=4)
def _process(pid: int) -> str:
    started = _started(pid) if sys.platform == "linux" else ""
    return f"{_host()}|{pid}|{started or ''}"


@functools.lru_cache(maxsize=4)
def _names(pid: int) -> str:
    """What the names of a process's owners begin with; random, as not every system tells one process from another."""
    return f"{_process(pid)}|{os.urandom(16).hex()}"


_numbers: Final = itertools.count()
if hasattr(os, "register_at_fork"):  # a child may get the id of an ancestor that has ended
    os.register_at_fork(after_in_child=_process.cache_clear)
    os.register_at_fork(after_in_child=_names.cache_clear)


class owning:
    """A name under which one transaction of this process claims facts, for as long as the block runs."""

    __slots__ = ("_owner", "_token")

    def __enter__(self) -> str:
        self._owner = owner = f"{_names(os.getpid())}.{next(_numbers)}"
        _alive.add(owner)
        self._token = _behind.set((*_behind.get(), owner))
        return owner

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _alive.discard(self._owner)
        try:  # noqa: SIM105 - suppress() takes longer than all of this
            _behind.reset(self._token)
        except ValueError:  # whoever never was resumed is closed in another context
            pass


def is_alive(owner: str) -> bool:
    """Whether an owner is a transaction of this process that has not ended."""
    return owner in _alive


def is_behind_us(owner: str) -> bool:
    """Whether we are called by an owner, who waits until we return."""
    return owner in _behind.get()


def is_gone(owner: str) -> bool:
    """Whether an owner is known to have ended, interrupted or killed; False when that cannot be told."""
    with contextlib.suppress(ValueError):
        host, pid, started, _ = owner.split("|")
        if f"{host}|{pid}|{started}" == _process(os.getpid()):
            return owner not in _alive
        return bool(host and started) and host == _host() and not _may_run(int(pid), started)
    return False
