"""``cachesrv stats``: what the cache holds and what it did, from a running server or straight from its data folder.

Reading a folder changes nothing in it and works whether a server runs on it or not. Exit status 1 with one line on
stderr when there is nothing to read.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import aiohttp
import click
import msgspec
from rich.console import Console

from cachesrv import settings_source
from cachesrv.config import Settings
from cachesrv.observe.report import SCHEMA, Report, collect
from cachesrv.observe.table import render
from cachesrv.observe.view import opened
from cachesrv.store.errors import StoreError

TIMEOUT_SECONDS: Final = 10.0
REPLY_LIMIT: Final = 64 * 1024**2
"""The longest answer that is believed to be a report."""


@click.command("stats")
@click.option("--config", "config", type=click.Path(dir_okay=False, path_type=Path), help="Settings file.")
@click.option("--url", help="Ask this server (http://host:port) instead of reading a folder.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Read this data folder.")
@click.option("--token", help="Admin token for --url; default: auth.admin_token (CACHESRV_AUTH__ADMIN_TOKEN).")
@click.option("--json", "as_json", is_flag=True, help="The whole report as JSON (docs/stats.md).")
def stats(config: Path | None, url: str | None, data: Path | None, token: str | None, as_json: bool) -> None:
    """Say what the cache holds, saved and answered."""
    if url and data:
        raise click.UsageError("--url and --data exclude each other")
    try:
        settings = settings_source.load(config, environ=os.environ)
    except (settings_source.SettingsInvalid, settings_source.SettingsUnreadable) as error:
        raise click.ClickException(str(error)) from None
    if url:
        raw = asyncio.run(_asked(url, settings.auth.admin_token if token is None else token))
        source = url
    else:
        root = data or settings_source.data_folder(settings, os.environ)
        raw = msgspec.json.encode(_read(root, settings))
        source = str(root)
    try:
        report = msgspec.json.decode(raw, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise click.ClickException(f"{source}: the answer is not a report of schema {SCHEMA}") from None
    if as_json:
        click.echo(msgspec.json.format(raw, indent=2))
    else:
        render(report, Console(file=sys.stdout), source=source)


def _read(root: Path, settings: Settings) -> Report:
    if not (root / "format").is_file():
        raise click.ClickException(
            f"there is no cache in {root} yet: start one with `cachesrv serve`, or name its folder with --data"
        )
    try:
        with opened(root) as view:
            return collect(root, view, budget=settings.store.max_size)
    except (StoreError, OSError) as error:
        raise click.ClickException(f"{root} cannot be read: {error}") from None


async def _asked(url: str, token: str) -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
            session.get(url.rstrip("/") + "/api/v1/stats", allow_redirects=False) as response,
        ):
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > REPLY_LIMIT:
                    raise click.ClickException(f"{url}: the answer is longer than {REPLY_LIMIT} bytes")
            status = response.status
    except TimeoutError:
        raise click.ClickException(f"{url} did not answer within {TIMEOUT_SECONDS:g} s") from None
    except (aiohttp.ClientError, ValueError) as error:
        raise click.ClickException(f"{url} cannot be asked: {error}") from None
    if status == 200:
        return bytes(body)
    if status in (401, 403):
        raise click.ClickException(f"{url} answered {status}: {_message(bytes(body))} (--token)")
    raise click.ClickException(f"{url} answered {status}: {_message(bytes(body))}")


class _Refusal(msgspec.Struct):
    message: str


def _message(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Refusal).message[:200]
    except msgspec.DecodeError:
        return "no cachesrv answers there"
