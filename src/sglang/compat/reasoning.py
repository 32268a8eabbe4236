"""Separates reasoning from answers, by the name of a model's format."""

from __future__ import annotations

from sglang.common.reasoning import FORMATS
from sglang.lang.typed.reasoning import AnswerSplitter, split_reasoning


class ReasoningParser:
    """Splits texts of one model, whole or in pieces. `stream_reasoning`: reasoning is given as it comes, not all at its end.
    `force_reasoning`: texts begin with reasoning, whether or not a mark opens them. Raises ValueError for an unknown model type."""

    names = sorted(FORMATS)

    def __init__(
        self, model_type: str | None = None, stream_reasoning: bool = True, force_reasoning: bool | None = None
    ) -> None:
        if not model_type:
            raise ValueError(f"model_type is needed: {', '.join(self.names)}")
        self.model_type = model_type
        self._stream_reasoning = stream_reasoning
        self._force = force_reasoning or None
        self._splitter = AnswerSplitter(model_type, self._force)
        self._reasoning = ""

    def parse_non_stream(self, full_text: str) -> tuple[str, str]:
        """(reasoning, answer) of a whole text."""
        return split_reasoning(full_text, self.model_type, self._force)

    def parse_stream_chunk(self, chunk_text: str) -> tuple[str, str]:
        """(new reasoning, new answer) that the next piece of the text brings. What may be half a mark comes with a later piece."""
        reasoning, answer = self._splitter.feed(chunk_text)
        if self._stream_reasoning:
            return reasoning, answer
        self._reasoning += reasoning
        if not self._splitter.is_over:
            return "", answer
        reasoning, self._reasoning = self._reasoning, ""
        return reasoning, answer

    def finish(self) -> tuple[str, str]:
        """(new reasoning, new answer) that were held back, when the text has ended."""
        reasoning, answer = self._splitter.close()
        reasoning, self._reasoning = self._reasoning + reasoning, ""
        return reasoning, answer
