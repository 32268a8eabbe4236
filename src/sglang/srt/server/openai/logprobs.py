"""Log probabilities in OpenAI's two formats: chat's and completions'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sglang.srt.messages import ORIGINS, Logprobs, Position
from sglang.srt.server.generate_req import GenerateOut
from sglang.srt.server.http.json_pieces import LateArray
from sglang.srt.server.tokenization.detokenizer import IncrementalText
from sglang.srt.server.tokenization.tokenizer import Tokenizer


def chat_logprobs(positions: Iterable[Position], tokenizer: Tokenizer, num_top: int) -> dict[str, Any]:
    """{"content": [{token, bytes, logprob, top_logprobs}]}; its content is made when it is written."""
    return {"content": LateArray(chat_logprob_entries(positions, tokenizer, num_top)), "refusal": None}


def chat_logprob_entries(positions: Iterable[Position], tokenizer: Tokenizer, num_top: int) -> Iterator[dict[str, Any]]:
    """{token, bytes, logprob, top_logprobs} of each position, made when it is asked for."""

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        data = token_bytes(tokenizer, token_id)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def whole(position: Position) -> dict[str, Any]:
        top = [entry(token_id, logprob) for logprob, token_id in position.top[:num_top]]
        return entry(position.token_id, position.logprob) | {"top_logprobs": top}

    return map(whole, positions)


def token_origins(out: GenerateOut, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """{token, bytes, origin} of each token, log probabilities or not."""

    def entry(token_id: int, origin: int) -> dict[str, Any]:
        data = token_bytes(tokenizer, token_id)
        return {"token": data.decode(errors="replace"), "bytes": list(data), "origin": ORIGINS[origin]}

    return list(map(entry, out.ids, out.origins))


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
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

    def piece(self, logprobs: Logprobs) -> dict[str, Any]:
        """The log probabilities of the next positions; its lists are made when they are written, each once and in this
        order."""
        chosen, top = logprobs.chosen, None
        if self._num_top:
            top = LateArray(self._top(position, self._tokenizer.token_text(position.token_id)) for position in logprobs)
        return {
            "tokens": LateArray(self._tokenizer.token_text(token_id) for _, token_id in chosen()),
            "token_logprobs": LateArray(logprob for logprob, _ in chosen()),
            "top_logprobs": top,
            "text_offset": LateArray(self._next_offset(token_id) for _, token_id in chosen()),
        }

    def _next_offset(self, token_id: int) -> int:
        """The offset of the next token's text."""
        offset = self._offset
        if token_id not in self._skip:
            self._offset += len(self._text.push(token_bytes(self._tokenizer, token_id)))
        return offset

    def _top(self, position: Position, text: str) -> dict[str, float] | None:
        """The best tokens and the chosen one. Of two tokens with the same text the better counts."""
        if position.logprob is None:
            return None
        best: dict[str, float] = {}
        for logprob, token_id in position.top[: self._num_top]:
            best.setdefault(self._tokenizer.token_text(token_id), logprob)
        best.setdefault(text, position.logprob)
        return best
