"""Drafts from earlier outputs of the same grammar: the token that was last sampled after the same tokens, and how reliably."""

from __future__ import annotations

from collections.abc import Iterator

from sglang.srt.scheduler.speculation.grammar_walk import GrammarWalk
from sglang.srt.scheduler.speculation.proposer import Draft, DraftContext, DraftLimits

NAME = "grammar_statistics"
MAX_ENTRIES = 12288
MAX_STREAK = 64
RECENT = 16
"""Sampled tokens over which `forced_share` is an average."""
MIN_CONFIDENCE, MIN_CONFIDENCE_FEW = 0.7, 0.5
"""The least probability of a draft up to a place that is worth a row there; in steps of few requests rows cost next to
nothing."""
FEW_REQS = 3
Place = tuple[int, ...]


class GrammarStatistics:
    """Learns from sampled tokens. Small and forgetful: a place after which tokens vary is not relied on for long. A place is known
    by its last WIDTH tokens, or else by the last SHORT ones, which many outputs have in common. Where a value ends is also learnt
    by how long values were: by the last forced tokens, which name it, and the number of those sampled since."""

    WIDTH = 16
    SHORT = 3

    def __init__(self) -> None:
        self._next: dict[Place, tuple[int, int]] = {}  # token, how often in a row, less misses
        self.forced_share = 0.0
        """share of the last sampled tokens that forced ones followed"""

    def note(self, before: list[int], token_id: int, num_since_forced: int = 0) -> None:
        """`token_id` was sampled after `before`, of which the last `num_since_forced` were sampled as well, and the one before those
        was forced."""
        if before:
            self.forced_share += ((num_since_forced == 0) - self.forced_share) / RECENT
        for place in self._places(before):
            self._note(place, token_id)
        if (value := self._value(before, num_since_forced)) is not None:
            self._note(value, token_id)
        if len(self._next) > MAX_ENTRIES:
            self._next.clear()

    def likely_next(self, before: list[int]) -> tuple[int, float]:
        """The token that may follow `before`, and how likely that is; 0 when nothing is known."""
        token, likely = 0, 0.0
        for place in self._places(before):
            known, streak = self._next.get(place, (0, 0))
            seen = streak + (len(place) > self.SHORT)  # a long place says more
            if seen > 1 and (not likely or known == token):
                token, likely = known, max(likely, seen / (seen + 1))
        return token, likely

    def likely_end(self, before: list[int], num_since_forced: int) -> tuple[int, float]:
        """`likely_next` by the length of the value alone: to be relied on only where the token ends it."""
        value = self._value(before, num_since_forced)
        known, streak = self._next.get(value, (0, 0)) if value is not None else (0, 0)
        return (known, streak / (streak + 1)) if streak > 1 else (0, 0.0)

    def _note(self, place: Place, token_id: int) -> None:
        known, streak = self._next.get(place, (token_id, 0))
        if known == token_id:
            self._next[place] = known, min(streak + 1, MAX_STREAK)
        elif streak > 2:
            self._next[place] = known, streak // 4
        else:
            self._next[place] = token_id, 1

    def _places(self, before: list[int]) -> Iterator[Place]:
        if len(before) > self.SHORT:
            yield tuple(before[-self.WIDTH :])
        yield tuple(before[-self.SHORT :])

    def _value(self, before: list[int], num_since_forced: int) -> Place | None:
        end = len(before) - num_since_forced
        if num_since_forced <= 0 or end < self.SHORT:
            return None
        return (-num_since_forced, *before[end - self.SHORT : end])


class GrammarProposer:
    """Proposes for one request what its grammar's statistics say."""

    def __init__(self, statistics: GrammarStatistics) -> None:
        self._statistics = statistics

    @property
    def forced_share(self) -> float:
        return self._statistics.forced_share

    def is_confident(self, context: DraftContext, num_running: int) -> bool:
        """However many run: the one token costs one row."""
        recent = context.output_ids[-GrammarStatistics.WIDTH :]
        return self._likely(recent, context.num_since_forced)[1] >= MIN_CONFIDENCE_FEW

    def propose(self, context: DraftContext, limits: DraftLimits) -> Draft | None:
        """Drafts tokens as long as all of them up to a place are likely together."""
        walk = GrammarWalk(context, limits)
        recent, num_since_forced = context.output_ids[-GrammarStatistics.WIDTH :], context.num_since_forced
        min_confidence = MIN_CONFIDENCE_FEW if limits.num_reqs <= FEW_REQS else MIN_CONFIDENCE
        confidence = 1.0
        while walk.has_room:
            token, likely, must_end = self._likely(recent, num_since_forced)
            confidence *= likely
            added = walk.add(token, must_end) if confidence >= min_confidence else []
            if not added:
                break
            recent = (recent + added)[-GrammarStatistics.WIDTH :]
            num_since_forced = num_since_forced + 1 if len(added) == 1 else 0
        return walk.draft(NAME)

    def note_sampled(self, context: DraftContext, token_id: int) -> None:
        self._statistics.note(context.output_ids[-GrammarStatistics.WIDTH :], token_id, context.num_since_forced)

    def _likely(self, recent: list[int], num_since_forced: int) -> tuple[int, float, bool]:
        """The next token, how likely it is, and whether it is of use only if a value ends with it."""
        token, confidence = self._statistics.likely_next(recent)
        if must_end := confidence == 0.0:
            token, confidence = self._statistics.likely_end(recent, num_since_forced)
        return token, confidence, must_end
