"""``cachesrv serve``: settings, logs, then the supervisor until it is told to stop.

Exit status: 0 after a clean stop, 1 when it cannot start (one line says why), 2 for a wrong command line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from cachesrv import settings_source
from cachesrv.addresses import Address
from cachesrv.config import Settings
from cachesrv.server import exposure, logs
from cachesrv.server.banner import banner
from cachesrv.server.child import StartupError
from cachesrv.server.parts import Parts
from cachesrv.server.supervisor import Supervisor
from cachesrv.settings_source import SettingsInvalid, SettingsUnreadable
from cachesrv.store.errors import StoreError

Flags = Mapping[str, Mapping[str, object]]


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Settings file (see: cachesrv config).")
@click.option("--listen", multiple=True, metavar="ADDRESS", help="host:port, [v6]:port or unix:/path; may be repeated.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Data folder.")
@click.option("--max-size", metavar="SIZE", help="Byte budget on disk, e.g. 50GB.")
@click.option("--workers", type=int, metavar="N", help="Worker processes; 0: one a core.")
def serve(
    config: Path | None, listen: Sequence[str], data: Path | None, max_size: str | None, workers: int | None
) -> None:
    """Run the cache server until SIGTERM or Ctrl-C."""
    from cachesrv.server.assembly import real_parts

    given: dict[str, dict[str, object]] = {
        "server": {"listen": list(listen) or None, "workers": workers},
        "store": {"data": data, "max_size": max_size},
    }
    flags = {
        section: {key: value for key, value in values.items() if value is not None} for section, values in given.items()
    }
    try:
        run(config, flags, real_parts())
    except (SettingsInvalid, SettingsUnreadable, StartupError, StoreError, OSError) as error:
        raise click.ClickException(str(error)) from None


def run(config: Path | None, flags: Flags, parts: Parts) -> None:
    """Serve with these parts. Raises SettingsInvalid, SettingsUnreadable, StartupError, StoreError."""
    config = config.absolute() if config else None

    def read() -> Settings:
        return settings_source.load(config, environ=os.environ, flags=flags)

    settings = exposure.loaded(config, os.environ, flags)
    logs.configure(settings.log.format, settings.log.level)
    logs.hide(settings.auth.shared_secret, settings.auth.admin_token)
    exposure.warn_if_open(settings)
    root = settings_source.data_folder(settings, os.environ)

    def announce(addresses: Sequence[Address]) -> None:
        click.echo(
            banner(addresses, base_url=settings.server.base_url, data=str(root), mode=settings.auth.mode), nl=False
        )
        sys.stdout.flush()

    Supervisor(
        settings, root, parts, workers=worker_count(settings.server.workers), reload=read, announce=announce
    ).run()


def worker_count(wanted: int) -> int:
    """How many workers serve: as wanted, 0 as many as cores we may use; always one on macOS, whose kernel does not
    spread connections over sockets."""
    if sys.platform == "darwin":
        return 1
    return wanted or len(os.sched_getaffinity(0))
