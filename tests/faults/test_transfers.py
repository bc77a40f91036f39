"""Eight processes move amounts between facts: however one looks, and whoever does, the sum is always the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.faults.places import KINDS, MakePlace
from tests.faults.races import Shared
from tests.faults.transfers import ACCOUNTS, SUM, check_sum, open_accounts
from tests.forking import ForkServer, read_log, wait_until

WRITERS = 8
READERS = 2


@pytest.mark.parametrize(("kind", "index"), [*itertools.product(KINDS, [None, "file"])])
def test_the_sum_never_changes(
    processes: ForkServer, make_place: MakePlace, tmp_path: Path, kind: str, index: str | None
) -> None:
    make_place(kind)
    shared = Shared(tmp_path, index)
    store = shared.open()
    open_accounts(store)
    times = 30 if index is None else 10
    writers = [processes.start("transfers:transfer", tmp_path, n, times, index) for n in range(WRITERS)]
    readers = [processes.start("transfers:add_up", tmp_path, WRITERS + n, index) for n in range(READERS)]
    ready = [tmp_path / f"ready-{number}" for number in range(WRITERS + READERS)]
    wait_until(lambda: all(path.exists() for path in ready) or any(w.errors for w in writers), "the start of all")
    (tmp_path / "go").touch()
    for writer in writers:
        writer.finish()
    (tmp_path / "enough").touch()
    for reader in readers:
        reader.finish()
    check_sum(store.query())
    state = shared.check()
    assert sum(state.facts[account].payload["number"] for account in ACCOUNTS) == SUM
    done = [entry for entry in state.entries.values() if entry.operation == "TRANSACTION"]
    assert len(done) == 1 + WRITERS * times
    assert sum(read_log(tmp_path / "refused")), "they never met"
    assert all(sums > 3 for sums in read_log(tmp_path / "sums")), "nobody looked"
