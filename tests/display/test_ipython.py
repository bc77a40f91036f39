"""``%load_ext memstate``, in IPython itself."""

from __future__ import annotations

import atexit
import io
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from memstate_core import AsyncInMemoryStorage, AsyncMemoryStore, InMemoryStorage, MemoryStore
from tests.display.conftest import Preference

COMMIT = "store.commit_model(Preference(topic={!r}, content='x'))\n"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: MemoryStore) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    # A shell puts a module of its own there and empties it at its end; multiprocessing needs the real one.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    run(shell, "%load_ext memstate")
    shell.user_ns |= {"store": store, "Preference": Preference}
    yield shell
    run(shell, "%unload_ext memstate")
    InteractiveShell.clear_instance()
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()


def run(shell: InteractiveShell, code: str) -> str:
    """Runs a cell; returns what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        shell.run_cell(code).raise_error()
    return printed.getvalue()


def topics(store: MemoryStore) -> list[str]:
    return [fact["payload"]["topic"] for fact in store.query()]


def test_a_cell_is_one_transaction(shell: InteractiveShell, store: MemoryStore) -> None:
    cell = "%%memory store --session chat --actor ann --reason 'two at once'\n"
    printed = run(shell, cell + COMMIT.format("a") + COMMIT.format("b"))
    (transaction,) = store.history()
    assert (transaction.session_id, transaction.actor, transaction.reason) == ("chat", "ann", "two at once")
    assert len(transaction.changes) == 2
    assert "tx-1 · TRANSACTION · session chat · 2 changes" in printed
    assert shell.user_ns["store"] is store


def test_an_exception_rolls_it_back(shell: InteractiveShell, store: MemoryStore) -> None:
    for error in ("ZeroDivisionError", "KeyboardInterrupt"):
        with pytest.raises(eval(error)):
            shell.run_cell(f"%%memory\n{COMMIT.format('a')}seen = store.count()\nraise {error}").raise_error()
        assert shell.user_ns["seen"] == 1  # the cell itself saw what it had written
        assert not store.history()
        assert shell.user_ns["store"] is store
    run(shell, "%%memory --quiet\n" + COMMIT.format("b"))
    assert topics(store) == ["b"]


def test_functions_and_other_names_take_part(shell: InteractiveShell, store: MemoryStore) -> None:
    run(shell, f"memory = store\ndef note(topic):\n    {COMMIT.format('f')}")
    with pytest.raises(ZeroDivisionError):
        run(
            shell,
            "%%memory store\nnote('f')\nmemory.commit_model(Preference(topic='m', content='x'))\nagain = store\n1/0",
        )
    assert not store.history()
    assert all(shell.user_ns[name] is store for name in ("store", "memory", "again"))


def test_what_a_cell_gives_is_its_last_value(shell: InteractiveShell) -> None:
    run(shell, "%%memory --quiet\n" + COMMIT.format("a") + "store.count() + 41")
    assert shell.user_ns["_"] == 42
    assert run(shell, "%%memory --quiet\n" + COMMIT.format("b") + "store.count();") == ""
    assert run(shell, "%%memory --quiet\n!echo hello").strip() == "hello"
    assert run(shell, "%%memory\n# nothing") == ""


def test_the_traceback_shows_the_cell(shell: InteractiveShell) -> None:
    printed = io.StringIO()
    with redirect_stdout(printed):
        shell.run_cell("%%memory\nfirst = 1\nsecond = undefined_name")
    text = re.sub(r"\x1b\[[\d;]*m", "", printed.getvalue())
    assert "-> 2 second = undefined_name" in text


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nothing", "nothing is no variable"),
        ("Preference", "Preference is no MemoryStore"),
        ("waiting", "async with waiting.transaction()"),
        ("store --colour red", "unrecognized arguments"),
    ],
)
def test_mistakes_are_named(shell: InteractiveShell, line: str, complaint: str) -> None:
    shell.user_ns["waiting"] = AsyncMemoryStore(AsyncInMemoryStorage())
    printed = io.StringIO()
    with redirect_stdout(printed):
        result = shell.run_cell(f"%%memory {line}\nran = True")
    assert complaint in str(result.error_in_exec)
    assert "ran" not in shell.user_ns


def test_one_of_several_stores_must_be_named(shell: InteractiveShell) -> None:
    shell.user_ns["other"] = MemoryStore(InMemoryStorage())
    result = shell.run_cell("%%memory\n1")
    assert "2 stores (other, store)" in str(result.error_in_exec)
    del shell.user_ns["other"]
    shell.user_ns |= {"_7": MemoryStore(InMemoryStorage()), "alias": shell.user_ns["store"]}
    run(
        shell, "%%memory\n1"
    )  # what a cell has returned is no store of the notebook's, and a second name no other store


def html(shell: InteractiveShell, value: Any) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, _ = shell.display_formatter.format(value)
    found: str | None = data.get("text/html")
    return found


def test_plain_data_look_like_tables(shell: InteractiveShell, branched: MemoryStore) -> None:
    facts = branched.query()
    for value in (facts, facts[0], branched.history("chat"), branched.history("chat")[0].changes[:]):
        assert "<table" in (html(shell, value) or "")
    for value in ([], [1, 2], {"id": 1}, (1,), "text"):
        assert html(shell, value) is None


def test_in_terminals_too(shell: InteractiveShell, branched: MemoryStore) -> None:
    def text(value: Any) -> str:
        data, _ = shell.display_formatter.format(value)
        found: str = data["text/plain"]
        return found

    assert text(branched.query()).startswith("1 fact of type preference\n")
    assert text(branched.history("chat")).startswith("6 transactions\n")
    # Within something else they stay what they are, and so does all the rest.
    assert text({"all": branched.query()}).startswith("{'all': [{'id': '")
    assert text([[branched.history("chat")[0]]]).startswith("[[Transaction(id=")
    assert text([1, {2: (3,)}]) == "[1, {2: (3,)}]"


def test_other_looks_stay(shell: InteractiveShell, branched: MemoryStore) -> None:
    class Own(list[int]):
        def _repr_html_(self) -> str:
            return "own"

    formatter = shell.display_formatter.formatters["text/html"]
    assert html(shell, Own()) == "own"
    run(shell, "%unload_ext memstate")
    assert html(shell, branched.query()) is None
    formatter.for_type(list, lambda value: "theirs")
    run(shell, "%load_ext memstate")
    assert "<table" in (html(shell, branched.query()) or "")
    assert html(shell, [1]) == "theirs"
    run(shell, "%unload_ext memstate")
    assert html(shell, branched.query()) == "theirs"


def test_bars_are_one_output_that_changes(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("memstate_core.display.bars._SECONDS", 0)
    run(shell, "from memstate_core.display.bars import bars")
    run(shell, "%%capture shown\nwith bars() as tell:\n    for done in range(3):\n        tell('<b>[red]', done, 2)")
    (first, *others) = shell.user_ns["shown"]._outputs
    assert [other["update"] for other in others] == [True] * 3
    assert {one["transient"]["display_id"] for one in (first, *others)} == {first["transient"]["display_id"]}
    assert re.fullmatch(r"<b>\[red\] ━{40} 2/2", others[-1]["data"]["text/plain"].strip())
    assert "&lt;b&gt;[red]" in others[-1]["data"]["text/html"]
    run(shell, "%%capture shown\nwith bars() as tell:\n    pass")
    assert shell.user_ns["shown"]._outputs == []
