"""Every program in the documentation runs as it stands, and prints what its comments say."""

from __future__ import annotations

import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forking import ForkServer
from tests.servers import chroma_server
from tests.snippets import PAGES, SEED, Snippet, fenced, unfenced

SNIPPETS = [snippet for page in PAGES for snippet in fenced(page)]
OFFLINE = [snippet for snippet in SNIPPETS if not snippet.needs_chroma_server]
ONLINE = [snippet for snippet in SNIPPETS if snippet.needs_chroma_server]
CHROMA_PORT = 8000


@pytest.fixture(scope="module")
def default_chroma_server() -> Iterator[None]:
    """A Chroma server where ``chromadb.AsyncHttpClient()`` looks for one; one process runs all who use it."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", CHROMA_PORT))
        except OSError as error:
            pytest.fail(f"port {CHROMA_PORT} must be free, since the documentation uses Chroma's default: {error}")
    with chroma_server(port=CHROMA_PORT):
        yield


def run(snippet: Snippet, directory: Path, programs: ForkServer) -> None:
    program = directory / "program.py"
    program.write_text(snippet.code, encoding="utf-8")
    process = programs.start("programs:run", directory, program.name)
    assert process.wait() == 0, f"{snippet} failed:\n{process.errors}"
    if snippet.output:
        printed = (directory / f"{program.name}.out").read_text(encoding="utf-8").splitlines()
        assert printed == snippet.output, f"{snippet} prints something else"


@pytest.mark.parametrize("snippet", OFFLINE, ids=str)
def test_program(snippet: Snippet, tmp_path: Path, programs: ForkServer) -> None:
    run(snippet, tmp_path, programs)


@pytest.mark.parametrize("snippet", ONLINE, ids=str)
@pytest.mark.usefixtures("default_chroma_server")
def test_program_with_chroma_server(snippet: Snippet, tmp_path: Path, programs: ForkServer) -> None:
    run(snippet, tmp_path, programs)


def test_the_readme_begins_with_ten_lines_of_code() -> None:
    """More or fewer by two: enough to show the point, and no more."""
    lines = [line for line in next(s for s in SNIPPETS if s.page == "README.md").code.splitlines() if line]
    assert 8 <= len(lines) <= 12


def test_the_commands_of_the_readme_are_those_of_ci() -> None:
    root = PAGES[0].parent
    readme = PAGES[0].read_text(encoding="utf-8")
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"```\nmake {target}\n```" in readme
        assert f"\n{target}: " in makefile
    commands = [
        line
        for line in (root / ".ci" / "run").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["exec make test"]


def test_each_guarantee_of_the_readme_leads_to_a_test() -> None:
    root = PAGES[0].parent
    section = PAGES[0].read_text(encoding="utf-8").partition("## What it guarantees")[2].partition("\n## ")[0]
    named = (root / "docs" / "guarantees.md").read_text(encoding="utf-8")
    assert section.count("\n- ") == 8
    for title in re.findall(r"^- (.*)", section, re.MULTILINE):
        link = re.match(r"\*\*\[[A-Z][a-z ]+\.\]\((\S+\.py)\)\*\*", title)
        assert link, title
        assert "def test_" in (root / link[1]).read_text(encoding="utf-8")
        assert f"](../{link[1]})" in named


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            name, _, anchor = target.partition("#")
            linked = (page.parent / name).resolve() if name else page
            assert linked.exists(), f"{page.name} links to {target}, which does not exist"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{page.name} links to {target}, and there is no such heading"


@pytest.mark.skipif(not SEED.is_dir(), reason="the pages that the documentation grew from are not beside this checkout")
class TestSeed:
    programs = unfenced(SEED / "core-concepts.txt") if SEED.is_dir() else []

    def test_programs_are_found(self) -> None:
        """Six sections, each with a sync and an async program; all of them are valid Python."""
        assert len(self.programs) == 12
        assert ["asyncio" in program.code for program in self.programs] == [False, True] * 6
        for program in self.programs:
            compile(program.code, str(program), "exec")

    @pytest.fixture(params=["SQLite", "Postgres", "Redis"])
    def storage(self, request: pytest.FixtureRequest) -> tuple[str, str]:
        """The name of a storage, and the arguments with which a new and empty one is opened."""
        name: str = request.param
        if name == "SQLite":
            return name, repr("memory.db")
        if name == "Postgres":
            return name, repr(request.getfixturevalue("postgres").database("seed"))
        return name, f"{request.getfixturevalue('redis').url!r}, prefix={uuid.uuid4().hex!r}"

    @pytest.mark.parametrize("program", [one for one in programs if not one.needs_chroma_server], ids=str)
    def test_program_on_another_storage(
        self, program: Snippet, storage: tuple[str, str], tmp_path: Path, programs: ForkServer
    ) -> None:
        name, arguments = storage
        code = program.code.replace("InMemoryStorage()", f"InMemoryStorage({arguments})")
        assert code != program.code
        run(program._replace(code=code.replace("InMemoryStorage", f"{name}Storage")), tmp_path, programs)

    @pytest.mark.parametrize("program", programs, ids=str)
    def test_program_is_documented_as_it_is(self, program: Snippet) -> None:
        """Those of the documentation run, so this one runs too."""
        assert program.code in [snippet.code for snippet in SNIPPETS if snippet.page == "core-concepts.md"]
