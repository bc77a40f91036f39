"""The command line: :mod:`memstate_core.cli.main` is the command, and each family of subcommands has a module.

A subcommand only says what is to be done: it returns a function, which :func:`~memstate_core.cli.main.main` calls and
which returns whether all is well.
"""
