"""Checks the size of a JSON text (values, depth, lengths) on its bytes, before any object is created.

The bytes are read in pieces of CHUNK, each a few passes in C over the whole piece: the cost hardly depends on the text, and other
threads run between two pieces. The contents of strings are never taken for structure.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from sglang.srt.errors import RequestError

CHUNK = 64 << 10
MAX_DEPTH = 128
MAX_ELEMENTS = 400_000
"""values, and once more the keys of objects; an element takes at most 64 bytes"""
MAX_MEMORY = 64 << 20
"""bytes that strings and elements may take as objects; lists of plain numbers are counted apart (see `bodies`)"""
ELEMENT_BYTES = 64
MAX_KEY = CHUNK
"""bytes; longer keys are refused, shorter ones are checked by the reader of the object"""
MAX_DIGITS = 512
"""of one number: longer ones may, from twice that many must, be refused"""

_DIGITS = bytes(ord("0") if chr(i).isdigit() and i < 128 else ord(" ") for i in range(256))
_LONG_NUMBER = b"0" * MAX_DIGITS
_COMMA, _COLON, _OPEN, _CLOSE, _LOWER = ord(","), ord(":"), ord("{"), ord("}"), 32
"""`[` and `]` are `{` and `}` without the bit _LOWER"""


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


class JsonScan:
    """Counts over one JSON text. `elements`: an upper bound of values and keys; `numbers`: those of them that stand between two
    commas of a list of numbers, and are not in `elements`; `text`: bytes that the strings take as objects. Of what is no JSON the
    counts hold up to the fault, where every reader stops."""

    def __init__(self) -> None:
        self.elements = 1
        self.numbers = 0
        self.depth = 0
        self.text = 0
        self._in_string = False
        self._string = _String()
        self._tail = b""
        self._long_key = False

    def read(self, text: bytes | bytearray | memoryview) -> JsonScan:
        """The counts of a whole text. Raises RequestError as soon as one of them is too large."""
        with memoryview(text) as view:
            for at in range(0, len(view), CHUNK):
                self._read(bytes(view[at : at + CHUNK]))
                self._check()
        return self

    @staticmethod
    def check_sum(scans: Iterable[JsonScan]) -> None:
        """Raises RequestError if several texts together would become too much."""
        total = JsonScan()
        for scan in scans:
            total.elements += scan.elements
            total.text += scan.text
        total._check()

    def _check(self) -> None:
        if self.depth > MAX_DEPTH:
            raise RequestError(f"the body is nested too deeply: at most {MAX_DEPTH} levels are read")
        if self.elements > MAX_ELEMENTS:
            raise RequestError(f"the body has more than {MAX_ELEMENTS} values and keys")
        if self.text + self._string.memory + self.elements * ELEMENT_BYTES > MAX_MEMORY:
            raise RequestError(f"the body's values would take more than {MAX_MEMORY >> 20} MiB of memory")

    def _read(self, chunk: bytes) -> None:
        text = self._without_escapes(chunk) if self._tail or b"\\" in chunk else chunk
        if self._in_string and b'"' not in text:  # inside a long string, of an image mostly
            self._string.add(text)
            return
        parts = text.split(b'"')
        began_inside = self._in_string
        self._in_string = began_inside != (len(parts) % 2 == 0)
        self._read_strings(parts[not began_inside :: 2], began_inside, text.isascii() and b"\\" not in text)
        outside = parts[began_inside::2]
        self._check_key(outside, began_inside)
        self._read_structure(b"".join(outside).translate(None, b" \t\r\n"))

    def _without_escapes(self, chunk: bytes) -> bytes:
        r"""The text without `\\` and `\"`; a backslash at the end is kept for the next piece."""
        text = self._tail + chunk
        odd = (len(text) - len(text.rstrip(b"\\"))) % 2
        self._tail = b"\\" * odd
        return text[: len(text) - odd].replace(b"\\\\", b"_").replace(b'\\"', b"_")

    def _read_strings(self, strings: list[bytes], first_goes_on: bool, plain: bool) -> None:
        if not strings:
            return
        if first_goes_on:
            self._string.add(strings[0])
            self._end_string(len(strings) > 1 or not self._in_string)
        rest = strings[first_goes_on:]
        if not rest:
            return
        if self._in_string:
            self._string.add(rest.pop())
        self.text += sum(map(len, rest)) if plain else sum(_memory(string) for string in rest)

    def _end_string(self, ended: bool) -> None:
        if ended:
            self.text += self._string.memory
            self._long_key = self._string.num_chars > MAX_KEY
            self._string = _String()

    def _check_key(self, outside: list[bytes], began_inside: bool) -> None:
        """Refuses keys as long as a piece: whatever a string is, is known from what stands behind it."""
        if not self._long_key:
            return
        behind = outside[0].lstrip() if outside else b""
        if behind.startswith(b":"):
            raise RequestError(f"the body has a key of more than {MAX_KEY} bytes")
        self._long_key = not behind and len(outside) == 1

    def _read_structure(self, text: bytes) -> None:
        """`text`: what stands outside strings, without white space."""
        array = np.frombuffer(text, np.uint8)
        digits = (array >= ord("0")) & (array <= ord("9"))
        commas = array == _COMMA
        numbers = int(np.count_nonzero(commas[1:-1] & digits[:-2] & digits[2:])) if len(array) > 2 else 0
        folded = array | _LOWER
        opens = folded == _OPEN
        num_opens = int(np.count_nonzero(opens))
        self.numbers += numbers
        self.elements += int(np.count_nonzero(commas)) + int(np.count_nonzero(array == _COLON)) + num_opens - numbers
        closes = folded == _CLOSE
        if self.depth + num_opens > MAX_DEPTH:
            levels = np.cumsum(opens.astype(np.int32) - closes) + self.depth
            deepest = int(levels.max())
            self.depth = deepest if deepest > MAX_DEPTH else int(levels[-1])
        else:
            self.depth += num_opens - int(np.count_nonzero(closes))
        if len(text) > MAX_DIGITS and _LONG_NUMBER in text.translate(_DIGITS):
            raise RequestError(f"the body has a number of more than {MAX_DIGITS} digits")


class _String:
    """A string that goes on over several pieces."""

    def __init__(self) -> None:
        self.num_chars = 0
        self._width = 1

    def add(self, piece: bytes) -> None:
        self.num_chars += _num_chars(piece)
        self._width = max(self._width, _width(piece))

    @property
    def memory(self) -> int:
        return self.num_chars * self._width


def _num_chars(string: bytes) -> int:
    r"""An upper bound of the number of characters: `\uXXXX` is one."""
    return len(string) - 5 * string.count(b"\\u") if b"\\" in string else len(string)


def _width(string: bytes) -> int:
    """Bytes that each character takes, at most: as many as the widest needs."""
    if b"\\" in string and b"\\u" in string:
        return 4
    if string.isascii():
        return 1
    return 4 if np.frombuffer(string, np.uint8).max() >= 0xF0 else 2


def _memory(string: bytes) -> int:
    return _num_chars(string) * _width(string)


def check_json(text: bytes | bytearray | memoryview) -> JsonScan | None:
    """Raises RequestError for a JSON text that is nested too deeply or would become too many or too large objects. The counts are
    returned of what is longer than a piece; what is shorter cannot exceed them, save for the depth."""
    if len(text) > CHUNK:
        return JsonScan().read(text)
    data = text if not isinstance(text, memoryview) else bytes(text)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        JsonScan().read(data)
    return None


def read_json_text(text: str, name: str) -> Any:
    """The value of JSON that stands inside a string of the request, in the field `name`; within the same limits. Raises
    RequestError."""
    try:
        check_json(text.encode(errors="surrogatepass"))
        return json.loads(text)
    except (RequestError, ValueError, RecursionError) as error:
        raise RequestError(f"{name} is not valid JSON, or too large: {error}", name) from error
