"""Calls whose arguments are between tags, as text without quotes (source: the Qwen3-Coder, Seed-OSS and GLM-4.5 chat templates).

<tool_call><function=f><parameter=x>1</parameter></function></tool_call>
<tool_call>f<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>
The tool's schema gives the types of arguments. A call is emitted when its last tag closes; a call that is cut off is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sglang.common.growing import Growing, held_len
from sglang.srt.server.parsers.call_parser import CallParser

_BLANKS = " \t\r\n"
MAX_TAG = 500
"""the longest name with its tags"""
_PYTHON_WORDS = {"True": True, "False": False, "None": None}
"""templates write constants as Python does, and models follow"""
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


class TaggedCalls(CallParser):
    """`head`: what opens a call, from its mark up to the name. `key`: what opens an argument. `value_end` closes it, `ends` close the
    call, and `closers` may follow that. `tag_begins`: how what may stand between arguments begins."""

    head: re.Pattern[str]
    key: re.Pattern[str]
    value_end: str
    ends: tuple[str, ...]
    closers: tuple[str, ...] = ()
    tag_begins: tuple[str, ...] = ()
    drops_line_breaks = False
    """whether a value stands on its own lines"""

    def __init__(self, tools: Collection[str], max_calls: int | None = None, exact: Collection[str] = ()) -> None:
        super().__init__(tools, max_calls, exact)
        self._name = self._key = ""
        self._value = Growing()
        self._arguments: dict[str, str] = {}

    def _open(self, mark: str) -> None:
        self._arguments = {}
        self._state = self._read_head

    def _read_head(self, final: bool) -> bool:
        found = self.head.match(self._buffer)
        if found is None:
            return self._wait_for_tag(final, self.openers)
        self._name = found[1]
        self._consume(found.end())
        if self._name not in self._tools:
            self._give_up(self._raw.length)
        else:
            self._state = self._read_tag
        return True

    def _read_tag(self, final: bool) -> bool:
        """The next argument, or the end of the call."""
        self._consume(len(self._buffer) - len(self._buffer.lstrip(_BLANKS + self.debris)))
        end = next((end for end in self.ends if self._buffer.startswith(end)), None)
        if end is not None:
            self._consume(len(end))
            self._begin_call(self._name)
            pairs = (f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in self._arguments.items())
            self._add_arguments(f"{{{', '.join(pairs)}}}", True)
            self._state = self._read_between
            return True
        found = self.key.match(self._buffer)
        if found is None:
            return self._wait_for_tag(final, (*self.tag_begins, *self.ends))
        self._consume(found.end())
        self._key, self._state = found[1].strip(), self._read_value
        return True

    def _wait_for_tag(self, final: bool, begins: tuple[str, ...]) -> bool:
        """False if the rest of a tag may be on its way; else this was no call."""
        buffer = self._buffer
        if not final and len(buffer) < MAX_TAG and any(begin.startswith(buffer[: len(begin)]) for begin in begins):
            return False
        if not self._raw:
            self._consume(1)  # the mark itself, or it would open again
        self._give_up(self._raw.length)
        return True

    def _read_value(self, final: bool) -> bool:
        at = self._buffer.find(self.value_end)
        taken = at if at >= 0 else len(self._buffer) - held_len(self._buffer, (self.value_end,))
        self._value.add(self._consume(taken))
        if at < 0:
            return False
        self._consume(len(self.value_end))
        text = self._value.take()
        if self.drops_line_breaks:
            text = text.removeprefix("\n").removesuffix("\n")
        self._arguments[self._key] = read_value(text, self._tools[self._name].get(self._key))
        self._state = self._read_tag
        return True

    def _read_between(self, final: bool) -> bool:
        rest = self._buffer.lstrip(_BLANKS + self.debris + self.separators)
        self._consume(len(self._buffer) - len(rest))
        closer = next((closer for closer in self.closers if self._buffer.startswith(closer)), None)
        if closer is not None:
            self._consume(len(closer))
        elif not final and any(closer.startswith(self._buffer) for closer in self.closers):
            return False  # the rest of one may be on its way
        self._drop_between()
        self._state = self._read_text if closer is None else self._read_between
        return True


def read_value(text: str, schema: object) -> str:
    """An argument's text as JSON: of the types of its schema the one that it can be read as, or JSON where there are none; else a
    string."""
    types = set(_types_of(schema))
    as_string = json.dumps(text, ensure_ascii=False)
    if types == {"string"}:
        return as_string
    try:
        value = _PYTHON_WORDS[text.strip()] if text.strip() in _PYTHON_WORDS else json.loads(text)
        if "integer" in types and isinstance(value, float) and value.is_integer():
            value = int(value)
        as_json = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return as_string
    fits = not types or any(type(value) in _TYPES[kind] for kind in types)
    return as_json if fits or "string" not in types else as_string


def _types_of(schema: object) -> Iterator[str]:
    """The types that a schema names; none where it leaves them open."""
    if not isinstance(schema, Mapping):
        return
    named = schema.get("type")
    yield from (kind for kind in ([named] if isinstance(named, str) else _items(named)) if kind in _TYPES)
    for key in ("anyOf", "oneOf", "allOf"):
        for branch in _items(schema.get(key)):
            yield from _types_of(branch)
    if named is None:
        constants = [schema["const"]] if "const" in schema else _items(schema.get("enum"))
        yield from (kind for value in constants for kind, types in _TYPES.items() if type(value) in types)


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


class QwenCoderCalls(TaggedCalls):
    """<tool_call>\\n<function=f>\\n<parameter=x>\\n1\\n</parameter>\\n</function>\\n</tool_call>; models leave the first mark out at
    times. Seed-OSS has <seed:tool_call> for it."""

    openers = ("<tool_call>", "<function=", "<seed:tool_call>")
    head = re.compile(r"(?:<(?:seed:)?tool_call>\s*)?<function=([^<>\n]+)>")
    key = re.compile(r"<parameter=([^<>\n]+)>")
    tag_begins = ("<parameter=",)
    value_end = "</parameter>"
    ends = ("</function>", "</tool_call>", "</seed:tool_call>")
    closers = ("</tool_call>", "</seed:tool_call>")
    markers = ("<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>")
    drops_line_breaks = True


class GlmCalls(TaggedCalls):
    """<tool_call>f\\n<arg_key>x</arg_key>\\n<arg_value>1</arg_value>\\n</tool_call>; GLM-4.7 has no line breaks."""

    openers = ("<tool_call>",)
    head = re.compile(r"<tool_call>\s*([^<>\s]+)\s*(?=<)")
    key = re.compile(r"<arg_key>([^<>]+)</arg_key>\s*<arg_value>")
    tag_begins = ("<arg_key>",)
    value_end = "</arg_value>"
    ends = ("</tool_call>",)
    closers = ("</tool_call>",)
    markers = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")


class MiniMaxCalls(TaggedCalls):
    """<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">1</parameter>\n</invoke>\n</minimax:tool_call>, several between the
    outer marks (source: the MiniMax M2 chat template)."""

    openers = ("<minimax:tool_call>", "<invoke name=")
    head = re.compile(r'(?:<minimax:tool_call>\s*)?<invoke name="([^"<>\n]+)">')
    key = re.compile(r'<parameter name="([^"<>\n]+)">')
    tag_begins = ("<parameter name=",)
    value_end = "</parameter>"
    ends = ("</invoke>", "</minimax:tool_call>")
    closers = ("</minimax:tool_call>",)
    markers = ("<minimax:tool_call>", "</minimax:tool_call>")
