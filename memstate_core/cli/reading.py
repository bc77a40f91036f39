"""``memstate show``, ``diff``, ``search`` and ``stats``."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import typer

from memstate_core.cli import options
from memstate_core.cli.errors import UsageError
from memstate_core.cli.phrases import remarks, sign_and_name, time_of
from memstate_core.cli.plain import (
    change_data,
    count_of,
    fact_data,
    print_json,
    session_name,
    text_of,
    transaction_data,
    value_of,
)
from memstate_core.cli.screen import Parts, Screen
from memstate_core.cli.stores import WITHOUT_HOOKS, Store, awaited, called, with_store
from memstate_core.engine import Engine, Locate
from memstate_core.errors import NotFoundError
from memstate_core.facts import UNSET, Change, Entry, Fact, StoredFact, Transaction, transaction_seq
from memstate_core.past import difference, located
from memstate_core.protocols import Selection, StorageTransaction

_PAGE: Final = 500


def add_to(app: typer.Typer) -> None:
    for command, summary in (
        (show, "Show a fact with its versions, or a transaction with its changes."),
        (diff, "Compare two points of a session."),
        (search, "Find facts by a text."),
        (stats, "Count what a store holds."),
    ):
        app.command(command.__name__, short_help=summary)(command)


def show(
    words: Annotated[list[str], options.words("WHAT", "WHAT: the id of a fact, or of a transaction (tx-12).")],
    version: Annotated[
        int | None,
        typer.Option(parser=options.some, metavar="N", help="This version of the fact.", show_default=False),
    ] = None,
    namespace: options.Namespace = None,
    as_json: options.Json = False,
) -> Callable[[], bool]:
    """Show a fact as it is stored, with the transactions that changed it; or what a transaction changed."""
    store, (what,) = options.store_and(words, 1, "WHAT")

    async def work(made: Store) -> bool:
        engine = made.engine
        history = await engine.history(UNSET, what, None, None, None)
        seq = transaction_seq(what)
        if not history and seq is not None and version is None:
            found = await engine.history(UNSET, None, None, 1, seq + 1)
            if found and found[0].seq == seq:
                _show_transaction(found[0], as_json)
                return True
        if not history:
            raise NotFoundError(f"{called(store)} has no fact {what!r}, and has never had one")
        stored = await engine.get(what)
        now = None if stored is None else stored.to_fact(engine.registry.decode(stored))
        versions = _versions(history)
        if version is not None and version not in versions:
            raise NotFoundError(
                f"fact {what!r} has no version {version}; it has {', '.join(map(str, sorted(versions)))}"
            )
        wanted = versions[version] if version is not None else now or versions[max(versions)]
        if as_json:
            print_json(
                "show",
                fact=fact_data(now) if version is None else fact_data(wanted),
                deleted=now is None,
                history=[transaction_data(one) for one in history],
            )
        else:
            _show_fact(wanted, now, history)
        return True

    return functools.partial(with_store, store, work, namespace=namespace)


def _versions(history: Sequence[Transaction]) -> dict[int, Fact]:
    facts = [fact for one in history for change in one.changes for fact in (change.before, change.after)]
    return {fact.version: fact for fact in facts if fact is not None}


def _show_fact(fact: Fact, now: Fact | None, history: Sequence[Transaction]) -> None:
    screen = Screen()
    screen.whole((f"{text_of(fact.type)} {text_of(fact.id)}", "bold"), f"  version {fact.version}")
    if now is None:
        screen.whole((f"  deleted by {history[0].id}; this is what it was", "red"))
    elif now.version != fact.version:
        screen.whole((f"  a past version; the fact is at version {now.version}", "yellow"))
    about = {
        "session": session_name(fact.session_id).removeprefix("session "),
        "changed": "" if fact.ts is None else fact.ts.isoformat(),
        "source": text_of(fact.source),
        "ephemeral": "yes" * fact.ephemeral,
    }
    for name, value in about.items():
        if value:
            screen.whole((f"  {name:<10}", "dim"), value)
    screen.whole(("  payload", "dim"))
    for name, value in fact.payload.items():
        screen.whole(f"    {value_of(name)[1:-1]}: {value_of(value)}")
    screen.line(("  history", "dim"))
    for one in history:
        (change,) = one.changes
        versions = (
            f"{change.before.version if change.before else '-'} -> {change.after.version if change.after else '-'}"
        )
        screen.line(
            f"    {one.id:<8}",
            (f" {time_of(one)} ", "dim"),
            f" {one.operation.value:<11} {versions:<9}",
            (f" {session_name(one.session_id)}", "dim"),
            *remarks(one),
        )


def _show_transaction(one: Transaction, as_json: bool) -> None:
    if as_json:
        print_json("show", transaction=transaction_data(one))
        return
    screen = Screen()
    screen.whole((one.id, "bold"), f"  {one.operation.value} in {session_name(one.session_id)}", *remarks(one))
    screen.whole(("  at      ", "dim"), one.ts.isoformat())
    screen.whole(("  after   ", "dim"), one.parent or "nothing")
    if one.position != one.id:
        screen.whole(("  went to ", "dim"), one.position or "the beginning")
    for change in one.changes:
        screen.change(change, _heading(change))


def _heading(change: Change) -> Parts:
    versions = f"{change.before.version if change.before else '-'} -> {change.after.version if change.after else '-'}"
    return [sign_and_name(change), (f"  version {versions}", "dim")]


def diff(
    words: Annotated[
        list[str],
        options.words(
            "FROM [TO]",
            "FROM, TO: transactions (tx-12), savepoints or marks of the session; start: before its first transaction."
            " TO is where the session stands, unless given.",
        ),
    ],
    session: options.Session = None,
    namespace: options.Namespace = None,
    as_json: options.Json = False,
) -> Callable[[], bool]:
    """Show what became of each fact on the way from one point of a session to another.

    The exit code is 0 whether anything differs or not, 1 when there is no such point.
    """
    store, points = options.store_and(words, 2, "FROM [TO]")

    async def work(made: Store) -> bool:
        before = _point(session, points[0])
        after = _point(session, points[1]) if len(points) > 1 else _now(session)
        changes = await difference(made.engine, session, before, after)
        if as_json:
            print_json("diff", session_id=session, changes=[change_data(change) for change in changes])
            return True
        screen = Screen()
        for change in changes:
            screen.change(change, _heading(change))
        if not changes:
            screen.line("nothing differs")
        return True

    return functools.partial(with_store, store, work, namespace=namespace)


def _point(session_id: str | None, name: str) -> Locate:
    return located(session_id, None if name == "start" else name)


def _now(session_id: str | None) -> Locate:
    async def locate(tx: StorageTransaction) -> int:
        return (await tx.position(session_id)).head

    return locate


def search(
    words: Annotated[list[str], options.words("QUERY", "QUERY: the text.")],
    limit: Annotated[int, typer.Option(parser=options.some, metavar="N", help="How many facts at most.")] = 5,
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="Only facts of this session (default: all).", show_default=False)
    ] = None,
    typename: Annotated[
        str | None, typer.Option("--type", metavar="NAME", help="Only facts of this type.", show_default=False)
    ] = None,
    namespace: options.Namespace = None,
    as_json: options.Json = False,
) -> Callable[[], bool]:
    """Find the facts that are most similar to a text, by the indexes that the store's hooks keep."""
    store, (query,) = options.store_and(words, 1, "QUERY")

    async def work(made: Store) -> bool:
        if not made.hook_names:
            raise UsageError(f"{called(store)} has no hooks, so there is no index to search; {WITHOUT_HOOKS}")
        chosen = UNSET if session is None else session
        found = await awaited(made.search(query, limit=limit, session_id=chosen, typename=typename))
        if as_json:
            print_json("search", found=[{"score": one.score, "fact": fact_data(one.fact)} for one in found])
            return True
        screen = Screen()
        for one in found:
            screen.line(
                (f"{one.score:6.3f}  ", "cyan"),
                (f"{text_of(one.fact.type)} {text_of(one.fact.id)}  ", "bold"),
                value_of(one.fact.payload),
            )
        if not found:
            screen.line("nothing found")
        return True

    return functools.partial(with_store, store, work, namespace=namespace)


def stats(
    store: options.StoreName = None, namespace: options.Namespace = None, as_json: options.Json = False
) -> Callable[[], bool]:
    """Count the facts, sessions and transactions of a store, and what is in doubt or waits to be delivered.

    Reads all of the journal and of the facts, in pages.
    """

    async def work(made: Store) -> bool:
        counted = await _counted(made.engine)
        lags = await awaited(made.engine.deliverer.lag()) if made.has_deferred_hooks else []
        if as_json:
            print_json("stats", **counted, hooks=list(made.hook_names), pending=sum(one.pending for one in lags))
            return True
        screen = Screen()
        screen.whole((called(store), "bold"), f"  namespace {text_of(made.namespace)}")
        screen.whole("")
        types: dict[str, dict[str, int]] = counted["types"]
        if types:
            rows = [[text_of(name), f"{one['facts']:,}", f"{one['bytes']:,}"] for name, one in types.items()]
            rows.append(["all", f"{counted['facts']:,}", f"{sum(one['bytes'] for one in types.values()):,}"])
            screen.table(["type", "facts", "bytes of payload"], rows, numbers=(1, 2))
            screen.whole("")
        screen.whole(f"{count_of(counted['sessions'], 'session')}, {count_of(counted['ephemeral'], 'ephemeral fact')}")
        screen.whole(
            count_of(counted["transactions"], "transaction")
            + (f", from {counted['first']} to {counted['last']}" if counted["transactions"] else "")
        )
        if counted["claims"]:
            screen.whole(
                (f"{count_of(counted['claims'], 'claim')} held: transactions under way, or in doubt", "yellow")
            )
        for one in lags:
            screen.whole(f"hook {one.hook}: {count_of(one.pending, 'change')} to be delivered")
        return True

    return functools.partial(with_store, store, work, namespace=namespace)


async def _counted(engine: Engine) -> dict[str, Any]:
    await engine.ready()
    types: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    ephemeral = 0
    after: int | None = None
    while True:
        facts = await _facts(engine, after)
        for fact in facts:
            types[fact.type] += 1
            sizes[fact.type] += len(fact.payload.encode("utf-8", "surrogatepass"))
            ephemeral += bool(fact.ephemeral)
        if len(facts) < _PAGE:
            break
        after = facts[-1].ordinal
    sessions: set[str | None] = set()
    transactions, first, last = 0, None, None
    before: int | None = None
    while True:
        entries = await _entries(engine, before)
        sessions.update(entry.session_id for entry in entries)
        transactions += len(entries)
        if entries:
            last = last or entries[0].ts
            first, before = entries[-1].ts, entries[-1].seq
        if len(entries) < _PAGE:
            break
    claims = await engine.storage.read(engine.namespace, lambda tx: tx.claims())
    return {
        "namespace": engine.namespace,
        "facts": types.total(),
        "ephemeral": ephemeral,
        "types": {name: {"facts": types[name], "bytes": sizes[name]} for name in sorted(types)},
        "sessions": len(sessions - {None}),
        "transactions": transactions,
        "first": first,
        "last": last,
        "claims": len(claims),
    }


async def _facts(engine: Engine, after: int | None) -> list[StoredFact]:
    page = Selection(decode=engine.registry.decode, limit=_PAGE, after=after)
    return await engine.storage.read(engine.namespace, lambda tx: tx.select(page))


async def _entries(engine: Engine, before: int | None) -> list[Entry]:
    return await engine.storage.read(engine.namespace, lambda tx: tx.history(before=before, limit=_PAGE))
