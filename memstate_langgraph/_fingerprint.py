"""Which of a list's items are still as they were stored, told at a fraction of what encoding them costs.

A node may change a message in place, so an item that is the same object need not be the same value. Its fields are
therefore compared with what they were: a message whose fields are texts, None and empty containers with a copy of them,
which takes a look at each; one with more in it (numbers, which are equal to others that are stored otherwise, and
containers, whose order counts) by its fields as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    ``fields`` has copies, but in the places in ``rich`` the items' own fields, which ``packed`` has as bytes, with what
    else was put into the items. ``is_plain``: some items are no messages, and stand for their own fields.
    """

    kinds: list[type]
    fields: list[Any]
    rich: list[int]
    packed: bytes
    is_plain: bool

    def fits(self, values: Sequence[Any]) -> bool:
        """Whether a list begins with these items, none of which has changed."""
        head = values[: len(self.kinds)]
        if list(map(type, head)) != self.kinds:
            return False
        fields = _fields(head, self.is_plain)
        try:
            if fields != self.fields:
                return False
            if not self.rich and not self.is_plain:
                return not any(map(_extra_of, head))
            extras = _extras(head)
            if any(map(extras.__getitem__, set(range(len(head))).difference(self.rich))):
                return False
            return self.packed == _packed(fields, extras, self.rich)
        except Exception:  # whatever comparing or packing what was put in raises, it is not what it was
            return False

    def unchanged(self, values: Sequence[Any]) -> list[bool]:
        """For each value, whether it is known to be what the item in its place was; rich ones are not looked into."""
        found = list(map(_is, values, self.kinds, self.fields))
        for place in self.rich:
            if place < len(found):
                found[place] = False
        return found

    def joined(self, other: Fingerprint) -> Fingerprint:
        """That of a list that goes on with other items."""
        count = len(self.kinds)
        return Fingerprint(
            self.kinds + other.kinds,
            self.fields + other.fields,
            self.rich + [count + place for place in other.rich],
            self.packed + other.packed,
            self.is_plain or other.is_plain,
        )


def fingerprint_of(values: Sequence[Any]) -> Fingerprint | None:
    """The fingerprint of a list; None: it has something in it that can only be encoded.

    To be taken before the values are encoded, as they may be changed meanwhile: so it is found next time.
    """
    kinds = list(map(type, values))
    is_plain = not all(map(_is_message, kinds))
    fields, extras = _fields(values, is_plain), _extras(values)
    copies = [None if extra else _copy(kind, one) for kind, one, extra in zip(kinds, fields, extras, strict=True)]
    rich = [place for place, copy in enumerate(copies) if copy is None]
    try:
        packed = _packed(fields, extras, rich)
    except TypeError:
        return None
    for place in rich:
        copies[place] = fields[place]
    return Fingerprint(kinds, copies, rich, packed, is_plain)


def _is_message(kind: type) -> bool:
    found = _are_messages.get(kind)
    if found is None:
        found = _are_messages[kind] = kind.__module__.startswith("langchain_core.messages.")
    return found


def _fields(values: Sequence[Any], is_plain: bool) -> list[Any]:
    """The fields of values; what is no message stands for itself."""
    if is_plain:
        return [_fields_of(value) if _is_message(type(value)) else value for value in values]
    return list(map(_fields_of, values))


def _extras(values: Sequence[Any]) -> list[Any]:
    """What was put into messages that is none of their fields."""
    return [_extra_of(value) if _is_message(type(value)) else None for value in values]


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


def _packed(fields: Sequence[Any], extras: Sequence[Any], rich: Sequence[int]) -> bytes:
    """The rich ones among the fields as bytes, that of a list beginning with those of its beginnings.

    :raises TypeError: they have something in them that is no plain data.
    """
    if not rich:
        return b""
    flat = [part for place in rich for part in (fields[place], extras[place])]
    packed = ormsgpack.packb(flat, option=_EXACT)
    return packed[1 if len(flat) < 16 else 3 if len(flat) < 65536 else 5 :]


def _is(value: Any, kind: type, fields: Any) -> bool:
    """Whether a value is what one that is not rich was."""
    if type(value) is not kind:
        return False
    try:
        return bool(_fields_of(value) == fields and not _extra_of(value) if _is_message(kind) else value == fields)
    except Exception:
        return False
