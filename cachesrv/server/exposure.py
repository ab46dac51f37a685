"""Who can reach the server, and whether the choice of ``auth.mode`` fits that.

``none`` is the default only while every address is on this machine; any other address needs a choice, because the whole
network behind it could read and write every cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from cachesrv.addresses import Address
from cachesrv.config import Settings
from cachesrv.settings_source import Problem, SettingsInvalid
from cachesrv.web.authenticator import Authenticator
from cachesrv.web.principals import AuthSettingsError

OPEN_WARNING = "auth.mode is 'none': everybody who can reach this server may read and write every cache"


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
    except AuthSettingsError as error:
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
