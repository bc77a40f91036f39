"""Where the connection broke while a batch was written, so that nobody knows what came of it.

It is *fenced off*: what it relied on is changed so that it can never be applied any more, unless it was, which its id
tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from memstate_core.storages._postgres import statements as sql
from memstate_core.storages._postgres.ports import Port
from memstate_core.storages._postgres.tables import SESSIONS, WRITES, key_of, name_of, sent, session_key
from memstate_core.storages._postgres.transaction import WriteTransaction

_NEXT_SEQ: Final = "nextval(pg_get_serial_sequence($3::text, 'seq')::regclass)"
_FENCE_SESSION: Final = f"""
UPDATE {name_of(SESSIONS)} SET latest = {_NEXT_SEQ}
WHERE namespace = $1 AND session = $2 AND latest = $4::bigint RETURNING latest
"""
_FENCE_NEW_SESSION: Final = f"""
INSERT INTO {name_of(SESSIONS)} (namespace, session, head, redo, latest)
SELECT $1, $2, 0, 0, {_NEXT_SEQ} WHERE $4::bigint = 0 ON CONFLICT (namespace, session) DO NOTHING RETURNING latest
"""
_FENCE_WRITE: Final = f"""
INSERT INTO {name_of(WRITES)} (token) VALUES ($1::uuid) ON CONFLICT (token) DO NOTHING RETURNING 1
"""


@dataclass(eq=False)
class Lost(Exception):
    """The connection broke while a batch was written."""

    tx: WriteTransaction
    result: Any
    token: str
    latest: int
    error: BaseException
    began: float


async def fence_off(port: Port, prefix: str, namespace: str, lost: Lost) -> int | None:
    """The seq of a batch that was written (0: without an entry); None: it was not, and now cannot be any more."""
    batch = lost.tx.batch
    assert batch is not None
    if batch.entry is None:
        return None if await port.execute(sent(_FENCE_WRITE, prefix), (lost.token,)) else 0
    session_id = batch.entry.session_id
    values = (key_of(namespace), session_key(session_id), f"{prefix}memstate_transactions", str(lost.latest))
    for text in (_FENCE_SESSION, _FENCE_NEW_SESSION):
        if await port.execute(sent(text, prefix), values):
            return None
    statement = sql.NEXT_IN_SESSION[session_id is not None]
    given = {"namespace": key_of(namespace), "session_id": session_id, "latest": str(lost.latest)}
    rows = await port.execute(sent(statement.text, prefix), [given[name] for name in statement.names])
    if rows and rows[0][1].hex == lost.token:
        seq: int = rows[0][0]
        return seq
    return None
