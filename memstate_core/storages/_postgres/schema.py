"""The numbered migrations of :mod:`memstate_core.storages.postgres`: appended to, never changed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Final

import psycopg

from memstate_core.errors import StorageError
from memstate_core.storages._postgres.ports import Port, Source
from memstate_core.storages._postgres.tables import (
    PAYLOAD_INDEX,
    TRANSACTIONS,
    VERSIONS,
    WRITES,
    first_migration,
    in_schema,
    name_of,
)

_PREFIX: Final = name_of(VERSIONS).partition(".")[0]
_MIGRATIONS_TABLE: Final = f"{_PREFIX}.memstate_migrations"
_LOCK_TABLE: Final = f"{_PREFIX}.memstate_lock"

# Whether a version of a fact was there before. It is a function because, unlike a part of the statement that calls it,
# a volatile function sees what was committed since that statement began.
_USED: Final = f"""
CREATE FUNCTION {_PREFIX}.memstate_used(used_namespace text, used_id text, used_version bigint) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
    SELECT EXISTS (
        SELECT 1 FROM {name_of(VERSIONS)}
        WHERE namespace = used_namespace AND id = used_id AND version >= used_version
    )
$$
"""

# Whether one of these facts was changed, or one of these singleton places left, by a transaction with a greater seq.
_OVERTAKEN: Final = f"""
CREATE FUNCTION {_PREFIX}.memstate_overtaken(in_namespace text, after_seq bigint, ids text[], places text[])
RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT EXISTS (
        SELECT 1 FROM {name_of(TRANSACTIONS)} t CROSS JOIN LATERAL json_array_elements(CAST(t.changes AS json)) change
        WHERE t.namespace || '' = in_namespace AND t.seq > after_seq AND (
            change ->> 0 = ANY (ids) OR EXISTS (
                SELECT 1 FROM {name_of(VERSIONS)} v
                WHERE v.namespace = in_namespace AND v.id = change ->> 0
                AND v.version = CAST(change ->> 1 AS bigint) AND v.singleton = ANY (places)
            )
        )
    )
$$
"""

MIGRATIONS: Final[Sequence[Callable[[], Sequence[str]]]] = [
    lambda: [*first_migration(), _USED],
    lambda: [f"CREATE INDEX memstate_writes_by_time ON {name_of(WRITES)} (at)"],
    lambda: [_OVERTAKEN],
]

_APPLIED: Final = f"SELECT coalesce(max(number), 0) FROM {_MIGRATIONS_TABLE}"
_HAS_INDEX: Final = """
SELECT EXISTS (
    SELECT 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relname = 'memstate_facts_by_payload' AND i.indrelid = CAST($1 AS regclass)
)
"""
_MISSING: Final = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)
# What happens where there are no advisory locks, and several begin at once.
_RACES: Final = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateObject,  # the type of a table's rows
    psycopg.errors.DuplicateSchema,
    psycopg.errors.DuplicateFunction,
    psycopg.errors.SerializationFailure,
    psycopg.errors.InternalError_,  # "tuple concurrently updated", of the catalogue
)
_TRIES: Final = 50


async def migrate(
    source: Source, port: Port, prefix: str, *, advisory_locks: bool, payload_index: bool, shown: str
) -> None:
    """Bring the tables to the newest migration, once, whoever of many processes comes first.

    :raises StorageError: they are of a newer MemState.
    """
    number = await _applied(port, prefix)
    if number < len(MIGRATIONS) or (payload_index and not await _has_payload_index(port, prefix)):
        for attempt in range(_TRIES):
            try:
                await _apply(port, prefix, advisory_locks, payload_index)
                break
            except _RACES:
                if attempt == _TRIES - 1:
                    raise
                await source.sleep(0.05)
        number = await _applied(port, prefix)
    if number > len(MIGRATIONS):
        raise StorageError(
            f"the tables in {shown} were written by a newer MemState (migration {number}, this one knows "
            f"{len(MIGRATIONS)}); upgrade memstate"
        )


async def _applied(port: Port, prefix: str) -> int:
    try:
        rows = await port.execute(in_schema(_APPLIED, prefix))
    except _MISSING:
        return 0
    number: int = rows[0][0]
    return number


async def _has_payload_index(port: Port, prefix: str) -> bool:
    rows = await port.execute(_HAS_INDEX, (f"{prefix}memstate_facts",))
    return bool(rows[0][0])


async def _apply(port: Port, prefix: str, advisory_locks: bool, payload_index: bool) -> None:
    async def run(text: str) -> None:
        await port.script(in_schema(text, prefix))

    if not advisory_locks:
        await _make_schema(port, prefix)
        await run(f"CREATE TABLE IF NOT EXISTS {_LOCK_TABLE} (one integer PRIMARY KEY)")
        await run(f"INSERT INTO {_LOCK_TABLE} (one) VALUES (1) ON CONFLICT DO NOTHING")
    await port.script("BEGIN")
    try:
        if advisory_locks:
            key = zlib.crc32(f"memstate {prefix}".encode())
            await port.execute("SELECT pg_advisory_xact_lock($1::bigint)", (str(key),))
            await _make_schema(port, prefix)
        else:
            await run(f"SELECT one FROM {_LOCK_TABLE} FOR UPDATE")
        await run(f"CREATE TABLE IF NOT EXISTS {_MIGRATIONS_TABLE} (number integer PRIMARY KEY)")
        applied = await _applied(port, prefix)
        for number, texts in enumerate(MIGRATIONS[applied:], start=applied + 1):
            await run("; ".join(texts()))
            await port.execute(
                in_schema(f"INSERT INTO {_MIGRATIONS_TABLE} (number) VALUES ($1::integer)", prefix), (str(number),)
            )
        if payload_index:
            await run(PAYLOAD_INDEX)
        await port.script("COMMIT")
    except BaseException:
        if not port.connection.closed:
            await port.script("ROLLBACK")
        raise


async def _make_schema(port: Port, prefix: str) -> None:
    """Make the schema, unless there is one, which a user without the right to make any may use."""
    if prefix:
        rows = await port.execute("SELECT to_regnamespace($1::text) IS NULL", (prefix.removesuffix("."),))
        if rows[0][0]:
            await port.script(f"CREATE SCHEMA IF NOT EXISTS {prefix.removesuffix('.')}")
