"""Which collection has a hook's name, and how another one takes its place.

Chroma has no request for that. A swap renames the collection in use to ``….memstate-old``, renames the new one, which
was ``….memstate-new``, and deletes the old one. Handles on a collection go by its id, and fail when it is deleted.

Whoever finds no collection of the name in between, or after a crash in between, gives the old one its name back; the
swap notices and begins again. So the name never stands for nothing, nor for a collection that is not filled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from chromadb.errors import NotFoundError

from memstate_core.errors import HookError

_NEW: Final = ".memstate-new"
_OLD: Final = ".memstate-old"

# What the metadata of a collection has that was begun beside another one.
BESIDE: Final = "memstate_beside"

Call = Callable[..., Coroutine[Any, Any, Any]]


class ChromaNames:
    """The collections of one hook, by name. ``call`` calls a method of the client, or awaits it."""

    def __init__(self, client: Any, call: Call, name: str) -> None:
        self._client = client
        self._call = call
        self._name = name

    async def current(self, configuration: Mapping[str, Any]) -> Any:
        """The collection in use; it is made if there is none."""
        while True:
            if (found := await self.named(self._name)) is not None:
                return found
            if (old := await self.named(self._name + _OLD)) is None:
                # Without an embedding function Chroma does not compare it with the one that it may remember.
                return await self._call(
                    self._client.get_or_create_collection,
                    name=self._name,
                    configuration=dict(configuration),
                    embedding_function=None,
                )
            with contextlib.suppress(NotFoundError):  # a swap has come to its end
                await self._renamed(old, self._name)

    async def begin(self, configuration: Mapping[str, Any], metadata: Mapping[str, Any]) -> Any:
        """A new collection beside the one in use; one that was begun before is deleted.

        :raises HookError: a collection of that name was not made here.
        """
        name = self._name + _NEW
        left = await self.named(name)
        if left is not None and BESIDE not in (left.metadata or {}):
            raise HookError(f"the collection {name!r} is in the way; delete or rename it")
        await self._remove(name)
        return await self._call(
            self._client.create_collection,
            name=name,
            configuration=dict(configuration),
            metadata={**metadata, BESIDE: self._name},
            embedding_function=None,
        )

    async def swap(self, new: Any) -> None:
        """Give a collection that :meth:`begin` returned the name.

        :raises NotFoundError: somebody else has begun one since.
        """
        while True:
            current = await self.named(self._name)
            if current is not None:
                if current.id == new.id:
                    return
                await self._remove(self._name + _OLD)  # a swap before this one may have ended before it did this
                with contextlib.suppress(NotFoundError):
                    await self._renamed(current, self._name + _OLD)
            if await self._renamed(new, self._name):
                return

    async def settle(self, configuration: Mapping[str, Any]) -> Any:
        """The collection in use; the one that it has replaced is deleted."""
        current = await self.current(configuration)
        await self._remove(self._name + _OLD)
        return current

    async def named(self, name: str) -> Any | None:
        """The collection of a name, if there is one."""
        try:
            return await self._call(self._client.get_collection, name=name, embedding_function=None)
        except NotFoundError:
            return None

    async def _renamed(self, collection: Any, name: str) -> bool:
        """Rename; False: another collection has taken the name."""
        try:
            await self._call(collection.modify, name=name)
        except NotFoundError:
            raise
        except Exception:
            if await self.named(name) is None:
                raise
            return False
        return True

    async def _remove(self, name: str) -> None:
        with contextlib.suppress(NotFoundError):
            await self._call(self._client.delete_collection, name=name)
