"""What the hooks have in common that rebuild their index on another collection, beside the one in use."""

from __future__ import annotations

import abc
import base64
from typing import Any, Final, Self

import numpy as np

from memstate_core._bridge import run
from memstate_core.errors import HookError
from memstate_core.hooks._vector_hook import VectorHook
from memstate_core.hooks._vectors import Vector, distances

# What a model makes of this tells it from others; the same one's vectors differ a little between machines.
_PROBE: Final = "Which model has embedded this index of facts that an agent remembers?"
_SAME_MODEL: Final = 0.01


class RebuildableVectorHook(VectorHook):
    """A hook that rebuilds, but for its vendor, and for whether it waits.

    A rebuilt collection remembers how its model embeds one text, so that no other model's vectors come into it.
    """

    collection_name: str

    async def _probed(self, operation: str) -> Vector:
        """How our model embeds that one text."""
        (vector,) = await self._embed([_PROBE], operation)
        return vector

    async def _check_model(self, fingerprint: str) -> None:
        """
        :raises HookError: the collection was rebuilt with another model.
        """
        there = np.frombuffer(base64.b64decode(fingerprint), "<f4")
        ours = await self._probed("open")
        if len(ours) != len(there) or distances("cosine", there, ours[np.newaxis])[0] > _SAME_MODEL:
            raise HookError(
                f"the collection {self.collection_name!r} was rebuilt with another embedding function than this hook"
                " has: make the hook with that one, here and in all other processes",
                hook=self.name,
                operation="open",
            )

    async def _refuse_others(self) -> None:
        """
        :raises HookError: there is something in the collection that is not of our namespace, and would be lost.
        """
        if await self._has_others():
            raise HookError(
                f"the collection {self.collection_name!r} has entries of others than the namespace {self._namespace!r},"
                " which would be lost; give each namespace a collection of its own to rebuild them",
                hook=self.name,
            )

    # What a vendor is asked, as :class:`~memstate_core.protocols.RebuildableHook` says it.
    @abc.abstractmethod
    async def _has_others(self) -> bool:
        """Whether the collection in use has entries that are not of our namespace."""

    @abc.abstractmethod
    async def _beside(self) -> Self: ...

    @abc.abstractmethod
    async def _swap(self, beside: Any) -> None: ...

    @abc.abstractmethod
    async def _settle(self) -> None: ...


class SyncRebuilding(RebuildableVectorHook):
    """The methods of a hook that rebuilds, for a client that answers at once."""

    def beside(self) -> Self:
        """The same on a new collection, see :class:`~memstate_core.protocols.RebuildableHook`."""
        return run(self._beside())

    def swap(self, beside: Self) -> None:
        run(self._swap(beside))

    def settle(self) -> None:
        """Go to the collection in use, and delete the one that it has replaced."""
        run(self._settle())


class AsyncRebuilding(RebuildableVectorHook):
    """Same as :class:`SyncRebuilding`, awaited."""

    async def beside(self) -> Self:
        """Same as :meth:`SyncRebuilding.beside`, awaited."""
        return await self._beside()

    async def swap(self, beside: Self) -> None:
        """Same as :meth:`SyncRebuilding.swap`, awaited."""
        await self._swap(beside)

    async def settle(self) -> None:
        """Same as :meth:`SyncRebuilding.settle`, awaited."""
        await self._settle()


def fingerprint(vector: Vector) -> str:
    """A vector of one text as text, to be remembered."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
