"""The server is killed and started again under load: nothing that returned is lost, nothing is applied twice."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memstate_core import Fact, Recovered
from tests.faults.outages import (
    COUNTERS,
    DELIVERIES,
    LEASE,
    NO_INDEX,
    check_order,
    deliver_the_rest,
    index_of,
    log_of,
    open_store,
    place_of,
)
from tests.faults.places import Place
from tests.forking import ForkServer, Worker, read_log, wait_until
from tests.servers import PostgresServer, RedisServer, postgres_server, redis_server

pytestmark = pytest.mark.waits

OUTAGES = 20
CLIENTS = [*itertools.product(DELIVERIES, [False, True])]  # how their index is told, and whether they are asynchronous


@pytest.fixture(params=["postgres", "redis"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PostgresServer | RedisServer]:
    """One that loses nothing that it has confirmed; the test's directory has a place on it."""
    with contextlib.ExitStack() as stack:
        started: PostgresServer | RedisServer
        if request.param == "postgres":
            # What a killed server has left it first brings to disk, by default file by file.
            settings = ["recovery_init_sync_method=syncfs"]
            started = stack.enter_context(postgres_server(fsync=True, settings=settings))
            place = Place("postgres", started.url, "memstate")
        else:
            started = stack.enter_context(redis_server(settings=["appendonly=yes", "appendfsync=always"]))
            place = Place("redis", started.url, "memstate")
        place.put_into(tmp_path)
        yield started


def test_killed_under_load(
    processes: ForkServer,
    database: PostgresServer | RedisServer,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Clients of both flavours: without an index, with one that takes part in commits, with one that workers tell."""
    rng = random.Random(20)
    stores = {delivery: open_store(tmp_path, delivery) for delivery in DELIVERIES}
    for store, counter in itertools.product(stores.values(), COUNTERS):
        store.commit(Fact("note", {"text": counter, "number": 0}, id=counter))
    clients = [
        processes.start("outages:be_a_client", tmp_path, number, delivery, is_async)
        for number, (delivery, is_async) in enumerate(CLIENTS)
    ]
    workers = [processes.start("outages:be_a_worker", tmp_path, is_async) for is_async in (False, True)]
    for number in range(OUTAGES):
        wait_until_all_go_on(tmp_path, clients)
        time.sleep(rng.uniform(0, 0.1))
        database.kill()
        workers.pop(0).kill()
        workers.append(processes.start("outages:be_a_worker", tmp_path, number % 2 == 0))
        time.sleep(rng.choice([0, 0, 0.1, 0.3]))
        database.start()
    wait_until_all_go_on(tmp_path, clients)
    (tmp_path / "enough").touch()
    for client in clients:
        client.finish()
    for worker in workers:
        worker.kill()
    time.sleep(LEASE)  # what died in the midst is free to be taken over
    for delivery, store in stores.items():
        check(tmp_path, store, delivery)
        store.storage.close()
    lines = [line for number in range(len(CLIENTS)) for line in read_log(log_of(tmp_path, number))]
    errors = Counter(str(line["error"])[-60:] for line in lines if isinstance(line, dict))
    record_property("errors", dict(errors))
    print("returned:", sum(isinstance(line, str) for line in lines), "errors:", dict(errors))


def wait_until_all_go_on(directory: Path, clients: list[Worker]) -> None:
    """Of each client a call has returned that was begun after now: the first to return may have been begun before."""

    def returned() -> list[int]:
        """How many lines of each are texts; to read them all, again and again, would be most of what this test does."""
        logs = [log_of(directory, number) for number in range(len(clients))]
        return [log.read_bytes().count(b'"\n') if log.exists() else 0 for log in logs]

    before = returned()

    def all_go_on() -> bool:
        for client in clients:
            assert not client.errors, client.errors
        return all(now > then + 1 for now, then in zip(returned(), before, strict=True))

    wait_until(all_go_on, "that every client goes on", 30)


def check(directory: Path, store: Any, delivery: str) -> None:
    store.recover()
    assert store.recover() == Recovered()
    place = place_of(directory, delivery)
    assert place.claims() == []
    state = place.read_state()
    reasons = Counter(transaction.reason for transaction in store.history(limit=None) if transaction.reason)
    assert max(reasons.values()) == 1, "applied twice"
    for number in [number for number, (theirs, _) in enumerate(CLIENTS) if theirs == delivery]:
        lost = [line for line in read_log(log_of(directory, number)) if isinstance(line, str) and line not in reasons]
        assert not lost, f"lost: {lost}"
    for entry in state.entries.values():
        for fact_id, before, after in entry.changes:
            if entry.operation == "UPDATE" and fact_id in COUNTERS:
                assert before is not None
                assert after is not None
                assert after.payload["number"] == before.payload["number"] + 1
    if delivery == NO_INDEX:
        return
    index = index_of(directory, delivery)
    if delivery == "deferred":
        deliver_the_rest(store)
        check_order(index.told())
    assert index.content() == {id_: (image.version, image.payload) for id_, image in state.facts.items()}
    assert not any(store.verify())
