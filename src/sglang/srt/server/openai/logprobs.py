"""Log probabilities in OpenAI's two shapes: chat's and completions'."""

from __future__ import annotations

from typing import Any

from sglang.srt.messages import Position
from sglang.srt.server.tokenization.incremental import IncrementalText
from sglang.srt.server.tokenization.tokenizer import Tokenizer


def chat_logprobs(positions: list[Position], tokenizer: Tokenizer, num_top: int) -> dict[str, Any]:
    """{"content": [{token, bytes, logprob, top_logprobs}]}"""

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        data = _bytes(tokenizer, token_id)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    content = []
    for position in positions:
        top = [entry(token_id, logprob) for logprob, token_id in position.top[:num_top]]
        content.append(entry(position.token_id, position.logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def _bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    table = tokenizer.vocabulary.token_bytes
    return table[token_id] if 0 <= token_id < len(table) else b""


class CompletionLogprobs:
    """{tokens, token_logprobs, top_logprobs, text_offset} of one choice, in pieces. `text_offset` is where a token's text
    begins, in characters of the choice's text with special tokens left out."""

    def __init__(self, tokenizer: Tokenizer, num_top: int, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._text = IncrementalText()
        self._skip = tokenizer.vocabulary.special_ids if skip_special else frozenset()
        self._offset = 0

    def piece(self, positions: list[Position]) -> dict[str, Any]:
        tokens, token_logprobs, offsets = [], [], []
        top_logprobs: list[dict[str, float] | None] = []
        for position in positions:
            text = self._tokenizer.token_text(position.token_id)
            tokens.append(text)
            token_logprobs.append(position.logprob)
            top_logprobs.append(self._top(position, text))
            offsets.append(self._offset)
            if position.token_id not in self._skip:
                self._offset += len(self._text.push(_bytes(self._tokenizer, position.token_id)))
        return {
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs if self._num_top else None,
            "text_offset": offsets,
        }

    def _top(self, position: Position, text: str) -> dict[str, float] | None:
        """The best tokens and the chosen one. Of two tokens with the same text the better counts."""
        if position.logprob is None:
            return None
        best: dict[str, float] = {}
        for logprob, token_id in position.top[: self._num_top]:
            best.setdefault(self._tokenizer.token_text(token_id), logprob)
        best.setdefault(text, position.logprob)
        return best
