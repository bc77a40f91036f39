"""Long conversations in the format of LoCoMo (Maharana et al., ACL 2024).

A file holds one sample or a list of them. Of each is used: ``conversation`` (the turns of the sessions and their
times), ``observation`` (what each session told about each speaker, with the ids of its turns) and ``qa`` (questions,
with the ids of the turns that hold the answer).
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

INCLUDED = Path(__file__).with_name("conversation.json")

_SESSION = re.compile(r"session_(\d{1,6})")
_OBSERVATION = re.compile(r"session_(\d{1,6})_observation")
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
        raw = _Sample.model_validate(samples[index])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConversationError(
            f"{path} is not in LoCoMo's format: {where} of sample {ids[index]!r}: {_clean(first['msg'])}"
        ) from error
    conversation = _conversation(raw, ids[index], (index + 1, len(ids)))
    if not any(session.observed for session in conversation.sessions):
        raise ConversationError(
            f"{path} has no observations in sample {ids[index]!r}, so there is nothing to remember; "
            "they stand in 'observation', by session and speaker"
        )
    return conversation


class _Turn(BaseModel):
    dia_id: str
    speaker: str


class _Question(BaseModel):
    question: str
    answer: Any = None
    evidence: list[str] = []


class _Sample(BaseModel):
    conversation: dict[str, Any]
    observation: dict[str, dict[str, list[tuple[str, str | list[str]]]]]
    qa: list[_Question] = []


class _Turns(BaseModel):
    conversation: dict[str, list[_Turn]]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ConversationError(f"{path} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise ConversationError(
            f"{path} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "not UTF-8 text"
        raise ConversationError(f"{path} is not JSON: {reason}") from error


def _sample_id(sample: dict[str, Any], number: int) -> str:
    text = _clean(str(sample.get("sample_id") or f"sample-{number}"))
    return text if len(text) <= 100 else f"sample-{number}"


def _position(path: Path, ids: list[str], sample: str) -> int:
    if sample in ids:
        return ids.index(sample)
    if sample.isascii() and sample.isdigit() and len(sample) < 10 and 1 <= int(sample) <= len(ids):
        return int(sample) - 1
    shown = ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
    raise ConversationError(f"{path} has no sample {sample!r}; it has {shown}")


def _conversation(raw: _Sample, sample_id: str, place: tuple[int, int]) -> Conversation:
    numbered = {key: match for key in raw.conversation if (match := _SESSION.fullmatch(key))}
    turns = {int(match[1]): raw.conversation[key] for key, match in numbered.items()}
    observed = {
        int(match[1]): by_speaker
        for key, by_speaker in raw.observation.items()
        if (match := _OBSERVATION.fullmatch(key))
    }
    parsed = {number: _Turns.model_validate({"conversation": {"session": some}}) for number, some in turns.items()}
    return Conversation(sample_id, place, (), (), ())
