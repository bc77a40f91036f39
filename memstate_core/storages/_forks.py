"""Forks: whoever holds locks or connections lets go of them before, and takes new ones after, on both sides.

A lock that another thread holds would stay locked in the child for ever, and SQLite's connections must not be carried
over a fork, not even unused: its bookkeeping of file locks is per process.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    def before_fork(self) -> None: ...

    def after_fork(self, *, in_child: bool) -> None: ...


_holders: weakref.WeakSet[Forkable] = weakref.WeakSet()
_told: list[Forkable] = []


def tell_of_forks(holder: Forkable) -> None:
    """Have ``before_fork`` called before a fork, and ``after_fork`` in the parent and the child."""
    _holders.add(holder)


def _before() -> None:
    for holder in list(_holders):
        holder.before_fork()
        _told.append(holder)


def _after(*, in_child: bool) -> None:
    while _told:
        _told.pop().after_fork(in_child=in_child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before,
        after_in_parent=lambda: _after(in_child=False),
        after_in_child=lambda: _after(in_child=True),
    )
