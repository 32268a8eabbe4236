"""Incremental JSON: finds the end of a value, and reads a call that is an object."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sglang.common.growing import Growing
from sglang.srt.server.parsers.pieces import CallArguments, CallBegin, Parser, Piece, Text

ARGUMENT_KEYS = ("arguments", "parameters")
_FUNCTION = "function"
_KNOWN_KEYS = frozenset({"name", "id", "type", "index", _FUNCTION, *ARGUMENT_KEYS})
_FUNCTION_KEYS = frozenset({"name", *ARGUMENT_KEYS})
_BLANK = " \t\r\n"
_FOREIGN = frozenset("<`")
"""what begins a mark, and is nowhere outside of strings"""


class ValueScanner:
    """Finds the end of one JSON value. Brackets and strings are counted; whether the rest is valid is not its concern, save for
    what tells that the value is over without its brackets (`is_broken`). `depth`: brackets that were open before."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False
        self._scalar = False
        self._controls: list[int] = []
        self.done = False
        self.is_broken = False

    def feed(self, text: str) -> int:
        """The number of characters of `text` that belong to the value. `done` or `is_broken` is set once it has ended."""
        self._controls.clear()
        for at, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
                    self.done = not self._depth
                elif char < " ":
                    self._controls.append(at)
            elif self._scalar:
                if char in ",]}" or char in _BLANK:
                    self.done = True
                    return at
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                self.done = self._depth <= 0
            elif char in _FOREIGN:
                self.is_broken = True
                return at
            elif not self._depth:
                self._scalar = True
            if self.done:
                return at + 1
        return len(text)

    def as_json(self, text: str) -> str:
        """The text just fed, with the control characters in its strings escaped: models write line breaks unescaped."""
        parts, begin = [], 0
        for at in self._controls:
            parts += [text[begin:at], json.dumps(text[at])[1:-1]]
            begin = at + 1
        return "".join([*parts, text[begin:]])


class CallReader:
    """Reads one {"name": ..., "arguments": {...}}, keys in any order, "parameters" for "arguments"; or the same inside of
    {"type": "function", "function": {...}}.

    `begin(name)` is called as soon as a name is known with the first of its arguments, and says whether there is such a tool; then
    `more(text, is_last)` with the arguments as they come; none are the last if they turn out to be no JSON. `wrong` is set when
    this is no call, or not to the end. `is_unknown`: it calls a tool that is not there, describes one, has no object for arguments,
    or calls nothing at all; it is read to its end nevertheless. `among_calls`: nothing but calls is expected here, so other keys and
    objects do not make it `wrong`. `other_key`: the key by which this is seen to be an object of another kind, if it is the first.
    `described`: given where nothing but its keys says that this is a call. It holds the parameters
    of each tool, by which a description of the tool is distinguished from a call of it.
    """

    def __init__(
        self,
        begin: Callable[[str], bool],
        more: Callable[[str, bool], None],
        among_calls: bool = False,
        described: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self._begin = begin
        self._more = more
        self._among_calls = among_calls
        self._described = described
        self._name: str | None = None
        self._state: Callable[[str], int] = self._start
        self._key = ""
        self._value = Growing()
        self._started = False
        self._says_value = False
        self._scanner = ValueScanner()
        self._arguments: str | None = None
        self._sent_arguments = False
        self.begun = False
        self.done = False
        self.wrong = False
        self.is_unknown = False
        self.other_key: str | None = None
        self._num_keys = 0

    def feed(self, text: str) -> int:
        """The number of characters that belong to the call (all, unless it is `done` or `wrong`)."""
        used = 0
        while used < len(text) and not self.done and not self.wrong:
            used += self._state(text[used:])
        return used

    def _start(self, text: str) -> int:
        self.wrong = text[0] != "{"
        self._state = self._next_key
        return 1

    def _next_key(self, text: str) -> int:
        if text[0] == '"':
            self._state, self._scanner, self._value = self._in_key, ValueScanner(), Growing()
            return 0
        if text[0] == "}":
            self._end()
        elif text[0] not in _BLANK and text[0] != ",":
            self.wrong = True
            return 0
        return 1

    def _in_key(self, text: str) -> int:
        used = self._scanner.feed(text)
        self._value.add(text[:used])
        if self._scanner.done:
            self._key = str(_decoded(str(self._value)))
            self._state = self._colon
            is_other = self._key not in _KNOWN_KEYS
            if is_other and self._name is not None and self._described is not None:
                self._set_unknown()
            self.wrong = is_other and not (self.begun or self.is_unknown or self._among_calls)
            self._num_keys += 1
            if self.wrong and self._num_keys == 1:
                self.other_key = self._key
        return used

    def _colon(self, text: str) -> int:
        if text[0] == ":":
            self._state, self._scanner, self._value = self._in_value, ValueScanner(), Growing()
            self._started = self._says_value = False
        elif text[0] not in _BLANK:
            self.wrong = True
        return 1

    def _in_value(self, text: str) -> int:
        if not self._started:
            if text[0] in _BLANK:
                return 1
            if text[0] in ",}":
                self.wrong = True
                return 0
            self._started = True
        used = self._scanner.feed(text)
        new = self._scanner.as_json(text[:used])
        is_young = self._value.length < _MAX_BEGINNING
        self._value.add(new)
        # an object goes out as it comes; whatever else stands for the arguments is looked at when it is whole
        if self._says_value:
            self._say_more(new)
        elif is_young and self._is_call_so_far():
            self._begin_named()
            self._says_value = self.begun
            self._say_more(str(self._value))
        self.wrong = self._scanner.is_broken
        if self._scanner.done:
            self._state = self._next_key
            self._take_value()
        return used

    def _is_call_so_far(self) -> bool:
        """Whether the arguments have begun for which a name has waited."""
        if self._name is None or self._key not in ARGUMENT_KEYS or self._sent_arguments or self.begun:
            return False
        start = str(self._value)[:_MAX_BEGINNING]
        if self._described is None or not start.startswith("{"):
            return start.startswith("{")
        return _is_no_description(start, self._described.get(self._name, ()))

    def _say_more(self, text: str) -> None:
        if self.begun:
            self._say(text, self._scanner.done and read_arguments(str(self._value)) is not None)

    def _take_value(self) -> None:
        if self._key == "name":
            self._take_name(_decoded(str(self._value)))
        elif self._key == _FUNCTION and not self.begun:
            self._take_function(_decoded(str(self._value)))
        elif self._key in ARGUMENT_KEYS and not self._sent_arguments and self._arguments is None:
            self._arguments = arguments_text(str(self._value))
            if self._arguments is None:
                self._set_unknown()
            elif self._name is not None:
                self._begin_named()

    def _take_name(self, name: object) -> None:
        if self.begun or self._name is not None or not (isinstance(name, str) or self._among_calls):
            self.wrong = True
        elif not isinstance(name, str):
            self.is_unknown = True
        else:
            self._name = name
            if self._arguments is not None:
                self._begin_named()

    def _take_function(self, function: object) -> None:
        """Takes the value of {"function": ...} as a call if it has nothing but a name and arguments."""
        if (
            not isinstance(function, dict)
            or len(function) != 2
            or not function.keys() <= _FUNCTION_KEYS
            or "name" not in function
        ):
            self._set_unknown()
            return
        (value,) = (function[key] for key in ARGUMENT_KEYS if key in function)
        self._arguments = arguments_text(json.dumps(value, ensure_ascii=False))
        if self._arguments is None:
            self._set_unknown()
        else:
            self._take_name(function["name"])

    def _set_unknown(self) -> None:
        self._name, self.is_unknown = None, not self.begun

    def begin_cut(self) -> bool:
        """Handles the end of the text. Whether a call begins now that has only its name."""
        is_held = self._state == self._in_value and bool(self._value)
        if self._name is None or self.wrong or is_held:
            return False
        self._begin_named()
        return self.begun

    def _begin_named(self) -> None:
        assert self._name is not None
        name, self._name = self._name, None
        if self.is_unknown or self._is_description_of(name) or not self._begin(name):
            self.is_unknown = True
            return
        self.begun = True
        if self._arguments is not None:
            self._say(self._arguments, True)

    def _is_description_of(self, name: str) -> bool:
        if self._described is None or self._arguments is None:
            return False
        return describes(json.loads(self._arguments), self._described.get(name, ()))

    def _say(self, text: str, is_last: bool) -> None:
        self._sent_arguments = True
        self._more(text, is_last)

    def _end(self) -> None:
        if self._name is not None:
            self._begin_named()
        self.is_unknown = not self.begun and (self.is_unknown or self._among_calls)
        if not self.begun and not self.is_unknown:
            self.wrong = True
            return
        if self.begun and not self._sent_arguments:
            self._say("{}", True)
        self.done = True


def arguments_text(value: str) -> str | None:
    """Arguments as JSON text: some models write the object inside a string, or null or nothing for none. None for what is no object."""
    decoded = _decoded(value)
    text = decoded if isinstance(decoded, str) else value
    if text.strip() in ("", "null"):
        return "{}"
    return text if read_arguments(text) is not None else None


def read_arguments(text: str) -> dict[str, Any] | None:
    """The arguments that a JSON text says; None if it is no object that every reader of JSON takes."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not a number in JSON")


def _decoded(value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


# --- descriptions of tools --------------------------------------------------------------------------------------------------

_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_SCHEMA_WORDS = frozenset(
    {
        *("type", "properties", "required", "additionalProperties", "description", "title", "items", "enum"),
        *("$schema", "$id", "$defs", "definitions", "$ref", "anyOf", "oneOf", "allOf"),
    }
)
_FIRST = re.compile(r'\{\s*(?:"((?:[^"\\]|\\.)*)"\s*:\s*(\S)|\})')
_MAX_BEGINNING = 200
"""characters after which it is known what stands there: no word of schemas is as long"""


def describes(parameters: dict[str, Any], known: Collection[str]) -> bool:
    """Whether what stands for the arguments is the schema of a tool with the parameters `known`, or a type for each of them."""
    if parameters.get("type") == "object" and "type" not in known:
        return True
    if isinstance(parameters.get("properties"), dict) and "properties" not in known:
        return True
    return bool(parameters) and all(isinstance(v, dict) and _is_type(v.get("type")) for v in parameters.values())


def _is_type(value: object) -> bool:
    return isinstance(value, str) and value in _TYPES


def _is_no_description(start: str, known: Collection[str]) -> bool:
    """Whether an object that begins like this is none, whatever follows."""
    found = _FIRST.match(start)
    if found is None:
        return len(start) == _MAX_BEGINNING
    key, first = found.groups()
    return key is None or not (first == "{" or (key in _SCHEMA_WORDS and key not in known))


class BareCalls:
    """A Parser for answers that are only a call in plain JSON, fenced or not, from models whose own format is another. Qwen 2.5 Coder
    answers like this although its template asks for <tool_call>:

        ```json
        {"name": "f", "arguments": {...}}
        ```
    `plain` parses JSON, `own` the model's format. While there are only calls, they are held back: if text follows, all of it is text."""

    def __init__(self, plain: Parser, own: Parser) -> None:
        self._plain: Parser | None = plain
        self._own = own
        self._text = Growing()
        self._calls: list[Piece] = []

    def feed(self, text: str) -> list[Piece]:
        if self._plain is None:
            return self._own.feed(text)
        self._text.add(text)
        self._calls += self._plain.feed(text)
        return self._as_text() if _holds_text(self._calls) else []

    def finish(self) -> list[Piece]:
        if self._plain is not None:
            self._calls += self._plain.finish()
            if not _holds_text(self._calls) and _are_whole(self._calls):
                return self._calls
        return [*self._as_text(), *self._own.finish()]

    def _as_text(self) -> list[Piece]:
        self._plain = None
        return self._own.feed(self._text.take())


def _holds_text(pieces: list[Piece]) -> bool:
    return any(isinstance(piece, Text) and not piece.text.isspace() for piece in pieces)


def _are_whole(pieces: list[Piece]) -> bool:
    begun = sum(isinstance(piece, CallBegin) for piece in pieces)
    return begun > 0 and begun == sum(isinstance(piece, CallArguments) and piece.is_last for piece in pieces)
