"""Random histories: the calls, faults and restarts that :mod:`memstate_core.testing.state_machine` makes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from memstate_core import UNSET

_ids = st.sampled_from(["a", "b", "c", "d"])
_lines = st.sampled_from(["s", "t", None])
_sessions = st.sampled_from(["s", "t"])
_texts = st.sampled_from(["", "tea", "green tea", "coffee", "green coffee beans"])
_values = st.sampled_from([None, "x", "y", 1, 1.0, True, 2])
_payloads: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "note": st.fixed_dictionaries({}, optional={"text": _texts, "rank": _values, "data": st.just({"k": {"l": 1}})}),
    "memo": st.fixed_dictionaries({"text": _texts}),
    "user": st.fixed_dictionaries({"email": st.sampled_from([None, "x", "y"])}, optional={"name": _texts}),
    "draft": st.fixed_dictionaries({"topic": _values, "text": _texts}),
    "law": st.fixed_dictionaries({"number": st.sampled_from([1, 2, "no number"])}),
    "title": st.fixed_dictionaries({"name": st.sampled_from(["x", "y"]), "text": _texts}),
}
_typed = st.sampled_from([*_payloads, "note", "note", "user", "draft"]).flatmap(
    lambda name: st.tuples(st.just(name), _payloads[name])
)
_patches = st.sampled_from(
    [
        ({"text": "tea"}, False),
        ({"text": "green tea"}, False),
        ({"text": ""}, False),
        ({"text": 5}, False),
        ({"text": "coffee", "rank": 2, "label": "x"}, False),
        ({"text": "coffee", "data": {"k": {"m": 2}}}, True),
        ({"data": {"k": None}}, True),
        ({"email": "x"}, False),
        ({"email": "y", "topic": "x"}, False),
        ({"email": None, "topic": None}, False),
        ({}, False),
    ]
)
_expected = st.sampled_from([None] * 9 + [0, 1, 2])
_steps = st.sampled_from([1, 1, 1, 2, 2, 3, 99, 0])
_marks = st.sampled_from([None, "m1", "m2"])
_names = st.sampled_from(["p1", "p2"])
_keep = st.booleans()
_put = st.tuples(st.just("put"), _ids, _typed, _lines, st.sampled_from([False, False, True]), _expected)
_update = st.tuples(st.just("update"), _ids, _patches, _expected)
_delete = st.tuples(st.just("delete"), _ids, _expected)
_promote = st.tuples(st.just("promote"), _sessions, st.booleans())
_discard = st.tuples(st.just("discard"), _sessions)
_record = st.tuples(st.just("record"), st.sampled_from(["k", "l"]), st.sampled_from([None, b"", b"v"]))
_in_blocks = st.tuples(st.sampled_from(["savepoint", "back", "back to the first"]))
_calls = st.one_of(_put, _put, _put, _update, _update, _delete, _promote, _discard, _record, _in_blocks)
_model = st.tuples(st.just("model"), _typed, _lines)
_delete_in = st.tuples(st.just("delete"), _ids, _expected, st.sampled_from([UNSET, "s", "t", None]))
_writes = st.one_of(_put, _put, _put, _put, _model, _update, _update, _update, _delete_in, _promote, _discard, _record)
_moves = st.one_of(
    st.tuples(st.just("rollback"), _lines, _steps, _keep),
    st.tuples(st.just("rollback"), _lines, _steps, _keep),
    st.tuples(st.just("redo"), _lines, _steps, _keep),
    st.tuples(st.just("redo"), _lines, _steps, _keep),
    st.tuples(st.just("rollback_to"), st.integers(0, 60), st.booleans(), _keep, st.booleans()),
    st.tuples(st.just("checkout"), st.integers(-1, 60), st.just(True), _keep),
    st.tuples(st.just("checkout"), st.integers(-1, 60), st.booleans(), _keep),
    st.tuples(st.just("savepoint"), _lines, _names),
    st.tuples(st.just("to_savepoint"), _lines, _names, _keep, st.booleans()),
    st.tuples(st.just("to_mark"), _lines, st.sampled_from(["m1", "m2"]), _keep, st.booleans()),
)
_BLOCK = st.tuples(
    st.just("block"),
    _lines,
    _marks,
    st.lists(_calls, min_size=1, max_size=6),
    st.sampled_from([False, False, False, True]),
)
_REST = st.one_of(
    st.tuples(st.just("recover")),
    st.tuples(st.just("mend"), st.sampled_from(["reindex", "repair"])),
    st.tuples(st.just("reopen"), st.booleans()),
    st.tuples(
        st.just("register_again"),
        st.lists(st.sampled_from(["text", "rank", "label", "data.k"]), unique=True, max_size=2),
    ),
    st.tuples(st.just("let_time_pass"), st.sampled_from([0, 0, 1, 60])),
)
_WHEN = st.sampled_from(["before", "inside", "after"])

who = st.sampled_from([0, 1])
beginnings = st.lists(_put, min_size=4, max_size=8)
actions = st.one_of(_writes, _writes, _writes, _BLOCK, _BLOCK, _moves, _moves, _moves, _REST)
# (what fails, in the how-many-th call, when, and whether from then on), or None
faults = st.one_of(
    st.none(),
    st.none(),
    st.none(),
    st.tuples(st.sampled_from(["prepare", "apply", "apply"]), st.just(1), _WHEN, st.booleans()),
    st.tuples(st.just("storage"), st.integers(1, 8), _WHEN, st.booleans()),
)

FILTERS: list[dict[str, Any]] = [
    {},
    {"text": "tea"},
    {"text": {"$contains": "tea"}},
    {"rank": 1},
    {"rank": {"$gte": 1}},
    {"rank": {"$in": ["x", None]}},
    {"rank": {"$exists": True}, "label": None},
    {"$or": [{"email": "x"}, {"topic": True}]},
    {"$not": {"text": {"$gt": ""}}},
    {"data.k.l": {"$exists": True}},
]
QUERIES = ["tea", "green tea", "coffee beans"]
