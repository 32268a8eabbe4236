"""What followed what in outputs of one grammar: the token that was drawn last after the same ones, and how reliably."""

from __future__ import annotations

MAX_ENTRIES = 8192
MAX_STREAK = 16
Place = tuple[int, ...]


class Habits:
    """Learns from draws. Small and forgetful: a place whose draws vary is not trusted for long. A place is known by its last
    WIDTH tokens, or else by the last SHORT ones, which many outputs have in common."""

    WIDTH = 16
    SHORT = 3

    def __init__(self) -> None:
        self._next: dict[Place, tuple[int, int]] = {}  # token, how often in a row, less misses

    def note(self, before: list[int], token_id: int) -> None:
        """`token_id` was drawn after `before`."""
        for place in self._places(before):
            known, streak = self._next.get(place, (token_id, 0))
            if known == token_id:
                self._next[place] = known, min(streak + 1, MAX_STREAK)
            elif streak > 2:
                self._next[place] = known, streak // 2
            else:
                self._next[place] = token_id, 1
        if len(self._next) > MAX_ENTRIES:
            self._next.clear()

    def guess(self, before: list[int]) -> tuple[int, float]:
        """What may be drawn after `before`, and how likely that is; 0 when nothing is known."""
        for place in self._places(before):
            known, streak = self._next.get(place, (0, 0))
            seen = streak + (len(place) > self.SHORT)  # a long place says more
            if seen > 1:
                return known, seen / (seen + 1)
        return 0, 0.0

    def _places(self, before: list[int]) -> list[Place]:
        short = tuple(before[-self.SHORT :])
        return [tuple(before[-self.WIDTH :]), short] if len(before) > self.SHORT else [short]
