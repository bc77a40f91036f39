"""What any storage and any hook must do, as tests that anybody can run.

With ``pip install "memstate[dev]"``, a test file of your own imports the tests and provides a fixture. For a storage::

    from memstate_core.testing import StorageFactory
    from memstate_core.testing.suite import *  # all; or from .writing, .going_back, .reading, … what you want

    @pytest.fixture(params=[MyStorage, AsyncMyStorage])
    def storages(request, tmp_path):  # make(name) opens the database of that name: a new and empty one at first
        return StorageFactory(lambda name: request.param(tmp_path / name), persistent=True)

For a hook it is ``from memstate_core.testing.hooks import *`` and a fixture ``make_hook`` that returns
``HookFactory(lambda name, target_types: MyHook(…))``, whose hooks keep the payload field ``text`` of facts of
``target_types`` in the index called ``name``. MemState's own ``tests/conformance`` does no more. Every test is written
once: :class:`Face` lets it await stores of both flavours. ``HYPOTHESIS_PROFILE=thorough`` makes the random ones long.
"""

from __future__ import annotations

import pkgutil

try:
    import hypothesis as _hypothesis  # noqa: F401
    import pytest
    import pytest_asyncio as _pytest_asyncio  # noqa: F401
except ImportError as error:
    raise ImportError(
        'the conformance kit needs pytest, pytest-asyncio and hypothesis: pip install "memstate[dev]"'
    ) from error

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from memstate_core.testing.face import Face, TransactionFace  # noqa: E402
from memstate_core.testing.factories import HookFactory, StorageFactory, Stores  # noqa: E402
from memstate_core.testing.faults import Fault, FaultyHook, FaultyStorage  # noqa: E402
from memstate_core.testing.index import AsyncIndexHook, Index, IndexHook  # noqa: E402

__all__ = [
    "AsyncIndexHook",
    "Face",
    "Fault",
    "FaultyHook",
    "FaultyStorage",
    "HookFactory",
    "Index",
    "IndexHook",
    "StorageFactory",
    "Stores",
    "TransactionFace",
]
