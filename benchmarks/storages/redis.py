"""Redis, and the least that it takes there: a script for each operation, by the bare driver."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from benchmarks.storages import StorageKind
from benchmarks.workload import TYPES, Preference, Setting, check_name, payload_of

if TYPE_CHECKING:
    from memstate_core.protocols import Storage

# A fact is a JSON list in a hash: id, type, payload, source, session, ts, version. Sorted sets by seq have the facts of
# a type, of a session and on a topic; a hash has the setting of each name. An entry of the journal is a JSON list:
# session, operation, actor, reason, ts, parent, and for each fact its id and what it was before. Lists have the
# transactions of a session and of a fact.
_COMMIT: Final = """
local id, before, version = ARGV[1], false, 1
if ARGV[6] ~= '' then
    local held = redis.call('HGET', KEYS[7], ARGV[6])
    if held then
        id = held
        before = redis.call('HGET', KEYS[2], id)
        version = cjson.decode(before)[7] + 1
    else
        redis.call('HSET', KEYS[7], ARGV[6], id)
    end
end
local seq = redis.call('INCR', KEYS[1])
local parent = redis.call('HGET', KEYS[4], ARGV[2]) or '0'
local fact = '["' .. id .. '",' .. ARGV[3] .. ',' .. version .. ']'
redis.call('HSET', KEYS[2], id, fact)
if not before then
    redis.call('ZADD', KEYS[5], seq, id)
    redis.call('ZADD', KEYS[6], seq, id)
    if ARGV[5] ~= '' then redis.call('ZADD', KEYS[8], seq, id) end
end
redis.call('HSET', KEYS[3], seq,
    ARGV[4] .. ',' .. string.match(parent, '^%d+') .. ',[["' .. id .. '",' .. (before or 'null') .. ']]]')
redis.call('RPUSH', KEYS[9], seq)
redis.call('RPUSH', KEYS[10] .. id, seq)
redis.call('HSET', KEYS[4], ARGV[2], seq .. ' 0')
return id
"""
_QUERY: Final = "return redis.call('HMGET', KEYS[2], unpack(redis.call('ZRANGE', KEYS[1], 0, -1)))"
# Only new facts are undone here, as the workload has it; that each is still as the session left it is checked.
_ROLLBACK: Final = """
local head = string.match(redis.call('HGET', KEYS[4], ARGV[1]), '^%d+')
local at, entries, facts, changes, gone = head, {}, {}, {}, {}
while #entries < 2 * tonumber(ARGV[2]) and at ~= '0' do
    local entry = redis.call('HGET', KEYS[3], at)
    entries[#entries + 1], entries[#entries + 2] = at, entry
    local parts = cjson.decode(entry)
    for _, change in ipairs(parts[7]) do gone[#gone + 1] = change[1] end
    at = string.format('%.0f', parts[6])
end
facts = redis.call('HMGET', KEYS[2], unpack(gone))
for i, id in ipairs(gone) do
    if not facts[i] or not string.find(facts[i], ',1]$') then return redis.error_reply('changed meanwhile') end
    changes[i] = '["' .. id .. '",' .. facts[i] .. ']'
end
local seq = redis.call('INCR', KEYS[1])
redis.call('HDEL', KEYS[2], unpack(gone))
redis.call('ZREM', KEYS[5], unpack(gone))
redis.call('ZREM', KEYS[6], unpack(gone))
redis.call('HSET', KEYS[3], seq, ARGV[3] .. ',' .. head .. ',[' .. table.concat(changes, ',') .. ']]')
redis.call('RPUSH', KEYS[9], seq)
for _, id in ipairs(gone) do redis.call('RPUSH', KEYS[10] .. id, seq) end
redis.call('HSET', KEYS[4], ARGV[1], at .. ' ' .. head)
return {entries, facts}
"""
# Decoded and encoded again, a payload would lose the digits of its numbers.
_PROMOTE: Final = """
local ids = redis.call('ZRANGE', KEYS[6], 0, -1, 'WITHSCORES')
local head = string.match(redis.call('HGET', KEYS[4], ARGV[1]), '^%d+')
local seq = redis.call('INCR', KEYS[1])
local names, changes, facts, scores = {}, {}, {}, {}
for i = 1, #ids, 2 do names[#names + 1] = ids[i] end
local found = redis.call('HMGET', KEYS[2], unpack(names))
for i, id in ipairs(names) do
    local rest, version = string.match(found[i], '^(.*),"[^"]*","[^"]*",(%d+)]$')
    changes[i] = '["' .. id .. '",' .. found[i] .. ']'
    facts[#facts + 1] = id
    facts[#facts + 1] = rest .. ',null,"' .. ARGV[2] .. '",' .. string.format('%.0f', version + 1) .. ']'
    scores[#scores + 1] = ids[2 * i]
    scores[#scores + 1] = id
    redis.call('RPUSH', KEYS[10] .. id, seq)
end
redis.call('HSET', KEYS[2], unpack(facts))
redis.call('DEL', KEYS[6])
redis.call('ZADD', KEYS[7], unpack(scores))
redis.call('HSET', KEYS[3], seq, ARGV[3] .. ',' .. head .. ',[' .. table.concat(changes, ',') .. ']]')
redis.call('RPUSH', KEYS[9], seq)
redis.call('HSET', KEYS[4], ARGV[1], seq .. ' 0')
return names
"""


@functools.cache
def server_url() -> str:
    """A server for this process, that keeps what it is told as memstate's documentation says."""
    from tests.servers import redis_server

    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(redis_server(settings=["appendonly=yes", "appendfsync=everysec"])).url


def _fact(raw: bytes | str | None) -> dict[str, Any] | None:
    if raw is None:
        return None
    id_, type_, payload, source, session_id, ts, version = json.loads(raw)
    return {
        "id": id_,
        "type": type_,
        "payload": payload,
        "source": source,
        "session_id": session_id,
        "ts": ts,
        "version": version,
    }


class RedisFloor:
    """Facts, journal and heads by hand, a round trip for each operation.

    The journal keeps the *before* of every change, so all can be undone and redone. There are no namespaces, no marks,
    no declared types but the three of the workload, no refusals but of what is not valid, no hooks, and a reply that is
    lost is a commit more.
    """

    def __init__(self, url: str) -> None:
        import redis

        self._client = redis.Redis.from_url(url)
        self._base = f"floor:{uuid.uuid4().hex}:"
        self._shas = {text: self._client.script_load(text) for text in (_COMMIT, _QUERY, _ROLLBACK, _PROMOTE)}

    def _keys(self, *names: str) -> list[str]:
        return [f"{self._base}{name}" for name in names]

    def _run(self, script: str, keys: list[str], *arguments: Any) -> Any:
        return self._client.evalsha(self._shas[script], len(keys), *keys, *arguments)

    def _of(self, typename: str, session_id: str, other: str, topic: str) -> list[str]:
        lists = f"h:{session_id}", "f:"
        return self._keys("seq", "facts", "journal", "heads", f"t:{typename}", f"s:{session_id}", other, topic, *lists)

    def commit(self, model: BaseModel, session_id: str) -> str:
        """One script; what it is given is checked and dumped here."""
        check_name(session_id)
        payload = payload_of(model)
        typename = TYPES[type(model)]
        ts = datetime.now(UTC).isoformat()
        topic = model.topic if isinstance(model, Preference) else ""
        id_: bytes = self._run(
            _COMMIT,
            self._of(typename, session_id, "names", f"topic:{topic}"),
            str(uuid.uuid4()),
            session_id,
            f'"{typename}",{payload},null,"{session_id}","{ts}"',
            f'["{session_id}","COMMIT",null,null,"{ts}"',
            topic,
            model.name if isinstance(model, Setting) else "",
        )
        return id_.decode()

    def get(self, fact_id: str) -> dict[str, Any] | None:
        raw: Any = self._client.hget(f"{self._base}facts", fact_id)
        return _fact(raw)

    def query(self, topic: str) -> list[dict[str, Any] | None]:
        return [_fact(raw) for raw in self._run(_QUERY, self._keys(f"topic:{topic}", "facts"))]

    def rollback(self, session_id: str, steps: int) -> list[dict[str, Any]]:
        ts = datetime.now(UTC).isoformat()
        keys = self._of("note", session_id, "names", "topic:")
        pairs, facts = self._run(_ROLLBACK, keys, session_id, steps, f'["{session_id}","ROLLBACK",null,null,"{ts}"')
        images = {fact["id"]: fact for fact in map(_fact, facts) if fact is not None}
        undone = []
        for place in range(0, len(pairs), 2):
            _, operation, actor, reason, made, parent, changes = json.loads(pairs[place + 1])
            undone.append(
                {
                    "seq": int(pairs[place]),
                    "parent": parent,
                    "operation": operation,
                    "actor": actor,
                    "reason": reason,
                    "ts": datetime.fromisoformat(made),
                    "changes": [{"id": id_, "before": None, "after": images[id_]} for id_, _ in changes],
                }
            )
        return undone

    def promote(self, session_id: str) -> list[str]:
        ts = datetime.now(UTC).isoformat()
        keys = self._of("note", session_id, "s:", "topic:")
        names = self._run(_PROMOTE, keys, session_id, ts, f'["{session_id}","PROMOTE",null,null,"{ts}"')
        return [name.decode() for name in names]

    def close(self) -> None:
        self._client.close()


def _open(_: Path) -> Storage:
    from memstate.backends.redis import RedisStorage

    return RedisStorage(server_url(), prefix=uuid.uuid4().hex)


def _open_async(_: Path) -> Storage:
    from memstate.backends.redis import AsyncRedisStorage

    return AsyncRedisStorage(server_url(), prefix=uuid.uuid4().hex)


REDIS: Final = StorageKind(
    "redis",
    floor=lambda _: RedisFloor(server_url()),
    storage=_open,
    async_storage=_open_async,
    floor_needs_thread=True,
    targets={
        "commit, new": 2.0,
        "commit, singleton": 2.0,
        "get": 1.5,
        "query on a declared index": 2.0,
        "rollback of 1": 2.5,
        "rollback of 100": 2.0,
        "promote 100 facts": 2.0,
        "16 writers": 0.6,
    },
)
