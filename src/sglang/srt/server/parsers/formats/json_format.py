"""Calls as JSON objects between marks, and calls whose name stands before a JSON object of arguments.

{"name": "f", "arguments": {...}}            between the format's openers and closers, one or a list
f[ARGS]{...}                                 after an opener of `heads`: the name, then the arguments
"""

from __future__ import annotations

from collections.abc import Collection

from sglang.common.growing import Growing
from sglang.srt.server.parsers.call_parser import CallParser
from sglang.srt.server.parsers.json_calls import CallReader, ValueScanner, read_arguments
from sglang.srt.server.parsers.pieces import Piece

_BETWEEN = " \t\r\n[],;"
"""what may stand between calls"""
WRAPPERS = frozenset({"tool_calls", "tool_call", "function_calls", "function_call"})
"""keys of an object that holds nothing but calls"""
_EXACT_BEGINNING = '{"name": "'
"""what triggers the constraint of a call that no mark precedes"""
HEAD_CHARS = 500
"""the longest name with what belongs to it"""


class JsonCalls(CallParser):
    """`openers` that are "{" open a call by themselves. `closers` may follow a call."""

    closers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    """openers after which a name may come"""
    bare = False
    """whether calls without a mark before them are told by their keys alone (`described` of CallReader)"""
    wraps = False
    """whether calls may stand in an object of one of WRAPPERS"""

    def __init__(self, tools: Collection[str], max_calls: int | None = None, exact: Collection[str] = ()) -> None:
        super().__init__(tools, max_calls, exact)
        self._reader: CallReader | None = None
        self._scanner: ValueScanner | None = None
        self._head: str | None = None
        self._said = Growing()
        self._object_at = 0
        self._has_mark = self._is_wrapped = False
        self._skips = tuple(sorted({*self.closers, *(m for m in self.openers if m not in ("{", "["))}, key=len, reverse=True))

    def finish(self) -> list[Piece]:
        """A call that was cut off after its name is one."""
        pieces = self._run(final=True)
        if self._state == self._read_call and self._reader is not None and self._reader.begin_cut():
            self._raw.take()
        return pieces + super().finish()

    def _name_of(self, head: str) -> str:
        """The name in what stands between an opener of `heads` and the arguments."""
        return head.strip()

    def _open(self, mark: str) -> None:
        self._head = None
        self._is_wrapped = False
        self._has_mark = mark in self.markers
        self._state = self._read_between

    def _read_between(self, final: bool) -> bool:
        """Skips marks and commas until a call, or something else, begins."""
        buffer = self._buffer
        if not buffer:
            return False
        mark = next((m for m in self._skips if buffer.startswith(m)), None)
        if not final and any(m != buffer and m.startswith(buffer) for m in self._skips):
            return False  # the rest of a mark may be on its way
        if mark is not None:
            self._pass(mark)
            self._head = "" if mark in self.heads else None
        elif buffer[0] in _BETWEEN:
            self._pass(buffer[0])
        elif self._is_debris(buffer[0]):  # or the end of a wrapper
            self._is_wrapped = False
            self._pass(buffer[0])
        elif buffer[0] == "{":
            self._head = None
            described = self._tools if self.bare and not self._has_mark else None
            self._object_at = self._raw.length
            self._reader = CallReader(self._begin_object, self._add_arguments, self._is_among_calls, described)
            self._state = self._read_call
        elif self._is_in_list:
            self._scanner = ValueScanner()
            self._state = self._read_other
        elif self._head is not None:
            self._state = self._read_head
        elif self._is_wrapped and not self._after_call:
            self._emit_text(self._raw.take())
            self._scanner, self._is_wrapped = ValueScanner(depth=1 + self._num_open), False
            self._state = self._read_other
        elif self._raw:
            self._give_up(self._raw.length)
        else:
            self._state = self._read_text
        if self._after_call and self._state == self._read_between:
            self._drop_between()
        return True

    def _begin_object(self, name: str) -> bool:
        if name in self._exact and not (str(self._raw)[self._object_at :] + self._buffer).startswith(_EXACT_BEGINNING):
            return False
        return self._begin_call(name)

    def _read_call(self, final: bool) -> bool:
        assert self._reader is not None
        if not self._buffer:
            return False
        reader = self._reader
        used = reader.feed(self._buffer)
        self._consume(used)
        if reader.begun:
            self._raw.take()
        elif reader.is_unknown:  # text, also where it looks like a call
            self._emit_text(self._raw.take())
        if reader.done or (reader.wrong and (reader.begun or reader.is_unknown)):
            self._state = self._read_between if reader.begun else self._read_after_unknown
        elif self.wraps and reader.other_key in WRAPPERS and not self._is_wrapped:
            self._state = self._read_wrapper
        elif reader.wrong and (self._is_in_list or reader.other_key is not None):
            self._emit_text(self._raw.take())
            self._scanner = ValueScanner(depth=1)
            self._state = self._read_other
        elif reader.wrong:
            self._give_up()
        return bool(self._buffer)

    def _read_wrapper(self, final: bool) -> bool:
        """Reads the characters between the key of a wrapper and its value."""
        if not self._buffer:
            return False
        if self._buffer[0] not in ": \t\r\n":
            self._is_wrapped = True
            self._state = self._read_between
        else:
            self._consume(1)
        return True

    @property
    def _is_among_calls(self) -> bool:
        """Whether nothing but calls is expected here."""
        return self._has_mark or self._is_in_list

    def _read_other(self, final: bool) -> bool:
        """Something in a list of calls that is none."""
        assert self._scanner is not None
        if not self._buffer:
            return False
        used = self._scanner.feed(self._buffer)
        self._emit_text(self._buffer[:used])
        self._buffer = self._buffer[used:]
        if self._scanner.done:
            self._state = self._read_after_unknown
        elif self._scanner.is_broken:
            self._state = self._read_text
        return bool(self._buffer)

    def _read_head(self, final: bool) -> bool:
        """The name, up to the arguments' first bracket."""
        at = self._buffer.find("{")
        head = self._buffer[: at if at >= 0 else HEAD_CHARS]
        marks = [place for mark in self.openers if (place := head.find(mark)) >= 0]
        if marks:  # another call begins
            self._consume(min(marks))
            self._give_up(self._raw.length)
            return True
        if at < 0:
            if len(self._buffer) > HEAD_CHARS:
                self._give_up(self._raw.length)
                return True
            return False
        name = self._name_of(self._consume(at))
        self._head = None
        self._scanner, self._said = ValueScanner(), Growing()
        if self._begin_call(name):
            self._state = self._read_arguments
        else:
            self._emit_text(self._raw.take())
            self._state = self._read_other
        return True

    def _read_arguments(self, final: bool) -> bool:
        assert self._scanner is not None
        if not self._buffer:
            return False
        used = self._scanner.feed(self._buffer)
        new = self._scanner.as_json(self._buffer[:used])
        self._said.add(new)
        is_last = self._scanner.done and read_arguments(str(self._said)) is not None
        self._add_arguments(new, is_last)
        self._buffer = self._buffer[used:]
        if self._scanner.done or self._scanner.is_broken:
            self._state = self._read_between
        return bool(self._buffer)


class QwenCalls(JsonCalls):
    """<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call> (source: Hermes function calling; Qwen 2.5 and 3)."""

    openers = ("<tool_call>",)
    closers = ("</tool_call>",)
    markers = ("<tool_call>", "</tool_call>")


LIST_MARKS = ("<TOOLCALL>", "<tool_calls>", "<|tool_call|>", "functools")
"""what stands before a list of calls in the chat templates of Nemotron Nano, of Jamba, Apriel and MiniMax M1, of Granite 3, and of
FireFunction"""


class BareJsonCalls(JsonCalls):
    """{"name": "f", "arguments": {...}} or a list of them, anywhere in the answer, fenced, marked or not. What only describes a tool is
    none."""

    openers: tuple[str, ...] = (*LIST_MARKS, "```json", "```", "[", "{")
    closers: tuple[str, ...] = ("</TOOLCALL>", "</tool_calls>", "```")
    markers: tuple[str, ...] = ("<TOOLCALL>", "</TOOLCALL>", "<tool_calls>", "</tool_calls>", "<|tool_call|>")
    bare = True
    wraps = True

    def __init__(
        self,
        tools: Collection[str],
        max_calls: int | None = None,
        exact: Collection[str] = (),
        around: tuple[str, ...] = (),
        wraps: bool = True,
    ) -> None:
        """`around`: marks of another format that may stand before and after. `wraps`: see JsonCalls."""
        self.openers = (*around, *self.openers)
        self.wraps = wraps
        super().__init__(tools, max_calls, exact)


class GenericCalls(BareJsonCalls):
    """The same in an answer that is constrained to be calls, or something else that looks like none."""

    bare = False


class Llama3Calls(BareJsonCalls):
    """{"name": "f", "parameters": {...}}, possibly after <|python_tag|>, several with ; between (source: Llama 3.1 to 3.3)."""

    openers = ("<|python_tag|>", *BareJsonCalls.openers)
    closers = ("<|eom_id|>", *BareJsonCalls.closers)
    markers = ("<|python_tag|>", "<|eom_id|>", *BareJsonCalls.markers)


class MistralCalls(JsonCalls):
    """[TOOL_CALLS] [{"name": "f", "arguments": {...}}], or [TOOL_CALLS]f[ARGS]{...} of later tokenizers (mistral-common)."""

    openers = ("[TOOL_CALLS]",)
    heads = ("[TOOL_CALLS]",)
    markers = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")

    def _name_of(self, head: str) -> str:
        return head.split("[ARGS]")[0].split("[CALL_ID]")[0].strip()


_CALLS, _CALL = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"
_SEP, _CALL_END, _CALLS_END = "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"


class DeepSeekCalls(JsonCalls):
    """function<sep>f\\n```json\\n{...}\\n``` (V3, R1) or f<sep>{...} (V3.1), each between call marks (source: their chat
    templates)."""

    openers = (_CALLS, _CALL)
    closers = (_CALL_END, _CALLS_END, "```")
    heads = (_CALL,)
    markers = (_CALLS, _CALL, _SEP, _CALL_END, _CALLS_END)

    def _name_of(self, head: str) -> str:
        first, _, second = head.partition(_SEP)
        name = second.split("```")[0].strip() if first.strip() == "function" and second.strip() else first
        return name.strip()


class KimiCalls(JsonCalls):
    """<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{...}<|tool_call_end|>, several in a section (source: the Kimi K2 chat
    template)."""

    openers = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")
    closers = ("<|tool_call_end|>", "<|tool_calls_section_end|>")
    heads = ("<|tool_call_begin|>",)
    markers = (*openers, "<|tool_call_argument_begin|>", *closers)

    def _name_of(self, head: str) -> str:
        name = head.split("<|tool_call_argument_begin|>")[0].strip().removeprefix("functions.")
        return name.rpartition(":")[0] or name


class FunctionTagCalls(JsonCalls):
    """<function=f>{...}</function> (source: the Functionary 3.1 chat template)."""

    openers = ("<function=",)
    closers = ("</function>",)
    heads = ("<function=",)

    def _name_of(self, head: str) -> str:
        return head.strip().removesuffix(">")
