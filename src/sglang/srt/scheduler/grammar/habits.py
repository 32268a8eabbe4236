"""What followed what in outputs of one grammar: the token that was drawn last after the same few, and how reliably."""

from __future__ import annotations

MAX_ENTRIES = 8192
MAX_STREAK = 16


class Habits:
    """Learns from draws. Small and forgetful: a place whose draws vary is not trusted for long."""

    WIDTH = 3
    """tokens that a guess depends on"""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], tuple[int, int]] = {}  # token, how often in a row, less misses

    def note(self, before: list[int], token_id: int) -> None:
        """`token_id` was drawn after `before`."""
        key = tuple(before[-self.WIDTH :])
        known, streak = self._next.get(key, (token_id, 0))
        if known == token_id:
            self._next[key] = known, min(streak + 1, MAX_STREAK)
        elif streak > 2:
            self._next[key] = known, streak // 2
        else:
            self._next[key] = token_id, 1
        if len(self._next) > MAX_ENTRIES:
            self._next.clear()

    def guess(self, before: list[int]) -> tuple[int, float]:
        """What may be drawn after `before`, and how likely that is; 0 when nothing is known."""
        known, streak = self._next.get(tuple(before[-self.WIDTH :]), (0, 0))
        return known, streak / (streak + 1) if streak > 1 else 0.0
