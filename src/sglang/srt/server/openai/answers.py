"""What one choice of a chat answer consists of, gathered from its pieces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang.common.growing import Growing
from sglang.srt.server.openai.tools import call_id
from sglang.srt.server.parsers.pieces import CallArguments, CallBegin, Piece, Reasoning, Text


@dataclass
class ToolCall:
    """`is_whole`: its arguments have come to their end."""

    id: str
    name: str
    growing: Growing = field(default_factory=Growing)
    is_whole: bool = False

    @property
    def arguments(self) -> str:
        return str(self.growing)

    def as_dict(self, index: int) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "index": index, "type": "function", "function": function}


@dataclass
class Answer:
    """One choice so far. `format_name`: how its calls are written."""

    format_name: str
    calls: list[ToolCall] = field(default_factory=list)
    _text: Growing = field(default_factory=Growing)
    _reasoning: Growing = field(default_factory=Growing)

    @property
    def text(self) -> str:
        return str(self._text)

    @property
    def reasoning(self) -> str:
        return str(self._reasoning)

    def add(self, piece: Piece) -> None:
        if isinstance(piece, Text):
            self._text.add(piece.text)
        elif isinstance(piece, Reasoning):
            self._reasoning.add(piece.text)
        elif isinstance(piece, CallBegin):
            self.calls.append(ToolCall(call_id(self.format_name), piece.name))
        else:
            call = self.calls[piece.index]
            call.growing.add(piece.text)
            call.is_whole = piece.is_last

    def delta(self, piece: Piece) -> dict[str, Any] | None:
        """A piece that was just added, as a streamed delta; None if it has nothing to say. Clients read the keys that are not
        OpenAI's from every delta."""
        if isinstance(piece, Text):
            return {"content": piece.text, "reasoning_content": None, "tool_calls": None}
        if isinstance(piece, Reasoning):
            return {"reasoning_content": piece.text, "tool_calls": None}
        if isinstance(piece, CallArguments):
            more = {"index": piece.index, "function": {"arguments": piece.text}}
            return {"reasoning_content": None, "tool_calls": [more]} if piece.text else None
        call = ToolCall(self.calls[piece.index].id, piece.name)
        return {"reasoning_content": None, "tool_calls": [call.as_dict(piece.index)]}

    def message(self) -> dict[str, Any]:
        """The whole choice as a message."""
        return {
            "role": "assistant",
            "content": self.text if self.text or not self.calls else None,
            "reasoning_content": self.reasoning or None,
            "tool_calls": [call.as_dict(i) for i, call in enumerate(self.calls)] or None,
        }
