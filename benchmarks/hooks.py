"""What the store adds to the time of an index: to Chroma's in memory, with facts in SQLite.

Vectors are as long as those of Chroma's default model, so that the index works as it would; but they come from a random
number generator, which costs next to nothing and so hides nothing.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from benchmarks.bench import Bench, say
from benchmarks.measure import Clock, Effort, Row, Side, compared, in_turn, summary, tolerance_of
from benchmarks.storages import StorageKind
from benchmarks.subjects import MemStateSubject
from benchmarks.workload import SESSION_SIZE, TEXT, Note, fresh

SECTION: Final = "Hooks"
_DIMENSIONS: Final = 384
_FOUND: Final = 5
# What the store may add on SQLite: 0.3 ms, on a machine where a bare commit takes 42 µs and a small upsert into Chroma
# 2.6 ms. The processor's caches are cold after Chroma, for a bare commit too, and all of this is slower on a slower
# machine: so what is added is given in bare commits, and as a part of Chroma's own time.
_IN_COMMITS: Final = 7.1
_BESIDE_CHROMA: Final = 1.115


def _embed(texts: Sequence[str]) -> list[Any]:
    """For every text always the same vector, of length 1 and without a meaning."""
    import numpy as np

    vectors = [
        np.random.default_rng(zlib.crc32(text.encode())).standard_normal(_DIMENSIONS, dtype=np.float32)
        for text in texts
    ]
    return [vector / np.linalg.norm(vector) for vector in vectors]


class _CountingCollection:
    """A collection that counts what it is asked."""

    def __init__(self, collection: Any, calls: dict[str, int]) -> None:
        self._collection = collection
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._collection, name)
        if name not in ("upsert", "delete"):
            return found

        def counted(**arguments: Any) -> Any:
            self._calls[name] = self._calls.get(name, 0) + 1
            return found(**arguments)

        return counted


class _CountingClient:
    """A client whose collections count what they are asked."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_or_create_collection(self, **arguments: Any) -> Any:
        return _CountingCollection(self._client.get_or_create_collection(**arguments), self.calls)


class _NoIndex:
    """A hook that keeps nothing."""

    name = "nothing"

    def apply(self, changes: Sequence[Any]) -> None:
        """Forget it."""


class _TimedHook:
    """A hook that keeps the time it takes."""

    def __init__(self, hook: Any, clock: Clock) -> None:
        self.name = hook.name
        self.clock = clock
        self.nanoseconds = 0
        for name in ("target_types", "search", "scan", "similarity", "indexes"):
            if hasattr(hook, name):
                setattr(self, name, getattr(hook, name))
        for name in ("prepare", "apply"):
            if hasattr(hook, name):
                setattr(self, name, self._timed(getattr(hook, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = self.clock()
            try:
                return function(*arguments)
            finally:
                self.nanoseconds += self.clock() - start

        return timed


def rows(bench: Bench) -> Iterator[Row]:
    try:
        import chromadb
        from chromadb.config import Settings
    except ImportError:
        say('the hooks are not measured: they need Chroma (pip install "memstate[chroma]")')
        return
    client = _CountingClient(chromadb.EphemeralClient(Settings(anonymized_telemetry=False)))
    for kind in bench.kinds:
        yield from _rows(bench, kind, client)


def _rows(bench: Bench, kind: StorageKind, client: _CountingClient) -> Iterator[Row]:
    from memstate_core.hooks.chroma import ChromaSyncHook

    name = f"bench-{fresh(kind.name)}"
    # Chroma works on in threads of its own; what the store adds is all in ours.
    clock = time.thread_time_ns if bench.effort.clock is time.process_time_ns else bench.effort.clock
    hook = _TimedHook(ChromaSyncHook(client, name, _embed, text_field="text"), clock)  # type: ignore[arg-type]
    subject = MemStateSubject(kind.storage(bench.directory()), [hook])
    bench.closing(subject.close)
    bench.closing(lambda: client.delete_collection(name))
    count = bench.sizes.indexed
    say(f"indexing {count:,} facts of {kind.name}")
    for start in range(0, count, 500):
        with subject.store.transaction(f"session-{start // 500}") as tx:
            for number in range(start, min(start + 500, count)):
                tx.commit_model(Note(text=_text(number)))
    yield from _commits(bench, kind, subject, hook, client)
    yield from _searches(bench, kind, subject, client.get_or_create_collection(name=name))


def _text(number: int) -> str:
    """A text that has its own place in the index."""
    words = random.Random(number)
    return " ".join("".join(words.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(6))


def _commits(
    bench: Bench, kind: StorageKind, subject: MemStateSubject, hook: _TimedHook, client: _CountingClient
) -> Iterator[Row]:
    texts = map(_text, itertools.count(bench.sizes.indexed))
    idle = _TimedHook(_NoIndex(), hook.clock)
    without = MemStateSubject(kind.storage(bench.directory()), [idle])
    bench.closing(without.close)
    floor = bench.floor(kind, bench.sizes.few_facts).subject
    session_id = fresh("bare")

    def bare(text: str) -> None:
        floor.commit(Note(text=text), session_id)

    in_commits, beside_chroma = (_IN_COMMITS, _BESIDE_CHROMA) if kind.name == "sqlite" else (None, None)
    rounds = bench.effort.rounds * 3
    for name, call, prepare in _operations(subject, texts):
        say(f"{kind.name}, Chroma: {name}")
        times = _times(hook, prepare, call, rounds, bare)
        timing = summary((own, whole) for own, whole, _ in times)
        yield compared(SECTION, f"{name}, beside Chroma", kind.name, timing, beside_chroma)
        timing = summary((commit, whole - own) for own, whole, commit in times)
        yield compared(SECTION, f"{name}: bare commit, added to Chroma", kind.name, timing, in_commits)
    for name, call, prepare in _operations(without, texts):
        say(f"{kind.name}, a hook that does nothing: {name}")
        timing = summary((commit, whole - own) for own, whole, commit in _times(idle, prepare, call, rounds, bare))
        yield compared(SECTION, f"{name}: bare commit, added to nothing", kind.name, timing, in_commits)
    name = f"{SESSION_SIZE} facts in one transaction"
    say(f"{kind.name}, Chroma: {name}")

    def commit_all(some: Sequence[str]) -> None:
        with subject.store.transaction(fresh("hundred")) as tx:
            for text in some:
                tx.commit_model(Note(text=text))

    client.calls.clear()
    commit_all(list(islice(texts, SESSION_SIZE)))
    upserts = client.calls.get("upsert", 0)
    yield Row(SECTION, f"{name}, upserts", kind.name, 1, upserts, upserts, target=1, unit="", value_unit="")
    own, whole, added = _added(
        hook, lambda: list(islice(texts, SESSION_SIZE)), commit_all, max(4, bench.effort.rounds // 4)
    )
    yield Row(SECTION, f"{name}, added to Chroma", kind.name, own, whole, *added, value_unit="µs")


def _operations(
    subject: MemStateSubject, texts: Iterator[str]
) -> Iterator[tuple[str, Callable[[str], object], Callable[[], str]]]:
    """``(name, call, prepare)``; what ``prepare`` returns is passed to the call."""
    session_id = fresh("hooked")
    updated = subject.commit(Note(text=TEXT), fresh("updated"))

    def commit(text: str) -> str:
        return subject.commit(Note(text=text), session_id)

    yield "commit, new", commit, lambda: next(texts)
    yield "update", lambda text: subject.store.update(updated, {"text": text}), lambda: next(texts)
    yield "rollback of 1", lambda _: subject.rollback(session_id, 1), lambda: commit(next(texts))


def _added(
    hook: _TimedHook, prepare: Callable[[], Any], call: Callable[[Any], object], rounds: int
) -> tuple[float, float, tuple[float, float]]:
    """The hook's own time and the whole, and what was added, with its tolerance: medians in µs."""
    times = _times(hook, prepare, call, rounds)
    added = [whole - own for own, whole, _ in times]
    own, whole, _ = (statistics.median(some) for some in zip(*times, strict=True))
    return own, whole, (statistics.median(added), tolerance_of(added))


def _times(
    hook: _TimedHook,
    prepare: Callable[[], Any],
    call: Callable[[Any], object],
    rounds: int,
    bare: Callable[[str], None] = lambda text: None,
) -> list[tuple[float, float, float]]:
    """Of every round, in µs: the hook's own time, the whole, and a bare commit just after it."""
    times: list[tuple[float, float, float]] = []
    for _ in range(rounds):
        argument = prepare()
        hook.nanoseconds = 0
        start = hook.clock()
        call(argument)
        whole = hook.clock() - start
        start = hook.clock()
        bare(TEXT)
        times.append((hook.nanoseconds / 1000, whole / 1000, (hook.clock() - start) / 1000))
    return times


def _searches(bench: Bench, kind: StorageKind, subject: MemStateSubject, collection: Any) -> Iterator[Row]:
    """Against a query of the same collection, with what Chroma returns if nothing is asked."""
    numbers = random.Random(6)

    def texts(calls: int) -> Sequence[str]:
        return [_text(numbers.randrange(10**6)) for _ in range(calls)]

    def index_alone(text: str) -> Any:
        return collection.query(query_embeddings=_embed([text]), n_results=_FOUND)

    def index_within(text: str) -> Any:
        return collection.query(
            query_embeddings=_embed([text]), n_results=_FOUND, where={"memstate_session_id": "session-0"}
        )

    store = subject.store
    effort = Effort(bench.effort.rounds, bench.effort.seconds)  # by the wall: Chroma has threads of its own
    for name, alone, search in (
        ("search", index_alone, lambda text: store.search(text, _FOUND)),
        ("search in a session", index_within, lambda text: store.search(text, _FOUND, session_id="session-0")),
    ):
        say(f"{kind.name}, Chroma: {name}")
        timing = in_turn(Side(texts, alone), Side(texts, search), calls=3, effort=effort)
        yield compared(SECTION, name, kind.name, timing, 1.2 if kind.name == "sqlite" else None)
