"""The outbox in SQLite: what hooks are still to be told of, and who delivers which lane."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from memstate_core.facts import ChangedVersions
from memstate_core.protocols import LANES, ClaimsLost, Deferred, Delivery, Lane, LaneState, Settlement
from memstate_core.storages._sqlite.connection import Connection

_DELIVERY: Final = "seq, fact_id, before, after, at, attempts, due, error"
_OLDEST: Final = f"""
    SELECT {_DELIVERY} FROM memstate_outbox WHERE namespace = ? AND hook = ? AND lane = ? ORDER BY seq LIMIT ?
"""
_COUNTS: Final = """
    SELECT hook, lane, sum(pending), sum(failing), max(owner), max(expires) FROM (
        SELECT hook, lane, count(*) AS pending, 0 AS failing, NULL AS owner, 0.0 AS expires
        FROM memstate_outbox WHERE namespace = ? GROUP BY hook, lane
        UNION ALL
        SELECT hook, lane, 0, count(*), NULL, 0.0
        FROM memstate_outbox WHERE namespace = ? AND attempts > 0 GROUP BY hook, lane
        UNION ALL
        SELECT hook, lane, 0, 0, owner, expires FROM memstate_lanes WHERE namespace = ?
    ) GROUP BY hook, lane ORDER BY hook, lane
"""
# There are few lanes and there may be many deliveries, so each lane is asked for its first one that is due.
_FREE: Final = f"""
    WITH RECURSIVE numbers (number) AS (SELECT 0 UNION ALL SELECT number + 1 FROM numbers WHERE number < {LANES - 1})
    SELECT h.value, n.number, (
        SELECT seq FROM memstate_outbox o
        WHERE o.namespace = ? AND o.hook = h.value AND o.lane = n.number AND o.due <= ? ORDER BY seq LIMIT 1
    ) AS first
    FROM json_each(?) h CROSS JOIN numbers n
    LEFT JOIN memstate_lanes l ON l.namespace = ? AND l.hook = h.value AND l.lane = n.number
    WHERE first IS NOT NULL
        AND (l.owner IS NULL OR l.expires < ? OR l.owner IN (SELECT value FROM json_each(?)))
    ORDER BY first LIMIT 1
"""


def put(connection: Connection, namespace: str, deferred: Sequence[Deferred], seq: int) -> None:
    """Put changes of the transaction ``seq`` into the outbox."""
    connection.executemany(
        "INSERT INTO memstate_outbox (namespace, hook, lane, seq, fact_id, before, after, at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(namespace, *lane, seq, *change, at) for lane, change, at in deferred],
    )


def lanes(connection: Connection, namespace: str) -> list[LaneState]:
    states = []
    for hook, number, pending, failing, owner, expires in connection.execute(_COUNTS, (namespace,) * 3).fetchall():
        lane = Lane(hook, number)
        oldest = next(iter(deliveries(connection, namespace, lane, 1)), None)
        states.append(LaneState(lane, pending, oldest, failing, owner, expires))
    return states


def deliveries(connection: Connection, namespace: str, lane: Lane, limit: int) -> list[Delivery]:
    return [_delivery(row) for row in connection.execute(_OLDEST, (namespace, *lane, limit))]


def _delivery(row: Sequence[Any]) -> Delivery:
    seq, fact_id, before, after, at, attempts, due, error = row
    return Delivery(seq, ChangedVersions(fact_id, before, after), at, attempts, due, error)


def take_lane(
    connection: Connection,
    namespace: str,
    hooks: Sequence[str],
    owner: str,
    now: float,
    expires: float,
    gone: Sequence[str],
) -> Lane | None:
    parameters = (namespace, now, json.dumps(list(hooks)), namespace, now, json.dumps(list(gone)))
    found = connection.execute(_FREE, parameters).fetchone()
    if found is None:
        return None
    lane = Lane(*found[:2])
    _lease(connection, namespace, lane, owner, expires)
    return lane


def _lease(connection: Connection, namespace: str, lane: Lane, owner: str, expires: float) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO memstate_lanes (namespace, hook, lane, owner, expires) VALUES (?, ?, ?, ?, ?)",
        (namespace, *lane, owner, expires),
    )


def settle(connection: Connection, namespace: str, settlement: Settlement) -> None:
    """See :class:`~memstate_core.protocols.Settlement`.

    :raises ClaimsLost: somebody else holds the lane.
    """
    lane, owner, expires, delivered, postponed = settlement
    held = connection.execute(
        "DELETE FROM memstate_lanes WHERE namespace = ? AND hook = ? AND lane = ? AND owner = ?",
        (namespace, *lane, owner),
    ).rowcount
    if not held:
        raise ClaimsLost
    if expires:
        _lease(connection, namespace, lane, owner, expires)
    this = "WHERE namespace = ? AND hook = ? AND lane = ? AND seq = ? AND fact_id = ?"
    connection.executemany(
        f"DELETE FROM memstate_outbox {this}",
        [(namespace, *lane, one.seq, one.change.fact_id) for one in delivered],
    )
    connection.executemany(
        f"UPDATE memstate_outbox SET attempts = ?, due = ?, error = ? {this}",
        [(one.attempts, one.due, one.error, namespace, *lane, one.seq, one.change.fact_id) for one in postponed],
    )
