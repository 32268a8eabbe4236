"""What followed what in outputs of one grammar: the token that was drawn last after the same ones, and how reliably."""

from __future__ import annotations

from collections.abc import Iterator

MAX_ENTRIES = 12288
MAX_STREAK = 64
RECENT = 16
"""Draws that say how often forced tokens follow one."""
Place = tuple[int, ...]


class Habits:
    """Learns from draws. Small and forgetful: a place whose draws vary is not trusted for long. A place is known by its last
    WIDTH tokens, or else by the last SHORT ones, which many outputs have in common. Where a value ends is also learnt by how
    long values were: by the last forced tokens, which name it, and the number of those drawn since."""

    WIDTH = 16
    SHORT = 3

    def __init__(self) -> None:
        self._next: dict[Place, tuple[int, int]] = {}  # token, how often in a row, less misses
        self.jump_rate = 0.0
        """share of the tokens drawn of late that forced ones followed"""

    def note(self, before: list[int], token_id: int, num_drawn: int = 0) -> None:
        """`token_id` was drawn after `before`, of which the last `num_drawn` were drawn as well, and before those one was forced."""
        if before:
            self.jump_rate += ((num_drawn == 0) - self.jump_rate) / RECENT
        for place in self._places(before):
            self._note(place, token_id)
        if (value := self._value(before, num_drawn)) is not None:
            self._note(value, token_id)
        if len(self._next) > MAX_ENTRIES:
            self._next.clear()

    def guess(self, before: list[int]) -> tuple[int, float]:
        """What may be drawn after `before`, and how likely that is; 0 when nothing is known."""
        token, likely = 0, 0.0
        for place in self._places(before):
            known, streak = self._next.get(place, (0, 0))
            seen = streak + (len(place) > self.SHORT)  # a long place says more
            if seen > 1 and (not likely or known == token):
                token, likely = known, max(likely, seen / (seen + 1))
        return token, likely

    def guess_end(self, before: list[int], num_drawn: int) -> tuple[int, float]:
        """`guess` by the length of the value alone: to be relied on only where the token ends it."""
        value = self._value(before, num_drawn)
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

    def _value(self, before: list[int], num_drawn: int) -> Place | None:
        end = len(before) - num_drawn
        return (-num_drawn, *before[end - self.SHORT : end]) if num_drawn > 0 and end >= self.SHORT else None
