"""Every error of MemState, and how they are related.

::

    MemoryStoreError (also named MemStateError)
    ├── ValidationFailed        a payload, a schema or an identifier is not what it must be (also a ValueError)
    ├── NotFoundError           no such fact, transaction, savepoint or mark
    ├── ConflictError           the store has moved on, or two facts would claim one place
    │   ├── ImmutableError      the fact's type forbids changing it
    │   └── BusyError           another transaction holds the fact (also a TransientError)
    ├── HookError               an index could not follow; carries hook, operation, in_doubt
    │   └── HookTimeoutError    … because it took too long (also a TimeoutError)
    └── StorageError            the database refused or is unusable
        ├── ClosedError         the store or storage was closed
        └── UnavailableError    locked, full or unreachable for now (also a TransientError)

    TransientError (mixin)      trying the same call again may succeed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class MemoryStoreError(Exception):
    """Base of every error that MemState raises on purpose."""


MemStateError = MemoryStoreError


class TransientError(Exception):
    """Mixin: the cause may pass, so the same call may succeed when it is tried again."""


class ValidationFailed(MemoryStoreError, ValueError):
    """Data, a schema or an identifier that the store does not take.

    ``typename`` is the fact's type when it is known, ``path`` the dotted path of the first
    offending field, and ``errors`` what Pydantic reports (``ValidationError.errors()``), if it does.
    """

    def __init__(
        self,
        message: str,
        *,
        typename: str | None = None,
        path: str | None = None,
        errors: Sequence[Any] = (),
    ) -> None:
        super().__init__(message)
        self.typename = typename
        self.path = path
        self.errors = tuple(errors)


class NotFoundError(MemoryStoreError):
    """What was named does not exist; nothing was changed."""


class ConflictError(MemoryStoreError):
    """The change does not fit what is stored now; nothing was changed.

    ``fact_id`` names the fact. For a version conflict ``expected_version`` and ``actual_version``
    are set (0: no such fact). For a change that another session has made since, ``session_id`` and
    ``transaction_id`` say whose it is.
    """

    def __init__(
        self,
        message: str,
        *,
        fact_id: str | None = None,
        session_id: str | None = None,
        transaction_id: str | None = None,
        expected_version: int | None = None,
        actual_version: int | None = None,
    ) -> None:
        super().__init__(message)
        self.fact_id = fact_id
        self.session_id = session_id
        self.transaction_id = transaction_id
        self.expected_version = expected_version
        self.actual_version = actual_version


class ImmutableError(ConflictError):
    """The fact's type is registered as immutable."""


class BusyError(ConflictError, TransientError):
    """Another transaction held a claim on the fact for longer than the store waits."""


class HookError(MemoryStoreError):
    """A hook failed; the transaction it took part in was undone.

    ``hook`` is its name, ``operation`` one of ``"prepare"``, ``"apply"``, ``"search"``, ``"scan"``,
    ``"lookup"`` or ``"recover"``, and ``in_doubt`` the ids of the facts whose index entries could not be restored:
    empty when all is as it was. The cause is chained (``__cause__``).
    """

    def __init__(
        self,
        message: str,
        *,
        hook: str | None = None,
        operation: str | None = None,
        in_doubt: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.hook = hook
        self.operation = operation
        self.in_doubt = tuple(in_doubt)


class HookTimeoutError(HookError, TimeoutError):
    """A hook raised :class:`TimeoutError`; the transaction it took part in was undone."""


class StorageError(MemoryStoreError):
    """The database refused, or cannot be used as it is."""


class ClosedError(StorageError):
    """The store or its storage was closed."""


class UnavailableError(StorageError, TransientError):
    """The database is locked, full or unreachable for now."""
