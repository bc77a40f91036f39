"""The outbox as storage keeps it: lanes, who holds them, and what is still to be delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from memstate_core._bridge import run
from memstate_core.facts import ChangedVersions, FactChange
from memstate_core.protocols import (
    Batch,
    ClaimsLost,
    Deferred,
    Delivery,
    Lane,
    LaneState,
    Settlement,
    StorageTransaction,
    lane_of,
)
from memstate_core.testing.factories import StorageFactory, Stores, StoreTests
from memstate_core.testing.storage_protocol import Raw, entry, fact

A, B = Lane("index", 1), Lane("index", 2)
OTHER = Lane("other: index", 1)


class Outbox(Raw):
    """The outbox of one namespace of a storage, a call at a time."""

    async def put(self, *lanes: Lane, ids: Sequence[str] = (), at: float = 1.0) -> int:  # type: ignore[override]
        """A transaction of one new fact, told of in each of the lanes; its ids default to ``f``."""
        changes = [ChangedVersions(id_, 0, 1) for id_ in ids or ("f",)]
        batch = Batch(entry("s"), deferred=[Deferred(lane, change, at) for lane in lanes for change in changes])
        return await self.write(batch)

    async def take(
        self, owner: str = "w", *hooks: str, now: float = 100.0, expires: float = 200.0, gone: Sequence[str] = ()
    ) -> Lane | None:
        async def work(tx: StorageTransaction) -> Lane | None:
            return await tx.take_lane(hooks or ("index", "other: index"), owner, now, expires, gone=gone)

        found: Lane | None = await self.storage.write(self.namespace, work)
        return found

    async def deliveries(self, lane: Lane, limit: int = 1000) -> list[Delivery]:
        return await self.ask(lambda tx: tx.deliveries(lane, limit))

    async def lanes(self) -> list[LaneState]:
        return await self.ask(lambda tx: tx.lanes())

    async def settle(
        self, lane: Lane, owner: str = "w", expires: float = 0.0, **came_of_it: Sequence[Delivery]
    ) -> None:
        await self.write(Batch(settlement=Settlement(lane, owner, expires, **came_of_it)))


class TestOutbox(StoreTests):
    """What is put in stays until it is settled, in order, and is leased to one worker at a time."""

    @pytest.fixture
    def outbox(self, stores: Stores) -> Outbox:
        return Outbox(stores.storages.new())

    async def test_it_is_empty_at_first(self, outbox: Outbox) -> None:
        assert await outbox.lanes() == []
        assert await outbox.deliveries(A) == []
        assert await outbox.take() is None

    async def test_what_is_put_in_comes_out_in_order(self, outbox: Outbox) -> None:
        first = await outbox.put(A, at=1.5)
        second = await outbox.put(A, B, ids=["f", "ü'%:*{}\U0001f600"], at=2.5)
        third = await outbox.put(A, at=3.5)
        found = await outbox.deliveries(A)
        assert [one.seq for one in found] == [first, second, second, third]
        assert found[0] == Delivery(first, ChangedVersions("f", 0, 1), 1.5)
        assert {one.change.fact_id for one in found[1:3]} == {"f", "ü'%:*{}\U0001f600"}
        assert await outbox.deliveries(A, 2) == found[:2]
        assert [one.seq for one in await outbox.deliveries(B)] == [second, second]
        assert await outbox.deliveries(OTHER) == []

    async def test_it_is_written_with_the_facts_or_not_at_all(self, outbox: Outbox) -> None:
        lane = lane_of("index", "n")
        change = FactChange(None, fact("n", payload="{}"))
        batch = Batch(entry("s"), [change], deferred=[Deferred(lane, ChangedVersions("n", 0, 1), 1.0)])

        async def work(tx: StorageTransaction) -> None:
            await tx.write(batch)
            raise ValueError("on purpose")

        with pytest.raises(ValueError, match="on purpose"):
            await outbox.storage.write(outbox.namespace, work)
        assert await outbox.lanes() == []
        await outbox.write(batch)
        assert [one.seq for one in await outbox.deliveries(lane)] == [batch.seq]

    async def test_lanes_say_how_they_stand(self, outbox: Outbox) -> None:
        first = await outbox.put(A, OTHER)
        await outbox.put(A)
        assert await outbox.take("w", "index") == A
        oldest = (await outbox.deliveries(A))[0]
        await outbox.settle(A, expires=300.0, postponed=[oldest._replace(attempts=2, due=150.0, error="it's down")])
        postponed = Delivery(first, oldest.change, 1.0, 2, 150.0, "it's down")
        assert await outbox.lanes() == [
            LaneState(A, 2, postponed, 1, "w", 300.0),
            LaneState(OTHER, 1, Delivery(first, oldest.change, 1.0), 0, None, 0.0),
        ]

    async def test_the_lane_with_the_oldest_delivery_is_taken_first(self, outbox: Outbox) -> None:
        await outbox.put(B)
        await outbox.put(OTHER)
        await outbox.put(A)
        assert [await outbox.take(f"w{number}") for number in range(4)] == [B, OTHER, A, None]

    async def test_only_lanes_of_the_hooks_asked_for_are_taken(self, outbox: Outbox) -> None:
        await outbox.put(A)
        await outbox.put(OTHER)
        assert await outbox.take("w", "nothing") is None
        assert await outbox.take("w", "other: index") == OTHER
        assert await outbox.take("w", "other: index") is None

    async def test_a_lane_is_held_until_it_is_let_go_or_its_lease_ends(self, outbox: Outbox) -> None:
        await outbox.put(A)
        assert await outbox.take("w", expires=200.0) == A
        assert await outbox.take("other", now=200.0) is None
        assert await outbox.take("other", now=201.0, expires=300.0) == A
        with pytest.raises(ClaimsLost):
            await outbox.settle(A, "w", delivered=await outbox.deliveries(A))
        assert len(await outbox.deliveries(A)) == 1
        await outbox.settle(A, "other")
        assert await outbox.take("third", now=201.0) == A

    async def test_a_lease_that_ended_but_was_not_taken_over_is_still_held(self, outbox: Outbox) -> None:
        await outbox.put(A)
        assert await outbox.take("w", expires=200.0) == A
        await outbox.settle(A, expires=900.0)
        assert await outbox.take("other", now=800.0) is None
        await outbox.settle(A, delivered=await outbox.deliveries(A))
        assert await outbox.lanes() == []

    async def test_a_lane_of_an_owner_that_is_gone_is_free(self, outbox: Outbox) -> None:
        await outbox.put(A)
        assert await outbox.take("dead") == A
        assert await outbox.take("w", gone=["nobody"]) is None
        assert await outbox.take("w", gone=["nobody", "dead"]) == A

    async def test_what_is_settled_is_gone_and_what_came_meanwhile_stays(self, outbox: Outbox) -> None:
        await outbox.put(A)
        await outbox.take()
        found = await outbox.deliveries(A)
        later = await outbox.put(A)
        await outbox.settle(A, delivered=found)
        assert [one.seq for one in await outbox.deliveries(A)] == [later]
        assert await outbox.take() == A

    async def test_nothing_due_is_nothing_to_take(self, outbox: Outbox) -> None:
        await outbox.put(A)
        await outbox.take()
        (one,) = await outbox.deliveries(A)
        await outbox.settle(A, postponed=[one._replace(attempts=1, due=500.0, error="x")])
        assert await outbox.take(now=499.0) is None
        assert await outbox.take(now=500.0, expires=600.0) == A
        assert await outbox.deliveries(A) == [one._replace(attempts=1, due=500.0, error="x")]

    async def test_a_settlement_is_all_or_nothing(self, outbox: Outbox) -> None:
        await outbox.put(A, ids=["f", "g"])
        await outbox.take()
        first, second = before = await outbox.deliveries(A)
        with pytest.raises(ClaimsLost):
            await outbox.settle(A, "stranger", 500.0, delivered=[first], postponed=[second._replace(attempts=1)])
        assert await outbox.deliveries(A) == before
        assert [state.owner for state in await outbox.lanes()] == ["w"]

    async def test_two_workers_never_get_one_lane(self, outbox: Outbox, storages: StorageFactory) -> None:
        numbers = range(8)
        await outbox.put(*(Lane("index", number) for number in numbers))
        twins = [Outbox(storages.again(outbox.storage)) if storages.persistent else outbox for _ in range(4)]

        async def work(place: int) -> list[Lane]:
            taken = []
            while (lane := await twins[place].take(f"w{place}")) is not None:
                taken.append(lane)
            return taken

        async def in_thread(place: int) -> list[Lane]:
            return await asyncio.to_thread(lambda: run(work(place)))

        lists = await asyncio.gather(*map(work if outbox.storage.is_async else in_thread, range(4)))
        assert sorted(lane for taken in lists for lane in taken) == [Lane("index", number) for number in numbers]

    async def test_namespaces_share_no_outbox(self, outbox: Outbox) -> None:
        await outbox.put(A)
        other = Outbox(outbox.storage, "n2")
        assert await other.lanes() == []
        assert await other.take() is None
        await outbox.take()
        await other.put(A)
        assert await other.take("w2") == A

    async def test_many_deliveries(self, outbox: Outbox) -> None:
        await outbox.put(A, B, ids=[f"f{number}" for number in range(3000)])
        assert [state.pending for state in await outbox.lanes()] == [3000, 3000]
        assert await outbox.take() == A
        few = await outbox.deliveries(A, 10)
        await outbox.settle(A, delivered=few)
        assert [state.pending for state in await outbox.lanes()] == [2990, 3000]


__all__ = ["TestOutbox"]
