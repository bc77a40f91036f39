"""The format of a namespace, as an append-only list of numbered migrations."""

from __future__ import annotations

from typing import Final

from memstate_core.storages._redis.scripts import Script

# Each is the body of a script on the keys of ``Keys.data``; it runs whole or not at all, whoever of many processes
# comes first. What was never written needs no conversion, so the first one has nothing to do.
MIGRATIONS: Final[list[str]] = [""]
FORMAT: Final = len(MIGRATIONS)

_TYPES: Final = ("hash", "hash", "hash", "hash", "zset", *("hash",) * 6)

# KEYS Keys.data. The format (0: nothing was written yet), or a key that is not ours and what it is.
LOOK: Final = Script(
    "local types = {" + ", ".join(f"'{name}'" for name in _TYPES) + "}"
    """
for i, key in ipairs(KEYS) do
    local type = redis.call('TYPE', key).ok
    if type ~= 'none' and type ~= types[i] then return {'', key, type} end
end
return {redis.call('HGET', KEYS[1], 'format') or '0'}
"""
)


def migration(number: int) -> Script:
    """From format ``number`` to the next; returns the format that there is then."""
    return Script(
        f"""
if (redis.call('HGET', KEYS[1], 'format') or '0') == '{number}' then
    {MIGRATIONS[number]}
    redis.call('HSET', KEYS[1], 'format', '{number + 1}')
end
return redis.call('HGET', KEYS[1], 'format')
"""
    )
