"""How works are run on Redis: on what is believed first, verified when they write, and again when that was wrong.

A work that keeps losing against others takes the lock of its namespace, which all writers respect, and which is held
for no longer than that one transaction. Whoever holds it may die: the lock ends by itself, and the script that writes
verifies it like everything else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeVar

from redis import exceptions

from memstate_core._random import random_bytes
from memstate_core.errors import ClosedError, ConflictError, StorageError, UnavailableError
from memstate_core.protocols import Batch, ClaimsLost, Work
from memstate_core.storages._ordinals import ordinal, taken_seq
from memstate_core.storages._places import shared_place
from memstate_core.storages._redis.errors import is_lost, is_no_script, is_passing, is_read_only, translated
from memstate_core.storages._redis.keys import Keys
from memstate_core.storages._redis.known import Holder, Known, Namespaces, Slot
from memstate_core.storages._redis.plan import Plan, plan_of, verification
from memstate_core.storages._redis.port import Port
from memstate_core.storages._redis.schema import FORMAT, LOOK, migration
from memstate_core.storages._redis.scripts import HAS_ANYTHING, LOCK, UNLOCK, Script
from memstate_core.storages._redis.server import check_server
from memstate_core.storages._redis.transaction import RedisTransaction
from memstate_core.storages._redis.write_script import ABANDON, WRITE

T = TypeVar("T")

logger = logging.getLogger("memstate.redis")

# After so many attempts a work takes the lock, and after one that took so long, in seconds.
_TRIES: Final = 3
_LONG: Final = 1.0
_LOCK_SECONDS: Final = 5.0
_AGAIN: Final[Any] = object()


def _learn_holders(known: Known, tx: RedisTransaction, batch: Batch, stamp: int) -> None:
    """Learn which facts have singleton places now, and where nobody is left."""
    for before, _, _ in batch.changes:
        if before is not None and before.singleton is not None:
            known.learn_holder(before.singleton, Holder(None, "", 0), stamp)
    for number, (before, after, _) in enumerate(batch.changes):
        if after is not None and after.singleton is not None:
            placed = after if after.ordinal >= 0 else after._replace(ordinal=ordinal(batch.seq, number))
            latest = tx.latest_read(after.id)
            if before is not None and latest is not None:
                latest = max(latest, before.version)
            if latest is not None or before is None:
                known.learn_holder(after.singleton, Holder(placed, str(stamp), latest or 0), stamp)


class Core:
    """What both flavours of the storage are made of. ``port`` gives the connection, which may change after a fork."""

    def __init__(
        self,
        port: Callable[[], Port],
        *,
        name: str,
        prefix: str,
        timeout: float,
        wait_replicas: int,
        wait_timeout: float,
    ) -> None:
        self._port = port
        self._name = name
        self._prefix = prefix
        self._timeout = timeout
        self._wait_replicas = wait_replicas
        self._wait_milliseconds = int(wait_timeout * 1000)
        self._reached = False
        self.closed = False
        self.start_anew()

    def start_anew(self) -> None:
        """In a forked child: what the parent's threads held, and the parent's slots, are not ours."""
        self._namespaces = Namespaces(self._prefix)
        self._slots: deque[Slot] = deque()

    # Works

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool) -> T:
        known = await self._open(namespace)
        if not snapshot:
            return await work(RedisTransaction(self, known, stamped=False))
        for attempt in range(_TRIES + 2):
            result = await self._read_once(known, work)
            if result is not _AGAIN:
                return result
            await self._pause(attempt)
        deadline = time.monotonic() + self._timeout
        while True:
            async with self._locked(known, deadline):
                result = await self._read_once(known, work)
            if result is not _AGAIN:
                return result

    async def _read_once(self, known: Known, work: Work[T]) -> T:
        tx = RedisTransaction(self, known)
        try:
            result = await work(tx)
        except Exception:
            if not tx.torn:
                raise
            return _AGAIN  # type: ignore[no-any-return]
        if tx.torn:
            return _AGAIN  # type: ignore[no-any-return]
        known.learn_records(tx.records_seen)
        return result

    async def write(self, namespace: str, work: Work[T]) -> T:
        known = await self._open(namespace)
        deadline = time.monotonic() + self._timeout
        for attempt in range(_TRIES):
            began = time.monotonic()
            result = await self._write_once(known, work, None, deadline, predicting=not attempt)
            if result is not _AGAIN:
                return result
            if time.monotonic() - began > _LONG:
                break
            await self._pause(attempt)
        while True:
            async with self._locked(known, deadline) as lock:
                result = await self._write_once(known, work, lock, deadline)
            if result is not _AGAIN:
                return result

    async def namespaces(self) -> list[str]:
        await self.open()
        metas = await self._command(Keys.pattern(self._prefix), time.monotonic() + self._timeout)
        found = []
        for name in sorted(map(Keys.namespace_of, metas)):
            keys = Keys(self._prefix, name)
            if await self.call(HAS_ANYTHING, (keys.meta, keys.journal, keys.records, keys.definitions), ()):
                found.append(name)
        return found

    async def _write_once(
        self, known: Known, work: Work[T], lock: str | None, deadline: float, *, predicting: bool = False
    ) -> T:
        """Run a work and write what it wants; :data:`_AGAIN` when it was run on what does not hold."""
        tx = RedisTransaction(self, known, writing=True, predicting=predicting)
        try:
            result = await work(tx)
        except Exception:
            if tx.sure or await self._holds(known, tx, lock):
                raise
            return _AGAIN  # type: ignore[no-any-return]
        if not await self._write(known, tx, lock, deadline):
            return _AGAIN  # type: ignore[no-any-return]
        return result

    async def _holds(self, known: Known, tx: RedisTransaction, lock: str | None) -> bool:
        """Whether all that a transaction was told is so, at one moment."""
        plan = verification(tx, lock)
        answer = await self.call(WRITE, self._write_keys(known, None), (plan.text, 0, plan.bodies, *plan.values))
        if not answer.startswith(b"ok"):
            known.doubt_records(tx.records_guessed)
            await self._refused(known, answer)
            return False
        return True

    async def _write(self, known: Known, tx: RedisTransaction, lock: str | None, deadline: float) -> bool:
        """Write; whether everything was as it was assumed to be, so that it has been written."""
        plan = plan_of(tx, lock)
        if plan is None:
            return tx.sure or await self._holds(known, tx, lock)
        try:
            answer = await self._send(known, plan, deadline)
        except BaseException:
            if tx.batch is not None:
                known.forget_records([(record.collection, record.key) for record in tx.batch.records])
            raise
        verdict, _, rest = answer.decode().partition(" ")
        if verdict == "ok":
            seq, claimed, stamp = map(int, rest.split(" "))
            self._learn(known, tx, seq, bool(claimed), stamp)
            return True
        if verdict == "lost":
            raise ClaimsLost
        if verdict == "numbered":
            assert tx.batch is not None
            assert tx.batch.entry is not None
            raise taken_seq(tx.batch.entry.seq)
        if verdict == "taken":
            place, first, second = json.loads(rest)
            raise shared_place(place[1:], first, second)
        if verdict == "stale" and (lock is not None or not tx.assumes):
            known.forget()
            raise ConflictError(
                "a fact that was to be changed is not what it was taken for any more; nothing was written, "
                "read it again and decide anew"
            )
        known.doubt_records(tx.records_guessed)
        await self._refused(known, answer)
        return False

    @staticmethod
    def _learn(known: Known, tx: RedisTransaction, seq: int, claimed: bool, stamp: int) -> None:
        batch = tx.batch
        known.learn(stamp, claimed=claimed, raised=batch is not None and bool(batch.definitions))
        if tx.records_seen:
            known.learn_records(tx.records_seen)
        if batch is None:
            return
        if batch.records:
            known.learn_records({(record.collection, record.key): record.value for record in batch.records})
        batch.seq = seq
        _learn_holders(known, tx, batch, stamp)
        if batch.entry is not None:
            head = seq if batch.entry.head is None else batch.entry.head
            known.learn_place(batch.entry.session_id, head, batch.entry.redo, stamp)

    async def _refused(self, known: Known, answer: bytes) -> None:
        """Get ready for the next attempt."""
        known.forget()
        if answer.startswith(b"format "):
            await self._migrate(known, int(answer.split()[1]))
        elif answer == b"late":
            raise StorageError(f"{self._name}: an attempt was overtaken by a later one of the same writer")

    async def _send(self, known: Known, plan: Plan, deadline: float) -> bytes:
        """Have the script carry out a plan, once, however often it must be asked."""
        slot = self._slots.pop() if self._slots else Slot(os.urandom(9).hex())
        pause = 0.0005
        while True:
            slot.attempt += 1
            # Until its outcome is known nobody else uses the slot; when that stays unknown it is never used again.
            try:
                answer: bytes = await self._run(
                    WRITE,
                    (*self._write_keys(known, slot), *map(known.keys.stream, plan.lanes)),
                    (plan.text, slot.attempt, plan.bodies, *plan.values),
                    deadline,
                    writing=True,
                )
            except StorageError:
                raise
            except BaseException:  # interrupted: let it have happened, or not, before anybody looks
                with contextlib.suppress(Exception):
                    await self.call(ABANDON, (known.keys.slot(slot.name),), (slot.attempt,))
                    self._slots.append(slot)
                known.forget()
                raise
            if answer != b"locked":
                self._slots.append(slot)
                return answer
            if time.monotonic() > deadline:
                self._slots.append(slot)
                raise self._too_busy()
            await self._port().sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, 0.02)

    def _write_keys(self, known: Known, slot: Slot | None) -> tuple[bytes, ...]:
        keys = known.keys
        return (
            keys.meta,
            keys.facts,
            keys.versions,
            keys.places,
            keys.index,
            keys.journal,
            keys.claims,
            keys.lock,
            keys.slot("" if slot is None else slot.name),
            keys.records,
            keys.definitions,
            keys.lanes,
            keys.outbox,
        )

    # The lock

    @contextlib.asynccontextmanager
    async def _locked(self, known: Known, deadline: float) -> AsyncIterator[str]:
        """Hold the lock of the namespace."""
        token = random_bytes()[:9].hex()
        keys = known.keys.lock, known.keys.meta
        pause = 0.001
        while not await self.call(LOCK, keys, (token, int(_LOCK_SECONDS * 1000))):
            if time.monotonic() > deadline:
                raise self._too_busy()
            await self._port().sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, 0.02)
        try:
            if time.monotonic() > deadline:
                raise self._too_busy()
            yield token
        finally:
            with contextlib.suppress(StorageError):  # it ends by itself
                await self.call(UNLOCK, keys, (token,))

    def _too_busy(self) -> UnavailableError:
        return UnavailableError(
            f"{self._name}: others wrote to the same namespace all the time for {self._timeout:g} s; nothing was "
            "written. Try again, or raise timeout="
        )

    async def _pause(self, attempt: int) -> None:
        if attempt:
            await self._port().sleep(random.random() * 0.002 * attempt)

    # Opening

    async def open(self) -> None:
        """Reach the server, and refuse one that would lose facts."""
        self._check_open()
        if not self._reached:
            await check_server(self._name, self._info)
            self._reached = True

    async def _open(self, namespace: str) -> Known:
        self._check_open()
        known = self._namespaces.get(namespace)
        if not known.is_open:
            await self.open()
            answer = await self.call(LOOK, known.keys.data, ())
            if len(answer) > 1:
                raise StorageError(
                    f"{self._name}: the key {answer[1].decode()!r} is a {answer[2].decode()}, which is not memstate's; "
                    "pass another prefix="
                )
            number = int(answer[0])
            if number:
                await self._migrate(known, number)
            known.is_open = True
        return known

    async def _migrate(self, known: Known, number: int) -> None:
        while number < FORMAT:
            number = int(await self.call(migration(number), known.keys.data, ()))
        if number > FORMAT:
            raise StorageError(
                f"{self._name}: {known.keys.base!r} was written by a newer MemState (format {number}, this one knows "
                f"{FORMAT}); upgrade memstate"
            )

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"this storage on {self._name} was closed; make a new one")

    # Commands

    async def call(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        return await self._run(script, keys, arguments, time.monotonic() + self._timeout)

    async def _run(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any], deadline: float, *, writing: bool = False
    ) -> Any:
        rest = (len(keys), *keys, *arguments)
        return await self._command(
            ("EVALSHA", script.sha, *rest), deadline, ("EVAL", script.text, *rest), writing=writing
        )

    async def _info(self) -> Any:
        return await self._command(None, time.monotonic() + self._timeout)

    async def plain(self, *command: Any) -> Any:
        return await self._command(command, time.monotonic() + self._timeout)

    async def _command(
        self,
        command: tuple[Any, ...] | str | None,
        deadline: float,
        unknown: tuple[Any, ...] = (),
        *,
        writing: bool = False,
    ) -> Any:
        """Send a command (None: ask what the server is; a text: which keys are like it), again while it is away;
        ``unknown`` when it does not know the script.
        """
        lost = False
        pause = 0.0
        while True:
            self._check_open()
            port = self._port()
            try:
                if command is None:
                    return await port.info()
                if isinstance(command, str):
                    return await port.keys(command)
                if not writing or not self._wait_replicas:
                    return await port.execute(*command)
                return await self._wait(port, command)
            except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
                if self.closed:
                    raise ClosedError(f"this storage on {self._name} was closed; make a new one") from error
                if unknown and is_no_script(error):
                    command, unknown = unknown, ()
                    continue
                lost = lost or is_lost(error)
                if not is_passing(error) or not self._reached or time.monotonic() + pause > deadline:
                    raise translated(error, self._name, writing=writing and lost) from error
                if is_read_only(error):
                    await port.disconnect()
            await port.sleep(pause * (0.5 + random.random()))
            pause = min(max(pause * 2, 0.01), 0.5)

    async def _wait(self, port: Port, command: tuple[Any, ...]) -> Any:
        answer, acknowledged = await port.execute_and_wait(self._wait_replicas, self._wait_milliseconds, *command)
        if answer.startswith(b"ok") and acknowledged < self._wait_replicas:
            raise UnavailableError(
                f"{self._name}: the transaction was written, but {acknowledged} of {self._wait_replicas} replicas "
                f"have it after {self._wait_milliseconds} ms, so that a failover may lose it"
            )
        return answer

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            with contextlib.suppress(exceptions.RedisError, OSError):
                await self._port().close()
