"""The notebooks, and how they are executed.

``python -m tests.notebooks [NAME …]`` executes them, or some, and puts what they show into their files.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.servers import shared_postgres, shared_redis

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What a notebook may know of the machine.
_PASSED_ON = ("PATH", "SYSTEMROOT", "LANG")

# Ids, the marks of LangGraph's checkpoints, and times.
_EVERY_RUN = re.compile(
    r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{8}\b|(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d"
)


def executed(path: Path, directory: Path, servers: Mapping[str, str]) -> Any:
    """A notebook with what a fresh kernel shows, in an empty directory and home.

    :param servers: the environment variables that name servers.
    :raises CellExecutionError: a cell raised that is not tagged as one that does.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    home = {
        name: str(directory)
        for name in ("HOME", "IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR")
    }
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    client = NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(directory)}}
    )
    with tempfile.TemporaryDirectory() as sockets:  # a short path, as sockets need
        client.create_kernel_manager()
        client.km.transport, client.km.connection_file = "ipc", f"{sockets}/kernel.json"
        client.execute(env={**passed_on, **home, "PYTHONPATH": str(ROOT), **servers})
    return notebook


def shown(notebook: Any) -> list[str]:
    """What the cells of a notebook print and show, as text, without what is another one in every run."""
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            parts = [_text(output) for output in cell.outputs]
            texts.append(_EVERY_RUN.sub("…", "".join(parts)))
    return texts


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text)
    return "\n".join(output.traceback) if output.output_type == "error" else f"{output.data['text/plain']}\n"


def save(notebook: Any, path: Path) -> None:
    """Write a notebook without what differs from machine to machine."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, path)


def main(names: list[str]) -> None:
    with shared_postgres() as postgres, shared_redis() as redis, tempfile.TemporaryDirectory() as home:
        servers = {"MEMSTATE_POSTGRES_URL": postgres.database("notebook"), "MEMSTATE_REDIS_URL": redis.url}
        for path in NOTEBOOKS:
            if not names or any(name in path.name for name in names):
                print(path.name)
                save(executed(path, Path(home), servers), path)


if __name__ == "__main__":
    main(sys.argv[1:])
