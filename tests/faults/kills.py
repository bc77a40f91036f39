"""What the processes of ``test_kills.py`` do before they are killed, and how each looks at what was left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromadb

# What Chroma imports when it makes a client, for half of the time that a short-lived process takes.
import chromadb.api.rust
import chromadb.telemetry.product.posthog
from chromadb.config import Settings

from memstate_core import AsyncMemoryStore, Change, ConflictError, MemoryStore
from tests.faults import inspection
from tests.faults.indexes import FileIndex
from tests.faults.model import SINGLETON, Image, Model, Refused, perform, register
from tests.faults.places import Place
from tests.faults.watching import At, Board, KillAt, WatchedChroma, WatchedStorage, watched_file_index
from tests.forking import Log, read_log

SESSIONS = ["a", "b", None]
IDS = [f"note-{number}" for number in range(6)]
WORDS = ["amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath"]
_SETTINGS = Settings(anonymized_telemetry=False)  # to make them anew takes half as long as to open a database


@dataclass
class Files:
    """What outlives the processes of one test: beside a file Chroma's, beside what is on a server a smaller index."""

    directory: Path

    @property
    def place(self) -> Place:
        return Place.of(self.directory)

    @property
    def log(self) -> Path:
        return self.directory / "log.jsonl"

    @property
    def board(self) -> Path:
        return self.directory / "board"

    def open(self, at: At, *more: Any) -> MemoryStore:
        """A store, with more hooks than the index perhaps."""
        self.hooks = [self._index(at), *more]
        storage = WatchedStorage(self.place.as_client(client_name(os.getpid())).storage(), at)
        store = MemoryStore(storage, self.hooks, claim_timeout=60)
        register(store)
        return store

    def _index(self, at: At) -> Any:
        if self.place.is_served:
            return watched_file_index(self.directory / "index.db", at)
        hook = WatchedChroma(self._chroma(), "memory", inspection.EMBEDDER, text_field="text")
        hook.at = at
        return hook

    def _chroma(self) -> Any:
        return chromadb.PersistentClient(self.directory / "chroma", _SETTINGS.model_copy())

    def check_index(self, facts: dict[str, Image]) -> None:
        """The index, looked at past the store, has what the facts say."""
        if self.place.is_served:
            content = FileIndex(self.directory / "index.db").content()
            assert content == {id_: (image.version, image.payload) for id_, image in facts.items()}
        else:
            inspection.check_index(self._chroma(), "memory", facts)

    async def use_asynchronously(self) -> None:
        """The first use of an asynchronous store on the same files and hooks."""
        async with self.place.async_storage() as storage:
            store = AsyncMemoryStore(storage, self.hooks, claim_timeout=60)
            register(store)
            await store.get("note-0")


def client_name(pid: int) -> str:
    return f"killed-{pid}"


def replay(log: Sequence[Any]) -> tuple[Model, Any]:
    """The model after all that is known to have happened, and the operation in flight, if any."""
    model = Model()
    pending = None
    for line in log:
        if "begin" in line:
            pending = line["begin"]
        else:
            assert pending is not None
            if line["end"] == "done":
                model = model.after(pending)
            pending = None
    return model, pending


def settle(files: Files, log: Log) -> Model:
    """Compare what is there with what had returned; what was in flight either happened or did not."""
    model, pending = replay(log.read())
    state = files.place.read_state()
    wrong = inspection.differences(state, model)
    if pending is None:
        assert not wrong, wrong
        return model
    with contextlib.suppress(Refused):
        after = model.after(pending)
        if not inspection.differences(state, after):
            log.write({"end": "done"})
            return after
    assert not wrong, f"{pending} in flight: {wrong}"
    log.write({"end": "undone"})
    return model


def check(store: MemoryStore, files: Files, model: Model) -> None:
    """No claim is left, and the index has what the facts say."""
    assert files.place.claims() == []
    assert not any(store.verify()), store.verify()
    files.check_index(model.facts)
    found = store.search(" ".join(WORDS), limit=len(model.facts) + 1)
    assert {result.fact.id: result.fact.version for result in found} == {
        id_: image.version for id_, image in model.facts.items()
    }


# Each heals what a predecessor left.
USES: dict[str, Callable[[MemoryStore, Files], Any]] = {
    "recover": lambda store, _: store.recover(),
    "get": lambda store, _: store.get("note-0"),
    "query": lambda store, _: store.query("note"),
    "search": lambda store, _: store.search("amber"),
    "history": lambda store, _: store.history(limit=1),
    "put a record": lambda store, _: store.put_record("uses", "first", b""),
    "asynchronous": lambda _, files: asyncio.run(files.use_asynchronously()),
}


def work_until_killed(directory: str, seed: int, use: str) -> None:
    """Check what the predecessor left, then carry on with random operations for ever."""
    files = Files(Path(directory))
    board = Board(files.board)
    board.at("starting")
    log = Log(files.log)
    store = files.open(board.at)
    board.at("recovering")
    USES[use](store, files)
    model = settle(files, log)
    check(store, files, model)
    for op in random_operations(random.Random(seed), model_of := [model]):
        board.at("between two calls")
        log.write({"begin": op})
        try:
            perform(store, op)
            end = "done"
        except ConflictError:
            end = "refused"
        log.write({"end": end})
        try:
            model_of[0] = model_of[0].after(op)
            expected = "done"
        except Refused:
            expected = "refused"
        assert end == expected, op


def check_only(directory: str, use: str) -> None:
    """Check what the last of them left."""
    files = Files(Path(directory))
    store = files.open(lambda point: None)
    USES[use](store, files)
    check(store, files, settle(files, Log(files.log)))


def random_operations(rng: random.Random, model_of: Sequence[Model]) -> Iterator[list[Any]]:
    """Operations that make sense in the model as it is then."""
    while True:
        model = model_of[0]
        name = rng.choice(["commit", "update", "delete", "block", "slot", "promote", "discard", "back", "back", "redo"])
        op = _operation(rng, model, name)
        if op is not None:
            yield op


def _operation(rng: random.Random, model: Model, name: str) -> list[Any] | None:
    session = rng.choice(SESSIONS)
    notes = [id_ for id_, image in model.facts.items() if image.type == "note"]
    if name == "commit":
        return _note(rng, rng.choice(IDS), session)
    if name == "slot":
        return ["commit", f"slot-{rng.getrandbits(32)}", SINGLETON, _slot(rng), None, False]
    if name == "block":
        ids = rng.sample(IDS, rng.randint(2, 5))
        return ["block", session, [_in_block(rng, model, id_, session) for id_ in ids]]
    if name in ("promote", "discard"):
        return [name, rng.choice(["a", "b"])]
    if name in ("update", "delete") and notes:
        fact_id = rng.choice(notes)
        return ["update", fact_id, {"text": _text(rng)}] if name == "update" else ["delete", fact_id, session]
    if name == "back" and rng.random() < 0.2 and model.head(session):
        entries = [entry.seq for entry in model.entries.values() if entry.session_id == session]
        return ["checkout", session, rng.choice([seq for seq in entries if model.entries[seq].head == seq])]
    if name == "back":
        return ["rollback", session, rng.randint(1, 3), rng.choice(["raise", "keep"])]
    if name == "redo" and model.can_tell_redo(session):
        return ["redo", session, rng.randint(1, 3), rng.choice(["raise", "keep"])]
    return None


def _in_block(rng: random.Random, model: Model, fact_id: str, session: str | None) -> list[Any]:
    known = fact_id in model.facts
    name = rng.choice(["commit", "update", "delete"]) if known else "commit"
    if name == "update":
        return ["update", fact_id, {"number": rng.randint(0, 99)}]
    return ["delete", fact_id, session] if name == "delete" else _note(rng, fact_id, session)


def _note(rng: random.Random, fact_id: str, session: str | None) -> list[Any]:
    own = session is not None and rng.random() < 0.2
    return ["commit", fact_id, "note", {"text": _text(rng), "number": rng.randint(0, 99)}, session, own]


def _slot(rng: random.Random) -> dict[str, Any]:
    return {"name": rng.choice(["left", "right"]), "text": _text(rng)}


def _text(rng: random.Random) -> str:
    return f"{' '.join(rng.choices(WORDS, k=3))} {rng.getrandbits(24):x}"


# Killed at every step


@dataclass(frozen=True)
class Case:
    """An operation to be killed in, and what comes before it."""

    before: list[list[Any]]
    op: list[Any]


def _notes(session: str | None, *ids: str, own: bool = False) -> list[list[Any]]:
    return [["commit", id_, "note", {"text": f"{session} {id_}", "number": 1}, session, own] for id_ in ids]


_CHANGES = [
    *_notes("a", "note-1", "note-5"),
    ["update", "note-2", {"text": "changed"}],
    ["delete", "note-3", "a"],
    ["commit", "slot-9", SINGLETON, {"name": "left", "text": "another one"}, "a", False],
]
_BEFORE = [
    *_notes("a", "note-1", "note-2", "note-3"),
    *_notes("a", "note-4", own=True),
    ["commit", "slot-1", SINGLETON, {"name": "left", "text": "one"}, None, False],
]
CASES = {
    "commit": Case([], _notes("a", "note-1")[0]),
    "commit a singleton": Case(_BEFORE, ["commit", "slot-2", SINGLETON, {"name": "left", "text": "two"}, "b", False]),
    "update": Case(_BEFORE, ["update", "note-2", {"text": "changed"}]),
    "delete": Case(_BEFORE, ["delete", "note-2", "a"]),
    "block": Case(_BEFORE, ["block", "a", _CHANGES]),
    "promote": Case(_BEFORE, ["promote", "a"]),
    "discard": Case(_BEFORE, ["discard", "a"]),
    "rollback": Case([*_BEFORE, ["block", "a", _CHANGES]], ["rollback", "a", 2, "raise"]),
    "redo": Case([*_BEFORE, ["block", "a", _CHANGES], ["rollback", "a", 2, "raise"]], ["redo", "a", 2, "raise"]),
    "checkout": Case([*_BEFORE, ["block", "a", _CHANGES]], ["checkout", "a", 2]),
}


class Broken:
    """A second index that fails; it wants only to be asked while a test is on."""

    name = "broken"

    def __init__(self, at: KillAt) -> None:
        self._at = at

    def apply(self, changes: Sequence[Change]) -> None:
        # The failure is injected into the commit; when it is undone, this index works again.
        if self._at.armed and self._at.passed.count("prepare: begins") == 1:
            raise ConnectionError("the second index is away")


def come_before(directory: str, case: str) -> None:
    """What comes before the operation of a case; a copy of what it leaves is the start of each killed process."""
    files = Files(Path(directory))
    log = Log(files.log)
    store = files.open(lambda point: None)
    for op in CASES[case].before:
        log.write({"begin": op})
        perform(store, op)
        log.write({"end": "done"})


def be_killed_in(directory: str, case: str, point: str | None, n: int, broken: bool) -> None:
    """Carry a case out, to be killed at the ``n``-th passing of a point; without one, log what is passed."""
    files = Files(Path(directory))
    log = Log(files.log)
    at = KillAt(point, n)
    store = files.open(at, *([Broken(at)] if broken else []))
    store.count()
    log.write({"begin": CASES[case].op})
    at.armed = True
    try:
        perform(store, CASES[case].op)
    except Exception as error:
        assert broken, error
    at.armed = False
    Log(files.directory / "points").write(at.passed)


def be_killed_in_recovery(directory: str, use: str, point: str | None, n: int) -> None:
    """Heal what another process left, to be killed meanwhile."""
    files = Files(Path(directory))
    at = KillAt(point, n)
    store = files.open(at)
    at.armed = True
    USES[use](store, files)
    at.armed = False
    Log(files.directory / "points").write(at.passed)


def check_left(killed: Sequence[tuple[str, str, str]]) -> None:
    """Look at what killed processes left, each in a directory of its own: see :func:`_check_left`."""
    for one in killed:
        try:
            _check_left(*one)
        except BaseException as error:
            error.add_note(f"directory, use, expected: {one}")
            raise


def _check_left(directory: str, use: str, expected: str) -> None:
    """Check that the operation in flight happened (``"done"``), or did not, and that nothing is left of it."""
    files = Files(Path(directory))
    log = Log(files.log)
    search_in_doubt(files)
    store = files.open(lambda point: None, Broken(KillAt()))
    USES[use](store, files)
    model = settle(files, log)
    assert log.read()[-1] == {"end": expected}
    check(store, files, model)
    # What was healed can be changed again.
    for op in (["discard", "a"], ["rollback", "a", 1, "raise"]):
        perform(store, op)
        model = model.after(op)
    assert not inspection.differences(files.place.read_state(), model)
    check(store, files, model)


def search_in_doubt(files: Files) -> None:
    """An index that lies and cannot be healed is not believed: search finds what is committed, and all of it."""

    def be_away(point: str) -> None:
        if point == "apply: begins":
            raise ConnectionError("the index cannot be written")

    store = files.open(be_away)
    claimed = files.place.claims()
    found = {result.fact.id: (result.fact.version, result.fact.payload) for result in store.search("note", limit=50)}
    facts = files.place.read_state().facts
    assert found == {id_: (image.version, image.payload) for id_, image in facts.items()}
    assert files.place.claims() == claimed


def points_of(directory: Path) -> list[tuple[str, int]]:
    """What was logged as passed, in this order: every point, with the number of its passing; of the reads, the first.

    No read leaves anything behind, so to be killed in one is the same as after the point before it.
    """
    (passed,) = read_log(directory / "points")
    points = [(point, passed[: place + 1].count(point)) for place, point in enumerate(passed)]
    return [(point, n) for point, n in points if point != "reading" or n == 1]
