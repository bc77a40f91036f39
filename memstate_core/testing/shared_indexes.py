"""What a hook must do whose index several tenants share: those of it that have ``for_namespace``."""

from __future__ import annotations

from typing import Any

from memstate_core import Fact
from memstate_core.protocols import Scope
from memstate_core.testing.face import Face, maybe
from memstate_core.testing.factories import HookFactory, HookTests, Stores
from memstate_core.testing.hooks import scan


class TestSharedIndex(HookTests):
    """Two tenants on one storage and one index, with facts of the same ids."""

    def tenants(self, stores: Stores, make_hook: HookFactory) -> tuple[Face, Face, Any]:
        hook, storage = make_hook.new(), stores.storages.new()
        one, two = (stores.open([hook], storage=storage, namespace=name) for name in ("default", "two"))
        return one, two, hook

    async def test_nothing_crosses(self, stores: Stores, make_hook: HookFactory) -> None:
        one, two, hook = self.tenants(stores, make_hook)
        for store, text in ((one, "green tea"), (two, "black coffee")):
            for id_ in ("1", "2", "two"):
                await store.commit(Fact("note", {"text": f"{text} {id_}", "label": id_}, id=id_, session_id="s"))
        await two.update("1", {"text": "espresso"})
        await two.delete("2")
        assert await scan(hook) == {"1": 1, "2": 1, "two": 1}
        assert await scan(hook.for_namespace("two")) == {"1": 2, "two": 1}
        for options in ({}, {"session_id": "s"}, {"typename": "note"}, {"filters": {"label": {"$in": ["1", "two"]}}}):
            for query in ("green tea", "espresso"):
                found = {one.fact.payload["text"] for one in await two.search(query, limit=9, **options)}
                assert found == {"espresso", "black coffee two"}, options
        await one.discard_session("s")
        assert await one.search("espresso") == []
        assert len(await two.search("espresso")) == 2
        await two.rollback("s")
        assert await scan(hook.for_namespace("two")) == {"1": 2, "2": 1, "two": 1}

    async def test_the_limit_is_reached_beside_many_of_another_tenant(
        self, stores: Stores, make_hook: HookFactory
    ) -> None:
        one, two, hook = self.tenants(stores, make_hook)
        async with one.transaction() as tx:
            for number in range(100):
                await tx.commit(Fact("note", {"text": f"green tea {number}", "rank": number % 2}))
        async with two.transaction() as tx:
            for number in range(4):
                await tx.commit(Fact("note", {"text": f"far away {number}", "rank": number % 2}, id=str(number)))
        for options, expected in (
            ({}, {"0", "1", "2", "3"}),
            ({"session_id": None}, {"0", "1", "2", "3"}),
            ({"typename": "note"}, {"0", "1", "2", "3"}),
            ({"filters": {"rank": 1}}, {"1", "3"}),
        ):
            found = await two.search("green tea", limit=len(expected), **options)
            assert {one.fact.id for one in found} == expected, options
        for scope in (Scope(), Scope("note"), Scope(None, None), Scope("note", None)):
            proposed = await maybe(hook.for_namespace("two").search("green tea", 4, scope))
            assert {one.fact_id for one in proposed} == {"0", "1", "2", "3"}, scope

    async def test_mending_leaves_the_others_alone(self, stores: Stores, make_hook: HookFactory) -> None:
        one, two, hook = self.tenants(stores, make_hook)
        await one.commit(Fact("note", {"text": "green tea"}, id="1"))
        await two.commit(Fact("note", {"text": "black coffee"}, id="2"))
        assert [len(drift) for store in (one, two) for drift in await store.verify()] == [0, 0]
        assert await two.reindex() == 1
        assert [len(drift) for store in (one, two) for drift in await store.repair()] == [0, 0]
        assert (await scan(hook), await scan(hook.for_namespace("two"))) == ({"1": 1}, {"2": 1})


__all__ = ["TestSharedIndex"]
