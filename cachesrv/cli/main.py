"""The ``cachesrv`` command: one sub-command a module, loaded when it is called."""

from __future__ import annotations

from importlib import import_module

import click

import cachesrv

COMMANDS = {
    "serve": "Run the cache server.",
    "config": "Write or check the settings file.",
    "stats": "Say what the cache holds and what it did.",
}
"""Name -> help line. The command ``x`` is the click command ``x`` in ``cachesrv.cli.x``."""


class _Commands(click.Group):
    """Imports a sub-command only when it is wanted: ``--help`` and ``config`` stay quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"cachesrv.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cachesrv.__version__, prog_name="cachesrv")
def main() -> None:
    """A build and dependency cache server for CI. Start with: cachesrv serve"""
