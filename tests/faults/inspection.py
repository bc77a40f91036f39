"""What is really in the files: read with :mod:`sqlite3` and Chroma's own client, by nothing of MemState."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memstate_core import LexicalEmbedder
from tests.faults.model import RECORDS, Change, Entry, Image, Model

EMBEDDER = LexicalEmbedder(8)


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[sqlite3.Connection]:
    """A connection of our own, all of whose reads see one moment."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    try:
        connection.execute("BEGIN")
        yield connection
    finally:
        connection.close()


def dump(path: str | Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with opened(path) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in sorted(names)}


def claims(path: str | Path) -> list[str]:
    with opened(path) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'memstate_claims'").fetchone():
            return []  # nobody got so far
        return [key for (key,) in connection.execute("SELECT key FROM memstate_claims ORDER BY key")]


def is_free(path: str | Path) -> bool:
    """Whether nobody holds the write lock."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


def read_state(path: str | Path) -> Model:
    """Facts and journal as a model; checks on the way that the journal is whole."""
    with opened(path) as connection:
        facts, versions = _read_versions(connection)
        entries = _read_entries(connection, versions)
        heads = {
            session[1:] if session else None: (head, redo)
            for session, head, redo in connection.execute("SELECT session, head, redo FROM memstate_sessions")
        }
        records = {
            key: value.decode()
            for key, value in connection.execute(
                "SELECT key, value FROM memstate_records WHERE collection = ?", (RECORDS,)
            )
        }
    latest: dict[str, int] = {}
    for fact_id, version in versions:
        latest[fact_id] = max(version, latest.get(fact_id, 0))
    state = Model(facts, latest, entries, heads, records)
    check_journal(state)
    return state


def _read_versions(connection: sqlite3.Connection) -> tuple[dict[str, Image], dict[tuple[str, int], Image]]:
    """The current facts, and every version there ever was."""
    columns = "id, version, type, payload, session_id, ephemeral"
    facts: dict[str, Image] = {}
    versions: dict[tuple[str, int], Image] = {}
    for table in ("memstate_versions", "memstate_facts"):
        for fact_id, version, type_, payload, *rest in connection.execute(f"SELECT {columns} FROM {table}"):
            image = Image(version, type_, json.loads(payload), rest[0], bool(rest[1]))
            assert versions.setdefault((fact_id, version), image) == image, f"two versions {version} of {fact_id}"
            if table == "memstate_facts":
                assert fact_id not in facts, f"{fact_id} is current twice"
                facts[fact_id] = image
    return facts, versions


def _read_entries(connection: sqlite3.Connection, versions: dict[tuple[str, int], Image]) -> dict[int, Entry]:
    entries = {}
    rows = connection.execute(
        "SELECT seq, session_id, operation, parent, head, changes FROM memstate_transactions ORDER BY seq"
    )
    for seq, session_id, operation, parent, head, changes in rows:
        images = [
            Change(id_, versions[id_, before] if before else None, versions[id_, after] if after else None)
            for id_, before, after in json.loads(changes)
        ]
        entries[seq] = Entry(seq, session_id, operation, parent, seq if head is None else head, images)
    return entries


def check_journal(state: Model) -> None:
    """Every parent and head exists, versions follow each other, and replaying it gives the facts; a place has one."""
    facts: dict[str, Image] = {}
    heads: dict[str | None, int] = {}
    latest: dict[str, int] = {}
    holders: dict[Any, str] = {}
    for entry in state.entries.values():
        for place in (entry.parent, entry.head):
            assert not place or state.entries[place].session_id == entry.session_id, entry
        assert entry.parent == heads.get(entry.session_id, 0), f"{entry} does not start where its session stood"
        heads[entry.session_id] = entry.head
        for fact_id, before, _ in entry.changes:
            assert facts.get(fact_id) == before, f"{entry} does not start from what {fact_id} was"
            if before is not None and before.place is not None:
                holders.pop(before.place)
        for fact_id, _, after in entry.changes:
            if after is None:
                del facts[fact_id]
                continue
            facts[fact_id] = after
            if after.place is not None:
                other = holders.setdefault(after.place, fact_id)
                assert other == fact_id, f"{entry} gives {fact_id} the singleton place of {other}"
            if entry.operation not in ("ROLLBACK", "REDO", "CHECKOUT"):
                assert after.version == latest.get(fact_id, 0) + 1, f"a version of {fact_id} is missing before {entry}"
                latest[fact_id] = after.version
    assert facts == state.facts, "replaying the journal does not give the facts"
    assert heads == {session: head for session, (head, _) in state.heads.items()}
    assert latest == state.latest


def differences(state: Model, expected: Model) -> list[str]:
    """What is not as expected, in words; the order of a transaction's changes does not matter."""
    found = [
        f"{id_} is {state.facts.get(id_)}, not {expected.facts.get(id_)}"
        for id_ in {*state.facts, *expected.facts}
        if state.facts.get(id_) != expected.facts.get(id_)
    ]
    for seq in {*state.entries, *expected.entries}:
        if _unordered(state.entries.get(seq)) != _unordered(expected.entries.get(seq)):
            found.append(f"{state.entries.get(seq)} instead of {expected.entries.get(seq)}")
    heads, expected_heads = ({session: head for session, (head, _) in m.heads.items()} for m in (state, expected))
    if heads != expected_heads:
        found.append(f"heads {heads} instead of {expected_heads}")
    if state.records != expected.records:
        found.append(f"records {state.records} instead of {expected.records}")
    return found


def _unordered(entry: Entry | None) -> Any:
    return entry and (*entry[:-1], sorted(entry.changes, key=lambda change: change.fact_id))


def check_index(client: Any, name: str, facts: dict[str, Image]) -> None:
    """A Chroma collection has exactly the facts, each with its own text, vector, version, type and session."""
    collection = client.get_collection(name, embedding_function=None)
    content = collection.get(include=["documents", "metadatas", "embeddings"])
    entries = dict(zip(content["ids"], zip(content["documents"], content["metadatas"], strict=True), strict=True))
    assert len(entries) == len(content["ids"])
    assert entries == {id_: (image.payload["text"], _metadata(image)) for id_, image in facts.items()}
    for fact_id, vector in zip(content["ids"], content["embeddings"], strict=True):
        expected = EMBEDDER([facts[fact_id].payload["text"]])[0]
        assert np.allclose(vector, expected, atol=1e-5), f"the vector of {fact_id} is not that of its text"


def _metadata(image: Image) -> dict[str, Any]:
    metadata = {
        "memstate_namespace": "default",
        "memstate_fields": zlib.crc32(b"[]") + 1,
        "memstate_type": image.type,
        "memstate_version": image.version,
        "memstate_long_term": image.session_id is None,
    }
    return metadata if image.session_id is None else {**metadata, "memstate_session_id": image.session_id}
