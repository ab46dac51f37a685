"""The words between a sender and the committer: frames on a unix socket in the data folder.

A frame is u32 big-endian length + that many bytes of msgpack. Request: ``[id, command]``; the id is the sender's and
counts up. Answer: ``[id, error class name or "", result or message]``. Answers of one connection come in order of
request. A frame above FRAME_BYTES ends the connection.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from cachesrv.store import errors
from cachesrv.store.commands import (
    Command,
    Commit,
    Committed,
    Delete,
    DropSegment,
    DropUpload,
    LeaseIds,
    MarkProbed,
    MarkProven,
    OpenSegment,
    Purge,
    PutRows,
    Quarantine,
    Removed,
    Requeue,
    Reserve,
    Reserved,
    SealSegment,
    SetDigest,
    SetMeta,
    SwapForm,
)
from cachesrv.store.constants import MiB
from cachesrv.store.errors import LimitExceeded, StoreError

FRAME_BYTES: Final = 8 * MiB
"""Bytes of one frame at most: COMMIT_BATCH rows of any kind fit many times over."""
BACKLOG: Final = 512
"""Connections that queue while a committer is replaced; more than there are workers."""
SOCKET_NAME: Final = "committer.sock"
_LENGTH: Final = struct.Struct(">I")

ANSWERS: Final[dict[type[Command], Any]] = {
    LeaseIds: int,
    Reserve: Reserved,
    DropUpload: bool,
    Commit: Committed,
    Delete: list[Removed],
    Requeue: int,
    Purge: int,
    SwapForm: bool,
    SetDigest: int,
    MarkProbed: int,
    MarkProven: int,
    Quarantine: list[Removed],
    OpenSegment: bool,
    SealSegment: bool,
    DropSegment: bool,
    SetMeta: bool,
    PutRows: bool,
}
"""The type of each command's answer."""


class Request(msgspec.Struct, array_like=True, frozen=True):
    id: int
    command: Command


class Answer(msgspec.Struct, array_like=True, frozen=True):
    id: int
    error: str
    value: msgspec.Raw


_encoder: Final = msgspec.msgpack.Encoder()
decode_request: Final[Callable[[bytes], Request]] = msgspec.msgpack.Decoder(Request).decode
decode_answer: Final[Callable[[bytes], Answer]] = msgspec.msgpack.Decoder(Answer).decode
_ERRORS: Final[dict[str, type[StoreError]]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, StoreError) and kind is not errors.SizeMismatch
}


def encode_request(number: int, command: Command) -> bytes:
    """One request as a frame. Raises LimitExceeded above FRAME_BYTES."""
    return _frame(_encoder.encode((number, command)))


def encode_answer(number: int, result: object) -> bytes:
    """One answer as a frame; a StoreError travels as its class name and message."""
    if isinstance(result, StoreError):
        name = next((kind.__name__ for kind in type(result).__mro__ if kind.__name__ in _ERRORS), "StoreError")
        return _frame(_encoder.encode((number, name, str(result))))
    return _frame(_encoder.encode((number, "", result)))


def read_answer(answer: Answer, kind: type[Command]) -> Any:
    """The result of an answer. Raises the StoreError it carries."""
    if answer.error:
        raise _ERRORS.get(answer.error, StoreError)(msgspec.msgpack.decode(answer.value, type=str))
    return msgspec.msgpack.decode(answer.value, type=ANSWERS[kind])


def _frame(body: bytes) -> bytes:
    if len(body) > FRAME_BYTES:
        raise LimitExceeded(f"a command is longer than {FRAME_BYTES} bytes")
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are whole now. Raises LimitExceeded on one that is announced too long."""
        self._data += data
        at = 0
        try:
            while len(self._data) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._data, at)
                if length > FRAME_BYTES:
                    raise LimitExceeded(f"a frame is longer than {FRAME_BYTES} bytes")
                stop = at + _LENGTH.size + length
                if len(self._data) < stop:
                    break
                frame = bytes(self._data[at + _LENGTH.size : stop])
                at = stop
                yield frame
        finally:
            del self._data[:at]


def bind_listener(root: Path) -> socket.socket:
    """A listening socket at ``run/committer.sock`` of a data folder, for its owner only. Replaces a left-over one.

    The supervisor keeps it for as long as it lives and lends it to each committer, so that connections queue while one
    is replaced. Not inheritable over exec.
    """
    folder = root / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / SOCKET_NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _through_folder(folder, listener.bind)
        (folder / SOCKET_NAME).chmod(0o600)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(root: Path) -> socket.socket:
    """A non-blocking connection to the committer of a data folder. Raises OSError when nobody listens.

    A unix connect does not wait: it succeeds, or fails at once."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        _through_folder(root / "run", connection.connect)
    except BaseException:
        connection.close()
        raise
    return connection


def _through_folder(folder: Path, act: Callable[[str], None]) -> None:
    """A socket path has at most 107 bytes; on Linux a folder of any depth is short through its descriptor."""
    if not sys.platform.startswith("linux"):
        act(str(folder / SOCKET_NAME))
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        act(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
    finally:
        os.close(descriptor)
