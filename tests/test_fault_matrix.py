"""The fault matrix is measured, and it can fail: dual writes are seen to, and so is memstate when it is broken."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks.contenders import Candidate
from benchmarks.contenders.memstate import close_all, memstate_on
from benchmarks.contenders.naive import Naive
from benchmarks.fault_rows import Row, rows
from benchmarks.injection import NowAndThen, Steps, Unreachable
from benchmarks.trials import Counts, Trials
from memstate_core.commit import Committer
from memstate_core.recovery import Recovery

ROWS = {row.title: row for row in rows(100)}
# Dual writes survive these; they have nothing that the last two could break.
SURVIVED = {
    "no fault",
    "storage fails, at every call",
    "the index gets every message twice",
    "who tells a deferred hook dies, another tells it again",
    "recovery at every step of a live writer",
}


class Forgetful(Naive):
    """Never writes a new text."""

    def update(self, fact_id: str, text: str) -> None:
        pass


def attempted(row: Row, trials: Trials) -> list[Counts | None]:
    return [row.attempt(trials, act) for act in row.acts]


@pytest.fixture
def memory(tmp_path: Path):
    """Trials of memstate in memory, at every step."""
    yield Trials(memstate_on("memory", "memory"), tmp_path)
    close_all()


def test_memstate_survives_and_dual_writes_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "counts.json"
    chosen = ["--storage", "memory", "--storage", "sqlite"]
    assert faults.main(["--quick", *chosen, "--json", str(written), "--dir", str(tmp_path)]) == 0
    counts = defaultdict(list)
    for cell in json.loads(written.read_text())["cells"]:
        counts[cell["contender"], cell["row"]].append(Counts(**cell["counts"]) if cell["counts"] else None)
    for title, row in ROWS.items():
        for name in ("memory", "SQLite"):
            cells = counts[name, title]
            if (name, title) == ("memory", "killed by SIGKILL at every step"):
                assert set(cells) == {None}
            else:
                assert len(cells) == len(row.acts)
                assert all(cell.trials > 0 and cell.wrong == 0 for cell in cells), (name, title, cells)
        dual = [cell for cell in counts["dual writes", title] if cell is not None]
        assert any(cell.wrong for cell in dual) == (title not in SURVIVED), (title, dual)
    printed = capsys.readouterr().out
    assert all(title in printed for title in ROWS)


def test_a_contender_of_ones_own_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(faults, "rows", lambda many: list(rows(many))[:2])
    given = ["--contender", "benchmarks.contenders.naive:Naive", "--dir", str(tmp_path)]
    assert faults.main(["--quick", "--calls", *given]) == 1
    printed = capsys.readouterr().out
    assert "Naive" in printed
    assert "memory" not in printed
    assert any("anything: delete" in line and "| 1 drift, 1 lost, 1 phantom |" in line for line in printed.splitlines())


def test_a_published_memstate_that_is_not_there_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "rows", lambda many: list(rows(many))[:1])
    with pytest.raises(SystemExit, match="pip install --target"):
        faults.main(["--quick", "--storage", "memory", "--peer", str(tmp_path), "--dir", str(tmp_path)])


def test_a_contender_that_does_not_do_its_work_is_seen_without_a_fault(tmp_path: Path) -> None:
    trials = Trials(Candidate("forgetful", Forgetful), tmp_path)
    assert ROWS["no fault"].attempt(trials, "update").lost == 2
    assert not trials.is_right("update")


@pytest.mark.parametrize(
    "title",
    [
        "the index fails half-way through a batch",
        "the index did it, the reply is lost",
        "the second of two indexes fails",
        "storage fails, at every call",
        "cancelled at every await",
    ],
)
def test_memstate_that_undoes_nothing_is_seen(memory: Trials, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def let_go(self, plan, owner, started, error) -> None:
        await self._release(owner, error)

    monkeypatch.setattr(Committer, "_compensate", let_go)
    assert any(counts.drift for counts in attempted(ROWS[title], memory))


@pytest.mark.parametrize("title", ["the index stays away until recovery", "killed by SIGKILL at every step"])
def test_memstate_that_recovers_nothing_is_seen(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def bring_back(self, hook, fact_ids) -> None:
        pass

    monkeypatch.setattr(Recovery, "bring_back", bring_back)
    trials = Trials(memstate_on("sqlite", "SQLite", str(tmp_path / "memstate.db")), tmp_path)
    assert ROWS[title].attempt(trials, "batch").drift
    close_all()


def test_a_writer_that_does_not_see_that_it_was_recovered_is_seen(memory: Trials, monkeypatch: pytest.MonkeyPatch):
    """A recovery that spares no live writer alone is survived: the writer begins again."""

    decide = Committer._decide

    async def decide_without_check(self, plan) -> None:
        plan.batch.dropped = None
        await decide(self, plan)

    monkeypatch.setattr("memstate_core.recovery.is_abandoned", lambda claim: True)
    monkeypatch.setattr(Committer, "_decide", decide_without_check)
    row = ROWS["recovery at every step of a live writer"]
    assert any(counts.wrong for counts in attempted(row, memory))


def test_the_readme_has_every_row_of_the_matrix() -> None:
    readme = Path(faults.__file__).parent.parent / "README.md"
    table = [line.strip("|").split("|") for line in readme.read_text().splitlines() if line.startswith("|")]
    ours = {first.strip(): [cell.strip() for cell in cells[-4:]] for first, *cells in table if len(cells) == 6}
    for row in rows(1000):
        assert set(ours[row.title]) <= {"0", "n/a"}


def test_a_share_of_the_messages_fails() -> None:
    steps, failed = Steps(), 0
    with steps.watched(NowAndThen("first", 0.1)):
        for _ in range(1000):
            try:
                steps("first: before")
                steps("first: wrote")
            except Unreachable:
                failed += 1
    assert 70 < failed < 130
