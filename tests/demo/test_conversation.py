"""Files in LoCoMo's format, as they are and as they should not be."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from memstate_core.demo.conversation import INCLUDED, ConversationError, Observed, Question, clean, load
from tests.demo.samples import Write, sample


def test_a_conversation_is_read(write: Write) -> None:
    conversation = load(write([sample()]))
    assert conversation.sample_id == "small"
    assert conversation.place == (1, 1)
    assert conversation.speakers == ("Ann", "Bo")
    first, second = conversation.sessions
    assert (first.number, first.when, first.turns) == (1, "1:56 pm on 8 May, 2023", 2)
    assert first.date == datetime(2023, 5, 8, 13, 56)  # noqa: DTZ001
    assert first.observed == (
        Observed("Ann", "Ann keeps bees.", ("D1:1",)),
        Observed("Ann", "Ann knows Bo.", ("D1:1", "D1:2")),
        Observed("Bo", "Bo was never stung by a bee.", ("D1:2",)),
    )
    assert second.observed == (Observed("Bo", "Bo was stung by one of Ann's bees.", ("D2:1",)),)
    assert conversation.questions == (
        Question("What does Ann keep?", "Bees", frozenset({"D1:1"})),
        Question("How often was Bo stung?", "1", frozenset({"D1:2", "D2:1"})),
    )


def test_one_sample_needs_no_list_around_it(write: Write) -> None:
    assert load(write(sample())).sample_id == "small"


@pytest.mark.parametrize(
    ("evidence", "turns"),
    [
        ([], set()),
        ("D1:1", {"D1:1"}),
        (["D1:1", "D1:2"], {"D1:1", "D1:2"}),
        (["D1:1; D2:1"], {"D1:1", "D2:1"}),
        (["D1:1 D1:2,D2:1"], {"D1:1", "D1:2", "D2:1"}),
        (["D1:01"], {"D1:1"}),
        (["D", "", "D:1:1", "XD1:1", "D1", "1:1"], set()),
        (["D1:99", "D9:1"], set()),
    ],
)
def test_evidence_has_the_turns_that_exist(write: Write, evidence: Any, turns: set[str]) -> None:
    question = {"question": "?", "answer": "!", "evidence": evidence}
    assert load(write(sample(qa=[question]))).questions[0].evidence == turns


@pytest.mark.parametrize(
    ("answer", "text"), [({"answer": 2022}, "2022"), ({"answer": 0}, "0"), ({"answer": None}, ""), ({}, "")]
)
def test_answers_need_not_be_texts(write: Write, answer: dict[str, Any], text: str) -> None:
    assert load(write(sample(qa=[{"question": "?", **answer}]))).questions[0].answer == text


@pytest.mark.parametrize(
    ("when", "date"),
    [
        ("1:56 pm on 8 May, 2023", datetime(2023, 5, 8, 13, 56)),  # noqa: DTZ001
        ("12:09 am on 13 September, 2023", datetime(2023, 9, 13, 0, 9)),  # noqa: DTZ001
        ("some day in May", None),
        (5, None),
        (None, None),
    ],
)
def test_times_that_cannot_be_read_are_kept_as_text(write: Write, when: Any, date: datetime | None) -> None:
    data = sample()
    data["conversation"]["session_1_date_time"] = when
    session = load(write(data)).sessions[0]
    assert session.date == date
    assert session.when == ("" if when is None else str(when))


def test_sessions_come_in_order_of_their_numbers(write: Write) -> None:
    data = sample()
    data["conversation"]["session_10"] = data["conversation"]["session_2"]
    assert [session.number for session in load(write(data)).sessions] == [1, 2, 10]


def test_sessions_without_observations_or_without_turns_are_there(write: Write) -> None:
    data = sample()
    data["conversation"]["session_4"] = [{"speaker": "Cleo", "dia_id": "D4:1", "text": "Nobody noticed me."}]
    data["observation"]["session_5_observation"] = {"Dan": [["Dan has been seen.", "D5:1"]]}
    conversation = load(write(data))
    assert [(one.number, one.turns, len(one.observed)) for one in conversation.sessions] == [
        (1, 2, 3),
        (2, 1, 1),
        (4, 1, 0),
        (5, 0, 1),
    ]
    assert conversation.speakers == ("Ann", "Bo", "Cleo", "Dan")


def test_texts_cannot_control_a_terminal(write: Write) -> None:
    data = sample(sample_id="a\x1b[2Jb")
    data["observation"]["session_1_observation"]["Ann"][0][0] = "Ann\x1b[31m keeps\r\n\tbees\x00\ud800."
    conversation = load(write(data))
    assert conversation.sample_id == "a [2Jb"
    assert conversation.sessions[0].observed[0].text == "Ann [31m keeps bees ."
    assert clean("Évora’s café — 10 €") == "Évora’s café — 10 €"


def test_observations_without_text_are_left_out(write: Write) -> None:
    data = sample()
    data["observation"]["session_1_observation"]["Ann"].append([" \n", "D1:1"])
    assert len(load(write(data)).sessions[0].observed) == 3


class TestSamples:
    @pytest.fixture
    def path(self, write: Write) -> Path:
        return write([sample(sample_id=name) for name in ("one", "two", "3")])

    @pytest.mark.parametrize(
        ("wanted", "place"), [(None, 1), ("one", 1), ("two", 2), ("3", 3), ("1", 1), ("2", 2), ("01", 1)]
    )
    def test_they_are_chosen_by_id_or_position(self, path: Path, wanted: str | None, place: int) -> None:
        assert load(path, wanted).place == (place, 3)

    @pytest.mark.parametrize("wanted", ["", "four", "0", "4", "-1", "²", "9" * 5000])
    def test_an_unknown_one_is_named_with_those_there_are(self, path: Path, wanted: str) -> None:
        with pytest.raises(ConversationError) as caught:
            load(path, wanted)
        assert f"no sample {wanted!r}" in str(caught.value)
        assert "one, two, 3" in str(caught.value)

    def test_of_many_some_are_named(self, write: Write) -> None:
        with pytest.raises(ConversationError, match=r"s0, .*s9 and 5 more$"):
            load(write([sample(sample_id=f"s{number}") for number in range(15)]), "x")

    @pytest.mark.parametrize("sample_id", [None, "", 0, "x" * 1000])
    def test_one_without_a_proper_id_gets_one(self, write: Write, sample_id: Any) -> None:
        assert load(write([sample(sample_id=sample_id)])).sample_id == "sample-1"


def without(name: str) -> dict[str, Any]:
    data = sample()
    del data[name]
    return data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "an empty list"),
        (5, "a list of objects"),
        ("text", "a list of objects"),
        ([[]], "a list of objects"),
        ([sample(), 5], "a list of objects"),
        ({}, "conversation: Field required"),
        (without("observation"), "observation: Field required"),
        (sample(observation={}), "no observations"),
        (sample(observation={"session_1_observation": {"Ann": []}}), "no observations"),
        (sample(conversation=5), "conversation: Input should be a valid dictionary"),
        (sample(conversation={"session_1": 5}), "conversation.session_1: Input should be a valid list"),
        (sample(conversation={"session_1": [{"speaker": "Ann"}]}), "conversation.session_1.0.dia_id: Field required"),
        (
            sample(observation={"session_1_observation": {"Ann": [["Ann keeps bees.", 5]]}}),
            "observation.session_1_observation.Ann.0.1: Input should be a valid list",
        ),
        (
            sample(observation={"session_1_observation": {"Ann": ["Ann keeps bees."]}}),
            "observation.session_1_observation.Ann.0: Input should be a valid tuple",
        ),
        (sample(qa=[{"answer": "!"}]), "qa.0.question: Field required"),
    ],
)
def test_another_format_is_refused_with_the_place(write: Write, data: Any, said: str) -> None:
    path = write(data)
    with pytest.raises(ConversationError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON: Expecting value (line 1, column 1)"),
        (b"a story", "is not JSON: Expecting value (line 1, column 1)"),
        (b'{\n"a": }', "is not JSON: Expecting value (line 2, column 6)"),
        (b"\xff\xfe{", "is not JSON: not UTF-8 text"),
        (b"[" * 100_000, "is not JSON: nested too deeply"),
    ],
)
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ConversationError) as caught:
        load(path)
    assert f"{path} {said}" in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(ConversationError, match="cannot be read") as caught:
            load(path)
        assert str(path) in str(caught.value)


class TestIncluded:
    """The conversation that comes with MemState keeps to what the demo tells of it."""

    def test_its_size(self) -> None:
        conversation = load(INCLUDED)
        assert len(conversation.speakers) == 2
        assert 6 <= len(conversation.sessions) <= 8
        assert all(12 <= session.turns <= 18 for session in conversation.sessions)
        assert 20 <= len(conversation.questions) <= 25

    def test_it_takes_months_in_order(self) -> None:
        dates = [session.date for session in load(INCLUDED).sessions]
        assert None not in dates
        assert dates == sorted(dates)  # type: ignore[type-var]
        assert (dates[-1] - dates[0]).days > 60  # type: ignore[operator]

    def test_observations_cite_a_turn_of_their_session_and_speaker(self) -> None:
        import json

        (raw,) = json.loads(INCLUDED.read_bytes())
        turns = {
            turn["dia_id"]: turn["speaker"]
            for key, some in raw["conversation"].items()
            if isinstance(some, list)
            for turn in some
        }
        for session in load(INCLUDED).sessions:
            assert Counter(one.speaker for one in session.observed).keys() == {"Noor", "Felix"}
            for speaker, text, evidence in session.observed:
                assert text
                for turn in evidence:
                    assert turn.startswith(f"D{session.number}:")
                    assert turns[turn] == speaker

    def test_every_question_has_evidence_that_exists(self) -> None:
        import json

        (raw,) = json.loads(INCLUDED.read_bytes())
        for question, written in zip(load(INCLUDED).questions, raw["qa"], strict=True):
            assert question.evidence == set(written["evidence"]) != set()
