"""The facts as they were when a session stood at another place of its history."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from memstate_core import moves
from memstate_core.changes import Images, images_of, plan_move, touched
from memstate_core.engine import Engine, Locate
from memstate_core.facts import Change, StoredFact, Transaction
from memstate_core.intents import Workspace
from memstate_core.protocols import Selection, StorageTransaction
from memstate_core.values import check_identifier


def located(session_id: str | None, target: str | Transaction | None) -> Locate:
    """A place of a session: a transaction or its id, a savepoint, a mark; None: before its first transaction."""
    check_identifier("session_id", session_id, optional=True)

    async def locate(tx: StorageTransaction) -> int:
        return 0 if target is None else await moves.resolve(tx, session_id, target, None)

    return locate


class Past:
    """Reads facts as if a session stood at another place; nothing is written.

    Facts that other sessions have changed since are as they are now.
    """

    def __init__(self, engine: Engine, session_id: str | None, locate: Locate) -> None:
        self.engine = engine
        self.session_id = session_id
        self._locate = locate

    async def overlay(self, tx: StorageTransaction) -> dict[str, StoredFact | None]:
        """The facts that were other than they are now (None: not there)."""
        position = await tx.position(self.session_id)
        up, down = await moves.between(tx, position.head, await self._locate(tx))
        path = [*up, *down]
        facts = await tx.facts(touched(path))
        step = plan_move(up, down, {id_: fact.version for id_, fact in facts.items()})
        wanted = [(id_, version) for id_, version in step.targets.items() if version]
        images = await tx.versions(wanted) if wanted else {}
        return {id_: images[id_, version] if version else None for id_, version in step.targets.items()}

    async def _space(self, tx: StorageTransaction) -> Workspace:
        space = await self.engine.workspace(tx)
        overlay = await self.overlay(tx)
        now = await tx.facts(list(overlay))
        for id_, fact in overlay.items():
            space.base[id_] = now.get(id_)
            space.now[id_] = fact
        return space

    async def _read(self, work: Callable[[StorageTransaction], Awaitable[Any]]) -> Any:
        await self.engine.ready()
        return await self.engine.storage.read(self.engine.namespace, work, snapshot=True)

    async def get(self, fact_id: str) -> StoredFact | None:
        check_identifier("fact_id", fact_id)

        async def work(tx: StorageTransaction) -> StoredFact | None:
            return await (await self._space(tx)).get(fact_id)

        found: StoredFact | None = await self._read(work)
        return found

    async def select(self, selection: Selection) -> list[StoredFact]:
        async def work(tx: StorageTransaction) -> list[StoredFact]:
            return await (await self._space(tx)).select(selection)

        found: list[StoredFact] = await self._read(work)
        return found

    async def count(self, selection: Selection) -> int:
        async def work(tx: StorageTransaction) -> int:
            return await (await self._space(tx)).count(selection)

        found: int = await self._read(work)
        return found


async def difference(engine: Engine, session_id: str | None, before: Locate, after: Locate) -> list[Change]:
    """What became of each fact on the way from one place of a session to another."""

    async def work(tx: StorageTransaction) -> tuple[Mapping[str, tuple[int, int]], Images]:
        up, down = await moves.between(tx, await before(tx), await after(tx))
        ends: dict[str, tuple[int, int]] = {}
        for entries, forward in ((up, False), (down, True)):
            for entry in entries:
                for fact_id, old, new in entry.changes:
                    here, there = (old, new) if forward else (new, old)
                    ends[fact_id] = (ends[fact_id][0] if fact_id in ends else here, there)
        return ends, await tx.versions(images_of([*up, *down]))

    await engine.ready()
    ends, images = await engine.storage.read(engine.namespace, work, snapshot=True)
    return [
        Change(id_, _fact(engine, images, id_, old), _fact(engine, images, id_, new))
        for id_, (old, new) in ends.items()
        if old != new
    ]


def _fact(engine: Engine, images: Images, fact_id: str, version: int) -> Any:
    image = images.get((fact_id, version))
    return image.to_fact(engine.registry.decode(image)) if image is not None else None
