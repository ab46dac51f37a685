"""Structured logs on standard error: text on a terminal, JSON otherwise; one write a line, so processes do not mix.

Nothing secret is ever logged: paths without their query (signed URLs are secrets), no header values but the user agent,
tracebacks without local variables, and configured secrets are blotted out wherever they turn up.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger
from structlog.typing import EventDict, Processor, WrappedLogger

from cachesrv.web.blobs import BlobResponse

ACCESS: Final = "cachesrv.access"
REQUEST_ID: Final = "x-ms-request-id"
"""The header that carries the request id of every answer; the access line repeats it."""
BLOT: Final = "***"
AGENT_CHARACTERS: Final = 200
PATH_CHARACTERS: Final = 1000
_CUT: Final = frozenset({"aborted", "damaged"})

_process = "supervisor"
_secrets: tuple[str, ...] = ()
_escaped: re.Pattern[str] | None = None
"""The secrets, with any of their characters percent-encoded: a client may write its path so."""
_json_lines: TextIO | None = None
"""Where access lines go straight to when the format is JSON."""


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """The last step of every line: no configured secret passes it, whoever logged it."""

    def format(self, record: logging.LogRecord) -> str:
        return _blotted(super().format(record))


def _blotted(line: str) -> str:
    for secret in _secrets:
        line = line.replace(secret, BLOT)
    return _escaped.sub(BLOT, line) if _escaped and "%" in line else line


def hide(*secrets: str) -> None:
    """Blot these texts, and all their percent-encoded forms, out of every line from now on."""
    global _secrets, _escaped
    plain = {secret for secret in secrets if secret}
    _secrets = tuple(plain | {_json(secret)[1:-1] for secret in plain})
    _escaped = re.compile("|".join(map(_any_escape, plain))) if plain else None


def _any_escape(secret: str) -> str:
    """A pattern of ``secret`` in which each byte stands as it is or as %XX."""
    return "".join(f"(?:{re.escape(chr(byte))}|(?i:%{byte:02x}))" for byte in secret.encode())


def name_process(name: str) -> None:
    """What the lines of this process say under ``process``."""
    global _process
    _process = name


def configure(
    format: Literal["auto", "text", "json"],
    level: str,
    *,
    stream: TextIO | None = None,
) -> None:
    """Set up structlog and the standard library's logging of this process. May be called again."""
    stream = stream or sys.stderr
    global _json_lines
    text = stream.isatty() if format == "auto" else format == "text"
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_process,
    ]
    renderer: list[Processor]
    if text:
        renderer = [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            )
        ]
    else:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
    _json_lines = None if text else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _add_process(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["process"] = _process
    return event


def _json(value: Any, **_: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()


def _now() -> str:
    """As structlog's TimeStamper writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def printable(text: str, limit: int) -> str:
    """Client-chosen text for a log line: printable ASCII, everything else escaped, cut at ``limit`` characters."""
    text = text[:limit]
    return text if text.isascii() and text.isprintable() else ascii(text)[1:-1]


class AccessLog(AbstractAccessLogger):
    """One line for every answered request, malformed ones included. ``cut``: why a download did not reach its end.

    JSON lines are written without the detour over structlog and logging: 7 us instead of 49 us a request.
    """

    __slots__ = ("_log",)

    def __init__(self, logger: logging.Logger, log_format: str) -> None:
        super().__init__(logger, log_format)
        self._log = structlog.stdlib.get_logger(ACCESS).bind()

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        line: dict[str, Any] = {
            "method": printable(request.method, 20),
            "path": printable(request.rel_url.raw_path, PATH_CHARACTERS),
            "status": response.status,
            "bytes": bytes_sent(request, response),
            "ms": round(time * 1000, 2),
            "request_id": response.headers.get(REQUEST_ID, ""),
            "agent": printable(request.headers.get(hdrs.USER_AGENT, ""), AGENT_CHARACTERS),
        }
        if isinstance(response, BlobResponse) and response.outcome in _CUT:
            line["cut"] = response.outcome
        if _json_lines is None:
            self._log.info("request", **line)
            return
        line |= {"event": "request", "level": "info", "timestamp": _now(), "process": _process}
        _json_lines.write(_blotted(_json(line)) + "\n")
        _json_lines.flush()

    @property
    def enabled(self) -> bool:
        return self.logger.isEnabledFor(logging.INFO)


def bytes_sent(request: web.BaseRequest, response: web.StreamResponse) -> int:
    """Bytes of the body: of a blob those that went out, else as announced; of an unannounced one what passed through
    aiohttp's writer."""
    if request.method == hdrs.METH_HEAD:
        return 0
    if isinstance(response, BlobResponse):
        return response.bytes_out
    return response.content_length if response.content_length is not None else response.body_length
