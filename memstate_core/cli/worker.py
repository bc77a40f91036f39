"""``memstate worker``."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Final, Self

from memstate_core import AsyncMemoryStore, MemoryStore
from memstate_core._bridge import run as drive
from memstate_core.cli.errors import UsageError
from memstate_core.delivery import BATCH, Delivered, Lag
from memstate_core.errors import TransientError
from memstate_core.worker import POLL, work, work_async

_DESCRIPTION: Final = """\
Deliver to the hooks of a store, made with delivery="deferred", what its commits have put into the outbox. Start as many
workers as you like, on as many machines: each delivers what no other one does. Ends on SIGTERM or Ctrl-C, when the
batch at hand is done.
"""


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "worker", help='deliver to deferred hooks (delivery="deferred")', description=_DESCRIPTION
    )
    parser.add_argument(
        "store",
        metavar="MODULE:NAME",
        help="where your code has the store: a MemoryStore or AsyncMemoryStore, or a function that makes one "
        "(myapp.memory:store)",
    )
    parser.add_argument("--once", action="store_true", help="deliver what is due now, and end")
    parser.add_argument("--lag", action="store_true", help="show how far each hook is behind, and end")
    parser.add_argument(
        "--poll", type=_seconds, metavar="S", default=POLL, help="seconds between looks (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=_some, metavar="N", default=BATCH, help="changes told at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--report", type=_seconds, metavar="S", default=10.0, help="seconds between reports (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _some(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**6):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def run(arguments: argparse.Namespace) -> bool:
    """Work; False when ``--once`` or ``--lag`` found changes that could not be told."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    made = _made(arguments.store)
    if isinstance(made, MemoryStore):
        return drive(_run(made, arguments))
    return asyncio.run(_run(made, arguments))


async def _run(made: Any, arguments: argparse.Namespace) -> bool:
    store = _checked(await _awaited(made), arguments.store)
    if arguments.once:
        print(f"delivered {await _awaited(store.deliver())} changes", flush=True)
    if arguments.once or arguments.lag:
        return _show(await _awaited(store.lag()))
    print("working; SIGTERM or Ctrl-C ends it", flush=True)
    total = 0

    def told(step: Delivered) -> None:
        nonlocal total
        total += step.delivered

    with _Signals() as signals:
        while not signals.received:
            end = time.monotonic() + arguments.report

            def stop(end: float = end) -> bool:
                return signals.received or time.monotonic() > end

            options: dict[str, Any] = {"poll": arguments.poll, "batch": arguments.batch, "told": told}
            if isinstance(store, AsyncMemoryStore):
                await work_async(store, stop=stop, **options)
            else:
                work(store, stop=stop, **options)
            print(f"delivered {total} changes so far", flush=True)
            try:
                _show(await _awaited(store.lag()))
            except TransientError as error:
                print(f"  how far the hooks are behind cannot be told for now: {error}", flush=True)
    return True


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def _made(name: str) -> Any:
    """What ``MODULE:NAME`` names, or what the function returns that it names.

    :raises UsageError: there is no such thing.
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise UsageError(f"{name!r} names no store; write MODULE:NAME, such as myapp.memory:store")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"there is no module {error.name!r}; start the worker where your code can be imported"
        ) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise UsageError(f"{module_name!r} has no {path!r}") from error
    return found() if callable(found) else found


def _checked(found: Any, name: str) -> MemoryStore | AsyncMemoryStore:
    if not isinstance(found, MemoryStore | AsyncMemoryStore):
        raise UsageError(f"{name} is {found!r}, and neither a store nor a function that makes one")
    if not found.has_deferred_hooks:
        raise UsageError(f'{name} has no deferred hook; make the store with hooks=[…] and delivery="deferred"')
    return found


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
