"""Drafts of expected tokens. Along a grammar: each token with those that are forced after it, as they will be when it is sampled
(results.py)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from sglang.srt.scheduler.grammar.engines.base import GrammarState
from sglang.srt.scheduler.speculation.proposer import Draft, DraftContext, DraftLimits


class GrammarWalk:
    """Grows a draft token by token from where a request stands. The states of the grammar are copies."""

    def __init__(self, context: DraftContext, limits: DraftLimits) -> None:
        assert context.grammar is not None
        self._state = context.grammar
        self._stop_ids = context.stop_ids
        self._limits = limits
        self._ids: list[int] = []
        self._points: list[int] = []
        self._states: list[GrammarState] = []

    @property
    def has_room(self) -> bool:
        return len(self._points) < self._limits.max_samples and len(self._ids) < self._limits.max_ids

    def add(self, token_id: int, must_force: bool = False) -> list[int]:
        """Appends the token and what is forced after it, and returns them. Empty where the draft ends before it: it ends the text, is
        not allowed, takes too many rows, or forces nothing although it must."""
        state = self._state.copy()
        if token_id in self._stop_ids or not state.accept(token_id) or state.is_finished:
            return []
        forced = state.forced_tokens()
        if (must_force and not forced) or len(self._ids) + 1 + len(forced) > self._limits.max_ids:
            return []
        if forced and (not state.accept_all(forced) or state.is_finished):
            return []
        if state.error is not None:
            return []
        self._state = state
        self._ids += [token_id, *forced]
        self._points.append(len(self._ids))
        self._states.append(state)
        return [token_id, *forced]

    def draft(self, proposer: str) -> Draft | None:
        """The draft so far."""
        return Draft(self._ids, self._points, self._states, proposer) if self._ids else None


def draft_of(expected: Sequence[int], context: DraftContext, limits: DraftLimits, proposer: str) -> Draft | None:
    """The draft of `expected` tokens, forced ones among them, up to one that ends the request, that the grammar does not allow, or that
    is not the one it forces."""
    if context.grammar is not None:
        return _along_grammar(list(expected), context, limits, proposer)
    stop_ids, limit = context.stop_ids, max(min(limits.max_ids, limits.max_samples), 0)
    ids = list(takewhile(lambda token_id: token_id not in stop_ids, expected[:limit]))
    return Draft(ids, list(range(1, len(ids) + 1)), [], proposer) if ids else None


def _along_grammar(expected: list[int], context: DraftContext, limits: DraftLimits, proposer: str) -> Draft | None:
    walk = GrammarWalk(context, limits)
    while expected and walk.has_room:
        added = walk.add(expected[0])
        if not added or added != expected[: len(added)]:
            break
        expected = expected[len(added) :]
    return walk.draft(proposer)
