"""Separates a model's reasoning from its answer, also while the text is streamed.

<think>reasoning</think>answer          the opening mark may stand in the prompt, or be left out

The language and the server both use ReasoningSplitter; each treats white space around the two parts in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang.common.growing import Growing, held_len


@dataclass(frozen=True)
class ReasoningFormat:
    """`pairs`: marks around reasoning. `always`: an answer begins with reasoning even where nothing opens it. `opens`: models
    of this kind open it themselves, unless the prompt has opened or closed it."""

    pairs: tuple[tuple[str, str], ...]
    always: bool = False
    opens: bool = False

    @property
    def begins(self) -> tuple[str, ...]:
        return tuple(begin for begin, _ in self.pairs)

    @property
    def ends(self) -> tuple[str, ...]:
        return tuple(end for _, end in self.pairs)


_THINK = (("<think>", "</think>"),)
FORMATS: dict[str, ReasoningFormat] = {
    "deepseek-r1": ReasoningFormat(_THINK, always=True),
    "qwen3": ReasoningFormat(_THINK, opens=True),
    "qwen3-thinking": ReasoningFormat(_THINK, always=True),
    "deepseek-v3": ReasoningFormat(_THINK, opens=True),
    "glm45": ReasoningFormat(_THINK, opens=True),
    "kimi_k2": ReasoningFormat(_THINK, opens=True),
    "step3": ReasoningFormat(_THINK, always=True),
    "kimi": ReasoningFormat((("◁think▷", "◁/think▷"),), opens=True),
    "generic": ReasoningFormat(
        (
            *_THINK,
            ("<thinking>", "</thinking>"),
            ("<reasoning>", "</reasoning>"),
            ("<thought>", "</thought>"),
        )
    ),
}


class ReasoningSplitter:
    """Takes pieces of text and gives (reasoning, answer) pieces: all of the text but the marks, and white space before an opening
    mark. Reasoning comes first, or not at all: marks later in the answer are text. What may be part of a mark is held back.
    `inside`: the text begins with reasoning; an opening mark that the model repeats is left out."""

    def __init__(self, format_: ReasoningFormat, inside: bool) -> None:
        self._format = format_
        self._ends = format_.ends
        self._state = "inside" if inside else "before"
        self._may_open = True
        self._space = Growing()
        self._held = ""
        self.was_closed = False
        """whether the end of reasoning has been read"""

    @property
    def is_inside(self) -> bool:
        return self._state == "inside"

    @property
    def is_over(self) -> bool:
        """Whether no more reasoning can come."""
        return self._state == "after"

    def feed(self, text: str) -> tuple[str, str]:
        if self._state == "after":
            return "", text
        self._held += text
        if self._may_open and not self._read_opening():
            return "", ""
        reasoning, answer = self._read_reasoning() if self._state == "inside" else "", ""
        if self._state == "after":
            answer, self._held = self._held, ""
        return reasoning, answer

    def close(self) -> tuple[str, str]:
        """The rest, when the text has ended. Reasoning that was never closed stays reasoning."""
        rest, self._held = self._space.take() + self._held, ""
        return (rest, "") if self.is_inside else ("", rest)

    def _read_opening(self) -> bool:
        """Looks for an opening mark. False when more text is needed."""
        text = self._held.lstrip()
        self._space.add(self._held[: len(self._held) - len(text)])
        self._held = text
        for begin, end in self._format.pairs:
            if text.startswith(begin):
                self._space.take()
                self._held = text[len(begin) :]
                if not self.is_inside:
                    self._state, self._ends = "inside", (end,)
                self._may_open = False
                return True
        if not text or any(begin.startswith(text) for begin in self._format.begins):
            return False
        self._held = self._space.take() + text
        if not self.is_inside:
            self._state = "after"
        self._may_open = False
        return True

    def _read_reasoning(self) -> str:
        places = [(at, end) for end in self._ends if (at := self._held.find(end)) >= 0]
        if places:
            at, end = min(places)
            reasoning, self._held = self._held[:at], self._held[at + len(end) :]
            self._state, self.was_closed = "after", True
            return reasoning
        size = len(self._held) - held_len(self._held, self._ends)
        reasoning, self._held = self._held[:size], self._held[size:]
        return reasoning
