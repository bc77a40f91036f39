"""What the processes of ``test_races.py`` do at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromadb
from chromadb.config import Settings

from memstate_core import ConflictError, Fact, MemoryStore, NotFoundError
from memstate_core.hooks.chroma import ChromaSyncHook
from tests.faults import inspection
from tests.faults.indexes import FileIndex
from tests.faults.model import SINGLETON, Model, register
from tests.faults.places import PATIENCE, Place
from tests.forking import Log


@dataclass(frozen=True)
class Shared:
    """A place that several processes use, and perhaps an index: ``"file"``, or a collection on a Chroma server, as
    ``(host, port, name)``.
    """

    directory: str | Path
    index: Any = None

    @property
    def place(self) -> Place:
        return Place.of(self.directory)

    @property
    def database(self) -> Path:
        """The file that the place is."""
        return Path(self.place.where)

    def client(self) -> Any:
        return chromadb.HttpClient(self.index[0], self.index[1], settings=Settings(anonymized_telemetry=False))

    def hooks(self) -> list[Any]:
        if self.index is None:
            return []
        if self.index == "file":
            return [FileIndex(Path(self.directory) / "index.db")]
        return [ChromaSyncHook(self.client(), self.index[2], inspection.EMBEDDER, text_field="text")]

    def open(self) -> MemoryStore:
        store = MemoryStore(self.place.storage(), self.hooks(), claim_timeout=PATIENCE)
        register(store)
        return store

    def check(self) -> Model:
        """Nobody holds anything, the journal is whole, and the index has what the facts say."""
        assert self.place.claims() == []
        state = self.place.read_state()
        if self.index == "file":
            (index,) = self.hooks()
            assert index.content() == {id_: (image.version, image.payload) for id_, image in state.facts.items()}
        elif self.index is not None:
            assert not any(self.open().verify())
            inspection.check_index(self.client(), self.index[2], state.facts)
        return state

    def wait_for_the_others(self, number: int) -> None:
        (Path(self.directory) / f"ready-{number}").touch()
        while not (Path(self.directory) / "go").exists():
            time.sleep(0.001)


def commit_the_slot(directory: str, number: int, times: int, index: Any) -> None:
    shared = Shared(directory, index)
    store = shared.open()
    shared.wait_for_the_others(number)
    for turn in range(times):
        commit_slot(store, number, turn)


def commit_slot(store: MemoryStore, number: int, turn: int) -> None:
    store.commit(Fact(SINGLETON, {"name": "only", "text": f"{number} {turn}"}), session_id=f"session {number}")


def compare_and_set(directory: str, number: int, times: int, index: Any) -> None:
    shared = Shared(directory, index)
    store = shared.open()
    shared.wait_for_the_others(number)
    Log(Path(directory) / "conflicts").write(sum(count_up(store) for _ in range(times)))


def count_up(store: MemoryStore) -> int:
    """Read, add one, and write if nobody has written since, until that succeeds; returns how often it did not."""
    conflicts = 0
    while True:
        fact = store.get("counter")
        assert fact is not None
        try:
            store.update("counter", {"number": fact["payload"]["number"] + 1}, expected_version=fact["version"])
            return conflicts
        except ConflictError as error:
            assert error.expected_version == fact["version"] != error.actual_version
            conflicts += 1


def patch_a_field(directory: str, number: int, times: int, index: Any) -> None:
    shared = Shared(directory, index)
    store = shared.open()
    shared.wait_for_the_others(number)
    for turn in range(1, times + 1):
        store.update("fields", {"abcd"[number]: turn})


def mix(directory: str, number: int, times: int, index: Any) -> None:
    shared = Shared(directory, index)
    store = shared.open()
    shared.wait_for_the_others(number)
    for turn in range(times):
        change_in_every_way(store, number, turn)


def change_in_every_way(store: MemoryStore, number: int, turn: int) -> None:
    """Change the same few facts as everybody else; where others were faster, that is refused."""
    session, text = f"session {number}", f"{number} {turn}"
    here, next_ = f"note {turn % 3}", f"note {(turn + 1) % 3}"
    calls: list[Callable[[], Any]] = [
        lambda: store.commit(Fact("note", {"text": text}, id=here), session_id=session),
        lambda: store.update(next_, {"text": f"{text} updated"}),
        lambda: _two_slots(store, session, text),
        lambda: store.rollback(session, 1 + turn % 3, on_conflict="keep"),
        lambda: store.redo(session, on_conflict="keep"),
    ]
    if turn % 4 == number % 4:
        calls += [
            lambda: store.delete(here),
            lambda: store.promote_session(session),
            lambda: store.discard_session(session),
        ]
    for call in calls:
        with contextlib.suppress(ConflictError, NotFoundError):
            call()


def _two_slots(store: MemoryStore, session: str, text: str) -> None:
    with store.transaction(session_id=session) as tx:
        for name in ("left", "right"):
            tx.commit(Fact(SINGLETON, {"name": name, "text": text}))


def check_history(store: MemoryStore) -> None:
    """The journal replayed from its start gives the facts."""
    facts: dict[str, Any] = {}
    for transaction in reversed(store.history(limit=None)):
        for change in transaction.changes:
            assert facts.get(change.fact_id) == change.before
            facts[change.fact_id] = change.after
    assert {id_: fact.version for id_, fact in facts.items() if fact} == {f["id"]: f["version"] for f in store.query()}
