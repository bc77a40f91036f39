"""The connection breaks in the midst of an operation, before the server got a request, or after it answered.

Whatever is cut, the operation happens once or not at all, and when it returned it has happened.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from memstate_core import MemoryStore, TransientError
from memstate_core.testing.profiles import THOROUGH
from tests.faults import inspection
from tests.faults.indexes import Index
from tests.faults.kills import CASES
from tests.faults.model import Model, Op, perform, register
from tests.faults.places import MakePlace, Place
from tests.faults.stores import Awaited, Flavour
from tests.servers import Fault, Proxy

pytestmark = pytest.mark.waits

SERVED = ["postgres", "redis"]
LOST = ["request", "reply"]
# More requests than any operation makes.
MANY = 100


@dataclass
class Line:
    """A storage behind a proxy; every world on it has a namespace of its own."""

    flavour: Flavour
    way: Proxy
    direct: Any

    def __post_init__(self) -> None:
        self._numbers = itertools.count()

    async def world(self, hooked: bool, case: str) -> World:
        assert self.flavour.place is not None
        place = replace(self.flavour.place, namespace=f"{case} {next(self._numbers)}")
        before = MemoryStore(self.direct, namespace=place.namespace)
        register(before)
        model = Model()
        for op in CASES[case].before:
            perform(before, op)
            model = model.after(op)
        index = Index() if hooked else None
        if index is not None:
            index.follow(model.facts)
        store = self.flavour.open([index] if index else [], namespace=place.namespace, claim_timeout=5)
        await store.count()
        return World(store, index, place, model)

    def lose(self, what: str, nth: int) -> Fault:
        return self.way.lose_reply(nth) if what == "reply" else self.way.lose_request(nth)


@dataclass
class World:
    store: Awaited
    index: Index | None
    place: Place
    model: Model

    async def attempt(self, op: Op) -> bool:
        """Whether it returned."""
        try:
            await self.store.perform(op)
        except TransientError:
            return False
        return True

    async def settle(self, op: Op, *, returned: bool) -> None:
        """It happened once, or, unless it returned, not at all; the index follows, and all goes on from there."""
        await self.store.recover()
        state = self.place.read_settled_state()
        after = self.model.after(op)
        if returned or inspection.differences(state, self.model):
            assert not inspection.differences(state, after), inspection.differences(state, after)
            self.model = after
        await self.check_index()
        await self.store.perform(["rollback", "a", 1, "raise"])
        self.model = self.model.after(["rollback", "a", 1, "raise"])
        await self.store.perform(last := ["commit", "note-9", "note", {"text": "goes on", "number": 9}, "a", False])
        self.model = self.model.after(last)
        assert not inspection.differences(self.place.read_settled_state(), self.model)
        await self.check_index()

    async def check_index(self) -> None:
        if self.index is not None:
            assert self.index.content() == {id_: (i.version, i.payload) for id_, i in self.model.facts.items()}
            assert not any(await self.store.verify())


@pytest.fixture
async def line(request: pytest.FixtureRequest, make_place: MakePlace, ways: dict[str, Proxy]) -> AsyncIterator[Line]:
    """A flavour, or one with the number of seconds for which it is patient."""
    name, timeout = request.param if isinstance(request.param, tuple) else (request.param, None)
    kind = name.removeprefix("async ")
    place = make_place(kind)
    flavour = Flavour(name, place.by_way_of(ways[kind]), **({} if timeout is None else {"timeout": timeout}))
    flavour.place = place
    with place.storage(kept=True) as direct:
        yield Line(flavour, ways[kind], direct)
    ways[kind].up()
    ways[kind].forget()
    await flavour.close()


# To a storage that is told of it the others look like these, so one server is enough for them.
ACTS = ("commit", "block", "rollback")
ALIKE = ("commit a singleton", "update", "delete", "promote")


@pytest.mark.parametrize("what", LOST)
@pytest.mark.parametrize(
    ("line", "case", "hooked"),
    [
        *((kind, case, hooked) for kind in SERVED for case in ACTS for hooked in (False, True)),
        *(
            (kind, case, True)
            for number, case in enumerate(ALIKE)
            for kind in (SERVED if THOROUGH else [SERVED[number % 2]])
        ),
    ],
    indirect=["line"],
)
async def test_at_every_request(line: Line, case: str, hooked: bool, what: str) -> None:
    await cut_everywhere(line, case, hooked, what)


@pytest.mark.parametrize("line", [f"async {kind}" for kind in SERVED], indirect=True)
@pytest.mark.parametrize("what", LOST)
@pytest.mark.parametrize(("case", "hooked"), [("commit", False), ("block", True), ("rollback", False)])
async def test_at_every_request_of_an_asynchronous_store(line: Line, case: str, hooked: bool, what: str) -> None:
    await cut_everywhere(line, case, hooked, what)


async def cut_everywhere(line: Line, case: str, hooked: bool, what: str) -> None:
    for nth in range(1, MANY):
        world = await line.world(hooked, case)
        fault = line.lose(what, nth)
        # One cut is nothing that a caller need know of.
        assert await world.attempt(CASES[case].op), f"{what} {nth}"
        line.way.forget()
        if fault.left > 0:
            break
        fault.wait()
        await world.settle(CASES[case].op, returned=True)
    assert 1 < nth < MANY - 1


@pytest.mark.parametrize(
    ("line", "what", "hooked"),
    [
        *(((kind, 0.3), what, hooked) for kind in SERVED for what in LOST for hooked in (False, True)),
        *(((f"async {kind}", 0.3), "reply", True) for kind in SERVED),
    ],
    indirect=["line"],
)
async def test_the_server_stays_away(line: Line, hooked: bool, what: str) -> None:
    """For longer than the storage is patient: then nobody knows, and everybody finds out."""
    unknown = 0
    for nth in range(1, MANY):
        world = await line.world(hooked, "block")
        fault = line.lose(what, nth)
        gone = threading.Thread(target=go_away, args=(line.way, fault))
        gone.start()
        returned = await world.attempt(CASES["block"].op)
        line.way.forget()
        fault.end()
        gone.join()
        line.way.up()
        if fault.left > 0:
            assert returned
            break
        unknown += not returned
        await world.settle(CASES["block"].op, returned=returned)
    assert 1 < nth < MANY - 1
    assert unknown


def go_away(way: Proxy, fault: Fault) -> None:
    fault.wait(60)
    if fault.left <= 0:
        way.down()


@pytest.mark.parametrize("line", SERVED, indirect=True)
@pytest.mark.parametrize("hooked", [False, True], ids=["alone", "with a hook"])
async def test_the_server_is_away_for_a_while(line: Line, hooked: bool) -> None:
    """And does not answer for another while."""
    for nth in range(1, MANY):
        world = await line.world(hooked, "block")
        fault = line.lose("reply", nth)
        gone = threading.Thread(target=come_back, args=(line.way, fault))
        gone.start()
        returned = await world.attempt(CASES["block"].op)
        line.way.forget()
        fault.end()
        gone.join()
        if fault.left > 0:
            break
        await world.settle(CASES["block"].op, returned=returned)
    assert 1 < nth < MANY - 1


def come_back(way: Proxy, fault: Fault) -> None:
    go_away(way, fault)
    time.sleep(0.05)
    way.stall()
    way.up()
    time.sleep(0.05)
    way.resume()
