"""Parses one answer: reasoning first, then content and calls."""

from __future__ import annotations

from sglang.srt.server.parsers.pieces import Parser, Piece, Reasoning, Text


class AnswerParser:
    """A Parser made of two, either of which may be absent. `hold_reasoning`: reasoning comes out when it is complete."""

    def __init__(self, reasoning: Parser | None, calls: Parser | None, hold_reasoning: bool = False) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._held: list[str] | None = [] if hold_reasoning else None

    def feed(self, text: str) -> list[Piece]:
        return self._rest(self._reasoning.feed(text) if self._reasoning is not None else [Text(text)])

    def finish(self) -> list[Piece]:
        pieces = self._rest(self._reasoning.finish() if self._reasoning is not None else [])
        pieces = self._held_reasoning() + pieces
        return pieces + (self._calls.finish() if self._calls is not None else [])

    def _rest(self, pieces: list[Piece]) -> list[Piece]:
        out: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Reasoning) and self._held is not None:
                self._held.append(piece.text)
            elif isinstance(piece, Text):
                out += self._held_reasoning()
                out += self._calls.feed(piece.text) if self._calls is not None else [piece]
            else:
                out.append(piece)
        return out

    def _held_reasoning(self) -> list[Piece]:
        if not self._held:
            return []
        text, self._held = "".join(self._held), []
        return [Reasoning(text)]
