"""A session's transactions as a tree, drawn beside its journal: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memstate_core.facts import Operation, Transaction, transaction_seq

# They move the head over the tree, and are no part of it.
MOVES = (Operation.ROLLBACK, Operation.REDO, Operation.CHECKOUT)


def drawn(transactions: Sequence[Transaction], head: int) -> Iterator[tuple[str, Transaction | None]]:
    """The transactions of one session, newest first, each with what stands left of it; None: a line of its own.

    The line on which the session stands is the leftmost one.
    """
    # What each column waits for, and whether anything above is tied to it.
    columns: list[tuple[int, bool]] = [(head, False)] if head else []
    current = head
    for one in transactions:
        if one.operation in MOVES:
            yield _row(columns, None, "↶" if one.operation is Operation.ROLLBACK else "↷"), one
            continue
        here = next((at for at, (seq, _) in enumerate(columns) if seq == one.seq), None)
        if here is None:
            here = len(columns)
            columns.append((one.seq, False))
        yield _row(columns, here, "●" if one.seq == current else "○"), one
        parent = _seq(one.parent)
        current = parent if one.seq == current else current
        columns[here] = parent, True
        twins = [at for at, (seq, _) in enumerate(columns) if seq == parent]
        if not parent:
            del columns[here]
        elif len(twins) > 1:
            first, last = twins[0], twins[-1]
            yield _joined(columns, first, last), None
            columns[first] = parent, True
            del columns[last]


def _seq(transaction_id: str | None) -> int:
    return 0 if transaction_id is None else transaction_seq(transaction_id) or 0


def _row(columns: Sequence[tuple[int, bool]], here: int | None, sign: str) -> str:
    cells = [sign if at == here else "│" if tied else " " for at, (_, tied) in enumerate(columns)]
    if here is None:
        cells.append(sign)
    return " ".join(cells)


def _joined(columns: Sequence[tuple[int, bool]], first: int, last: int) -> str:
    cells = []
    for at, (_, tied) in enumerate(columns):
        if at == first:
            cells.append("├─")
        elif first < at < last:
            cells.append("──")
        elif at == last:
            cells.append("╯ ")
        else:
            cells.append("│ " if tied else "  ")
    return "".join(cells).rstrip()
