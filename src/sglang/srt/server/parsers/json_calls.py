"""JSON that arrives in pieces: where a value ends, and a call written as an object."""

from __future__ import annotations

import json
from collections.abc import Callable

from sglang.common.growing import Growing

ARGUMENT_KEYS = ("arguments", "parameters")
_KNOWN_KEYS = frozenset({"name", "id", "type", "index", *ARGUMENT_KEYS})
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
        self.done = False
        self.is_broken = False

    def feed(self, text: str) -> int:
        """How many characters of `text` belong to the value. `done` or `is_broken` is set once it has ended."""
        for at, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
                    self.done = not self._depth
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


class CallReader:
    """Reads one {"name": ..., "arguments": {...}}, keys in any order, "parameters" for "arguments".

    `begin(name)` is called as soon as the name is known, and says whether there is such a tool; then `more(text, is_last)` with the
    arguments as they come. `wrong` is set when this is no call, or not to the end. `is_unknown`: it calls a tool that is not there, or
    nothing at all; it is read to its end nevertheless. `among_calls`: nothing but calls is expected here, so other keys and objects
    do not make it `wrong`. `bare`: nothing says that this is a call but its keys, so a name begins one only with the arguments that
    follow it, or as the only key.
    """

    def __init__(
        self,
        begin: Callable[[str], bool],
        more: Callable[[str, bool], None],
        among_calls: bool = False,
        bare: bool = False,
    ) -> None:
        self._begin = begin
        self._more = more
        self._among_calls = among_calls
        self._bare = bare
        self._name: str | None = None
        self._state: Callable[[str], int] = self._start
        self._key = ""
        self._value = Growing()
        self._started = False
        self._is_object = False
        self._says_value = False
        self._scanner = ValueScanner()
        self._arguments: str | None = None
        self._sent_arguments = False
        self.begun = False
        self.done = False
        self.wrong = False
        self.is_unknown = False

    def feed(self, text: str) -> int:
        """How many characters belong to the call (all, unless it is `done` or `wrong`)."""
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
            if is_other and self._name is not None:
                self._name, self.is_unknown = None, True
            self.wrong = is_other and not (self.begun or self.is_unknown or self._among_calls)
            if self._key in ARGUMENT_KEYS and self._name is not None:
                self._begin_named()
        return used

    def _colon(self, text: str) -> int:
        if text[0] == ":":
            self._state, self._scanner, self._value = self._in_value, ValueScanner(), Growing()
            self._started = False
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
            self._started, self._is_object = True, text[0] == "{"
            self._says_value = self._key in ARGUMENT_KEYS and self.begun and self._is_object and not self._sent_arguments
        used = self._scanner.feed(text)
        new = text[:used]
        # an object goes out as it comes; whatever else stands for the arguments is looked at when it is whole
        if self._says_value:
            self._say(new, self._scanner.done)
        else:
            self._value.add(new)
        self.wrong = self._scanner.is_broken
        if self._scanner.done:
            self._state = self._next_key
            self._take_value()
        return used

    def _take_value(self) -> None:
        if self._key == "name":
            self._take_name(_decoded(str(self._value)))
        elif self._key in ARGUMENT_KEYS and not self._sent_arguments:
            self._arguments = arguments_text(str(self._value))
            if self.begun:
                self._say(self._arguments, True)

    def _take_name(self, name: object) -> None:
        if self.begun or self._name is not None or not (isinstance(name, str) or self._among_calls):
            self.wrong = True
        elif not isinstance(name, str):
            self.is_unknown = True
        else:
            self._name = name
            if not self._bare or self._arguments is not None:
                self._begin_named()

    def begin_cut(self) -> bool:
        """Nothing follows. Whether a call begins now, of which only the name is there."""
        if self._name is not None and not self.wrong:
            self._begin_named()
            return self.begun
        return False

    def _begin_named(self) -> None:
        assert self._name is not None
        name, self._name = self._name, None
        if self.is_unknown or not self._begin(name):
            self.is_unknown = True
            return
        self.begun = True
        if self._arguments is not None:
            self._say(self._arguments, True)

    def _say(self, text: str, is_last: bool) -> None:
        self._sent_arguments = True
        if self.begun:
            self._more(text, is_last)

    def _end(self) -> None:
        if self._name is not None:
            self._begin_named()
        self.is_unknown = not self.begun and (self.is_unknown or self._among_calls)
        if not self.begun and not self.is_unknown:
            self.wrong = True
            return
        if not self._sent_arguments:
            self._say("{}", True)
        self.done = True


def arguments_text(value: str) -> str:
    """Arguments as JSON text: some models write the object inside a string, or null for none."""
    if value.startswith("{"):
        return value
    decoded = _decoded(value)
    if isinstance(decoded, str) and decoded.lstrip().startswith("{"):
        return decoded
    return "{}" if decoded is None else value


def _decoded(value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
