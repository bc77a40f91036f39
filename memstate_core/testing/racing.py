"""Many writers at once: threads for sync stores, tasks for async ones, on one storage object and on several."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from memstate_core import BusyError, ConflictError, Fact
from memstate_core.testing.face import Face
from memstate_core.testing.factories import StorageFactory, Stores, StoreTests
from memstate_core.testing.index import Index, index_hook
from memstate_core.testing.models import Draft, Law, User

_WRITERS = 6


class TestRacing(StoreTests):
    """Nothing is lost, and nothing is there twice, whatever races."""

    @pytest.fixture(params=["plain", "hooks"])
    def faces(self, request: pytest.FixtureRequest, stores: Stores, storages: StorageFactory) -> list[Face]:
        """Stores that write beside each other: two on one storage, the others on storages of their own, if possible."""
        first = storages.new()
        self.index = Index()
        made = []
        for number in range(_WRITERS):
            storage = first if number < 2 else storages.again(first)
            hooks = [index_hook(self.index, storage.is_async)] if request.param == "hooks" else []
            made.append(stores.open(hooks, storage=storage))
        return made

    async def race(self, faces: list[Face], write: Callable[[Face, int], Coroutine[Any, Any, Any]]) -> list[Any]:
        """What each writer returned or raised."""
        tasks = [face.beside(lambda face=face, n=n: write(face, n)) for n, face in enumerate(faces)]  # type: ignore[misc]
        return await asyncio.gather(*tasks, return_exceptions=True)

    async def check(self, face: Face) -> None:
        """The journal's changes follow each other, and the index is what storage says."""
        versions: dict[str, int] = {}
        for one in reversed(await face.history(limit=None)):
            for change in one.changes:
                before = change.before.version if change.before else 0
                assert versions.get(change.fact_id, 0) == before, one
                versions[change.fact_id] = change.after.version if change.after else 0
        facts = {fact["id"]: fact["version"] for fact in await face.query()}
        assert {id_: version for id_, version in versions.items() if version} == facts
        assert await face.claims() == []
        for drift in await face.verify():
            assert not drift

    async def test_one_fact_per_singleton_value(self, faces: list[Face]) -> None:
        async def write(face: Face, number: int) -> str:
            id_: str = await face.commit_model(User(email="a", name=str(number)), session_id=str(number))
            return id_

        ids = await self.race(faces, write)
        assert set(ids) == {(await faces[0].query())[0]["id"]}
        (fact,) = await faces[0].query()
        assert fact["version"] == _WRITERS
        await self.check(faces[0])

    async def test_patches_of_different_fields_all_survive(self, faces: list[Face]) -> None:
        await faces[0].commit(Fact("note", {"text": "t", "data": {}}, id="n"))

        async def write(face: Face, number: int) -> None:
            for turn in range(5):
                await face.update("n", {"data": {f"{number}-{turn}": turn}}, deep=True)

        assert await self.race(faces, write) == [None] * _WRITERS
        fact = await faces[0].get("n")
        assert len(fact["payload"]["data"]) == 5 * _WRITERS
        assert fact["version"] == 5 * _WRITERS + 1
        await self.check(faces[0])

    async def test_of_those_that_expect_one_version_one_wins(self, faces: list[Face]) -> None:
        await faces[0].commit(Fact("note", {"text": "t"}, id="n"))
        results = await self.race(faces, lambda face, n: face.update("n", {"rank": n}, expected_version=1))
        assert results.count("n") == 1
        assert sum(isinstance(result, ConflictError) for result in results) == _WRITERS - 1
        assert (await faces[0].get("n"))["payload"]["rank"] == results.index("n")
        await self.check(faces[0])

    async def test_counters_lose_nothing(self, faces: list[Face]) -> None:
        await faces[0].commit(Fact("note", {"text": "t", "rank": 0}, id="n"))

        async def write(face: Face, number: int) -> None:
            done = 0
            while done < 4:
                try:
                    async with face.transaction(session_id=str(number)) as tx:
                        rank = (await tx.get("n"))["payload"]["rank"]
                        await tx.update("n", {"rank": rank + 1})
                    done += 1
                except BusyError:
                    continue

        assert await self.race(faces, write) == [None] * _WRITERS
        assert (await faces[0].get("n"))["payload"]["rank"] == 4 * _WRITERS
        await self.check(faces[0])

    async def test_an_immutable_id_is_taken_once(self, faces: list[Face]) -> None:
        results = await self.race(faces, lambda face, n: face.commit_model(Law(number=n, text="t"), "law"))
        assert results.count("law") == 1
        assert (await faces[0].get("law"))["payload"]["number"] == results.index("law")
        await self.check(faces[0])

    async def test_transactions_of_many_facts_do_not_mix(self, faces: list[Face]) -> None:
        async def write(face: Face, number: int) -> None:
            for turn in range(3):
                async with face.transaction(session_id="s") as tx:
                    for id_ in ("a", "b", "c") if number % 2 else ("c", "b", "a"):
                        await tx.commit(Fact("note", {"text": f"{number} {turn}"}, id=id_))

        assert await self.race(faces, write) == [None] * _WRITERS
        facts = await faces[0].query()
        assert len({fact["payload"]["text"] for fact in facts}) == 1
        assert {fact["version"] for fact in facts} == {3 * _WRITERS}
        await self.check(faces[0])

    async def test_rollbacks_and_commits_of_one_session(self, faces: list[Face]) -> None:
        async def write(face: Face, number: int) -> None:
            for turn in range(4):
                if number % 3:
                    await face.commit(Fact("note", {"text": f"{number} {turn}"}, session_id="s"))
                else:
                    await face.rollback("s")

        assert await self.race(faces, write) == [None] * _WRITERS
        await self.check(faces[0])
        await faces[0].redo("s", 99)
        count = await faces[0].count()
        await faces[0].rollback("s", 99)
        assert await faces[0].count() == 0
        await faces[0].redo("s", 99)
        assert await faces[0].count() == count
        await self.check(faces[0])

    async def test_promoting_and_committing(self, faces: list[Face]) -> None:
        async def write(face: Face, number: int) -> None:
            for turn in range(3):
                if number % 2:
                    await face.commit_model(Draft(topic=turn, text="t"), session_id="s")
                else:
                    try:
                        await face.promote_session("s")
                    except ConflictError:
                        await face.discard_session("s")

        assert await self.race(faces, write) == [None] * _WRITERS
        drafts = [(f["session_id"], f["payload"]["topic"]) for f in await faces[0].query()]
        assert len(set(drafts)) == len(drafts)
        await self.check(faces[0])


__all__ = ["TestRacing"]
