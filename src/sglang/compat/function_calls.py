"""Parses tool calls out of answers, by the name of a model's format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from sglang.srt.errors import ConfigError
from sglang.srt.server.openai.tools import parameters_of, parse_tools
from sglang.srt.server.parsers.pieces import CallArguments, CallBegin, Parser, Piece, Text
from sglang.srt.server.parsers.tool_calls import create_free_parser


class Function(BaseModel):
    """The description of a tool. `parameters`: a JSON schema."""

    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class Tool(BaseModel):
    """One tool of a chat request."""

    type: str = "function"
    function: Function


@dataclass
class ToolCallItem:
    """A call, or what a piece of the text adds to one: its name first, then its arguments as JSON text."""

    tool_index: int
    name: str | None = None
    parameters: str = ""


class FunctionCallParser:
    """Tells calls from texts of one model, whole or in pieces. `tools`: Tools, or their dicts. Raises ValueError for an unknown
    format."""

    def __init__(self, tools: Sequence[Any], tool_call_parser: str) -> None:
        given = [tool.model_dump(exclude_none=True) if isinstance(tool, BaseModel) else tool for tool in tools]
        self._parameters = parameters_of(parse_tools(given))
        self._format = tool_call_parser
        self._parser = self._new()

    def _new(self) -> Parser:
        try:
            return create_free_parser(self._format, self._parameters)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    def has_tool_call(self, text: str) -> bool:
        return bool(self.parse_non_stream(text)[1])

    def parse_non_stream(self, full_text: str) -> tuple[str, list[ToolCallItem]]:
        """(the text beside the calls, the calls) of a whole text."""
        parser = self._new()
        text, added = _added([*parser.feed(full_text), *parser.finish()])
        calls: list[ToolCallItem] = []
        for item in added:
            if item.name is not None:
                calls.append(item)
            else:
                calls[item.tool_index].parameters += item.parameters
        return text, calls

    def parse_stream_chunk(self, chunk_text: str) -> tuple[str, list[ToolCallItem]]:
        """(new text, what is new of calls) that the next piece brings. What may be part of a call comes with a later piece."""
        return _added(self._parser.feed(chunk_text))

    def finish(self) -> tuple[str, list[ToolCallItem]]:
        """Returns the text that was held back; called at the end of the text."""
        return _added(self._parser.finish())


def _added(pieces: Iterable[Piece]) -> tuple[str, list[ToolCallItem]]:
    text, items = "", []
    for piece in pieces:
        if isinstance(piece, Text):
            text += piece.text
        elif isinstance(piece, CallBegin):
            items.append(ToolCallItem(piece.index, piece.name))
        elif isinstance(piece, CallArguments) and piece.text:
            items.append(ToolCallItem(piece.index, None, piece.text))
    return text, items
