"""What the demo does, act by act, and what it checks on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from rich.text import Text

from memstate_core.demo.conversation import Conversation, Question
from memstate_core.demo.kills import KillError, Outcome, Victim, kill_in_commit
from memstate_core.demo.memory import DATABASE, INDEX, Dump, Memory, differences, opened, unlike
from memstate_core.demo.mistakes import confuse, pair
from memstate_core.demo.screen import Column, Screen
from memstate_core.demo.victim import Job, Point

# How many facts are looked at for recall.
_RANKS: Final = (1, 5, 10)

# So many sessions are shown; of more, the first and the last ones.
_ROWS: Final = 12


class Found(NamedTuple):
    """``texts`` are the best facts for a question, ``turns`` what each cites, ``ids`` which facts they are."""

    question: Question
    ids: list[str]
    texts: list[str]
    turns: list[frozenset[str]]

    @property
    def rank(self) -> int | None:
        """Where the first fact stands that cites a turn with the answer, from 1."""
        return next((rank for rank, turns in enumerate(self.turns, 1) if turns & self.question.evidence), None)

    def recall(self, k: int) -> float:
        """The share of the turns with the answer that the first ``k`` facts cite."""
        cited = frozenset[str]().union(*self.turns[:k])
        return len(cited & self.question.evidence) / len(self.question.evidence)


class Checks:
    """What was promised, and whether it was kept."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self.passed = 0
        self.failed = 0

    def __call__(self, passed: bool, text: str) -> None:
        self.passed += passed
        self.failed += not passed
        self._screen.check(passed, text)


def play(conversation: Conversation, directory: Path, *, questions: int, seed: int, quiet: bool, kept: bool) -> bool:
    """The whole demo; whether every check passed. ``kept``: the directory stays when it is over."""
    started = time.perf_counter()
    screen = Screen(quiet=quiet)
    checks = Checks(screen)
    with opened(directory) as memory:
        _remember(memory, conversation, screen, checks)
        found = _ask(memory, conversation, questions, screen)
        before = _undo(memory, conversation, found, seed, screen, checks)
    _kill(directory, conversation, seed, before, screen, checks)
    with opened(directory) as memory:
        drift, apart = memory.drift(), unlike(memory.dump())
    screen.heading("Result")
    checks(not drift, f"drift: {drift}, as the store finds")
    checks(not apart, f"drift: {len(apart)}, as an independent comparison of every fact with its vector finds")
    if kept:
        screen.say(f"The database is {directory / DATABASE}, the index is in {directory / INDEX}.")
    total = checks.passed + checks.failed
    took = f"{time.perf_counter() - started:.1f} s"
    if checks.failed:
        screen.say(f"{checks.failed} of {total} checks FAILED ({took})", "bold red", always=True)
    else:
        screen.say(f"all {total} checks passed, drift {drift} ({took})", "bold green", always=True)
    return not checks.failed


def _remember(memory: Memory, conversation: Conversation, screen: Screen, checks: Checks) -> None:
    sessions = conversation.sessions
    screen.heading("1  Remember")
    number, of = conversation.place
    screen.say(
        f"{conversation.sample_id}: {_and(conversation.speakers)} in {_count(len(sessions), 'session')} with "
        f"{_count(sum(session.turns for session in sessions), 'turn')}. Each session is one transaction."
        + (f" (Conversation {number} of {of} in the file; --sample chooses another.)" if of > 1 else "")
    )
    rows = []
    started = time.perf_counter()
    for session in screen.track(sessions, "sessions"):
        begun = time.perf_counter()
        transaction = memory.remember(conversation, session)
        took = f"{(time.perf_counter() - begun) * 1000:.0f}"
        when = f"{session.date:%d %B %Y}".lstrip("0") if session.date else session.when
        rows.append((session.number, when, session.turns, len(session.observed), transaction or "-", took))
    took = f"{time.perf_counter() - started:.1f} s"
    columns = [
        Column("session", number=True),
        Column("date"),
        Column("turns", number=True),
        Column("observations", number=True),
        Column("transaction"),
        Column("ms", number=True),
    ]
    screen.table(columns, _shortened(rows))
    observations, focus = (_count(memory.store.count(typename), "fact") for typename in ("observation", "focus"))
    dump = memory.dump()
    screen.say(
        f"In {took}, SQLite got {observations} of type observation and {focus} of type focus (one per speaker, "
        f"overwritten by every session), and Chroma got {_count(len(dump.entries), 'vector')}."
    )
    checks(not unlike(dump), "every fact has its vector, and every vector its fact")


def _ask(memory: Memory, conversation: Conversation, show: int, screen: Screen) -> list[Found]:
    screen.heading("2  Answer questions")
    if not conversation.questions:
        screen.say("The file has no questions about this conversation.")
        return []
    found = [_find(memory, question) for question in screen.track(conversation.questions, "questions")]
    askable = [one for one in found if one.question.evidence and one.question.answer] or found
    rows = [
        (Text.assemble(one.question.text, (f"\n{one.question.answer or 'no answer'}", "dim")), *_best(one))
        for one in askable[:show]
    ]
    if rows:
        screen.table(
            [
                Column("question, answer in the file", ratio=5),
                Column("best fact found", ratio=6),
                Column("rank", number=True),
            ],
            rows,
        )
        screen.say(
            f"rank: that of the first fact that cites a turn with the answer; - if none of the best {_RANKS[-1]} does",
            "dim",
        )
    judged = [one for one in found if one.question.evidence]
    if judged:
        turns = {turn for session in conversation.sessions for one in session.observed for turn in one.evidence}
        known = sum(len(one.question.evidence & turns) / len(one.question.evidence) for one in judged) / len(judged)
        recalls = ", ".join(f"@{k} {sum(one.recall(k) for one in judged) / len(judged):.0%}" for k in _RANKS)
        screen.say(f"Recall over {_count(len(judged), 'question')} with evidence: {recalls}")
        screen.say(
            "These are the figures of LexicalEmbedder, which compares letters, not meaning. "
            f"No embedder can exceed {known:.0%}, since the file has no observation of the other turns.",
            "dim",
        )
    return found


def _find(memory: Memory, question: Question) -> Found:
    scored = memory.answer(question, _RANKS[-1])
    return Found(
        question,
        [one.fact.id for one in scored],
        [one.fact.payload["text"] for one in scored],
        [frozenset(one.fact.payload["evidence"]) for one in scored],
    )


def _best(found: Found) -> tuple[str, str]:
    return (found.texts[0] if found.texts else "nothing"), str(found.rank or "-")


def _undo(
    memory: Memory, conversation: Conversation, found: Sequence[Found], seed: int, screen: Screen, checks: Checks
) -> Dump:
    screen.heading("3  Get it wrong, and take it back")
    # A fact that answers a question shows best what is at stake.
    shown = next((one for one in found if one.rank == 1), None)
    before = memory.dump()
    wrong = confuse(memory, conversation.sample_id, conversation.speakers, seed, shown.ids[:1] if shown else ())
    mistaken = memory.dump()
    first, second = pair(conversation.speakers)
    screen.say(
        f"The agent takes {first} for {second}, and commits it: {_count(len(wrong.overwritten), 'fact')} overwritten, "
        f"{len(wrong.deleted)} deleted, {len(wrong.invented)} invented."
    )
    answers = [("before", shown.texts[0]), ("mistaken", _find(memory, shown.question).texts[0])] if shown else []
    moved = memory.store.rollback(conversation.sample_id, steps=1, reason="it was wrong")
    after = memory.dump()
    if shown:
        answers.append(("rolled back", _find(memory, shown.question).texts[0]))
        screen.say(shown.question.text)
        screen.facts(answers)
    screen.say(f"store.rollback({conversation.sample_id!r}, steps=1) undid {', '.join(one.id for one in moved)}.")
    for what, one, other, wrongly in (
        ("fact", before.facts, after.facts, mistaken.facts),
        ("vector", before.entries, after.entries, mistaken.entries),
    ):
        changed, were = differences(one, other), differences(one, wrongly)
        checks(
            len(were) == len(wrong) and not changed,
            f"{_count(len(one), what)} compared with before: {len(were)} differed after the mistake, "
            f"{len(changed)} differ after the rollback",
        )
    return before


def _kill(directory: Path, conversation: Conversation, seed: int, before: Dump, screen: Screen, checks: Checks) -> None:
    screen.heading("4  kill -9 in the middle of a commit")
    screen.say(
        "Another process makes such a mistake, and gets SIGKILL on its way. A new store recovers what it left. "
        "torn: entries of the index that did not fit the database then; in doubt: facts that were being changed."
    )
    points = list(Point)
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        victims = [stack.enter_context(Victim()) for _ in points]
        for number, (point, victim) in enumerate(screen.track(list(zip(points, victims, strict=True)), "kills"), 1):
            job = Job(str(directory), conversation.sample_id, list(conversation.speakers), seed + number, point)
            try:
                outcomes.append(kill_in_commit(victim, directory, job, before))
            except KillError as error:
                checks(False, str(error))
    columns = [
        Column("killed when", ratio=1),
        Column("torn", number=True),
        Column("in doubt", number=True),
        Column("healed", number=True),
        Column("drift", number=True),
        Column("transaction"),
    ]
    screen.table(columns, [_row(one) for one in outcomes])
    _judge(outcomes, checks)


def _judge(outcomes: Sequence[Outcome], checks: Checks) -> None:
    in_the_middle = {Point.HALF_APPLIED, Point.UNDECIDED}
    for text, wrong in (
        (
            "the kills came in the middle: what the index had been told did not fit the database",
            [one for one in outcomes if bool(one.torn) is not (one.point in in_the_middle)],
        ),
        (
            "recovered: nothing is in doubt, and the drift is 0",
            [one for one in outcomes if one.drift or one.unlike or one.healed != one.in_doubt],
        ),
        (
            "all or nothing: what the database had committed was kept whole, and nothing of the rest",
            [one for one in outcomes if one.committed is not (one.point is Point.DECIDED) or not one.whole],
        ),
        (
            "facts and vectors are what they were before (after a rollback of what was kept)",
            [one for one in outcomes if one.changed],
        ),
    ):
        points = "".join(f"; not so when {one.point}" for one in wrong)
        checks(not wrong, text + points)


def _row(one: Outcome) -> tuple[object, ...]:
    kept = "kept, then rolled back" if one.committed else "undone"
    return one.point, one.torn, one.in_doubt, one.healed, one.drift, kept


def _shortened(rows: Sequence[tuple[object, ...]]) -> list[tuple[object, ...]]:
    if len(rows) <= _ROWS:
        return list(rows)
    gap = ("…", f"{len(rows) - _ROWS + 1} more", *[""] * (len(rows[0]) - 2))
    half = _ROWS // 2
    return [*rows[:half], gap, *rows[len(rows) - _ROWS + half + 1 :]]


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
