"""What is shown of facts, histories and reports, and that nothing in them is taken for more than a text."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict
from html.parser import HTMLParser
from typing import Any

import pytest

from memstate_core import Drift, Fact, InMemoryStorage, MemoryStore, Report, ScoredFact
from memstate_core.display import diff, session_tree, show
from memstate_core.display._words import value_text, visible
from tests.display.conftest import HOSTILE, Preference
from tests.snippets import ROOT


class Seen(HTMLParser):
    """The texts, tags and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile_store() -> MemoryStore:
    """Every text that a caller can give is hostile."""
    store = MemoryStore(InMemoryStorage(), allow_unregistered=True)
    for payload in ({HOSTILE: HOSTILE}, {HOSTILE: [HOSTILE]}):
        fact = Fact(HOSTILE, payload, id=HOSTILE, source=HOSTILE, session_id=HOSTILE)
        store.commit(fact, actor=HOSTILE, reason=HOSTILE)
    with store.transaction(session_id=HOSTILE, mark=HOSTILE) as tx:
        tx.commit(Fact("other", {"text": HOSTILE}))
    return store


def everything(store: MemoryStore) -> dict[str, Any]:
    facts, history = store.query(), store.history(session_id=HOSTILE)
    stored = [Fact(**fact) for fact in facts]
    return {
        "plain fact": show(facts[0]),
        "plain facts": show(facts),
        "fact": stored[0],
        "facts": show(stored),
        "found": ScoredFact(stored[0], 0.5),
        "all found": show([ScoredFact(fact, 0.5) for fact in stored]),
        "change": history[1].changes[0],
        "transaction": history[0],
        "history": show(history),
        "moved": store.rollback(HOSTILE),
        "diff": diff(facts, store.query()),
        "drift": Drift(HOSTILE, (HOSTILE,), (), (HOSTILE,), 1, 2),
        "report": Report([Drift(HOSTILE)], [HOSTILE]),
    }


@pytest.mark.parametrize("what", everything(hostile_store()))
def test_texts_stay_texts(what: str) -> None:
    shown = everything(hostile_store())[what]
    html = shown._repr_html_()
    seen = Seen(html)
    assert seen.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert seen.attributes <= {"style", "title"}
    assert any("<script>" in text for text in seen.texts)  # it is there, as a text
    text = shown.text if hasattr(shown, "text") else plain(shown)
    for written in (html, text):
        assert "\x1b" not in written
        assert "\u202e" not in written
    assert "\\x1b" in text


def plain(value: Any) -> str:
    """What IPython prints in a terminal."""
    from IPython.lib.pretty import pretty

    text: str = pretty(value)
    return text


def test_the_picture_of_a_tree_is_a_picture_and_nothing_else() -> None:
    tree = session_tree(hostile_store().history(session_id=HOSTILE))
    tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(tree._repr_svg_()).iter()}
    assert tags == {"svg", "rect", "text", "tspan", "path", "circle"}
    assert "\x1b" not in tree.text + tree.svg


def test_facts_of_one_type_have_a_column_for_each_field(branched: MemoryStore) -> None:
    fact = branched.query()[0]
    assert str(show(branched.query())).splitlines() == [
        "1 fact of type preference",
        "ID        TOPIC  CONTENT  SESSION  VERSION",
        f"{fact['id'][:8]}  music  jazz     chat     1",
    ]
    (line, *_) = [line for line in plain(Fact(**fact)).splitlines() if line.startswith("content")]
    assert line == "content  jazz"


def test_wide_letters_take_two_columns(store: MemoryStore) -> None:
    for topic in ("日本", "tea!"):
        store.commit_model(Preference(topic=topic, content="x"), fact_id=topic)
    _, _, first, second = str(show(store.query())).splitlines()
    assert first.split("x")[0].count(" ") == second.split("x")[0].count(" ")


def test_long_lists_are_cut(store: MemoryStore) -> None:
    for number in range(60):
        store.commit_model(Preference(topic=str(number), content="x" * 500))
    shown = show(store.query())
    assert "… and 10 facts more" in shown.html
    assert "x" * 100 not in shown.html


def test_a_history_says_what_and_why(branched: MemoryStore) -> None:
    lines = str(show(branched.history("chat"))).splitlines()
    assert lines[0] == "6 transactions"
    assert "MARK" not in lines[1]  # none has one
    (joke,) = [line for line in lines if line.startswith("tx-2 ")]
    assert "~ preference (topic: food · content: steak)" in joke
    assert "a joke" in joke


def test_a_diff_shows_only_what_differs(store: MemoryStore) -> None:
    food, city = (store.commit_model(Preference(topic=topic, content="old")) for topic in ("food", "city"))
    store.commit_model(Preference(topic="same", content="same"))
    before = store.history(limit=1)[0]
    store.update(food, {"content": "new"})
    store.delete(city)
    store.commit_model(Preference(topic="art", content="new"))
    found = diff(store.at(before).query(), store.query())
    assert [(change.operation, change.fact_id) for change in found][:2] == [("UPDATE", food), ("DELETE", city)]
    assert len(found) == 3
    (line,) = [line for line in str(found).splitlines() if line.startswith("~")]
    assert "topic" not in line
    assert line.split() == ["~", food[:8], "preference", "content:", "old", "content:", "new"]
    assert str(diff(store.query(), store.query())) == "no difference"


@pytest.mark.parametrize(("old", "new"), [(1, True), (0, False), (1, 1.5), ("1", 1)])
def test_a_diff_takes_types_for_what_they_are(old: object, new: object) -> None:
    def read(value: object) -> list[dict[str, Any]]:
        return [asdict(Fact("a", {"x": value}, id="1"))]

    found = diff(read(old), read(new))
    assert str(found).splitlines()[-1].split()[3:] == ["x:", value_text(old), "x:", value_text(new)]


def test_what_promotion_changed_is_shown(branched: MemoryStore) -> None:
    branched.promote_session("chat")
    assert "long-term" in str(show(branched.history(limit=1)[0].changes))


def test_reports_name_what_drifts() -> None:
    text = plain(Report([Drift("chroma", ("a",), (), ("b", "c"), 5, 6), Drift("qdrant")], ["callable"]))
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["drift", "no"]
    assert "orphaned in chroma: b, c" in text
    assert "callable cannot be listed" in text


def test_a_tree_has_its_branches_and_its_head(branched: MemoryStore) -> None:
    first, *rest = str(session_tree(branched.history("chat"))).splitlines()
    assert first == "session chat: 4 transactions"
    assert rest == [
        "    ◉  tx-6  + preference (topic: music · content: jazz)  ← head",
        "  ○ │  tx-4  + preference (topic: city · content: Rome)",
        "○ │ │  tx-2  ~ preference (topic: food · content: steak)  a joke",
        "○─╯ │  tx-1  + preference (topic: food · content: vegetarian)",
        "●───╯  nothing yet",
    ]


def test_a_tree_before_its_first_transaction(branched: MemoryStore) -> None:
    branched.checkout("chat", None)
    *_, last = str(session_tree(branched.history("chat"))).splitlines()
    assert last.startswith("◉")
    assert last.endswith("nothing yet  ← head")
    assert str(session_tree([])).splitlines() == ["long-term: 0 transactions", "◉  nothing yet  ← head"]


def test_a_tree_of_a_part_says_that_there_was_more(branched: MemoryStore) -> None:
    assert str(session_tree(branched.history("chat", limit=4))).splitlines()[-1].endswith("earlier")
    branched.rollback("chat")
    branched.redo("chat")
    assert str(session_tree(branched.history("chat", limit=1))).endswith("earlier  ← head")


def test_a_tree_names_what_is_no_plain_change(branched: MemoryStore) -> None:
    branched.discard_session("chat")
    (line,) = [line for line in str(session_tree(branched.history("chat"))).splitlines() if "← head" in line]
    assert "DISCARD_SESSION  − preference (topic: music" in line


def test_a_tree_is_of_one_session(branched: MemoryStore) -> None:
    branched.commit_model(Preference(topic="x", content="y"))
    with pytest.raises(ValueError, match="2 sessions"):
        session_tree(branched.history())


def test_no_line_of_a_tree_crosses_a_node(store: MemoryStore) -> None:
    """On one lane, whatever happened there, each node's line comes from its parent without meeting another node."""
    for number in range(40):
        if number % 3 == 2:
            store.checkout(None, f"tx-{(number * 7) % 20 + 1}" if number > 20 else None)
        store.commit_model(Preference(topic=str(number), content="x"))
    tree = session_tree(store.history(session_id=None, limit=None))
    nodes = {(node.row, node.lane) for node in tree.nodes}
    assert max(node.lane for node in tree.nodes) > 3
    for node in tree.nodes:
        if node.parent is not None:
            assert not [row for row in range(node.row + 1, node.parent) if (row, node.lane) in nodes]
    assert len(nodes) == len(tree.nodes)


def test_nothing_is_shown_as_nothing(store: MemoryStore) -> None:
    for value in (store.query(), store.get("x"), store.history(), ()):
        assert show(value).text == "nothing"
    assert str(show(store.rollback())) == "nothing moved"


def test_facts_that_no_store_has_checked_are_shown() -> None:
    odd: Any = Fact(3, [1], id=7, session_id=8)  # type: ignore[arg-type]
    assert "payload  [1]" in plain(odd)
    assert show([odd]).text.splitlines()[-1].split() == ["7", "[1]", "8", "0"]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\nb\t\x00", "a\\nb\\t\\x00"),
        ("\u3000\u00a0", "\u3000\u00a0"),
        ("👩‍💻", "👩‍💻"),
        ("\u202eabc\U000e0041", "\\u202eabc\\U000e0041"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_hidden_is_spelled_out(text: str, seen: str) -> None:
    assert visible(text) == seen


@pytest.mark.parametrize("value", [{}, 3, "text", [{"id": "1"}], object()])
def test_what_is_not_of_a_store_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="show\\(\\) takes"):
        show(value)


def test_values_stay_what_they_were(branched: MemoryStore) -> None:
    """That they can be shown changes nothing: they are equal, copied, pickled and read as JSON as before."""
    fact, *_ = branched.query()
    assert type(fact) is dict
    assert json.loads(json.dumps(fact)) == fact
    transactions = branched.history("chat")
    for value in (Fact(**fact), transactions[0], transactions[0].changes[0], Drift("x"), Report([Drift("x")])):
        assert pickle.loads(pickle.dumps(value)) == value
        assert copy.deepcopy(value) == value
        assert not hasattr(value, "__dict__") or isinstance(value, list)


def test_looks_are_imported_when_they_are_asked_for() -> None:
    names = "(name for name in sys.modules if 'display' in name and 'memstate' in name)"
    code = f"import sys; from memstate import *; print(*{names})"
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60, check=True
    )
    assert finished.stdout.split() == ["memstate_core._displayed"]


def test_the_documentation_shows_what_its_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    ((program, shown),) = re.findall(
        r"```python\n(.*?)^```\n\nIt prints:\n\n```\n(.*?)^```", page, re.DOTALL | re.MULTILINE
    )
    exec(program, {})
    assert capsys.readouterr().out == shown
