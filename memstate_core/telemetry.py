"""What observers are told: OpenTelemetry spans and metrics, as far as an application has set OpenTelemetry up.

====================  =====================================================================================
span                  around
====================  =====================================================================================
``memstate.commit``   a transaction, from planning to its end, with all tries
``memstate.prepare``  a hook's preparing (embedding)
``memstate.claim``    the storage transaction that claims the facts
``memstate.apply``    a hook's being told
``memstate.decide``   the storage transaction that is the commit
``memstate.undo``     what a failed transaction does to leave nothing behind
``memstate.recover``  healing what others left in doubt
====================  =====================================================================================

Each is also counted and timed by the histogram ``memstate.duration``; counters are ``memstate.changes``,
``memstate.healed`` and ``memstate.in_doubt`` (facts). Attributes say ``memstate.operation``, ``memstate.hook`` and
``memstate.outcome`` (``"ok"``, ``"again"`` for what is to be tried once more, ``"error"`` with ``error.type``), and
those of spans ``memstate.namespace`` and ``memstate.changes``, too. Neither payloads nor ids of facts and sessions are
in any, nor texts of errors.

Nothing is imported for this: an application that has set OpenTelemetry up has imported it.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Final, Protocol

# So often it is looked whether OpenTelemetry has been set up by now, in seconds.
_LOOK: Final = 1.0

# What would make a series of measurements for every number, or tenant.
_OF_SPANS: Final = {"memstate.changes", "memstate.namespace"}

Attribute = str | int


class Step(Protocol):
    """Something that takes time; used as a context manager."""

    def set(self, **attributes: Attribute) -> None:
        """Say more of it, such as ``operation="COMMIT"``."""
        ...

    def __enter__(self) -> Step: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class _Unobserved:
    __slots__ = ()

    def set(self, **attributes: Attribute) -> None:
        pass

    def __enter__(self) -> _Unobserved:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


_UNOBSERVED: Final = _Unobserved()


class _Observed:
    """A span, and a measurement at its end."""

    __slots__ = ("_again", "_attributes", "_entered", "_name", "_observer", "_span", "_started")

    def __init__(
        self,
        observer: _Observer,
        name: str,
        again: tuple[type[BaseException], ...],
        attributes: dict[str, Attribute],
    ) -> None:
        self._observer = observer
        self._name = name
        self._again = again
        self._attributes = {f"memstate.{key}": value for key, value in attributes.items()}

    def set(self, **attributes: Attribute) -> None:
        self._attributes |= {f"memstate.{key}": value for key, value in attributes.items()}

    def __enter__(self) -> _Observed:
        self._started = time.perf_counter()
        # An error's text may quote a payload.
        self._entered = self._observer.tracer.start_as_current_span(
            f"memstate.{self._name}", record_exception=False, set_status_on_exception=False
        )
        self._span = self._entered.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        attributes = self._attributes
        attributes["memstate.outcome"] = "ok" if kind is None else "again" if issubclass(kind, self._again) else "error"
        if kind is not None and attributes["memstate.outcome"] == "error":
            attributes["error.type"] = kind.__qualname__
            self._span.set_status(self._observer.error_status)
        self._span.set_attributes(attributes)
        self._entered.__exit__(None, None, None)
        measured = {key: value for key, value in attributes.items() if key not in _OF_SPANS}
        self._observer.duration.record(time.perf_counter() - self._started, measured | {"memstate.step": self._name})


class _Observer:
    """One application's OpenTelemetry."""

    def __init__(self, tracers: Any, meters: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        self.tracers, self.meters = tracers, meters
        try:
            found = version("memstate")
        except PackageNotFoundError:
            found = ""
        self.tracer = tracers.get_tracer("memstate", found)
        self.error_status = sys.modules["opentelemetry.trace"].StatusCode.ERROR
        meter = meters.get_meter("memstate", found)
        self.duration = meter.create_histogram(
            "memstate.duration", unit="s", description="How long transactions and their steps take"
        )
        self.counters = {
            "changes": meter.create_counter("memstate.changes", description="Facts changed by transactions"),
            "healed": meter.create_counter("memstate.healed", description="Facts whose index entries were healed"),
            "in_doubt": meter.create_counter("memstate.in_doubt", description="Facts left in doubt by failures"),
        }


class _Looking:
    """Whether there is an observer."""

    def __init__(self) -> None:
        self.observer: _Observer | None = None
        self._look_at = 0.0

    def look(self) -> _Observer | None:
        trace = sys.modules.get("opentelemetry.trace")
        if trace is None:
            return None
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK
            self.observer = self._found(trace)
        return self.observer

    def _found(self, trace: Any) -> _Observer | None:
        metrics = sys.modules.get("opentelemetry.metrics")
        try:
            tracers: Any = trace.get_tracer_provider()
            meters: Any = metrics.get_meter_provider() if metrics is not None else None
        except AttributeError:  # it is being imported
            return None
        if not _is_set_up(tracers) and not _is_set_up(meters):
            return None
        if meters is None:
            import opentelemetry.metrics

            meters = opentelemetry.metrics.get_meter_provider()
        same = self.observer is not None and (self.observer.tracers, self.observer.meters) == (tracers, meters)
        return self.observer if same else _Observer(tracers, meters)


def _is_set_up(provider: Any) -> bool:
    """Whether it is more than a stand-in, which are those of the API itself."""
    return provider is not None and not type(provider).__module__.startswith(
        ("opentelemetry.trace", "opentelemetry.metrics")
    )


_looking: Final = _Looking()


def is_observed() -> bool:
    """Whether anybody is told of anything."""
    return _looking.look() is not None


def step(name: str, again: tuple[type[BaseException], ...] = (), **attributes: Attribute) -> Step:
    """A step that begins; ``again`` are exceptions by which it only asks to be tried once more."""
    observer = _looking.look()
    return _UNOBSERVED if observer is None else _Observed(observer, name, again, attributes)


def count(what: str, number: int, **attributes: Attribute) -> None:
    """Add to a counter: ``"changes"``, ``"healed"`` or ``"in_doubt"``."""
    observer = _looking.look()
    if observer is not None and number:
        observer.counters[what].add(number, {f"memstate.{key}": value for key, value in attributes.items()})
