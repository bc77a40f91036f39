"""``%load_ext memstate``: ``%%memory`` cells, and tables in place of lists of facts."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

try:
    from IPython.core.error import UsageError
    from IPython.core.magic_arguments import MagicArgumentParser
    from IPython.display import display
    from IPython.utils.dir2 import get_real_method
except ImportError as error:
    raise ImportError("this is for notebooks, which bring IPython: pip install ipykernel, or jupyterlab") from error

from memstate_core.async_store import AsyncMemoryStore
from memstate_core.display import table_of
from memstate_core.facts import UNSET, transaction_seq
from memstate_core.store import MemoryStore
from memstate_core.transaction_block import TransactionBlock

# What a store returns as plain data, and what may hold some of it.
_PLAIN: Final = (list, tuple, dict)


class MemoryCells:
    """Cells that are transactions."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        make: Callable[..., Any] = MagicArgumentParser  # which has no types in some versions
        self._parser = make("%%memory", add_help=False)
        self._parser.add_argument("store", nargs="?")
        for name in ("--session", "--actor", "--reason"):
            self._parser.add_argument(name)
        self._parser.add_argument("--quiet", action="store_true")

    def memory(self, line: str, cell: str) -> Any:
        """``%%memory [store] [--session S] [--actor A] [--reason R] [--quiet]``: run a cell as one transaction.

        All that the cell writes to the store is committed at its end; if it raises, nothing is. ``store`` is the
        variable with the store, and may be left out where the notebook has one store. Without ``--session`` it is the
        long-term line. What was committed is shown, unless ``--quiet``.

        In the cell, the variables that hold the store hold the transaction instead, so that functions of the notebook
        that use such a variable take part. What has got hold of the store in another way does not.
        """
        __tracebackhide__ = True
        given = self._parser.parse_argstring(line)
        store = self._store(given.store)
        session = UNSET if given.session is None else _unquoted(given.session)
        run = self._compiled(cell)
        block = store.transaction(session, actor=_unquoted(given.actor), reason=_unquoted(given.reason))
        with self._in_place_of(store, block), block:
            result = run()
        if block.transaction_id is not None and not given.quiet:
            show: Callable[..., Any] = display
            show(*store.history(limit=1, before=(transaction_seq(block.transaction_id) or 0) + 1))
        return result

    def _store(self, name: str | None) -> MemoryStore:
        """The store in a variable, or in the only one that has any.

        :raises UsageError: there is none, or which one is meant cannot be told.
        """
        variables = self.shell.user_ns
        if name is None:
            # IPython itself keeps what cells have returned in variables that begin with an underscore.
            stores = {name: one for name, one in variables.items() if isinstance(one, MemoryStore) and name[0] != "_"}
            names = {id(one): name for name, one in stores.items()}
            if len(names) != 1:
                found = f"{len(names)} stores ({', '.join(sorted(names.values()))})" if names else "no store"
                raise UsageError(f"the notebook has {found}; name the variable: %%memory store")
            (name,) = names.values()
        found = variables.get(name)
        if isinstance(found, AsyncMemoryStore):
            raise UsageError(
                f"{name} is an AsyncMemoryStore, and a %%memory cell cannot wait; "
                f"write: async with {name}.transaction() as tx: …"
            )
        if not isinstance(found, MemoryStore):
            what = "is no MemoryStore" if name in variables else "is no variable of this notebook"
            raise UsageError(f"{name} {what}; name one that holds a MemoryStore: %%memory store")
        return found

    @contextmanager
    def _in_place_of(self, store: MemoryStore, block: TransactionBlock) -> Iterator[None]:
        """Let the notebook's variables that hold the store hold the transaction for a while."""
        __tracebackhide__ = True
        self._exchange(store, block)
        try:
            yield
        finally:
            self._exchange(block, store)

    def _exchange(self, old: Any, new: Any) -> None:
        variables = self.shell.user_ns
        variables.update({name: new for name, value in variables.items() if value is old})

    def _compiled(self, cell: str) -> Callable[[], Any]:
        """What runs a cell and returns the value of its last line, as a cell without magic has one."""
        shell = self.shell
        code = shell.transform_cell(cell)
        name = shell.compile.cache(code, shell.execution_count, raw_code=cell)  # for the lines of a traceback
        tree = shell.transform_ast(shell.compile.ast_parse(code, filename=name))
        last: Any = None
        if (
            tree.body
            and isinstance(tree.body[-1], ast.Expr)
            and not shell.displayhook.semicolon_at_end_of_expression(cell)
        ):
            last = shell.compile(ast.Expression(tree.body.pop().value), name, "eval")
        body = shell.compile(tree, name, "exec")

        def run() -> Any:
            __tracebackhide__ = True
            exec(body, shell.user_global_ns, shell.user_ns)
            return None if last is None else eval(last, shell.user_global_ns, shell.user_ns)

        return run


class _Tables:
    """Tables in place of the lists and dicts that stores return; everything else looks as it did."""

    def __init__(self, shell: Any) -> None:
        formatters = shell.display_formatter.formatters
        self._html, self._text = formatters["text/html"], formatters["text/plain"]
        self._before: list[tuple[Any, type, Any]] = []

    def add(self) -> None:
        for kind in _PLAIN:
            for formatter, looks in ((self._html, self._in_html), (self._text, self._in_text)):
                before = formatter.for_type(kind)
                formatter.for_type(kind, partial(looks, kind, before))
                self._before.append((formatter, kind, before))

    def remove(self) -> None:
        for formatter, kind, before in self._before:
            if before is None:
                formatter.pop(kind, None)
            else:
                formatter.for_type(kind, before)

    @staticmethod
    def _in_html(kind: type, before: Callable[..., Any] | None, value: Any) -> Any:
        table = table_of(value) if type(value) is kind else None
        if table is not None:
            return table.html
        if before is not None:
            return before(value)
        # A class derived from the kind may have looks of its own, for which IPython asks only where its kind has none.
        method = get_real_method(value, "_repr_html_")
        return None if method is None else method()

    @staticmethod
    def _in_text(kind: type, before: Callable[..., Any], value: Any, printer: Any, cycle: bool) -> None:
        table = table_of(value) if type(value) is kind and len(printer.stack) == 1 else None
        if table is None:
            before(value, printer, cycle)
        else:
            printer.text(table.text)


_loaded: dict[int, _Tables] = {}


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext memstate``."""
    shell.register_magic_function(MemoryCells(shell).memory, "cell", "memory")
    if id(shell) not in _loaded:
        _loaded[id(shell)] = _Tables(shell)
        _loaded[id(shell)].add()


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext memstate``."""
    shell.magics_manager.magics["cell"].pop("memory", None)
    tables = _loaded.pop(id(shell), None)
    if tables is not None:
        tables.remove()


def _unquoted(text: str | None) -> str | None:
    """An argument without the quotes that let it have spaces, which IPython leaves there."""
    if text is not None and len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text
