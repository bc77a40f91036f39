"""Facts and index entries a page at a time, so that a walk through all of them holds few of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from memstate_core._bridge import Runtime
from memstate_core.changes import Decode
from memstate_core.errors import HookError
from memstate_core.facts import StoredFact
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.protocols import Selection, Storage, StorageTransaction

PAGE: Final = 1000

# The least ordinal is 0.
_START: Final = -1


class FactPages:
    """The facts of the types that a hook wants, in the order in which they were made, type by type.

    Every page is of its own moment: what is made or changed meanwhile may be in none.
    """

    def __init__(self, storage: Storage, namespace: str, decode: Decode, hook: HookAdapter) -> None:
        self._storage = storage
        self._namespace = namespace
        self._decode = decode
        self._types: list[str | None] = [None] if hook.target_types is None else [*sorted(hook.target_types)]
        self._after = _START

    async def count(self) -> int:
        """How many facts there are to come."""
        selections = [Selection(self._decode, typename=typename) for typename in self._types]

        async def work(tx: StorageTransaction) -> int:
            return sum([await tx.count(selection) for selection in selections])

        return await self._storage.read(self._namespace, work)

    async def next(self) -> list[StoredFact]:
        """The next page; empty: there are no more."""
        while self._types:
            page = await self._read(Selection(self._decode, typename=self._types[0], limit=PAGE, after=self._after))
            if page:
                self._after = page[-1].ordinal
                return page
            del self._types[0]
            self._after = _START
        return []

    async def _read(self, selection: Selection) -> list[StoredFact]:
        return await self._storage.read(self._namespace, lambda tx: tx.select(selection))


class EntryPages:
    """What a hook's ``scan`` finds in its index."""

    def __init__(self, runtime: Runtime, hook: HookAdapter) -> None:
        self._runtime = runtime
        self._hook = hook
        self._entries: Any = None

    async def next(self) -> list[tuple[str, int]]:
        """The next page of ids and versions; empty: there are no more.

        :raises HookError: the hook failed.
        """
        try:
            if self._entries is None:
                assert self._hook.scan is not None
                found = await self._runtime.call(self._hook.scan)
                if isinstance(found, Mapping):
                    found = found.items()
                self._entries = found if hasattr(found, "__aiter__") else iter(found)
            page: list[tuple[str, int]] = await self._runtime.take(self._entries, PAGE)
        except Exception as error:
            raise HookError(
                f"hook {self._hook.name!r} could not be scanned: {error}", hook=self._hook.name, operation="scan"
            ) from error
        return page

    async def close(self) -> None:
        """End a scan that is not at its end yet."""
        close = getattr(self._entries, "aclose", None) or getattr(self._entries, "close", None)
        if close is not None:
            # A thread that was left alone may still be in it, or the hook fails once more.
            with contextlib.suppress(Exception):
                await self._runtime.call(close)
