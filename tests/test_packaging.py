"""What is installed, what importing it costs, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("memstate", "memstate_core", "memstate_langchain", "memstate_langgraph")
VENDORS = (
    "IPython",
    "chromadb",
    "langchain_core",
    "langgraph",
    "numpy",
    "opentelemetry",
    "psycopg",
    "qdrant_client",
    "redis",
    "rich",
    "sqlalchemy",
    "typer",
)
# Modules that need a vendor, the vendor, and the extra that brings it.
NEEDY = (
    ("memstate.backends.postgres", "psycopg", "postgres"),
    ("memstate.backends.postgres", "sqlalchemy", "postgres"),
    ("memstate.integrations.chroma", "chromadb", "chroma"),
    ("memstate.integrations.qdrant", "qdrant_client", "qdrant"),
    ("memstate.backends.redis", "redis", "redis"),
    ("memstate.integrations.langgraph", "langgraph", "langgraph"),
    ("memstate_langgraph", "langgraph", "langgraph"),
    ("memstate.integrations.langchain", "langchain_core", "langchain"),
    ("memstate_langchain", "langchain_core", "langchain"),
    ("memstate_langchain.middleware", "langchain", "langchain"),
    ("memstate_core.testing", "hypothesis", "dev"),
)


def project() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings: dict[str, object] = tomllib.load(file)["project"]
    return settings


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The top-level names of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            yield node.module.partition(".")[0]


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> zipfile.ZipFile:
    return zipfile.ZipFile(built[0])


@pytest.mark.xdist_group("built")
class TestWheel:
    def test_it_is_named_after_the_version(self, wheel: zipfile.ZipFile) -> None:
        assert wheel.filename is not None
        assert Path(wheel.filename).name == f"memstate-{project()['version']}-py3-none-any.whl"

    def test_it_has_every_module_and_nothing_else(self, wheel: zipfile.ZipFile) -> None:
        packed = {name for name in wheel.namelist() if name.endswith(".py")}
        assert packed == {str(path.relative_to(ROOT)) for package in PACKAGES for path in modules(package)}
        assert {name.partition("/")[0] for name in wheel.namelist()} == {
            *PACKAGES,
            f"memstate-{project()['version']}.dist-info",
        }

    @pytest.mark.parametrize("package", PACKAGES)
    def test_packages_are_typed(self, wheel: zipfile.ZipFile, package: str) -> None:
        assert f"{package}/py.typed" in wheel.namelist()

    def test_it_has_the_conversation_of_the_demo(self, wheel: zipfile.ZipFile) -> None:
        assert wheel.read("memstate_core/demo/conversation.json")

    def test_it_has_the_licence(self, wheel: zipfile.ZipFile) -> None:
        name = f"memstate-{project()['version']}.dist-info/licenses/LICENSE"
        assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()
        assert b"Apache License" in wheel.read(name)

    def test_it_installs_the_command(self, wheel: zipfile.ZipFile) -> None:
        text = wheel.read(f"memstate-{project()['version']}.dist-info/entry_points.txt").decode()
        assert "memstate = memstate_core.cli.main:main" in text


@pytest.mark.parametrize(
    "package", ["memstate", "memstate_core", "memstate.backends", "memstate.display", "memstate.integrations"]
)
def test_importing_a_root_imports_no_vendor(package: str) -> None:
    finished = python(f"import sys; from {package} import *; print(*sorted({set(VENDORS)!r} & set(sys.modules)))")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == ""


def test_langchain_comes_alone() -> None:
    """Without its agents, which take long to import, and without the vendors of vector stores."""
    others = (set(VENDORS) | {"langchain", "langchain_chroma"}) - {"langchain_core", "numpy", "opentelemetry"}
    finished = python(f"import sys, memstate_langchain; print(*sorted({others!r} & set(sys.modules)))")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == ""


@pytest.mark.parametrize(("module", "vendor", "extra"), NEEDY)
def test_a_missing_extra_is_named(module: str, vendor: str, extra: str) -> None:
    finished = python(
        f"""
import sys
sys.modules[{vendor!r}] = None
try:
    import {module}
except ImportError as error:
    print(error)
"""
    )
    assert finished.returncode == 0, finished.stderr
    assert f"memstate[{extra}]" in finished.stdout
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    assert extra in extras


@pytest.mark.parametrize("name", ["AsyncPostgresStorage", "PostgresStorage"])
def test_what_needs_a_vendor_is_imported_when_it_is_asked_for(name: str) -> None:
    import memstate

    assert getattr(memstate, name).__name__ == name
    assert name not in memstate.__all__  # or "import *" would need every vendor
    finished = python(
        f"""
import sys
sys.modules["psycopg"] = None
import memstate
try:
    memstate.{name}
except ImportError as error:
    print(error)
try:
    memstate.nothing
except AttributeError as error:
    print(error)
"""
    )
    assert "memstate[postgres]" in finished.stdout
    assert "'nothing'" in finished.stdout


def test_the_rest_of_a_root_is_there_too() -> None:
    """Its modules, by a bare import of it; and help, which asks for all that it names, where no vendor is."""
    finished = python(
        f"""
import memstate, memstate_core, pydoc, sys
assert memstate_core.errors.ConflictError is memstate.ConflictError
assert memstate.backends.__name__ == "memstate.backends"
assert not hasattr(memstate, "errors") and not hasattr(memstate_core, "backends")
sys.modules.update(dict.fromkeys({VENDORS!r}))
for root in memstate, memstate_core:
    assert "MemoryStore" in pydoc.render_doc(root)
"""
    )
    assert finished.returncode == 0, finished.stderr


def test_version_is_that_of_the_distribution() -> None:
    import memstate

    assert memstate.__version__ == project()["version"]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("memstate_core", {"memstate", "memstate_langchain", "memstate_langgraph"}),
        ("memstate_langchain", {"memstate", "memstate_langgraph"}),
        ("memstate_langgraph", {"memstate", "memstate_langchain"}),
    ],
)
def test_layers(package: str, forbidden: set[str]) -> None:
    assert modules(package)
    for path in modules(package):
        assert not forbidden & set(imported(path)), f"{path.relative_to(ROOT)} imports a package above or beside it"


@pytest.mark.parametrize("path", modules("memstate"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_facade_has_no_logic(path: Path) -> None:
    """A docstring, imports, and the names that are exported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body[1:]:
        if isinstance(node, ast.If):
            # What is imported when it is asked for.
            assert ast.unparse(node.test) in ("TYPE_CHECKING", "not TYPE_CHECKING")
        elif isinstance(node, ast.Assign):
            assert ast.unparse(node.targets[0]) == "__all__"
        else:
            assert isinstance(node, ast.Import | ast.ImportFrom), f"line {node.lineno} is logic"


@pytest.mark.parametrize("path", modules("memstate"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_facade_exports_what_it_imports(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
        if alias.asname is None  # the others are no part of "import *"
    }
    exported = [
        name
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.literal_eval(node.value)
    ]
    assert sorted(exported) == sorted(names)


def test_what_is_imported_when_asked_for_is_what_types_say() -> None:
    from memstate_core import _lazy

    tree = ast.parse((ROOT / "memstate_core" / "__init__.py").read_text(encoding="utf-8"))
    typed, _ = (node for node in tree.body if isinstance(node, ast.If))
    said = {alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    for_notebooks = {name for name in _lazy._MODULES if name.endswith("load_ipython_extension")}
    assert {name: module for name, module in _lazy._MODULES.items() if name not in for_notebooks} == said


def test_the_facade_exports_all_of_the_core() -> None:
    import memstate
    import memstate_core

    assert memstate.__all__ == memstate_core.__all__
    assert set(memstate.__all__) < set(dir(memstate))
    assert all(getattr(memstate, name) is getattr(memstate_core, name) for name in memstate.__all__)


def test_every_error_is_public() -> None:
    import memstate_core.errors

    classes = [value for value in vars(memstate_core.errors).values() if isinstance(value, type)]
    assert {error.__name__ for error in classes if issubclass(error, Exception)} <= set(memstate_core.__all__)
