"""Two transactions, a recovery and one fault, in every order in which their steps can come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from memstate_core import ConflictError, Constraint, Fact, HookError, NotFoundError, moves
from memstate_core.engine import Engine
from memstate_core.facts import Operation
from memstate_core.intents import Promote
from memstate_core.schemas import SchemaRegistry
from memstate_core.testing.profiles import THOROUGH
from tests.faults.model import SINGLETON, Note, Slot
from tests.schedules.explorer import NAMESPACE, Doing, Explored, World, explore


def put(fact_id: str, text: str, session: str | None = None, typename: str = "note") -> Doing:
    payload = {"name": "one", "text": text} if typename == SINGLETON else {"text": text}

    async def do(engine: Engine) -> Any:
        intent = engine.put(Fact(typename, payload, id=fact_id), session, False, None)
        return await engine.do(intent, Operation.COMMIT, None, text)

    return do


def make(fact_id: str, text: str, session: str | None = None) -> Doing:
    """A fact with an id that was just made, so that nothing is read for it."""

    async def do(engine: Engine) -> Any:
        intent = engine.put(Fact("note", {"text": text}, id=fact_id), session, False, None)._replace(generated=True)
        return await engine.do(intent, Operation.COMMIT, None, text)

    return do


def patch(fact_id: str, text: str, expected_version: int | None = None) -> Doing:
    async def do(engine: Engine) -> Any:
        return await engine.do(
            engine.patch(fact_id, {"text": text}, False, expected_version), Operation.UPDATE, None, text
        )

    return do


def remove(fact_id: str, reason: str, session: str | None = None) -> Doing:
    async def do(engine: Engine) -> Any:
        return await engine.do(engine.remove(fact_id, session, None), Operation.DELETE, None, reason)

    return do


def promote(session: str, reason: str) -> Doing:
    async def do(engine: Engine) -> Any:
        return await engine.do(Promote(session, None), Operation.PROMOTE, None, reason)

    return do


def rollback(session: str, reason: str) -> Doing:
    async def do(engine: Engine) -> Any:
        return await moves.rollback(engine, session, 1, None, "raise", None, reason)

    return do


def both(text: str, *fact_ids: str) -> Doing:
    """Several facts in one transaction, in this order."""

    async def do(engine: Engine) -> Any:
        intents = [engine.put(Fact("note", {"text": text}, id=id_), None, False, None) for id_ in fact_ids]
        return (await engine.carry_out(intents, Operation.COMMIT, reason=text)).result

    return do


async def recover(engine: Engine) -> Any:
    return await engine.recovery.heal_abandoned()


PREPARED = [put("x", "old x", "s"), put("y", "old y", "s"), put("x", "newer x", "s")]
PAIRS: dict[str, tuple[Doing, Doing]] = {
    "two facts": (put("a", "first"), make("b", "second")),
    "one singleton place": (put("a", "first", None, SINGLETON), put("b", "second", None, SINGLETON)),
    "two updates": (patch("x", "first"), patch("x", "second")),
    "compare and set": (patch("x", "first", 2), patch("x", "second", 2)),
    "update and delete": (patch("x", "first"), remove("x", "second")),
    "crosswise": (both("first", "x", "y"), both("second", "y", "x")),
    "rollback and update": (rollback("s", "first"), patch("x", "second")),
    "rollback and new fact": (rollback("s", "first"), make("n", "second", "s")),
    "two rollbacks": (rollback("s", "first"), rollback("s", "second")),
    "promote and delete": (promote("s", "first"), remove("x", "second", "s")),
}
# What the journal can say in the end. Some refuse to come after the other.
ANY_ORDER = {("first",), ("second",), ("first", "second"), ("second", "first")}
OUTCOMES = {
    "compare and set": {("first",), ("second",)},
    "update and delete": ANY_ORDER - {("second", "first")},
}
# Where nothing is prepared, planning and claiming are one step: every schedule is like one with two steps, in a row.
AT_ONCE = ("one singleton place", "two updates", "rollback and new fact")
# Being paused makes ten times as many schedules as death.
PAUSED = "one singleton place"


def prepared() -> tuple[SchemaRegistry, World]:
    """What the calls find: the types, and three transactions."""
    registry = SchemaRegistry()
    registry.register("note", Note)
    registry.register(SINGLETON, Slot, Constraint(singleton_key="name"))
    world = World(registry, [])
    for doing in PREPARED:
        world = World(registry, [doing], world)
        world.finish(world.calls[0])
    return registry, world


def check_always(world: World) -> None:
    """What nobody holds is in the index as it is in storage. (Whose lease has lapsed may write there too late.)"""
    if world.lapsed:
        return
    stored = world.stored()
    for fact_id in world.unclaimed():
        assert world.index.get(fact_id) == stored.get(fact_id), fact_id


def check_end(world: World) -> tuple[str, ...]:
    """Nothing is lost, doubled, or left behind; what comes out is what the journal says, one after the other."""
    for call in world.calls:
        assert call.ended or call.dead, f"{call.at}: waits for nothing"
        if call.error is not None:
            assert isinstance(call.error, ConflictError | NotFoundError | HookError), repr(call.error)
    world.recover()
    data = world.memory._namespaces[NAMESPACE]
    assert not data.claims
    assert world.index == world.stored()
    versions: dict[str, int] = {}
    for _, entry in sorted(data.entries.items()):
        for fact_id, before, after in entry.changes:
            assert versions.get(fact_id, 0) == (before or 0), entry
            versions[fact_id] = after or 0
    assert {id_: version for id_, version in versions.items() if version} == {
        fact.id: fact.version for fact in data.facts.values()
    }
    made = [entry for _, entry in sorted(data.entries.items())][len(PREPARED) :]
    returned = [call for call in world.calls[:2] if call.ended and call.error is None]
    assert len(returned) <= len(made) <= len(returned) + sum(call.dead for call in world.calls[:2])
    return tuple(str(entry.reason) for entry in made)


def explored(pair: str, prepares: bool, faults: list[str], fallible: Sequence[int] = (0, 1, 2)) -> Explored:
    registry, before = prepared()
    calls = [*PAIRS[pair], recover]
    return explore(
        lambda: World(registry, calls, before, prepares=prepares),
        faults=faults,
        fallible=fallible,
        always=check_always,
        at_the_end=check_end,
    )


@pytest.mark.parametrize(
    ("pair", "prepares"),
    [(pair, prepares) for pair in PAIRS for prepares in (False, True) if prepares or THOROUGH or pair in AT_ONCE],
)
def test_one_dies_or_its_index_refuses(pair: str, prepares: bool) -> None:
    found = explored(pair, prepares, ["die", "fail"])
    assert found.outcomes == OUTCOMES.get(pair, ANY_ORDER)
    assert found.ends > len(found.outcomes)


@pytest.mark.parametrize("prepares", [False, True] if THOROUGH else [True])
def test_one_is_paused_beyond_its_lease(prepares: bool) -> None:
    """It wakes, and finds that its facts are not its own any more."""
    found = explored(PAUSED, prepares, ["lapse"], [0])
    assert found.outcomes == {("first", "second"), ("second", "first")}
