"""Records that are asked for all at once, before what reads them one by one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from memstate_core.protocols import StorageTransaction


class _ReadAhead:
    """A transaction that knows some records already."""

    def __init__(
        self, tx: StorageTransaction, places: Collection[tuple[str, str]], found: Mapping[tuple[str, str], bytes]
    ) -> None:
        self._tx = tx
        self._places = places
        self._found = found
        # What is always asked for is found at once.
        self.is_serial = tx.is_serial
        self.position = tx.position

    async def record(self, collection: str, key: str, *, is_new: bool = False) -> bytes | None:
        place = collection, key
        return (
            self._found.get(place) if place in self._places else await self._tx.record(collection, key, is_new=is_new)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)


async def read_ahead(tx: StorageTransaction, places: Sequence[tuple[str, str]]) -> StorageTransaction:
    """The transaction, knowing the records at ``places``: one question to the storage, where each would be one."""
    if len(places) < 2:
        return tx
    return cast(StorageTransaction, _ReadAhead(tx, places, await tx.records(places)))
