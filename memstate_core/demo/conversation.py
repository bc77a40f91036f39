"""Long conversations in the format of LoCoMo (Maharana et al., ACL 2024).

A file holds one sample or a list of them. Of each is used: ``conversation`` (the turns of the sessions and their
times), ``observation`` (what each session told about each speaker, with the ids of its turns) and ``qa`` (questions,
with the ids of the turns that hold the answer).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ValidationError

INCLUDED = Path(__file__).with_name("conversation.json")

_WANTED = "--conversation takes a JSON file in LoCoMo's format"

_SESSION = re.compile(r"session_([1-9]\d{0,5})")
_OBSERVATION = re.compile(r"session_([1-9]\d{0,5})_observation")
_TURN_ID = re.compile(r"\bD(\d{1,6}):(\d{1,6})\b")


class ConversationError(Exception):
    """A file that cannot be used; the message names it, and says what is wrong with it."""


class Observed(NamedTuple):
    """Something that a session told about a speaker; ``evidence`` are the ids of the turns that say so."""

    speaker: str
    text: str
    evidence: tuple[str, ...]


class Session(NamedTuple):
    """``when`` is the session's time as the file has it, ``date`` the same where that can be read."""

    number: int
    when: str
    date: datetime | None
    turns: int
    observed: tuple[Observed, ...]


class Question(NamedTuple):
    """``answer`` is empty for a question that has none; ``evidence`` has only turns that exist."""

    text: str
    answer: str
    evidence: frozenset[str]


class Conversation(NamedTuple):
    """``place`` says which of the file's samples it is: (2, 5) is the second of five."""

    sample_id: str
    place: tuple[int, int]
    speakers: tuple[str, ...]
    sessions: tuple[Session, ...]
    questions: tuple[Question, ...]


def load(path: Path, sample: str | None = None) -> Conversation:
    """One sample of a file: by its ``sample_id``, else by its position from 1; None: the first.

    :raises ConversationError: there is no such file or sample, or it is not in LoCoMo's format.
    """
    data = _read(path)
    samples = data if isinstance(data, list) else [data]
    if not samples:
        raise ConversationError(f"{path} holds an empty list; a conversation file holds at least one sample")
    if not all(isinstance(one, dict) for one in samples):
        raise ConversationError(f"{path} is not in LoCoMo's format: it must be a list of objects, one for each sample")
    ids = [_sample_id(one, number) for number, one in enumerate(samples, start=1)]
    index = 0 if sample is None else _position(path, ids, sample)
    try:
        raw = _Sample.model_validate(_with_sessions(samples[index]))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConversationError(
            f"{path} is not in LoCoMo's format: sample {ids[index]!r}, {where}: {clean(first['msg'])}"
        ) from error
    conversation = _conversation(raw, ids[index], (index + 1, len(ids)))
    if not any(session.observed for session in conversation.sessions):
        raise ConversationError(
            f"{path} has nothing to remember: sample {ids[index]!r} has no observations of any session"
        )
    return conversation


def clean(text: str) -> str:
    """A text in one line, without control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# One id, several in a list, or several in a string.
_Evidence = Annotated[list[str], BeforeValidator(_as_list)]


class _Turn(BaseModel):
    dia_id: str
    speaker: str


class _Question(BaseModel):
    question: str
    answer: Any = None
    evidence: _Evidence = []


class _Sample(BaseModel):
    """``conversation`` without what is no session, and ``times`` taken out of it."""

    conversation: dict[str, list[_Turn]]
    times: dict[str, Any]
    observation: dict[str, dict[str, list[tuple[str, _Evidence]]]]
    qa: list[_Question] = []


def _with_sessions(sample: dict[str, Any]) -> dict[str, Any]:
    conversation = sample.get("conversation")
    if not isinstance(conversation, dict):
        return {**sample, "times": {}}
    sessions = {key: turns for key, turns in conversation.items() if _SESSION.fullmatch(key)}
    times = {key: conversation.get(f"{key}_date_time") for key in sessions}
    return {**sample, "conversation": sessions, "times": times}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ConversationError(f"{path} cannot be read: {error.strerror or error}; {_WANTED}") from error
    except json.JSONDecodeError as error:
        raise ConversationError(
            f"{path} is not JSON: {error.msg} (line {error.lineno}, column {error.colno}); {_WANTED}"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "not UTF-8 text"
        raise ConversationError(f"{path} is not JSON: {reason}; {_WANTED}") from error


def _sample_id(sample: dict[str, Any], number: int) -> str:
    text = clean(str(sample.get("sample_id") or f"sample-{number}"))
    return text if len(text) <= 100 else f"sample-{number}"


def _position(path: Path, ids: list[str], sample: str) -> int:
    if sample in ids:
        return ids.index(sample)
    if sample.isascii() and sample.isdigit() and len(sample) < 10 and 1 <= int(sample) <= len(ids):
        return int(sample) - 1
    shown = ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
    raise ConversationError(f"{path} has no sample {sample!r}; it has {shown}")


def _conversation(raw: _Sample, sample_id: str, place: tuple[int, int]) -> Conversation:
    turns = {turn_id for some in raw.conversation.values() for turn in some for turn_id in _turn_ids([turn.dia_id])}
    speakers = dict.fromkeys(clean(turn.speaker) for some in raw.conversation.values() for turn in some)
    numbers = {int(key.split("_")[1]) for key in (*raw.conversation, *filter(_OBSERVATION.fullmatch, raw.observation))}
    sessions = tuple(_session(raw, number) for number in sorted(numbers))
    speakers |= dict.fromkeys(one.speaker for session in sessions for one in session.observed)
    questions = tuple(
        Question(
            clean(one.question),
            clean("" if one.answer is None else str(one.answer)),
            frozenset(_turn_ids(one.evidence)) & turns,
        )
        for one in raw.qa
    )
    return Conversation(sample_id, place, tuple(speakers), sessions, questions)


def _session(raw: _Sample, number: int) -> Session:
    key = f"session_{number}"
    observed = tuple(
        Observed(clean(speaker), clean(text), tuple(_turn_ids(evidence)))
        for speaker, some in raw.observation.get(f"{key}_observation", {}).items()
        for text, evidence in some
        if clean(text)
    )
    when = clean(str(raw.times.get(key) or ""))
    return Session(number, when, _date(when), len(raw.conversation.get(key, ())), observed)


def _turn_ids(evidence: Iterable[str]) -> list[str]:
    """The turns that are named, each once; LoCoMo has several in one string (``"D8:6; D9:17"``), and typing errors."""
    found = (match for text in evidence for match in _TURN_ID.finditer(text))
    return list(dict.fromkeys(f"D{int(match[1])}:{int(match[2])}" for match in found))


def _date(when: str) -> datetime | None:
    for form in ("%I:%M %p on %d %B, %Y", "%I:%M %p on %d %B %Y"):
        with contextlib.suppress(ValueError):
            return datetime.strptime(when, form)  # noqa: DTZ007 - the speakers' own time, wherever they are
    return None
