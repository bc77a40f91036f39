"""The tables of :mod:`memstate_core.storages.postgres`, and how statements on them become text.

``memstate_facts`` are the facts as they are, changed in place; ``memstate_versions`` are the versions that were
replaced or removed, and ``archived`` is the highest version that a fact has there (0: none), so that the next one is
known, and none is archived twice. ``stamp`` is the seq of the transaction that last changed a fact: version numbers
come back when something is rolled back, stamps do not. ``memstate_fields`` are the declared index entries of current
facts. ``memstate_transactions`` is the journal: a tree by ``parent``; its ``changes`` are ``[[fact id, version before,
version after], …]``. Which transactions changed a fact is told by ``made_by`` of its versions, and by
``memstate_touched`` for those that made no version of it. Seqs and ordinals are given out once in a schema, so what has
one needs no namespace in its key; that of a field is in ``field``. ``memstate_outbox`` is what hooks are still to be
told of, ``memstate_lanes`` who delivers it. ``memstate_writes`` remembers for a while the ids of what was written
without a journal entry; a journal entry has its own.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

# No entry of a B-tree may be longer than a third of a page, so keys of several long texts are hashed.
_KEY_BYTES: Final = 200
_HASHED: Final = "sha256:"

# Stands in compiled statements for the schema, whose quoted name takes its place.
_SCHEMA: Final = "memstate_schema"

DIALECT: Final = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
_METADATA: Final = sa.MetaData(schema=_SCHEMA)


def key_of(text: str) -> str:
    """A text as a part of a key: itself, or its hash where it is long."""
    if len(text.encode()) <= _KEY_BYTES and not text.startswith(_HASHED):
        return text
    return _HASHED + hashlib.sha256(text.encode()).hexdigest()


def is_digest(key: str) -> bool:
    """Whether a key is the hash of a long text, which it does not tell."""
    return key.startswith(_HASHED)


def session_key(session_id: str | None) -> str:
    """A session id as a key that is never NULL: NULLs are distinct from each other in a primary key."""
    return "" if session_id is None else key_of(f"={session_id}")


def _text(name: str, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C"), **{"nullable": False, **options})


def _table(name: str, *parts: Any, **options: Any) -> sa.Table:
    return sa.Table(f"memstate_{name}", _METADATA, *parts, **options)


def _namespace(*, primary_key: bool = True) -> sa.Column[str]:
    return _text("namespace", primary_key=primary_key)


def _version_columns() -> list[sa.Column[Any]]:
    """In the order of :class:`~memstate_core.facts.StoredFact`, behind the id."""
    return [
        _text("type"),
        _text("payload"),
        _text("source", nullable=True),
        _text("session_id", nullable=True),
        _text("ts"),
    ]


def _more_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("ephemeral", sa.Boolean, nullable=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
        _text("singleton", nullable=True),
        sa.Column("ordinal", sa.BigInteger, nullable=False),
        sa.Column("made_by", sa.BigInteger, nullable=False),
    ]


FACTS: Final = _table(
    "facts",
    _text("id", primary_key=True),
    _namespace(),
    *_version_columns(),
    sa.Column("version", sa.BigInteger, nullable=False),
    *_more_columns(),
    sa.Column("stamp", sa.BigInteger, nullable=False),
    sa.Column("archived", sa.BigInteger, nullable=False),
    sa.Column("plain", sa.Boolean, nullable=False),
)
VERSIONS: Final = _table(
    "versions",
    _text("id", primary_key=True),
    _namespace(),
    *_version_columns(),
    sa.Column("version", sa.BigInteger, primary_key=True),
    *_more_columns(),
)
FIELDS: Final = _table(
    "fields",
    sa.Column("ordinal", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("field", primary_key=True),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("number", sa.Numeric),
    _text("text", nullable=True),
)
TRANSACTIONS: Final = _table(
    "transactions",
    sa.Column("seq", sa.BigInteger, sa.Identity(), primary_key=True),
    _namespace(primary_key=False),
    sa.Column("token", sa.Uuid, nullable=False),
    _text("session_id", nullable=True),
    sa.Column("parent", sa.BigInteger, nullable=False),
    sa.Column("head", sa.BigInteger),
    _text("operation"),
    _text("actor", nullable=True),
    _text("reason", nullable=True),
    _text("mark", nullable=True),
    _text("ts"),
    _text("changes"),
)
TOUCHED: Final = _table(
    "touched",
    _text("fact_id", primary_key=True),
    _namespace(),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
)
SESSIONS: Final = _table(
    "sessions",
    _namespace(),
    _text("session", primary_key=True),
    sa.Column("head", sa.BigInteger, nullable=False),
    sa.Column("redo", sa.BigInteger, nullable=False),
    sa.Column("latest", sa.BigInteger, nullable=False),
)
SAVEPOINTS: Final = _table(
    "savepoints",
    _namespace(),
    _text("session", primary_key=True),
    _text("name", primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
)
RECORDS: Final = _table(
    "records",
    _namespace(),
    _text("collection", primary_key=True),
    _text("key", primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
CLAIMS: Final = _table(
    "claims",
    _namespace(),
    _text("key", primary_key=True),
    _text("owner"),
    sa.Column("expires", sa.Double, nullable=False),
    _text("hooks"),
)
DEFINITIONS: Final = _table("definitions", _namespace(), _text("type", primary_key=True), _text("definition"))
NAMESPACES: Final = _table("namespaces", _namespace(), sa.Column("generation", sa.BigInteger, nullable=False))
OUTBOX: Final = _table(
    "outbox",
    _namespace(),
    _text("hook", primary_key=True),
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("fact_id", primary_key=True),
    sa.Column("before", sa.BigInteger, nullable=False),
    sa.Column("after", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due", sa.Double, nullable=False),
    _text("error", nullable=True),
)
LANES: Final = _table(
    "lanes",
    _namespace(),
    _text("hook", primary_key=True),
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    _text("owner", nullable=True),
    sa.Column("expires", sa.Double, nullable=False),
)
WRITES: Final = sa.Table(
    "memstate_writes",
    _METADATA,
    sa.Column("token", sa.Uuid, primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

_F, _T, _X = FACTS.c, TRANSACTIONS.c, FIELDS.c


def in_order(table: sa.FromClause) -> sa.ColumnElement[str]:
    """The namespace, for the index by which all of it is read in order, and for no other.

    Before a table was analysed, the planner believes that a namespace has a few rows in it, and would rather read all
    of them by some index that begins with the namespace than look up a hundred ids. So none does.
    """
    return table.c.namespace + sa.literal_column("''")


sa.Index("memstate_facts_by_ordinal", in_order(FACTS), _F.ordinal, unique=True)
sa.Index("memstate_facts_by_type", _F.type, _F.namespace, _F.ordinal)
sa.Index("memstate_facts_by_session", _F.session_id, _F.namespace, _F.ordinal)
sa.Index(
    "memstate_facts_by_singleton",
    _F.singleton,
    _F.namespace,
    unique=True,
    postgresql_where=_F.singleton.is_not(None),
)
sa.Index("memstate_fields_by_text", _X.field, _X.kind, _X.text, postgresql_where=_X.text.is_not(None))
sa.Index("memstate_fields_by_number", _X.field, _X.kind, _X.number, postgresql_where=_X.number.is_not(None))
sa.Index(
    "memstate_outbox_failing",
    OUTBOX.c.namespace,
    OUTBOX.c.hook,
    OUTBOX.c.lane,
    postgresql_where=OUTBOX.c.attempts > sa.literal_column("0"),
)
sa.Index("memstate_transactions_by_seq", in_order(TRANSACTIONS), _T.seq)
sa.Index("memstate_transactions_by_session", _T.session_id, _T.namespace, _T.seq)
sa.Index("memstate_transactions_by_mark", _T.mark, _T.namespace, _T.seq, postgresql_where=_T.mark.is_not(None))

# What JSONB takes, of payloads of which it takes all; the others are looked at one by one.
DOCUMENT: Final = sa.case((_F.plain, sa.cast(_F.payload, postgresql.JSONB)))
sa.Index("memstate_facts_by_difficulty", in_order(FACTS), postgresql_where=sa.not_(_F.plain))
PAYLOAD_INDEX: Final = f"""
CREATE INDEX IF NOT EXISTS memstate_facts_by_payload ON {_SCHEMA}.memstate_facts
USING gin ((CASE WHEN plain THEN CAST(payload AS JSONB) END) jsonb_path_ops)
"""


class Statement(NamedTuple):
    """SQL with numbered placeholders, and the names of their values in order."""

    text: str
    names: tuple[str, ...]


def in_schema(text: str, prefix: str) -> str:
    """A text with the real schema (``'"name".'``, or nothing) in place of the one that stands for it."""
    return text.replace(f"{_SCHEMA}.", prefix)


@functools.lru_cache(maxsize=1024)
def sent(text: str, prefix: str) -> bytes:
    """A text as it is sent, in the real schema: each time the same object, by which the driver knows it again."""
    return in_schema(text, prefix).encode()


def compiled(statement: sa.ClauseElement) -> Statement:
    """A statement's text, whose named parameters have become numbered ones."""
    done = statement.compile(dialect=DIALECT)
    return Statement(str(done), tuple(done.positiontup or ()))  # type: ignore[attr-defined]


def name_of(table: sa.Table) -> str:
    """A table's name as it stands in texts before :func:`in_schema`."""
    return f"{_SCHEMA}.{table.name}"


# What gives out seqs.
SEQUENCE: Final = f"CAST(pg_get_serial_sequence($name${name_of(TRANSACTIONS)}$name$, 'seq') AS regclass)"


@functools.cache
def first_migration() -> Sequence[str]:
    """All tables as they were at the beginning."""
    texts = []
    for table in _METADATA.sorted_tables:
        texts.append(_ddl(sa.schema.CreateTable(table)))
        indexes = sorted(table.indexes, key=lambda index: index.name or "")
        texts.extend(_ddl(sa.schema.CreateIndex(index)) for index in indexes)
    # Heads move within their page, and leave no index entries behind.
    texts.append(f"ALTER TABLE {name_of(SESSIONS)} SET (fillfactor = 50)")
    return texts


def _ddl(element: Any) -> str:
    return str(element.compile(dialect=DIALECT)).strip()


def quoted(schema: str) -> str:
    """A schema's name as a prefix of table names."""
    return f"{DIALECT.identifier_preparer.quote_identifier(schema)}."
