"""Which of a list's items are still as they were stored, told at a fraction of what encoding them costs.

A node may change a message in place, so an item that is the same object need not be the same value. Its fields are
therefore compared with what they were: a message whose fields are texts, None and empty containers with a copy of them,
which takes a look at each; one with more in it (numbers, which are equal to others that are stored otherwise, and
containers, whose order counts) by its fields as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from operator import attrgetter
from typing import Any, Final, NamedTuple

import ormsgpack

_fields_of: Final = attrgetter("__dict__")
_extra_of: Final = attrgetter("__pydantic_extra__")
_NOTHING: Final[dict[type, Any]] = {dict: {}, list: []}

# Without any of the options that encode other objects: two of them could look the same.
_EXACT: Final = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)

# Whether a type that was met is one of LangChain's messages, which are no more than their fields.
_are_messages: Final[dict[type, bool]] = {}


class Fingerprint(NamedTuple):
    """What the items of a list were.

    ``fields`` has copies where ``is_rich`` says no, and else the items' own fields, which ``packed`` has as bytes.
    ``is_plain``: some items are no messages, and stand for their own fields.
    """

    kinds: list[type]
    fields: list[Any]
    extras: list[Any]
    is_rich: list[bool]
    packed: bytes
    is_plain: bool

    def fits(self, values: Sequence[Any]) -> bool:
        """Whether a list begins with these items, none of which has changed."""
        count = len(self.kinds)
        head = values[:count]
        if list(map(type, head)) != self.kinds:
            return False
        fields, extras = _looked_at(head, self.is_plain)
        try:
            return (
                fields == self.fields
                and extras == self.extras
                and self.packed == _packed(fields, extras, self.is_rich)
            )
        except Exception:  # whatever comparing or packing what was put in raises, it is not what it was
            return False

    def unchanged(self, values: Sequence[Any]) -> list[bool]:
        """For each value, whether it is known to be what the item in its place was; rich ones are not looked into."""
        return [
            not rich and type(value) is kind and _is(value, kind, fields, extra)
            for value, kind, fields, extra, rich in zip(
                values, self.kinds, self.fields, self.extras, self.is_rich, strict=False
            )
        ]

    def joined(self, other: Fingerprint) -> Fingerprint:
        """That of a list that goes on with other items."""
        return Fingerprint(
            self.kinds + other.kinds,
            self.fields + other.fields,
            self.extras + other.extras,
            self.is_rich + other.is_rich,
            self.packed + other.packed,
            self.is_plain or other.is_plain,
        )


def fingerprint_of(values: Sequence[Any]) -> Fingerprint | None:
    """The fingerprint of a list; None: it has something in it that can only be encoded.

    To be taken before the values are encoded, as they may be changed meanwhile: so it is found next time.
    """
    kinds = list(map(type, values))
    is_plain = not all(map(_is_message, kinds))
    fields, extras = _looked_at(values, is_plain)
    known = [None if extra else _copy(kind, one) for kind, one, extra in zip(kinds, fields, extras, strict=True)]
    is_rich = [one is None for one in known]
    try:
        packed = _packed(fields, extras, is_rich)
    except TypeError:
        return None
    fields = [one if copy is None else copy for one, copy in zip(fields, known, strict=True)]
    # Empty ones are filled in place.
    extras = [_NOTHING[dict] if extra == {} else extra for extra in extras]
    return Fingerprint(kinds, fields, extras, is_rich, packed, is_plain)


def _is_message(kind: type) -> bool:
    found = _are_messages.get(kind)
    if found is None:
        found = _are_messages[kind] = kind.__module__.startswith("langchain_core.messages.")
    return found


def _looked_at(values: Sequence[Any], is_plain: bool) -> tuple[list[Any], list[Any]]:
    """The fields of values, and what else was put into them; what is no message stands for itself."""
    if not is_plain:
        return list(map(_fields_of, values)), list(map(_extra_of, values))
    are_messages = [_is_message(type(value)) for value in values]
    return (
        [_fields_of(value) if is_message else value for value, is_message in zip(values, are_messages, strict=True)],
        [_extra_of(value) if is_message else None for value, is_message in zip(values, are_messages, strict=True)],
    )


def _copy(kind: type, fields: Any) -> Any:
    """The fields as they are now, with nothing in them that can change; None: they are rich."""
    if kind is str:
        return fields
    if not _is_message(kind):
        return None
    copy = fields.copy()
    for name, value in copy.items():
        if value is None or type(value) is str:
            continue
        if (type(value) is dict or type(value) is list) and not value:
            copy[name] = _NOTHING[type(value)]
        else:
            return None
    return copy


def _packed(fields: Iterable[Any], extras: Iterable[Any], is_rich: Sequence[bool]) -> bytes:
    """The rich ones among the fields as bytes, that of a list beginning with those of its beginnings.

    :raises TypeError: they have something in them that is no plain data.
    """
    if True not in is_rich:
        return b""
    rich = zip(compress(fields, is_rich), compress(extras, is_rich), strict=True)
    flat = [part for pair in rich for part in pair]
    packed = ormsgpack.packb(flat, option=_EXACT)
    return packed[1 if len(flat) < 16 else 3 if len(flat) < 65536 else 5 :]


def _is(value: Any, kind: type, fields: Any, extra: Any) -> bool:
    try:
        if not _is_message(kind):
            return bool(value == fields)
        return bool(_fields_of(value) == fields and _extra_of(value) == extra)
    except Exception:
        return False
