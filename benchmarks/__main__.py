"""``python -m benchmarks``: see :mod:`benchmarks`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import asynchronous, checkpoints, facts, growth, hooks, peer
from benchmarks.bench import QUICK, Bench, Sizes
from benchmarks.measure import Effort, Row
from benchmarks.report import table, write_json
from benchmarks.storages import kinds

Rows = Callable[[Bench], Iterator[Row]]

SECTIONS: dict[str, Rows] = {
    "facts": facts.rows,
    "async": asynchronous.rows,
    "growth": growth.rows,
    "hooks": hooks.rows,
    "checkpoints": checkpoints.rows,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    effort = Effort(
        rounds=options.rounds or (16 if options.quick else 80),
        seconds=2.0 if options.quick else 10.0,
        clock=time.process_time_ns if options.cpu else time.perf_counter_ns,
    )
    chosen = [kind for kind in kinds() if not options.storage or kind.name in options.storage]
    rows: list[Row] = []
    with Bench(chosen, sizes, effort, options.dir) as bench:
        for name, measure in SECTIONS.items():
            if not options.only or name in options.only:
                rows.extend(measure(bench))
        if options.peer is not None:
            rows.extend(peer.rows(bench, options.peer, rows))
    print(table(rows))
    missed = [row for row in rows if row.missed]
    if missed:
        print(f"\n{len(missed)} of {sum(row.target is not None for row in rows)} targets missed")
    if options.json is not None:
        write_json(options.json, rows, sizes)
    return 1 if options.check and missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="How fast memstate is, as ratios against the least that the same result takes in the same run.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="2,000 facts instead of 100,000, and fewer rounds")
    add(
        "--only", action="append", choices=SECTIONS, metavar="NAME", help=f"only {', '.join(SECTIONS)}; may be repeated"
    )
    add("--storage", action="append", choices=[kind.name for kind in kinds()], help="only this one; may be repeated")
    add("--rounds", type=int, metavar="N", help="how often everything is timed")
    add("--cpu", action="store_true", help="time the processor instead of the wall, where others use the machine too")
    add(
        "--dir",
        type=Path,
        metavar="DIR",
        help="where the databases are made; default: the system's temporary directory",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")
    add(
        "--check",
        action="store_true",
        help="exit with 1 when a target is missed by more than the figure's own tolerance",
    )
    add("--peer", type=Path, metavar="DIR", help="compare with the published memstate that pip installed into DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
