"""Thoughts told from answers, by the name of a model's format."""

from __future__ import annotations

from sglang.lang.typed.reasoning import ReasoningSplitter, reasoning_names


class ReasoningParser:
    """Splits texts of one model, whole or in pieces. `stream_reasoning`: thoughts are given as they come, not all at their end.
    `force_reasoning`: texts begin with thoughts, whether or not a mark opens them. Raises ValueError for an unknown model type."""

    names = reasoning_names()

    def __init__(
        self, model_type: str | None = None, stream_reasoning: bool = True, force_reasoning: bool | None = None
    ) -> None:
        if not model_type:
            raise ValueError(f"model_type is needed: {', '.join(self.names)}")
        self.model_type = model_type
        self._stream_reasoning = stream_reasoning
        self._force = force_reasoning or None
        self._splitter = self._new()
        self._thoughts = ""

    def _new(self) -> ReasoningSplitter:
        return ReasoningSplitter(self.model_type, self._force)

    def parse_non_stream(self, full_text: str) -> tuple[str, str]:
        """(thoughts, answer) of a whole text."""
        splitter = self._new()
        thoughts, answer = splitter.feed(full_text)
        more_thoughts, more_answer = splitter.close()
        return (thoughts + more_thoughts).strip(), answer + more_answer

    def parse_stream_chunk(self, chunk_text: str) -> tuple[str, str]:
        """(new thoughts, new answer) that the next piece of the text brings. What may be half a mark comes with a later piece."""
        thoughts, answer = self._splitter.feed(chunk_text)
        if self._stream_reasoning:
            return thoughts, answer
        self._thoughts += thoughts
        if self._splitter.is_thinking:
            return "", answer
        thoughts, self._thoughts = self._thoughts, ""
        return thoughts, answer

    def finish(self) -> tuple[str, str]:
        """(new thoughts, new answer) that were held back, when the text has ended."""
        thoughts, answer = self._splitter.close()
        thoughts, self._thoughts = self._thoughts + thoughts, ""
        return thoughts, answer
