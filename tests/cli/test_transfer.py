"""``memstate export`` and ``import``: what they print and exit with; what a copy is worth is the kit's to test."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from memstate_core import Fact, MemoryStore
from tests.cli.saying import URL
from tests.schemas import Schemas


def lines(file: str) -> list[Any]:
    """All but the header, in which every export has another name."""
    return [json.loads(line) for line in Path(file).read_text(encoding="ascii").splitlines()[1:]]


def test_a_copy_of_a_copy(store: MemoryStore, command: Any, schemas: Schemas, redis: Any) -> None:
    """From SQLite to PostgreSQL, to Redis and to SQLite again, by files and pipes."""
    store.put_record("c", "k", b"\xff")
    store.savepoint("chat", "here")
    tenant = uuid.uuid4().hex
    schema = schemas.take()
    Path("memstate.toml").write_text(
        f'store = "{schemas.url}"\nnamespace = "{tenant}"\n[options]\nschema = "{schema}"\n', encoding="utf-8"
    )
    try:
        said = command("export", URL, "first.jsonl")
        counted = "6 transactions, 5 versions, 1 record, 1 savepoint"
        assert (said.out, said.err) == (f"{URL}, namespace default: {counted} exported to first.jsonl\n", "")
        assert command("import", "first.jsonl").out.endswith(f", namespace {tenant}: {counted} imported\n")
        assert command("export", "second.jsonl", "--json").data["counts"]["facts"] == 5
        assert command("import", redis.url, "second.jsonl", "--namespace", tenant, "--json").data == {
            "command": "import",
            "namespace": tenant,
            "counts": {"transactions": 6, "facts": 5, "savepoints": 1, "records": 1},
            "resumed": None,
            "undemanded": [],
        }
        assert command("export", redis.url, "third.jsonl", "--namespace", tenant).code == 0
        assert command("import", "sqlite:///copy.db", "third.jsonl").code == 0
        piped = command("export", "sqlite:///copy.db", "-").out
        Path("fourth.jsonl").write_text(piped, encoding="ascii")
        for file in ("second.jsonl", "third.jsonl", "fourth.jsonl"):
            assert lines(file) == lines("first.jsonl")
        rolled = [
            command("rollback", url, "--session", "chat", "--yes", "--json").data for url in (URL, "sqlite:///copy.db")
        ]
        assert rolled[0] == rolled[1]
        assert command("log", "sqlite:///copy.db").out.count("<- here") == 2
    finally:
        schemas.give_back([schema])


def test_all_namespaces(store: MemoryStore, command: Any, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To Redis and back; cut off on the way."""
    tenant = MemoryStore(store.storage, namespace="tenant", allow_unregistered=True)
    tenant.commit(Fact("note", {"text": "tea"}, id="tea"))
    Path("memstate.toml").write_text(
        f'store = "{redis.url}"\noptions = {{ prefix = "{uuid.uuid4().hex}" }}\n', encoding="utf-8"
    )
    said = command("export", URL, "all.jsonl", "--all-namespaces")
    counted = "7 transactions, 6 versions, 0 records, 0 savepoints"
    assert (said.out, said.err) == (f"{URL}, 2 namespaces: {counted} exported to all.jsonl\n", "")
    assert command("import", "all.jsonl").out.endswith(f", 2 namespaces: {counted} imported\n")
    counts = {"transactions": 1, "facts": 1, "records": 0, "savepoints": 0}
    assert command("export", "back.jsonl", "--all-namespaces", "--json").data["namespaces"]["tenant"] == counts

    texts = Path("back.jsonl").read_text(encoding="ascii").splitlines(keepends=True)
    (_, _, second) = (place for place, text in enumerate(texts) if '"memstate":' in text)
    Path("part.jsonl").write_text("".join(texts[:second]), encoding="ascii")
    cut = command("import", "sqlite:///copy.db", "part.jsonl")
    assert (cut.code, cut.err.count("\n"), Path("copy.db").exists()) == (2, 1, False)
    assert "its last line is missing" in cut.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(texts[:second])))
    cut = command("import", "sqlite:///copy.db", "-")
    assert (cut.code, cut.err.count("\n")) == (1, 1)
    warned = command("log", "sqlite:///copy.db")
    assert warned.err.startswith("warning: sqlite:///copy.db, namespace 'default', is from an import of all namespaces")
    shutil.copy("copy.db", "kept.db")
    done = command("import", "sqlite:///copy.db", "back.jsonl")
    assert done.out == (
        "sqlite:///copy.db, 1 namespace: 1 transaction, 1 version, 0 records, 0 savepoints imported\n"
        "1 namespace had been imported before\n"
    )
    assert command("export", "sqlite:///copy.db", "copy.jsonl", "--all-namespaces").code == 0
    assert [one for one in lines("copy.jsonl") if "memstate" not in one] == [
        one for one in lines("all.jsonl") if "memstate" not in one
    ]
    again = command("import", "sqlite:///copy.db", "back.jsonl")
    assert (again.code, "namespace 'default' is not empty" in again.err) == (1, True)

    kept = command("import", "sqlite:///kept.db", "back.jsonl", "--namespace", "default")
    assert kept.out == (
        "sqlite:///kept.db, namespace default: had been imported before, with others; it is complete without them\n"
    )
    assert [command("log", f"sqlite:///{name}.db").err for name in ("kept", "copy")] == ["", ""]

    one = command("import", "sqlite:///one.db", "all.jsonl", "--namespace", "tenant")
    assert one.out.startswith("sqlite:///one.db, namespace tenant: 1 transaction, ")
    assert command("import", "sqlite:///two.db", "all.jsonl", "--namespace", "tenant", "--json").data == {
        "command": "import",
        "namespaces": {"tenant": {"counts": counts, "resumed": None, "undemanded": []}},
    }
    assert command("stats", "sqlite:///one.db", "--namespace", "tenant", "--json").data["facts"] == 1
    assert command("import", URL, "all.jsonl", "--namespace", "nobody").err.startswith(
        "memstate import: ValidationFailed: the export has no namespace 'nobody'; it has 'default', 'tenant'"
    )
    both = command("export", URL, "x.jsonl", "--all-namespaces", "--namespace", "tenant")
    assert (both.code, both.err) == (2, "memstate export: say --namespace or --all-namespaces, not both\n")


def test_standard_input(store: MemoryStore, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(command("export", URL, "-").out))
    assert command("import", "sqlite:///copy.db", "-").code == 0
    assert command("show", "sqlite:///copy.db", "ada", "--json").data == command("show", URL, "ada", "--json").data


def test_what_was_interrupted_is_said_and_goes_on(
    store: MemoryStore,
    command: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert command("export", URL, "all.jsonl").code == 0
    texts = Path("all.jsonl").read_text(encoding="ascii").splitlines(keepends=True)
    Path("part.jsonl").write_text("".join(texts[:3]), encoding="ascii")
    refused = command("import", "sqlite:///copy.db", "part.jsonl")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "its last line is missing" in refused.err
    assert command("stats", "sqlite:///copy.db").code == 2  # nothing was made
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(texts[:3])))
    assert command("import", "sqlite:///copy.db", "-").code == 1
    for arguments in (("log",), ("show",), ("export",)):
        words = {"log": (), "show": ("ada",), "export": ("half.jsonl",)}[arguments[0]]
        said = command(*arguments, "sqlite:///copy.db", *words)
        assert said.err.startswith("warning: sqlite:///copy.db, namespace 'default', has only a part of an import")
    assert (said.code, sorted(Path().glob("*half*"))) == (1, [])
    assert sorted(Path().glob(".memstate*")) == []
    done = command("import", "sqlite:///copy.db", "all.jsonl")
    assert done.out.endswith("an import that was interrupted has gone on behind tx-2\n")
    assert command("log", "sqlite:///copy.db").err == ""


def test_nothing_is_written_over(store: MemoryStore, command: Any) -> None:
    Path("there.jsonl").write_text("mine", encoding="ascii")
    said = command("export", URL, "there.jsonl")
    assert (said.code, said.err) == (
        2,
        "memstate export: there.jsonl is there already; name another file, or say --yes to write over it\n",
    )
    assert Path("there.jsonl").read_text(encoding="ascii") == "mine"
    assert command("export", URL, "there.jsonl", "--yes").code == 0
    assert lines("there.jsonl")
    store.commit(Fact("note", {"text": "more"}, id="more"))
    over = command("import", URL, "there.jsonl")
    assert (over.code, over.err.count("\n")) == (1, 1)
    assert "is not empty" in over.err
    # Two tenants of one file would have the same numbers.
    taken = command("import", URL, "there.jsonl", "--namespace", "other")
    assert taken.code == 1
    assert "transaction 1 is taken" in taken.err
    assert command("stats", URL, "--namespace", "other", "--json").data["transactions"] == 0


def test_only_files_are_written_over(store: MemoryStore, command: Any) -> None:
    """As root, /dev/null were gone."""
    os.mkfifo("pipe")
    Path("directory").mkdir()
    for name in ("pipe", "directory"):
        said = command("export", URL, name, "--yes")
        assert (said.code, said.err) == (
            2,
            f"memstate export: {name} is no file; name another one, or - for standard output\n",
        )
    assert Path("pipe").is_fifo()
    Path("there.jsonl").touch()
    Path("link.jsonl").symlink_to("there.jsonl")
    assert command("export", URL, "link.jsonl", "--yes").code == 0
    assert Path("link.jsonl").is_symlink()
    assert lines("there.jsonl")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("import", URL, "nothing.jsonl"), "nothing.jsonl cannot be read: No such file or directory"),
        (("import", URL, "text.jsonl"), "text.jsonl is not an export, or not all of one"),
        (("import", URL, "broken.jsonl"), "broken.jsonl, line 2: not what memstate export writes: "),
        (("export", URL, "nowhere/x.jsonl"), "nowhere cannot be written to: No such file or directory"),
        (("export", URL), "expected [STORE] FILE, not 'sqlite:///memory.db'"),
    ],
)
def test_misuse(command: Any, arguments: tuple[str, ...], complaint: str) -> None:
    assert command("init").code == 0
    Path("text.jsonl").write_text("text\n", encoding="utf-8")
    Path("broken.jsonl").write_text('{"memstate": 1, "export": "x", "last": 0}\n{\n{"end": {}}\n', encoding="utf-8")
    said = command(*arguments)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert complaint in said.err
