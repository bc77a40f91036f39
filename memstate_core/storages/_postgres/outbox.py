"""The outbox in PostgreSQL: what hooks are still to be told of, and who delivers which lane.

A lane's row is made when somebody first wants to take the lane, so commits write the outbox itself only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from memstate_core.facts import ChangedVersions
from memstate_core.protocols import LANES, Delivery, Lane, LaneState
from memstate_core.storages._postgres.tables import LANES as LANES_TABLE
from memstate_core.storages._postgres.tables import OUTBOX, name_of

_O: Final = name_of(OUTBOX)
_L: Final = name_of(LANES_TABLE)
_DELIVERY: Final = "seq, fact_id, before, after, at, attempts, due, error"

DELIVERIES: Final = f"""
SELECT {_DELIVERY} FROM {_O} WHERE namespace = $1 AND hook = $2 AND lane = $3::integer
ORDER BY seq, fact_id LIMIT $4::bigint
"""
STATES: Final = f"""
SELECT s.hook, s.lane, s.pending, s.failing, s.owner, s.expires, o.* FROM (
    SELECT hook, lane, sum(pending)::bigint AS pending, sum(failing)::bigint AS failing,
        max(owner) AS owner, max(expires) AS expires
    FROM (
        SELECT hook, lane, count(*) AS pending, 0 AS failing, NULL AS owner, 0::double precision AS expires
        FROM {_O} WHERE namespace = $1 GROUP BY hook, lane
        UNION ALL
        SELECT hook, lane, 0, count(*), NULL, 0 FROM {_O} WHERE namespace = $1 AND attempts > 0 GROUP BY hook, lane
        UNION ALL
        SELECT hook, lane, 0, 0, owner, expires FROM {_L} WHERE namespace = $1 AND owner IS NOT NULL
    ) parts GROUP BY hook, lane
) s LEFT JOIN LATERAL (
    SELECT {_DELIVERY} FROM {_O} o WHERE o.namespace = $1 AND o.hook = s.hook AND o.lane = s.lane
    ORDER BY seq, fact_id LIMIT 1
) o ON true
ORDER BY s.hook, s.lane
"""
MAKE_LANES: Final = f"""
INSERT INTO {_L} (namespace, hook, lane, owner, expires)
SELECT $1, h.hook, n.number, NULL, 0
FROM unnest($2::text[]) AS h (hook) CROSS JOIN generate_series(0, {LANES - 1}) AS n (number)
WHERE EXISTS (SELECT 1 FROM {_O} o WHERE o.namespace = $1 AND o.hook = h.hook AND o.lane = n.number)
    AND NOT EXISTS (SELECT 1 FROM {_L} l WHERE l.namespace = $1 AND l.hook = h.hook AND l.lane = n.number)
ORDER BY h.hook, n.number
ON CONFLICT (namespace, hook, lane) DO NOTHING
"""
# What another worker has locked, it is about to take.
TAKE_LANE: Final = f"""
WITH free AS (
    SELECT l.hook, l.lane
    FROM {_L} l CROSS JOIN LATERAL (
        SELECT o.seq FROM {_O} o
        WHERE o.namespace = $1 AND o.hook = l.hook AND o.lane = l.lane AND o.due <= $4::double precision
        ORDER BY o.seq LIMIT 1
    ) first
    WHERE l.namespace = $1 AND l.hook = ANY ($2::text[])
        AND (
            l.owner IS NULL OR l.expires < $4::double precision
            OR l.owner = ANY ($6::text[])
        )
    ORDER BY first.seq, l.hook, l.lane LIMIT 1 FOR UPDATE OF l SKIP LOCKED
)
UPDATE {_L} l SET owner = $3, expires = $5::double precision FROM free
WHERE l.namespace = $1 AND l.hook = free.hook AND l.lane = free.lane RETURNING l.hook, l.lane
"""


def delivery(row: Sequence[Any]) -> Delivery:
    seq, fact_id, before, after, at, attempts, due, error = row
    return Delivery(seq, ChangedVersions(fact_id, before, after), at, attempts, due, error)


def state(row: Sequence[Any]) -> LaneState:
    hook, lane, pending, failing, owner, expires = row[:6]
    return LaneState(Lane(hook, lane), pending, delivery(row[6:]) if pending else None, failing, owner, expires)
