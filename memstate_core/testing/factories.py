"""What the fixtures of a test file give to the kit: how storages and hooks are made."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from memstate_core.async_store import AsyncMemoryStore
from memstate_core.protocols import Storage
from memstate_core.storages.memory import AsyncInMemoryStorage, InMemoryStorage
from memstate_core.store import MemoryStore
from memstate_core.testing.face import Face
from memstate_core.testing.models import register_all

_numbers = itertools.count(1)


class StorageFactory:
    """Makes the storages of a test.

    :param make: ``make(name)`` returns a storage on the database of that name, which is new and empty for a new name.
        It need not be opened.
    :param persistent: a second storage of the same name has what the first one wrote.
    """

    def __init__(self, make: Callable[[str], Any], *, persistent: bool) -> None:
        self._make = make
        self.persistent = persistent
        self._names: dict[int, str] = {}
        self._made: list[Any] = []

    def new(self) -> Storage:
        """A storage on an empty database of its own."""
        return self._named(f"kit_{next(_numbers)}")

    def again(self, storage: Storage) -> Storage:
        """Another storage on the same database; the same one when there is no other way to its content."""
        return self._named(self._names[id(storage)]) if self.persistent else storage

    def _named(self, name: str) -> Storage:
        made: Storage = self._make(name)
        self._names[id(made)] = name
        self._made.append(made)
        return made

    async def aclose(self) -> None:
        """Close every storage made."""
        while self._made:
            await self._made.pop().aclose()


class HookFactory:
    """Makes the hooks of a test.

    :param make: ``make(name, target_types)`` returns a hook that keeps the payload field ``text`` of facts in the index
        of that name, which is new and empty for a new name.
    """

    def __init__(self, make: Callable[[str, set[str] | None], Any]) -> None:
        self._make = make
        self._names: dict[int, str] = {}
        self._made: list[Any] = []  # kept, so that no id is used twice

    def new(self, target_types: set[str] | None = None) -> Any:
        """A hook on an empty index of its own."""
        return self._named(f"kit_{next(_numbers)}", target_types)

    def again(self, hook: Any, target_types: set[str] | None = None) -> Any:
        """Another hook on the same index."""
        return self._named(self._names[id(hook)], target_types)

    def _named(self, name: str, target_types: set[str] | None) -> Any:
        hook = self._make(name, target_types)
        self._names[id(hook)] = name
        self._made.append(hook)
        return hook


class Clock:
    """A clock that says what it is told, and goes on by a second at every look."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.step = timedelta(seconds=1)

    def __call__(self) -> datetime:
        self.now += self.step
        return self.now


class Stores:
    """Makes the stores of a test."""

    def __init__(self, storages: StorageFactory) -> None:
        self.storages = storages

    def open(
        self,
        hooks: Sequence[Any] = (),
        *,
        storage: Any = None,
        models: bool = True,
        **options: Any,
    ) -> Face:
        """A store on ``storage`` (None: a new one), with the kit's models registered."""
        storage = self.storages.new() if storage is None else storage
        flavour: Any = AsyncMemoryStore if storage.is_async else MemoryStore
        face = Face(flavour(storage, hooks, **options))
        if models:
            register_all(face.store)
        return face

    async def reopen(self, face: Face, hooks: Sequence[Any] = (), **options: Any) -> Face:
        """What a restart of the process comes to: everything closed, and opened again."""
        await face.close()
        again = self.storages.again(face.storage)
        if again is not face.storage:
            await face.storage.aclose()
        return self.open(hooks, storage=again, **options)


class StoreTests:
    """Base of the tests that need storages; a fixture ``storages`` must give a :class:`StorageFactory`."""

    pytestmark = pytest.mark.asyncio

    @pytest_asyncio.fixture
    async def stores(self, storages: StorageFactory) -> AsyncIterator[Stores]:
        yield Stores(storages)
        await storages.aclose()

    @pytest.fixture
    def store(self, stores: Stores) -> Face:
        """A store on an empty storage, with the kit's models."""
        return stores.open()

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()


class HookTests:
    """Base of the tests that need hooks; a fixture ``make_hook`` must give a :class:`HookFactory`."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def stores(self, make_hook: HookFactory) -> Stores:
        """Stores in memory, of the flavour that the hooks are of."""
        kind = AsyncInMemoryStorage if inspect.iscoroutinefunction(make_hook.new().apply) else InMemoryStorage
        return Stores(StorageFactory(lambda _: kind(), persistent=False))
