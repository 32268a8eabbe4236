"""Splits the output of a reasoning model into reasoning and answer while it is streamed (common/reasoning.py)."""

from __future__ import annotations

from sglang.common.reasoning import FORMATS, ReasoningFormat, ReasoningSplitter


def reasoning_format(model_type: str) -> ReasoningFormat:
    """Raises ValueError with the names there are."""
    try:
        return FORMATS[model_type.lower()]
    except KeyError:
        raise ValueError(
            f"unknown model_type {model_type!r} for separate_reasoning; known: {', '.join(sorted(FORMATS))}"
        ) from None


class AnswerSplitter(ReasoningSplitter):
    """Takes pieces of text and gives (reasoning, answer) pieces, without the line breaks between the two. `open_at_start`:
    whether the text begins with reasoning, if not as the format says. Raises ValueError for an unknown model type."""

    def __init__(self, model_type: str, open_at_start: bool | None = None) -> None:
        format_ = reasoning_format(model_type)
        super().__init__(format_, format_.always if open_at_start is None else open_at_start)
        self._has_answered = False

    def feed(self, text: str) -> tuple[str, str]:
        reasoning, answer = super().feed(text)
        if self.was_closed and not self._has_answered:
            answer = answer.lstrip("\n")
        self._has_answered = self._has_answered or bool(answer)
        return reasoning, answer


def split_reasoning(text: str, model_type: str, open_at_start: bool | None = None) -> tuple[str, str]:
    """(reasoning, answer) of a whole text, without white space around the reasoning."""
    splitter = AnswerSplitter(model_type, open_at_start)
    reasoning, answer = splitter.feed(text)
    more_reasoning, more_answer = splitter.close()
    return (reasoning + more_reasoning).strip(), answer + more_answer
