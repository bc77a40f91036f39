"""Whatever a graph runs from, its memory is what it was there: tried at random, on every storage."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from memstate import AsyncInMemoryStorage, AsyncMemoryStore, InMemoryStorage, MemoryStore
from memstate_langgraph import AsyncMemStateCheckpointer, MemStateCheckpointer
from memstate_langgraph._line import Line
from memstate_langgraph._notes import Notes
from memstate_langgraph.rewind import Rewinder
from tests.langgraph.conftest import Makes
from tests.langgraph.oracle import TOPOLOGIES, Boom, World, wander

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def late(checkpointer: Any, seed: int, lost: float = 0.0) -> Any:
    """Checkpoints are stored late, and some not at all."""
    chance = random.Random(seed)
    kind = type(checkpointer)

    class Late(kind):  # type: ignore[misc, valid-type]
        def put(self, *arguments: Any) -> Any:
            time.sleep(chance.choice([0, 0, 0.003, 0.01]))
            if chance.random() < lost:
                raise Boom
            return super().put(*arguments)

        async def aput(self, *arguments: Any) -> Any:
            await asyncio.sleep(chance.choice([0, 0, 0.003, 0.01]))
            if chance.random() < lost:
                raise Boom
            return await super().aput(*arguments)

    checkpointer.__class__ = Late
    return checkpointer


async def violations(checkpointer: Any, topology: str, seed: int, steps: int) -> list[str]:
    world = World(checkpointer.memory, checkpointer, seed, f"thread-{topology}-{seed}")
    await wander(world, TOPOLOGIES[topology](world), steps)
    return world.violations


def on_memory(flavour: str) -> Any:
    if flavour == "sync":
        return MemStateCheckpointer(MemoryStore(InMemoryStorage(), allow_unregistered=True))
    return AsyncMemStateCheckpointer(AsyncMemoryStore(AsyncInMemoryStorage(), allow_unregistered=True))


@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_memory_is_the_state(makes: Makes, topology: str) -> None:
    checkpointer = makes.checkpointer()
    assert await violations(checkpointer, topology, 1, 6) == []


@pytest.mark.parametrize("flavour", ["sync", "async"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_on_many_ways(topology: str, flavour: str) -> None:
    for seed in range(100, 104):
        assert await violations(on_memory(flavour), topology, seed, 12) == [], seed


@pytest.mark.parametrize("flavour", ["sync", "async"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("lost", [0.0, 0.1], ids=["late", "lost"])
async def test_checkpoints_that_come_late_or_never(topology: str, flavour: str, lost: float) -> None:
    for seed in range(1, 3):
        assert await violations(late(on_memory(flavour), seed, lost), topology, seed, 8) == [], seed


@pytest.mark.parametrize(
    ("topology", "flavour", "seed", "lost"),
    [
        # nested checkpoints that come when their graph has failed or another run has begun
        ("below", "async", 5009, 0.1),
        ("below", "async", 6051, 0.1),
        ("below", "sync", 6016, 0.1),
        # a task that finished twice
        ("fan", "sync", 20073, 0.0),
        # an update in place of a task, whose checkpoint was lost
        ("fan", "sync", 20104, 0.1),
        # an update of the past that never looks at the latest checkpoint
        ("below", "async", 20112, 0.0),
    ],
)
async def test_worlds_in_which_something_was_wrong(topology: str, flavour: str, seed: int, lost: float) -> None:
    assert await violations(late(on_memory(flavour), seed, lost), topology, seed, 12) == []


# Each part of the algorithm is needed: without it, the oracle complains.


async def _nothing(*_: Any, **__: Any) -> None:
    return None


async def _at_the_head(self: Line, head: int, above: int, checkpoint_id: str) -> int:
    return head


async def _stay(self: Rewinder, thread_id: str, checkpoint_id: str | None, *_: Any) -> None:
    return None


async def _keeps_all(self: Rewinder, *_: Any, **__: Any) -> None:
    return None


async def _none_finished(self: Line, *_: Any) -> dict[str, list[int]]:
    return {}


def _never(*_: Any) -> bool:
    return False


_ABLATIONS: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "failed attempts stay": (Rewinder, "failed", _nothing, "line"),
    "past checkpoints are not gone to": (Rewinder, "go_back", _nothing, "line"),
    "the latest is not returned to": (Rewinder, "return_to", _stay, "line"),
    "interrupted nodes' facts stay": (Rewinder, "_keep", _keeps_all, "line"),
    "finished siblings are forgotten": (Line, "finished", _none_finished, "fan"),
    "nested graphs are not looked at": (Rewinder, "_loaded_nested", _nothing, "nested"),
    "updates leave the memory": (Rewinder, "updating", _nothing, "line"),
    "a position is where the head is": (Line, "before", _at_the_head, "line"),
    "tasks' ends are not heard of": (Notes, "ends", _never, "functional"),
}


@pytest.mark.parametrize("part", _ABLATIONS)
async def test_every_part_is_needed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, instead, topology = _ABLATIONS[part]
    monkeypatch.setattr(owner, name, instead)
    for seed in range(60):
        checkpointer = on_memory("sync")
        if name == "before":
            late(checkpointer, seed)
        world = World(checkpointer.memory, checkpointer, seed, "t")
        await wander(world, TOPOLOGIES[topology](world), 12)
        if world.violations:
            return
    pytest.fail(f"{part}, and nobody notices")
