"""The published ``memstate`` 0.5.1, which has our own package's name and so needs a process of its own.

``pip install --target DIR memstate==0.5.1 aiosqlite`` makes what ``--peer DIR`` wants. There it is timed in turn with
the same floors; the two ratios to the floor compare it with us.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from benchmarks.measure import Effort, Row, Timing, in_turn, settle
from benchmarks.storages import kinds
from benchmarks.workload import INDEXED, OPERATIONS, SINGLETON, Loaded, Note, Preference, Setting, load

SECTION: Final = "Peer"
# It looks through all facts for a singleton or a query, so little time must do.
_SECONDS: Final = 5.0


class PeerSubject:
    """The peer's store, as the workload sees it. It has no declared indexes; a query filters what it reads."""

    def __init__(self, storage_name: str, directory: Path) -> None:
        # Whatever is called memstate in this process.
        from memstate import InMemoryStorage, MemoryStore, SQLiteStorage

        storage: Any = InMemoryStorage() if storage_name == "memory" else SQLiteStorage(str(directory / "peer.db"))
        self.store: Any = MemoryStore(storage)
        for typename, model in (("note", Note), ("preference", Preference), ("setting", Setting)):
            self.store.register_schema(typename, model)
        self.get: Any = self.store.get

    def constrain(self) -> None:
        """Declare the singleton, which loading under it would take hours for."""
        from memstate import Constraint

        self.store.register_schema("setting", Setting, Constraint(singleton_key=SINGLETON))

    def commit(self, model: BaseModel, session_id: str) -> str:
        committed: str = self.store.commit_model(model, session_id=session_id)
        return committed

    def query(self, topic: str) -> Sequence[Any]:
        found: Sequence[Any] = self.store.query("preference", {f"payload.{INDEXED}": topic})
        return found

    def rollback(self, session_id: str, steps: int) -> Sequence[Any]:
        self.store.rollback(session_id, steps)
        return ()

    def promote(self, session_id: str) -> Sequence[str]:
        promoted: Sequence[str] = self.store.promote_session(session_id)
        return promoted

    def close(self) -> None:
        self.store.storage.close()


def rows(bench: Any, directory: Path, known: Sequence[Row]) -> Iterator[Row]:
    """Our ratio to the floor over the peer's, where ours was measured in this run."""
    ours = {(row.storage, row.operation): row for row in known if row.section == "Facts"}
    for kind in bench.kinds:
        if kind.name not in ("memory", "sqlite"):
            continue
        print(f"… the peer: {kind.name}", file=sys.stderr, flush=True)
        for name, timing in _measured_there(directory, kind.name, bench.sizes.facts, bench.effort.rounds).items():
            row = ours.get((kind.name, name))
            if row is not None:
                value = row.value / timing.ratio
                spread = value * (row.tolerance / row.value + timing.tolerance / timing.ratio)
                target = 1.0 if name == "commit, new" else None
                yield Row(SECTION, name, kind.name, timing.second, row.measured, value, spread, target=target)


def _measured_there(directory: Path, storage_name: str, size: int, rounds: int) -> dict[str, Timing]:
    root = Path(__file__).resolve().parent.parent
    finished = subprocess.run(
        # -P keeps the current directory, and with it our own memstate, behind the peer's.
        [sys.executable, "-P", "-m", "benchmarks.peer", storage_name, str(size), str(rounds)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (directory.resolve(), root)))},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return {name: Timing(**timing) for name, timing in json.loads(finished.stdout).items()}


def main(storage_name: str, size: str, rounds: str) -> None:
    """Time the peer in turn with the floor; writes ``{operation: timing}`` as JSON."""
    kind = next(kind for kind in kinds() if kind.name == storage_name)
    timings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="memstate-peer-", ignore_cleanup_errors=True) as name:
        subject = PeerSubject(storage_name, Path(name))
        floor = kind.floor(Path(name))
        loaded: list[Loaded] = [load(floor, int(size)), load(subject, int(size))]
        subject.constrain()
        settle()
        for operation in OPERATIONS:
            one, other = map(operation.side, loaded)
            calls = 1 if operation.name in ("commit, singleton", "query on a declared index") else operation.calls
            timing = in_turn(one, other, calls=calls, effort=Effort(int(rounds), _SECONDS))
            timings[operation.name] = asdict(timing)
        floor.close()
        subject.close()
    json.dump(timings, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
