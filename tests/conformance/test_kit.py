"""The kit itself: others can run it as its docstring says, and it finds what is broken."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path

import memstate_core.testing
from memstate_core.testing import hooks, shared_indexes, suite

ROOT = Path(__file__).parents[2]

GOOD = """
    import pytest
    from memstate_core import AsyncInMemoryStorage, InMemoryStorage
    from memstate_core.testing import HookFactory, Index, IndexHook, StorageFactory
    from memstate_core.testing.hooks import *
    from memstate_core.testing.suite import *

    @pytest.fixture(params=[InMemoryStorage, AsyncInMemoryStorage])
    def storages(request):
        return StorageFactory(lambda name: request.param(), persistent=False)

    @pytest.fixture
    def make_hook():
        indexes = {}
        return HookFactory(
            lambda name, target_types: IndexHook(indexes.setdefault(name, Index()), target_types, name)
        )
"""

# Storages that are wrong in one way each, and a test of the kit that must say so.
BROKEN = {
    "Halfway": "test_what_raises_leaves_no_trace",
    "Leaking": "test_nothing_crosses",
    "Careless": "test_one_fact_per_singleton_value or test_a_place_has_one_holder",
    "Forgetful": "test_everything_is_there or test_redo_goes_forward_again",
}
BROKEN_STORAGES = """
    import pytest
    from memstate_core import InMemoryStorage
    from memstate_core.storages._memory.transaction import MemoryTransaction
    from memstate_core.testing import StorageFactory
    from memstate_core.testing.suite import *

    class Halfway(InMemoryStorage):
        async def write(self, namespace, work):
            done = []
            async def careless(tx):
                write = tx.write
                async def remembered(batch):
                    done.append(batch)
                    return await write(batch)
                tx.write = remembered
                return await work(tx)
            try:
                return await super().write(namespace, careless)
            except BaseException:
                for batch in done:
                    await super().write(namespace, lambda tx: tx.write(batch))
                raise

    class Leaking(InMemoryStorage):
        async def read(self, namespace, work, *, snapshot=False):
            return await super().read("all", work)
        async def write(self, namespace, work):
            return await super().write("all", work)

    class Careless(InMemoryStorage):
        async def write(self, namespace, work):
            async def unchecked(tx):
                tx._check_places = lambda changes: None
                async def nobody(places): return {}
                tx.holders = nobody
                return await work(tx)
            return await super().write(namespace, unchecked)

    class Forgetful(InMemoryStorage):
        async def write(self, namespace, work):
            async def without_redo(tx):
                write = tx.write
                async def forget(batch):
                    if batch.entry is not None:
                        batch.entry = batch.entry._replace(redo=0)
                    return await write(batch)
                tx.write = forget
                return await work(tx)
            return await super().write(namespace, without_redo)

    @pytest.fixture(params=[Halfway, Leaking, Careless, Forgetful], ids=lambda kind: kind.__name__)
    def storages(request):
        return StorageFactory(lambda name: request.param(), persistent=False)
"""


def run_elsewhere(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a test file as somebody would who has only installed the package, with pytest's own defaults."""
    (folder / "test_mine.py").write_text(textwrap.dedent(text))
    (folder / "pytest.ini").write_text("[pytest]\n")
    # The plugin comes with LangChain, and takes longer to load than these tests to run.
    unneeded = ["-p", "no:cacheprovider", "-p", "no:langsmith_plugin"]
    command = [sys.executable, "-m", "pytest", "-q", *unneeded, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_others_can_run_it_as_its_docstring_says(tmp_path: Path) -> None:
    some = "TestRollback and not hundreds or TestFollowing or TestInDoubt or TestRecords"
    done = run_elsewhere(tmp_path, GOOD, "-k", some)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.strip().splitlines()[-1].split()[0]) > 60


def test_it_finds_what_is_broken(tmp_path: Path) -> None:
    some = " or ".join(f"({kind} and ({tests}))" for kind, tests in BROKEN.items())
    done = run_elsewhere(tmp_path, BROKEN_STORAGES, "-k", some, "-rA", "--tb=no")
    assert done.returncode == 1, done.stdout
    for kind, tests in BROKEN.items():
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED") and f"[{kind}" in line]
        assert any(test in line for line in failed for test in tests.split(" or ")), done.stdout


def test_the_suite_has_every_test_there_is() -> None:
    found = set()
    for module in pkgutil.iter_modules(memstate_core.testing.__path__):
        loaded = importlib.import_module(f"memstate_core.testing.{module.name}")
        found |= {
            name
            for name, thing in vars(loaded).items()
            if name.startswith("Test") and inspect.isclass(thing) and thing.__module__ == loaded.__name__
        }
        assert set(getattr(loaded, "__all__", [])) >= {
            name for name in found if getattr(getattr(loaded, name, None), "__module__", "") == loaded.__name__
        }
    assert found == set(suite.__all__) | set(hooks.__all__) | set(shared_indexes.__all__)
    assert not set(suite.__all__) & set(hooks.__all__)


def test_the_package_does_not_need_it() -> None:
    code = "import sys, memstate_core; sys.exit(any('pytest' in name or 'testing' in name for name in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_what_is_missing_is_named() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "try: import memstate_core.testing\n"
        "except ImportError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "memstate[dev]" in done.stdout
