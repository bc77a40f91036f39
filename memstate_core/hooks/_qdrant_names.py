"""Which collection has a hook's name, and how another one takes its place.

A collection in Qdrant cannot be renamed, an alias can be: at once, and only while it is there. So the collections that
are made beside others have names of their own, which never come back, and aliases say what becomes of them:

- ``NAME.memstate-<hex>-new``: it is being filled.
- ``NAME.memstate-ready``: it is filled, and is about to have the name.
- ``NAME``: it is in use.
- none: it was in use, or somebody died while making it; it is deleted.

The first one is called ``NAME`` itself. A swap makes what is new ready, deletes the first one if that is there, and
makes what is ready the one in use. From "ready" there is no way back: whoever finds no collection of the name, or comes
after a crash, goes on from there. So the name never stands for one that is not filled.

A request goes to whatever has the name when it comes, and who asks may still know the one before. Therefore the vectors
of every collection but the first have a name too, its own: Qdrant refuses vectors of another name, or without one.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from qdrant_client import models

from memstate_core.errors import HookError

_MARK: Final = ".memstate-"
_NEW: Final = "-new"
_VECTORS: Final = re.compile("memstate-[0-9a-f]{32}")

Call = Callable[..., Coroutine[Any, Any, Any]]


def vectors_of(made: str) -> str:
    """The name of the vectors in a collection that was made beside another one."""
    return made.rpartition(".")[2]


def vectors_in(info: models.CollectionInfo) -> tuple[str | None, models.VectorParams | None]:
    """The vectors in a collection by name, which those have that were made beside others; None, None: other ones."""
    vectors = info.config.params.vectors
    if isinstance(vectors, models.VectorParams):
        return None, vectors
    named = {name: params for name, params in (vectors or {}).items() if _VECTORS.fullmatch(name)}
    return next(iter(named.items())) if len(named) == len(vectors or {}) == 1 else (None, None)


class QdrantNames:
    """The collections of one hook, by name. ``call`` calls a method of the client, or awaits it."""

    def __init__(self, client: Any, call: Call, name: str) -> None:
        self._client = client
        self._call = call
        self._name = name
        self._ready = f"{name}{_MARK}ready"
        self._made = re.compile(re.escape(f"{name}.") + _VECTORS.pattern)
        self._begun = re.compile(self._made.pattern + _NEW)

    async def info(self) -> models.CollectionInfo | None:
        """What Qdrant says of the collection in use, if there is one."""
        if not await self._exists():
            return None
        try:
            return await self._info()
        except Exception:
            # The first one has been replaced since we have asked; no other leaves the name.
            return await self._info() if await self._exists() else None

    async def _exists(self) -> bool:
        if await self._has_name():
            return True
        if self._ready not in await self._aliases():
            return False
        return await self._renamed(self._ready, self._name) or await self._has_name()

    async def begin(self, vectors: models.VectorParams, options: Mapping[str, Any]) -> str:
        """The name of a new collection beside the one in use; those that were begun before are deleted."""
        await self.settle()
        begun = [alias for alias in await self._aliases() if self._begun.fullmatch(alias)]
        if begun:
            # By this they cannot become ready any more, whoever still believes to be filling them.
            await self._change(
                *(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)) for alias in begun)
            )
            await self._clear()
        made = f"{self._name}{_MARK}{uuid.uuid4().hex}"
        create = self._client.create_collection
        await self._call(create, collection_name=made, vectors_config={vectors_of(made): vectors}, **options)
        alias = models.CreateAlias(collection_name=made, alias_name=made + _NEW)
        await self._change(models.CreateAliasOperation(create_alias=alias))
        return made

    async def swap(self, made: str) -> None:
        """Give a collection that :meth:`begin` has made the name; the one in use is deleted.

        :raises HookError: somebody else has begun one since.
        """
        if not await self._renamed(made + _NEW, self._ready):
            raise HookError(f"{made!r} is not the collection any more that is made beside {self._name!r}")
        await self.settle()

    async def settle(self) -> None:
        """Finish a swap, and delete what it has replaced, and what nobody has come to fill."""
        aliases = await self._aliases()
        if self._ready in aliases:
            if self._name not in aliases:
                await self._delete(self._name)
            await self._renamed(self._ready, self._name)
        await self._clear()

    async def _clear(self) -> None:
        # In this order: what was there before the aliases were looked at, and has none, will have none.
        there = [one.name for one in (await self._call(self._client.get_collections)).collections]
        aliases = await self._aliases()
        for name in there:
            if self._made.fullmatch(name) and name not in aliases.values():
                await self._delete(name)
        if self._name in there and self._name in aliases:
            # Somebody has made it while the name was free for a moment; a server goes by the alias.
            await self._delete(self._name)

    async def _has_name(self) -> bool:
        return bool(await self._call(self._client.collection_exists, collection_name=self._name))

    async def _info(self) -> models.CollectionInfo:
        info: models.CollectionInfo = await self._call(self._client.get_collection, collection_name=self._name)
        return info

    async def _aliases(self) -> dict[str, str]:
        answer = await self._call(self._client.get_aliases)
        return {alias.alias_name: alias.collection_name for alias in answer.aliases}

    async def _renamed(self, alias: str, name: str) -> bool:
        """Rename an alias; False: it is not there."""
        rename = models.RenameAlias(old_alias_name=alias, new_alias_name=name)
        try:
            await self._change(models.RenameAliasOperation(rename_alias=rename))
        except Exception:
            if alias in await self._aliases():
                raise
            return False
        return True

    async def _change(self, *operations: models.AliasOperations) -> None:
        await self._call(self._client.update_collection_aliases, change_aliases_operations=operations)

    async def _delete(self, name: str) -> None:
        await self._call(self._client.delete_collection, collection_name=name)
