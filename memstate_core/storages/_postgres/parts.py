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
        self.values.append(Int8(value) if type(value) is int else value)
        return f"${len(self.values)}::{type_}"

    def array(self, items: Sequence[Any], type_: str = "text") -> str:
        """A list as an array. It goes as JSON: psycopg takes as long to make an array as it takes to use it."""
        item = f"json_array_elements_text({self.value(to_json(items).decode(), 'json')})"
        return f"ARRAY(SELECT {item if type_ == 'text' else f'CAST({item} AS {type_})'})"

    def rows(self, columns: Input, rows: Sequence[Sequence[Any]], name: str = "x") -> str:
        """Rows, no two of which are the same, as a table expression."""
        if len(rows) == 1:
            given = zip(columns, rows[0], strict=True)
            values = ", ".join(f"{self.value(value, type_)} AS {column}" for (column, type_), value in given)
            return f"(SELECT {values}) {name}"
        if len(rows) < MANY:
            return self._document(columns, rows, name)
        return self.many(list(zip(columns, zip(*rows, strict=True), strict=True)), name)

    def many(self, columns: Sequence[tuple[tuple[str, str], Sequence[Any]]], name: str = "x") -> str:
        """The same by columns. What all rows have in common is given once: the server takes longer to read a document
        than to use it.
        """
        common = [(column, values[0]) for column, values in columns if values.count(values[0]) == len(values)]
        fixed = "".join(f", {self.value(value, type_)} AS {column}" for (column, type_), value in common)
        shared = {column for column, _ in common}
        others = [(column, values) for column, values in columns if column not in shared]
        rows = list(zip(*[values for _, values in others], strict=True))
        return f"(SELECT given.*{fixed} FROM {self._document([column for column, _ in others], rows, 'given')}) {name}"

    def _document(self, columns: Input, rows: Sequence[Sequence[Any]], name: str) -> str:
        names = [column for column, _ in columns]
        document = to_json([dict(zip(names, row, strict=True)) for row in rows]).decode()
        types = ", ".join(f"{column} {type_}" for column, type_ in columns)
        return f"json_to_recordset({self.value(document, 'json')}) AS {name} ({types})"

    def part(self, name: str, text: str) -> None:
        self.parts.append(f"{name} AS ({text})")

    def counted(self, name: str, count: int) -> str:
        return f"(SELECT count(*) FROM {name}) = {count}"

    def finished(self) -> tuple[str, list[Any]]:
        cases = "".join(
            f" WHEN NOT ({' AND '.join(conditions)}) THEN '{word}'"
            for conditions, word in ((self.claims, CLAIMS), (self.ground, GROUND), (self.facts, FACTS))
            if conditions
        )
        check = f"CAST(CASE{cases} ELSE '0' END AS integer)" if cases else "0"
        return f"WITH {', '.join(self.parts)} SELECT (SELECT seq FROM entry), {check}", self.values
