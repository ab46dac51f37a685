"""Put Block List: the XML document that says which staged blocks make the content, and in which order.

    <?xml version="1.0" encoding="utf-8"?>            (may be absent; a newline may follow)
    <BlockList><Latest>BASE64</Latest><Uncommitted>BASE64</Uncommitted><Committed>BASE64</Committed></BlockList>

The three tags mean the same here: the newest block staged under that id. Hostile input is bounded while it streams: no
document type, no entities, no other elements, no more than ``max_blocks`` ids of MAX_ID_CHARS.

A block id is an opaque text. Clients send base64 of 16, 48 or 64 bytes; the store takes ids of 1 to 64 bytes. A text of
up to 64 bytes is its own id; a longer one is named by its SHA-256.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final, NoReturn
from xml.parsers import expat

from cachesrv.protocols.actions.errors import Reason, Refusal

MAX_ID_CHARS: Final = 256
"""Azure allows base64 of 64 bytes: 88 characters."""
_STORE_ID_BYTES: Final = 64
_TAGS: Final = frozenset({"Latest", "Uncommitted", "Committed"})


def block_name(text: str) -> bytes:
    """The store's name of a block id. Raises Refusal(INVALID): empty or over MAX_ID_CHARS."""
    if not 0 < len(text) <= MAX_ID_CHARS:
        raise Refusal(Reason.INVALID, f"a block id has 1 to {MAX_ID_CHARS} characters")
    raw = text.encode("utf-8", "surrogatepass")
    return raw if len(raw) <= _STORE_ID_BYTES else sha256(raw).digest()


class BlockListParser:
    """Feed it the body as it comes; ``close`` gives the ids. Raises Refusal (BAD_XML, BAD_BLOCK, OVER_LIMIT)."""

    def __init__(self, max_blocks: int) -> None:
        self.blocks: list[bytes] = []
        self._max_blocks = max_blocks
        self._depth = 0
        self._text: list[str] = []
        self._chars = 0
        parser = expat.ParserCreate("utf-8")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._data
        parser.StartDoctypeDeclHandler = self._forbidden
        parser.EntityDeclHandler = self._forbidden
        parser.ExternalEntityRefHandler = self._forbidden
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        self._parser = parser

    def feed(self, chunk: bytes) -> None:
        self._parse(chunk, final=False)

    def close(self) -> list[bytes]:
        self._parse(b"", final=True)
        return self.blocks

    def _parse(self, chunk: bytes, *, final: bool) -> None:
        try:
            self._parser.Parse(chunk, final)
        except expat.ExpatError as error:
            raise Refusal(Reason.BAD_XML, f"the block list is not XML: {expat.errors.messages[error.code]}") from None

    def _start(self, name: str, _attributes: dict[str, str]) -> None:
        self._depth += 1
        if (self._depth == 1 and name == "BlockList") or (self._depth == 2 and name in _TAGS):
            return
        raise Refusal(Reason.BAD_XML, "a block list has Latest, Uncommitted and Committed elements only")

    def _end(self, _name: str) -> None:
        if self._depth == 2:
            if len(self.blocks) >= self._max_blocks:
                raise Refusal(Reason.OVER_LIMIT, f"more than {self._max_blocks} blocks (limits.max_blocks)")
            text = "".join(self._text).strip()
            if not text:
                raise Refusal(Reason.BAD_BLOCK, "the block list holds an empty id")
            self.blocks.append(block_name(text))
            self._text.clear()
            self._chars = 0
        self._depth -= 1

    def _data(self, text: str) -> None:
        if self._depth != 2:
            if text.strip():
                raise Refusal(Reason.BAD_XML, "text outside the elements of the block list")
            return
        self._chars += len(text)
        if self._chars > 2 * MAX_ID_CHARS:
            raise Refusal(Reason.BAD_BLOCK, f"a block id has 1 to {MAX_ID_CHARS} characters")
        self._text.append(text)

    def _forbidden(self, *_details: object) -> NoReturn:
        raise Refusal(Reason.BAD_XML, "a block list has no document type and no entities")
