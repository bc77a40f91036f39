"""What coverage watches, which makes it take twice as long."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Generator, Iterator
from typing import Any

import pytest

# It watches every rule once, on memory; of what depends on the storage, each storage once; of the indexes, those in the
# same process that are not awaited; and nothing that tests more than the core, or finds hardly anything that others do
# not find in less time.
_WATCHED = ("memory", "sqlite-file-async", "postgres-async", "redis-sync")
_STORAGES = ("storage_protocol", "records", "outbox", "opening")
# Of what only an asynchronous store has, on memory too.
_AWAITED = "memory-async"
# What the core imports and takes long.
_VENDORS = ("chromadb", "hypothesis", "qdrant_client", "sqlalchemy.ext.asyncio")
_FLAVOURED = ("-sync", "-async")
_UNWATCHED = (
    "tests/faults/",
    "tests/schedules/",
    "tests/langchain/",
    "tests/langgraph/",
    "tests/demo/test_kills.py",
    "tests/demo/test_locomo.py",
    "tests/demo/test_memory.py",
    "tests/hooks/test_chroma_conformance.py",
    "tests/hooks/test_embedding.py",
    "tests/hooks/test_filters.py",
    "tests/hooks/test_mapping.py",
    "tests/test_",
    "tests/unit/test_filters.py",
)
# Tests that take long, and go only where others have been.
_LONG = (
    "test_an_exception_rolls_it_back",
    "test_behind_pgbouncer",
    "test_beside_threads",
    "test_drift_is_found_and_mended",
    "test_equal_texts_do_not_hide_the_others",
    "test_functions_and_other_names_take_part",
    "test_memory_stays_flat",
    "test_mistakes_are_named",
    "test_other_looks_stay",
    "test_places_are_equal_when_type_values_and_session_are",
    "test_plain_data_look_like_tables",
    "test_the_model_changes_under_threads_of_the_same_store",
    "test_the_traceback_shows_the_cell",
    "test_threads_share_a_hook",
    "test_undoing_any_history_and_doing_it_again",
    "test_vectors_of_the_one_before_are_refused",
    "test_what_a_cell_gives_is_its_last_value",
    "test_what_has_ended_is_garbage_at_once",
    "test_what_is_stored_or_refused_is_the_same_as_when_all_is_validated",
    "test_when_a_hook_fails_too",
)
# Cases of the hooks' tests.
_ELSEWHERE = ("async", "http", "-before", "-after")


def _is_watched(test: str) -> bool:
    place, _, parameters = test.partition("[")
    file = place.partition("::")[0]
    if file.startswith(_UNWATCHED) or place.endswith(_LONG):
        return False
    if file.startswith("tests/conformance/") and any(one in parameters for one in _FLAVOURED):
        name = file.removeprefix("tests/conformance/test_").removesuffix(".py")
        watched = _WATCHED if name in _STORAGES else _AWAITED if name == "cancelling" else _WATCHED[0]
        return parameters.removeprefix("plain-").removeprefix("hooks-").startswith(watched)
    return not (file.startswith("tests/hooks/") and any(case in parameters for case in _ELSEWHERE))


def watch(config: pytest.Config) -> None:
    """Let coverage, if it is there, watch those tests, and neither the others nor pytest."""
    plugin = config.pluginmanager.getplugin("_cov")
    if plugin is None or plugin.cov_controller is None:
        return
    is_worker = hasattr(config, "workerinput")
    if is_worker or config.option.tx:
        # The tests run in other processes than the master's. Each of these begins as a master too, whose watching would
        # go on whenever the process's own is paused.
        plugin.cov_controller.cov.stop()
    if is_worker or not config.option.tx:
        config.pluginmanager.register(_Watching(plugin))


class _Watching:
    def __init__(self, plugin: Any) -> None:
        self._plugin = plugin

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, Any, Any]:
        """The core is imported under watch here, so that nobody need watch the rest of the collection."""
        self._plugin.cov_controller.pause()
        for name in _VENDORS:
            importlib.import_module(name)
        self._plugin.cov_controller.resume()
        core = importlib.import_module("memstate_core")
        for module in pkgutil.walk_packages(core.__path__, "memstate_core."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)
        self._plugin.cov_controller.pause()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        with self._watched() if _is_watched(item.nodeid) else contextlib.nullcontext():
            return (yield)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        self._plugin.cov_controller.resume()
        try:
            yield
        finally:
            self._plugin.cov_controller.pause()
