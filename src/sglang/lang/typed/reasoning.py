"""Splits what a reasoning model writes into its thinking and its answer, while it writes.

Formats are pairs of tags. A format that is `open_at_start` has the opening tag in the prompt: the text begins with thinking.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningFormat:
    begin: str
    end: str
    open_at_start: bool = False


_THINK = ReasoningFormat("<think>", "</think>")
_FORMATS = {
    "deepseek-r1": ReasoningFormat("<think>", "</think>", open_at_start=True),
    "deepseek-v3": _THINK,
    "qwen3": _THINK,
    "qwen3-thinking": ReasoningFormat("<think>", "</think>", open_at_start=True),
    "glm45": _THINK,
    "step3": ReasoningFormat("<think>", "</think>", open_at_start=True),
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
}


def reasoning_format(model_type: str) -> ReasoningFormat:
    """Raises ValueError with the names there are."""
    try:
        return _FORMATS[model_type.lower()]
    except KeyError:
        raise ValueError(
            f"unknown model_type {model_type!r} for separate_reasoning; known: {', '.join(sorted(_FORMATS))}"
        ) from None


def reasoning_names() -> list[str]:
    """The formats there are."""
    return sorted(_FORMATS)


class ReasoningSplitter:
    """Takes pieces of text and gives (thinking, answer) pieces. A tag that may be incomplete is held back. `open_at_start`, if
    given, counts instead of the format's."""

    def __init__(self, model_type: str, open_at_start: bool | None = None) -> None:
        self._format = reasoning_format(model_type)
        self._held = ""
        self._skip_newlines = False
        is_open = self._format.open_at_start if open_at_start is None else open_at_start
        self._state = "thinking" if is_open else "start"
        self._may_repeat = is_open  # some models write the tag that the template has written

    @property
    def is_thinking(self) -> bool:
        """Whether more thinking may come."""
        return self._state != "answer"

    def feed(self, piece: str) -> tuple[str, str]:
        self._held += piece
        thinking = ""
        if self._state == "start":
            self._start()
        if self._state == "thinking":
            thinking = self._think()
        answer = self._answer() if self._state == "answer" else ""
        return thinking, answer

    def close(self) -> tuple[str, str]:
        """The rest, when the text has ended. Thinking that was never closed stays thinking."""
        rest, self._held = self._held, ""
        return (rest, "") if self._state == "thinking" else ("", rest)

    def _start(self) -> None:
        text = self._held.lstrip()
        if text.startswith(self._format.begin):
            self._held = text[len(self._format.begin) :]
            self._state = "thinking"
        elif text and not self._format.begin.startswith(text):
            self._state = "answer"

    def _think(self) -> str:
        if self._may_repeat and not self._drop_repeated_tag():
            return ""
        end = self._format.end
        at = self._held.find(end)
        if at >= 0:
            thinking, self._held = self._held[:at], self._held[at + len(end) :]
            self._state, self._skip_newlines = "answer", True
            return thinking
        keep = _overlap(self._held, end)
        thinking, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return thinking

    def _drop_repeated_tag(self) -> bool:
        """Whether it is clear by now how the text begins."""
        begin, text = self._format.begin, self._held.lstrip()
        if text.startswith(begin):
            self._held = text[len(begin) :]
        elif begin.startswith(text):
            return False
        self._may_repeat = False
        return True

    def _answer(self) -> str:
        text, self._held = self._held, ""
        if self._skip_newlines:
            text = text.lstrip("\n")
            self._skip_newlines = not text
        return text


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a beginning of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def split_reasoning(text: str, model_type: str) -> tuple[str, str]:
    """(thinking, answer) of a whole text, without white space around the thinking."""
    splitter = ReasoningSplitter(model_type)
    thinking, answer = splitter.feed(text)
    more_thinking, more_answer = splitter.close()
    return (thinking + more_thinking).strip(), answer + more_answer
