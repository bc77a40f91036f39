"""Where several processes keep their data: an SQLite file, or what is theirs of a server."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Self

import psycopg
import redis
import sqlalchemy as sa

from memstate_core import AsyncSQLiteStorage, SQLiteStorage
from memstate_core._bridge import run
from memstate_core.facts import StoredFact
from memstate_core.protocols import Selection, StorageTransaction, Work
from memstate_core.storages.postgres import AsyncPostgresStorage, PostgresStorage
from memstate_core.storages.redis import AsyncRedisStorage, RedisStorage
from tests.faults import inspection
from tests.faults.model import RECORDS, Change, Entry, Image, Model
from tests.forking import wait_until

KINDS = ["sqlite", "postgres", "redis"]

# A patience that outlasts whatever else the machine does.
PATIENCE = 100.0


@dataclass(frozen=True)
class Place:
    """``where`` is a file or a URL, ``name`` that of the schema, or the prefix of the keys."""

    kind: str
    where: str
    name: str = ""
    namespace: str = "default"

    @classmethod
    def of(cls, directory: str | Path) -> Self:
        """The place that the processes of a directory share: the one that was put there, or a file in it."""
        note = Path(directory) / "place.json"
        return (
            cls(*json.loads(note.read_text())) if note.exists() else cls("sqlite", str(Path(directory) / "memory.db"))
        )

    def put_into(self, directory: str | Path) -> None:
        """Make it the place of a directory."""
        (Path(directory) / "place.json").write_text(json.dumps(astuple(self)))

    def by_way_of(self, way: Any) -> Place:
        """The same place, reached through a proxy."""
        return replace(self, where=way.through(self.where))

    def as_client(self, name: str) -> Place:
        """The same place, whose server knows this client by a name."""
        if not self.is_served:
            return self
        option = "application_name" if self.kind == "postgres" else "client_name"
        return replace(self, where=f"{self.where}{'&' if '?' in self.where else '?'}{option}={name}")

    def wait_until_gone(self, name: str) -> None:
        """Wait until the server has done all that a client had sent before it was killed."""
        if self.kind == "postgres":
            with psycopg.connect(self.where, autocommit=True) as connection:
                query = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s"
                wait_until(lambda: not connection.execute(query, [name]).fetchall(), f"the end of {name}")
        elif self.kind == "redis":
            with redis.Redis.from_url(self.where) as client:
                wait_until(lambda: name not in {one["name"] for one in client.client_list()}, f"the end of {name}")

    @property
    def is_served(self) -> bool:
        return self.kind != "sqlite"

    def storage(self, timeout: float = PATIENCE, *, kept: bool = False) -> Any:
        """``kept``: if it takes long to connect, on connections that this process keeps, and that no fork may use."""
        if self.kind == "sqlite":
            return SQLiteStorage(self.where, timeout=timeout)
        if self.kind == "postgres":
            return PostgresStorage(_engine(self.where) if kept else self.where, schema=self.name, timeout=timeout)
        return RedisStorage(self.where, prefix=self.name, timeout=timeout)

    def async_storage(self, timeout: float = PATIENCE) -> Any:
        if self.kind == "sqlite":
            return AsyncSQLiteStorage(self.where, timeout=timeout)
        if self.kind == "postgres":
            return AsyncPostgresStorage(self.where, schema=self.name, timeout=timeout)
        return AsyncRedisStorage(self.where, prefix=self.name, timeout=timeout)

    def claims(self) -> list[str]:
        if not self.is_served:
            return inspection.claims(self.where) if Path(self.where).exists() else []
        return sorted(claim.key for claim in self._look(lambda tx: tx.claims()))

    def read_state(self) -> Model:
        """Facts and journal as a model, all of one moment; checks on the way that the journal is whole.

        A file is read past MemState. What is on a server is asked of a storage that knows nothing yet, without a
        store; transactions are numbered by their place in the journal, as storages may leave numbers out.
        """
        if not self.is_served:
            return inspection.read_state(self.where)
        state = self._look(_state)
        inspection.check_journal(state)
        return state

    def read_settled_state(self) -> Model:
        """The same, and that no claim is left."""
        if not self.is_served:
            assert self.claims() == []
            return self.read_state()

        async def work(tx: StorageTransaction) -> Model:
            assert await tx.claims() == []
            return await _state(tx)

        state = self._look(work)
        inspection.check_journal(state)
        return state

    def _look(self, work: Work[Any]) -> Any:
        with self.storage(kept=True) as storage:
            return run(storage.read(self.namespace, work, snapshot=True))


@functools.cache
def _engine(url: str) -> sa.Engine:
    return sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), pool_size=20, pool_pre_ping=True)


async def _state(tx: StorageTransaction) -> Model:
    facts = {fact.id: _image(fact) for fact in await tx.select(Selection(decode=lambda fact: json.loads(fact.payload)))}
    journal = list(reversed(await tx.history()))
    wanted = {
        (change.fact_id, version)
        for entry in journal
        for change in entry.changes
        for version in (change.before, change.after)
        if version
    }
    versions = {key: _image(fact) for key, fact in (await tx.versions(list(wanted))).items()}
    for fact_id, image in facts.items():
        assert versions[fact_id, image.version] == image, f"two versions {image.version} of {fact_id}"
    number = {entry.seq: place for place, entry in enumerate(journal, start=1)} | {0: 0}
    entries = {
        number[entry.seq]: Entry(
            number[entry.seq],
            entry.session_id,
            entry.operation,
            number[entry.parent],
            number[entry.head],
            [
                Change(id_, versions.get((id_, before)), versions.get((id_, after)))
                for id_, before, after in entry.changes
            ],
        )
        for entry in journal
    }
    sessions = {entry.session_id for entry in journal}
    positions = {session: await tx.position(session) for session in sessions}
    heads = {session: (number[at.head], number.get(at.redo, 0)) for session, at in positions.items()}
    records = {record.key: record.value.decode() for record in await tx.scan(RECORDS)}
    latest: dict[str, int] = {}
    for fact_id, version in versions:
        latest[fact_id] = max(version, latest.get(fact_id, 0))
    return Model(facts, latest, entries, heads, records)


def _image(fact: StoredFact) -> Image:
    return Image(fact.version, fact.type, json.loads(fact.payload), fact.session_id, bool(fact.ephemeral))


MakePlace = Callable[[str], Place]
