"""What the command line shows of a store that a URL names, and how it goes back."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from memstate_core import Fact, MemoryStore
from tests.cli.saying import URL
from tests.faults.indexes import FileIndex


def test_log_draws_the_tree(store: MemoryStore, command: Any) -> None:
    said = command("log", URL)
    rows = [line[:10].rstrip() for line in said.out.splitlines()]
    assert rows == [
        "long-term",
        "  ●  tx-6",
        "  ●  tx-1",
        "",
        "session ch",
        "  ●    tx-",
        "  │ ↶  tx-",
        "  │ ○  tx-",
        "  ├─╯",
        "  ●    tx-",
    ]
    assert [line.split()[1] for line in said.out.splitlines() if "<- here" in line] == ["tx-6", "tx-5"]
    assert said.out.count("+profile ada  agent  said so\n") == 1
    assert "\x1b" not in said.out
    assert "\x9b" not in said.out
    assert len(command("log", URL, "--session", "chat").out.splitlines()) == 6
    assert len(command("log", URL, "--long-term").out.splitlines()) == 3
    assert "the newest 1 transaction;" in command("log", URL, "--limit", "1").out
    (chat,) = command("log", URL, "--session", "chat", "--json").data["sessions"]
    assert (chat["session_id"], chat["head"], chat["redo"]) == ("chat", "tx-5", None)
    assert [one["id"] for one in chat["transactions"]] == ["tx-5", "tx-4", "tx-3", "tx-2"]
    assert chat["transactions"][0]["changes"][0]["after"]["payload"] == {"text": "\x1b[31mred\x9b"}


def test_log_draws_lines_that_begin_anew(store: MemoryStore, command: Any) -> None:
    """Both from the beginning, and one that was left from the middle of another that was left."""
    store.checkout("chat", None)
    store.commit(Fact("note", {}, id="n4", session_id="chat"))
    store.commit(Fact("note", {}, id="n5", session_id="chat"))
    rows = [line.split("tx-")[0].rstrip() for line in command("log", URL, "--session", "chat").out.splitlines()]
    assert rows == [
        "session chat",
        "  ●",
        "  ●",
        "  ↷",
        "  ○",
        "  │ ↶",
        "  │ ○",
        "  ├─╯",
        "  ○",
    ]
    store.checkout("chat", "tx-3")
    rows = [line.split("tx-")[0].rstrip() for line in command("log", URL, "--session", "chat").out.splitlines()]
    assert rows == [
        "session chat",
        "    ↷",
        "    ○",
        "    ○",
        "    ↷",
        "    ○",
        "    │ ↶",
        "  ● │",
        "  ├─╯",
        "  ●",
    ]


def test_on_a_terminal_lists_are_cut_and_facts_are_whole(
    store: MemoryStore, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "\u732b" * 60
    store.commit(Fact("note", {"text": long}, id="long"), reason=long)
    piped = command("log", URL, "--limit", "1").out
    assert long in piped
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    shown = command("log", URL, "--limit", "1").out
    assert "\x1b[" in shown
    assert re.search("\u732b ?\u2026", shown)
    assert len(shown.splitlines()) == len(piped.splitlines())
    assert long in command("show", URL, "long").out


def test_log_of_no_such_session(store: MemoryStore, command: Any) -> None:
    said = command("log", URL, "--session", "nobody")
    assert (said.code, said.err) == (1, f"memstate log: NotFoundError: there is no session 'nobody' in {URL}\n")
    assert command("log", URL, "--session", "chat", "--long-term").code == 2


def test_an_async_store_of_an_application(store: MemoryStore, command: Any) -> None:
    for arguments in (("log",), ("show", "ada"), ("diff", "tx-1"), ("stats", "--json")):
        one, *rest = arguments
        words = [[one, name, *rest] for name in (URL, "tests.cli.apps:async_store")]
        url, code = (command(*given).out for given in words)
        if one == "stats":
            url, code = ({**json.loads(text), "hooks": None} for text in (url, code))
        assert code == url
    said = command("rollback", "tests.cli.apps:async_store", "--yes", "--json")
    assert said.data["undone"] == ["tx-6"]


def test_show_a_fact_and_a_transaction(store: MemoryStore, command: Any) -> None:
    said = command("show", URL, "ada")
    assert ["city:", '"Paris"'] in said.words
    assert [line[0] for line in said.words if "->" in line] == ["tx-6", "tx-1"]
    past = command("show", URL, "ada", "--version", "1")
    assert ["city:", '"London"'] in past.words
    assert "a past version; the fact is at version 2" in past.out
    assert command("show", URL, "ada", "--version", "3").code == 1
    assert command("show", URL, "ada", "--json").data["fact"] == store.get("ada")
    gone = command("show", URL, "n2")
    assert "deleted by tx-4" in gone.out
    assert ["text:", '"two"'] in gone.words
    assert command("show", URL, "n2", "--json").data["deleted"] is True
    changed = command("show", URL, "tx-6").out
    assert '    - city: "London"\n    + city: "Paris"\n' in changed
    assert "name" not in changed
    assert "\x1b" not in command("show", URL, "n3").out
    unknown = command("show", URL, "tx-7")
    assert (unknown.code, unknown.out, unknown.err.count("\n")) == (1, "", 1)


def test_diff_two_points(store: MemoryStore, command: Any) -> None:
    def changes(*points: str) -> list[tuple[str, bool, bool]]:
        found = command("diff", URL, *points, "--session", "chat", "--json").data["changes"]
        return [(one["fact_id"], one["before"] is not None, one["after"] is not None) for one in found]

    assert changes("tx-3") == [("n2", True, False), ("n3", False, True)]
    assert changes("tx-5", "tx-3") == [("n3", True, False), ("n2", False, True)]
    assert changes("start", "tx-2") == [("n1", False, True)]
    assert command("diff", URL, "tx-5", "--session", "chat").out == "nothing differs\n"
    assert '    - city: "London"\n    + city: "Paris"\n' in command("diff", URL, "tx-1").out
    assert command("diff", URL, "tx-1", "--session", "chat").code == 1


def test_stats(store: MemoryStore, command: Any) -> None:
    data = command("stats", URL, "--json").data
    assert (data["facts"], data["sessions"], data["transactions"], data["claims"]) == (3, 1, 6, 0)
    assert data["types"]["profile"] == {"facts": 1, "bytes": 29}
    assert ["all", "3", str(sum(one["bytes"] for one in data["types"].values()))] in command("stats", URL).words
    assert command("stats", URL, "--namespace", "other", "--json").data["facts"] == 0


class TestGoingBack:
    def test_rollback_and_redo(self, store: MemoryStore, command: Any) -> None:
        before = store.query()
        assert command("rollback", URL, "--session", "chat", "--steps", "2", "--yes", "--json").data == {
            "command": "rollback",
            "transaction": "tx-7",
            "undone": ["tx-5", "tx-2"],
            "redone": [],
            "kept": [],
        }
        assert [fact["id"] for fact in store.query()] == ["ada"]
        assert command("redo", URL, "--session", "chat", "--steps", "9", "--json").data["redone"] == ["tx-2", "tx-5"]
        assert store.query() == before
        assert command("rollback", URL, "--to", "tx-1", "--yes").out.startswith("undone tx-6: 1 change\n")
        assert store.get("ada")["payload"]["city"] == "London"  # type: ignore[index]
        assert store.history(limit=1)[0].actor == "memstate command line"
        assert command("rollback", URL, "--to", "start", "--yes", "--actor", "me", "--reason", "why").code == 0
        assert (store.history(limit=1)[0].actor, store.history(limit=1)[0].reason) == ("me", "why")
        assert command("rollback", URL, "--yes").out == "nothing to undo in long-term memory\n"
        moment = store.history("chat", limit=None)[-1].ts.isoformat()
        assert command("rollback", URL, "--session", "chat", "--to", moment, "--yes", "--json").data["undone"] == [
            "tx-5"
        ]

    @pytest.mark.parametrize("answer", ["y\n", "n\n", ""])
    def test_it_asks(self, store: MemoryStore, command: Any, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
        monkeypatch.setattr(sys, "stdin", _Terminal(answer))
        said = command("rollback", URL, "--session", "chat")
        assert said.err == "  tx-5  COMMIT, 1 change  \\x1b]0;agent\nundo 1 transaction of session chat? [y/N] "
        assert (said.code, store.get("n3") is None) == ((0, True) if answer == "y\n" else (1, False))

    def test_nothing_else_is_undone_than_what_was_asked_for(
        self, store: MemoryStore, command: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = _Terminal("y\n", lambda: store.commit(Fact("note", {}, id="n4", session_id="chat")))
        monkeypatch.setattr(sys, "stdin", terminal)
        said = command("rollback", URL, "--session", "chat")
        assert said.code == 1
        assert "has moved on while you were asked" in said.err
        assert store.get("n4")
        assert store.get("n3")

    def test_without_a_terminal_nobody_is_asked(self, store: MemoryStore, command: Any) -> None:
        said = command("rollback", URL, "--session", "chat")
        assert (said.code, said.err.splitlines()[-1]) == (
            2,
            "memstate rollback: undo 1 transaction of session chat? there is nobody to ask; --yes says so",
        )
        assert store.get("n3")

    def test_a_conflict(self, store: MemoryStore, command: Any) -> None:
        store.commit(Fact("note", {"text": "others"}, id="n3", session_id="other"))
        said = command("rollback", URL, "--session", "chat", "--yes")
        assert (said.code, said.err.count("\n")) == (1, 1)
        assert "changed since by session 'other'" in said.err
        kept = command("rollback", URL, "--session", "chat", "--yes", "--keep-conflicts", "--json").data
        assert kept["kept"] == ["n3"]


class _Terminal(io.StringIO):
    """Somebody who answers; ``meanwhile`` is what happens while they think."""

    def __init__(self, answer: str, meanwhile: Any = lambda: None) -> None:
        super().__init__(answer)
        self._meanwhile = meanwhile

    def isatty(self) -> bool:
        return True

    def readline(self, size: int = -1, /) -> str:
        self._meanwhile()
        return super().readline(size)


class TestConfig:
    def test_init_writes_what_the_others_read(self, command: Any) -> None:
        assert command("init").out == f"{URL} is ready\n"
        assert Path("memory.db").exists()
        assert "memstate.toml was there" in command("init", "sqlite:///other.db").out
        assert command("log").out == "nothing has been committed\n"
        assert command("init", "--json").data == {"command": "init", "store": URL, "wrote": False}
        assert command("init", "app:store").code == 2

    def test_hooks_follow_and_are_searched(self, store: MemoryStore, command: Any) -> None:
        index = FileIndex(Path(os.environ["MEMORY"]) / "index.db", name="index")
        text = f'store = "{URL}"\nhooks = ["tests.cli.apps:index"]\nnamespace = "tenant"\n'
        Path("memstate.toml").write_text(text, encoding="utf-8")
        theirs = MemoryStore(store.storage, [index], namespace="tenant", allow_unregistered=True)
        theirs.commit(Fact("note", {"text": "one"}, id="n1"))
        assert command("verify").out == "index: no drift (1 fact and 1 entry compared)\n"
        found = command("search", "one")
        assert (found.code, [line[1:3] for line in found.words]) == (0, [["note", "n1"]])
        assert command("search", URL, "one", "--json").data["found"][0]["fact"]["id"] == "n1"
        assert "no index was told" not in command("rollback", "--yes").out
        assert index.scan() == {}
        # They are of that store, and of no other.
        assert "has no hooks" in command("search", "sqlite:///./memory.db", "one").err

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("store =", "memstate.toml cannot be read: "),
            ("", "memstate.toml names no store"),
            ("stoer = 'x'", "memstate.toml says 'stoer', which is not known"),
            (f"store = '{URL}'\nhooks = 'x'", "hooks in memstate.toml is a list"),
            (f"store = '{URL}'\n[options]\nx = 1", f"{URL}: "),
        ],
    )
    def test_what_is_wrong_with_it(self, store: MemoryStore, command: Any, text: str, complaint: str) -> None:
        Path("memstate.toml").write_text(text, encoding="utf-8")
        said = command("log")
        assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
        assert said.err.startswith(f"memstate log: {complaint}")


class TestMisuse:
    @pytest.mark.parametrize(
        ("arguments", "code", "complaint"),
        [
            (("log",), 2, "say which store: a URL such as sqlite:///memory.db, MODULE:NAME, or write it to memstate"),
            (("log", "sqlite:///no.db"), 2, "there is no database no.db; memstate init sqlite:///no.db makes one"),
            (("log", "sqlite://"), 2, "a database in memory ends with its process"),
            (("log", "mysql://me:secret@host/x"), 2, "mysql://host/x: no storage is called mysql://"),
            (("log", "sqlite:///noise.db"), 1, "StorageError: "),
            (("show", "nowhere", "ada"), 2, "'nowhere' names no store"),
            (("diff", URL, "a", "b", "c"), 2, "expected [STORE] FROM [TO], not"),
            (("log", "tests.cli.apps:bare_store", "--namespace", "x"), 2, "--namespace is for stores that are named"),
            (("search", URL, "x"), 2, f"{URL} has no hooks, so there is no index to search"),
        ],
    )
    def test_is_one_line(
        self, store: MemoryStore, command: Any, arguments: tuple[str, ...], code: int, complaint: str
    ) -> None:
        Path("noise.db").write_bytes(b"no database" * 100)
        said = command(*arguments)
        assert (said.code, said.out, said.err.count("\n")) == (code, "", 1)
        assert said.err.startswith(f"memstate {arguments[0]}: {complaint}")
        assert not Path("no.db").exists()

    def test_debug_shows_where(self, command: Any) -> None:
        for arguments in (("--debug", "log", "sqlite:///no.db"), ("log", "sqlite:///no.db", "--debug")):
            said = command(*arguments)
            assert said.code == 2
            assert said.err.startswith("Traceback ")
            assert said.err.endswith(
                "\nmemstate log: there is no database no.db; memstate init sqlite:///no.db makes one\n"
            )


def test_help_is_in_our_words(command: Any) -> None:
    """And no line of it is longer than a terminal is wide."""
    said = command("--help")
    commands = re.findall(r"^  (\w+)  ", said.out.partition("Commands:")[2], re.MULTILINE)
    assert len(commands) == 16
    shown = said.out + "".join(command(name, "--help").out for name in commands)
    assert "Usage: memstate diff [OPTIONS] [STORE] FROM [TO]\n" in shown
    assert not re.search(r"<(str|list)|``|\}\.\.\.", shown)
    assert max(map(len, shown.splitlines())) <= 80
