"""Singleton places, for storages that check them before a unique index has to."""

from __future__ import annotations

from collections.abc import Iterable

from memstate_core.errors import ConflictError


def refuse_shared_places(facts: Iterable[tuple[str, str | None]]) -> None:
    """Check (id, place) pairs of all facts of a type.

    :raises ConflictError: two facts have one place.
    """
    places: dict[str, str] = {}
    for fact_id, place in facts:
        if place is not None and places.setdefault(place, fact_id) != fact_id:
            raise shared_place(place, places[place], fact_id)


def shared_place(place: str, first: str, second: str) -> ConflictError:
    return ConflictError(f"facts {first!r} and {second!r} would have the same singleton value ({place})", fact_id=first)
