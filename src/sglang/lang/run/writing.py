"""One gen while the model writes it: collects the pieces of all samples, and shows the first sample's to whoever follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.lang.backend.base import Delta, Generation
from sglang.lang.ir import Gen
from sglang.lang.run.variables import Variables
from sglang.lang.typed.reasoning import ReasoningSplitter

Log = Callable[..., None]


class Writing:
    """Pieces go in with `add`; what comes out belongs to the prompt (nothing of a sample but the first, and nothing of its
    thinking when that is to be kept apart)."""

    def __init__(self, piece: Gen, num_samples: int, variables: Variables, log: Log) -> None:
        self._name = piece.name
        self._log = log
        self._texts = [""] * num_samples
        self.raw_texts = [""] * num_samples
        """as the model wrote them, thinking included"""
        self._metas: list[dict[str, Any]] = [{} for _ in self._texts]
        self._splitters = [ReasoningSplitter(piece.reasoning) for _ in self._texts] if piece.reasoning else []
        self._thoughts = [""] * num_samples
        self._live = variables.begin(piece.name)
        self._live_thoughts = variables.begin(self.reasoning_name) if piece.reasoning else None
        log("var_start", name=piece.name)

    @property
    def reasoning_name(self) -> str:
        return f"{self._name}_reasoning_content"

    def add(self, delta: Delta) -> str:
        """Takes a piece; returns what of it the prompt gets."""
        self._metas[delta.index] = delta.meta
        self.raw_texts[delta.index] += delta.text
        if not self._splitters:
            return self._show(delta.index, "", delta.text)
        return self._show(delta.index, *self._splitters[delta.index].feed(delta.text))

    def close(self) -> str:
        """The end of all samples; returns what was held back of the prompt's."""
        rest = ""
        for index, splitter in enumerate(self._splitters):
            rest += self._show(index, *splitter.close())
        return rest

    def _show(self, index: int, thinking: str, text: str) -> str:
        self._texts[index] += text
        self._thoughts[index] += thinking
        if index:
            return ""
        if thinking and self._live_thoughts is not None:
            self._live_thoughts.text += thinking
            self._log("var_delta", name=self.reasoning_name, text=thinking)
        self._live.text += text
        self._live.meta = self._metas[0]
        if text:
            self._log("var_delta", name=self._name, text=text, meta=self._metas[0])
        return text

    @property
    def generation(self) -> Generation:
        return Generation(self._texts, self._metas)

    @property
    def thoughts(self) -> str | list[str]:
        """What was split off, one text or one for each sample."""
        stripped = [thinking.strip() for thinking in self._thoughts]
        return stripped if len(stripped) > 1 else stripped[0]
