"""What was measured, for people and for programs."""

from __future__ import annotations

import json
import platform
import sqlite3
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.bench import Sizes
from benchmarks.measure import Row

_HEADINGS = ("operation", "storage", "floor", "measured", "value", "target", "")
# What the two figures of a row are, where they are not the floor and memstate.
_FIGURES = {
    "Growth with facts": ("small", "large"),
    "Growth with the journal": ("short", "long"),
    "Hooks": ("index", "with store"),
    "Checkpoints": ("peer", "memstate"),
    "Peer": ("peer", "memstate"),
}


def table(rows: Sequence[Row]) -> str:
    """One table to a section; times are medians of the rounds, and the value is what is judged."""
    lines = []
    for section in dict.fromkeys(row.section for row in rows):
        first, second = _FIGURES.get(section, ("floor", "memstate"))
        cells: list[tuple[str, ...]] = [(*_HEADINGS[:2], first, second, *_HEADINGS[4:])]
        cells += [_cells(row) for row in rows if row.section == section]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["", section, ""]
        for line in cells:
            padded = [
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines[1:])


def _cells(row: Row) -> tuple[str, ...]:
    bound = ""
    if row.target is not None:
        bound = f"{'≥' if row.at_least else '≤'} {row.target:g}{row.value_unit}"
    value = f"{_number(row.value)}{row.value_unit} ±{_number(row.tolerance)}"
    return (
        row.operation,
        row.storage,
        f"{_number(row.floor)} {row.unit}".strip(),
        f"{_number(row.measured)} {row.unit}".strip(),
        value,
        bound,
        row.verdict,
    )


def _number(value: float) -> str:
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 20 else f"{value:.2f}" if size >= 0.05 or not value else f"{value:.1g}"


def write_json(path: Path, rows: Sequence[Row], sizes: Sizes) -> None:
    """All rows, with what they were measured on."""
    document = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "sqlite": sqlite3.sqlite_version,
        "machine": platform.platform(),
        "facts": sizes.facts,
        "rows": [row.to_dict() for row in rows],
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
