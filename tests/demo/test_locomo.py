"""Going to any session of a long conversation gives exactly what a store has that never went past it.

The conversations are LoCoMo's; they are not part of the repository.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from memstate_core import InMemoryStorage, SQLiteStorage
from memstate_core.cli.main import main
from memstate_core.demo.conversation import Conversation, load
from memstate_core.demo.memory import Dump, Memory, opened_client, unlike
from memstate_core.protocols import Storage
from tests.demo.samples import ephemeral

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "locomo_dev.json"
SAMPLES = ("conv-26", "conv-30", "conv-41", "conv-42", "conv-43")

# An index on disk takes its time, so one conversation has it: one of the shortest.
ON_DISK = "conv-30"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="LoCoMo's conversations are not there")


class Clock:
    """The time of the session that is remembered, so that facts are equal to the last digit."""

    def __init__(self) -> None:
        self.now = datetime(2000, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@contextmanager
def new_memory(storage: Storage, client: Any, clock: Clock) -> Iterator[Memory]:
    memory = Memory(storage, client, collection=f"memory-{uuid.uuid4().hex}", clock=clock)
    with memory.store:
        yield memory


@contextmanager
def memory_on_sqlite(directory: Path, clock: Clock, *, on_disk: bool) -> Iterator[Memory]:
    with SQLiteStorage(directory / "memory.db") as storage:
        if on_disk:
            with opened_client(directory) as client, new_memory(storage, client, clock) as memory:
                yield memory
        else:
            with new_memory(storage, ephemeral(), clock) as memory:
                yield memory


def remember(memory: Memory, conversation: Conversation, clock: Clock) -> Iterator[str]:
    """Remember session by session; the ids of the transactions."""
    for session in conversation.sessions:
        assert session.date is not None
        clock.now = session.date.replace(tzinfo=UTC)
        transaction = memory.remember(conversation, session)
        assert transaction is not None
        yield transaction
    clock.now = datetime(2030, 1, 1, tzinfo=UTC)


def assert_same(memory: Memory, expected: Dump) -> None:
    dump = memory.dump()
    assert dump.facts == expected.facts
    assert list(dump.facts) == list(expected.facts)  # they come in the same order
    assert dump.entries == expected.entries


def test_the_demo_runs_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--conversation", str(FILE), "--sample", ON_DISK]) == 0
    out = capsys.readouterr().out
    assert "conv-30: Gina and Jon in 19 sessions with 369 turns." in out
    assert "Recall over 105 questions with evidence: " in out
    assert "all 9 checks passed, drift 0" in out


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_session_can_be_gone_back_to(sample: str, tmp_path: Path) -> None:
    conversation = load(FILE, sample)
    clock = Clock()
    with new_memory(InMemoryStorage(), ephemeral(), clock) as reference:
        never_past = [reference.dump(), *(reference.dump() for _ in remember(reference, conversation, clock))]
    assert len(never_past) == len(conversation.sessions) + 1
    assert not any(unlike(dump) for dump in never_past[::5])
    with memory_on_sqlite(tmp_path, clock, on_disk=sample == ON_DISK) as memory:
        transactions = [None, *remember(memory, conversation, clock)]
        last = len(conversation.sessions)
        assert_same(memory, never_past[last])
        chance = random.Random(sample)
        # Back to every session, or to some of every other conversation, each from a session after it that was gone to.
        for back in chance.sample(range(last), last if sample == ON_DISK else 6):
            forward = chance.randint(back + 1, last)
            memory.store.checkout(sample, transactions[forward])
            assert_same(memory, never_past[forward])
            target = transactions[back]
            if target is None:
                memory.store.rollback(sample, steps=forward)
            else:
                memory.store.rollback(sample, to=target)
            assert_same(memory, never_past[back])
        assert memory.drift() == 0


def test_steps_back_and_forth(tmp_path: Path) -> None:
    """The same, one session at a time, down to the first and up again."""
    conversation = load(FILE, ON_DISK)
    clock = Clock()
    with memory_on_sqlite(tmp_path, clock, on_disk=False) as memory:
        dumps = [memory.dump(), *(memory.dump() for _ in remember(memory, conversation, clock))]
        for expected in reversed(dumps[:-1]):
            assert len(memory.store.rollback(ON_DISK)) == 1
            assert_same(memory, expected)
        assert memory.store.rollback(ON_DISK) == []
        for expected in dumps[1:]:
            assert len(memory.store.redo(ON_DISK)) == 1
            assert_same(memory, expected)
        assert memory.store.redo(ON_DISK) == []
        assert memory.drift() == 0
