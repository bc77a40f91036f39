"""What the agent gets wrong: it takes one speaker for the other."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from memstate_core.demo.memory import Focus, Memory, Observation


class Mistake(NamedTuple):
    """The ids of the facts that became wrong, in one transaction."""

    overwritten: tuple[str, ...]
    deleted: tuple[str, ...]
    invented: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.overwritten) + len(self.deleted) + len(self.invented)


def confuse(memory: Memory, session_id: str, speakers: Sequence[str], seed: int, also: Sequence[str] = ()) -> Mistake:
    """Commit facts in which the first two speakers have changed places, delete some, and invent some.

    ``seed`` chooses the facts; those in ``also`` are among the overwritten ones.
    """
    first, second = pair(speakers)
    observations = [fact["id"] for fact in memory.store.query("observation", session_id=session_id)]
    chosen = random.Random(seed).sample(observations, len(observations))
    count = min(max(1, len(chosen) // 8), 20)
    overwritten = list(dict.fromkeys([*also, *chosen[:count]]))
    deleted = [id_ for id_ in chosen[count : count + count // 2] if id_ not in overwritten]
    invented = []
    with memory.store.transaction(session_id, actor="agent", reason=f"takes {first} for {second}") as tx:
        for id_ in overwritten:
            fact: Observation = tx.get_model(id_)
            tx.update(id_, {name: _swapped(getattr(fact, name), first, second) for name in ("speaker", "text")})
        for focus in tx.query("focus", session_id=session_id):
            wrong = Focus(**focus["payload"] | {"text": _swapped(focus["payload"]["text"], first, second)})
            overwritten.append(tx.commit_model(wrong))
        for id_ in deleted:
            tx.delete(id_)
        for number, (speaker, other) in enumerate([(first, second), (second, first)], start=1):
            claim = Observation(
                speaker=speaker, text=f"{speaker} has never met {other}.", evidence=[], session=0, date=None
            )
            invented.append(tx.commit_model(claim, fact_id=f"invented/{seed}/{number}"))
    return Mistake(tuple(overwritten), tuple(deleted), tuple(invented))


def pair(speakers: Sequence[str]) -> tuple[str, str]:
    """The two that are taken for each other."""
    first, second, *_ = [*speakers, "somebody else"]
    return first, second


def _swapped(text: str, first: str, second: str) -> str:
    names = rf"(?<!\w)({re.escape(first)}|{re.escape(second)})(?!\w)"
    return re.sub(names, lambda match: second if match[1] == first else first, text)
