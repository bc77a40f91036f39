"""The scripts that read, one round trip each. Their answers begin with the stamp of the namespace.

The stamp counts its writes: two answers with one stamp are of one moment.
"""

from __future__ import annotations

import hashlib
from typing import Final


class Script:
    """A script, and the name by which the server knows it once it has seen it."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


# Long lists come as one text, divided by a byte that UTF-8 does not use: the driver takes a microsecond for each item.
DIVIDER: Final = b"\xff"

# Lua passes at most some thousand values to a function.
CHUNK: Final = 1000

COMMON: Final = """
local CHUNK = 4000

local function hmget(key, fields)
    local found = {}
    for i = 1, #fields, CHUNK do
        local some = redis.call('HMGET', key, unpack(fields, i, math.min(i + CHUNK - 1, #fields)))
        for j = 1, #some do found[i + j - 1] = some[j] end
    end
    return found
end
"""

_STAMP: Final = "redis.call('HGET', KEYS[1], 'stamp') or '0'"

# KEYS meta, hash. ARGV fields. Their values.
FIELDS: Final = Script(f"{COMMON} return {{{_STAMP}, unpack(hmget(KEYS[2], ARGV), 1, #ARGV)}}")

# KEYS meta, hash. All fields and values.
WHOLE: Final = Script(f"local all = redis.call('HGETALL', KEYS[2]) return {{{_STAMP}, all}}")

# KEYS meta, journal, records, definitions. Whether the namespace has anything, a savepoint at the least.
HAS_ANYTHING: Final = Script("""
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) > 0 then return 1 end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 1) == 'p' then return 1 end
end
return 0
""")

# KEYS meta, claims. ARGV the session. Generation, where the session stands, how many claims there are.
POSITION: Final = Script("""
local found = redis.call('HMGET', KEYS[1], 'stamp', 'generation', 'h' .. ARGV[1])
return {found[1] or '0', found[2] or '0', found[3] or '', redis.call('HLEN', KEYS[2])}
""")

# KEYS meta, facts, versions. ARGV ids. For each the fact and the highest version that it had before.
FACTS: Final = Script(f"""{COMMON}
local answer = {{{_STAMP}}}
local facts, latest = hmget(KEYS[2], ARGV), hmget(KEYS[3], ARGV)
for i = 1, #ARGV do
    answer[2 * i], answer[2 * i + 1] = facts[i], latest[i]
end
return answer
""")

# KEYS meta, facts, versions, places. ARGV places. For each the id, the fact and the highest version.
HOLDERS: Final = Script(f"""
local answer = {{{_STAMP}}}
for i, place in ipairs(ARGV) do
    local id = redis.call('HGET', KEYS[4], place)
    answer[3 * i - 1], answer[3 * i], answer[3 * i + 1] = id, false, false
    if id then
        answer[3 * i] = redis.call('HGET', KEYS[2], id)
        answer[3 * i + 1] = redis.call('HGET', KEYS[3], id)
    end
end
return answer
""")

# KEYS meta, facts, versions, index. ARGV offset, how many, how many bytes, whether latest versions are wanted, and
# pairs of bounds, of which the one that holds the least is used. Which that was (from 1), the bound to go on
# from ('' at the end), all ids and facts, and pairs of id and highest version of those that had more before.
SELECT: Final = Script("""
local offset, count, room, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local used, least = 1, nil
if #ARGV > 6 then
    for i = 5, #ARGV, 2 do
        local size = redis.call('ZLEXCOUNT', KEYS[4], ARGV[i], ARGV[i + 1])
        if not least or size < least then used, least = (i - 3) / 2, size end
    end
end
local low, high = ARGV[2 * used + 3], ARGV[2 * used + 4]
local members = redis.call('ZRANGEBYLEX', KEYS[4], low, high, 'LIMIT', offset, count)
local answer = {redis.call('HGET', KEYS[1], 'stamp') or '0', used, ''}
local ids, found, higher, start = {}, {}, {}, nil
for i, member in ipairs(members) do
    -- Neighbours mostly have been looked for by the same, and matching takes longer than all the rest.
    if not start or string.sub(member, 1, #start) ~= start then start = string.match(member, '.*%z') end
    ids[i] = string.sub(member, #start + 17)
end
for i = 1, #ids, 50 do
    if room < 0 then
        answer[3] = '[' .. members[i]
        break
    end
    local last = math.min(i + 49, #ids)
    local facts = redis.call('HMGET', KEYS[2], unpack(ids, i, last))
    local latest = wanted and redis.call('HMGET', KEYS[3], unpack(ids, i, last)) or {}
    for j, fact in ipairs(facts) do
        if fact then
            local n, id = #found, ids[i + j - 1]
            found[n + 1], found[n + 2] = id, fact
            if latest[j] then
                higher[#higher + 1] = id
                higher[#higher + 1] = latest[j]
            end
            room = room - #fact
        end
    end
end
if answer[3] == '' and #members == count and count > 0 then answer[3] = '(' .. members[count] end
answer[4], answer[5] = table.concat(found, '\\255'), higher
return answer
""")

# KEYS meta, index. ARGV bounds. How many facts are between them.
COUNT: Final = Script(f"return {{{_STAMP}, redis.call('ZLEXCOUNT', KEYS[2], ARGV[1], ARGV[2])}}")

# KEYS meta, journal, facts, versions. ARGV seq, above, limit, how many bytes, whether the facts are wanted too. The seq
# to go on from ('' at the end), pairs of seq and transaction, for each fact they speak of its id, itself and its
# highest version, and of the versions they speak of and that are not current the id, number and fact.
LINE: Final = Script("""
local seq, above, limit, room = ARGV[1], tonumber(ARGV[2], 16), tonumber(ARGV[3]), tonumber(ARGV[4])
local entries, facts, versions, seen = {}, {}, {}, {}
local function archived(id, version)
    local raw = version > 0 and redis.call('HGET', KEYS[4], id .. '\\0' .. string.format('%.0f', version))
    if raw then
        local n = #versions
        versions[n + 1], versions[n + 2], versions[n + 3] = id, version, raw
        room = room - #raw
    end
end
while #entries < 2 * limit and room >= 0 and tonumber(seq, 16) > above do
    local entry = redis.call('HGET', KEYS[2], seq)
    if not entry then seq = '0' break end
    entries[#entries + 1], entries[#entries + 2] = seq, entry
    room = room - #entry
    if ARGV[5] == '1' and room >= 0 then
        for _, change in ipairs(cjson.decode(string.match(entry, '.*%z(.*)'))) do
            local id = change[1]
            if not seen[id] and room >= 0 then
                local fact, latest = redis.call('HGET', KEYS[3], id), redis.call('HGET', KEYS[4], id)
                local n = #facts
                facts[n + 1], facts[n + 2], facts[n + 3] = id, fact or '', latest or ''
                room = room - (fact and #fact or 0)
                seen[id] = fact and tonumber(string.match(fact, '^%d+%z(%d+)')) or 0
            end
            if room >= 0 then
                if change[2] ~= seen[id] then archived(id, change[2]) end
                if change[3] ~= seen[id] then archived(id, change[3]) end
            end
        end
    end
    seq = string.match(entry, '^%x+')
end
if tonumber(seq, 16) <= above then seq = '' end
local function joined(list) return table.concat(list, '\\255') end
return {redis.call('HGET', KEYS[1], 'stamp') or '0', seq, joined(entries), joined(facts), joined(versions)}
""")

# KEYS meta, journal, index. ARGV bounds, how many, how many bytes. The bound to go on from, pairs of seq and entry.
HISTORY: Final = Script("""
local count, room = tonumber(ARGV[3]), tonumber(ARGV[4])
local members = redis.call('ZREVRANGEBYLEX', KEYS[3], ARGV[2], ARGV[1], 'LIMIT', 0, count)
local answer = {redis.call('HGET', KEYS[1], 'stamp') or '0', ''}
for i, member in ipairs(members) do
    if room < 0 then
        answer[2] = '[' .. member
        break
    end
    local seq = string.match(member, '.*%z(.*)')
    local entry = redis.call('HGET', KEYS[2], seq)
    if entry then
        answer[#answer + 1] = seq
        answer[#answer + 1] = entry
        room = room - #entry
    end
end
if answer[2] == '' and #members == count and count > 0 then answer[2] = '(' .. members[count] end
return answer
""")

# KEYS meta, journal, index, facts, versions. ARGV the fact's id, the seq below which to begin, how many, how many
# bytes. The seq below which to go on ('' at the end), pairs of seq and entry.
FACT_HISTORY: Final = Script("""
local id, below, count, room = ARGV[1], tonumber(ARGV[2], 16), tonumber(ARGV[3]), tonumber(ARGV[4])
local current = redis.call('HGET', KEYS[4], id)
local version, made = string.match(current or '', '^%d+%z(%d+)%z(%x+)')
local versions = math.max(tonumber(version or 0), tonumber(redis.call('HGET', KEYS[5], id) or 0))
local function made_by(number)
    if number == tonumber(version) then return tonumber(made, 16) end
    local fact = redis.call('HGET', KEYS[5], id .. '\\0' .. string.format('%.0f', number))
    return fact and tonumber(string.match(fact, '^%d+%z%d+%z(%x+)'), 16)
end
-- Versions were made in their order, so those that were made below a seq need not be looked for one by one.
local least = 0
while least < versions do
    local middle = math.ceil((least + versions) / 2)
    local seq = made_by(middle)
    if seq and seq >= below then versions = middle - 1 else least = middle end
end
local function next_made()
    while versions > 0 do
        local seq = made_by(versions)
        versions = versions - 1
        if seq and seq < below then return seq end
    end
    return 0
end
local touched = redis.call('ZREVRANGEBYLEX', KEYS[3], '(F' .. id .. '\\0' .. string.format('%011x', below),
    '[F' .. id .. '\\0', 'LIMIT', 0, count)
local answer = {redis.call('HGET', KEYS[1], 'stamp') or '0', ''}
local place, last = 1, next_made()
while count > 0 do
    local other = touched[place] and tonumber(string.sub(touched[place], #id + 3), 16) or 0
    local seq = math.max(last, other)
    if seq == 0 then return answer end
    if room < 0 then break end
    if seq == other then place = place + 1 end
    if seq == last then last = next_made() end
    local key = string.format('%011x', seq)
    local entry = redis.call('HGET', KEYS[2], key)
    if entry then
        answer[#answer + 1] = key
        answer[#answer + 1] = entry
        room, count = room - #entry, count - 1
    end
    below = seq
end
answer[2] = string.format('%011x', below)
return answer
""")

# KEYS meta, journal. ARGV the seq below which to begin, how many, how many bytes. The seq below which
# to go on ('' at the end), pairs of seq and entry.
JOURNAL: Final = Script("""
local seq, count, room = tonumber(redis.call('HGET', KEYS[1], 'seq') or 0), tonumber(ARGV[2]), tonumber(ARGV[3])
seq = math.min(seq, tonumber(ARGV[1]) - 1)
local answer = {redis.call('HGET', KEYS[1], 'stamp') or '0', ''}
while seq > 0 and count > 0 and room >= 0 do
    local key = string.format('%011x', seq)
    local entry = redis.call('HGET', KEYS[2], key)
    if entry then
        answer[#answer + 1] = key
        answer[#answer + 1] = entry
        room = room - #entry
    end
    seq, count = seq - 1, count - 1
end
if seq > 0 then answer[2] = string.format('%.0f', seq + 1) end
return answer
""")

# KEYS meta, index. ARGV the bound to begin at, how many. Names of collections, from one to the next.
COLLECTIONS: Final = Script("""
local low, names = ARGV[1], {}
while #names < tonumber(ARGV[2]) do
    local member = redis.call('ZRANGEBYLEX', KEYS[2], low, '(s', 'LIMIT', 0, 1)[1]
    if not member then break end
    names[#names + 1] = string.match(member, '^r([^%z]*)')
    low = '[r' .. names[#names] .. '\\1'
end
return {redis.call('HGET', KEYS[1], 'stamp') or '0', names}
""")

# KEYS meta, records, index. ARGV bounds, how many, how many bytes, '1' for backwards. The bound to go on from, pairs of
# key and value.
SCAN: Final = Script("""
local low, high, count, room, back = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local members
if back then
    members = redis.call('ZREVRANGEBYLEX', KEYS[3], high, low, 'LIMIT', 0, count)
else
    members = redis.call('ZRANGEBYLEX', KEYS[3], low, high, 'LIMIT', 0, count)
end
local answer = {redis.call('HGET', KEYS[1], 'stamp') or '0', ''}
for i, member in ipairs(members) do
    if room < 0 then
        answer[2] = '[' .. member
        break
    end
    local field = string.sub(member, 2)
    local value = redis.call('HGET', KEYS[2], field)
    answer[#answer + 1] = string.match(field, '%z(.*)')
    answer[#answer + 1] = value
    room = room - #value
end
if answer[2] == '' and #members == count and count > 0 then answer[2] = '(' .. members[count] end
return answer
""")

# KEYS lock, meta. ARGV token, milliseconds. Whether the lock is ours now; it may be already, when a reply was lost.
LOCK: Final = Script("""
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('HSET', KEYS[2], 'lock', ARGV[1])
return 1
""")

# KEYS lock, meta. ARGV token.
UNLOCK: Final = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[2], 'lock')
return redis.call('DEL', KEYS[1])
""")
