"""Answers that are only a call in plain JSON, fenced or not, from models whose own format is another.

```json
{"name": "f", "arguments": {...}}
```
Qwen 2.5 Coder answers like this although its template asks for <tool_call>.
"""

from __future__ import annotations

from sglang.common.growing import Growing
from sglang.srt.server.parsers.pieces import CallArguments, CallBegin, Parser, Piece, Text


class BareCalls:
    """A Parser. `plain` reads calls as JSON, `own` in the model's form. As long as there is nothing but calls to `plain`, they are held
    back: text may follow, and then none of this was one."""

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
