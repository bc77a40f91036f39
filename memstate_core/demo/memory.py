"""What is remembered of a conversation: facts in SQLite, their vectors in Chroma. And how the two are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import chromadb
import numpy as np
from chromadb.config import Settings
from chromadb.errors import NotFoundError
from pydantic import BaseModel

from memstate_core.demo.conversation import Conversation, Question, Session
from memstate_core.embedding import LexicalEmbedder
from memstate_core.engine import now_utc
from memstate_core.facts import ScoredFact
from memstate_core.hooks._mapping import fingerprint
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_core.protocols import Hook, Storage
from memstate_core.schemas import Constraint
from memstate_core.storages.sqlite import SQLiteStorage
from memstate_core.store import MemoryStore

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

COLLECTION: Final = "memory"
DATABASE: Final = "memory.db"
INDEX: Final = "chroma"
_FIELDS: Final = ["speaker", "session"]

# Chroma scales vectors to length 1 itself, so the last digits of what it returns may differ from what it was given.
_TOLERANCE: Final = 1e-6


class Observation(BaseModel):
    """Something that a session told about a speaker; ``evidence`` are the ids of the turns that say so."""

    speaker: str
    text: str
    evidence: list[str]
    session: int
    date: datetime | None


class Focus(BaseModel):
    """What was last told about a speaker: one fact per speaker, overwritten by every session."""

    speaker: str
    text: str
    session: int


class Entry(NamedTuple):
    """One entry of the index, exactly: ``vector`` are the bytes of its 32-bit floats."""

    text: str
    metadata: Mapping[str, Any]
    vector: bytes


class Dump(NamedTuple):
    """Everything that is in storage now, and everything that is in the index, by fact id."""

    facts: dict[str, dict[str, Any]]
    entries: dict[str, Entry]


class Memory:
    """A store of observations, in a storage and a Chroma collection that are the caller's to close.

    ``wrap`` may put another hook around the one for Chroma.
    """

    def __init__(
        self,
        storage: Storage,
        client: ClientAPI,
        *,
        collection: str = COLLECTION,
        wrap: Callable[[ChromaSyncHook], Hook] | None = None,
        clock: Callable[[], datetime] = now_utc,
        lease: float = 30.0,
    ) -> None:
        self.storage = storage
        self.client = client
        self.collection = collection
        hook = ChromaSyncHook(
            client,
            collection,
            embedding_fn=LexicalEmbedder(),
            text_field="text",
            metadata_fields=_FIELDS,
        )
        self.store = MemoryStore(storage, [wrap(hook) if wrap else hook], clock=clock, lease=lease)
        self.store.register_schema("observation", Observation)
        self.store.register_schema("focus", Focus, Constraint(singleton_key="speaker"))

    def remember(self, conversation: Conversation, session: Session) -> str | None:
        """Commit what a session told, as one transaction; returns its id, or None when it told nothing."""
        latest: dict[str, Focus] = {}
        with self.store.transaction(
            conversation.sample_id, actor="agent", reason=f"session {session.number}", mark=f"session-{session.number}"
        ) as tx:
            for number, (speaker, text, evidence) in enumerate(session.observed, start=1):
                observation = Observation(
                    speaker=speaker, text=text, evidence=list(evidence), session=session.number, date=session.date
                )
                tx.commit_model(observation, fact_id=f"D{session.number}/{number}", source=", ".join(evidence) or None)
                latest[speaker] = Focus(speaker=speaker, text=text, session=session.number)
            for speaker, focus in latest.items():
                tx.commit_model(focus, fact_id=f"focus/{speaker}")
        return tx.transaction_id

    def answer(self, question: Question, limit: int) -> list[ScoredFact]:
        """The observations that are most like a question, best first."""
        return self.store.search(question.text, limit=limit, typename="observation")

    def dump(self) -> Dump:
        return dump(self.storage, self.client, self.collection)

    def drift(self) -> int:
        """In how many entries the index differs from storage, as the store itself finds."""
        return sum(len(drift) for drift in self.store.verify())


@contextmanager
def opened_client(directory: Path) -> Iterator[ClientAPI]:
    """The Chroma client of a directory. One process at a time: an embedded client does not see another's writes."""
    client: Any = chromadb.PersistentClient(str(directory / INDEX), Settings(anonymized_telemetry=False))
    try:
        yield client
    finally:
        if hasattr(client, "close"):
            client.close()
        else:  # Chroma 1.0
            client._system.stop()
            client.clear_system_cache()


@contextmanager
def opened(directory: Path) -> Iterator[Memory]:
    """The memory that is kept in a directory; made if there is none."""
    with opened_client(directory) as client, SQLiteStorage(directory / DATABASE) as storage:
        memory = Memory(storage, client)
        with memory.store:
            yield memory


def dump(storage: Storage, client: ClientAPI, collection: str = COLLECTION) -> Dump:
    """Read everything, past the hook and without a store that could heal something while it is read."""
    facts = {fact["id"]: fact for fact in MemoryStore(storage).query()}
    try:
        chroma = client.get_collection(collection, embedding_function=None)
    except NotFoundError:
        return Dump(facts, {})
    page = chroma.get(include=["documents", "metadatas", "embeddings"])
    ids: Sequence[str] = page["ids"]
    documents, metadatas, vectors = page["documents"] or [], page["metadatas"] or [], page["embeddings"]
    assert vectors is not None
    return Dump(
        facts,
        {
            id_: Entry(document, metadata, np.asarray(vector, dtype=np.float32).tobytes())
            for id_, document, metadata, vector in zip(ids, documents, metadatas, vectors, strict=True)
        },
    )


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The ids under which two dumps do not hold the same."""
    return [id_ for id_ in dict.fromkeys([*one, *other]) if one.get(id_) != other.get(id_)]


def unlike(dump: Dump) -> list[str]:
    """The facts and entries that do not belong together, found by working out what the index should hold.

    This asks neither the store nor the hook, so that their own answer can be checked by it.
    """
    ids = list(dict.fromkeys([*dump.facts, *dump.entries]))
    return [id_ for id_ in ids if not _belong(dump.facts.get(id_), dump.entries.get(id_))]


def _belong(fact: Mapping[str, Any] | None, entry: Entry | None) -> bool:
    if fact is None or entry is None:
        return fact is None and entry is None
    payload = fact["payload"]
    expected = np.asarray(LexicalEmbedder().embed_query(payload["text"]), dtype=np.float32)
    found = np.frombuffer(entry.vector, dtype=np.float32)
    return (
        entry.text == payload["text"]
        and entry.metadata
        == {
            "speaker": payload["speaker"],
            "session": payload["session"],
            "memstate_namespace": "default",
            "memstate_fields": fingerprint(_FIELDS),
            "memstate_type": fact["type"],
            "memstate_version": fact["version"],
            "memstate_long_term": False,
            "memstate_session_id": fact["session_id"],
        }
        and found.shape == expected.shape
        and bool(np.allclose(found, expected, rtol=0, atol=_TOLERANCE))
    )
