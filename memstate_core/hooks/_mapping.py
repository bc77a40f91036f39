"""What an index keeps of a fact: a text to embed, and flat metadata to narrow by. Pure.

The metadata that the hooks themselves need begins with ``memstate_``, so a payload's own ``type``, ``role`` or
``version`` keep their names:

=======================  =======================================================================================
``memstate_namespace``   the store's namespace
``memstate_type``        the fact's type
``memstate_version``     the version that was indexed
``memstate_long_term``   whether the fact belongs to no session
``memstate_session_id``  its session; not there for long-term facts, as indexes keep no nulls
``memstate_fields``      which fields of the payload the entry has, as a number; 0: some have other values there
``memstate_lists``       where lists are kept as lists: the fields that are; not there when none is
=======================  =======================================================================================
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from memstate_core.facts import Fact, Unset
from memstate_core.filters import MISSING, encodes, lookup, split_path
from memstate_core.protocols import Scope

Scalar = str | int | float | bool
Metadata = dict[str, Any]
TextFormatter = Callable[[dict[str, Any]], str | None]
MetadataFormatter = Callable[[dict[str, Any]], Mapping[str, Any] | None]

PREFIX: Final = "memstate_"
TYPE: Final = "memstate_type"
VERSION: Final = "memstate_version"
LONG_TERM: Final = "memstate_long_term"
SESSION_ID: Final = "memstate_session_id"
NAMESPACE: Final = "memstate_namespace"
FIELDS: Final = "memstate_fields"
LISTS: Final = "memstate_lists"


class FactMapping:
    """How facts become entries of one index.

    The text is what ``text_formatter`` returns, else the payload's field ``text_field`` (a dotted path), else the whole
    payload, a line per field. The metadata are the payload's ``metadata_fields`` (dotted paths, which are the keys too,
    without a leading ``payload.``) and what ``metadata_formatter`` returns; where both give a key, the formatter's
    value is kept. Formatters get a payload of their own. ``keep_lists`` says that the index takes lists of scalars.

    :raises ValueError: an option cannot mean what it says: an empty path, or a field with a reserved name.
    """

    def __init__(
        self,
        *,
        text_field: str | None = None,
        text_formatter: TextFormatter | None = None,
        metadata_fields: Iterable[str] | None = None,
        metadata_formatter: MetadataFormatter | None = None,
        keep_lists: bool = False,
    ) -> None:
        if isinstance(metadata_fields, str):
            raise ValueError(f"metadata_fields must be a list of fields: pass [{metadata_fields!r}]")
        self._text_path = None if text_field is None else split_path(text_field)
        self._text_formatter = text_formatter
        paths = [split_path(field) for field in metadata_fields or ()]
        self._metadata_paths = {_allowed(".".join(parts)): parts for parts in paths}
        self._metadata_formatter = metadata_formatter
        self._keep_lists = keep_lists
        #: The metadata keys that are paths into the payload.
        self.fields: Final = frozenset(path for path in self._metadata_paths if encodes(path))
        self.fingerprint: Final = fingerprint(self.fields)

    @property
    def optional_keys(self) -> frozenset[str] | None:
        """The metadata keys that a fact may have or lack; None: unknown, as a formatter decides."""
        return None if self._metadata_formatter else frozenset({SESSION_ID, *self._metadata_paths})

    def text(self, fact: Fact) -> str | None:
        """The text to be indexed, or None when there is nothing in it: such a fact is not in the index.

        :raises TypeError: the formatter returned neither text nor None.
        """
        if self._text_formatter is not None:
            text = self._text_formatter(copy.deepcopy(fact.payload))
            if text is not None and not isinstance(text, str):
                raise TypeError(f"text_formatter returned {text!r} for a {fact.type!r}; it must return a str or None")
        elif self._text_path is not None:
            text = _value_text(lookup(fact.payload, self._text_path))
        else:
            text = _value_text(fact.payload)
        return encodable(text) if text and not text.isspace() else None

    def metadata(self, fact: Fact, namespace: str) -> Metadata:
        """Flat metadata: scalars as they are, everything else as JSON text, nulls left out.

        :raises ValueError: the formatter returned a key that begins with ``memstate_``.
        """
        found: dict[str, Any] = {path: lookup(fact.payload, parts) for path, parts in self._metadata_paths.items()}
        fields = self.fingerprint
        if self._metadata_formatter is not None:
            formatted = self._metadata_formatter(copy.deepcopy(fact.payload)) or {}
            added = {_allowed(str(key)): value for key, value in formatted.items()}
            if not self.fields.isdisjoint(added):
                fields = 0
            found.update(added)
        found = {encodable(key): value for key, value in found.items() if value is not None and value is not MISSING}
        if any(isinstance(value, int) and not _fits(value) for value in found.values()):
            fields = 0
        lists = [key for key, value in found.items() if self._keep_lists and _is_plain_list(value)]
        metadata: Metadata = {
            key: [_scalar(item) for item in value] if key in lists else _scalar(value) for key, value in found.items()
        }
        metadata |= {
            NAMESPACE: encodable(namespace),
            TYPE: encodable(fact.type),
            VERSION: fact.version,
            LONG_TERM: fact.session_id is None,
            FIELDS: fields,
        }
        if fact.session_id is not None:
            metadata[SESSION_ID] = encodable(fact.session_id)
        if lists:
            metadata[LISTS] = lists
        return metadata


def fingerprint(fields: Iterable[str]) -> int:
    """The fields that an entry has, as a number; never 0, and exact as a float, as which indexes may compare it."""
    return zlib.crc32(json.dumps(sorted(fields)).encode()) + 1


class Conditions(NamedTuple):
    """What the entries of a search must have: metadata that are equal.

    ``common`` holds for much of an index, perhaps for all of it, and ``rare`` for little, as a rule.
    """

    common: dict[str, Scalar]
    rare: dict[str, Scalar]


def conditions(scope: Scope, namespace: str, target_types: frozenset[str] | None) -> Conditions:
    """The metadata that every fact of the scope has."""
    common: dict[str, Scalar] = {NAMESPACE: encodable(namespace)}
    rare: dict[str, Scalar] = {}
    # Filters cost indexes much more than the search itself, so what holds for every entry is not asked for.
    if scope.typename is not None and target_types != frozenset({scope.typename}):
        common[TYPE] = encodable(scope.typename)
    if scope.session_id is None:
        rare[LONG_TERM] = True
    elif not isinstance(scope.session_id, Unset):
        rare[SESSION_ID] = encodable(scope.session_id)
    return Conditions(common, rare)


def type_names(target_types: Iterable[str] | None) -> frozenset[str] | None:
    """The types that a hook is told of; None: all."""
    if isinstance(target_types, str):
        raise ValueError(f"target_types must be a set of type names: pass {{{target_types!r}}}")
    return None if target_types is None else frozenset(target_types)


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, since no index takes them; storage keeps the exact one."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _allowed(key: str) -> str:
    if key.startswith(PREFIX):
        raise ValueError(f"the metadata key {key!r} is reserved: choose one that does not begin with {PREFIX!r}")
    return key


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(item, str | float) or (isinstance(item, int) and _fits(item)) for item in value
    )


def _fits(value: int) -> bool:
    # Indexes keep 64 bits and turn larger integers into inexact floats.
    return -(2**63) <= value < 2**63


def _scalar(value: Any) -> Scalar:
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if _fits(value) else str(value)
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping | list | tuple):
        return encodable(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))
    return encodable(str(value))


def _value_text(value: Any) -> str | None:
    if value is MISSING:
        return None
    return "\n".join(f"{label}: {text}" if label else text for label, text in _lines(value, ""))


def _lines(value: Any, label: str) -> Iterator[tuple[str, str]]:
    """``(label, text)`` for every field that says something; sorted, as storages need not keep the order of keys."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            words = key.replace("_", " ")
            yield from _lines(value[key], f"{label} {words}" if label else words)
    elif isinstance(value, list):
        if any(isinstance(item, Mapping | list) for item in value):
            for item in value:
                yield from _lines(item, label)
        else:
            yield from _lines(", ".join(text for item in value for _, text in _lines(item, "")), label)
    elif isinstance(value, str):
        if value and not value.isspace():
            yield label, value
    elif value is not None:
        yield label, json.dumps(value)
