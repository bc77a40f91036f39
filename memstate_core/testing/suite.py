"""All that a storage must do: every test that needs nothing but the fixture ``storages``."""

from __future__ import annotations

from memstate_core.testing.blocks import TestBlock, TestInterference, TestSavepoints
from memstate_core.testing.cancelling import TestCancelling
from memstate_core.testing.claims import TestLeases, TestOwners
from memstate_core.testing.delivering import TestDelivery
from memstate_core.testing.going_back import (
    TestCheckout,
    TestConflicts,
    TestHistory,
    TestRedo,
    TestRollback,
    TestRollbackTo,
)
from memstate_core.testing.hook_transactions import TestBesideAHook, TestFailingHooks, TestInDoubt
from memstate_core.testing.namespaces import TestNamespaces
from memstate_core.testing.odd_names import TestNoNames, TestOddNames
from memstate_core.testing.opening import TestClosing, TestReopening
from memstate_core.testing.outbox import TestOutbox
from memstate_core.testing.past import TestPast
from memstate_core.testing.racing import TestRacing
from memstate_core.testing.reading import TestGet, TestQuery, TestRandomQueries
from memstate_core.testing.rebuilding import TestRebuilding
from memstate_core.testing.records import TestRecords
from memstate_core.testing.schemas import TestMigrations, TestRegisteredAgain, TestRegistration
from memstate_core.testing.state_machine import TestStateMachine
from memstate_core.testing.storage_faults import TestStorageFaults
from memstate_core.testing.storage_protocol import TestAtomicity, TestFacts, TestJournal, TestSelect, TestTheRest
from memstate_core.testing.transferring import TestTransfer
from memstate_core.testing.values import TestModels, TestValues
from memstate_core.testing.verifying import TestVerify, TestVerifyBesideWriters
from memstate_core.testing.writing import (
    TestCommit,
    TestCommitModel,
    TestDelete,
    TestExpectedVersion,
    TestImmutable,
    TestSessions,
    TestSingletons,
    TestUpdate,
)

__all__ = [
    "TestAtomicity",
    "TestBesideAHook",
    "TestBlock",
    "TestCancelling",
    "TestCheckout",
    "TestClosing",
    "TestCommit",
    "TestCommitModel",
    "TestConflicts",
    "TestDelete",
    "TestDelivery",
    "TestExpectedVersion",
    "TestFacts",
    "TestFailingHooks",
    "TestGet",
    "TestHistory",
    "TestImmutable",
    "TestInDoubt",
    "TestInterference",
    "TestJournal",
    "TestLeases",
    "TestMigrations",
    "TestModels",
    "TestNamespaces",
    "TestNoNames",
    "TestOddNames",
    "TestOutbox",
    "TestOwners",
    "TestPast",
    "TestQuery",
    "TestRacing",
    "TestRandomQueries",
    "TestRebuilding",
    "TestRecords",
    "TestRedo",
    "TestRegisteredAgain",
    "TestRegistration",
    "TestReopening",
    "TestRollback",
    "TestRollbackTo",
    "TestSavepoints",
    "TestSelect",
    "TestSessions",
    "TestSingletons",
    "TestStateMachine",
    "TestStorageFaults",
    "TestTheRest",
    "TestTransfer",
    "TestUpdate",
    "TestValues",
    "TestVerify",
    "TestVerifyBesideWriters",
]
