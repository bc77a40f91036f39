"""Keys of a namespace, and the members of its index.

All keys of a namespace have its name in braces, so that a Redis Cluster keeps them on one slot. ``index`` is one sorted
set whose scores are all 0: it is ordered by the bytes of its members, and UTF-8 orders as code points do. A member is a
letter, what is looked for, a NUL, and what is found; nothing that is looked for contains a NUL. Most transactions that
changed a fact are told by its versions: a member of ``F`` would be put among those of other facts, at any place.

======  ==========================================  ==============================================
letter  looked for                                  found
======  ==========================================  ==============================================
``o``   nothing                                     ordinal, fact id
``t``   type                                        ordinal, fact id
``s``   session                                     ordinal, fact id
``f``   type, path, kind and value (each a NUL on)  ordinal, fact id
``S``   session                                     seq of a transaction
``F``   fact id                                     seq of a transaction that made no version of it
``M``   mark                                        seq of a transaction
``c``   owner of a claim                            key of the claim
``r``   collection                                  key of a record
``q``   lane                                        seq and fact id of a postponed delivery
``a``   lane                                        the same, if it has failed before
``d``   lane                                        the same, behind the time when it is due
======  ==========================================  ==============================================
"""

from __future__ import annotations

import math
import struct
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from memstate_core.facts import IndexEntry
from memstate_core.filters import ABSENT, NUMBER, Range
from memstate_core.protocols import Lane

_SEQ_DIGITS: Final = 11


class Keys:
    """The keys of one namespace, encoded."""

    def __init__(self, prefix: str, namespace: str) -> None:
        # Quoted, neither contains a brace, and no two names become one. An empty pair of braces were no hash tag.
        self.base = f"{quote(prefix, safe='')}:{{{quote(namespace, safe='') or '%'}}}:"
        self.meta = self._key("meta")
        self.facts = self._key("facts")
        self.versions = self._key("versions")
        self.places = self._key("places")
        self.index = self._key("index")
        self.journal = self._key("journal")
        self.claims = self._key("claims")
        self.records = self._key("records")
        self.definitions = self._key("definitions")
        self.lanes = self._key("lanes")
        self.outbox = self._key("outbox")
        self.lock = self._key("lock")
        self.data = (
            self.meta,
            self.facts,
            self.versions,
            self.places,
            self.index,
            self.journal,
            self.claims,
            self.records,
            self.definitions,
            self.lanes,
            self.outbox,
        )

    @staticmethod
    def pattern(prefix: str) -> str:
        """What the ``meta`` of all namespaces looks like, for ``SCAN``."""
        return f"{quote(prefix, safe='')}:{{*}}:meta"

    @staticmethod
    def namespace_of(meta: bytes) -> str:
        name = meta.decode().partition("{")[2].partition("}")[0]
        return "" if name == "%" else unquote(name)

    def _key(self, name: str) -> bytes:
        return f"{self.base}{name}".encode()

    def stream(self, lane: Lane) -> bytes:
        return self._key(f"lane:{quote(lane.hook, safe='')}:{lane.number}")

    def slot(self, name: str) -> bytes:
        return self._key(f"slot:{name}")


class Span(NamedTuple):
    """A range of the index in the words of ``ZRANGEBYLEX``."""

    low: bytes
    high: bytes


def session_key(session_id: str | None) -> str:
    return "" if session_id is None else f"={session_id}"


def hex_of(seq: int) -> str:
    """A seq as texts that order as the numbers do; Lua's own numbers lose digits above 2**53."""
    return f"{seq:0{_SEQ_DIGITS}x}"


def lane_key(lane: Lane) -> str:
    return f"{lane.hook}\0{lane.number:02}"


def span(letter: str, *looked_for: str) -> Span:
    """All that is found under what is looked for."""
    start = letter + "\0".join(looked_for)
    return Span(f"[{start}\0".encode(), f"({start}\x01".encode())


def behind(bounds: Span, ordinal: int) -> Span:
    """What of a span of facts in their order comes after an ordinal."""
    return bounds._replace(low=bounds.low + f"{max(ordinal + 1, 0):016x}".encode())


def span_of_range(typename: str, range_: Range) -> Span:
    start = f"f{typename}\0{range_.path}\0{range_.kind}"
    low = f"[{start}" if range_.low is None else f"[{start}{_key_of(range_.kind, range_.low)}"
    if range_.high is None:
        high = f"({start[:-1]}{range_.kind + 1}"  # kinds have one digit
    else:
        high = f"({start}{_key_of(range_.kind, range_.high)}\x01"
    return Span(low.encode(), high.encode())


def field_key(entry: IndexEntry) -> str:
    """What is looked for by an index entry, behind the type."""
    return f"{entry.path}\0{entry.kind}{_key_of(entry.kind, entry.value)}"


def field_keys(entries: tuple[IndexEntry, ...]) -> list[str]:
    return [field_key(entry) for entry in entries if entry.kind != ABSENT]


def _key_of(kind: int, value: str | int | float) -> str:
    return number_key(value) if kind == NUMBER and not isinstance(value, str) else str(value)


def number_key(value: int | float) -> str:
    """A text that orders as the numbers do, exactly, floats and integers of 64 bits among each other.

    It is the largest float that is not above the number, as IEEE 754 orders it, and how much the number is above that.
    """
    near = float(value)
    above = 0
    if isinstance(value, int):
        if int(near) > value:
            near = math.nextafter(near, -math.inf)
        above = value - int(near)
    (bits,) = struct.unpack(">Q", struct.pack(">d", near + 0.0))  # -0.0 is 0.0
    bits = bits ^ ((1 << 64) - 1) if bits >> 63 else bits | 1 << 63
    return f"{bits:016x}{above:03x}"
