"""Locks, threads and connections do not survive a fork; whoever holds some is told in the child."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    def after_fork(self) -> None: ...


_holders: weakref.WeakSet[Forkable] = weakref.WeakSet()


def renew_after_fork(holder: Forkable) -> None:
    """Have ``holder.after_fork()`` called in every child process."""
    _holders.add(holder)


def _tell() -> None:
    for holder in list(_holders):
        holder.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
