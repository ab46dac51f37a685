"""What stands in the log, and what never does."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from urllib.parse import quote

import pytest
import structlog

from cachesrv.server import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    made = io.StringIO()
    logs.configure("json", "info", stream=made)
    yield made
    logs.hide()
    logs.name_process("supervisor")
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_json_lines_carry_level_time_and_process(stream: io.StringIO) -> None:
    logs.name_process("worker-3")
    structlog.stdlib.get_logger("cachesrv.x").info("hello", size=7)
    logging.getLogger("other").warning("from %s", "the library")
    structlog.stdlib.get_logger("cachesrv.x").debug("not shown")

    first, second = map(json.loads, stream.getvalue().splitlines())

    assert (first["event"], first["size"], first["process"], first["level"]) == ("hello", 7, "worker-3", "info")
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["level"]) == ("from the library", "warning")


@pytest.mark.parametrize("secret", ["s3cret/with space", 'quo"ted\\secret'])
def test_no_secret_passes_whoever_logs_it(stream: io.StringIO, secret: str) -> None:
    logs.hide(secret)
    logger = structlog.stdlib.get_logger("cachesrv.x")
    try:
        raise RuntimeError(f"in an error: {secret}")
    except RuntimeError:
        logger.exception("failed", path=f"/{secret}/x")
    logging.getLogger("lib").error("token %s", secret)
    logger.info("encoded", path=f"/{quote(secret, safe='')}/x")

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 3
    assert not any(
        form in value for form in (secret, quote(secret, safe="")) for line in lines for value in line.values()
    )


def test_tracebacks_hold_no_local_variables(stream: io.StringIO) -> None:
    def failing(token: str) -> None:
        raise RuntimeError("oops")

    for format in ("json", "text"):
        logs.configure(format, "info", stream=stream)
        try:
            failing("-".join(("local", "value")))
        except RuntimeError:
            structlog.stdlib.get_logger("x").exception("failed")
    assert "oops" in stream.getvalue()
    assert "local-value" not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/plain", "/plain"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("ü\udc80", "\\xfc\\udc80"),
        ("a\nb", "a\\nb"),
        ("x" * 99, "x" * 50),
    ],
)
def test_client_text_is_made_harmless(text: str, shown: str) -> None:
    assert logs.printable(text, 50) == shown
