"""The benchmarks run, and say by how much; how much it is says nothing on a busy machine, so no figure is looked at."""

from __future__ import annotations

import importlib.util
import json
import math
import sqlite3

import pytest

from benchmarks import __main__ as command
from benchmarks import checkpoint_floors, checkpoints
from benchmarks.bench import Sizes
from benchmarks.measure import Effort, Row, Side, Timing, compared, in_turn, tolerance_of
from benchmarks.report import table
from benchmarks.storages import kinds
from benchmarks.storages.memory import MemoryFloor
from benchmarks.subjects import MemStateSubject
from benchmarks.workload import OPERATIONS, Note, Preference, Setting, Subject, load
from memstate_core import ConflictError, InMemoryStorage, MemoryStore, ValidationFailed
from memstate_langgraph import MemStateCheckpointer

# One process starts the servers, which write as carefully as in production.
pytestmark = pytest.mark.xdist_group("benchmarks")

TINY = Sizes(facts=40, few_facts=20, journal=40, short_journal=20, indexed=20, writing_seconds=0.01)
STORAGES = [kind.name for kind in kinds()]


@pytest.fixture(params=kinds(), ids=STORAGES)
def kind(request):
    return request.param


@pytest.fixture(params=["floor", "memstate"])
def subject(request, kind, tmp_path):
    opened = kind.floor(tmp_path) if request.param == "floor" else MemStateSubject(kind.storage(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(command, "QUICK", TINY)
    monkeypatch.setattr(checkpoints, "_LONG", 30)


@pytest.mark.parametrize("section", list(command.SECTIONS))
def test_every_section_gives_a_ratio_for_every_storage(section, tiny, tmp_path, capsys):
    if section == "hooks" and importlib.util.find_spec("chromadb") is None:
        pytest.skip("needs Chroma")
    written = tmp_path / "figures.json"
    code = command.main(["--quick", "--only", section, "--rounds", "2", "--json", str(written), "--dir", str(tmp_path)])
    assert code == 0
    rows = json.loads(written.read_text())["rows"]
    assert {row["storage"] for row in rows} == set(STORAGES)
    assert all(row["value"] > 0 for row in rows if row["value_unit"] == "×")
    printed = capsys.readouterr().out
    assert all(row["operation"] in printed for row in rows)
    if section == "facts":
        measured = {(row["storage"], row["operation"]) for row in rows}
        assert measured >= {(name, operation.name) for name in STORAGES for operation in OPERATIONS}


def test_floors_and_memstate_do_the_same(subject: Subject):
    """What a floor leaves out would make it no floor: each must end where memstate ends."""
    loaded = load(subject, 40)
    first = subject.get(loaded.ids[0])
    assert first["payload"]["role"] == "user"
    assert (first["type"], first["session_id"], first["version"]) == ("note", "session-0", 1)
    assert [found["payload"]["topic"] for found in subject.query("topic-0")] == ["topic-0"] * 8

    replaced = subject.commit(Setting(name="name-0", value="another"), "replacing")
    assert replaced == loaded.ids[9]
    after = subject.get(replaced)
    assert (after["payload"]["value"], after["session_id"], after["version"]) == ("another", "replacing", 2)

    new = [subject.commit(Note(text=str(number)), "undone") for number in range(4)]
    assert len(subject.rollback("undone", 1)) == 1
    assert subject.get(new[3]) is None
    assert subject.get(new[2]) is not None
    assert len(subject.rollback("undone", 3)) == 3
    assert [subject.get(id_) for id_ in new] == [None] * 4

    kept = [subject.commit(Preference(topic="kept", text="x", confidence=0.1 + 0.2), "promoted") for _ in range(3)]
    assert list(subject.promote("promoted")) == kept
    assert [found["id"] for found in subject.query("kept")] == kept
    assert {(found["session_id"], found["version"]) for found in subject.query("kept")} == {(None, 2)}
    assert {found["payload"]["confidence"] for found in subject.query("kept")} == {0.1 + 0.2}


def test_a_floor_of_checkpoints_gives_what_was_put(kind, tmp_path):
    least = checkpoint_floors.floor(kind, tmp_path)
    mine = MemStateCheckpointer(MemoryStore(InMemoryStorage()))
    try:
        for saver in (least, mine):
            thread = checkpoints._Thread(saver, 5)
            for _ in range(3):
                thread.put(thread.grown())
            saver.put_writes(thread.config, [("messages", ["w"]), ("other", 1)], "task", "path")
            saver.put_writes(thread.config, [("messages", ["again"])], "task", "path")
            latest = checkpoints._latest(thread)
            found = saver.get_tuple(latest)
            assert found.checkpoint["channel_values"] == {"messages": thread.messages, "step": 3}
            assert found.config["configurable"]["checkpoint_id"] == thread.config["configurable"]["checkpoint_id"]
            assert found.metadata["step"] == 3
            assert found.pending_writes == [("task", "messages", ["w"]), ("task", "other", 1)]
            listed = list(saver.list(latest, limit=3))
            assert [len(one.checkpoint["channel_values"]["messages"]) for one in listed] == [9, 8, 7]
            assert [one.parent_config for one in listed[:2]] == [one.config for one in listed[1:]]
    finally:
        least.rows.close()


@pytest.mark.parametrize("confidence", ["high", math.nan, math.inf])
def test_floors_and_memstate_refuse_an_instance_that_is_not_valid_any_more(subject: Subject, confidence):
    note = Note(text="x")
    note.confidence = confidence
    with pytest.raises((ValueError, ValidationFailed)):
        subject.commit(note, "session")
    valid = Note(text="x")
    valid.confidence = "0.5"
    assert subject.get(subject.commit(valid, "session"))["payload"]["confidence"] == 0.5


@pytest.mark.parametrize("session_id", ["", "x" * 513, "a\0b", "\ud800"])
def test_floors_and_memstate_refuse_what_cannot_be_an_identifier(subject: Subject, session_id):
    with pytest.raises((ValueError, ValidationFailed)):
        subject.commit(Note(text="x"), session_id)


@pytest.mark.parametrize("open_", [MemoryFloor, lambda: MemStateSubject(InMemoryStorage())], ids=["floor", "memstate"])
def test_the_memory_floor_and_memstate_undo_the_same(open_):
    subject = open_()
    topics = [subject.commit(Preference(topic="undone", text=text), "topics") for text in "ab"]
    subject.rollback("topics", 1)
    assert [found["id"] for found in subject.query("undone")] == topics[:1]

    setting = subject.commit(Setting(name="a", value="first"), "one")
    assert subject.commit(Setting(name="a", value="second"), "two") == setting
    with pytest.raises((RuntimeError, ConflictError)):
        subject.rollback("one", 1)
    subject.rollback("two", 1)
    fact = subject.get(setting)
    assert (fact["payload"]["value"], fact["session_id"], fact["version"]) == ("first", "one", 1)
    assert subject.commit(Setting(name="a", value="third"), "two") == setting
    assert subject.get(setting)["version"] == 3, "a version number is given out once"
    subject.rollback("two", 1)
    subject.rollback("one", 1)
    assert subject.commit(Setting(name="a", value="fourth"), "one") != setting


def test_the_sqlite_floor_is_as_durable_and_has_as_large_a_cache(tmp_path, monkeypatch):
    opened: dict[str, list[sqlite3.Connection]] = {"floor": [], "memstate": []}
    connect = sqlite3.connect
    kind = next(kind for kind in kinds() if kind.name == "sqlite")
    settings = {}
    for side, open_ in (("floor", kind.floor), ("memstate", lambda path: MemStateSubject(kind.storage(path)))):
        monkeypatch.setattr(
            sqlite3, "connect", lambda *a, side=side, **k: opened[side].append(connect(*a, **k)) or opened[side][-1]
        )
        subject = open_(tmp_path)
        subject.get(subject.commit(Note(text="x"), "session"))
        names = ("journal_mode", "synchronous", "cache_size", "mmap_size", "wal_autocheckpoint", "page_size")
        settings[side] = {
            tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names) for connection in opened[side]
        }
        subject.close()
    assert settings["floor"] == settings["memstate"]
    assert len(settings["floor"]) == 1


def test_a_ratio_is_that_of_the_two_sides():
    slept = []

    def side(name: str, cost: int) -> Side:
        return Side(range, lambda _: slept.append(name) or ticks.__setitem__(0, ticks[0] + cost))

    ticks = [0]
    timing = in_turn(side("one", 1000), side("other", 3000), calls=2, effort=Effort(4, 60, lambda: ticks[0]))
    assert (timing.first, timing.second, timing.ratio, timing.tolerance) == (1.0, 3.0, 3.0, 0.0)
    assert slept[:4] == ["other", "other", "one", "one"]
    assert slept[4:8] == ["one", "one", "other", "other"]


def test_a_target_is_missed_only_beyond_the_tolerance():
    def row(value: float, **options) -> Row:
        return Row("Facts", "get", "memory", 1.0, value, value, 0.1, **options)

    assert not row(9.0).missed
    assert row(2.2, target=2.0).missed
    assert not row(2.05, target=2.0).missed
    assert row(0.4, target=0.6, at_least=True).missed
    assert not row(0.55, target=0.6, at_least=True).missed


@pytest.mark.parametrize(("ratio", "code"), [(3.0, 1), (1.0, 0)])
def test_check_tells_by_the_exit_code(ratio, code, monkeypatch, capsys):
    found = compared("Facts", "get", "memory", Timing(1.0, ratio, ratio, 0.0), 2.0)
    monkeypatch.setattr(command, "SECTIONS", {"facts": lambda _: iter([found])})
    assert command.main(["--quick", "--check"]) == code
    assert command.main(["--quick"]) == 0
    assert f"{ratio:.2f}×" in capsys.readouterr().out


def test_a_table_has_a_line_for_every_row():
    rows = [Row("Facts", name, "memory", 1.0, 2.0, 2.0, target=2.5) for name in ("one", "two")]
    lines = table([*rows, Row("Hooks", "three", "memory", 1.0, 2.0, 2.0)]).splitlines()
    assert [line.split()[0] for line in lines if line] == [
        "Facts",
        "operation",
        "one",
        "two",
        "Hooks",
        "operation",
        "three",
    ]


def test_values_that_scatter_have_a_wider_tolerance():
    assert tolerance_of([1.0] * 9) == 0.0
    assert tolerance_of([1.0]) == 0.0
    assert tolerance_of([1.0, 2.0, 3.0, 4.0]) > tolerance_of([1.0, 1.5, 2.0, 2.5]) > 0.0
    assert tolerance_of([1.0, 2.0, 3.0] * 10) < tolerance_of([1.0, 2.0, 3.0])


def test_a_peer_that_is_there_can_be_compared(tiny, tmp_path, capsys):
    """With a peer of one line, as the real one is no dependency."""
    package = tmp_path / "peer" / "memstate"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from memstate_core import *\n")
    arguments = ["--quick", "--only", "facts", "--storage", "memory", "--rounds", "2", "--peer", str(package.parent)]
    assert command.main(arguments) == 0
    assert "Peer" in capsys.readouterr().out
