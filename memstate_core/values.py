"""What every storage can keep exactly: identifiers, texts and JSON values, and clear refusals of the rest."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from memstate_core.errors import ValidationFailed
from memstate_core.facts import Transaction, transaction_seq

# Pydantic's JSON parser reads this many levels and no more.
MAX_DEPTH: Final = 200
MAX_DIGITS: Final = 4300
IDENTIFIER_LENGTH: Final = 512
_LARGEST: Final = 2**62


def check_identifier(name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse what not every storage could keep as a key.

    :raises ValidationFailed: not a string, empty, longer than 512 characters, or with a NUL or a lone surrogate.
    """
    if isinstance(value, str) and 0 < len(value) <= IDENTIFIER_LENGTH and value.isascii() and "\0" not in value:
        return
    if value is None and optional:
        return
    if not isinstance(value, str):
        raise ValidationFailed(f"{name} must be a string{' or None' if optional else ''}, not {value!r}")
    if not value:
        raise ValidationFailed(f"{name} must not be empty{'; pass None for none' if optional else ''}")
    if len(value) > IDENTIFIER_LENGTH:
        raise ValidationFailed(f"{name} has {len(value)} characters; at most {IDENTIFIER_LENGTH} are allowed")
    check_text(name, value)


def check_text(name: str, value: Any) -> None:
    """Refuse a text (or other than None or a text) that not every storage could keep exactly."""
    if value is None:
        return
    if not isinstance(value, str):
        raise ValidationFailed(f"{name} must be a string or None, not {value!r}")
    if "\0" in value:
        raise ValidationFailed(f"{name} contains a NUL character at position {value.index(chr(0))}; remove it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValidationFailed(f"{name} contains a lone surrogate at position {error.start}; remove it") from error


def merge(payload: Mapping[str, Any], patch: Mapping[str, Any], *, deep: bool) -> dict[str, Any]:
    """The payload with a patch applied: at the top level, or as a JSON merge patch (RFC 7396)."""
    merged = dict(payload)
    for key, value in patch.items():
        if not deep:
            merged[key] = value
        elif value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value, deep=True)
        else:
            merged[key] = value
    return merged


def json_of(typename: str, payload: Mapping[str, Any]) -> str:
    """Plain data as JSON.

    :raises ValidationFailed: something in it is not JSON, with its path.
    """
    try:
        return to_json(payload).decode()
    except Exception as error:
        raise unstorable(typename, payload, error) from error


def not_an_object(typename: str, payload: Any) -> ValidationFailed:
    return ValidationFailed(
        f"the payload of a {typename!r} must be a dict, not {type(payload).__name__}", typename=typename
    )


def may_hide_non_finite(text: str) -> bool:
    """Whether NaN or an infinity may have been in what was dumped: Pydantic writes them as null, or by name."""
    # Looking for one character first takes a fraction of looking for several, and in bytes it takes twice as long.
    return "null" in text or ("N" in text and "NaN" in text) or ("I" in text and "Infinity" in text)


def reject_non_finite(typename: str, value: Any, text: str) -> None:
    """Refuse a value that was dumped to ``text`` when there is NaN or an infinity in it.

    :raises ValidationFailed: there is, with its path.
    """
    if may_hide_non_finite(text):
        found = _find_non_finite(_plain(value), ())
        if found is not None:
            path, number = found
            raise ValidationFailed(
                f"{typename!r}: {path}: {number} is not a number that JSON can hold; use None or leave it out",
                typename=typename,
                path=path,
            )


def unstorable(typename: str, value: Any, error: Exception) -> ValidationFailed:
    """Why a value could not be dumped or read back, with the path of what stood in the way."""
    found = _find_unstorable(_plain(value), ())
    path, why = found if found is not None else (None, str(error))
    return ValidationFailed(f"{typename!r}: {path or 'payload'}: {why}", typename=typename, path=path)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        try:
            return value.__pydantic_serializer__.to_python(value, warnings=False)
        except (PydanticSerializationError, ValueError, RecursionError):
            return value.__dict__
    return value


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    """What is in a container, with the part of a path that leads there; nothing in what is none."""
    if isinstance(value, BaseModel):
        value = value.__dict__
    if isinstance(value, Mapping):
        return ((str(key), item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return ((str(position), item) for position, item in enumerate(value))
    return ()


def _find_non_finite(value: Any, at: tuple[str, ...]) -> tuple[str, float] | None:
    """The path of the first NaN or infinity, and which it is."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (".".join(at), value)
    for part, item in _items(value):
        found = _find_non_finite(item, (*at, part))
        if found is not None:
            return found
    return None


def _find_unstorable(value: Any, at: tuple[str, ...]) -> tuple[str, str] | None:
    """The path of the first thing that JSON in UTF-8 cannot hold exactly, and why."""
    path = ".".join(at) or "payload"
    if len(at) > MAX_DEPTH:
        return ".".join(at[:5]) + "…", f"nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > MAX_DIGITS * 3:
        return path, f"an integer of more than {MAX_DIGITS} digits cannot be stored"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return path, f"a lone surrogate at position {error.start} is not Unicode text; remove or replace it"
    if isinstance(value, bytes):
        try:
            value.decode()
        except UnicodeDecodeError:
            return path, (
                "bytes that are not UTF-8 text; set ser_json_bytes='base64' and val_json_bytes='base64' "
                "in the model's config"
            )
    if isinstance(value, Mapping):
        for key in value:
            if (found := _find_unstorable(key, (*at, repr(key)))) is not None:
                return found
    empty = True
    for part, item in _items(value):
        empty = False
        if (found := _find_unstorable(item, (*at, part))) is not None:
            return found
    if empty:
        try:
            to_json(value)
        except (PydanticSerializationError, ValueError, TypeError) as error:
            return path, f"{error} ({type(value).__name__}); store what JSON can hold"
    return None


def count(name: str, value: Any) -> int:
    """The value, or the largest number that every database takes when it is larger than that.

    :raises ValueError: not a whole number from 0.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be a whole number from 0, not {value!r}")
    return min(value, _LARGEST)


def count_or_none(name: str, value: Any) -> int | None:
    """The same, but None stays None."""
    return None if value is None else count(name, value)


def timestamp(name: str, moment: datetime | str) -> str:
    """ISO 8601 in UTC with microseconds, so that texts order as times do.

    :raises ValidationFailed: not an aware datetime.
    """
    if isinstance(moment, datetime) and moment.tzinfo is UTC:
        return moment.isoformat("T", "microseconds")
    if isinstance(moment, str):  # as get() returns it
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(moment)
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValidationFailed(f"{name} must be an aware datetime, such as datetime.now(UTC), not {moment!r}")
    return moment.astimezone(UTC).isoformat("T", "microseconds")


def timestamp_now() -> str:
    """:func:`timestamp` of the system's time, in a third of the time: the text of a second is made once."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_to_the_second(seconds)}.{microseconds:06}+00:00"


@functools.lru_cache(maxsize=2)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat("T", "seconds")


def seq_of(transaction: str | int | Transaction) -> int:
    """The seq of a transaction, of its id, or the seq itself.

    :raises ValidationFailed: it names no transaction.
    """
    if isinstance(transaction, Transaction):
        return transaction.seq
    if isinstance(transaction, int) and not isinstance(transaction, bool):
        return count("a transaction's seq", transaction)
    seq = transaction_seq(transaction) if isinstance(transaction, str) else None
    if seq is None:
        raise ValidationFailed(f"{transaction!r} is no transaction id; they look like 'tx-42'")
    return seq


def check_range(collection: str, start: str | None, end: str | None) -> None:
    """Check what a scan of records is given."""
    check_identifier("collection", collection)
    check_text("start", start)
    check_text("end", end)
