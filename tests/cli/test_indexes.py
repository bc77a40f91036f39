"""``memstate verify``, ``repair``, ``reindex`` and ``recover``: what they do, print, and exit with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memstate_core import Fact, MemoryStore
from memstate_core._bridge import run
from memstate_core.protocols import Batch, Claim
from tests.cli import apps
from tests.cli.saying import Said

ROOT = Path(__file__).parents[2]
SYNC, ASYNC = "tests.cli.apps:store", "tests.cli.apps:async_store"


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMORY", str(tmp_path))
    monkeypatch.chdir(ROOT)
    return tmp_path


@pytest.fixture
def store() -> MemoryStore:
    """A store with a few facts, in both indexes."""
    store = apps.store()
    for number in range(15):
        store.commit(Fact("note", {"text": f"{number}"}, id=f"n{number}"))
    return store


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *arguments: Said(capsys, *arguments)


def damage() -> None:
    index = apps.index()
    for number in range(12):
        index._execute("DELETE FROM entries WHERE id = ?", f"n{number}")
    index._execute("UPDATE entries SET version = 7 WHERE id = 'n13'")
    apps.index("second").distort("unused", (1, {}))
    apps.index("second")._execute("INSERT INTO entries VALUES ('ghost', 1, '{}')")


CLEAN = "index: no drift (15 facts and 15 entries compared)\nsecond: no drift (15 facts and 15 entries compared)\n"
DRIFT = """\
index: 12 missing, 1 stale (15 facts and 3 entries compared)
  missing: 'n0', 'n1', 'n2', 'n3', 'n4', 'n5', 'n6', 'n7', 'n8', 'n9' … 2 more
  stale: 'n13'
second: 1 orphaned (15 facts and 16 entries compared)
  orphaned: 'ghost'
"""


@pytest.mark.parametrize("name", [SYNC, ASYNC])
class TestMending:
    def test_drift_is_found_and_mended(self, store: MemoryStore, command: Any, name: str) -> None:
        clean = command("verify", name)
        assert (clean.code, clean.out, clean.err) == (0, CLEAN, "")
        damage()
        for _ in range(2):
            found = command("verify", name)
            assert (found.code, found.out, found.err) == (1, DRIFT, "")
        mended = command("repair", name)
        assert (mended.code, mended.out) == (0, f"mended:\n{DRIFT}")
        assert command("verify", name).out == CLEAN
        assert command("repair", name).out == CLEAN

    def test_for_programs(self, store: MemoryStore, command: Any, name: str) -> None:
        damage()
        missing = [f"n{number}" for number in range(12)]
        expected = [
            {"hook": "index", "facts": 15, "entries": 3, "missing": missing, "stale": ["n13"], "orphaned": []},
            {"hook": "second", "facts": 15, "entries": 16, "missing": [], "stale": [], "orphaned": ["ghost"]},
        ]
        for one, code in (("verify", 1), ("repair", 0)):
            said = command(one, name, "--json")
            assert json.loads(said.out) == {"command": one, "drift": 14, "hooks": expected, "unlisted": []}
            assert said.code == code
        assert json.loads(command("verify", name, "--json").out)["drift"] == 0
        damage()
        reindexed = command("reindex", name, "--json")
        assert json.loads(reindexed.out) == {"command": "reindex", "hooks": ["index", "second"], "facts": 15}
        assert json.loads(command("recover", name, "--json").out) == {
            "command": "recover",
            "healed": [],
            "in_doubt": [],
            "missing_hooks": [],
        }
        assert not any(store.verify())

    def test_for_cron(self, store: MemoryStore, command: Any, name: str) -> None:
        """Nothing is said when there is nothing to tell."""
        for one in ("verify", "repair", "reindex", "recover"):
            said = command(one, name, "--quiet")
            assert (said.code, said.out, said.err) == (0, "", "")
        damage()
        assert command("verify", name, "--quiet").out == DRIFT
        assert command("repair", name, "--quiet").out == f"mended:\n{DRIFT}"

    def test_one_hook_is_reindexed(self, store: MemoryStore, command: Any, name: str) -> None:
        damage()
        said = command("reindex", name, "--hook", "second")
        assert (said.code, said.out) == (0, "reindexed second: the store has 15 facts\n")
        assert [len(drift) for drift in store.verify()] == [13, 0]
        unknown = command("reindex", name, "--hook", "third")
        assert (unknown.code, unknown.out) == (2, "")
        assert unknown.err == f"memstate reindex: {name} has no hook 'third'; it has 'index', 'second'\n"

    def test_what_is_in_doubt_is_healed(self, store: MemoryStore, command: Any, name: str) -> None:
        doubt = [Claim("fact:n1", "gone", 0.0, ("index",)), Claim("fact:n2", "gone", 0.0, ("index", "third"))]
        run(store.storage.write("default", lambda tx: tx.write(Batch(claims=doubt))))
        apps.index()._execute("DELETE FROM entries WHERE id = 'n1'")
        said = command("recover", name)
        # Opening the store has healed what it could, by the time that it is asked to.
        assert said.code == 1
        assert said.out in (
            f"healed {healed}, still in doubt 1\n  for want of the hooks 'third': 'n2'\n" for healed in (0, 1)
        )
        assert not any(store.verify())
        run(store.storage.write("default", lambda tx: tx.write(Batch(drop_claims_of="gone"))))
        assert command("recover", name).out == "healed 0, still in doubt 0\n"


def test_an_index_is_rebuilt_beside_the_one_in_use(command: Any) -> None:
    apps.rebuilt_store().commit(Fact("note", {}, id="n"))
    before = apps.rebuilt_index()._open()
    said = command("reindex", "tests.cli.apps:rebuilt_store", "--into", "tests.cli.apps:rebuilt_index")
    assert (said.code, said.out, said.err) == (0, "reindexed index: the store has 1 fact\n", "")
    assert apps.rebuilt_index()._open() != before
    assert apps.rebuilt_index().scan() == {"n": 1}


class TestMisuse:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ((SYNC,), "--into is for one hook; say which with --hook: 'index', 'second'"),
            ((SYNC, "--hook", "second"), "tests.cli.apps:rebuilt_index: into= is the hook 'index', which has another"),
        ],
    )
    def test_what_cannot_be_rebuilt(
        self, store: MemoryStore, command: Any, arguments: tuple[str, ...], complaint: str
    ) -> None:
        said = command("reindex", *arguments, "--into", "tests.cli.apps:rebuilt_index")
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith(f"memstate reindex: {complaint}")

    @pytest.mark.parametrize("one", ["verify", "repair", "reindex", "recover"])
    def test_a_store_without_hooks(self, command: Any, one: str) -> None:
        said = command(one, "tests.cli.apps:bare_store")
        assert (said.code, said.out) == (2, "")
        assert said.err == (
            f"memstate {one}: tests.cli.apps:bare_store has no hooks, so there is no index; "
            "make the store with hooks=[…], or name its hooks in memstate.toml\n"
        )

    @pytest.mark.parametrize(
        ("name", "complaint"),
        [
            ("tests.cli.apps", "'tests.cli.apps' names no store; write MODULE:NAME, such as myapp.memory:store"),
            ("tests.cli.apps:nothing", "'tests.cli.apps' has no 'nothing'"),
            ("tests.cli.apps:ROOT", "'tests.cli.apps' has no 'ROOT'"),
        ],
    )
    def test_a_store_that_is_not_there(self, command: Any, name: str, complaint: str) -> None:
        said = command("verify", name)
        assert (said.code, said.out, said.err) == (2, "", f"memstate verify: {complaint}\n")

    def test_an_unknown_option(self, command: Any) -> None:
        said = command("verify", SYNC, "--fix")
        assert (said.code, said.out) == (2, "")
        assert re.fullmatch(r"memstate verify: No such option:? '?--fix.*\n", said.err)

    @pytest.mark.parametrize(
        ("missing", "extra"), [("typer", "memstate"), ("rich", "memstate verify")], ids=["typer", "rich"]
    )
    def test_a_missing_extra_is_one_line(self, missing: str, extra: str) -> None:
        code = f"import sys; sys.modules[{missing!r}] = None; from memstate_core.cli.main import main; "
        ended = subprocess.run(
            [sys.executable, "-c", f"{code}sys.exit(main(['verify', {SYNC!r}]))"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == (
            f'{extra}: {missing} is not installed; the command needs it: pip install "memstate[cli]"\n'
        )


class TestFailures:
    def test_a_hook_that_fails(self, store: MemoryStore, command: Any) -> None:
        damage()
        for one in ("repair", "reindex"):
            said = command(one, "tests.cli.apps:failing_store")
            assert (said.code, said.out) == (1, "")
            assert said.err.startswith(
                f"memstate {one}: HookError: hook 'index' could not be given the committed state"
            )
            assert said.err.count("\n") == 1
            run(store.storage.write("default", _drop_all))

    def test_what_fails_once_more_stays_in_doubt(self, store: MemoryStore, command: Any) -> None:
        doubt = Claim("fact:n1", "gone", 0.0, ("index",))
        run(store.storage.write("default", lambda tx: tx.write(Batch(claims=[doubt]))))
        said = command("recover", "tests.cli.apps:failing_store")
        assert (said.code, said.out) == (1, "")
        assert said.err.count("HookError: hook 'index'") == 1

    def test_what_cannot_be_listed_is_said(self, command: Any) -> None:
        apps.unlisted_store().commit(Fact("note", {}, id="n"))
        said = command("verify", "tests.cli.apps:unlisted_store")
        assert said.code == 0
        assert re.fullmatch(r"unlisted_store\S*mirror: cannot be listed, so not compared\n", said.out)


def test_the_indexes_of_a_tenant(command: Any, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(memory)
    Path("memstate.toml").write_text(
        'store = "sqlite:///memory.db"\nhooks = ["tests.cli.apps:index"]\n', encoding="utf-8"
    )
    assert command("init", "sqlite:///memory.db").code == 0
    MemoryStore(apps.bare_store().storage, namespace="tenant", allow_unregistered=True).commit(Fact("note", {}, id="n"))
    assert command("verify", "--namespace", "tenant").out.startswith("index: 1 missing")
    assert command("reindex", "--namespace", "tenant").out == "reindexed index: the store has 1 fact\n"
    assert command("repair", "--namespace", "tenant").out == "index: no drift (1 fact and 1 entry compared)\n"
    assert command("recover", "--namespace", "tenant").out == "healed 0, still in doubt 0\n"
    assert command("verify").out.startswith("index: 1 orphaned")
    assert command("recover").code == 0
    assert command("worker", "--once", "--namespace", "tenant").err.count("has no deferred hook") == 1


async def _drop_all(tx: Any) -> None:
    for owner in {claim.owner for claim in await tx.claims()}:
        await tx.write(Batch(drop_claims_of=owner))


def test_on_a_terminal_there_are_bars_and_they_are_not_output(store: MemoryStore) -> None:
    damage()
    ours, theirs = os.openpty()
    try:
        with subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from memstate_core.cli.main import main; sys.exit(main())",
                "verify",
                SYNC,
            ],
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        ) as process:
            assert process.stdout is not None
            out = process.stdout.read()
            assert process.wait(60) == 1
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert out == DRIFT
    assert re.search(r"index.*━.*18/18", shown)
    assert re.search(r"second.*━.*31/31", shown)
