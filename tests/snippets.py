"""The programs that the documentation shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

# Pages that the documentation grew from; not part of the repository.
SEED = ROOT.parent / "shared" / "seed"

_FENCE = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_OUTPUT = re.compile(r"^\s*print\(.*\)  # (?P<output>.+)$", re.MULTILINE)


class Snippet(NamedTuple):
    page: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def needs_chroma_server(self) -> bool:
        return "AsyncHttpClient()" in self.code

    @property
    def output(self) -> list[str]:
        """What the program says, in comments, that it prints."""
        return [match["output"] for match in _OUTPUT.finditer(self.code)]


def fenced(path: Path) -> list[Snippet]:
    """The programs of a Markdown page."""
    text = path.read_text(encoding="utf-8")
    return [
        Snippet(path.name, text.count("\n", 0, match.start("code")) + 1, match["code"])
        for match in _FENCE.finditer(text)
    ]


def unfenced(path: Path) -> list[Snippet]:
    """The programs of a text page without fences.

    A program begins with imports at the start of a line. It ends where prose begins, or where imports come again after
    something else: programs may follow each other without a line between.
    """
    snippets: list[Snippet] = []
    lines: list[str] = []
    start = 0

    def finish() -> None:
        if lines:
            snippets.append(Snippet(path.name, start, "\n".join(lines).rstrip() + "\n"))
            lines.clear()

    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r"(from \S+ import |import \S+$)", line):
            if any(not re.match(r"(from|import) ", earlier) for earlier in lines):
                finish()
            if not lines:
                start = number
            lines.append(line)
        elif lines and (not line or line[0].isspace() or _is_code(line)):
            lines.append(line)
        else:
            finish()
    finish()
    return snippets


def _is_code(line: str) -> bool:
    if re.match(r"(class|def|async def|if|try|except|with|for) ?.*:( |$)", line):
        return True
    return bool(re.match(r"(@|[)\]}]|[\w.]+( = |\())", line))
