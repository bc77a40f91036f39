"""The outbox in Redis: a stream for each lane, and beside it what was postponed.

An entry of a stream has its transaction's seq in its id, and ``fact_id before after at``. What is postponed leaves the
stream for a hash, ``attempts due_key at before after due error`` under lane, seq and fact id, and for the index, by its
place in the order and by when it is due. The hash ``lanes`` has ``owner expires`` of each lane that was ever used, or
nothing when nobody holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from memstate_core.facts import ChangedVersions
from memstate_core.protocols import LANES, Batch, Delivery, Lane, LaneState
from memstate_core.storages._redis.keys import hex_of, lane_key, number_key
from memstate_core.storages._redis.scripts import Script

_HEX: Final = len(hex_of(0))

# KEYS meta, index, outbox, stream. ARGV bounds of what is postponed, limit. Two lists: pairs of id and entry of the
# stream, and pairs of seq with fact id and postponed delivery.
DELIVERIES: Final = Script("""
local fresh, postponed = {}, {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[4], '-', '+', 'COUNT', ARGV[3])) do
    fresh[#fresh + 1] = entry[1]
    fresh[#fresh + 1] = entry[2][2]
end
for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])) do
    postponed[#postponed + 1] = string.match(member, '.*%z(.*)')
    postponed[#postponed + 1] = redis.call('HGET', KEYS[3], string.sub(member, 2))
end
return {redis.call('HGET', KEYS[1], 'stamp') or '0', fresh, postponed}
""")

# KEYS meta, index, outbox, lanes, streams. ARGV lanes. For each its lease, how many deliveries are in the stream, are
# postponed and have failed, and the first of the stream and of the postponed ones.
STATES: Final = Script("""
local answer = {redis.call('HGET', KEYS[1], 'stamp') or '0'}
for i, lane in ipairs(ARGV) do
    local function between(letter) return '[' .. letter .. lane .. '\\0', '(' .. letter .. lane .. '\\1' end
    local low, high = between('q')
    local entry = redis.call('XRANGE', KEYS[4 + i], '-', '+', 'COUNT', 1)[1]
    local member = redis.call('ZRANGEBYLEX', KEYS[2], low, high, 'LIMIT', 0, 1)[1]
    local fresh, postponed = {}, {}
    if entry then fresh = {entry[1], entry[2][2]} end
    if member then
        postponed = {string.match(member, '.*%z(.*)'), redis.call('HGET', KEYS[3], string.sub(member, 2))}
    end
    answer[i + 1] = {
        redis.call('HGET', KEYS[4], lane) or '',
        redis.call('XLEN', KEYS[4 + i]),
        redis.call('ZLEXCOUNT', KEYS[2], low, high),
        redis.call('ZLEXCOUNT', KEYS[2], between('a')),
        fresh,
        postponed,
    }
end
return answer
""")

# KEYS meta, index, lanes, streams. ARGV now, the same as a key, how many owners are gone, those, lanes. Of those that
# nobody holds the one with the oldest delivery that is due (from 1; 0: none), and its lease.
FREE: Final = Script("""
local now, gone, count = tonumber(ARGV[1]), {}, tonumber(ARGV[3])
for i = 1, count do gone[ARGV[3 + i]] = true end
local found, oldest, seen = 0, nil, ''
for i = 1, #KEYS - 3 do
    local lane = ARGV[3 + count + i]
    local lease = redis.call('HGET', KEYS[3], lane) or ''
    local owner, expires = string.match(lease, '^([^%z]*)%z(.*)$')
    if not owner or gone[owner] or tonumber(expires) < now then
        local entry = redis.call('XRANGE', KEYS[3 + i], '-', '+', 'COUNT', 1)[1]
        local first = entry and tonumber(string.match(entry[1], '^%d+'))
        local start = 'd' .. lane .. '\\0'
        for _, member in ipairs(redis.call(
            'ZRANGEBYLEX', KEYS[2], '[' .. start, '(' .. start .. ARGV[2] .. 'g', 'LIMIT', 0, 100
        )) do
            local seq = tonumber(string.sub(string.match(member, '.*%z(.*)'), #ARGV[2] + 1, #ARGV[2] + 11), 16)
            if not first or seq < first then first = seq end
        end
        if first and (not oldest or first < oldest) then found, oldest, seen = i, first, lease end
    end
end
return {redis.call('HGET', KEYS[1], 'stamp') or '0', found, seen}
""")


def lease_text(owner: str, expires: float) -> str:
    return f"{owner}\0{expires!r}" if expires else ""


def all_lanes(hooks: Sequence[str]) -> list[Lane]:
    return [Lane(hook, number) for hook in sorted(set(hooks)) for number in range(LANES)]


def lane_of_key(key: str) -> Lane:
    hook, number = key.rsplit("\0", 1)
    return Lane(hook, int(number))


def deliveries_of(fresh: Sequence[bytes], postponed: Sequence[bytes]) -> list[Delivery]:
    """The deliveries of one lane, in the order of their transactions."""
    found = [_fresh(*fresh[place : place + 2]) for place in range(0, len(fresh), 2)]
    found += [_postponed(*postponed[place : place + 2]) for place in range(0, len(postponed), 2)]
    return sorted(found, key=lambda one: one.seq)


def _fresh(id_: bytes, raw: bytes) -> Delivery:
    fact_id, before, after, at = raw.decode().split("\0")
    return Delivery(int(id_.partition(b"-")[0]), ChangedVersions(fact_id, int(before), int(after)), float(at))


def _postponed(this: bytes, raw: bytes) -> Delivery:
    name = this.decode()
    attempts, _, at, before, after, due, error = raw.decode().split("\0", 6)
    return Delivery(
        int(name[:_HEX], 16),
        ChangedVersions(name[_HEX:], int(before), int(after)),
        float(at),
        int(attempts),
        float(due),
        error[1:] if error else None,
    )


def state_of(lane: Lane, answer: Sequence[Any]) -> LaneState | None:
    """How a lane stands; None when it has neither deliveries nor an owner."""
    lease, fresh, postponed, failing, first, other = answer
    owner, _, expires = lease.decode().partition("\0")
    if not owner and not fresh and not postponed:
        return None
    oldest = next(iter(deliveries_of(first, other)), None)
    return LaneState(lane, fresh + postponed, oldest, failing, owner or None, float(expires or 0))


def put_outbox(plan: dict[str, Any], batch: Batch) -> list[Lane]:
    """Put what the batch does to the outbox into the plan; returns the lanes whose streams that takes."""
    settlement = batch.settlement
    if settlement is not None:
        over = [(hex_of(one.seq), one.change.fact_id) for one in (*settlement.delivered, *settlement.postponed)]
        plan["settlement"] = {
            "lane": lane_key(settlement.lane),
            "owner": settlement.owner,
            "lease": lease_text(settlement.owner, settlement.expires),
            "over": over,
            "postponed": [_postponement(one) for one in settlement.postponed],
        }
    lanes = [] if settlement is None else [settlement.lane]
    if batch.deferred:
        lanes = list(dict.fromkeys([*lanes, *(one.lane for one in batch.deferred)]))
        numbers = {lane: number for number, lane in enumerate(lanes, start=1)}
        plan["deferred"] = [
            (numbers[lane], lane_key(lane), f"{change.fact_id}\0{change.before}\0{change.after}\0{at!r}")
            for lane, change, at in batch.deferred
        ]
    return lanes


def _postponement(one: Delivery) -> tuple[str, str, str, bool]:
    due = number_key(one.due)
    error = "" if one.error is None else f"={one.error}"
    text = f"{one.attempts}\0{due}\0{one.at!r}\0{one.change.before}\0{one.change.after}\0{one.due!r}\0{error}"
    return f"{hex_of(one.seq)}{one.change.fact_id}", due, text, one.attempts > 0
