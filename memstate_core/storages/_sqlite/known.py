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
    """Positions, claims and records, for one transaction after the other. Not for the connections that only read."""

    def __init__(self) -> None:
        # The number under which all this is known; None: whether it is so is not known.
        self._version: int | None = None
        self._positions: dict[tuple[str, str | None], Position] = {}
        # By namespace the owner of every claim in it, by key. What others left is not known.
        self._claims: dict[str, dict[str, str]] = {}
        self._records: dict[tuple[str, Place], bytes | None] = {}

    def check(self, connection: Connection) -> None:
        """In a transaction that writes: forget everything if others have written before it."""
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._positions.clear()
            self._claims.clear()
            self._records.clear()
            self._version = version

    def commits(self) -> int | None:
        """A transaction is about to be committed. Unless :meth:`committed` follows, nothing is known any more."""
        version, self._version = self._version, None
        return version

    def committed(self, version: int | None, namespace: str, batch: Batch | None) -> None:
        """So it has, with this batch; ``version`` is what :meth:`commits` returned."""
        if batch is not None:
            if batch.definitions:
                self._positions.clear()
            elif batch.entry is not None:
                key = namespace, batch.entry.session_id
                old = self._positions.get(key)
                if old is not None:
                    head = batch.seq if batch.entry.head is None else batch.entry.head
                    self._positions[key] = Position(head, batch.entry.redo, old.generation, old.claimed)
            if batch.claims or batch.drop_claims_of is not None:
                self._claims_change(namespace, batch)
            if batch.records:
                self.learn(namespace, [((one.collection, one.key), one.value) for one in batch.records])
        self._version = version

    def _claims_change(self, namespace: str, batch: Batch) -> None:
        claims = self._claims.get(namespace)
        if claims is None:
            self._positions.clear()
            return
        if (owner := batch.drop_claims_of) is not None:
            for key in [key for key, its in claims.items() if its == owner]:
                del claims[key]
        for claim in batch.claims:
            claims[claim.key] = claim.owner

    def position(self, namespace: str, session_id: str | None) -> Position | None:
        position = self._positions.get((namespace, session_id))
        claims = self._claims.get(namespace)
        if position is None or claims is None or position.claimed == bool(claims):
            return position
        return Position(position.head, position.redo, position.generation, bool(claims))

    def moment(self, connection: Connection) -> object:
        """What changes with every change, by whomever, and with the connection, each of which counts for itself."""
        return self, self._version, connection.total_changes

    def stands(self, namespace: str, session_id: str | None, position: Position) -> None:
        if len(self._positions) >= _MOST:
            self._positions.clear()
        self._positions[namespace, session_id] = position
        if not position.claimed:
            self._claims.setdefault(namespace, {})

    def is_free(self, namespace: str, keys: Sequence[str]) -> bool:
        """Whether it is known that nobody has claimed any of the keys."""
        claims = self._claims.get(namespace)
        return claims is not None and claims.keys().isdisjoint(keys)

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
