"""Programs, run in processes forked from one that has imported what they import.

What a program does takes a fraction of the time that its imports do.
"""

from __future__ import annotations

import asyncio  # noqa: F401
import os
import runpy
import sys

import chromadb  # noqa: F401
import langchain.agents  # noqa: F401
import langchain_chroma  # noqa: F401
import langgraph.graph
import langgraph.prebuilt  # noqa: F401
import psycopg  # noqa: F401
import qdrant_client  # noqa: F401
import redis.asyncio  # noqa: F401
import sqlalchemy.ext.asyncio  # noqa: F401

import memstate.backends.postgres
import memstate.backends.redis
import memstate.integrations.chroma
import memstate.integrations.langchain
import memstate.integrations.langgraph
import memstate.integrations.qdrant  # noqa: F401
import memstate_core.cli.worker  # noqa: F401
from memstate_core.cli.main import main


def run(directory: str, name: str) -> None:
    """Run a file as ``python name`` does in its directory; what it prints goes into ``name.out``."""
    os.chdir(directory)
    output = os.open(f"{name}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    sys.argv[:] = [name]
    sys.path.insert(0, directory)
    runpy.run_path(name, run_name="__main__")
    raise SystemExit


def execute(code: str, *arguments: str) -> None:
    """Run code as ``python -c code arguments...`` does."""
    sys.argv[:] = ["-c", *arguments]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
    raise SystemExit


def work(memory: str, store: str) -> None:
    """Run ``memstate worker`` for a store that keeps its data in a directory."""
    os.environ["MEMORY"] = memory
    raise SystemExit(main(["worker", store, "--poll", "0.01"]))
