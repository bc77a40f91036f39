"""What OpenTelemetry is told, by its own exporters; that there is nothing else in it; and that it costs nothing."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import opentelemetry.metrics
import opentelemetry.trace
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from memstate_core import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    Fact,
    HookError,
    InMemoryStorage,
    MemoryStore,
    telemetry,
)
from memstate_core._bridge import run
from memstate_core.protocols import Batch, Claim
from memstate_core.testing.faults import Fault, FaultyHook, raising
from memstate_core.testing.index import AsyncIndexHook, Index, IndexHook

SECRET = "the code is 4711"


class Exported:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    @property
    def spans(self) -> list[ReadableSpan]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def tree(self) -> list[tuple[str, str | None, str]]:
        """Names, those of the parents, and outcomes, in the order in which they began."""
        names = {span.context.span_id: span.name for span in self.spans}
        return [
            (
                span.name.removeprefix("memstate."),
                names[span.parent.span_id].removeprefix("memstate.") if span.parent else None,
                str((span.attributes or {})["memstate.outcome"]),
            )
            for span in self.spans
        ]

    def attributes(self, name: str) -> list[dict[str, Any]]:
        return [
            {key.removeprefix("memstate."): value for key, value in (span.attributes or {}).items()}
            for span in self.spans
            if span.name == f"memstate.{name}"
        ]

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """The attributes of a metric's points, and how many or how much."""
        data = self.reader.get_metrics_data()
        metrics = [
            one for of in (data.resource_metrics if data else ()) for scope in of.scope_metrics for one in scope.metrics
        ]
        return [
            (
                {key.removeprefix("memstate."): value for key, value in point.attributes.items()},
                getattr(point, "count", getattr(point, "value", None)),
            )
            for one in metrics
            if one.name == name
            for point in one.data.data_points
        ]

    def everything(self) -> str:
        data = self.reader.get_metrics_data()
        return "".join(span.to_json() for span in self.spans) + (data.to_json() if data else "")


@pytest.fixture(autouse=True)
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_looking", telemetry._Looking())


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    exported = Exported()
    monkeypatch.setattr(opentelemetry.trace, "get_tracer_provider", lambda: exported.tracers)
    monkeypatch.setattr(opentelemetry.metrics, "get_meter_provider", lambda: exported.meters)
    yield exported
    everything = exported.everything()
    assert SECRET not in everything
    assert "secret-id" not in everything
    assert "secret-session" not in everything


def note(**payload: Any) -> Fact:
    return Fact("note", {"text": SECRET, **payload}, id="secret-id", session_id="secret-session")


def store_with(*hooks: Any) -> MemoryStore:
    return MemoryStore(InMemoryStorage(), hooks, allow_unregistered=True, namespace="tenant")


def test_a_commit_without_hooks_is_one_span(exported: Exported) -> None:
    store = store_with()
    store.commit(note())
    store.rollback("secret-session")
    assert exported.tree() == [("commit", None, "ok"), ("commit", None, "ok")]
    assert exported.attributes("commit") == [
        {"namespace": "tenant", "operation": "COMMIT", "changes": 1, "outcome": "ok"},
        {"namespace": "tenant", "operation": "ROLLBACK", "changes": 1, "outcome": "ok"},
    ]
    assert exported.points("memstate.changes") == [({"operation": "COMMIT"}, 1), ({"operation": "ROLLBACK"}, 1)]


STEPS = [
    ("commit", None, "ok"),
    ("prepare", "commit", "ok"),
    ("claim", "commit", "ok"),
    ("apply", "commit", "ok"),
    ("decide", "commit", "ok"),
]


def test_the_steps_of_a_commit_with_hooks(exported: Exported) -> None:
    store_with(IndexHook(Index())).commit(note())
    assert exported.tree() == STEPS
    assert exported.attributes("apply") == [{"hook": "index", "changes": 1, "outcome": "ok"}]
    timed = exported.points("memstate.duration")
    assert {attributes["step"]: number for attributes, number in timed} == dict.fromkeys(
        (name for name, _, _ in STEPS), 1
    )
    assert not any({"namespace", "changes"} & attributes.keys() for attributes, _ in timed)


async def test_awaited_they_are_the_same(exported: Exported) -> None:
    """Also where one is in a task of its own, and several commits are under way at once."""
    store = AsyncMemoryStore(AsyncInMemoryStorage(), [AsyncIndexHook(Index())], allow_unregistered=True)
    await store.commit(note())
    assert exported.tree() == STEPS
    exported.exporter.clear()
    await asyncio.gather(*(store.commit(Fact("note", {"text": SECRET})) for _ in range(5)))
    assert sorted(exported.tree()) == sorted(STEPS * 5)
    commits = {span.context.span_id for span in exported.spans if span.name == "memstate.commit"}
    children = [span.parent.span_id for span in exported.spans if span.parent]
    assert [children.count(commit) for commit in commits] == [4] * 5


def test_what_fails_says_what_kind_of_error_and_no_more(exported: Exported, caplog: pytest.LogCaptureFixture) -> None:
    faulty = FaultyHook(IndexHook(Index()))
    faulty.faults["apply"] = [Fault(1, "after", raising(OSError(SECRET)), lasting=True)]
    store = store_with(faulty)
    with pytest.raises(HookError):
        store.commit(note())
    assert exported.tree() == [
        ("commit", None, "error"),
        ("prepare", "commit", "ok"),
        ("claim", "commit", "ok"),
        ("apply", "commit", "error"),
        ("undo", "commit", "ok"),
        ("prepare", "undo", "ok"),
        ("apply", "undo", "error"),
    ]
    assert [one["error.type"] for one in exported.attributes("apply")] == ["OSError", "OSError"]
    (commit,) = [span for span in exported.spans if span.name == "memstate.commit"]
    assert (commit.status.is_ok, commit.status.description, commit.events) == (False, None, ())
    assert exported.points("memstate.in_doubt") == [({}, 1)]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("memstate.commit", logging.WARNING)
    assert record.getMessage() == (
        "facts in doubt after a transaction that failed: 1; hooks 'index' could not be told what is committed"
    )
    faulty.faults.clear()
    exported.exporter.clear()
    with caplog.at_level(logging.INFO, "memstate"):
        store.recover()
    assert exported.tree() == [("recover", None, "ok")]
    assert exported.points("memstate.healed") == [({}, 1)]
    assert [(one.name, one.getMessage()) for one in caplog.records[1:]] == [
        ("memstate.recovery", "facts healed: 1; hooks 'index' were told what is committed")
    ]
    assert SECRET not in caplog.text


def test_what_is_tried_again_is_no_error(exported: Exported) -> None:
    """The claims of a dead process are in the way, and healed."""
    store = store_with(IndexHook(Index()))
    store.commit(note())
    left = Claim("fact:secret-id", "gone", 0.0, ("index",))
    run(store.storage.write("tenant", lambda tx: tx.write(Batch(claims=[left]))))
    exported.exporter.clear()
    store.commit(note(more=1))
    assert [step for step in exported.tree() if step[0] in ("commit", "claim", "recover")] == [
        ("commit", None, "ok"),
        ("claim", "commit", "again"),
        ("recover", "commit", "ok"),
        ("claim", "commit", "ok"),
    ]
    assert all(span.status.is_unset for span in exported.spans)


@pytest.mark.parametrize("provider", ["tracers", "meters"])
def test_one_of_the_two_is_enough(exported: Exported, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    unset: Any = (
        opentelemetry.trace.NoOpTracerProvider() if provider == "meters" else opentelemetry.metrics.NoOpMeterProvider()
    )
    name = "tracers" if provider == "meters" else "meters"
    monkeypatch.setattr(exported, name, unset)
    store_with().commit(note())
    assert len(exported.spans) == (provider == "tracers")
    assert len(exported.points("memstate.changes")) == (provider == "meters")


def test_set_up_later_it_is_noticed(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_LOOK", 0.02)
    tracers, meters = exported.tracers, exported.meters
    exported.tracers, exported.meters = (
        opentelemetry.trace.NoOpTracerProvider(),
        opentelemetry.metrics.NoOpMeterProvider(),
    )  # type: ignore[assignment]
    store = store_with()
    store.commit(note())
    assert not telemetry.is_observed()
    exported.tracers, exported.meters = tracers, meters
    time.sleep(0.03)
    store.commit(note(more=1))
    assert len(exported.spans) == 1


def test_it_imports_nothing_and_costs_nothing() -> None:
    """Where nobody has set OpenTelemetry up: less than a hundredth of the fastest commit there is, in memory."""
    code = """
import sys, timeit
from memstate_core import Fact, InMemoryStorage, MemoryStore, telemetry
store = MemoryStore(InMemoryStorage(), allow_unregistered=True)
store.commit(Fact("note", {}))
assert not any(name.startswith("opentelemetry") for name in sys.modules)
if sys.argv[1] == "imported":
    import opentelemetry.metrics, opentelemetry.trace
look = min(timeit.repeat(telemetry.is_observed, number=2000, repeat=20)) / 2000
commit = min(timeit.repeat(lambda: store.commit(Fact("note", {})), number=300, repeat=20)) / 300
print(look / commit)
"""
    for state, most in (("absent", 0.02), ("imported", 0.03)):
        ended = subprocess.run([sys.executable, "-c", code, state], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        assert float(ended.stdout) < most, state
