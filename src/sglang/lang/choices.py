"""How `select` picks among texts from the log probabilities of their tokens.

A method is an object with `requires_unconditional_logprobs`, called with keyword arguments. Token entries are
`[logprob, token_id, text]`; only tokens of the choice are among them, never of the prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

TokenLogprob = Sequence[float | int | str | None]


@dataclass(frozen=True)
class ChoicesDecision:
    """The chosen text and how it came about."""

    decision: str
    meta_info: dict[str, Any] = field(default_factory=dict)


class ChoicesSamplingMethod(ABC):
    """A way to choose. Subclass it to bring your own."""

    @property
    def requires_unconditional_logprobs(self) -> bool:
        """Whether the choices must also be scored without the prompt."""
        return False

    @abstractmethod
    def __call__(
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: Sequence[float],
        input_token_logprobs: Sequence[Sequence[TokenLogprob]],
        output_token_logprobs: Sequence[Sequence[TokenLogprob]],
        unconditional_token_logprobs: Sequence[Sequence[TokenLogprob]] | None = None,
    ) -> ChoicesDecision: ...


def logprobs_of(entries: Sequence[TokenLogprob]) -> list[float]:
    """The numbers of token entries; a token that nothing predicts (None) counts as 0."""
    return [0.0 if entry[0] is None else float(entry[0]) for entry in entries]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def argmax(values: Sequence[float]) -> int:
    """Index of the largest; the first one wins ties."""
    return max(range(len(values)), key=lambda i: (values[i], -i))


class TokenLengthNormalized(ChoicesSamplingMethod):
    """The highest mean log probability per token."""

    def __call__(
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: Sequence[float],
        input_token_logprobs: Sequence[Sequence[TokenLogprob]],
        output_token_logprobs: Sequence[Sequence[TokenLogprob]],
        unconditional_token_logprobs: Sequence[Sequence[TokenLogprob]] | None = None,
    ) -> ChoicesDecision:
        meta = {
            "normalized_prompt_logprobs": normalized_prompt_logprobs,
            "input_token_logprobs": input_token_logprobs,
            "output_token_logprobs": output_token_logprobs,
        }
        return ChoicesDecision(choices[argmax(normalized_prompt_logprobs)], meta)


class GreedyTokenSelection(ChoicesSamplingMethod):
    """The choice that greedy decoding would write if it could only write the choices.

    Token by token, only the choices with the best log probability at that place stay. A choice that has ended goes on with
    its own mean, so that a prefix of another choice is neither favoured nor punished.
    """

    def __call__(
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: Sequence[float],
        input_token_logprobs: Sequence[Sequence[TokenLogprob]],
        output_token_logprobs: Sequence[Sequence[TokenLogprob]],
        unconditional_token_logprobs: Sequence[Sequence[TokenLogprob]] | None = None,
    ) -> ChoicesDecision:
        rows = [logprobs_of(entries) for entries in input_token_logprobs]
        longest = max(len(row) for row in rows)
        matrix = [row + [mean(row)] * (longest - len(row)) for row in rows]
        remaining = list(range(len(choices)))
        for column in range(longest):
            best = max(matrix[i][column] for i in remaining)
            remaining = [i for i in remaining if matrix[i][column] == best]
            if len(remaining) == 1:
                break
        meta = {
            "normalized_prompt_logprobs": normalized_prompt_logprobs,
            "input_token_logprobs": input_token_logprobs,
            "output_token_logprobs": output_token_logprobs,
            "greedy_logprob_matrix": matrix,
        }
        return ChoicesDecision(choices[remaining[0]], meta)


class UnconditionalLikelihoodNormalized(ChoicesSamplingMethod):
    """The largest gain that the prompt gives over the choice's likelihood on its own
    (source: EleutherAI, "Multiple Choice Normalization in LM Evaluation")."""

    @property
    def requires_unconditional_logprobs(self) -> bool:
        return True

    def __call__(
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: Sequence[float],
        input_token_logprobs: Sequence[Sequence[TokenLogprob]],
        output_token_logprobs: Sequence[Sequence[TokenLogprob]],
        unconditional_token_logprobs: Sequence[Sequence[TokenLogprob]] | None = None,
    ) -> ChoicesDecision:
        if unconditional_token_logprobs is None:
            raise ValueError("unconditional_likelihood_normalized needs unconditional_token_logprobs")
        scores = []
        for given, alone in zip(input_token_logprobs, unconditional_token_logprobs, strict=True):
            if len(given) != len(alone):
                raise ValueError(f"a choice has {len(given)} token log probabilities, but {len(alone)} unconditional ones")
            scores.append(mean([x - y for x, y in zip(logprobs_of(given), logprobs_of(alone), strict=True)]))
        meta = {
            "normalized_prompt_logprobs": normalized_prompt_logprobs,
            "input_token_logprobs": input_token_logprobs,
            "output_token_logprobs": output_token_logprobs,
            "unconditional_token_logprobs": unconditional_token_logprobs,
            "normalized_unconditional_prompt_logprobs": scores,
        }
        return ChoicesDecision(choices[argmax(scores)], meta)


token_length_normalized = TokenLengthNormalized()
greedy_token_selection = GreedyTokenSelection()
unconditional_likelihood_normalized = UnconditionalLikelihoodNormalized()
