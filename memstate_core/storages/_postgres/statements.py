"""What is read, as statements that SQLAlchemy compiles once for a process."""

from __future__ import annotations

import functools
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from memstate_core.facts import StoredFact
from memstate_core.storages._postgres.tables import (
    CLAIMS,
    DEFINITIONS,
    DOCUMENT,
    FACTS,
    FIELDS,
    NAMESPACES,
    RECORDS,
    SAVEPOINTS,
    SESSIONS,
    TOUCHED,
    TRANSACTIONS,
    VERSIONS,
    Statement,
    compiled,
    in_order,
)

_ZERO: Final[sa.ColumnClause[int]] = sa.literal_column("0")


def _value(name: str, type_: Any = None) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=sa.Text() if type_ is None else type_)


def _number(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=sa.BigInteger())


def _json(name: str) -> sa.ColumnElement[Any]:
    return sa.cast(_value(name), postgresql.JSON)


def _any(column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
    """Whether a column's value is in a list."""
    type_ = sa.Text() if isinstance(column.type, sa.Text) else column.type
    return column == sa.any_(_value(name, postgresql.ARRAY(type_)))


def _of_namespace(table: sa.FromClause) -> sa.ColumnElement[bool]:
    condition: sa.ColumnElement[bool] = table.c.namespace == _value("namespace")
    return condition


def _in_order(table: sa.FromClause) -> sa.ColumnElement[bool]:
    condition: sa.ColumnElement[bool] = in_order(table) == _value("namespace")
    return condition


def _fact(table: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """A table's columns in the order of StoredFact."""
    return [table.c[name] for name in StoredFact._fields]


def _latest(fact_id: Any) -> sa.ScalarSelect[Any]:
    return (
        sa.select(sa.func.max(VERSIONS.c.version))
        .where(_of_namespace(VERSIONS), VERSIONS.c.id == fact_id)
        .scalar_subquery()
    )


ENTRY: Final = [
    TRANSACTIONS.c[name]
    for name in ("seq", "session_id", "parent", "head", "operation", "actor", "reason", "mark", "ts", "changes")
]
_CURRENT: Final = sa.select(*_fact(FACTS)).where(_of_namespace(FACTS))

FACT: Final = compiled(_CURRENT.where(FACTS.c.id == _value("id")))
FACTS_OF: Final = compiled(_CURRENT.where(_any(FACTS.c.id, "ids")))
HOLDERS: Final = compiled(_CURRENT.where(_any(FACTS.c.singleton, "places")))

# A writer also needs to know what nobody must have changed until it writes, and the highest version that there was.
_TO_WRITE: Final = [*_fact(FACTS), FACTS.c.stamp, FACTS.c.archived]
_wanted: Final = sa.values(sa.column("id", sa.Text), name="wanted").data([(_value("id"),)])
FACT_TO_WRITE: Final = compiled(
    sa.select(*_TO_WRITE[:-1], sa.func.coalesce(FACTS.c.archived, _latest(_wanted.c.id))).select_from(
        _wanted.outerjoin(FACTS, sa.and_(_of_namespace(FACTS), FACTS.c.id == _wanted.c.id))
    )
)
FACTS_TO_WRITE: Final = compiled(sa.select(*_TO_WRITE).where(_of_namespace(FACTS), _any(FACTS.c.id, "ids")))
_HOLDERS: Final = sa.select(*_TO_WRITE).where(_of_namespace(FACTS))
HOLDER_TO_WRITE: Final = compiled(_HOLDERS.where(FACTS.c.singleton == _value("place")))
HOLDERS_TO_WRITE: Final = compiled(_HOLDERS.where(_any(FACTS.c.singleton, "places")))
LATEST: Final = compiled(
    sa.select(VERSIONS.c.id, sa.func.max(VERSIONS.c.version))
    .where(_of_namespace(VERSIONS), _any(VERSIONS.c.id, "ids"))
    .group_by(VERSIONS.c.id)
)
_pairs: Final = (
    sa.func.json_to_recordset(_json("pairs"))
    .table_valued(sa.column("id", sa.Text), sa.column("version", sa.BigInteger), name="wanted")
    .render_derived(with_types=True)
)


def _versions_in(table: sa.Table) -> sa.Select[Any]:
    return sa.select(*_fact(table)).join_from(
        _pairs,
        table,
        sa.and_(_of_namespace(table), table.c.id == _pairs.c.id, table.c.version == _pairs.c.version),
    )


VERSIONS_OF: Final = compiled(_versions_in(FACTS).union_all(_versions_in(VERSIONS)))

POSITION: Final = compiled(
    sa.select(
        sa.func.coalesce(SESSIONS.c.head, _ZERO),
        sa.func.coalesce(SESSIONS.c.redo, _ZERO),
        sa.func.coalesce(SESSIONS.c.latest, _ZERO),
        sa.func.coalesce(sa.select(NAMESPACES.c.generation).where(_of_namespace(NAMESPACES)).scalar_subquery(), _ZERO),
        sa.exists().where(_of_namespace(CLAIMS)),
    ).select_from(
        sa.values(sa.column("one", sa.Integer), name="one")
        .data([(sa.literal_column("1"),)])
        .outerjoin(SESSIONS, sa.and_(_of_namespace(SESSIONS), SESSIONS.c.session == _value("session")))
    )
)

ENTRIES: Final = compiled(sa.select(*ENTRY).where(_of_namespace(TRANSACTIONS), _any(TRANSACTIONS.c.seq, "seqs")))


def _line() -> Statement:
    t = TRANSACTIONS
    line = (
        sa.select(*ENTRY, sa.literal_column("1").label("place"))
        .where(_of_namespace(t), t.c.seq == _number("seq"), t.c.seq > _number("above"))
        .cte("line", recursive=True)
    )
    line = line.union_all(
        sa.select(*ENTRY, line.c.place + sa.literal_column("1")).where(
            _of_namespace(t),
            t.c.seq == line.c.parent,
            t.c.seq > _number("above"),
            line.c.place < _number("limit"),
        )
    )
    return compiled(sa.select(*[line.c[column.name] for column in ENTRY]).order_by(line.c.place))


LINE: Final = _line()
# The transaction of a session that came right after another one.
NEXT_IN_SESSION: Final = {
    with_id: compiled(
        sa.select(TRANSACTIONS.c.seq, TRANSACTIONS.c.token)
        .where(
            _of_namespace(TRANSACTIONS),
            TRANSACTIONS.c.session_id == _value("session_id") if with_id else TRANSACTIONS.c.session_id.is_(None),
            TRANSACTIONS.c.seq > _number("latest"),
        )
        .order_by(TRANSACTIONS.c.seq)
        .limit(sa.literal_column("1"))
    )
    for with_id in (False, True)
}


@functools.lru_cache(maxsize=64)
def history(session: bool | None, fact: bool, mark: bool, before: bool, limit: bool) -> Statement:
    """Journal entries; ``session`` None: of any, False: of no session."""
    t = TRANSACTIONS
    narrowed = session is not None or fact or mark
    statement = sa.select(*ENTRY).where((_of_namespace if narrowed else _in_order)(t)).order_by(t.c.seq.desc())
    if fact:
        id_ = _value("fact_id")
        changed_by = (
            sa.select(FACTS.c.made_by.label("seq"))
            .where(_of_namespace(FACTS), FACTS.c.id == id_)
            .union(
                sa.select(VERSIONS.c.made_by).where(_of_namespace(VERSIONS), VERSIONS.c.id == id_),
                sa.select(TOUCHED.c.seq).where(_of_namespace(TOUCHED), TOUCHED.c.fact_id == id_),
            )
            .subquery("changed_by")
        )
        statement = statement.join_from(t, changed_by, t.c.seq == changed_by.c.seq)
    if session is not None:
        statement = statement.where(t.c.session_id == _value("session_id") if session else t.c.session_id.is_(None))
    if mark:
        statement = statement.where(t.c.mark == _value("mark"))
    if before:
        statement = statement.where(t.c.seq < _number("before"))
    if limit:
        statement = statement.limit(_number("limit"))
    return compiled(statement)


SAVEPOINT: Final = compiled(
    sa.select(SAVEPOINTS.c.seq).where(
        _of_namespace(SAVEPOINTS),
        SAVEPOINTS.c.session == _value("session"),
        SAVEPOINTS.c.name == _value("name"),
    )
)
SAVEPOINTS_OF: Final = compiled(
    sa.select(SAVEPOINTS.c.session, SAVEPOINTS.c.name, SAVEPOINTS.c.seq).where(_of_namespace(SAVEPOINTS))
)
COLLECTIONS: Final = compiled(
    sa.select(RECORDS.c.collection).where(_of_namespace(RECORDS)).distinct().order_by(RECORDS.c.collection)
)
_BEHIND: Final = sa.union_all(
    *[
        sa.select(sa.func.min(table.c.namespace).label("name")).where(table.c.namespace > _value("behind"))
        for table in (SESSIONS, SAVEPOINTS, RECORDS, DEFINITIONS)
    ]
).subquery()
NEXT_NAMESPACE: Final = compiled(sa.select(sa.func.min(_BEHIND.c.name)))
_RECORDS: Final = sa.select(RECORDS.c.key, RECORDS.c.value).where(
    _of_namespace(RECORDS), RECORDS.c.collection == _value("collection")
)
RECORD: Final = compiled(_RECORDS.where(RECORDS.c.key == _value("key")))
# So many records are looked for by one statement at most.
MOST_RECORDS: Final = 8


@functools.lru_cache(maxsize=8)
def records(count: int) -> Statement:
    """So many records by their keys, each by the index: a join would have the planner guess, and read the table."""
    columns = RECORDS.c.collection, RECORDS.c.key, RECORDS.c.value
    each = [
        sa.select(*columns).where(
            _of_namespace(RECORDS),
            RECORDS.c.collection == _value(f"collection{number}"),
            RECORDS.c.key == _value(f"key{number}"),
        )
        for number in range(count)
    ]
    return compiled(sa.union_all(*each))


@functools.lru_cache(maxsize=64)
def scan(start: bool, end: bool, limit: bool, reverse: bool) -> Statement:
    key = RECORDS.c.key
    statement = _RECORDS.order_by(key.desc() if reverse else key)
    if start:
        statement = statement.where(key >= _value("start"))
    if end:
        statement = statement.where(key < _value("end"))
    if limit:
        statement = statement.limit(_number("limit"))
    return compiled(statement)


_CLAIMS: Final = sa.select(CLAIMS.c.key, CLAIMS.c.owner, CLAIMS.c.expires, CLAIMS.c.hooks).where(_of_namespace(CLAIMS))
ALL_CLAIMS: Final = compiled(_CLAIMS)
CLAIMS_ON: Final = compiled(_CLAIMS.where(_any(CLAIMS.c.key, "keys")))
ALL_DEFINITIONS: Final = compiled(
    sa.select(DEFINITIONS.c.type, DEFINITIONS.c.definition).where(_of_namespace(DEFINITIONS))
)
FACTS_OF_TYPE: Final = compiled(_CURRENT.where(FACTS.c.type == _value("type")).order_by(FACTS.c.ordinal))


@functools.lru_cache(maxsize=256)
def selection(
    counted: bool,
    typename: bool,
    session: bool | None,
    field: str | None,
    document: bool,
    limit: bool,
    after: bool,
) -> Statement:
    """Facts by type and session, narrowed by a declared field or by what their payload contains.

    ``session`` None: of any, False: of none. ``field`` is the bounds that are given on its value: a column, a colon,
    and any of ``=<>``. ``after``: those behind an ordinal.
    """
    f, x = FACTS, FIELDS
    by_ordinal = field is not None or not (typename or document or session is not None)
    conditions = [(_in_order if by_ordinal else _of_namespace)(f)]
    if typename and field is None:
        conditions.append(f.c.type == _value("type"))
    if session is not None:
        conditions.append(f.c.session_id == _value("session_id") if session else f.c.session_id.is_(None))
    if after:
        conditions.append(f.c.ordinal > _number("after"))
    if field is not None:
        # The type is in the field's key. An array is always made before the facts are looked up, one by one.
        column, _, bounds = field.partition(":")
        number = column == "number"
        low, high = (_value(name, sa.Numeric() if number else None) for name in ("low", "high"))
        of_field = [x.c.field == _value("field"), x.c.kind == _value("kind", sa.SmallInteger())]
        of_field += [x.c[column] == low] * ("=" in bounds)
        of_field += [x.c[column] >= low] * (">" in bounds)
        of_field += [x.c[column] <= high] * ("<" in bounds)
        ordinals = sa.select(x.c.ordinal).where(*of_field).scalar_subquery()
        conditions.append(f.c.ordinal == sa.any_(sa.func.array(ordinals)))
    if document:
        contains = DOCUMENT.op("@>")(sa.cast(_value("document"), postgresql.JSONB))
        conditions.append(sa.or_(contains, sa.not_(f.c.plain)))
    if counted:
        return compiled(sa.select(sa.func.count()).select_from(f).where(*conditions))
    statement = sa.select(*_TO_WRITE).where(*conditions).order_by(f.c.ordinal)
    if limit:
        statement = statement.limit(_number("limit")).offset(_number("offset"))
    return compiled(statement)
