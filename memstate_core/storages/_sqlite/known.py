"""What the connection that writes has seen, which is so as long as nobody else has written to the database.

Where a session stands and what small records say is read in nearly every transaction, and mostly has been read or
written by the one before. SQLite tells by a number whether another connection has committed since.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from memstate_core.protocols import Batch, Position
from memstate_core.storages._sqlite.connection import Connection

_MOST: Final = 10_000
_LONGEST: Final = 256  # bytes of a value

Place = tuple[str, str]


class Known:
    """Positions and records, for one transaction after the other. Not for the connections that only read."""

    def __init__(self) -> None:
        # The number under which all this is known; None: whether it is so is not known.
        self._version: int | None = None
        self._positions: dict[tuple[str, str | None], Position] = {}
        self._records: dict[tuple[str, Place], bytes | None] = {}

    def check(self, connection: Connection) -> None:
        """In a transaction that writes: forget everything if others have written before it."""
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._positions.clear()
            self._records.clear()
            self._version = version

    def commits(self) -> int | None:
        """A transaction is about to be committed. Unless :meth:`committed` follows, nothing is known any more."""
        version, self._version = self._version, None
        return version

    def committed(self, version: int | None, namespace: str, batch: Batch | None) -> None:
        """So it has, with this batch; ``version`` is what :meth:`commits` returned."""
        if batch is not None:
            if batch.definitions or batch.claims or batch.drop_claims_of is not None:
                self._positions.clear()
            elif batch.entry is not None:
                key = namespace, batch.entry.session_id
                old = self._positions.get(key)
                if old is not None:
                    head = batch.seq if batch.entry.head is None else batch.entry.head
                    self._positions[key] = old._replace(head=head, redo=batch.entry.redo)
            self.learn(namespace, [((one.collection, one.key), one.value) for one in batch.records])
        self._version = version

    def position(self, namespace: str, session_id: str | None) -> Position | None:
        return self._positions.get((namespace, session_id))

    def stands(self, namespace: str, session_id: str | None, position: Position) -> None:
        if len(self._positions) >= _MOST:
            self._positions.clear()
        self._positions[namespace, session_id] = position

    def records(self, namespace: str, places: Sequence[Place]) -> dict[Place, bytes | None] | None:
        """What some records are (None: not there), if that is known of all."""
        known = self._records
        try:
            return {place: known[namespace, place] for place in places}
        except KeyError:
            return None

    def learn(self, namespace: str, records: Collection[tuple[Place, bytes | None]]) -> None:
        if len(self._records) + len(records) > _MOST:
            self._records.clear()
        for place, value in records:
            if value is None or len(value) <= _LONGEST:
                self._records[namespace, place] = value
            else:
                self._records.pop((namespace, place), None)
