"""The lexical embedder: the same everywhere, and good enough to find things by their words."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
import uuid
import warnings

import chromadb
import pytest
from chromadb.config import Settings
from hypothesis import given
from hypothesis import strategies as st

from memstate_core.embedding import LexicalEmbedder


def similarity(left: str, right: str, dimensions: int = 512) -> float:
    a, b = LexicalEmbedder(dimensions)([left, right])
    return sum(x * y for x, y in zip(a, b, strict=True))


@given(st.text(), st.integers(2, 600))
def test_every_text_has_a_unit_vector(text: str, dimensions: int) -> None:
    [vector] = LexicalEmbedder(dimensions)([text])
    assert len(vector) == dimensions
    assert math.isclose(math.hypot(*vector), 1.0)


def test_vectors_do_not_depend_on_the_process() -> None:
    code = "from memstate_core.embedding import LexicalEmbedder; print(LexicalEmbedder(16)(['I am vegetarian', 'tea']))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{LexicalEmbedder(16)(['I am vegetarian', 'tea'])}\n".encode()}


def test_vectors_do_not_change_between_versions() -> None:
    # An index that was filled by an older version must still be found by a newer one.
    [vector] = LexicalEmbedder(8)(["Caroline painted two sunsets"])
    assert [round(value, 4) for value in vector] == [-0.2019, 0.1741, 0.4441, -0.4478, 0.4638, 0.0025, 0.5395, -0.1583]


@pytest.mark.parametrize(
    ("query", "near", "far"),
    [
        ("Is the user a vegetarian?", "I am vegetarian", "I am tired"),
        ("paint", "Melanie painted a sunrise", "Melanie ran a race"),
        ("hiking trips", "She hiked during her trip", "She swims every day"),
        ("what are the user's hobbies", "the user has a hobby", "what are the odds"),
        ("CAROLINE", "caroline's necklace", "Carl's necklace"),
        ("Straße", "STRASSE", "Gasse"),
        ("vegitarian", "vegetarian", "vehicle"),
        ("東京タワー", "東京タワーに行きました", "大阪城に行きました"),
    ],
)
def test_shared_words_and_parts_of_words_are_close(query: str, near: str, far: str) -> None:
    assert similarity(query, near) > similarity(query, far) + 0.1


def test_unrelated_texts_are_far_apart() -> None:
    assert abs(similarity("I am vegetarian", "fast red cars cost money")) < 0.15


def test_case_and_punctuation_do_not_matter() -> None:
    assert similarity("Hello, World!", "hello world") == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", "   ", "!?…", "\ud800"])
def test_texts_without_words_are_all_alike(text: str) -> None:
    assert LexicalEmbedder()([text]) == LexicalEmbedder()([""])


def test_queries_of_both_conventions() -> None:
    embedder = LexicalEmbedder(32)
    documents = embedder(["a tea", "two teas"])
    assert embedder.embed_documents(["a tea", "two teas"]) == documents
    assert embedder.embed_query("a tea") == documents[0]
    assert embedder.embed_query(["a tea", "two teas"]) == documents
    assert embedder([]) == []


@pytest.mark.parametrize("dimensions", [1, 0, -3])
def test_too_few_dimensions_are_refused(dimensions: int) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        LexicalEmbedder(dimensions)


def test_a_long_run_of_letters_is_no_problem() -> None:
    started = time.perf_counter()
    LexicalEmbedder()(["x" * 1_000_000])
    assert time.perf_counter() - started < 5


def test_chroma_takes_it_and_remembers_it() -> None:
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    name = f"direct-{uuid.uuid4().hex}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collection = client.create_collection(name, embedding_function=LexicalEmbedder(64))  # type: ignore[arg-type]
        collection.add(ids=["a", "b"], documents=["a red apple", "the blue sky"])
        assert collection.query(query_texts=["apples"], n_results=1)["ids"] == [["a"]]
        # Whoever opens the collection without an embedding function gets this one.
        assert client.get_collection(name).query(query_texts=["blue skies"], n_results=1)["ids"] == [["b"]]
    assert collection.configuration_json["embedding_function"]["config"] == {"dimensions": 64}
    assert LexicalEmbedder().default_space() in LexicalEmbedder().supported_spaces()
