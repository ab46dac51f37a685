"""Who can reach the server, whether the choice of ``auth.mode`` fits that, and whether the settings hold together.

``none`` is the default only while every address is on this machine; any other address needs a choice, because the whole
network behind it could read and write every cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from cachesrv import settings_source
from cachesrv.addresses import Address
from cachesrv.config import Settings
from cachesrv.settings_source import Problem, SettingsInvalid
from cachesrv.web.authenticator import Authenticator
from cachesrv.web.requests import BaseUrl
from cachesrv.web.upstream import Upstream

_OPEN = "auth.mode is 'none': everybody who can reach this server may read and write every cache"


_log = structlog.stdlib.get_logger("cachesrv.server")


def loaded(
    path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Mapping[str, object]] | None = None
) -> Settings:
    """The settings of a file, the environment and flags, settled. Raises SettingsInvalid that names for each problem
    where it stands, SettingsUnreadable."""
    settings = settings_source.load(path, environ=environ, flags=flags)
    try:
        return settled(settings)
    except SettingsInvalid as error:
        raise SettingsInvalid(*settings_source.located(error.problems, path, environ, flags)) from None


def renewed(old: Settings, new: Settings) -> Settings:
    """What a running server makes of settings read again. Its addresses and workers stay as they are, and it is these
    addresses that ``auth.mode`` must fit, not those that the file names by now. Raises SettingsInvalid."""
    fixed = {"listen": old.server.listen, "workers": old.server.workers}
    return settled(new.model_copy(update={"server": new.server.model_copy(update=fixed)}))


def warn_if_open(settings: Settings) -> None:
    """One loud line in the log where nobody is asked for a token."""
    if settings.auth.mode == "none":
        _log.warning(_OPEN, listen=", ".join(settings.server.listen))


def settled(settings: Settings) -> Settings:
    """The settings with ``auth.mode`` decided, and tried out. Raises SettingsInvalid that says what to choose."""
    addresses = [Address.parse(text) for text in settings.server.listen]
    auth = settings.auth
    if not auth.mode:
        exposed = next((address for address in addresses if not address.is_local), None)
        if exposed is not None:
            raise SettingsInvalid(
                Problem(
                    "",
                    "auth.mode",
                    f"must be chosen, because {exposed} can be reached from other machines: 'jwks' (GitHub's signed "
                    "job tokens, with an allow-list), 'static-key', 'shared-secret', or 'none' if everybody may read "
                    "and write",
                )
            )
        settings = settings.model_copy(update={"auth": auth.model_copy(update={"mode": "none"})})
    try:
        Authenticator(settings.auth, loopback_only=is_local(settings))
        BaseUrl(settings.server.base_url, settings.server.trusted_proxies)
        if settings.actions.upstream:
            Upstream(settings.actions.upstream, settings.actions.upstream_hosts)
    except ValueError as error:
        key, _, message = str(error).partition(": ")
        raise SettingsInvalid(Problem("", key, message)) from None
    return settings


def is_local(settings: Settings) -> bool:
    """Whether only this machine can reach the server."""
    return all(Address.parse(text).is_local for text in settings.server.listen)


def restart_needed(old: Settings, new: Settings) -> Sequence[str]:
    """Keys that differ and that only a restart can change."""
    pairs = {
        "server.listen": (old.server.listen, new.server.listen),
        "server.workers": (old.server.workers, new.server.workers),
        "store.data": (old.store.data, new.store.data),
    }
    return [key for key, (before, after) in pairs.items() if before != after]
