"""How a list channel is stored: what is new in it, and which of its items another version has already.

A version of a list names a *base*, an earlier version in the same thread, and says how it is put together: runs of the
base's items, and items of its own. A growing list so writes each item once, whoever appends to it, and a checkpoint on
another branch shares what came before the fork. When most of what lies behind a version is not in use any more, it is
written whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import ormsgpack

# A piece is a run (start, count) of the base's items, or an item as msgpack bytes.
Piece = tuple[int, int] | bytes

_SHORT: Final = 8  # so many versions behind one cost nothing to speak of
_SLACK: Final = 4096


class ListVersion(NamedTuple):
    """A version of a list: all its items, and what reading it costs.

    ``lowest`` is the lowest of the keys behind it and its own, ``depth`` how many there are, ``stored`` the bytes of
    all items in them. ``fingerprint`` is that of the objects that the items were made from, when it is known.
    """

    key: str
    items: tuple[bytes, ...]
    lowest: str
    depth: int
    stored: int
    fingerprint: bytes | None = None


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
    key: str, items: tuple[bytes, ...], base: ListVersion | None, fingerprint: bytes | None
) -> tuple[ListVersion, ListRecord]:
    """A new version, and its record."""
    pieces = pieces_of(items, base.items if base is not None else ())
    new = sum(len(piece) for piece in pieces if isinstance(piece, bytes))
    if base is not None and any(isinstance(piece, tuple) for piece in pieces):
        stored = base.stored + new
        if base.depth < _SHORT or stored <= 2 * sum(map(len, items)) + _SLACK:
            version = ListVersion(key, items, min(base.lowest, key), base.depth + 1, stored, fingerprint)
            return version, ListRecord(base.key, list(pieces), version.lowest, version.depth, stored)
    stored = sum(map(len, items))
    return ListVersion(key, items, key, 1, stored, fingerprint), ListRecord(None, list(items), key, 1, stored)


def items_of(record: ListRecord, base: Sequence[bytes]) -> tuple[bytes, ...]:
    """The items of a version, from its record and its base's items."""
    items: list[bytes] = []
    for piece in record.pieces:
        if isinstance(piece, bytes):
            items.append(piece)
        else:
            start, count = piece
            items += base[start : start + count]
    return tuple(items)


# The names of the kinds of messages that were met; empty for everything else.
_names: Final[dict[type, str]] = {}


def fingerprint_of(values: Sequence[Any]) -> bytes | None:
    """Bytes that are the same only for values that are stored the same; None: they can only be encoded.

    It costs a fraction of encoding. Messages are compared by their fields, so that one that was changed in place is
    seen. The fingerprint of a list begins with those of its beginnings.
    """
    plain: list[Any] = []
    for value in values:
        kind = type(value)
        name = _names.get(kind)
        if name is None:
            is_message = kind.__module__.startswith("langchain_core.messages.")
            name = _names[kind] = f"{kind.__module__}.{kind.__qualname__}" if is_message else ""
        plain.append([name, value.__dict__, value.__pydantic_extra__] if name else value)
    try:
        # Without any of the options that encode other objects: two of them could look the same.
        packed = ormsgpack.packb(plain, option=_EXACT)
    except TypeError:
        return None
    return packed[1 if len(plain) < 16 else 3 if len(plain) < 65536 else 5 :]


_EXACT: Final = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
