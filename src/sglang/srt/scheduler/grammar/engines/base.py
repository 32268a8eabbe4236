"""The interface of a grammar engine: it compiles a text into a state, and a state follows one request's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

UInt32Array = npt.NDArray[np.uint32]

ANY_JSON = "$$ANY$$"
"""The json_schema that every JSON value satisfies."""


class GrammarState(Protocol):
    """The state of one output in its grammar."""

    @property
    def is_finished(self) -> bool:
        """Whether the output is complete and nothing more may follow."""
        ...

    @property
    def error(self) -> str | None:
        """Why the state is unusable: the engine ran into a limit. Then its masks are meaningless."""
        ...

    @property
    def unenforced(self) -> tuple[str, ...]:
        """Paths of a schema's keywords that are not followed, and left to a check of the whole output."""
        ...

    def fill_mask(self, out: UInt32Array) -> None:
        """Sets bit i % 32 of out[i // 32] for every token i that may come next, and clears all others. The ends of text are
        among them when the output may end here. `out` has one bit for each id of the model."""
        ...

    def accept(self, token_id: int) -> bool:
        """Takes the next token. False, and the state is unusable, when the grammar does not allow it."""
        ...

    def accept_all(self, token_ids: list[int]) -> bool:
        """Takes several tokens. False, and the state is unusable, when the grammar does not allow them."""
        ...

    def rollback(self, num_tokens: int) -> bool:
        """Takes back the newest tokens. False when the engine cannot."""
        ...

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, whatever the model would say; empty when there is a choice."""
        ...

    def copy(self) -> GrammarState:
        """An independent state at the same point."""
        ...


class GrammarBackend(Protocol):
    """One engine for one vocabulary. `compile` is called on side threads, several at once."""

    @property
    def num_words(self) -> int:
        """The number of words of a mask with a bit for each id that the tokenizer has."""
        ...

    def prepare(self) -> None:
        """Builds what all grammars share. May be called again, at no cost; `compile` calls it too."""
        ...

    def compile(self, kind: str, text: str, prefix: str = "") -> GrammarState:
        """A state at the beginning. `kind`: json_schema, regex, ebnf or structural_tag. `text` may begin with a style
        (json_style.py). `prefix` stands before what the grammar describes. Raises GrammarError."""
        ...

    def fill_masks(self, states: Sequence[GrammarState], out: UInt32Array) -> None:
        """`fill_mask` of each state into out[i], in parallel where the engine can. `out` is [len(states), words]."""
        ...
