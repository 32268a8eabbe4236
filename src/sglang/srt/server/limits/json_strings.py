"""Long JSON strings, decoded in parts, and the pieces of a body."""

from __future__ import annotations

from collections import deque

import msgspec

from sglang.srt.errors import RequestError
from sglang.srt.server.limits.json_limits import CHUNK

_ESCAPE_LEN = 12
"""bytes of the longest escape: two halves of one character"""
_HIGH_HALVES = (b"\\ud8", b"\\ud9", b"\\uda", b"\\udb")

_decode = msgspec.json.Decoder(str).decode


Pieces = deque[bytes | bytearray]


def add_piece(body: Pieces, piece: bytes) -> None:
    """However little comes at a time, the pieces are not many."""
    if body and len(body[-1]) < CHUNK:
        body[-1] += piece
    else:
        body.append(bytearray(piece))


def take_piece(body: Pieces) -> bytes | bytearray:
    """About CHUNK bytes from the begin of `body`; none if it is empty."""
    if not body:
        return b""
    piece = body.popleft()
    if len(piece) > 2 * CHUNK:
        body.appendleft(piece[CHUNK:])
        return piece[:CHUNK]
    return piece


def string_parts(begun: bytes, body: Pieces, is_wanted: bool) -> tuple[list[str], bytes]:
    """The string whose text behind its opening quote begins with `begun` and goes on in `body`, which is used up: its parts (none if
    it is not wanted), and what follows its closing quote. Raises RequestError, or what msgspec raises for what is no string."""
    parts: list[str] = []
    rest = begun
    while True:
        text = _without_pairs(rest)
        end = text.replace(b'\\"', b"__").find(b'"')
        cut = end if end >= 0 else safe_cut(text)
        part = _decode(b'"%b"' % rest[:cut])
        if is_wanted:
            parts.append(part)
        if end >= 0:
            return parts, rest[end + 1 :]
        if not body:
            raise RequestError("the body is not valid JSON: it ends in a string")
        rest = rest[cut:] + take_piece(body)


def safe_cut(text: bytes) -> int:
    r"""Where a text of a string may be cut: no character, escape or pair of escapes is divided. `text` has no `\\`."""
    escape = text.rfind(b"\\", max(len(text) - _ESCAPE_LEN, 0))
    if escape >= 0:
        before = text[max(escape - 6, 0) : escape].lower()
        return escape - 6 if before.startswith(_HIGH_HALVES) else escape
    cut = len(text)
    while cut > len(text) - 3 and text[cut - 1] & 0xC0 == 0x80:
        cut -= 1
    return cut - 1 if text[cut - 1] >= 0xC0 else cut


def _without_pairs(text: bytes) -> bytes:
    r"""The text with another two bytes in the place of each `\\`."""
    return text.replace(b"\\\\", b"__") if b"\\" in text else text
