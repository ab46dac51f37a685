"""The listening sockets: bound once by the supervisor, kept for its life, inherited by whichever worker is in charge.

A TCP address gets one socket per worker (``SO_REUSEPORT``), so that the kernel spreads connections. Because the
supervisor keeps every socket open, connections that wait in the queue of a worker that died are served by the one that
replaces it (measured without that: 17 of 40 lost). A unix socket is one, shared by all workers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cachesrv.addresses import Address

BACKLOG = 1024
"""Connections that may wait per socket; the kernel caps it at net.core.somaxconn."""
SOCKET_MODE = 0o660
"""Permissions of a unix socket: the user and group that run the server."""


class ListenError(Exception):
    """An address cannot be used. The message names it and why, fit to be printed."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One bound address (its port is the real one) and its sockets: one per worker, or a single shared one."""

    address: Address
    sockets: tuple[socket.socket, ...]

    def socket_of(self, worker: int) -> socket.socket:
        return self.sockets[worker % len(self.sockets)]


def open_listeners(addresses: Sequence[Address], workers: int) -> list[Listener]:
    """Bind and listen on every address. A name is bound at each of its addresses. Raises ListenError, leaving nothing
    open."""
    opened: list[Listener] = []
    try:
        for address in addresses:
            if address.path:
                opened.append(Listener(address, (_bind_unix(address),)))
            else:
                opened += _bind_tcp(address, workers)
    except ListenError:
        close_listeners(opened, unlink=True)
        raise
    except OSError as error:
        close_listeners(opened, unlink=True)
        reason = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise ListenError(f"cannot listen on {address}: {reason}") from None
    return opened


def close_listeners(listeners: Sequence[Listener], *, unlink: bool = False) -> None:
    """Close this process's copies; ``unlink`` also removes the names of unix sockets."""
    for listener in listeners:
        for each in listener.sockets:
            each.close()
        if unlink and listener.address.path:
            with contextlib.suppress(OSError):
                os.unlink(listener.address.path)


def _bind_tcp(address: Address, workers: int) -> list[Listener]:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[Listener] = []
    port = address.port
    refused: OSError | None = None
    try:
        for family, _, _, _, name in dict.fromkeys(found):
            host = str(name[0])
            try:
                if port:
                    _stream(family, host, port, shared=False).close()
                first = _stream(family, host, port, shared=True)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                refused = error
                continue
            port = first.getsockname()[1]
            sockets = [first]
            listeners.append(Listener(replace(address, host=host, port=port), (first,)))
            sockets += [_stream(family, host, port, shared=True) for _ in range(workers - 1)]
            for each in sockets:
                each.listen(BACKLOG)
            listeners[-1] = Listener(replace(address, host=host, port=port), tuple(sockets))
    except OSError:
        close_listeners(listeners)
        raise
    if not listeners and refused is not None:
        raise refused
    return listeners


def _stream(family: int, host: str, port: int, *, shared: bool) -> socket.socket:
    """A bound TCP socket. ``shared`` sets SO_REUSEPORT; a bind without it fails when any other server listens there,
    which SO_REUSEPORT alone would hide (two servers of one user would silently share the port)."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def _bind_unix(address: Address) -> socket.socket:
    path = Path(address.path)
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ListenError(f"cannot listen on {address}: a file stands there that is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise ListenError(f"cannot listen on {address}: it is in use")
        path.unlink()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777 & ~SOCKET_MODE)
    try:
        made.bind(str(path))
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    finally:
        os.umask(mask)
    return made
