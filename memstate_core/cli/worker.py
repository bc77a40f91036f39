"""``memstate worker``."""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Annotated, Any, Final, NamedTuple, Self

import typer

from memstate_core import AsyncMemoryStore
from memstate_core.cli import options
from memstate_core.cli.errors import UsageError
from memstate_core.cli.stores import Store, awaited, called, with_store
from memstate_core.delivery import BATCH, Delivered, Lag
from memstate_core.errors import TransientError
from memstate_core.worker import POLL, work, work_async

_REPORT: Final = 10.0  # seconds


class _Settings(NamedTuple):
    store: str | None
    namespace: str | None
    once: bool
    lag: bool
    poll: float
    batch: int
    report: float


def add_to(app: typer.Typer) -> None:
    app.command("worker", short_help='Deliver to deferred hooks (delivery="deferred").')(worker)


def worker(
    store: options.StoreName = None,
    once: Annotated[bool, typer.Option("--once", help="Deliver what is due now, and end.")] = False,
    lag: Annotated[bool, typer.Option("--lag", help="Show how far each hook is behind, and end.")] = False,
    poll: Annotated[float, typer.Option(parser=options.seconds, metavar="S", help="Seconds between looks.")] = POLL,
    batch: Annotated[int, typer.Option(parser=options.some, metavar="N", help="Changes told at a time.")] = BATCH,
    report: Annotated[
        float, typer.Option(parser=options.seconds, metavar="S", help="Seconds between reports.")
    ] = _REPORT,
    namespace: options.Namespace = None,
) -> Callable[[], bool]:
    """Deliver to the hooks of a store, made with delivery="deferred", what its commits have put into the outbox.

    Start as many workers as you like, on as many machines: each delivers what no other one does. Ends on SIGTERM or
    Ctrl-C, when the batch at hand is done.
    """
    settings = _Settings(store, namespace, once, lag, poll, batch, report)
    return functools.partial(_start, settings)


def _start(settings: _Settings) -> bool:
    """Work; False when ``--once`` or ``--lag`` found changes that could not be told."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    return with_store(settings.store, lambda store: _run(store, settings), namespace=settings.namespace)


async def _run(store: Store, settings: _Settings) -> bool:
    if not store.has_deferred_hooks:
        raise UsageError(
            f'{called(settings.store)} has no deferred hook; make the store with hooks=[…] and delivery="deferred"'
        )
    if settings.once:
        print(f"delivered {await awaited(store.deliver())} changes", flush=True)
    if settings.once or settings.lag:
        return _show(await awaited(store.lag()))
    print("working; SIGTERM or Ctrl-C ends it", flush=True)
    total = 0

    def told(step: Delivered) -> None:
        nonlocal total
        total += step.delivered

    with _Signals() as signals:
        while not signals.received:
            end = time.monotonic() + settings.report

            def stop(end: float = end) -> bool:
                return signals.received or time.monotonic() > end

            keywords: dict[str, Any] = {"poll": settings.poll, "batch": settings.batch, "told": told}
            if isinstance(store, AsyncMemoryStore):
                await work_async(store, stop=stop, **keywords)
            else:
                work(store, stop=stop, **keywords)
            print(f"delivered {total} changes so far", flush=True)
            try:
                _show(await awaited(store.lag()))
            except TransientError as error:
                print(f"  how far the hooks are behind cannot be told for now: {error}", flush=True)
    return True


def _show(lags: Iterable[Lag]) -> bool:
    """Print how far hooks are behind; whether nothing is failing."""
    lags = list(lags)
    for lag in lags:
        error = f" ({lag.error})" if lag.error else ""
        failing = f", {lag.failing} failing{error}" if lag.failing else ""
        oldest = f", the oldest for {lag.oldest:.1f} s" if lag.pending else ""
        print(f"  {lag.hook}: {lag.pending} pending{oldest}{failing}", flush=True)
    return not any(lag.failing for lag in lags)


class _Signals:
    """SIGTERM and SIGINT as a wish: the batch at hand is finished. A second one is obeyed at once."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
