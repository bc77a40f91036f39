"""What is remembered, and whether the comparisons see what is wrong."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from memstate_core import LexicalEmbedder
from memstate_core.demo.conversation import Conversation, load
from memstate_core.demo.memory import Memory, differences, unlike
from memstate_core.demo.mistakes import confuse
from tests.demo.samples import Write, sample


@pytest.fixture
def conversation(write: Write) -> Conversation:
    return load(write(sample()))


@pytest.fixture
def remembered(memory: Memory, conversation: Conversation) -> Memory:
    for session in conversation.sessions:
        memory.remember(conversation, session)
    return memory


def collection(memory: Memory) -> Any:
    return memory.client.get_collection(memory.collection, embedding_function=None)


def test_each_session_is_one_transaction(memory: Memory, conversation: Conversation) -> None:
    ids = [memory.remember(conversation, session) for session in conversation.sessions]
    history = memory.store.history("small")
    assert [one.id for one in history] == ids[::-1]
    assert [one.mark for one in history] == ["session-2", "session-1"]
    assert [len(one.changes) for one in history] == [2, 5]


def test_a_session_that_told_nothing_is_none(memory: Memory, conversation: Conversation) -> None:
    silent = conversation.sessions[0]._replace(observed=())
    assert memory.remember(conversation, silent) is None
    assert memory.store.history() == []


def test_facts_are_typed_and_cite_their_turns(remembered: Memory) -> None:
    assert remembered.store.count("observation") == 4
    fact = remembered.store.get("D1/2")
    assert fact is not None
    assert (fact["type"], fact["source"], fact["session_id"]) == ("observation", "D1:1, D1:2", "small")
    observation = remembered.store.get_model("D1/2")
    assert observation.evidence == ["D1:1", "D1:2"]
    assert observation.date.isoformat() == "2023-05-08T13:56:00"


def test_observations_of_one_turn_by_several_sessions_are_several_facts(
    memory: Memory, conversation: Conversation
) -> None:
    first, second = conversation.sessions
    memory.remember(conversation, first)
    memory.remember(conversation, second._replace(observed=first.observed))
    assert memory.store.count("observation") == 6


def test_each_speaker_has_one_focus(remembered: Memory) -> None:
    focus = {fact["id"]: (fact["version"], fact["payload"]["text"]) for fact in remembered.store.query("focus")}
    assert focus == {
        "focus/Ann": (1, "Ann knows Bo."),
        "focus/Bo": (2, "Bo was stung by one of Ann's bees."),
    }


def test_a_question_finds_observations_only(remembered: Memory, conversation: Conversation) -> None:
    found = remembered.answer(conversation.questions[0], 10)
    assert [one.fact.type for one in found] == ["observation"] * 4
    assert found[0].fact.payload["text"] == "Ann keeps bees."


class TestUnlike:
    """The comparison that asks neither the store nor its hook."""

    def test_nothing_is_when_nothing_was_touched(self, remembered: Memory) -> None:
        dump = remembered.dump()
        assert len(dump.facts) == len(dump.entries) == 6
        assert unlike(dump) == []

    def test_nothing_is_in_an_empty_memory(self, memory: Memory) -> None:
        assert memory.dump() == ({}, {})
        assert unlike(memory.dump()) == []

    def test_a_missing_entry(self, remembered: Memory) -> None:
        collection(remembered).delete(ids=["D2/1"])
        assert unlike(remembered.dump()) == ["D2/1"]
        assert remembered.drift() == 1

    def test_an_orphaned_entry(self, remembered: Memory) -> None:
        collection(remembered).upsert(ids=["orphan"], embeddings=[[1.0] * 512], documents=["nothing"])
        assert unlike(remembered.dump()) == ["orphan"]

    @pytest.mark.parametrize(
        "change",
        [
            {"documents": ["Bo was not stung."]},
            {"metadatas": [{"memstate_version": 7}]},
            {"metadatas": [{"memstate_session_id": "another"}]},
            {"metadatas": [{"extra": 1}]},
            {"embeddings": LexicalEmbedder()(["Bo was not stung."])},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_wrong_entry(self, remembered: Memory, change: dict[str, Any]) -> None:
        chroma = collection(remembered)
        if "documents" in change:  # without an embedding of its own Chroma would make one
            change["embeddings"] = chroma.get(ids=["D2/1"], include=["embeddings"])["embeddings"]
        chroma.update(ids=["D2/1"], **change)
        assert unlike(remembered.dump()) == ["D2/1"]

    def test_looking_heals_nothing(self, remembered: Memory) -> None:
        collection(remembered).delete(ids=["D2/1"])
        remembered.dump()
        assert unlike(remembered.dump()) == ["D2/1"]


def test_differences_are_in_either_direction() -> None:
    assert differences({"a": 1, "b": 2}, {"b": 2}) == ["a"]
    assert differences({"b": 2}, {"a": 1, "b": 2}) == ["a"]
    assert differences({"a": 1}, {"a": 2}) == ["a"]
    assert differences({"a": 1}, {"a": 1}) == []


class TestMistake:
    def test_it_says_what_it_changed(self, remembered: Memory) -> None:
        before = remembered.dump()
        wrong = confuse(remembered, "small", ["Ann", "Bo"], 1)
        after = remembered.dump()
        changed = {*wrong.overwritten, *wrong.deleted, *wrong.invented}
        assert set(differences(before.facts, after.facts)) == changed
        assert set(differences(before.entries, after.entries)) == changed
        assert len(changed) == len(wrong)
        assert unlike(after) == []
        assert len(remembered.store.history("small")) == 3

    def test_speakers_change_places(self, remembered: Memory) -> None:
        confuse(remembered, "small", ["Ann", "Bo"], 1, ["D1/1", "D2/1"])
        assert remembered.store.get_model("D1/1").text == "Bo keeps bees."
        assert remembered.store.get_model("D1/1").speaker == "Bo"
        assert remembered.store.get_model("D2/1").text == "Ann was stung by one of Bo's bees."

    def test_the_seed_chooses(self, memory: Memory, conversation: Conversation) -> None:
        many = [
            one._replace(text=f"{one.text} {number}")
            for one in conversation.sessions[0].observed
            for number in "abcdefgh"
        ]
        memory.remember(conversation, conversation.sessions[0]._replace(observed=tuple(many)))
        mistakes = []
        for seed in (1, 1, 2):
            mistakes.append(confuse(memory, "small", ["Ann", "Bo"], seed))
            memory.store.rollback("small")
        assert mistakes[0] == mistakes[1]
        assert mistakes[0].overwritten != mistakes[2].overwritten
        assert mistakes[0].deleted

    @pytest.mark.parametrize("speakers", [["Ann"], ["Ann", "Bo", "Cleo"], ["A.*", "("]])
    def test_any_speakers_will_do(self, remembered: Memory, speakers: list[str]) -> None:
        confuse(remembered, "small", speakers, 1)
        remembered.store.rollback("small")
        assert unlike(remembered.dump()) == []


def test_a_collection_that_is_not_there_is_empty(memory: Memory) -> None:
    memory.collection = f"missing-{uuid.uuid4().hex}"
    assert memory.dump().entries == {}
