"""Reads a long JSON object piece by piece: a call of native code lasts no longer than one piece, and other threads run in between.

A piece ends at a comma outside of strings. It is decoded as its own text: brackets that are open at its beginning are opened before
it, with a placeholder for what came before, and brackets that are open at its end are closed after it. Then its values are merged.

    {"a":[{"b":1 , "c":2},{"d":3 , "e":4}]}
    {"a":[{"b":1}]}     {"~":[{"~":0,"c":2},{"d":3}]}     {"~":[{"~":0,"e":4}]}

A string that is longer than a piece is decoded in parts. The body is a queue of pieces as they arrived, which is freed meanwhile: the
body and its values are never both in memory as a whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from secrets import token_hex
from typing import Any

import msgspec
import numpy as np

from sglang.srt.errors import RequestError
from sglang.srt.messages import TokenIds
from sglang.srt.server.fields import outside_all
from sglang.srt.server.limits.json_limits import CHUNK, MAX_ELEMENTS, Pieces, take_piece

MAX_GAP = 1 << 20
"""bytes between two commas outside of strings, without strings longer than CHUNK"""
_SPACE = b" \t\r\n"
_QUOTE, _OBJECT, _OPEN, _CLOSE, _LOWER = ord('"'), ord("{"), ord("{"), ord("}"), 32
"""`[` and `]` are `{` and `}` without the bit _LOWER"""
_CAME = token_hex(16)
"""key of earlier content; no client can know it"""
_PREFIXES = {True: b'{"%b":' % _CAME.encode(), False: b"["}

_decode = msgspec.json.Decoder().decode
_validate = msgspec.json.Decoder(msgspec.Raw).decode


class JsonReader:
    """Reads one body, which is used up. `is_built`: whether the values of a name are wanted; others are only looked at.
    `check_long`: is called for a name whose value is longer than a piece, and may raise. `ids`: names of lists of token ids, which are
    packed, or of lists of such lists."""

    def __init__(
        self,
        body: Pieces,
        is_built: Callable[[str], bool],
        check_long: Callable[[str], None],
        ids: frozenset[str] = frozenset(),
    ) -> None:
        self._body = body
        self._is_built = is_built
        self._check_long = check_long
        self._ids = ids
        self._num_values = 0
        """numbers that are no token ids"""
        self._rest = b""
        self._comma = b""
        self._has_begun = False
        self._is_object: list[bool] = []
        """of what is open, outermost first"""
        self._open: list[Any] = []
        """the objects and lists themselves; None where they are not built"""
        self._member = ""
        self.names: dict[str, None] = {}
        """of all members, in order"""
        self.values: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """The values of the names that are wanted. Raises RequestError, or what msgspec raises for what is no JSON."""
        while self._body or self._rest:
            self._read_window()
        if self._is_object or not self._has_begun:
            raise _invalid("it ends too early")
        return self.values

    def _read_window(self) -> None:
        window = (self._rest + take_piece(self._body)).lstrip(_SPACE)
        self._rest = b""
        if not window:
            return
        if not self._has_begun:
            _check_object(window)
        elif not self._is_object:
            raise _invalid("something follows the object")
        marks = _Marks(window)
        comma = marks.last_comma() if self._body else len(window)
        if comma >= 0:
            self._add(window[:comma], marks, comma)
            if self._body and (not self._is_object or window[:comma].rstrip(_SPACE)[-1:] in (b"[", b"{")):
                raise _invalid("a comma follows no value of a list or object")
            self._comma, self._rest = b",", window[comma + 1 :]
        elif marks.ends_inside and len(window) - marks.last_quote > CHUNK:
            self._read_string(window, marks)
        elif len(window) > MAX_GAP:
            raise _invalid(f"{MAX_GAP} bytes without a comma")
        else:
            self._rest = window if marks.ends_inside else _without_spaces_at_end(window)

    # --- pieces -------------------------------------------------------------------------------------------------------------

    def _add(self, piece: bytes, marks: _Marks, end: int) -> None:
        """`piece`: what stands before `end` in the window."""
        self._has_begun = True
        num_closed, opened = marks.brackets(end)
        kept = max(len(self._is_object) - num_closed, 0)
        is_object = self._is_object[:kept] + [marks.text[at] == _OBJECT for at in opened]
        text = b"".join([*self._opening(), piece, *(b"}" if is_obj else b"]" for is_obj in reversed(is_object))])
        if kept > 1:
            self._check_long(self._member)
        if kept > 1 and self._open[1] is None:
            _validate(text)
        else:
            self._place(_decode(text))
        self._is_object, self._open = is_object, self._open[:kept]
        for at in opened:
            self._enter(marks, at)

    def _opening(self) -> Iterator[bytes]:
        for is_object in self._is_object:
            yield _PREFIXES[is_object]
        if self._is_object:
            yield b"0" + self._comma

    def _place(self, value: Any) -> None:
        """Brings the values of a piece to what was open before it."""
        if not self._open:
            self._add_members(value)
        for level, target in enumerate(self._open):
            first = value.pop(_CAME if isinstance(value, dict) else 0)
            if level == 0:
                self._add_members(value)
            elif isinstance(target, array):
                _extend(target, value, self._member)
            elif isinstance(target, dict):
                self._count(value.values())
                target.update(value)
            elif target is not None:
                target.extend(self._packed(value) if level == 1 and self._member in self._ids else self._counted(value))
            value = first

    def _add_members(self, members: dict[str, Any]) -> None:
        for name, value in members.items():
            self.names[name] = None
            if self._is_built(name):
                self.values[name] = self._new_value(name, value)

    def _enter(self, marks: _Marks, at: int) -> None:
        """The object or list that begins at `at`, and has not ended yet, is open from now on."""
        level = len(self._open)
        if level == 0:
            self._open.append(self.values)
            return
        parent = self._open[-1]
        key: Any = marks.key_before(at) if self._is_object[level - 1] else -1
        if level == 1:
            self._member = key
            child = self.values[key] if self._is_built(key) else None
        else:
            child = parent[key] if parent is not None else None
        self._open.append(child)

    # --- token ids, and numbers that are none -------------------------------------------------------------------------------

    def _new_value(self, name: str, value: Any) -> Any:
        """A member as far as it has come, with its token ids packed."""
        if name not in self._ids or not isinstance(value, list):
            return self._counted([value])[0]
        if value and set(map(type, value)) == {int}:
            return _extend(array("i"), value, name)
        return self._packed(value)

    def _packed(self, items: list[Any]) -> list[Any]:
        """The items of a list that may be lists of token ids, with those packed."""
        for i, item in enumerate(items):
            if type(item) is list and item and set(map(type, item)) == {int}:
                items[i] = _extend(array("i"), item, self._member)
            else:
                self._count((item,))
        return items

    def _counted(self, items: list[Any]) -> list[Any]:
        self._count(items)
        return items

    def _count(self, items: Iterable[Any]) -> None:
        """Numbers take more room as objects than they did in the body, so there is a limit. Raises RequestError."""
        left = [items]
        while left:
            for item in left.pop():
                if type(item) is list:
                    left.append(item)
                elif type(item) is dict:
                    left.append(item.values())
                elif type(item) is int or type(item) is float:
                    self._num_values += 1
        if self._num_values > MAX_ELEMENTS:
            raise RequestError(f"the body has more than {MAX_ELEMENTS} values and keys")

    # --- long strings -------------------------------------------------------------------------------------------------------

    def _read_string(self, window: bytes, marks: _Marks) -> None:
        """The string that the window ends in; until it is there an empty one takes its place."""
        start = marks.last_quote
        self._add(window[:start] + b'""', marks, start)
        parent = self._open[-1]
        key: Any = marks.key_before(start) if self._is_object[-1] else -1
        self._check_long(key if len(self._open) == 1 else self._member)
        is_wanted = parent is not None and (len(self._open) > 1 or self._is_built(key))
        parts, self._rest = string_parts(window[start + 1 :], self._body, is_wanted)
        self._comma = b""
        if is_wanted:
            parent[key] = "".join(parts)


class _Marks:
    """The places of structural characters in a window that begins outside strings."""

    def __init__(self, window: bytes) -> None:
        self._window = window
        self.text = window.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in window else window
        self._array = np.frombuffer(self.text, np.uint8)
        self._quotes = np.flatnonzero(self._array == _QUOTE)

    @property
    def ends_inside(self) -> bool:
        """Whether it ends in a string."""
        return len(self._quotes) % 2 == 1

    @property
    def last_quote(self) -> int:
        return int(self._quotes[-1])

    def last_comma(self) -> int:
        """The place of the last one outside of strings, or -1."""
        left, end = len(self._quotes), len(self.text)
        while left:
            if left % 2:
                end = int(self._quotes[left - 1])
            else:
                at = self.text.rfind(b",", int(self._quotes[left - 1]), end)
                if at >= 0:
                    return at
            left -= 1
        return self.text.rfind(b",", 0, end)

    def brackets(self, end: int) -> tuple[int, list[int]]:
        """The number of earlier brackets that are closed before `end`, and the places of new ones that stay open."""
        folded = self._array[:end] | _LOWER
        places = np.flatnonzero((folded == _OPEN) | (folded == _CLOSE))
        places = places[np.searchsorted(self._quotes, places) % 2 == 0]
        num_closed, opened = 0, []
        for at in places.tolist():
            if folded[at] == _OPEN:
                opened.append(at)
            elif opened:
                opened.pop()
            else:
                num_closed += 1
        return num_closed, opened

    def key_before(self, at: int) -> str:
        """The key of the value that begins at `at`."""
        i = int(np.searchsorted(self._quotes, at))
        key: str = _decode(self._window[self._quotes[i - 2] : self._quotes[i - 1] + 1])
        return key


def _extend(ids: TokenIds, more: list[Any], name: str) -> TokenIds:
    """`ids`, with `more` behind them. Raises RequestError if these are no token ids."""
    if not set(map(type, more)) <= {int}:
        raise RequestError(f"{name}: a list of token ids holds something else", name)
    try:
        ids.extend(more)
    except OverflowError as error:
        raise outside_all(name) from error
    return ids


def _check_object(begin: bytes) -> None:
    if begin[0] in b'["-0123456789tfn':
        raise RequestError("the body must be a JSON object")
    if begin[0] != _OBJECT:
        raise _invalid("it begins with no value")


def _without_spaces_at_end(window: bytes) -> bytes:
    """All but one, which tells apart what it stands between."""
    text = window.rstrip(_SPACE)
    return text if len(text) == len(window) else text + b" "


def _invalid(why: str) -> RequestError:
    return RequestError(f"the body is not valid JSON: {why}")


# --- long strings, decoded in parts -------------------------------------------------------------------------------------------


_ESCAPE_LEN = 12
"""bytes of the longest escape: two halves of one character"""
_HIGH_HALVES = (b"\\ud8", b"\\ud9", b"\\uda", b"\\udb")
_decode_string = msgspec.json.Decoder(str).decode


def string_parts(begun: bytes, body: Pieces, is_wanted: bool) -> tuple[list[str], bytes]:
    """The string whose text behind its opening quote begins with `begun` and goes on in `body`, which is used up: its parts (none if
    it is not wanted), and what follows its closing quote. Raises RequestError, or what msgspec raises for what is no string."""
    parts: list[str] = []
    rest = begun
    while True:
        text = _without_pairs(rest)
        end = text.replace(b'\\"', b"__").find(b'"')
        cut = end if end >= 0 else safe_cut(text)
        part = _decode_string(b'"%b"' % rest[:cut])
        if is_wanted:
            parts.append(part)
        if end >= 0:
            return parts, rest[end + 1 :]
        if not body:
            raise RequestError("the body is not valid JSON: it ends in a string")
        rest = rest[cut:] + take_piece(body)


def safe_cut(text: bytes) -> int:
    r"""A place at which the text of a string may be cut: no character, escape or pair of escapes is divided. `text` has no
    `\\`."""
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
