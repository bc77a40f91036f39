"""The storages that are measured, a module for each: its floor, how it is opened, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.workload import Subject

if TYPE_CHECKING:
    from memstate_core.protocols import Storage


@dataclass(frozen=True, slots=True)
class StorageKind:
    """One storage. Everything is opened in a new directory, and closed by who opened it.

    :param floor: opens the floor.
    :param storage: opens memstate's storage, and ``async_storage`` the one for the async store.
    :param floor_needs_thread: whether the floor blocks, so that an event loop has to call it in a thread.
    :param targets: by operation, what its ratio to the floor may be at most (of writers: must be at least).
    """

    name: str
    floor: Callable[[Path], Subject]
    storage: Callable[[Path], Storage]
    async_storage: Callable[[Path], Storage]
    floor_needs_thread: bool
    targets: Mapping[str, float] = field(default_factory=dict)


def kinds() -> tuple[StorageKind, ...]:
    from benchmarks.storages.memory import MEMORY
    from benchmarks.storages.postgres import POSTGRES
    from benchmarks.storages.redis import REDIS
    from benchmarks.storages.sqlite import SQLITE

    return (MEMORY, SQLITE, POSTGRES, REDIS)
