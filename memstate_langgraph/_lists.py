"""How a list channel is stored: what is new in it, and which of its items another version has already.

A version of a list names a *base*, an earlier version in the same thread, and says how it is put together: runs of the
base's items, and items of its own. A growing list so writes each item once, whoever appends to it, and a checkpoint on
another branch shares what came before the fork. When most of what lies behind a version is not in use any more, it is
written whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from memstate_langgraph._fingerprint import Fingerprint

# A piece is a run (start, count) of the base's items, or an item as msgpack bytes.
Piece = tuple[int, int] | bytes

_SHORT: Final = 8  # so many versions behind one cost nothing to speak of
_SLACK: Final = 4096


class ListVersion(NamedTuple):
    """A version of a list: all its items, and what reading it costs.

    ``size`` is how many bytes they are. ``lowest`` is the lowest of the keys behind it and its own, ``depth`` how many
    there are, ``stored`` the bytes of all items in them. ``fingerprint`` is that of the values that the items were made
    from, when it is known.
    """

    key: str
    items: tuple[bytes, ...]
    size: int
    lowest: str
    depth: int
    stored: int
    fingerprint: Fingerprint | None = None


class ListRecord(NamedTuple):
    """What is stored of a version."""

    base: str | None
    pieces: list[Any]
    lowest: str
    depth: int
    stored: int


def pieces_of(items: Sequence[bytes], base: Sequence[bytes]) -> list[Piece]:
    """How ``items`` are put together from those of ``base`` and new ones."""
    if base and items[: len(base)] == base:
        return [(0, len(base)), *items[len(base) :]]
    pieces: list[Piece] = []
    places: dict[bytes, int] | None = None
    start = count = 0
    for item in items:
        following = start + count
        if following < len(base) and base[following] == item:
            count += 1
            continue
        if places is None:
            places = {one: place for place, one in reversed(list(enumerate(base)))}
        place = places.get(item)
        if count:
            pieces.append((start, count))
        if place is None:
            pieces.append(item)
            count = 0
            start = following
        else:
            start, count = place, 1
    if count:
        pieces.append((start, count))
    return pieces


def next_version(
    key: str, items: tuple[bytes, ...], base: ListVersion | None, fingerprint: Fingerprint | None
) -> tuple[ListVersion, ListRecord]:
    """A new version, and its record."""
    pieces = pieces_of(items, base.items if base is not None else ())
    new = sum([len(piece) for piece in pieces if isinstance(piece, bytes)])
    runs = [piece for piece in pieces if isinstance(piece, tuple)]
    if base is None or not runs:
        version = ListVersion(key, items, new, key, 1, new, fingerprint)
        return version, ListRecord(None, list(items), key, 1, new)
    size = base.size + new if runs == [(0, len(base.items))] else sum(map(len, items))
    stored = base.stored + new
    if base.depth < _SHORT or stored <= 2 * size + _SLACK:
        version = ListVersion(key, items, size, min(base.lowest, key), base.depth + 1, stored, fingerprint)
        return version, ListRecord(base.key, list(pieces), version.lowest, version.depth, stored)
    return ListVersion(key, items, size, key, 1, size, fingerprint), ListRecord(None, list(items), key, 1, size)


def version_of(key: str, record: ListRecord, base: ListVersion | None) -> ListVersion:
    """A stored version, from its record and its base."""
    known: Sequence[bytes] = base.items if base is not None else ()
    items: list[bytes] = []
    size = 0
    for piece in record.pieces:
        if isinstance(piece, bytes):
            items.append(piece)
            size += len(piece)
        else:
            start, count = piece
            run = known[start : start + count]
            items += run
            size += base.size if base is not None and count == len(known) else sum(map(len, run))
    return ListVersion(key, tuple(items), size, record.lowest, record.depth, record.stored)
