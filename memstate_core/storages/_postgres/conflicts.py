"""What is in the way of a batch that was refused, where its work did not look at it and so will not mind it."""

from __future__ import annotations

from memstate_core.errors import ConflictError
from memstate_core.protocols import Batch, StorageTransaction
from memstate_core.storages._places import shared_place
from memstate_core.storages._postgres.parts import Ground


async def conflict_of(now: StorageTransaction, batch: Batch, ground: Ground) -> ConflictError | None:
    """Why trying again cannot help, if it cannot: a fact has moved on, or its id or singleton place is taken."""
    unseen = {
        change.fact_id: change
        for change in batch.changes
        if change.fact_id not in ground.facts and change.fact_id not in ground.selected
    }
    places = {
        change.after.singleton: change.fact_id
        for change in batch.changes
        if change.after is not None
        and change.after.singleton is not None
        and change.after.singleton not in ground.places
    }
    facts = await now.facts(list(unseen))
    latest = await now.latest_versions(list(unseen))
    for id_, change in unseen.items():
        known = change.before.version if change.before is not None else 0
        actual = facts[id_].version if id_ in facts else 0
        used = not batch.restores and change.after is not None and change.after.version <= latest.get(id_, 0)
        if actual != known or used:
            return ConflictError(
                f"fact {id_!r} is at version {actual}, and was at {known} when it was read; read it again",
                fact_id=id_,
                expected_version=known,
                actual_version=actual,
            )
    ours = {change.fact_id for change in batch.changes}
    for place, holder in (await now.holders(list(places))).items():
        if holder.id not in ours:
            return shared_place(place, holder.id, places[place])
    return None


def refuse_one_place_for_two(batch: Batch) -> None:
    places: dict[str, str] = {}
    for change in batch.changes:
        after = change.after
        if after is not None and after.singleton is not None:
            other = places.setdefault(after.singleton, after.id)
            if other != after.id:
                raise shared_place(after.singleton, other, after.id)
