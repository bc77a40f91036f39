"""The least that a checkpoint takes on each storage: a saver that stores only what is new, by the bare driver.

A put appends the messages that the thread did not have, and a row with the rest of the checkpoint and how many messages
it has; one transaction. There are no branches, and what has changed in a message that was stored is not seen: the
floor knows that the benchmark's threads only grow. Values are encoded by LangGraph's own serializer.
"""

from __future__ import annotations

import random
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import ormsgpack
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from benchmarks.storages import StorageKind
from benchmarks.workload import fresh

_MESSAGES: Final = "messages"
_MANY: Final = 1_000_000

# A checkpoint: thread, id, its parent's, the encoded rest of it with its metadata, and how many messages it has.
Row = tuple[str, str, str | None, bytes, int]
# What a task wrote: thread, checkpoint, task, place, channel, and the encoded value.
Write = tuple[str, str, str, int, str, bytes]


class Rows(Protocol):
    """Where the rows are kept."""

    def put(self, row: Row, messages: Sequence[tuple[int, bytes]]) -> None: ...

    def put_writes(self, writes: Sequence[Write]) -> None: ...

    def latest(self, thread_id: str, limit: int) -> Sequence[Row]:
        """The newest checkpoints first."""
        ...

    def messages(self, thread_id: str, count: int) -> Sequence[bytes]: ...

    def writes(self, thread_id: str, checkpoint_id: str) -> Sequence[tuple[str, str, bytes]]:
        """Task, channel and value."""
        ...

    def close(self) -> None: ...


class Floor(BaseCheckpointSaver[str]):
    """What of a checkpointer the benchmark, and a graph that is run, calls."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows
        serde = JsonPlusSerializer()
        self._dump, self._load = serde.dumps_typed, serde.loads_typed
        self._known: dict[str, int] = {}

    def get_next_version(self, current: str | None, channel: None) -> str:
        number = 0 if current is None else int(current.partition(".")[0])
        return f"{number + 1:032}.{random.random():016}"

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        """Encode the rest and the new messages; store both."""
        configurable = config["configurable"]
        thread_id, checkpoint_id = configurable["thread_id"], checkpoint["id"]
        values = dict(checkpoint["channel_values"])
        messages = values.pop(_MESSAGES, [])
        rest = self._dump(({**checkpoint, "channel_values": values}, metadata))[1]
        first = self._known.get(thread_id, 0)
        new = [(first + place, self._dump(message)[1]) for place, message in enumerate(messages[first:])]
        self.rows.put((thread_id, checkpoint_id, configurable.get("checkpoint_id"), rest, len(messages)), new)
        self._known[thread_id] = len(messages)
        return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": checkpoint_id}}

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        """Encode, and store what is not there yet."""
        configurable = config["configurable"]
        thread_id, checkpoint_id = configurable["thread_id"], configurable["checkpoint_id"]
        self.rows.put_writes(
            [
                (thread_id, checkpoint_id, task_id, place, channel, self._dump(value)[1])
                for place, (channel, value) in enumerate(writes)
            ]
        )

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        """The latest checkpoint, its messages, and its writes."""
        return next(self.list(config, limit=1), None)

    def list(
        self,
        config: Any,
        *,
        filter: Any = None,  # noqa: A002
        before: Any = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """The newest checkpoints, the messages of the longest one, decoded once, and the writes of each."""
        thread_id = config["configurable"]["thread_id"]
        found = self.rows.latest(thread_id, limit or _MANY)
        stored = self.rows.messages(thread_id, max((row[4] for row in found), default=0))
        messages = [self._load(("msgpack", message)) for message in stored]
        for _, checkpoint_id, parent_id, rest, count in found:
            checkpoint, metadata = self._load(("msgpack", rest))
            checkpoint["channel_values"][_MESSAGES] = messages[:count]
            writes = [
                (task, channel, self._load(("msgpack", value)))
                for task, channel, value in self.rows.writes(thread_id, checkpoint_id)
            ]
            own, parent = (
                {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": one}}
                for one in (checkpoint_id, parent_id)
            )
            yield CheckpointTuple(own, checkpoint, metadata, parent if parent_id else None, writes)  # type: ignore[arg-type]


class MemoryRows:
    """Dictionaries and lists, and a lock."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self._messages: dict[str, list[bytes]] = defaultdict(list)
        self._writes: dict[tuple[str, str], dict[tuple[str, int], tuple[str, bytes]]] = defaultdict(dict)
        self._lock = threading.Lock()

    def put(self, row: Row, messages: Sequence[tuple[int, bytes]]) -> None:
        with self._lock:
            self._messages[row[0]] += [message for _, message in messages]
            self._rows[row[0]].append(row)

    def put_writes(self, writes: Sequence[Write]) -> None:
        with self._lock:
            for thread_id, checkpoint_id, task_id, place, channel, value in writes:
                self._writes[thread_id, checkpoint_id].setdefault((task_id, place), (channel, value))

    def latest(self, thread_id: str, limit: int) -> Sequence[Row]:
        return self._rows[thread_id][: -limit - 1 : -1]

    def messages(self, thread_id: str, count: int) -> Sequence[bytes]:
        return self._messages[thread_id][:count]

    def writes(self, thread_id: str, checkpoint_id: str) -> Sequence[tuple[str, str, bytes]]:
        return [(task, *found) for (task, _), found in self._writes[thread_id, checkpoint_id].items()]

    def close(self) -> None:
        """Nothing to close."""


class SQLiteRows:
    """Three tables that are their own indexes, in WAL mode, every commit synced."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = full",
            """
            CREATE TABLE checkpoints (
                thread TEXT, id TEXT, parent TEXT, rest BLOB, count INTEGER, PRIMARY KEY (thread, id)
            ) WITHOUT ROWID
            """,
            "CREATE TABLE messages (thread TEXT, place INTEGER, value BLOB, PRIMARY KEY (thread, place)) WITHOUT ROWID",
            """
            CREATE TABLE writes (
                thread TEXT, checkpoint TEXT, task TEXT, place INTEGER, channel TEXT, value BLOB,
                PRIMARY KEY (thread, checkpoint, task, place)
            ) WITHOUT ROWID
            """,
        ):
            self._connection.execute(statement)
        self._lock = threading.Lock()

    def put(self, row: Row, messages: Sequence[tuple[int, bytes]]) -> None:
        """Begin; the checkpoint; the new messages; commit."""
        execute = self._connection.execute
        with self._lock:
            execute("BEGIN IMMEDIATE")
            try:
                execute("INSERT INTO checkpoints (thread, id, parent, rest, count) VALUES (?, ?, ?, ?, ?)", row)
                self._connection.executemany(
                    "INSERT INTO messages (thread, place, value) VALUES (?, ?, ?)", [(row[0], *one) for one in messages]
                )
                execute("COMMIT")
            except BaseException:
                execute("ROLLBACK")
                raise

    def put_writes(self, writes: Sequence[Write]) -> None:
        """Begin; the writes; commit."""
        execute = self._connection.execute
        with self._lock:
            execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(
                    "INSERT OR IGNORE INTO writes (thread, checkpoint, task, place, channel, value) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    writes,
                )
                execute("COMMIT")
            except BaseException:
                execute("ROLLBACK")
                raise

    def latest(self, thread_id: str, limit: int) -> Sequence[Row]:
        text = "SELECT thread, id, parent, rest, count FROM checkpoints WHERE thread = ? ORDER BY id DESC LIMIT ?"
        return self._connection.execute(text, (thread_id, limit)).fetchall()

    def messages(self, thread_id: str, count: int) -> Sequence[bytes]:
        text = "SELECT value FROM messages WHERE thread = ? AND place < ? ORDER BY place"
        return [row[0] for row in self._connection.execute(text, (thread_id, count))]

    def writes(self, thread_id: str, checkpoint_id: str) -> Sequence[tuple[str, str, bytes]]:
        text = "SELECT task, channel, value FROM writes WHERE thread = ? AND checkpoint = ? ORDER BY task, place"
        return self._connection.execute(text, (thread_id, checkpoint_id)).fetchall()

    def close(self) -> None:
        self._connection.close()


class PostgresRows:
    """The same tables; one statement for each call, prepared."""

    def __init__(self) -> None:
        import psycopg

        from benchmarks.storages.postgres import own_url

        self._connection = psycopg.connect(own_url(), autocommit=True, prepare_threshold=0)
        self._connection.execute(
            """
            CREATE TABLE checkpoints (
                thread text COLLATE "C", id text COLLATE "C", parent text, rest bytea, count integer,
                PRIMARY KEY (thread, id)
            );
            CREATE TABLE messages (thread text COLLATE "C", place integer, value bytea, PRIMARY KEY (thread, place));
            CREATE TABLE writes (
                thread text COLLATE "C", checkpoint text COLLATE "C", task text COLLATE "C", place integer,
                channel text, value bytea, PRIMARY KEY (thread, checkpoint, task, place)
            );
            """,
            prepare=False,
        )

    def put(self, row: Row, messages: Sequence[tuple[int, bytes]]) -> None:
        self._connection.execute(
            """
            WITH put AS (
                INSERT INTO checkpoints (thread, id, parent, rest, count) VALUES (%s, %s, %s, %b, %s)
            )
            INSERT INTO messages (thread, place, value)
            SELECT %s, x.place, x.value FROM unnest(%s::integer[], %b::bytea[]) AS x (place, value)
            """,
            (*row, row[0], [place for place, _ in messages], [value for _, value in messages]),
            binary=True,
        )

    def put_writes(self, writes: Sequence[Write]) -> None:
        thread_id, checkpoint_id, task_id = writes[0][:3]
        self._connection.execute(
            """
            INSERT INTO writes (thread, checkpoint, task, place, channel, value)
            SELECT %s, %s, %s, x.place, x.channel, x.value
            FROM unnest(%s::integer[], %s::text[], %b::bytea[]) AS x (place, channel, value)
            ON CONFLICT (thread, checkpoint, task, place) DO NOTHING
            """,
            (thread_id, checkpoint_id, task_id, *([one[column] for one in writes] for column in (3, 4, 5))),
            binary=True,
        )

    def latest(self, thread_id: str, limit: int) -> Sequence[Row]:
        text = "SELECT thread, id, parent, rest, count FROM checkpoints WHERE thread = %s ORDER BY id DESC LIMIT %s"
        return self._connection.execute(text, (thread_id, limit), binary=True).fetchall()

    def messages(self, thread_id: str, count: int) -> Sequence[bytes]:
        text = "SELECT value FROM messages WHERE thread = %s AND place < %s ORDER BY place"
        return [row[0] for row in self._connection.execute(text, (thread_id, count), binary=True)]

    def writes(self, thread_id: str, checkpoint_id: str) -> Sequence[tuple[str, str, bytes]]:
        text = "SELECT task, channel, value FROM writes WHERE thread = %s AND checkpoint = %s ORDER BY task, place"
        return self._connection.execute(text, (thread_id, checkpoint_id), binary=True).fetchall()

    def close(self) -> None:
        self._connection.close()


class RedisRows:
    """A hash of checkpoints, a sorted set of their ids, a list of messages and a hash of writes for each thread."""

    def __init__(self) -> None:
        import redis

        from benchmarks.storages.redis import server_url

        self._client = redis.Redis.from_url(server_url())
        self._prefix = fresh("floor")

    def _key(self, kind: str, thread_id: str) -> str:
        return f"{self._prefix}:{kind}:{thread_id}"

    def put(self, row: Row, messages: Sequence[tuple[int, bytes]]) -> None:
        """One MULTI."""
        with self._client.pipeline(transaction=True) as pipeline:
            pipeline.hset(self._key("c", row[0]), row[1], ormsgpack.packb(row))
            pipeline.zadd(self._key("i", row[0]), {row[1]: 0})
            if messages:
                pipeline.rpush(self._key("m", row[0]), *[value for _, value in messages])
            pipeline.execute()

    def put_writes(self, writes: Sequence[Write]) -> None:
        """One MULTI."""
        with self._client.pipeline(transaction=True) as pipeline:
            for thread_id, checkpoint_id, task_id, place, channel, value in writes:
                field = ormsgpack.packb((task_id, place))
                pipeline.hsetnx(self._key(f"w:{checkpoint_id}", thread_id), field, ormsgpack.packb((channel, value)))
            pipeline.execute()

    def latest(self, thread_id: str, limit: int) -> Sequence[Row]:
        ids: Any = self._client.zrevrange(self._key("i", thread_id), 0, limit - 1)
        found: Any = self._client.hmget(self._key("c", thread_id), ids) if ids else []
        return [tuple(ormsgpack.unpackb(one)) for one in found]

    def messages(self, thread_id: str, count: int) -> Sequence[bytes]:
        found: Any = self._client.lrange(self._key("m", thread_id), 0, count - 1)
        return list(found)

    def writes(self, thread_id: str, checkpoint_id: str) -> Sequence[tuple[str, str, bytes]]:
        found: Any = self._client.hgetall(self._key(f"w:{checkpoint_id}", thread_id))
        return [(ormsgpack.unpackb(field)[0], *ormsgpack.unpackb(value)) for field, value in found.items()]

    def close(self) -> None:
        self._client.close()


def floor(kind: StorageKind, directory: Path) -> Floor:
    """The floor of a storage; the caller closes its rows."""
    if kind.name == "sqlite":
        return Floor(SQLiteRows(directory / "floor.db"))
    if kind.name == "postgres":
        return Floor(PostgresRows())
    return Floor(RedisRows() if kind.name == "redis" else MemoryRows())
