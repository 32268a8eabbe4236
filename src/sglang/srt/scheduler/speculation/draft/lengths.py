"""How long drafts may be: as long as a step with them gives more tokens a second than one without.

    plain step      T(1) ...................                                      1 token
    with a draft    d d d d T(5) .....................                            1 + a + a^2 + a^3 + a^4 tokens

T and d are measured while requests run, by the number of rows; a, the share of drafted tokens that are right, is known for each request.
What is tried and lost is limited: an account gets a small share of the time of all steps, and whatever drafts win; attempts whose gain
is not known, and losses, are paid from it. While it is empty nothing is drafted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

EXACT_ROWS = 8
"""Up to so many rows every number has its own cost; beyond that, powers of two do."""
ROW_SHARE = 0.05
"""What one more row costs, in steps of one, where nothing else is known."""
SOONER_WEIGHT, LATER_WEIGHT = 0.3, 0.1
"""Of a new measurement below and above what is known: what holds a step up makes it longer, nothing makes it shorter."""
FIRST_ERROR = 1.5
"""The first measurement of a number of rows counts as at most so many times what the others let expect."""
FORGET_STEPS = 128
"""A cost that was not measured for so many steps is no longer known, but for that of the fewest rows."""
START_RATE = 0.6
RATE_WEIGHT, COMMON_WEIGHT = 0.12, 0.04
"""Of one drafted token, in its request's rate and in the rate that new requests begin with."""
MARGIN = 1.02
"""The least gain for which drafts are computed."""
SHARE = 0.012
"""Of the time of steps: what attempts may lose."""
CREDIT_STEPS, MOST_STEPS = 1.5, 4.0
"""What the account has at first, and at most, in plain steps."""
WORST = 1.5
"""A step that took longer than so many times the expected time was held up by something else."""
PLAIN_EVERY = 64
"""A plain step among so many with drafts shows what it costs now."""
MOST_PROMPT_SHARE = 0.1
"""A draft model that is larger, against the model, follows no prompt from the beginning."""
YOUNG_STEPS, STALE_STEPS = 32, 16
"""Costs change in every one of the first steps; later what follows from them is remembered for a while."""
WARM_STEPS = 2
"""Plain steps before the first draft."""


class StepCosts:
    """Seconds of steps by their rows, each an average of the latest. More rows never take less time: where one measurement says so, the
    one of fewer rows was held up, and is not believed."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._measured: dict[int, float] = {}
        self._seconds: dict[int, float] = {}  # as measured, ascending with the rows
        self._noted: dict[int, int] = {}
        self._count = 0

    def note(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        at = _bucket(rows)
        known = self._measured.get(at)
        self._count += 1
        self._noted[at] = self._count
        if known is None:
            expected = self.of(at)
            self._measured[at] = seconds if expected is None else min(seconds, FIRST_ERROR * expected)
        else:
            weight = SOONER_WEIGHT if seconds < known else LATER_WEIGHT
            self._measured[at] += weight * (min(max(seconds, known / 2), 2 * known) - known)
        self._arrange()

    def _arrange(self) -> None:
        first, oldest = min(self._measured), self._count - FORGET_STEPS
        self._measured = {at: s for at, s in self._measured.items() if at == first or self._noted[at] > oldest}
        self._rows = sorted(self._measured)
        least = math.inf
        for at in reversed(self._rows):
            self._seconds[at] = least = min(least, self._measured[at])

    def of(self, rows: int) -> float | None:
        """Between two that are known in proportion; None where nothing is known."""
        known, seconds = self._rows, self._seconds
        if not known:
            return None
        i = bisect_left(known, rows)
        if i < len(known) and known[i] == rows:
            return seconds[rows]
        if i == 0:
            return seconds[known[0]] / (1 + ROW_SHARE * (known[0] - rows))
        below = known[i - 1]
        if i == len(known):
            step = seconds[below] / below if below > EXACT_ROWS else seconds[known[0]] * ROW_SHARE
            return seconds[below] + step * (rows - below)
        above = known[i]
        share = (rows - below) / (above - below)
        return seconds[below] + share * (seconds[above] - seconds[below])


def _bucket(rows: int) -> int:
    return rows if rows <= EXACT_ROWS else 1 << (rows - 1).bit_length()


class DraftLengths:
    """`most`: tokens of a draft at most. `draft_share`: what a step of the draft model costs as long as nothing is measured, in steps of
    the model itself."""

    def __init__(self, most: int, draft_share: float) -> None:
        self.most = most
        self.common_rate = START_RATE
        """the share of drafted tokens that were right of late, over all requests"""
        self.model, self.draft = StepCosts(), StepCosts()
        self._draft_share = draft_share
        self._account = 0.0
        self._num_plain = self._since_plain = 0
        self._known: dict[tuple[int, int], int] = {}
        self._age = 0

    # --- what was measured ----------------------------------------------------------------------------------------------------

    def note_plain(self, num_reqs: int, seconds: float) -> None:
        """A step in which each of so many requests got one token."""
        self._num_plain += 1
        self._since_plain = 0
        if self._num_plain == 1:  # the first one of a model is slow
            return
        self.model.note(num_reqs, seconds)
        self._grow_old()
        if self._num_plain == WARM_STEPS:
            self._account = CREDIT_STEPS * seconds
        self._pay(SHARE * seconds, seconds)

    def note_drafted(self, num_reqs: int, rows: int, num_tokens: int, seconds: float, draft_seconds: float) -> None:
        """A step of so many requests and rows that gave `num_tokens`, and took `seconds` with its drafts, which took `draft_seconds`."""
        self._since_plain += 1
        plain, expected = self.model.of(num_reqs), self.model.of(rows)
        self.model.note(rows, seconds - draft_seconds)
        self._grow_old()
        if plain is None or expected is None or num_reqs == 0:
            return
        seconds = min(seconds, WORST * (expected + draft_seconds))
        self._pay(num_tokens / num_reqs * plain - seconds + SHARE * plain, plain)

    def _grow_old(self) -> None:
        """What was worked out for many requests is worked out again, now and then."""
        self._age += 1
        if self._age < YOUNG_STEPS or self._age % STALE_STEPS == 0:
            self._known.clear()

    def note_draft_step(self, rows: int, seconds: float) -> None:
        """A step of the draft model."""
        self.draft.note(rows, seconds)

    def note_right(self, is_right: bool) -> None:
        """Whether a drafted token was right."""
        self.common_rate += COMMON_WEIGHT * (is_right - self.common_rate)

    def _pay(self, seconds: float, step: float) -> None:
        self._account = min(self._account + seconds, MOST_STEPS * step)

    # --- what follows from it -------------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether the next step may have drafts at all."""
        return self._num_plain >= WARM_STEPS and self._account > 0 and self._since_plain < PLAIN_EVERY

    def can_pay(self, num_reqs: int, behind: int) -> bool:
        """Whether the account has what one attempt costs that is all in vain, with `behind` ids to catch up with."""
        plain = self.model.of(num_reqs)
        if plain is None:
            return False
        rows = self.model.of(num_reqs + 2) or plain
        return self._account >= self.draft_seconds(behind + 1) + self.draft_seconds(1) + max(rows - plain, 0.0)

    def draft_seconds(self, rows: int) -> float:
        """What a step of the draft model takes."""
        known = self.draft.of(rows)
        if known is not None:
            return known
        return self._draft_share * (self.model.of(rows) or 0.0)

    def is_worth(self, rate: float, num_reqs: int) -> bool:
        """Whether one of so many running requests gains by drafts. Asked in every step, so it is remembered for a while."""
        key = (round(rate * 50), num_reqs)
        if key not in self._known:
            self._known[key] = max(self.lengths([rate], num_reqs))
        return self._known[key] > 0

    def lengths(self, rates: Sequence[float], num_reqs: int, behind: int = 0) -> list[int]:
        """The number of tokens to draft for requests with such rates, of `num_reqs` that run, with `behind` ids to catch up with."""
        best, plain = [0] * len(rates), self.model.of(num_reqs)
        if plain is None:
            return best
        seconds, tokens, rows = plain, float(num_reqs), num_reqs
        best_speed = MARGIN * tokens / seconds
        lengths = list(best)
        for length in range(1, self.most + 1):
            row = max((self.model.of(rows + 1) or seconds) - (self.model.of(rows) or seconds), 0.0)
            going = [i for i, rate in enumerate(rates) if lengths[i] == length - 1 and rate**length * seconds > row * tokens]
            if not going:
                break
            step = self.draft_seconds(len(going) + (behind if length == 1 else 0))
            after = self.model.of(rows + len(going)) or seconds
            seconds += step + after - (self.model.of(rows) or after)
            rows += len(going)
            tokens += sum(rates[i] ** length for i in going)
            for i in going:
                lengths[i] = length
            if tokens / seconds > best_speed:
                best_speed, best = tokens / seconds, list(lengths)
        return best

    def gain(self, rate: float, num_reqs: int) -> float:
        """Seconds that drafts save for each token of a request with such a rate; 0 where they do not pay."""
        plain, (length,) = self.model.of(num_reqs), self.lengths([rate], num_reqs)
        if plain is None or not length:
            return 0.0
        tokens = 1 + sum(rate**i for i in range(1, length + 1))
        seconds = (self.model.of(num_reqs + length) or plain) + length * self.draft_seconds(1)
        return max(plain - seconds / tokens, 0.0)

    def pays_at_first(self, num_reqs: int) -> bool:
        """Whether a request that begins is to be followed: its prompt costs little beside the model's, and drafts are likely to pay."""
        if self._draft_share > MOST_PROMPT_SHARE:
            return False
        if self.model.of(num_reqs) is None:
            return True
        return self.is_worth(self.common_rate, num_reqs)
