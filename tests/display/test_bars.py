"""``progress=True``: bars where somebody sees them."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest

from memstate_core import AsyncInMemoryStorage, AsyncMemoryStore, Fact, InMemoryStorage, MemoryStore
from memstate_core.testing import AsyncIndexHook, Index, IndexHook


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def indexed() -> MemoryStore:
    store = MemoryStore(InMemoryStorage(), [IndexHook(Index(), name="no [red]markup[/red]")], allow_unregistered=True)
    for number in range(3):
        store.commit(Fact("note", {"text": "x"}, id=f"{number}"))
    return store


def screen_of(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal on standard error from here on; pytest would take it away from a fixture."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    return screen


@pytest.mark.parametrize("method", ["verify", "repair", "reindex"])
def test_on_a_terminal(indexed: MemoryStore, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    screen = screen_of(monkeypatch)
    getattr(indexed, method)(progress=True)
    # To verify is to look at facts and at entries.
    assert re.search(r"no \[red\]markup\[/red\] ━{40} (3/3|6/6) ", screen.getvalue())


async def test_of_the_async_store(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    hook = AsyncIndexHook(Index(), name="index")
    async with AsyncMemoryStore(AsyncInMemoryStorage(), [hook], allow_unregistered=True) as store:
        await store.commit(Fact("note", {"text": "x"}))
        for method in (store.verify, store.repair, store.reindex):
            screen.truncate(0)
            work: Any = method(progress=True)
            await work
            assert "index ━" in screen.getvalue()


def test_nobody_is_told_where_nobody_looks(
    indexed: MemoryStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    indexed.verify(progress=True)
    screen = screen_of(monkeypatch)
    indexed.verify(progress=False)
    indexed.verify()
    assert (screen.getvalue(), *capfd.readouterr()) == ("", "", "")


def test_what_shows_them_may_be_missing(indexed: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"memstate\[cli\]"):
        indexed.verify(progress=True)
    assert indexed.verify(progress=lambda hook, done, total: None).drift == 0
