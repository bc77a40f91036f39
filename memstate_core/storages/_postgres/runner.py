"""How works are run: optimistically, checked by the statement that writes, and again when something was in the way.

A work runs in one of four modes. FAST: statements by themselves, positions guessed; what the work relied on is checked
by the statement that writes. An error that it raises may come of a wrong guess or of reads of different moments: then
it runs again on a SNAPSHOT, and what it raises there is true. Who is refused several times stands in a QUEUE with
others of the namespace to whom that happened. A change of the definitions is EXCLUSIVE: all writers wait.

When the connection breaks while a batch is written, nobody knows what came of it. Then the transaction is *fenced off*:
what it relied on is changed so that it can never be applied any more, unless it was, which its id tells.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import itertools
import random
import re
import threading
import time
from typing import Any, Final, TypeVar

import psycopg

from memstate_core._random import random_bytes
from memstate_core.errors import ClosedError, MemoryStoreError, UnavailableError
from memstate_core.protocols import Batch, ClaimsLost, Work
from memstate_core.storages._known_records import KnownRecords
from memstate_core.storages._locks import refuse_nesting
from memstate_core.storages._ordinals import taken_seq
from memstate_core.storages._postgres.conflicts import conflict_of, refuse_one_place_for_two
from memstate_core.storages._postgres.errors import DriverError, is_outage, is_race, translate
from memstate_core.storages._postgres.fact_writes import LEAVE_PLACES, places_that_swap
from memstate_core.storages._postgres.fencing import Lost, fence_off
from memstate_core.storages._postgres.leases import Lease, is_idle
from memstate_core.storages._postgres.parts import CLAIMS, GROUND, array_text
from memstate_core.storages._postgres.parts import FACTS as FACTS_CHANGED
from memstate_core.storages._postgres.ports import Port, Source
from memstate_core.storages._postgres.positions import Positions
from memstate_core.storages._postgres.reading import ReadTransaction
from memstate_core.storages._postgres.schema import migrate
from memstate_core.storages._postgres.tables import (
    FACTS,
    NAMESPACES,
    TRANSACTIONS,
    WRITES,
    in_schema,
    key_of,
    name_of,
    sent,
)
from memstate_core.storages._postgres.transaction import NeedsExclusiveRight, WriteTransaction
from memstate_core.storages._postgres.writes import statement_of

T = TypeVar("T")

_PATIENT: Final = 3  # so often is a work refused before it stands in the queue
_RETRIES: Final = 3  # so often is a read tried again on a new connection
_TRIM_EVERY: Final = 256  # writes without an entry
_KEPT: Final = 3600  # so many seconds is an id of one kept

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_BEGIN_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_LOCK_WRITERS: Final = f"LOCK TABLE {name_of(FACTS)} IN SHARE ROW EXCLUSIVE MODE"
_MAKE_NAMESPACE: Final = (
    f"INSERT INTO {name_of(NAMESPACES)} (namespace, generation) VALUES ($1, 0) ON CONFLICT (namespace) DO NOTHING"
)
_LOCK_NAMESPACE: Final = f"SELECT generation FROM {name_of(NAMESPACES)} WHERE namespace = $1 FOR UPDATE"
_QUEUE: Final = "SELECT pg_advisory_xact_lock($1::bigint)"
_TRIM: Final = f"DELETE FROM {name_of(WRITES)} WHERE at < now() - interval '{_KEPT} seconds'"
_WORD: Final = re.compile(f"{GROUND}|{FACTS_CHANGED}|{CLAIMS}")


class Mode(enum.Enum):
    FAST = enum.auto()
    SNAPSHOT = enum.auto()
    QUEUE = enum.auto()
    EXCLUSIVE = enum.auto()


class _Refused(Exception):
    """What a batch builds on has changed; ``word`` says what."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


class _Doubtful(Exception):
    """A work raised, perhaps only since it saw what never was."""


class Runner:
    """Runs the works of one storage; the same for both flavours."""

    def __init__(
        self,
        source: Source,
        kind: str,
        prefix: str,
        *,
        timeout: float,
        payload_index: bool,
        distributed: bool,
        refuse_nested: bool,
    ) -> None:
        self.source = source
        self.prefix = prefix
        self.timeout = timeout
        self._kind = kind
        self._payload_index = payload_index
        self._distributed = distributed
        self._positions = Positions()
        self._known_records = KnownRecords()
        self._writes = 0
        self._ready = False
        self._closed = False
        self._threads = threading.local() if refuse_nested else None
        # What a client that was paused or cut off holds, the server takes from it, so that others need not wait for it;
        # not where a lock is held while new index entries are computed, which takes as long as there are facts.
        milliseconds = max(1, int(timeout * 1000))
        self.begin_exclusive = f"{_BEGIN}; SET LOCAL lock_timeout = {milliseconds}"
        self.begin_writing = f"{self.begin_exclusive}; SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"
        if distributed:
            self.begin_writing = "BEGIN"

    def text(self, text: str) -> bytes:
        return sent(text, self.prefix)

    # Opening and closing

    def check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"this {self._kind} ({self.source.shown}) was closed; make a new one")

    async def acquire(self) -> Port:
        self.check_open()
        port = await self.source.acquire(self.timeout)
        if not self._ready:
            try:
                await migrate(
                    self.source,
                    port,
                    self.prefix,
                    advisory_locks=not self._distributed,
                    payload_index=self._payload_index,
                    shown=self.source.shown,
                )
            except BaseException:
                await self.source.release(port, broken=not is_idle(port))
                raise
            self._ready = True
        return port

    def _lease(self) -> Lease:
        return Lease(self.acquire, self.source, self.begin_writing)

    async def open(self) -> None:
        lease = self._lease()
        try:
            await lease.get()
        except DriverError as error:
            self._translate(error)
        finally:
            await lease.end()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self.source.aclose()

    def _translate(self, error: BaseException) -> Any:
        self.check_open()
        translate(error, self.source.shown)

    def _inside(self) -> contextlib.AbstractContextManager[Any]:
        """What a thread of the sync flavour is in while it runs a work, so that it is known when it comes again."""
        self.check_open()
        if self._threads is None:
            return contextlib.nullcontext()
        lock: threading.RLock | None = getattr(self._threads, "lock", None)
        if lock is None:
            lock = self._threads.lock = threading.RLock()
        refuse_nesting(lock)
        return lock

    # Reading

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool) -> T:
        with self._inside():
            for attempt in itertools.count():
                lease = self._lease()
                try:
                    return await self._read(lease, namespace, work, snapshot)
                except DriverError as error:
                    last = attempt >= _RETRIES + self.source.idle_at_most
                    if last or self._closed or not (is_outage(error) or is_race(error)):
                        self._translate(error)
                    await self._pause(attempt)
                finally:
                    await lease.end()
            raise AssertionError("unreachable")

    async def namespaces(self) -> list[str]:
        async def work(tx: ReadTransaction) -> list[str]:
            return await tx.namespaces()

        return await self.read("", work, snapshot=False)  # type: ignore[arg-type]

    async def _read(self, lease: Lease, namespace: str, work: Work[T], snapshot: bool) -> T:
        async def hold() -> bool:
            return await lease.begin(_BEGIN_SNAPSHOT)

        tx = ReadTransaction(
            lease.ask,
            namespace,
            self.prefix,
            documents=self._payload_index,
            hold=hold,
            learns=self._known_records,
            sees=self._positions,
        )
        if snapshot:
            await hold()
        result = await work(tx)
        await lease.commit()
        return result

    async def _pause(self, failures: int) -> None:
        if failures:
            await self.source.sleep(random.random() * min(0.002 * 2**failures, 0.1))

    # Writing

    async def write(self, namespace: str, work: Work[T]) -> T:
        with self._inside():
            try:
                return await self._write_until_done(namespace, work)
            except DriverError as error:
                return self._translate(error)  # type: ignore[no-any-return]

    async def _write_until_done(self, namespace: str, work: Work[T]) -> T:
        deadline = time.monotonic() + self.timeout
        mode = Mode.FAST
        failures = outages = 0
        while True:
            lease = self._lease()
            try:
                result: T = await self._attempt(lease, namespace, work, mode)
                return result
            except NeedsExclusiveRight:
                mode = Mode.EXCLUSIVE
                continue
            except _Doubtful:
                mode = Mode.SNAPSHOT
                continue
            except Lost as lost:
                await lease.end()
                if await self._was_written(namespace, lost, deadline):
                    return lost.result  # type: ignore[no-any-return]
                reason: BaseException = lost.error
            except _Refused as refused:
                reason = refused
            except DriverError as error:
                if not (is_race(error) or is_outage(error)) or self._closed:
                    raise
                reason = error
            finally:
                await lease.end()
            failures += 1
            outages += is_outage(reason)
            if time.monotonic() > deadline or outages > _RETRIES + self.source.idle_at_most:
                if isinstance(reason, DriverError):
                    raise reason
                raise UnavailableError(
                    f"other transactions were in the way for {self.timeout:g} s; nothing was written, try again"
                )
            if mode is not Mode.EXCLUSIVE:
                mode = Mode.QUEUE if failures >= _PATIENT else Mode.FAST
            await self._pause(failures - 1)

    async def _attempt(self, lease: Lease, namespace: str, work: Work[T], mode: Mode) -> T:
        """Run a work once, and write what it wants written.

        :raises _Refused: what it relied on does not hold.
        :raises _Doubtful: it raised, and may have been misled.
        """
        fast = mode is Mode.FAST
        tx = WriteTransaction(
            lease.ask,
            namespace,
            self.prefix,
            documents=self._payload_index,
            guesses=self._positions if fast else None,
            known_records=self._known_records if fast else None,
            exclusive=mode is Mode.EXCLUSIVE,
            begin=lease.begin,
        )
        if not fast:
            await self._begin(lease, namespace, mode)
        try:
            result = await work(tx)
        except (NeedsExclusiveRight, *DriverError):
            raise
        except Exception as error:
            misled = tx.guessed or (lease.asked > 1 and not lease.begun)
            if (fast and misled) or mode is Mode.QUEUE:
                self._forget(namespace, tx)
                raise _Doubtful from error
            raise
        if mode is Mode.SNAPSHOT:
            await lease.commit()
        if tx.batch is not None and _writes(tx.batch):
            await self._write(lease, namespace, tx, result)
        else:
            if tx.guessed:
                await self._check_guesses(namespace, tx)
            await lease.commit()
        return result

    async def _begin(self, lease: Lease, namespace: str, mode: Mode) -> None:
        if mode is Mode.SNAPSHOT:
            await lease.begin(_BEGIN_SNAPSHOT)
        elif self._distributed:
            await lease.ask(self.text(_MAKE_NAMESPACE), (key_of(namespace),))
            await lease.begin()
            await lease.ask(self.text(_LOCK_NAMESPACE), (key_of(namespace),))
        elif mode is Mode.EXCLUSIVE:
            await lease.begin(f"{self.begin_exclusive}; {in_schema(_LOCK_WRITERS, self.prefix)}")
        else:
            await lease.begin()
            digest = hashlib.sha256(f"{self.prefix} {namespace}".encode()).digest()
            await lease.ask(_QUEUE.encode(), (str(int.from_bytes(digest[:8], signed=True)),))

    async def _check_guesses(self, namespace: str, tx: WriteTransaction) -> None:
        """A work that writes nothing has an answer all the same, which must not come of a wrong guess."""
        for session_id, guess in tx.ground.positions.items():
            real = await tx.real_position(session_id)
            self._positions.learn(namespace, session_id, *real)
            if real != guess:
                raise _Refused(GROUND)
        records = await tx.real_records(list(tx.guessed_records))
        self._known_records.doubt(namespace, records)
        self._known_records.learn(namespace, records)
        if any(tx.ground.records[place] != value for place, value in records.items()):
            raise _Refused(GROUND)

    async def _write(self, lease: Lease, namespace: str, tx: WriteTransaction, result: Any) -> None:
        batch = tx.batch
        assert batch is not None
        port = await lease.get()
        refuse_one_place_for_two(batch)
        latest = 0
        if batch.entry is not None:
            session_id = batch.entry.session_id
            known = tx.ground.positions.get(session_id) or self._positions.guess(namespace, session_id)
            latest = (known or await tx.real_position(session_id))[1]
        # The time comes first, so that ids that are kept are put in at one end of their index.
        token = (int(time.time() * 1000).to_bytes(6) + random_bytes()[:10]).hex()
        text, values = statement_of(batch, key_of(namespace), token, tx.ground, latest, shared=self._distributed)
        swapping = places_that_swap(batch.changes)
        began = time.time()
        try:
            if swapping or not (port.read_committed or self._distributed):
                await lease.begin()
            if swapping:
                await port.execute(self.text(LEAVE_PLACES), (key_of(namespace), array_text(swapping)))
            rows = await port.execute(self.text(text), values)
            await lease.commit()
        except psycopg.Error as error:
            if port.connection.closed or is_outage(error):
                raise Lost(tx, result, token, latest, error, began) from error
            await lease.roll_back()
            self._forget(namespace, tx)
            if batch.entry is not None and batch.entry.seq and error.diag.table_name == TRANSACTIONS.name:
                raise taken_seq(batch.entry.seq) from error
            word = _word_of(error)
            if word == CLAIMS:
                raise ClaimsLost from None
            if word == FACTS_CHANGED:
                conflict = await self._read(lease, namespace, lambda now: conflict_of(now, batch, tx.ground), False)
                if conflict is not None:
                    raise (conflict if batch.dropped is None else ClaimsLost()) from None
            if word is not None:
                raise _Refused(word) from error
            raise
        batch.seq = rows[0][0]
        self._learn(namespace, tx)
        if batch.entry is None:
            await self._trim(port)

    def _forget(self, namespace: str, tx: WriteTransaction) -> None:
        self._positions.forget_ground(namespace)
        self._known_records.doubt(namespace, tx.guessed_records)
        for session_id in tx.ground.positions:
            self._positions.forget(namespace, session_id)
        if tx.batch is not None and tx.batch.entry is not None:
            self._positions.forget(namespace, tx.batch.entry.session_id)

    def _learn(self, namespace: str, tx: WriteTransaction) -> None:
        batch = tx.batch
        assert batch is not None
        entry = batch.entry
        for session_id, known in tx.ground.positions.items():
            if entry is None or session_id != entry.session_id:
                self._positions.learn(namespace, session_id, *known)
        if tx.ground.records or batch.records:
            self._known_records.learn(namespace, tx.ground.records)
            self._known_records.learn(
                namespace, {(write.collection, write.key): write.value for write in batch.records}
            )
        if entry is not None:
            head = batch.seq if entry.head is None else entry.head
            ground, _ = tx.ground.positions.get(entry.session_id, (None, 0))
            self._positions.moved(namespace, entry.session_id, head, entry.redo, batch.seq, ground)
        if batch.claims or batch.definitions or batch.drop_claims_of is not None:
            self._positions.forget_ground(namespace)

    async def _trim(self, port: Port) -> None:
        """Forget old ids once in a while.

        A failure is nobody's: what was to be written is written, and must not be again.
        """
        self._writes += 1
        if self._writes % _TRIM_EVERY == 0:
            with contextlib.suppress(psycopg.Error):
                await port.execute(self.text(_TRIM))

    # When it did not go well

    async def _was_written(self, namespace: str, lost: Lost, deadline: float) -> bool:
        """Whether a batch whose reply was lost was written; if not, it never will be.

        :raises UnavailableError: the database cannot be asked.
        """
        self._forget(namespace, lost.tx)
        if lost.tx.batch is not None:
            self._known_records.forget(namespace, [(one.collection, one.key) for one in lost.tx.batch.records])
        failures = 0
        while True:
            lease = self._lease()
            try:
                seq = await fence_off(await lease.get(), self.prefix, namespace, lost)
                if seq is None and time.time() - lost.began > _KEPT / 2:
                    raise UnavailableError("this process was stopped for so long that its id may be forgotten")
                break
            except (MemoryStoreError, *DriverError) as error:  # also: closed meanwhile, or no connection to be had
                if not is_outage(error) or time.monotonic() > deadline:
                    raise UnavailableError(
                        f"the connection to {self.source.shown} broke while a transaction was being written "
                        f"({lost.error}), and whether it was cannot be told: {error}; look before trying again"
                    ) from error
            finally:
                await lease.end()
            failures += 1
            await self.source.sleep(min(0.05 * 2**failures, 1.0))
        if seq is None:
            return False
        assert lost.tx.batch is not None
        lost.tx.batch.seq = seq
        return True

    def after_fork(self) -> None:
        self._positions.after_fork()
        self._known_records.after_fork()


def _word_of(error: psycopg.Error) -> str | None:
    """What the statement that writes said was wrong, if it was that."""
    if isinstance(error, psycopg.errors.UniqueViolation):
        return FACTS_CHANGED
    if isinstance(error, psycopg.errors.InvalidTextRepresentation):
        found = _WORD.search(str(error))
        return found.group() if found else None
    return None


def _writes(batch: Batch) -> bool:
    """Whether there is anything in a batch."""
    return any(
        (
            batch.entry is not None,
            batch.changes,
            batch.savepoint is not None,
            batch.records,
            batch.definitions,
            batch.claims,
            batch.drop_claims_of is not None,
            batch.deferred,
            batch.settlement is not None,
        )
    )
