"""The script that writes: it verifies what a plan was made from, and then carries it out, or answers why not.

Nothing is written before everything is verified, and then only by commands that cannot fail: the first of them is one
that Redis refuses when its memory is full, and once a script has written, Redis refuses it nothing more.

KEYS are meta, facts, versions, places, index, journal, claims, lock, slot, records, definitions, lanes and outbox, and
the streams of the lanes that the plan speaks of. ARGV are the plan as JSON, the number of the attempt, the contents of
facts and the body of the transaction in a row (the plan has their lengths: decoding them as JSON would take longer than
all the rest), and the values of records. The answer is one text:

=========================  ============================================================================
``ok seq claims stamp``    written (or verified, when there was nothing to write)
``stale``                  something is not as it was assumed to be
``lost``                   the claims to be dropped are not as many as they were, or the lane is another one's
``numbered``               the seq that the transaction is to have is taken, or one above it
``taken [place, id, id]``  two facts would have one singleton place
``locked``, ``unlocked``   another one has the lock; ours has ended
``format n``               the namespace has another format than ours
``late``                   a later attempt was made already
=========================  ============================================================================

What an attempt came to is kept in its slot. An attempt that is made again, because its reply was lost, gets the same
answer and does nothing.
"""

from __future__ import annotations

from typing import Final

from memstate_core.storages._redis.scripts import COMMON, Script

# What is remembered of an attempt outlives every client that may still ask for it, in seconds.
REMEMBERED: Final = 86400

WRITE: Final = Script(
    COMMON
    + f"local REMEMBERED = {REMEMBERED}"
    + r"""
local meta, facts, versions, places, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local journal, claims, lock, slot, records, definitions = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local lanes, outbox = KEYS[12], KEYS[13]
local plan, attempt = cjson.decode(ARGV[1]), tonumber(ARGV[2])

local function each(command, key, list)
    for i = 1, #list, CHUNK do
        redis.call(command, key, unpack(list, i, math.min(i + CHUNK - 1, #list)))
    end
end

local function answer(text)
    if attempt > 0 then redis.call('SET', slot, ARGV[2] .. ' ' .. text, 'EX', REMEMBERED) end
    return text
end

-- Stamp, version, made_by and ordinal of a fact; type, session, place and fields of its head.
local FACT = '^(%d+)%z(%d+)%z(%x+)%z(%x+)%z()'
local HEAD = '^([^%z]*)%z([^%z]*)%z([^%z]*)%z([^%z]*)%z()'

-- Versions as texts. Most facts that change together have the same.
local texts = {}
local function text_of(version)
    local text = texts[version]
    if not text then
        text = string.format('%.0f', version)
        texts[version] = text
    end
    return text
end

-- What was this attempt's answer, if it was made before?

if attempt > 0 then
    local known = redis.call('GET', slot)
    if known then
        local number, text = string.match(known, '^(%d+) (.*)$')
        if tonumber(number) == attempt then return text end
        if tonumber(number) > attempt then return 'late' end
    end
end

-- Verify

local positions = plan.positions or {}
local asked = {'format', 'stamp', 'seq', 'generation', 'lock'}
for i, one in ipairs(positions) do asked[5 + i] = 'h' .. one[1] end
local now = redis.call('HMGET', meta, unpack(asked))
if now[1] ~= plan.format then return answer('format ' .. (now[1] or '0')) end
if now[5] or plan.lock then
    -- The lock itself has an end; the field only says that it is worth looking for.
    local owner = redis.call('GET', lock)
    if plan.lock and owner ~= plan.lock then return answer('unlocked') end
    if owner and not plan.lock then return answer('locked') end
end
local claimed = redis.call('HLEN', claims)
local dropped
if plan.drop then
    local start = 'c' .. plan.drop .. '\0'
    dropped = redis.call('ZRANGEBYLEX', index, '[' .. start, '(c' .. plan.drop .. '\1')
    for i, member in ipairs(dropped) do dropped[i] = string.sub(member, #start + 1) end
    if plan.dropped and plan.dropped ~= #dropped then return answer('lost') end
end
local settled = plan.settlement
if settled and string.match(redis.call('HGET', lanes, settled.lane) or '', '^[^%z]*') ~= settled.owner then
    return answer('lost')
end
if plan.stamp and (now[2] or '0') ~= plan.stamp then return answer('stale') end
if plan.seq and plan.seq <= tonumber(now[3] or 0) then return answer('numbered') end
if plan.generation and tonumber(now[4] or 0) ~= plan.generation then return answer('stale') end
if plan.unclaimed and claimed > 0 then return answer('stale') end
if plan.claims and claimed ~= plan.claims then return answer('stale') end
for i, one in ipairs(positions) do
    if (now[5 + i] or plan.nowhere) ~= one[2] then return answer('stale') end
end
for _, one in ipairs(plan.claims_seen or {}) do
    if (redis.call('HGET', claims, one[1]) or '') ~= one[2] then return answer('stale') end
end
if plan.lease and (redis.call('HGET', lanes, plan.lease[1]) or '') ~= plan.lease[2] then return answer('stale') end
for _, one in ipairs(plan.places_seen or {}) do
    if (redis.call('HGET', places, one[1]) or '') ~= one[2] then return answer('stale') end
end
for _, one in ipairs(plan.records_seen or {}) do
    if redis.call('HGET', records, one[1]) ~= (one[2] > 0 and ARGV[one[2]]) then return answer('stale') end
end
for _, one in ipairs(plan.spans or {}) do
    if redis.call('ZLEXCOUNT', index, one[1], one[2]) ~= one[3] then return answer('stale') end
end
if plan.seen then
    local found = hmget(facts, plan.seen[1])
    for i, stamp in ipairs(plan.seen[2]) do
        if (found[i] and string.match(found[i], '^%d+') or '') ~= stamp then return answer('stale') end
    end
end

local bodies, at = ARGV[3], 1
local function body_of(length)
    at = at + length
    return string.sub(bodies, at - length, at - 1)
end
local heads = {}
for i, head in ipairs(plan.heads or {}) do
    local type, session, place, keys = string.match(head, HEAD)
    heads[i] = {type, session, place, keys, head}
end
local changed, taken, new, contents, made = {}, {}, {}, {}, {}
local old, numbers, ordinals_before = {}, {}, {}
local ids, versions_before, versions_after, ordinals, head_of, lengths, seen = unpack(plan.changes or {{}})
local before, latest = {}, {}
if #ids > 0 then before = hmget(facts, ids) end
if #ids > 0 and not plan.ahead then latest = hmget(versions, ids) end
if plan.restores then
    local names, where = {}, {}
    for i, id in ipairs(ids) do
        if heads[head_of[i]] then
            names[#names + 1] = id .. '\0' .. text_of(versions_after[i])
            where[#names] = i
        end
    end
    for j, fact in ipairs(hmget(versions, names)) do
        if not fact then return answer('stale') end
        made[where[j]] = string.match(fact, '^%d+%z%d+%z(%x+)')
    end
end
local head, was
for i, id in ipairs(ids) do
    changed[id] = true
    local stamp, number, _, at, start
    if before[i] then
        stamp, number, _, at, start = string.match(before[i], FACT)
        -- Neighbours mostly have the same head, and matching takes longer than all the rest.
        if not head or string.sub(before[i], start, start + #head - 1) ~= head then
            local type, session, place, keys, last = string.match(before[i], HEAD, start)
            head, was = string.sub(before[i], start, last - 1), {type, session, place, keys}
        end
        old[i], numbers[i], ordinals_before[i] = was, number, at
    end
    if seen[i] and seen[i] ~= (stamp or '') then return answer('stale') end
    local there, next, is = tonumber(number or 0), versions_after[i], heads[head_of[i]]
    if there ~= versions_before[i] then return answer('stale') end
    if is then
        if not plan.restores and (there >= next or tonumber(latest[i] or 0) >= next) then return answer('stale') end
        new[i] = is
        -- A content that stays is not sent: it is at the end of what is there.
        contents[i] = lengths[i] > 0 and body_of(lengths[i]) or string.sub(before[i], lengths[i])
        local place = is[3]
        if place ~= '' then
            if taken[place] then return answer('taken ' .. cjson.encode({place, taken[place], id})) end
            taken[place] = id
        end
    end
end
for _, one in ipairs(plan.described or {}) do
    changed[one[1]] = true
    if one[2] ~= '' then taken[one[2]] = one[1] end
end
for place, id in pairs(taken) do
    local holder = redis.call('HGET', places, place)
    if holder and not changed[holder] then return answer('taken ' .. cjson.encode({place, holder, id})) end
end
local described = {}
for i, one in ipairs(plan.described or {}) do
    described[i] = redis.call('HGET', facts, one[1])
    if not described[i] then return answer('stale') end
end
if not plan.writes then return 'ok 0 ' .. (claimed > 0 and 1 or 0) .. ' ' .. (now[2] or '0') end

-- What is to be written but has not been read yet may be a key of another type.
if plan.entry then redis.call('HLEN', journal) end
redis.call('ZCARD', index)
if #ids > 0 or plan.described then redis.call('HLEN', places) end
if plan.ahead then redis.call('HLEN', versions) end
if plan.records then redis.call('HLEN', records) end
if plan.definitions then redis.call('HLEN', definitions) end
if #KEYS > 13 then redis.call('HLEN', outbox) end
for i = 14, #KEYS do redis.call('XLEN', KEYS[i]) end

-- Write

local stamp = string.format('%.0f', tonumber(now[2] or 0) + 1)
local number = plan.seq or tonumber(now[3] or 0) + 1
local seq = string.format('%011x', number)
local by = plan.entry and seq or string.format('%011x', 0)
local fields, added, gone = {'stamp', stamp}, {}, {}
local function field(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
end
local function add(member)
    local n = #added
    added[n + 1], added[n + 2] = 0, member
end

if plan.entry then
    local session, parent, head, redo = unpack(plan.entry)
    if head == '' then head = seq end
    field('seq', string.format('%.0f', number))
    field('h' .. session, head .. redo)
end
if plan.savepoint then field(plan.savepoint[1], plan.savepoint[2]) end
if plan.definitions then field('generation', string.format('%.0f', tonumber(now[4] or 0) + 1)) end
each('HSET', meta, fields)

if plan.entry then
    local session, parent, head, redo, mark, tail = unpack(plan.entry)
    if head == '' then head = seq end
    redis.call('HSET', journal, seq, parent .. '\0' .. head .. '\0' .. body_of(tail))
    add('S' .. session .. '\0' .. seq)
    if mark ~= '' then add('M' .. mark .. '\0' .. seq) end
    for i, id in ipairs(ids) do
        if made[i] or not new[i] then add('F' .. id .. '\0' .. seq) end
    end
end

local function remove(member) gone[#gone + 1] = member end

-- Do something with every member of the index under the fields of a fact.
local function each_field(act, type, keys, tail)
    if keys ~= '' then
        for _, key in ipairs(cjson.decode(keys)) do act('f' .. type .. '\0' .. key .. tail) end
    end
end

local function all(act, type, session, keys, tail)
    act('o' .. tail)
    act('t' .. type .. tail)
    act('s' .. session .. tail)
    each_field(act, type, keys, tail)
end

local put, removed, archived, placed, left = {}, {}, {}, {}, {}
local function set(list, name, value)
    local n = #list
    list[n + 1], list[n + 2] = name, value
end

for i, id in ipairs(ids) do
    local ordinal, was, is = ordinals[i], old[i], new[i]
    if was then
        set(archived, id .. '\0' .. numbers[i], before[i])
        -- The highest version is the current one's, until the fact goes back or is removed.
        local there, back = versions_before[i], not is or versions_after[i] < versions_before[i]
        if back and there > tonumber(latest[i] or 0) then set(archived, id, numbers[i]) end
        if was[3] ~= '' and taken[was[3]] ~= id then left[#left + 1] = was[3] end
    end
    if is then
        if ordinal == '=' then
            ordinal = ordinals_before[i]
        elseif ordinal == '' then
            ordinal = seq .. string.format('%05x', i - 1)
        end
        set(put, id, stamp .. '\0' .. text_of(versions_after[i]) .. '\0' .. (made[i] or by) .. '\0' .. ordinal .. '\0'
            .. is[5] .. contents[i])
        if is[3] ~= '' then set(placed, is[3], id) end
    else
        removed[#removed + 1] = id
    end
    if was and is and ordinals_before[i] == ordinal then
        if was[2] ~= is[2] then
            remove('s' .. was[2] .. '\0' .. ordinal .. id)
            add('s' .. is[2] .. '\0' .. ordinal .. id)
        end
        if was[4] ~= is[4] then
            each_field(remove, was[1], was[4], '\0' .. ordinal .. id)
            each_field(add, is[1], is[4], '\0' .. ordinal .. id)
        end
    else
        if was then all(remove, was[1], was[2], was[4], '\0' .. ordinals_before[i] .. id) end
        if is then all(add, is[1], is[2], is[4], '\0' .. ordinal .. id) end
    end
end

for i, one in ipairs(plan.described or {}) do
    local id, place, keys = unpack(one)
    local _, version, by, ordinal, start = string.match(described[i], FACT)
    local type, session, was, had, rest = string.match(described[i], HEAD, start)
    set(put, id, stamp .. '\0' .. version .. '\0' .. by .. '\0' .. ordinal .. '\0' .. type .. '\0' .. session .. '\0'
        .. place .. '\0' .. keys .. '\0' .. string.sub(described[i], rest))
    if was ~= '' and was ~= place then left[#left + 1] = was end
    if place ~= '' then set(placed, place, id) end
    if had ~= keys then
        each_field(remove, type, had, '\0' .. ordinal .. id)
        each_field(add, type, keys, '\0' .. ordinal .. id)
    end
end

each('HSET', versions, archived)
each('HSET', facts, put)
each('HDEL', facts, removed)
each('HDEL', places, left)
each('HSET', places, placed)

for _, one in ipairs(dropped or {}) do
    redis.call('HDEL', claims, one)
    gone[#gone + 1] = 'c' .. plan.drop .. '\0' .. one
end
each('ZREM', index, gone)
for _, one in ipairs(plan.claim or {}) do
    local key, holder, text = unpack(one)
    local old = redis.call('HGET', claims, key)
    if old then redis.call('ZREM', index, 'c' .. string.match(old, '^[^%z]*') .. '\0' .. key) end
    redis.call('HSET', claims, key, text)
    redis.call('ZADD', index, 0, 'c' .. holder .. '\0' .. key)
end
for _, one in ipairs(plan.records or {}) do
    local name, place = unpack(one)
    if place > 0 then
        redis.call('HSET', records, name, ARGV[place])
        add('r' .. name)
    else
        redis.call('HDEL', records, name)
        redis.call('ZREM', index, 'r' .. name)
    end
end
local places_in = {}
for _, one in ipairs(plan.deferred or {}) do
    local stream, lane, delivery = KEYS[13 + one[1]], one[2], one[3]
    if not places_in[stream] then redis.call('HSETNX', lanes, lane, '') end
    places_in[stream] = (places_in[stream] or 0) + 1
    redis.call('XADD', stream, string.format('%.0f-%d', number, places_in[stream]), 'd', delivery)
end
if plan.lease then redis.call('HSET', lanes, plan.lease[1], plan.lease[3]) end
if settled then
    -- What was postponed is in the outbox, under its seq and fact; what was not is in the stream, in order.
    local lane, stream, wanted, missing = settled.lane, KEYS[14], {}, {}
    for _, one in ipairs(settled.over) do
        local this = one[1] .. one[2]
        local name = lane .. '\0' .. this
        local known = redis.call('HGET', outbox, name)
        if known then
            local due = string.match(known, '^[^%z]*%z([^%z]*)%z')
            redis.call('HDEL', outbox, name)
            redis.call('ZREM', index, 'q' .. name, 'a' .. name, 'd' .. lane .. '\0' .. due .. this)
        else
            if not wanted[one[1]] then
                wanted[one[1]] = {}
                missing[#missing + 1] = one[1]
            end
            wanted[one[1]][one[2]] = true
        end
    end
    for _, hex in ipairs(missing) do
        local which, decimal = wanted[hex], string.format('%.0f', tonumber(hex, 16))
        local from = decimal .. '-0'
        while from and next(which) do
            local some = redis.call('XRANGE', stream, from, decimal, 'COUNT', 200)
            from = #some == 200 and '(' .. some[200][1]
            for _, entry in ipairs(some) do
                local id = string.match(entry[2][2], '^[^%z]*')
                if which[id] then
                    which[id] = nil
                    redis.call('XDEL', stream, entry[1])
                end
            end
        end
    end
    for _, one in ipairs(settled.postponed) do
        local this, due, text, failed = unpack(one)
        local name = lane .. '\0' .. this
        redis.call('HSET', outbox, name, text)
        add('q' .. name)
        add('d' .. lane .. '\0' .. due .. this)
        if failed then add('a' .. name) end
    end
    redis.call('HSET', lanes, lane, settled.lease)
end
each('ZADD', index, added)
each('HSET', definitions, plan.definitions or {})
if plan.lock then
    redis.call('DEL', lock)
    redis.call('HDEL', meta, 'lock')
end
if dropped or plan.claim then claimed = redis.call('HLEN', claims) end
claimed = claimed > 0 and 1 or 0
return answer('ok ' .. (plan.entry and string.format('%.0f', number) or '0') .. ' ' .. claimed .. ' ' .. stamp)
"""
)

# KEYS slot. ARGV the number of the attempt. What it came to; when it was not made, it never will be any more.
ABANDON: Final = Script(
    f"local REMEMBERED = {REMEMBERED}"
    r"""
local known = redis.call('GET', KEYS[1])
if known then
    local number, text = string.match(known, '^(%d+) (.*)$')
    if tonumber(number) == tonumber(ARGV[1]) then return text end
    if tonumber(number) > tonumber(ARGV[1]) then return 'late' end
end
redis.call('SET', KEYS[1], ARGV[1] .. ' abandoned', 'EX', REMEMBERED)
return 'abandoned'
"""
)
