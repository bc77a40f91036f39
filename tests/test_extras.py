"""What is built can be installed, alone and with each extra, where nothing else is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.environments import Environment, closure
from tests.test_packaging import NEEDY, PACKAGES, project

pytestmark = pytest.mark.xdist_group("built")

# What an extra must be good for, with nothing else installed; ``used`` uses a store.
WORK = {
    "postgres": """
from memstate import AsyncPostgresStorage, PostgresStorage, UnavailableError
try:
    MemoryStore(PostgresStorage("postgresql://nobody@127.0.0.1:1/x", timeout=0)).count()
except UnavailableError as error:
    assert "127.0.0.1" in str(error)
else:
    raise AssertionError("nobody answers there")
""",
    "redis": """
from memstate import AsyncRedisStorage, RedisStorage, UnavailableError
try:
    MemoryStore(RedisStorage("redis://127.0.0.1:1", timeout=0.1)).count()
except UnavailableError as error:
    assert "127.0.0.1" in str(error)
else:
    raise AssertionError("nobody answers there")
""",
    "chroma": """
import chromadb
from chromadb.config import Settings
from memstate.integrations.chroma import ChromaSyncHook
client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
used(ChromaSyncHook(client, "notes", embedding_fn=LexicalEmbedder(), text_field="text"))
""",
    "qdrant": """
from qdrant_client import QdrantClient
from memstate.integrations.qdrant import QdrantSyncHook
used(QdrantSyncHook(QdrantClient(":memory:"), "notes", embedding_fn=LexicalEmbedder(), text_field="text"))
""",
    "langchain": """
from memstate.integrations.langchain import MemStateMiddleware, VectorStoreHook, memory_tools
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel
hook = VectorStoreHook(InMemoryVectorStore(LexicalEmbedder()), text_field="text")
used(hook)
class Note(BaseModel):
    text: str
store = MemoryStore(InMemoryStorage(), [hook])
store.register_schema("note", Note)
model = GenericFakeChatModel(messages=iter(["Hello"]))
said = create_agent(model, middleware=[MemStateMiddleware(store, session=None)]).invoke({"messages": [("user", "tea")]})
assert said["messages"][-1].text == "Hello"
assert memory_tools(store)
""",
    "langgraph": """
from langgraph.graph import START, MessagesState, StateGraph
from memstate.integrations.langgraph import MemStateCheckpointer
graph = StateGraph(MessagesState)
graph.add_node("say", lambda state: {"messages": [("ai", "Hello")]})
graph.add_edge(START, "say")
app = graph.compile(checkpointer=MemStateCheckpointer(store))
thread = {"configurable": {"thread_id": "t"}}
app.invoke({"messages": [("user", "tea")]}, thread)
assert app.get_state(thread).values["messages"][-1].text == "Hello"
""",
    "cli": """
from memstate_core.cli.main import main
os.chdir(tempfile.mkdtemp())
for line in ("init", "log", "export all.jsonl", "import sqlite:///copy.db all.jsonl"):
    assert main(line.split()) == 0
with redirect_stderr(io.StringIO()) as said:
    assert main(["demo"]) == 2
assert "memstate[demo]" in said.getvalue()
""",
    "demo": """
from memstate_core.cli.main import main
from memstate_core.demo import acts, conversation, kills, memory
assert main(["demo", "--help"]) == 0
""",
    "otel": """
from opentelemetry import trace
used()
""",
}
LEFT_TO_THE_OTHERS = {"all", "dev"}  # they are made of them

_BEFORE = """
import importlib, importlib.util, io, json, os, sys, tempfile
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import distributions
from memstate import Fact, InMemoryStorage, LexicalEmbedder, MemoryStore, SQLiteStorage

def used(*hooks):
    with MemoryStore(SQLiteStorage(os.path.join(tempfile.mkdtemp(), "m.db")), hooks, allow_unregistered=True) as used:
        used.commit(Fact("note", {"text": "tea"}, id="a", session_id="s"))
        assert [found.fact.id for found in (used.search("tea") if hooks else ())] == ["a"] * len(hooks)
        used.rollback("s")
        assert used.count() == len(used.search("tea") if hooks else ()) == 0

store = MemoryStore(InMemoryStorage(), allow_unregistered=True)
with redirect_stdout(sys.stderr):
"""
_AFTER = """
missing = []
for module, vendor, extra in NEEDY:
    if importlib.util.find_spec(vendor) is None:
        try:
            importlib.import_module(module)
        except ImportError as error:
            assert f"memstate[{extra}]" in str(error), error
            missing.append(extra)
        else:
            raise AssertionError(f"{module} needs no {vendor}")
print(json.dumps([missing, {one.metadata["Name"]: one.version for one in distributions()}]))
"""

Tried = Callable[[Environment, str, str], list[str]]


def program(work: str) -> str:
    body = "".join(f"    {line}\n" for line in work.strip().splitlines())
    return f"NEEDY = {NEEDY!r}\n{_BEFORE}{body}{_AFTER}"


@pytest.fixture(scope="module")
def alone(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel and what it requires."""
    environment = Environment(tmp_path_factory.mktemp("alone"))
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    environment.link(closure(dependencies).values())
    environment.install(built[0])
    return environment


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Tried:
    """Does some work there, and sees what is said of what is not there; returns the extras that were named."""

    def tried(environment: Environment, extra: str, work: str) -> list[str]:
        done = environment.run("-W", "ignore", "-c", program(work))
        assert done.returncode == 0, done.stderr
        missing, versions = json.loads(done.stdout)
        versions = {canonicalize_name(name): version for name, version in versions.items()}
        asked = {canonicalize_name(Requirement(text).name) for text in environment.requirements("memstate")}
        known = ", ".join(f"{name} {versions[name]}" for name in sorted(asked & versions.keys()))
        record_property("installed", f"{extra or 'nothing else'}: {known}; {len(versions)} distributions in all")
        return list(missing)

    return tried


def test_the_wheel_alone(alone: Environment, tried: Tried) -> None:
    missing = tried(alone, "", "used()")
    assert set(missing) == {extra for _, _, extra in NEEDY}
    command = alone.run(alone.scripts / "memstate", "log")
    assert (command.returncode, command.stdout) == (2, "")
    assert command.stderr == 'memstate: typer is not installed; the command needs it: pip install "memstate[cli]"\n'


def test_the_sdist_alone(alone: Environment, built: tuple[Path, Path], tmp_path: Path) -> None:
    """It becomes what the wheel is."""
    environment = Environment(tmp_path / "env")
    environment.link(closure([*alone.requirements("memstate"), "hatchling"]).values())
    environment.install(built[1])

    def files(one: Environment) -> set[str]:
        found = (str(file) for file in one.metadata("memstate").files or ())
        return {file for file in found if not re.search(r"\.pyc$|direct_url|RECORD", file)}

    assert files(environment) == files(alone)
    assert len(files(alone)) > 100
    done = environment.run("-c", "import memstate; print(memstate.__version__, memstate.MemoryStore.__name__)")
    assert done.stdout == f"{project()['version']} MemoryStore\n", done.stderr


@pytest.mark.parametrize("extra", WORK)
def test_an_extra_alone(alone: Environment, extra: str, tmp_path: Path, tried: Tried) -> None:
    environment = Environment(tmp_path / "env")
    environment.link(closure(alone.requirements("memstate"), extra).values())
    for name in (*PACKAGES, alone.metadata("memstate")._path.name):  # type: ignore[attr-defined]
        (environment.site / name).symlink_to(alone.site / name)
    missing = tried(environment, extra, WORK[extra])
    assert extra not in missing


def test_every_extra_is_tried(alone: Environment) -> None:
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    assert set(extras) == WORK.keys() | LEFT_TO_THE_OTHERS
    whole = closure(alone.requirements("memstate"), "all").keys()
    assert whole == {name for extra in WORK for name in closure(alone.requirements("memstate"), extra)}


# So much may the imports on the right take, as a multiple of those on the left, in processor time.
@pytest.mark.parametrize(
    ("known", "ours", "times"),
    [
        ("import pydantic", "import memstate", 1.5),
        ("from pydantic import BaseModel", "from memstate import Constraint, MemoryStore, SQLiteStorage", 1.75),
    ],
)
def test_importing_takes_about_as_long_as_pydantic(alone: Environment, known: str, ours: str, times: float) -> None:
    """The least of several runs, which no other work on the machine makes less."""
    timed = "import time; began = time.process_time(); {}; print(time.process_time() - began)"
    least = dict.fromkeys((known, ours), float("inf"))
    for _ in range(7):
        for statement in least:
            done = alone.run("-c", timed.format(statement))
            least[statement] = min(least[statement], float(done.stdout))
    assert least[ours] <= times * least[known]
