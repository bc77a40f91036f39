"""A directory with a database, in which commands are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memstate_core import Fact, MemoryStore, SQLiteStorage
from tests.cli.saying import Said


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMORY", str(tmp_path))
    return lambda *arguments: Said(capsys, *arguments)


@pytest.fixture
def store(command: Any) -> Any:
    """A session with a line that was left, and a long-term fact in its second version."""
    with SQLiteStorage("memory.db") as storage:
        store = MemoryStore(storage, allow_unregistered=True)
        store.commit(Fact("profile", {"city": "London", "name": "Ada"}, id="ada"), actor="agent", reason="said so")
        store.commit(Fact("note", {"text": "one"}, id="n1", session_id="chat"))
        store.commit(Fact("note", {"text": "two"}, id="n2", session_id="chat"))
        store.rollback("chat")
        store.commit(Fact("note", {"text": "\x1b[31mred\x9b"}, id="n3", session_id="chat"), actor="\x1b]0;agent")
        store.update("ada", {"city": "Paris"})
        yield store
