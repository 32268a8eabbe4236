"""Calls written as Python: [f(x=1), g(y="a")] (source: the Llama 4, ToolACE and LFM2 chat templates), and Gemma's own formats.

Arguments are literals by keyword. A call is emitted when its bracket closes, with its arguments as JSON; what cannot be parsed, or is cut off,
is text.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Collection

from sglang.common.growing import Growing, held_len
from sglang.srt.server.parsers.call_parser import CallParser

_HEAD = re.compile(r"([A-Za-z_][\w.\-]*)\s*\(")
_HEAD_BEGIN = re.compile(r"[A-Za-z_][\w.\-]*\s*")
_BETWEEN = " \t\r\n,[];"
_QUOTE_CHARS = "'\""
_TWO_QUOTES = frozenset({"'", '"', "''", '""'})
_OTHER_END = re.compile(r"[,;\n\]]")
MAX_HEAD = 200
MAX_WORD = 4000
MAX_PARTS = 5000
_CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


class PythonicCalls(CallParser):
    openers: tuple[str, ...] = ("<|python_start|>", "<|tool_call_start|>", "[")
    closers: tuple[str, ...] = ("<|python_end|>", "<|tool_call_end|>", "]")
    markers: tuple[str, ...] = ("<|python_start|>", "<|python_end|>", "<|tool_call_start|>", "<|tool_call_end|>")

    exact_openings: tuple[str, ...] = ("[", "<|python_start|>[", "<|tool_call_start|>[")
    """what stands before a call that is written exactly"""

    separators = ",;\n"
    blanks = " \t\r)"
    debris = "})"

    def __init__(self, tools: Collection[str], max_calls: int | None = None, exact: Collection[str] = ()) -> None:
        super().__init__(tools, max_calls, exact)
        self._name = ""
        self._arguments = Growing()
        self._depth = 0
        self._quote = ""
        marks = (*self.closers, *(mark for mark in self.openers if mark != "["))
        self._marks = tuple(sorted(marks, key=len, reverse=True))

    def _open(self, mark: str) -> None:
        self._pass(mark)
        self._state = self._read_between

    def _read_between(self, final: bool) -> bool:
        """Up to the next name with an opening bracket."""
        buffer = self._buffer
        if not buffer:
            return False
        mark = next((m for m in self._marks if buffer.startswith(m)), None)
        if not final and any(m != buffer and m.startswith(buffer) for m in self._marks):
            return False  # the rest of a mark may be on its way
        if mark is not None or buffer[0] in _BETWEEN or self._is_debris(buffer[0]):
            self._pass(mark or buffer[0])
        elif (head := _HEAD.match(buffer)) is not None:
            return self._start_call(head)
        elif not final and _HEAD_BEGIN.fullmatch(buffer) and len(buffer) < MAX_HEAD:
            return False
        elif self._is_in_list:
            self._state = self._read_other
        else:
            self._give_up(self._raw.length)
        if self._after_call and self._state == self._read_between:
            self._drop_between()
        return True

    def _start_call(self, head: re.Match[str]) -> bool:
        name = head[1]
        if name == "print":  # print(f(x=1)): what counts is inside
            self._consume(len(head[0]))
            if ")" not in self._marks:
                self._marks = (*self._marks, ")")
            return True
        written = head[0] == f"{name}(" and str(self._raw) in self.exact_openings
        if name not in self._tools and head[0] != f"{name}(" and self._is_in_list:
            self._state = self._read_other
            return True
        if (name in self._exact and not written) or (name not in self._tools and head[0] != f"{name}("):
            self._give_up(self._raw.length)
            return True
        self._name, self._depth, self._quote = name, 1, ""
        self._consume(len(head[0]))
        if name in self._tools:
            self._state = self._read_arguments
        else:
            self._emit_text(self._raw.take())
            self._state = self._read_unknown
        return True

    def _read_arguments(self, final: bool) -> bool:
        used, has_closed = self._scan(final)
        self._arguments.add(self._consume(used))
        if not has_closed:
            return False
        self._consume(1)
        self._take_call(read_python(self._arguments.take(), self._tools[self._name]))
        return True

    def _take_call(self, arguments: str | None) -> None:
        """A call has come to its end; without arguments that can be read it is text."""
        if arguments is not None and self._begin_call(self._name):
            self._add_arguments(arguments, True)
            self._state = self._read_between
        else:
            self._emit_text(self._raw.take())
            self._state = self._read_after_unknown

    def _read_unknown(self, final: bool) -> bool:
        """The arguments of what is no tool: text up to the closing bracket, or to the end of the line where none comes."""
        used, has_ended = self._scan(final)
        line = self._buffer.find("\n", 0, used)
        used, has_ended = (line, True) if line >= 0 else (used + has_ended, has_ended)
        self._emit_text(self._buffer[:used])
        self._buffer = self._buffer[used:]
        if has_ended:
            self._state = self._read_after_unknown
        return has_ended

    def _read_other(self, final: bool) -> bool:
        """Reads text in a list of calls, up to the next call."""
        end = _OTHER_END.search(self._buffer)
        used = len(self._buffer) if end is None else end.start()
        self._emit_text(self._raw.take() + self._buffer[:used])
        self._buffer = self._buffer[used:]
        if end is not None:
            self._state = self._read_after_unknown
        return end is not None

    def _may_go_on(self, end: str) -> bool:
        """Whether these last characters may be the beginning of an escape, or of a triple quote that counts here."""
        if end == "\\":
            return True
        return end in _TWO_QUOTES and self._quote in ("", end[0] * 3)

    def _scan(self, final: bool) -> tuple[int, bool]:
        """The length of the buffer before the bracket that closes the arguments, and whether that bracket is there. Half an
        escape or triple quote at the end is left for later."""
        at, size = 0, len(self._buffer)
        while at < size:
            char, rest = self._buffer[at], self._buffer[at : at + 3]
            if not final and self._may_go_on(rest):
                return at, False
            if self._quote:
                if rest.startswith(self._quote):
                    at, self._quote = at + len(self._quote), ""
                else:
                    at += 2 if char == "\\" else 1
                continue
            if char in _QUOTE_CHARS:
                self._quote = char * 3 if rest == char * 3 else char
                at += len(self._quote)
                continue
            self._depth += (char in "([{") - (char in ")]}")
            if not self._depth:
                return at, True
            at += 1
        return size, False


_FENCE = "```tool_code"
_QUOTES = ("<escape>", '<|"|>')
_BARE_MARK = re.compile(r"""<escape>|<\|"\|>|[{}\[\]]""")


class GemmaCalls(PythonicCalls):
    """```tool_code f(x=1)``` (Gemma 3), <start_function_call>call:f{x:<escape>a<escape>}<end_function_call> (FunctionGemma),
    <|tool_call>call:f{x:<|"|>a<|"|>}<tool_call|> (Gemma 4). Sources: their published prompt formats."""

    openers = (_FENCE, "<start_function_call>", "<|tool_call>", "[")
    closers = ("```", "<end_function_call>", "<tool_call|>", "]")
    exact_openings = ("```tool_code\n",)
    markers = ("<start_function_call>", "<end_function_call>", "<escape>", "<|tool_call>", "<tool_call|>", '<|"|>')

    def _read_between(self, final: bool) -> bool:
        if self._buffer.startswith("call:"):
            return self._read_named(final)
        if not final and self._buffer and "call:".startswith(self._buffer):
            return False
        return super()._read_between(final)

    def _pass(self, mark: str) -> None:
        """A fence around lines is like a bracket around a list."""
        super()._pass(mark)
        self._num_open = max(self._num_open + (mark == _FENCE) - (mark == "```"), 0)

    def _read_named(self, final: bool) -> bool:
        """call:f{...} with bare keys and strings between quote tokens."""
        name, bracket, rest = self._buffer[5:].partition("{")
        if not bracket and not final and len(name) < MAX_HEAD:
            return False
        self._name = name.strip()
        if not bracket or self._name in self._exact or self._name not in self._tools:
            self._give_up(self._raw.length)
            self._emit_text(self._buffer[:5])
            self._buffer = self._buffer[5:]
            return True
        self._consume(len(self._buffer) - len(rest))
        self._depth, self._quote = 1, ""
        self._state = self._read_named_arguments
        return True

    def _read_named_arguments(self, final: bool) -> bool:
        end = self._find_bare_end(final)
        if end is None:
            return False
        self._arguments.add(self._consume(end))
        self._consume(1)
        self._take_call(read_bare(self._arguments.take()))
        return True

    def _find_bare_end(self, final: bool) -> int | None:
        """The place in the buffer of the bracket that closes the one opened before, ignoring strings. What was searched goes to
        the arguments, save for a possible beginning of a quote."""
        at = 0
        while (found := _BARE_MARK.search(self._buffer, at)) is not None:
            at, mark = found.end(), found[0]
            if mark in _QUOTES:
                self._quote = "" if mark == self._quote else self._quote or mark
            elif not self._quote:
                self._depth += 1 if mark in "{[" else -1
                if not self._depth:
                    return found.start()
        keep = 0 if final else held_len(self._buffer[at:], _QUOTES)
        self._arguments.add(self._consume(len(self._buffer) - keep))
        return None


def read_bare(source: str) -> str | None:
    """JSON text of what stands between the brackets; None for what is not written like this, or nested too deeply."""
    try:
        return json.dumps(_BareReader(source).arguments(), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


class _BareReader:
    """key:value,key:value with nested {...} and [...], strings between quotes, everything else a number, a constant or a word."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def arguments(self) -> dict[str, object]:
        pairs = self._pairs("")
        if self._at < len(self._text):
            raise ValueError("a bracket closes that is not open")
        return pairs

    @property
    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _pairs(self, end: str) -> dict[str, object]:
        result: dict[str, object] = {}
        while not self._closes(end):
            key = self._key()
            result[key] = self._value()
        return result

    def _items(self) -> list[object]:
        items: list[object] = []
        while not self._closes("]"):
            items.append(self._value())
        return items

    def _closes(self, end: str) -> bool:
        """Goes on to the next key or value; True if `end` stands there instead."""
        while self._next and self._next in ", \r\n\t":
            self._at += 1
        if self._next != end:
            if self._next in "}]":
                raise ValueError("a bracket that is not closed, or not open")
            return False
        self._at += len(end)
        return True

    def _key(self) -> str:
        if (quoted := self._quoted()) is None:
            begin = self._at
            self._at = self._text.find(":", begin)
            if self._at < 0:
                raise ValueError("a key without a value")
            quoted = self._text[begin : self._at].strip().strip('"')
        self._skip()
        if self._next != ":" or _BARE_MARK.search(quoted):
            raise ValueError("no key")
        self._at += 1
        return quoted

    def _quoted(self) -> str | None:
        """The string that begins here."""
        for quote in _QUOTES:
            if self._text.startswith(quote, self._at):
                begin = self._at + len(quote)
                end = self._text.index(quote, begin)
                self._at = end + len(quote)
                return self._text[begin:end]
        return None

    def _skip(self) -> None:
        while self._next and self._next in " \r\n\t":
            self._at += 1

    def _value(self) -> object:
        self._skip()
        if (quoted := self._quoted()) is not None:
            return quoted
        if self._next in ("{", "["):
            self._at += 1
            return self._pairs("}") if self._text[self._at - 1] == "{" else self._items()
        begin = self._at
        while self._next and self._next not in ",}]":
            self._at += 1
        word = self._text[begin : self._at].strip()
        if not word:
            raise ValueError("a value is missing")
        return _plain(word)


def _plain(word: str) -> object:
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    try:
        value = json.loads(word) if len(word) < MAX_WORD else word
    except (ValueError, RecursionError):
        return word
    return word if isinstance(value, float) and not math.isfinite(value) else value


def read_python(source: str, parameters: Collection[str]) -> str | None:
    """JSON text of what stands between a call's brackets; values without a name are those of the first `parameters`. None for what
    Python cannot read as literals, what fits no parameter, and what has more parts than a reader should be kept busy with."""
    if sum(map(source.count, ",([{+")) > MAX_PARTS:
        return None
    try:
        call = ast.parse(f"f({source})", mode="eval").body
        assert isinstance(call, ast.Call)
        return json.dumps(_bound(call, parameters), ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _bound(call: ast.Call, parameters: Collection[str]) -> dict[str, object]:
    """The value of each parameter. Raises ValueError where Python itself would refuse the call."""
    if len(call.args) > len(parameters):
        raise ValueError("there are more values than parameters")
    pairs: list[tuple[str, object]] = [(name, _literal(value)) for name, value in zip(parameters, call.args, strict=False)]
    for keyword in call.keywords:
        value = _literal(keyword.value)
        if keyword.arg is not None:
            pairs.append((keyword.arg, value))
        elif isinstance(value, dict):  # f(**{"x": 1})
            pairs += value.items()
        else:
            raise ValueError("only a dict can be unpacked")
    bound = dict(pairs)
    if len(bound) < len(pairs):
        raise ValueError("a parameter has two values")
    return bound


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError("nothing is unpacked inside of values")
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    value = ast.literal_eval(node)
    # escapes may name halves of a pair, which are no characters: whole pairs are joined, others replaced
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else value
