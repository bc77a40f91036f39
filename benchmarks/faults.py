"""What survives which fault: ``python -m benchmarks.faults``.

Rows are faults, columns are contenders (:mod:`benchmarks.contenders`). Each cell says what was wrong after the trials
of its row (:mod:`benchmarks.fault_rows`), summed over the calls that were broken and the steps at which they were:
``drift``, ``lost`` facts and ``phantom`` entries of the journal, as :class:`~benchmarks.trials.Counts` defines them; 0
when nothing was. n/a: the contender has nothing that could be broken like that. A call that does not do what it should
even without a fault is counted in the first row only.

To see how your own store does, write a class with the methods of :class:`~benchmarks.contenders.Contender`, which is
made with a directory, its indexes (tell each with ``apply({fact_id: text or None})``) and ``steps``, and run
``python -m benchmarks.faults --contender your_module:YourClass``. Call ``steps("storage: before")``, ``"storage:
inside"`` and ``"storage: after"`` around what reaches your database, so that it can be broken there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.bench import say
from benchmarks.contenders import Candidate
from benchmarks.contenders.memstate import close_all, memstate_on
from benchmarks.contenders.naive import NAIVE
from benchmarks.fault_rows import Row, rows
from benchmarks.trials import Counts, Trials, preload, total

STORAGES: Final = {"memory": "memory", "sqlite": "SQLite", "postgres": "PostgreSQL", "redis": "Redis"}


class Cell(NamedTuple):
    """What came of a row for one contender and one call; ``counts`` None: n/a."""

    row: str
    act: str
    contender: str
    counts: Counts | None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with contextlib.ExitStack() as servers:
        made = tempfile.TemporaryDirectory(prefix="memstate-faults-", dir=options.dir, ignore_cleanup_errors=True)
        root = Path(servers.enter_context(made))
        chosen = [_given(contender) for contender in options.contender]
        judged = list(chosen)
        if not chosen or options.storage:
            ours = [_ours(kind, root, servers) for kind in options.storage or STORAGES]
            judged += ours
            chosen = [NAIVE, *ours, *chosen]
        preload(["benchmarks.bench", "benchmarks.fault_rows", *(name for one in chosen for name in one.modules)])
        lines = list(rows(100 if options.quick else 1000))
        try:
            cells = [cell for candidate in chosen for cell in measure(candidate, lines, root, options.quick)]
        finally:
            close_all()
        if options.peer is not None:
            cells[len(cells) // len(chosen) : 0] = _published(options.peer, root, options.quick)
    print(table(cells, lines, by_act=options.calls))
    print(f"\ntrials: {trials_of(cells)}")
    if options.json is not None:
        write_json(options.json, cells)
    names = {candidate.name for candidate in judged}
    broken = [cell for cell in cells if cell.contender in names and cell.counts is not None and cell.counts.wrong]
    return 1 if broken else 0


def measure(candidate: Candidate, lines: Sequence[Row], root: Path, quick: bool) -> Iterator[Cell]:
    """A column; ``quick``: at three of the steps of a call at most.

    What goes wrong without a fault is not tried with one, which would be counted again and again.
    """
    trials = Trials(candidate, root, most=3 if quick else None)
    for place, row in enumerate(lines):
        say(f"{candidate.name}: {row.title}")
        for act in row.acts:
            possible = not act or (trials.can(act) and (place == 0 or trials.is_right(act)))
            yield Cell(row.title, act, candidate.name, row.attempt(trials, act) if possible else None)


def table(cells: Sequence[Cell], lines: Sequence[Row], *, by_act: bool = False) -> str:
    """A table in Markdown, with a line for each row, or for each call in it."""
    names = list(dict.fromkeys(cell.contender for cell in cells))
    content = [["what fails", *names]]
    for row in lines:
        for act in row.acts if by_act else [None]:
            of_line = [cell for cell in cells if cell.row == row.title and act in (None, cell.act)]
            title = f"{row.title}: {act}" if act else row.title
            content.append([title, *(_text([cell for cell in of_line if cell.contender == name]) for name in names)])
    widths = [max(map(len, column)) for column in zip(*content, strict=True)]
    content.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in content]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _text(cells: Sequence[Cell]) -> str:
    counts = [cell.counts for cell in cells if cell.counts is not None]
    if not counts:
        return "n/a"
    wrong = total(counts)
    named = [f"{count} {what}" for what, count in zip(wrong._fields[:3], wrong[:3], strict=True) if count]
    return ", ".join(named) or "0"


def trials_of(cells: Sequence[Cell]) -> str:
    """How many trials the figures of each contender come from."""
    trials: Counter[str] = Counter()
    for cell in cells:
        trials[cell.contender] += cell.counts.trials if cell.counts else 0
    return ", ".join(f"{name} {count:,}" for name, count in trials.items())


def write_json(path: Path, cells: Sequence[Cell]) -> None:
    document = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "machine": platform.platform(),
        "cells": [
            {
                "row": cell.row,
                "act": cell.act,
                "contender": cell.contender,
                "counts": None if cell.counts is None else cell.counts._asdict(),
            }
            for cell in cells
        ],
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> list[Cell]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        Cell(cell["row"], cell["act"], cell["contender"], Counts(**cell["counts"]) if cell["counts"] else None)
        for cell in cells
    ]


def _ours(kind: str, directory: Path, servers: contextlib.ExitStack) -> Candidate:
    where = ""
    if kind == "sqlite":
        where = str(directory / "memstate.db")
    elif kind == "postgres":
        from tests.servers import postgres_server

        # Clients are killed, and not the server, so it need not write as carefully as in production.
        where = servers.enter_context(postgres_server()).url
    elif kind == "redis":
        from tests.servers import redis_server

        where = servers.enter_context(redis_server()).url
    return memstate_on(kind, STORAGES[kind], where)


def _given(name: str) -> Candidate:
    """``MODULE:NAME``: a candidate, or what opens one."""
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    return found if isinstance(found, Candidate) else Candidate(attribute, found, modules=(module,))


def _published(directory: Path, root: Path, quick: bool) -> list[Cell]:
    """The column of the published memstate that pip installed into ``directory``.

    It has our own package's name and so needs a process of its own; see :mod:`benchmarks.peer`.
    """
    found = root / "published.json"
    here = Path(__file__).resolve().parent.parent
    command = [
        sys.executable,
        "-P",
        "-m",
        "benchmarks.faults",
        "--contender",
        "benchmarks.contenders.published:PUBLISHED",
    ]
    finished = subprocess.run(
        # -P keeps the current directory, and with it our own memstate, behind the peer's.
        [*command, "--json", str(found), *(["--quick"] if quick else [])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (directory.resolve(), here)))},
        stdout=subprocess.DEVNULL,
        check=False,  # 1 says that its cells are not 0
    )
    if not found.exists():
        raise SystemExit(
            f"the published memstate could not be tried (exit code {finished.returncode}); {directory} must have what "
            f"pip install --target {directory} memstate==0.5.1 aiosqlite puts there"
        )
    return _read_json(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description="What survives which fault. Exits with 1 when a cell of memstate or of a given contender is not 0.",
    )
    add = parser.add_argument
    add(
        "--quick", action="store_true", help="three steps of each call instead of all, and 100 updates instead of 1,000"
    )
    add("--storage", action="append", choices=STORAGES, help="only this one; may be repeated")
    add("--peer", type=Path, metavar="DIR", help="try the published memstate that pip installed into DIR, too")
    add(
        "--contender",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="try this store, alone unless --storage is given; may be repeated",
    )
    add("--calls", action="store_true", help="a line for every call that was broken")
    add("--json", type=Path, metavar="FILE", help="write the counts there, too")
    add(
        "--dir",
        type=Path,
        metavar="DIR",
        help="where the databases are made; default: the system's temporary directory",
    )
    return parser


if __name__ == "__main__":
    logging.getLogger("memstate").setLevel(logging.CRITICAL)  # that something is in doubt is meant
    sys.exit(main())
