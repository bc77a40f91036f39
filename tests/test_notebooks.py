"""The notebooks run in fresh kernels, and show what is in their files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.notebooks import NOTEBOOKS, ROOT, executed, shown

NAMES = ["01-quickstart", "02-time-travel", "03-hooks-under-failure", "04-langgraph-agent", "05-langchain-agent"]
STORAGES = ROOT / "notebooks" / "06-storages.ipynb"

read = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def stored(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("name", NAMES)
def test_it_shows_what_it_has_shown(name: str, tmp_path: Path) -> None:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert shown(executed(path, tmp_path, {})) == shown(stored(path))


def test_it_shows_what_it_has_shown_on_servers(tmp_path: Path, postgres: Any, redis: Any) -> None:
    servers = {"MEMSTATE_POSTGRES_URL": postgres.database("notebook"), "MEMSTATE_REDIS_URL": redis.url}
    assert shown(executed(STORAGES, tmp_path, servers)) == shown(stored(STORAGES))


def test_without_servers_it_says_so_and_goes_on(tmp_path: Path) -> None:
    text = "".join(shown(executed(STORAGES, tmp_path, {})))
    assert "MEMSTATE_POSTGRES_URL is not set: SQLite stands in for PostgreSQL." in text
    assert "MEMSTATE_REDIS_URL is not set: SQLite stands in for Redis." in text
    assert text.count("one fact, at version 8") == 3


def test_all_are_executed_here() -> None:
    assert [path.stem for path in NOTEBOOKS] == [*NAMES, STORAGES.stem]


@read
def test_it_was_executed_from_top_to_bottom(path: Path) -> None:
    cells = [cell for cell in stored(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)


@read
def test_it_shows_nothing_of_the_machine(path: Path) -> None:
    notebook = stored(path)
    outputs = [str(output) for cell in notebook.cells for output in cell.get("outputs", ())]
    for text in outputs:
        assert not re.search(r"(?<![\w<.])/(home|root|tmp|usr|work|var|Users|opt)/", text)
        assert "site-packages" not in text
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert path.stat().st_size < 100_000


@read
def test_its_links_lead_somewhere(path: Path) -> None:
    texts = [cell.source for cell in stored(path).cells if cell.cell_type == "markdown"]
    for target in re.findall(r"\]\(([^)]+)\)", "\n".join(texts)):
        assert (path.parent / target).exists()
