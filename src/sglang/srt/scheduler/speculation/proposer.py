"""The proposer protocol: its view of a request, and its drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sglang.srt.scheduler.grammar.engines.base import GrammarState


@dataclass(frozen=True)
class DraftStep:
    """A token to be sampled with those that are forced after it, and the place in the grammar behind them."""

    ids: list[int]
    state: GrammarState


@dataclass(frozen=True)
class Draft:
    """Tokens that a request may go on with, and the name of who proposes them. After the first `points[i]` of them one is sampled, under a grammar by the mask of
    `states[i]`; it counts if all before it came out as they stand here. `states` is empty in free text."""

    ids: list[int]
    points: list[int]
    states: list[GrammarState]
    proposer: str

    def step(self, i: int) -> DraftStep | None:
        """The draft step at which the `i`th token is sampled; None in free text, and after the last."""
        if i >= len(self.states):
            return None
        return DraftStep(self.ids[self.points[i - 1] if i else 0 : self.points[i]], self.states[i])


@dataclass(frozen=True)
class DraftLimits:
    """Limits of a draft in a step that has `num_rows` rows and `num_reqs` requests without it."""

    max_ids: int
    max_samples: int
    num_rows: int
    num_reqs: int


class DraftContext(Protocol):
    """A proposer's view of its request; a `Req` is one."""

    @property
    def output_ids(self) -> list[int]: ...

    @property
    def num_since_forced(self) -> int:
        """Tokens of the output that were sampled since the last forced one."""
        ...

    @property
    def grammar(self) -> GrammarState | None:
        """Its place in the grammar; not to be changed."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end the request: they are in no draft."""
        ...


class Proposer(Protocol):
    """Proposes drafts for one request. All is called by the scheduler's loop, so it takes microseconds, or is worth what it takes."""

    @property
    def forced_share(self) -> float:
        """The share of sampled tokens of such requests that forced tokens follow; 0 in free text."""
        ...

    def is_confident(self, context: DraftContext, num_running: int) -> bool:
        """Whether a draft is likely to be worth its rows, with so many requests running. Asked before the step is planned, so that
        a step does not begin without the tokens that a draft follows."""
        ...

    def propose(self, context: DraftContext, limits: DraftLimits) -> Draft | None:
        """A draft within the limits. None where nothing is likely enough."""
        ...

    def note_sampled(self, context: DraftContext, token_id: int) -> None:
        """`token_id` was sampled and is about to be appended. Forced tokens are not told."""
        ...
