"""``memstate verify``, ``repair``, ``reindex`` and ``recover``."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, Final

import typer

from memstate_core.cli import options
from memstate_core.cli.errors import UsageError
from memstate_core.cli.progress import bars
from memstate_core.cli.stores import WITHOUT_HOOKS, Store, awaited, called, named, with_store
from memstate_core.progress import Progress
from memstate_core.recovery import Recovered
from memstate_core.verification import Drift, Report

# So many ids of a kind are shown; --json has all.
_SHOWN: Final = 10

# What is done returns a function that tells of it, when the bars are gone, and returns whether all is well.
Work = Callable[[Store, Progress], Coroutine[Any, Any, Callable[[], bool]]]


def add_to(app: typer.Typer) -> None:
    for command, summary in (
        (verify, "Compare every index with storage."),
        (repair, "Mend what verify finds."),
        (reindex, "Give indexes every fact anew."),
        (recover, "Heal what crashes left in doubt."),
    ):
        app.command(command.__name__, short_help=summary)(command)


def verify(
    store: options.StoreName = None,
    namespace: options.Namespace = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Callable[[], bool]:
    """Compare the indexes of a store with storage, both ways, while others write.

    The exit code is 0 when nothing differs, 1 when something does or a hook failed, and 2 for a wrong command.
    """

    async def work(made: Store, progress: Progress) -> Callable[[], bool]:
        report: Report = await awaited(made.verify(progress=progress))

        def tell() -> bool:
            _tell_of(report, "verify", as_json, quiet)
            return not report.drift

        return tell

    return functools.partial(_run, store, namespace, work)


def repair(
    store: options.StoreName = None,
    namespace: options.Namespace = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Callable[[], bool]:
    """Bring the indexes of a store to what storage says, while others write, and show what was wrong.

    The exit code is 0 when nothing is wrong any more, 1 when a hook failed, and 2 for a wrong command.
    """

    async def work(made: Store, progress: Progress) -> Callable[[], bool]:
        report: Report = await awaited(made.repair(progress=progress))

        def tell() -> bool:
            _tell_of(report, "repair", as_json, quiet)
            return True

        return tell

    return functools.partial(_run, store, namespace, work)


def reindex(
    store: options.StoreName = None,
    hook: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Which hook, by its name; may be repeated (default: all).")
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Where your code has a hook on the same index, such as one with another embedding model, or a function"
            " that makes one: the index is rebuilt beside the one in use, as this hook makes it, and takes its place.",
            show_default=False,
        ),
    ] = None,
    namespace: options.Namespace = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Callable[[], bool]:
    """Give the indexes of a store every fact anew, while others write: after a hook was added or has changed.

    The exit code is 0 when that was done, 1 when a hook failed, and 2 for a wrong command.
    """

    async def work(made: Store, progress: Progress) -> Callable[[], bool]:
        unknown = [name for name in hook or () if name not in made.hook_names]
        if unknown:
            raise UsageError(
                f"{called(store)} has no hook {unknown[0]!r}; it has {', '.join(map(repr, made.hook_names))}"
            )
        names = hook or list(made.hook_names)
        if into is not None:
            if len(names) > 1:
                raise UsageError(f"--into is for one hook; say which with --hook: {', '.join(map(repr, names))}")
            given = await awaited(named(into, "hook"))
            try:
                facts = await awaited(made.reindex(names[0], into=given, progress=progress))
            except (TypeError, ValueError) as error:
                raise UsageError(f"{into}: {error}") from error
        else:
            facts = [await awaited(made.reindex(name, progress=progress)) for name in names][-1]

        def tell() -> bool:
            if as_json:
                _print_json("reindex", hooks=names, facts=facts)
            elif not quiet:
                print(f"reindexed {', '.join(names)}: the store has {facts:,} fact{'s' * (facts != 1)}")
            return True

        return tell

    return functools.partial(_run, store, namespace, work)


def recover(
    store: options.StoreName = None,
    namespace: options.Namespace = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Callable[[], bool]:
    """Tell the hooks of a store what storage says of the facts that crashes and failures left in doubt.

    The exit code is 0 when nothing is in doubt any more, 1 when something still is or a hook failed, and 2 for a wrong
    command.
    """

    async def work(made: Store, progress: Progress) -> Callable[[], bool]:
        done: Recovered = await awaited(made.recover())

        def tell() -> bool:
            if as_json:
                _print_json("recover", **done._asdict())
            elif done.healed or done.in_doubt or not quiet:
                print(f"healed {len(done.healed):,}, still in doubt {len(done.in_doubt):,}")
                if done.missing_hooks:
                    print(f"  for want of the hooks {', '.join(map(repr, done.missing_hooks))}: {_few(done.in_doubt)}")
            return not done.in_doubt

        return tell

    return functools.partial(_run, store, namespace, work)


def _run(name: str | None, namespace: str | None, work: Work) -> bool:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)

    async def checked(store: Store) -> bool:
        if not store.hook_names:
            raise UsageError(f"{called(name)} has no hooks, so there is no index; {WITHOUT_HOOKS}")
        with bars() as progress:
            tell = await work(store, progress)
        return tell()

    return with_store(name, checked, namespace=namespace)


def _tell_of(report: Report, command: str, as_json: bool, quiet: bool) -> None:
    if as_json:
        hooks = [{"hook": one.hook, "facts": one.facts, "entries": one.entries, **one.by_kind()} for one in report]
        _print_json(command, drift=report.drift, hooks=hooks, unlisted=report.unlisted)
        return
    if quiet and not report.drift:
        return
    if command == "repair" and report.drift:
        print("mended:")
    for one in report:
        print(one)
        _show_ids(one)
    for hook in report.unlisted:
        print(f"{hook}: cannot be listed, so not compared")


def _show_ids(drift: Drift) -> None:
    for kind, ids in drift.by_kind().items():
        if ids:
            print(f"  {kind}: {_few(ids)}")


def _few(ids: Sequence[str]) -> str:
    more = f" … {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
    return ", ".join(map(repr, ids[:_SHOWN])) + more


def _print_json(command: str, **content: Any) -> None:
    print(json.dumps({"command": command, **content}, ensure_ascii=False))
