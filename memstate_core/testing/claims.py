"""Claims: a dead owner's are taken over, a live one's are waited for, and no index is written behind another's back."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import time
from typing import Any

import pytest

from memstate_core import BusyError, Fact, HookError
from memstate_core.owners import owning
from memstate_core.protocols import Batch, Claim
from memstate_core.testing.acts import Gate
from memstate_core.testing.face import Face, calls
from memstate_core.testing.factories import Stores, StoreTests
from memstate_core.testing.faults import Fault, FaultyHook
from memstate_core.testing.index import Entry, Index, IndexHook, index_hook

_FAR = 1e12


@functools.cache
def a_dead_process() -> str:
    """The owner of claims made by a process that has ended since."""
    code = "from memstate_core.owners import owning\nwith owning() as owner: print(owner)"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


async def claim(store: Face, owner: str, expires: float, *keys: str, hooks: tuple[str, ...] = ("index",)) -> None:
    """What a transaction leaves behind that ended, or stopped, between claiming and deciding."""
    claims = [Claim(key, owner, expires, hooks) for key in keys]
    await store.storage.write(store.store.namespace, lambda tx: tx.write(Batch(claims=claims)))


class TestOwners(StoreTests):
    """Who still lives, and who does not."""

    async def interrupted(self, stores: Stores, owner: str, expires: float) -> tuple[Face, Index]:
        """A store in which a transaction of ``owner`` stopped after it had told the index of version 2 of fact a."""
        storage = stores.storages.new()
        index = Index()
        store = stores.open([index_hook(index, storage.is_async)], storage=storage, claim_timeout=0.05)
        await store.commit(Fact("note", {"text": "old"}, id="a", session_id="s"))
        index.entries["a"] = Entry(2, "never committed", "note", "s")
        index.entries["b"] = Entry(1, "never committed", "note", "s")
        await claim(store, owner, expires, "fact:a", "fact:b", "key:x", "session:=s")
        return store, index

    @pytest.mark.parametrize("whose", ["a dead process", "an ended lease", "a transaction that was killed"])
    async def test_what_the_dead_left_behind_is_healed(self, stores: Stores, whose: str) -> None:
        with owning() as over:
            pass
        owner, expires = {
            "a dead process": (a_dead_process(), _FAR),
            "an ended lease": ("elsewhere|1|1|x", time.time() - 1),
            "a transaction that was killed": (over, _FAR),
        }[whose]
        store, index = await self.interrupted(stores, owner, expires)
        recovered = await store.recover()
        assert (set(recovered.healed), recovered.in_doubt) == ({"a", "b"}, ())
        assert index.versions() == {"a": 1}
        assert await store.claims() == []

        store, index = await self.interrupted(stores, owner, expires)
        assert (await store.search("never committed", limit=1))[0].fact.payload["text"] == "old"
        assert index.versions() == {"a": 1}
        assert await store.claims() == []

        store, index = await self.interrupted(stores, owner, expires)
        await store.commit(Fact("note", {"text": "unrelated"}, id="u"))
        assert index.versions() == {"a": 1, "u": 1}
        assert await store.claims() == []

        store, index = await self.interrupted(stores, owner, expires)
        await store.update("a", {"text": "new"})
        assert (index.versions(), index.entries["a"].text) == ({"a": 2}, "new")
        assert await store.claims() == []

        store, index = await self.interrupted(stores, owner, expires)
        again = await stores.reopen(store, [index_hook(index, store.is_async)])
        assert (await again.get("a"))["payload"]["text"] == "old"
        assert index.versions() == {"a": 1}

        store, index = await self.interrupted(stores, owner, expires)
        assert await store.rollback("s") != []
        assert (index.versions(), await store.claims()) == ({}, [])

    @pytest.mark.parametrize("whose", ["another machine", "this process"])
    async def test_what_the_living_hold_is_waited_for(self, stores: Stores, whose: str) -> None:
        with owning() as mine:
            owner = {"another machine": "elsewhere|1|1|x", "this process": mine}[whose]
            store, index = await self.interrupted(stores, owner, time.time() + 60)
            assert await store.recover() == ((), (), ())
            for call in calls(
                lambda: store.update("a", {"text": "new"}),
                lambda: store.commit(Fact("note", {"text": "new"}, id="b")),
                lambda: store.rollback("s"),
                lambda: store.savepoint("s", "here"),
                lambda: store.discard_session("s"),
            ):
                with pytest.raises(BusyError, match="being changed"):
                    await call()
            assert (await store.get("a"))["payload"]["text"] == "old"
            assert not (await store.verify())[0]
            await store.commit(Fact("note", {"text": "free"}, id="c"))
            assert index.entries["a"].text == "never committed"

    async def test_a_claim_is_waited_for_until_its_lease_ends(self, stores: Stores) -> None:
        store, index = await self.interrupted(stores, "elsewhere|1|1|x", time.time() + 0.2)
        patient = stores.open([index_hook(index, store.is_async)], storage=store.storage, claim_timeout=10)
        await patient.update("a", {"text": "new"})
        assert index.versions() == {"a": 2}
        assert await patient.claims() == []

    async def test_nonsense_for_an_owner_waits_for_its_lease(self, stores: Stores) -> None:
        for owner in ("", "x", "a|b", "host|pid|started|more|parts", "|||"):
            store, _ = await self.interrupted(stores, owner, time.time() + 60)
            with pytest.raises(BusyError):
                await store.update("a", {"text": "new"})
            await claim(store, owner, 0.0, "fact:a", "fact:b", "key:x", "session:=s")
            await store.update("a", {"text": "new"})

    async def test_claims_for_hooks_that_are_not_here_stay(self, stores: Stores) -> None:
        store, index = await self.interrupted(stores, a_dead_process(), _FAR)
        await claim(store, a_dead_process(), _FAR, "fact:x", hooks=("index", "elsewhere"))
        recovered = await store.recover()
        assert (set(recovered.healed), recovered.in_doubt, recovered.missing_hooks) == (
            {"a", "b"},
            ("x",),
            ("elsewhere",),
        )
        with pytest.raises(BusyError, match="elsewhere"):
            await store.commit(Fact("note", {"text": "x"}, id="x"))
        both = stores.open(
            [index_hook(index, store.is_async), index_hook(Index(), store.is_async, name="elsewhere")],
            storage=store.storage,
        )
        await both.commit(Fact("note", {"text": "x"}, id="x"))
        assert await both.claims() == []

    async def test_healing_tells_only_what_a_hook_wants(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index = Index()
        store = stores.open([index_hook(index, storage.is_async, target_types={"note"})], storage=storage)
        await store.commit(Fact("note", {"text": "wanted"}, id="a"))
        await store.commit(Fact("memo", {"text": "not wanted"}, id="b"))
        await claim(store, a_dead_process(), _FAR, "fact:a", "fact:b", "fact:c")
        index.batches.clear()
        await store.recover()
        assert index.versions() == {"a": 1}
        for batch in index.batches:
            assert all(change.after is None or change.after.type == "note" for change in batch)

    async def test_many_claims_are_healed_at_once(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index = Index()
        store = stores.open([index_hook(index, storage.is_async)], storage=storage)
        async with store.transaction() as tx:
            for number in range(1200):
                await tx.commit(Fact("note", {"text": "t"}, id=str(number)))
        index.entries.clear()
        await claim(store, a_dead_process(), _FAR, *(f"fact:{number}" for number in range(1200)))
        assert len((await store.recover()).healed) == 1200
        assert len(index.entries) == 1200
        assert await store.claims() == []


class TestLeases(StoreTests):
    """As long as somebody works, the lease is renewed, whatever the work."""

    LEASE = 0.6

    @pytest.fixture
    def gated(self, stores: Stores) -> tuple[Face, FaultyHook, Index, Face]:
        """A store with a short lease, its hook and index, and another store that would take over what is abandoned."""
        storage = stores.storages.new()
        index = Index()
        faulty = FaultyHook(IndexHook(index))
        store = stores.open([faulty], storage=storage, lease=self.LEASE)
        return store, faulty, index, stores.open([IndexHook(index)], storage=storage, claim_timeout=0.02)

    async def hold(self, other: Face, gate: Gate) -> None:
        """Wait for longer than a lease, and see that nothing was taken over."""
        await gate.reached()
        try:
            owners = {one.owner for one in await other.claims()}
            assert len(owners) == 1
            end = time.monotonic() + 1.5 * self.LEASE
            while time.monotonic() < end:
                held = await other.claims()
                assert {one.owner for one in held} == owners
                # As another machine would see it, which cannot ask whether the owner lives.
                assert all(one.expires > time.time() for one in held)
                await asyncio.sleep(0.02)
            with pytest.raises(BusyError):
                await other.update("n", {"text": "theirs"})
        finally:
            gate.open()

    @pytest.mark.parametrize("what", ["apply", "bring back", "heal", "reindex"])
    async def test_renewed_while_a_hook_is_slow(self, gated: tuple[Face, FaultyHook, Index, Face], what: str) -> None:
        store, faulty, index, other = gated
        gate = Gate()
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        slow = Fault(1, "before", gate)
        if what == "apply":
            faulty.faults["apply"] = [slow]
            task = store.beside(lambda: store.update("n", {"text": "new"}))
        elif what == "bring back":
            faulty.faults["apply"] = [Fault(1, "after"), Fault(2, "before", gate)]
            task = store.beside(lambda: store.update("n", {"text": "new"}))
        elif what == "heal":
            faulty.faults["apply"] = [Fault(1, "after"), Fault(2, "before")]
            with pytest.raises(HookError):
                await store.update("n", {"text": "new"})
            faulty.faults["apply"] = [slow]
            task = store.beside(store.recover)
        else:
            faulty.faults["apply"] = [slow]
            task = store.beside(store.reindex)
        await self.hold(other, gate)
        if what == "bring back":
            with pytest.raises(HookError):
                await task
        else:
            await task
        await other.update("n", {"rank": 1})
        fact = await store.get("n")
        assert fact["payload"]["text"] == ("new" if what == "apply" else "old")
        assert (index.versions(), index.entries["n"].text) == ({"n": fact["version"]}, fact["payload"]["text"])
        assert await store.claims() == []

    async def test_a_transaction_that_was_taken_for_dead_is_made_anew(
        self, gated: tuple[Face, FaultyHook, Index, Face]
    ) -> None:
        """A machine that sleeps for longer than its lease finds its claims gone, and starts again."""
        store, faulty, index, other = gated
        gate = Gate()
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        faulty.faults["apply"] = [Fault(1, "after", gate)]
        task = store.beside(lambda: store.update("n", {"text": "new"}))
        await gate.reached()
        held = await other.claims()
        # Nobody can tell from outside of this process that the owner lives; its lease is said to have ended.
        await claim(other, "elsewhere|1|1|x", 0.0, *(one.key for one in held))
        await other.update("n", {"rank": 7})
        gate.open()
        await task
        fact = await store.get("n")
        assert (fact["payload"]["text"], fact["payload"]["rank"], fact["version"]) == ("new", 7, 3)
        assert (index.versions(), index.entries["n"].text) == ({"n": 3}, "new")
        assert await store.claims() == []

    async def test_what_was_taken_over_and_cannot_be_mended_stays_in_doubt(
        self, gated: tuple[Face, FaultyHook, Index, Face]
    ) -> None:
        store, faulty, index, other = gated
        gate = Gate()
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        faulty.faults["apply"] = [Fault(1, "after", gate), Fault(2, "before", lasting=True)]
        task = store.beside(lambda: store.update("n", {"text": "new"}))
        await gate.reached()
        held = await other.claims()
        await claim(other, "elsewhere|1|1|x", 0.0, *(one.key for one in held))
        await other.update("n", {"rank": 7})
        gate.open()
        with pytest.raises(HookError):
            await task
        faulty.faults.clear()
        await store.settle()
        fact = await store.get("n")
        assert (index.versions(), index.entries["n"].text) == ({"n": fact["version"]}, fact["payload"]["text"])

    async def test_mending_waits_for_who_is_at_work_and_gives_up(
        self, gated: tuple[Face, FaultyHook, Index, Face]
    ) -> None:
        store, faulty, index, other = gated
        gate = Gate()
        for id_ in "ab":
            await store.commit(Fact("note", {"text": "old"}, id=id_))
        faulty.faults["apply"] = [Fault(1, "before", gate)]
        task = store.beside(lambda: store.update("a", {"text": "new"}))
        await gate.reached()
        index.entries.pop("b")
        with pytest.raises(BusyError, match="'a'"):
            await other.reindex()
        assert index.versions()["b"] == 1  # what nobody holds is mended first
        gate.open()
        await task
        assert await other.reindex() == 2
        assert index.versions() == {"a": 2, "b": 1}

    async def test_verify_leaves_out_what_moves_meanwhile(
        self, gated: tuple[Face, FaultyHook, Index, Face], stores: Stores
    ) -> None:
        store, faulty, index, _ = gated
        gate = Gate()
        writer = stores.open([index_hook(index, store.is_async)], storage=store.storage)
        for id_ in "abc":
            await store.commit(Fact("note", {"text": "old"}, id=id_))
        index.entries.pop("c")
        faulty.faults["scan"] = [Fault(1, "after", gate)]
        task = store.beside(store.verify)
        await gate.reached()
        await writer.delete("a")
        for number in range(20):
            await writer.update("b", {"rank": number})
        gate.open()
        (drift,) = await task
        assert (drift.missing, drift.stale, drift.orphaned) == (("c",), (), ())

    @pytest.mark.parametrize("call", ["reindex", "repair"])
    async def test_mending_does_not_overwrite_what_is_committed_meanwhile(
        self, gated: tuple[Face, FaultyHook, Index, Face], call: str, stores: Stores
    ) -> None:
        store, faulty, index, _ = gated
        gate = Gate()
        for id_ in "ab":
            await store.commit(Fact("note", {"text": "old"}, id=id_))
        index.entries.clear()
        faulty.faults["apply"] = [Fault(1, "before", gate)]
        task = store.beside(getattr(store, call))
        await gate.reached()
        other = stores.open([IndexHook(index)], storage=store.storage)
        updates: list[Any] = [other.beside(lambda id_=id_: other.update(id_, {"text": "new"})) for id_ in "ab"]  # type: ignore[misc]
        updates.append(other.beside(lambda: other.commit(Fact("note", {"text": "c"}, id="c"))))
        await asyncio.sleep(0.05)
        gate.open()
        await asyncio.gather(task, *updates)
        assert index.versions() == {"a": 2, "b": 2, "c": 1}
        assert not (await store.verify())[0]
        assert await store.claims() == []


__all__ = ["TestLeases", "TestOwners"]
