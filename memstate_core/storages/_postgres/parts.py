"""What the statement that writes is made of: parts, values, and the conditions that are checked at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from psycopg.types.numeric import Int8
from pydantic_core import to_json

from memstate_core.protocols import Claim, Position

# What a refused statement says: where the session stands, definitions or claims; facts; or an owner's claims.
GROUND: Final = "memstate:ground"
FACTS: Final = "memstate:facts"
CLAIMS: Final = "memstate:claims"

# From so many rows on, what they have in common is given once; fewer are not worth a statement of their own shape,
# which the server would have to plan.
MANY: Final = 20

Input = Sequence[tuple[str, str]]
Column = tuple[tuple[str, str], Sequence[Any]]


# Most numbers that are sent are small, and making one anew takes longer than all else about it.
_SMALL: Final = tuple(map(Int8, range(64)))


def whole(number: int) -> Int8:
    """A whole number as the driver gets it: always of one type, so that a statement is prepared once."""
    return _SMALL[number] if 0 <= number < 64 else Int8(number)


def array_text(items: Sequence[Any]) -> str:
    """A list as PostgreSQL writes an array; psycopg takes as long to make one as the server takes to use it."""
    text = to_json(items).decode()[1:-1]
    if "\\" in text:
        # Only texts have what JSON escapes, and an array escapes less.
        escaped = (item and item.replace("\\", "\\\\").replace('"', '\\"') for item in items)
        text = ",".join("NULL" if item is None else f'"{item}"' for item in escaped)
    return f"{{{text}}}"


def as_sent(value: Any) -> Any:
    """A value as the driver gets it."""
    if type(value) is int:
        return whole(value)
    return array_text(value) if isinstance(value, list) else value


@dataclass(slots=True)
class Ground:
    """What a transaction has seen, and relies on when it writes.

    ``positions`` by session, with the seq of the session's last transaction. ``facts`` are the stamps of those that
    were asked for (None: there was no such fact), ``selected`` of those that a selection found, which need not stay if
    they are not changed. ``places`` and the keys of ``claims`` and ``records`` are what was looked for.
    """

    positions: dict[str | None, tuple[Position, int]] = field(default_factory=dict)
    facts: dict[str, int | None] = field(default_factory=dict)
    selected: dict[str, int] = field(default_factory=dict)
    places: set[str] = field(default_factory=set)
    claims: dict[str, Claim | None] = field(default_factory=dict)
    records: dict[tuple[str, str], bytes | None] = field(default_factory=dict)


class WriteStatement:
    """A statement in the making: its parts, its values, and the conditions that are checked at its end."""

    def __init__(self, namespace: str, *, shared: bool) -> None:
        self.namespace = namespace
        self.values: list[Any] = [namespace]
        self.parts: list[str] = []
        self.ground: list[str] = []
        self.facts: list[str] = []
        self.claims: list[str] = []
        self.shared = shared

    def value(self, value: Any, type_: str = "text") -> str:
        self.values.append(whole(value) if type(value) is int else value)
        return f"${len(self.values)}::{type_}"

    def array(self, items: Sequence[Any], type_: str = "text") -> str:
        return self.value(array_text(items), f"{type_}[]")

    def rows(self, columns: Input, rows: Sequence[Sequence[Any]], name: str = "x", *, hashed: bool = False) -> str:
        """Rows, no two of which are the same, as a table expression.

        ``hashed``: they are joined with rows that were looked up for themselves. The planner takes an array for a short
        one, and may compare each row on the one side with each on the other.
        """
        if len(rows) == 1:
            given = zip(columns, rows[0], strict=True)
            values = ", ".join(f"{self.value(value, type_)} AS {column}" for (column, type_), value in given)
            return f"(SELECT {values}) {name}"
        by_columns = list(zip(columns, zip(*rows, strict=True), strict=True))
        if len(rows) < MANY:
            return self._arrays(by_columns, name, hashed=hashed)
        return self.many(by_columns, name, hashed=hashed)

    def many(self, columns: Sequence[Column], name: str = "x", *, hashed: bool = False) -> str:
        """The same by columns. What all rows have in common is given once."""
        fixed, others = "", []
        for column, values in columns:
            if values.count(values[0]) == len(values):
                fixed += f", {self.value(values[0], column[1])} AS {column[0]}"
            else:
                others.append((column, values))
        return f"(SELECT given.*{fixed} FROM {self._arrays(others, 'given', hashed=hashed)}) {name}"

    def _arrays(self, columns: Sequence[Column], name: str, *, hashed: bool) -> str:
        functions = [f"unnest({self.array(values, type_)})" for (_, type_), values in columns]
        names = [column for (column, _), _ in columns]
        if hashed:
            # Of this the planner believes that it makes a thousand rows.
            functions.append(f"generate_series(1, {self.value(len(columns[0][1]), 'bigint')})")
            names.append("nth")
        return f"ROWS FROM ({', '.join(functions)}) AS {name} ({', '.join(names)})"

    def part(self, name: str, text: str) -> None:
        self.parts.append(f"{name} AS ({text})")

    def counted(self, name: str, count: int) -> str:
        """That a part, which makes a row of each row of its input at most, has made all of them."""
        return f"EXISTS (SELECT FROM {name})" if count == 1 else self.numbered(name, count)

    def numbered(self, name: str, count: int) -> str:
        """That a part has made so many rows."""
        return f"(SELECT count(*) FROM {name}) = {count}"

    def finished(self) -> tuple[str, list[Any]]:
        cases = "".join(
            f" WHEN NOT ({' AND '.join(conditions)}) THEN '{word}'"
            for conditions, word in ((self.claims, CLAIMS), (self.ground, GROUND), (self.facts, FACTS))
            if conditions
        )
        check = f"CAST(CASE{cases} ELSE '0' END AS integer)" if cases else "0"
        return f"WITH {', '.join(self.parts)} SELECT (SELECT seq FROM entry), {check}", self.values
