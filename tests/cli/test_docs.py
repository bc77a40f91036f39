"""The session that the documentation shows is one that can be had."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli.saying import Said
from tests.snippets import ROOT, fenced

PAGE: Final = ROOT / "docs" / "command-line.md"


def timeless(text: str) -> str:
    """Without times, and without the lines that the page leaves empty between commands."""
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?", "<time>", text)
    return "\n".join(line for line in text.splitlines() if line)


def test_the_session_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = fenced(PAGE)
    exec(compile(program.code, str(PAGE), "exec"), {})
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands: list[Any] = [
        re.split(r"\n", one, maxsplit=1)
        for block in blocks
        for one in re.split(r"^\$ memstate ", block, flags=re.MULTILINE)[1:]
    ]
    assert len(commands) == 11
    for words, shown in commands:
        said = Said(capsys, *shlex.split(words))
        assert said.code == 0, said.err
        assert timeless(said.out) == timeless(shown)
