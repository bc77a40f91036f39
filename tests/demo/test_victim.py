"""The process that is killed, here interrupted instead: then it tidies up by itself."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from memstate_core.demo import victim
from memstate_core.demo.conversation import INCLUDED, load
from memstate_core.demo.memory import Dump, opened, unlike
from memstate_core.demo.victim import Job, Point


class Stopped(BaseException):
    """Like a KeyboardInterrupt, but nothing else raises it."""


@pytest.fixture
def before(tmp_path: Path) -> Dump:
    conversation = load(INCLUDED)
    with opened(tmp_path) as memory:
        memory.remember(conversation, conversation.sessions[0])
        return memory.dump()


def told(directory: Path, point: Point) -> io.StringIO:
    return io.StringIO(Job(str(directory), "noor-and-felix", ["Noor", "Felix"], 1, point).to_line())


@pytest.mark.parametrize("point", Point)
def test_an_interruption_is_undone_unless_all_is_decided(
    before: Dump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: Point
) -> None:
    stops = iter([point])

    def reached(self: victim.Stopping, here: Point) -> None:
        if here is point and next(stops, None):
            raise Stopped

    monkeypatch.setattr(victim.Stopping, "reached", reached)
    monkeypatch.setattr(sys, "stdin", told(tmp_path, point))
    with pytest.raises(Stopped):
        victim.main()
    with opened(tmp_path) as memory:
        after = memory.dump()
        assert memory.store.recover().healed == ()
    if point is Point.DECIDED:
        assert unlike(after) == []
        assert after != before
    else:
        assert after == before


def test_it_must_not_get_to_the_end(before: Dump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(victim.Stopping, "reached", lambda self, point: None)
    monkeypatch.setattr(sys, "stdin", told(tmp_path, Point.CLAIMED))
    assert victim.main() == 1


def test_it_ends_when_it_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert victim.main() == 0
