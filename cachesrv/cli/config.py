"""``cachesrv config init`` writes the commented settings file, ``cachesrv config check`` validates one.

Exit status of ``check``: 0 good, 1 something in it is wrong (one line each, with file, line and key), 2 it cannot
be read.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from cachesrv import settings_source
from cachesrv.server import exposure
from cachesrv.settings_source import SettingsInvalid, SettingsUnreadable
from cachesrv.settings_template import template

_File = click.Path(dir_okay=False, path_type=Path)


@click.group()
def config() -> None:
    """Write or check the settings file."""


@config.command()
@click.argument("path", type=_File, required=False)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def init(path: Path | None, force: bool) -> None:
    """Write a settings file that shows every key, its default and its reason.

    PATH is by default where serve looks for it; - is standard output.
    """
    if path == Path("-"):
        click.echo(template(), nl=False)
        return
    path = path or settings_source.default_path(os.environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file may come to hold secrets: for its owner only.
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError:
        raise click.ClickException(f"{path} exists; --force replaces it") from None
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    click.echo(f"wrote {path}")


@config.command()
@click.argument("path", type=_File, required=False)
def check(path: Path | None) -> None:
    """Validate a settings file (by default the one that serve would use), together with the environment."""
    used = path or settings_source.default_path(os.environ)
    try:
        exposure.loaded(path, os.environ)
    except SettingsInvalid as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(1) from None
    except SettingsUnreadable as error:
        click.echo(f"cannot read {error}", err=True)
        raise SystemExit(2) from None
    click.echo(f"{used}: good" if used.is_file() else f"{used} does not exist; the defaults are good")
