"""How single values are written, in HTML and in terminals alike."""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Final

# Joiners, which are seen in what they join: emoji, and the letters of several scripts.
_JOINERS: Final = "\u200c\u200d"
_WIDEST: Final = 80


def visible(text: str) -> str:
    """A text in which nothing is hidden: control characters, which could rewrite a terminal's lines, are spelled out.

    So are those that turn the direction of writing, and lone surrogates, which cannot be encoded.
    """
    if text.isprintable():
        return text
    return "".join(one if _is_seen(one) else one.encode("unicode_escape").decode("ascii") for one in text)


def _is_seen(one: str) -> bool:
    return one.isprintable() or one in _JOINERS or unicodedata.category(one) == "Zs"


def shortened(text: str, width: int = _WIDEST) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def value_text(value: Any, width: int = _WIDEST) -> str:
    """A field of a payload: texts without quotes, everything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return visible(shortened(text, width))


def payload_text(payload: dict[str, Any], width: int = _WIDEST) -> str:
    """A payload in one line."""
    return shortened(
        " · ".join(f"{visible(str(key))}: {value_text(value, width)}" for key, value in payload.items()), width
    )


def short_id(fact_id: str) -> str:
    """The beginning of an id, if the store made it; those that somebody chose differ anywhere."""
    digits = fact_id.replace("-", "")
    is_made = len(fact_id) == 36 and len(digits) == 32 and all(one in "0123456789abcdef" for one in digits)
    return fact_id[:8] if is_made else visible(shortened(fact_id, 40))


def counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(_columns(one) for one in text)


def _columns(one: str) -> int:
    if unicodedata.category(one) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(one) in "WF" else 1
