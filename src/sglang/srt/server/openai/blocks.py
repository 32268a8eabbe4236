"""Groups the pieces of an answer into blocks, one open at a time, for the APIs that stream typed items (responses, messages).

Reasoning "a", Reasoning "b", Text "c"   ->   open reasoning, "a", "b", close; open text, "c", close
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from sglang.common.growing import Growing
from sglang.srt.messages import FinishReason
from sglang.srt.server.parsers.pieces import CallArguments, CallBegin, Piece, Reasoning

Kind = Literal["text", "reasoning", "call"]


@dataclass
class Block:
    """`index` counts the blocks of an answer. `text`: what it holds so far; of a call, its arguments. `is_whole`: it is not cut off;
    known once it has closed."""

    kind: Kind
    index: int
    name: str = ""
    growing: Growing = field(default_factory=Growing)
    is_whole: bool = False

    @property
    def text(self) -> str:
        return str(self.growing)


@dataclass(frozen=True)
class Event:
    """A change of a block; `text` was added to it."""

    what: Literal["open", "add", "close"]
    block: Block
    text: str = ""


class Blocks:
    """The blocks of one answer so far."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    def add(self, piece: Piece) -> Iterator[Event]:
        if isinstance(piece, CallBegin):
            yield from self._begin("call", piece.name)
            return
        kind: Kind = "call" if isinstance(piece, CallArguments) else "reasoning" if isinstance(piece, Reasoning) else "text"
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        assert self._open is not None
        if isinstance(piece, CallArguments):
            self._open.is_whole = piece.is_last
        if piece.text:
            self._open.growing.add(piece.text)
            yield Event("add", self._open, piece.text)

    def close(self, finish: FinishReason | None = None) -> Iterator[Event]:
        """Closes the open block; also called at the end, with the reason."""
        if self._open is not None:
            block, self._open = self._open, None
            if block.kind != "call":
                block.is_whole = finish is None or finish.type == "stop"
            yield Event("close", block)

    @property
    def calls(self) -> list[Block]:
        return [block for block in self.all if block.kind == "call"]

    @property
    def may_run(self) -> bool:
        """Whether there are calls, none of them cut off."""
        return bool(self.calls) and all(call.is_whole for call in self.calls)

    def _begin(self, kind: Kind, name: str = "") -> Iterator[Event]:
        yield from self.close()
        self._open = Block(kind, len(self.all), name)
        self.all.append(self._open)
        yield Event("open", self._open)
