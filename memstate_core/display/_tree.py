"""A session's tree of transactions, drawn the way version control draws its own: the newest on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, NamedTuple

from memstate_core.display._facts import change_summary
from memstate_core.display._words import counted, shortened, visible
from memstate_core.facts import Operation, Transaction

_ROW: Final = 30
_LANE: Final = 24
_RADIUS: Final = 6
_MARGIN: Final = 18
_LETTER: Final = 7.1  # the width of a letter, on average; an SVG cannot be asked for it
# What a place's changes say by themselves.
_PLAIN: Final = (Operation.COMMIT, Operation.UPDATE, Operation.DELETE, Operation.TRANSACTION)
_COLOURS: Final = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2")


class Node(NamedTuple):
    """A place where the session can stand. ``row`` 0 is on top; ``parent`` is the row below that it came from."""

    row: int
    lane: int
    parent: int | None
    label: str
    is_head: bool
    is_live: bool  # on the way from the first transaction to the head


class _Chain(NamedTuple):
    """A line without branches: the places ``[first, last]`` of its nodes, which stem from ``stem``."""

    stem: int
    members: list[int]


@dataclass(frozen=True, slots=True)
class SessionTree:
    """What :func:`memstate_core.display.session_tree` returns."""

    title: str
    nodes: Sequence[Node]  # by row

    def __str__(self) -> str:
        return self.text

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:
        printer.text(self.text)  # type: ignore[attr-defined]

    @property
    def text(self) -> str:
        width = 1 + max(node.lane for node in self.nodes)
        lines = [self.title]
        for node in self.nodes:
            cells = [" "] * (2 * width)
            for child in self.nodes:
                if child.parent is not None and child.row < node.row < child.parent:
                    cells[2 * child.lane] = "│"
            for child in self.nodes:
                if child.parent == node.row and child.lane != node.lane:
                    _join(cells, 2 * node.lane, 2 * child.lane)
            cells[2 * node.lane] = "◉" if node.is_head else "●" if node.is_live else "○"
            lines.append(f"{''.join(cells)} {node.label}{'  ← head' if node.is_head else ''}".rstrip())
        return "\n".join(lines)

    @property
    def svg(self) -> str:
        """A picture on a ground of its own, since it does not know that of the page."""
        lanes = 1 + max(node.lane for node in self.nodes)
        left = _MARGIN + lanes * _LANE
        longest = max(len(self.title) + 4, *(len(node.label) + (8 if node.is_head else 0) for node in self.nodes))
        width, height = int(left + longest * _LETTER + _MARGIN), (len(self.nodes) + 1) * _ROW + _MARGIN
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
            f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff" stroke="#d0d7de"/>',
            f'<text x="{_MARGIN}" y="{_MARGIN + 6}" font-weight="bold" fill="#24292f">{escape(self.title)}</text>',
            *(_edge(node, self.nodes[node.parent]) for node in self.nodes if node.parent is not None),
            *(_dot(node) for node in self.nodes),
            *(_label(node, left) for node in self.nodes),
            "</svg>",
        ]
        return "\n".join(parts)


def session_tree(history: Sequence[Transaction], title: str | None = None) -> SessionTree:
    """See :func:`memstate_core.display.session_tree`."""
    if len(sessions := {one.session_id for one in history}) > 1:
        raise ValueError(
            f"these are the transactions of {len(sessions)} sessions, and each has a tree of its own; "
            "ask for the history(session_id=…) of one"
        )
    steps = sorted((one for one in history if one.position == one.id), key=lambda one: one.seq)
    places: dict[str | None, int] = {one.id: number for number, one in enumerate(steps, 1)}
    # Place 0 is before the first transaction, or all of the past that was not given.
    parents = [0, *(places.get(one.parent, 0) for one in steps)]
    named = {name for one in history for name in (one.parent, one.position)}
    is_cut = not named <= {None, *places}
    head = places.get(max(history, key=lambda one: one.seq).position, 0) if history else 0
    live = {0}
    place = head
    while place:
        live.add(place)
        place = parents[place]
    lanes = _lanes(parents)
    top = len(steps)
    labels = ["earlier" if is_cut else "nothing yet", *map(_words, steps)]
    nodes = [
        Node(
            top - place,
            lanes[place],
            top - parents[place] if place else None,
            labels[place],
            place == head,
            place in live,
        )
        for place in range(top, -1, -1)
    ]
    if title is None:
        session_id = history[0].session_id if history else None
        name = "long-term" if session_id is None else f"session {visible(shortened(session_id))}"
        title = f"{name}: {counted(len(steps), 'transaction')}"
    return SessionTree(title, nodes)


def _lanes(parents: Sequence[int]) -> list[int]:
    """A lane for each place, such that no line crosses a node: what is on one lane follows in time."""
    chains: list[_Chain] = []
    chain_of: dict[int, _Chain] = {}
    went_on: set[int] = set()
    for place, parent in enumerate(parents):
        if place and parent not in went_on:
            chain = chain_of[parent]
            went_on.add(parent)
        else:
            chain = _Chain(parent, [])
            chains.append(chain)
        chain.members.append(place)
        chain_of[place] = chain
    taken: list[list[tuple[int, int]]] = []  # from where to where each lane is
    lanes = [0] * len(parents)
    # The first line is on the left. Of the others, those that branch off later are nearer to it, or they would cross.
    for chain in sorted(chains, key=lambda one: (one.members[0] != 0, -one.stem, one.members[0])):
        start, end = chain.stem, chain.members[-1]
        free = (lane for lane, spans in enumerate(taken) if all(last < start or end < first for first, last in spans))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((start, end))
        for place in chain.members:
            lanes[place] = lane
    return lanes


def _words(transaction: Transaction) -> str:
    told = [transaction.id, *([transaction.operation] if transaction.operation not in _PLAIN else [])]
    told += [change_summary(transaction)]
    told += [visible(shortened(one, 40)) for one in (transaction.reason,) if one]
    told += [f"[{visible(shortened(one, 12))}]" for one in (transaction.mark,) if one]
    return "  ".join(told)


def _join(cells: list[str], here: int, there: int) -> None:
    """A line along a row, from a node to where a branch of it goes up."""
    step = 1 if there > here else -1
    for column in range(here + step, there, step):
        cells[column] = {"│": "┼", "╯": "┴", "╰": "┴"}.get(
            cells[column], "─" if cells[column] == " " else cells[column]
        )
    cells[there] = {"│": "┤"}.get(cells[there], "╯" if step > 0 else "╰") if cells[there] != "─" else "┴"


def _x(node: Node) -> int:
    return _MARGIN + node.lane * _LANE + _RADIUS


def _y(node: Node) -> int:
    return _MARGIN + (node.row + 1) * _ROW


def _colour(node: Node) -> str:
    return _COLOURS[node.lane % len(_COLOURS)]


def _edge(node: Node, parent: Node) -> str:
    x, y, below, bottom = _x(node), _y(node), _x(parent), _y(parent)
    path = f"M{below} {bottom}" + (f"C{x} {bottom} {x} {bottom} {x} {bottom - _ROW}" if x != below else "") + f"V{y}"
    dashed = "" if node.is_live else ' stroke-dasharray="3 4" opacity="0.7"'
    return f'<path d="{path}" fill="none" stroke="{_colour(node)}" stroke-width="2"{dashed}/>'


def _dot(node: Node) -> str:
    colour, at = _colour(node), f'cx="{_x(node)}" cy="{_y(node)}"'
    fill = colour if node.is_live else "#ffffff"
    ring = f'<circle {at} r="{_RADIUS + 4}" fill="none" stroke="{colour}"/>' if node.is_head else ""
    return f'{ring}<circle {at} r="{_RADIUS}" fill="{fill}" stroke="{colour}" stroke-width="2"/>'


def _label(node: Node, left: int) -> str:
    colour = "#24292f" if node.is_live else "#8c959f"
    head = ' <tspan font-weight="bold">← head</tspan>' if node.is_head else ""
    return (
        f'<text x="{left}" y="{_y(node) + 4}" fill="{colour}" xml:space="preserve">{escape(node.label)} {head}</text>'
    )
