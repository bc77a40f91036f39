"""What an index keeps of a fact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memstate_core.facts import UNSET, Fact
from memstate_core.hooks._mapping import FactMapping, conditions, encodable, type_names
from memstate_core.protocols import Scope

PAYLOAD: dict[str, Any] = {
    "content": "likes tea",
    "role": "preference",
    "address": {"city": "Bonn", "lines": ["Am Markt", 1]},
    "nothing": None,
    "blank": "  ",
    "favourite_number": 7,
    "active": True,
}


def fact(payload: dict[str, Any] | None = None, **options: Any) -> Fact:
    return Fact(type="note", payload=PAYLOAD if payload is None else payload, id="f", version=3, **options)


class TestText:
    @pytest.mark.parametrize(
        ("field", "text"),
        [
            ("content", "likes tea"),
            ("payload.content", "likes tea"),
            ("address.city", "Bonn"),
            ("address.lines.0", "Am Markt"),
            ("favourite_number", "7"),
            ("active", "true"),
            ("address", "city: Bonn\nlines: Am Markt, 1"),
            ("nothing", None),
            ("blank", None),
            ("missing", None),
            ("address.missing", None),
        ],
    )
    def test_field(self, field: str, text: str | None) -> None:
        assert FactMapping(text_field=field).text(fact()) == text

    def test_default_says_every_field_by_its_path(self) -> None:
        assert FactMapping().text(fact()) == (
            "active: true\naddress city: Bonn\naddress lines: Am Markt, 1\ncontent: likes tea\n"
            "favourite number: 7\nrole: preference"
        )

    def test_default_does_not_depend_on_the_order_of_keys(self) -> None:
        turned = dict(reversed(PAYLOAD.items()))
        assert FactMapping().text(fact(turned)) == FactMapping().text(fact())

    def test_default_is_the_same_in_every_process(self) -> None:
        code = (
            "from tests.hooks.test_mapping import fact; from memstate_core.hooks._mapping import FactMapping;"
            "print(FactMapping().text(fact()))"
        )
        root = Path(__file__).parents[2]
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            result = subprocess.run(
                [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
            )
            assert result.stdout == f"{FactMapping().text(fact())}\n"

    def test_lists_of_objects_give_a_line_per_value(self) -> None:
        payload = {"pets": [{"name": "Rex"}, {"name": "Tom", "age": 3}]}
        assert FactMapping().text(fact(payload)) == "pets name: Rex\npets age: 3\npets name: Tom"

    @pytest.mark.parametrize("payload", [{}, {"a": None}, {"a": {"b": []}}, {"a": ["", " "]}])
    def test_a_payload_that_says_nothing_has_no_text(self, payload: dict[str, Any]) -> None:
        assert FactMapping().text(fact(payload)) is None

    @pytest.mark.parametrize(("returned", "text"), [("tea!", "tea!"), (" \n", None), ("", None), (None, None)])
    def test_formatter(self, returned: str | None, text: str | None) -> None:
        assert FactMapping(text_field="content", text_formatter=lambda _: returned).text(fact()) == text

    def test_formatter_that_returns_no_text_is_refused(self) -> None:
        mapping = FactMapping(text_formatter=lambda _: 7)  # type: ignore[arg-type, return-value]
        with pytest.raises(TypeError, match=r"text_formatter returned 7 for a 'note'"):
            mapping.text(fact())

    def test_formatters_cannot_change_the_fact(self) -> None:
        given_fact = fact(json.loads(json.dumps(PAYLOAD)))

        def spoil(payload: dict[str, Any]) -> Any:
            payload["address"]["city"] = "?"
            return payload.pop("content")

        mapping = FactMapping(text_formatter=spoil, metadata_formatter=lambda payload: {"was": spoil(payload)})
        assert mapping.text(given_fact) == "likes tea"
        assert mapping.metadata(given_fact, "default")["was"] == "likes tea"
        assert given_fact.payload == PAYLOAD

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
        )
    )
    def test_any_json_has_a_text_that_can_be_encoded(self, value: Any) -> None:
        text = FactMapping().text(fact({"value": value}))
        assert text is None or (text.strip() and text.encode())


class TestMetadata:
    def test_ours(self) -> None:
        assert FactMapping().metadata(fact(), "tenant") == {
            "memstate_namespace": "tenant",
            "memstate_type": "note",
            "memstate_version": 3,
            "memstate_long_term": True,
            "memstate_fields": FactMapping().fingerprint,
        }

    def test_a_session_is_told_from_long_term_memory_whatever_its_name(self) -> None:
        for session_id in ("", "None", "s"):
            metadata = FactMapping().metadata(fact(session_id=session_id), "default")
            assert (metadata["memstate_session_id"], metadata["memstate_long_term"]) == (session_id, False)

    def test_fields(self) -> None:
        mapping = FactMapping(
            metadata_fields=["role", "payload.active", "address.city", "address.lines", "address", "nothing", "missing"]
        )
        metadata = mapping.metadata(fact(), "default")
        assert {key: value for key, value in metadata.items() if not key.startswith("memstate_")} == {
            "role": "preference",
            "active": True,
            "address.city": "Bonn",
            "address.lines": '["Am Markt", 1]',
            "address": '{"city": "Bonn", "lines": ["Am Markt", 1]}',
        }

    def test_a_payloads_own_type_and_version_keep_their_names(self) -> None:
        metadata = FactMapping(metadata_fields=["type", "version"]).metadata(
            fact({"type": "tea", "version": "old"}), "default"
        )
        assert (metadata["type"], metadata["version"]) == ("tea", "old")
        assert (metadata["memstate_type"], metadata["memstate_version"]) == ("note", 3)

    def test_formatter_adds_to_the_fields_and_has_the_last_word(self) -> None:
        def formatted(payload: dict[str, Any]) -> dict[str, Any]:
            return {
                "role": payload["role"].upper(),
                "none": None,
                "day": date(2024, 1, 2),
                5: {"days": [date(2024, 1, 2)]},
            }

        metadata = FactMapping(metadata_fields=["role", "active"], metadata_formatter=formatted).metadata(
            fact(), "default"
        )
        assert {key: value for key, value in metadata.items() if not key.startswith("memstate_")} == {
            "role": "PREFERENCE",
            "active": True,
            "day": "2024-01-02",
            "5": '{"days": ["2024-01-02"]}',
        }

    def test_formatter_may_return_none(self) -> None:
        assert FactMapping(metadata_formatter=lambda _: None).metadata(fact(), "default") == FactMapping().metadata(
            fact(), "default"
        )

    @pytest.mark.parametrize(
        ("value", "kept"),
        [
            (2**63 - 1, 2**63 - 1),
            (-(2**63), -(2**63)),
            (2**63, str(2**63)),
            (-(2**63) - 1, str(-(2**63) - 1)),
            (1.5, 1.5),
        ],
    )
    def test_integers_beyond_64_bits_become_text(self, value: Any, kept: Any) -> None:
        mapping = FactMapping(metadata_fields=["n"])
        metadata = mapping.metadata(fact({"n": value}), "default")
        assert metadata["n"] == kept
        assert metadata["memstate_fields"] == (mapping.fingerprint if kept == value else 0)

    def test_lone_surrogates_are_replaced(self) -> None:
        metadata = FactMapping(metadata_fields=["a", "b"]).metadata(fact({"a": "x\ud800é", "b": ["\udfff"]}), "default")
        assert (metadata["a"], metadata["b"]) == ("x?é", '["?"]')
        assert encodable("é😀") == "é😀"

    def test_reserved_keys_are_refused(self) -> None:
        with pytest.raises(ValueError, match="'memstate_type' is reserved"):
            FactMapping(metadata_fields=["role", "memstate_type"])
        mapping = FactMapping(metadata_formatter=lambda _: {"memstate_version": 9})
        with pytest.raises(ValueError, match="'memstate_version' is reserved"):
            mapping.metadata(fact(), "default")

    def test_the_fields_that_an_entry_has_are_told(self) -> None:
        plain = FactMapping(metadata_fields=["role", "payload.active"])
        same = FactMapping(metadata_fields=["active", "role"], metadata_formatter=lambda _: {"other": 1})
        other = FactMapping(metadata_fields=["role"])
        changed = FactMapping(metadata_fields=["role"], metadata_formatter=lambda _: {"role": "another"})
        told = [mapping.metadata(fact(), "default")["memstate_fields"] for mapping in (plain, same, other, changed)]
        assert told == [plain.fingerprint, plain.fingerprint, other.fingerprint, 0]
        assert len({*told, FactMapping().fingerprint}) == 4

    def test_lists_of_scalars_are_kept_where_an_index_takes_them(self) -> None:
        payload = {"tags": ["a", 1, True, 1.5], "none": [], "odd": ["a", None], "large": [2**63], "deep": [["a"]]}
        mapping = FactMapping(metadata_fields=list(payload), keep_lists=True)
        metadata = mapping.metadata(fact(payload), "default")
        assert (metadata["tags"], metadata["none"]) == (["a", 1, True, 1.5], [])
        assert (metadata["odd"], metadata["large"], metadata["deep"]) == ('["a", null]', f"[{2**63}]", '[["a"]]')
        assert metadata["memstate_lists"] == ["tags", "none"]
        assert "memstate_lists" not in mapping.metadata(fact({}), "default")
        assert FactMapping(metadata_fields=["tags"]).metadata(fact(payload), "default")["tags"] == '["a", 1, true, 1.5]'

    def test_the_keys_that_may_be_missing_are_known_unless_a_formatter_chooses_them(self) -> None:
        assert FactMapping(metadata_fields=["role"]).optional_keys == {"role", "memstate_session_id"}
        assert FactMapping(metadata_fields=["role"], metadata_formatter=lambda _: {}).optional_keys is None


class TestOptions:
    def test_a_text_where_a_list_is_meant_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"pass \['role'\]"):
            FactMapping(metadata_fields="role")
        with pytest.raises(ValueError, match=r"pass \{'note'\}"):
            type_names("note")

    def test_an_empty_path_is_refused(self) -> None:
        with pytest.raises(ValueError, match="dotted path"):
            FactMapping(text_field="")

    def test_type_names(self) -> None:
        assert type_names(None) is None
        assert type_names(["a", "b", "a"]) == {"a", "b"}


class TestConditions:
    @pytest.mark.parametrize(
        ("scope", "wanted"),
        [
            (Scope(), ({}, {})),
            (Scope("note"), ({"memstate_type": "note"}, {})),
            (Scope(None, "s"), ({}, {"memstate_session_id": "s"})),
            (Scope(None, None), ({}, {"memstate_long_term": True})),
            (Scope("note", ""), ({"memstate_type": "note"}, {"memstate_session_id": ""})),
            (Scope("note", UNSET), ({"memstate_type": "note"}, {})),
        ],
    )
    def test_scope(self, scope: Scope, wanted: tuple[dict[str, Any], dict[str, Any]]) -> None:
        common, rare = wanted
        common |= {"memstate_namespace": "tenant"}
        assert conditions(scope, "tenant", None) == (common, rare)
        assert conditions(scope, "tenant", frozenset({"note", "other"})) == (common, rare)

    def test_the_only_type_there_is_is_not_asked_for(self) -> None:
        assert "memstate_type" not in conditions(Scope("note"), "default", frozenset({"note"})).common
        assert conditions(Scope("other"), "default", frozenset({"note"})).common["memstate_type"] == "other"

    @pytest.mark.parametrize("session_id", [None, "", "s", "\ud800"])
    def test_every_fact_fulfils_the_conditions_of_its_own_scope(self, session_id: str | None) -> None:
        metadata = FactMapping().metadata(fact(session_id=session_id), "default")
        common, rare = conditions(Scope("note", session_id), "default", None)
        assert (common | rare).items() <= metadata.items()
