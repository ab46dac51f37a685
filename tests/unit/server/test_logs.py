"""What stands in the log, and what never does."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import ClassVar, Literal
from urllib.parse import quote

import pytest
import structlog

from cachesrv.server import logs
from cachesrv.web.blobs import BlobResponse


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


class _Url:
    raw_path = "/s3cret/_apis/cache"


class _Request:
    method = "GET"
    rel_url = _Url
    headers: ClassVar = {"User-Agent": "npm/1\x1b[2J", "Authorization": "Bearer token-text"}


class _Response:
    status = 206
    headers: ClassVar = {"x-ms-request-id": "an-id"}
    content_length = 10
    body_length = 0


@pytest.mark.parametrize("format", ["json", "text"])
def test_an_access_line_tells_enough_and_no_secret(stream: io.StringIO, format: Literal["json", "text"]) -> None:
    logs.configure(format, "info", stream=stream)
    logs.hide("s3cret")
    access = logs.AccessLog(logging.getLogger(logs.ACCESS), "")

    access.log(_Request, _Response, 0.00125)  # type: ignore[arg-type]

    line = stream.getvalue()
    assert line.count("\n") == 1
    assert all(part in line for part in ("/***/_apis/cache", "206", "1.25", "an-id", "npm/1"))
    assert not any(part in line for part in ("s3cret", "token-text", "\x1b[2J"))
    if format == "json":
        shown = json.loads(line)
        assert (shown["event"], shown["level"], shown["process"], shown["bytes"]) == (
            "request",
            "info",
            "supervisor",
            10,
        )


@pytest.mark.parametrize("written", ["%733cret", "s%33cre%74", "%73%33%63%72%65%74", "s3cret"])
def test_a_secret_is_blotted_out_however_its_path_is_escaped(stream: io.StringIO, written: str) -> None:
    logs.configure("json", "info", stream=stream)
    logs.hide("s3cret", "%+(x")
    structlog.stdlib.get_logger("x").info("saw", path=f"/{written}/%5ba", other="%25%2b(x and %+(x")
    shown = json.loads(stream.getvalue())
    assert (shown["path"], shown["other"]) == ("/***/%5ba", "*** and ***")


def test_the_line_of_a_download_that_broke_off_says_so(stream: io.StringIO) -> None:
    logs.configure("json", "info", stream=stream)
    response = BlobResponse(status=200, headers={"Content-Length": "1000"})
    response.bytes_out, response.outcome = 300, "aborted"
    logs.AccessLog(logging.getLogger(logs.ACCESS), "").log(_Request, response, 1.0)  # type: ignore[arg-type]
    shown = json.loads(stream.getvalue())
    assert (shown["bytes"], shown["cut"]) == (300, "aborted")


def test_access_lines_follow_the_level(stream: io.StringIO) -> None:
    access = logs.AccessLog(logging.getLogger(logs.ACCESS), "")
    assert access.enabled
    logs.configure("json", "warning", stream=stream)
    assert not access.enabled
