"""The command line: :mod:`memstate_core.cli.main` is the command, and each of its subcommands has a module."""
