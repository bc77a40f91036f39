"""The SQL that every transaction runs, written out once so that SQLite compiles it once."""

from __future__ import annotations

from functools import cache
from typing import Final

_WITHOUT_ORDINAL: Final = (
    "id", "type", "payload", "source", "session_id", "ts", "version", "ephemeral", "schema_version", "singleton",
)  # fmt: skip

# In the order of StoredFact; a fact's row is its ordinal.
FACT: Final = ", ".join((*_WITHOUT_ORDINAL, "row"))
FACT_OF_F: Final = ", ".join(f"f.{name}" for name in (*_WITHOUT_ORDINAL, "row"))
ENTRY: Final = "t.seq, t.session_id, t.parent, t.head, t.operation, t.actor, t.reason, t.mark, t.ts, t.changes"

SELECT_FACT: Final = f"SELECT {FACT} FROM memstate_facts WHERE namespace = ? AND id = ?"
# A fact that is read to be changed, with the highest version of it that is not the current one.
SELECT_FACT_AND_LATEST: Final = SELECT_FACT.replace(
    " FROM", ", (SELECT max(version) FROM memstate_versions WHERE namespace = ? AND id = ?) FROM"
)
SELECT_VERSION: Final = f"""
    SELECT {FACT} FROM memstate_versions WHERE namespace = ? AND id = ? AND version = ?
    UNION ALL SELECT {FACT} FROM memstate_facts WHERE namespace = ? AND id = ? AND version = ?
    LIMIT 1
"""
SELECT_HOLDER: Final = f"SELECT {FACT} FROM memstate_facts WHERE namespace = ? AND singleton = ?"
SELECT_LATEST: Final = "SELECT max(version) FROM memstate_versions WHERE namespace = ? AND id = ?"

# Many ids go into one statement as a JSON array, so that its text does not depend on how many they are.
SELECT_FACTS: Final = f"{SELECT_FACT.removesuffix('= ?')}IN (SELECT value FROM json_each(?))"
SELECT_LATEST_OF_MANY: Final = """
    SELECT id, max(version) FROM memstate_versions
    WHERE namespace = ? AND id IN (SELECT value FROM json_each(?)) GROUP BY id
"""
SELECT_RECORD: Final = "SELECT value FROM memstate_records WHERE namespace = ? AND collection = ? AND key = ?"
MOST_RECORDS: Final = 16  # so many are asked for by one statement


@cache
def select_records(count: int) -> str:
    """The place (from 0) and the value of each record that there is; each has a namespace, a collection and a key."""
    return " UNION ALL ".join(SELECT_RECORD.replace("value", f"{place}, value", 1) for place in range(count))


DELETE_RECORD: Final = "DELETE FROM memstate_records WHERE namespace = ? AND collection = ? AND key = ?"
PUT_RECORD: Final = """
    INSERT INTO memstate_records (namespace, collection, key, value) VALUES (?, ?, ?, ?)
    ON CONFLICT (namespace, collection, key) DO UPDATE SET value = excluded.value
"""
SELECT_POSITION: Final = """
    SELECT coalesce(s.head, 0), coalesce(s.redo, 0), coalesce(g.generation, 0),
           EXISTS (SELECT 1 FROM memstate_claims WHERE namespace = ?)
    FROM (SELECT 1)
    LEFT JOIN memstate_sessions s ON s.namespace = ? AND s.session = ?
    LEFT JOIN memstate_generations g ON g.namespace = ?
"""
SELECT_ENTRY: Final = f"SELECT {ENTRY} FROM memstate_transactions t WHERE seq = ? AND namespace = ?"
SELECT_LINE: Final = f"""
    WITH RECURSIVE line (seq, parent, place) AS (
        SELECT seq, parent, 1 FROM memstate_transactions WHERE seq = ? AND namespace = ? AND seq > ?
        UNION ALL
        SELECT t.seq, t.parent, place + 1 FROM line JOIN memstate_transactions t ON t.seq = line.parent
        WHERE t.seq > ? AND place < ?
    )
    SELECT {ENTRY} FROM line CROSS JOIN memstate_transactions t ON t.seq = line.seq ORDER BY line.place
"""
# A version is archived when it stops being the current one; one that came back is in the archive already.
ARCHIVE: Final = f"""
    INSERT OR IGNORE INTO memstate_versions (namespace, made_by, {FACT})
    SELECT namespace, made_by, {FACT} FROM memstate_facts WHERE row = ?
"""
_MADE_BY: Final = "(SELECT made_by FROM memstate_versions WHERE namespace = ? AND id = ? AND version = ?)"
_INSERT: Final = f"INSERT INTO memstate_facts ({FACT}, namespace, made_by) VALUES ({'?, ' * 11}?, "
INSERT_FACT: Final = f"{_INSERT}?)"
INSERT_FACT_AGAIN: Final = f"{_INSERT}{_MADE_BY})"


def update_fact(*, session: bool, singleton: bool, again: bool) -> str:
    """An UPDATE of a fact's row; ``again``: to an archived version.

    SQLite writes every index on a column that is set, changed or not, so the session and the singleton place are set
    only where they change.
    """
    columns = ["payload", "source", "ts", "version", "ephemeral", "schema_version"]
    columns += ["session_id"] * session + ["singleton"] * singleton
    made_by = _MADE_BY if again else "?"
    return (
        f"UPDATE memstate_facts SET {', '.join(f'{name} = ?' for name in columns)}, made_by = {made_by} WHERE row = ?"
    )


UPDATE_FACT: Final = {
    (session, singleton, again): update_fact(session=session, singleton=singleton, again=again)
    for session in (False, True)
    for singleton in (False, True)
    for again in (False, True)
}
DELETE_FACT: Final = "DELETE FROM memstate_facts WHERE row = ?"
LEAVE_PLACE: Final = "UPDATE memstate_facts SET singleton = NULL WHERE row = ?"
PUT_FIELD: Final = """
    INSERT INTO memstate_fields (row, path, namespace, type, kind, value) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (row, path) DO UPDATE SET kind = excluded.kind, value = excluded.value
    WHERE kind != excluded.kind OR value != excluded.value
"""
DELETE_FIELD: Final = "DELETE FROM memstate_fields WHERE row = ? AND path = ?"
CHANGED_BY: Final = """
    SELECT made_by AS seq FROM memstate_facts WHERE namespace = ? AND id = ?
    UNION SELECT made_by FROM memstate_versions WHERE namespace = ? AND id = ?
    UNION SELECT seq FROM memstate_touched WHERE namespace = ? AND fact_id = ?
"""
INSERT_TRANSACTION: Final = """
    INSERT INTO memstate_transactions
        (seq, namespace, session_id, previous, parent, head, operation, actor, reason, mark, ts, changes)
    VALUES (
        ?, ?, ?, coalesce((SELECT latest FROM memstate_sessions WHERE namespace = ? AND session = ?), 0),
        ?, ?, ?, ?, ?, ?, ?, ?
    )
"""
INSERT_TOUCHED: Final = "INSERT INTO memstate_touched (namespace, fact_id, seq) VALUES (?, ?, ?)"
MOVE_HEAD: Final = """
    INSERT INTO memstate_sessions (namespace, session, head, redo, latest) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (namespace, session) DO UPDATE SET head = excluded.head, redo = excluded.redo, latest = excluded.latest
"""
PUT_CLAIM: Final = """
    INSERT OR REPLACE INTO memstate_claims (namespace, key, owner, expires, hooks) VALUES (?, ?, ?, ?, ?)
"""
SELECT_OF_SESSION: Final = f"""
    WITH RECURSIVE past (seq, place) AS (
        SELECT coalesce(
            (SELECT previous FROM memstate_transactions WHERE seq = ? AND namespace = ? AND session_id IS ?),
            (SELECT latest FROM memstate_sessions WHERE namespace = ? AND session = ?),
            0
        ), 0
        UNION ALL
        SELECT t.previous, place + (t.seq < ?)
        FROM past JOIN memstate_transactions t ON t.seq = past.seq WHERE place < ?
    )
    SELECT {ENTRY} FROM past CROSS JOIN memstate_transactions t ON t.seq = past.seq
    WHERE t.seq < ? ORDER BY t.seq DESC LIMIT ?
"""

# From one to the next, since a collection may have many records.
SELECT_COLLECTIONS: Final = """
    WITH RECURSIVE found (name) AS (
        SELECT min(collection) FROM memstate_records WHERE namespace = ?
        UNION ALL
        SELECT (SELECT min(collection) FROM memstate_records r WHERE r.namespace = ? AND r.collection > found.name)
        FROM found WHERE found.name IS NOT NULL
    )
    SELECT name FROM found WHERE name IS NOT NULL
"""
_NAMESPACES: Final = " UNION ALL ".join(
    f"SELECT min(namespace) AS name FROM memstate_{table} WHERE namespace > ?1"
    for table in ("sessions", "savepoints", "records", "definitions")
)
SELECT_NEXT_NAMESPACE: Final = f"SELECT min(name) FROM ({_NAMESPACES})"
