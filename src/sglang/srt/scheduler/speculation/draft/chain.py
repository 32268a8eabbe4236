"""The proposer of one request that the draft model follows.

A request whose drafts are wrong has shorter and shorter ones, and then none. It tries again after a while, after longer and longer
ones if that was in vain.
"""

from __future__ import annotations

from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.draft.lengths import RATE_WEIGHT
from sglang.srt.scheduler.speculation.draft.model import DraftModel
from sglang.srt.scheduler.speculation.proposer import Draft, DraftContext, DraftLimits

FIRST_WAIT, LONGEST_WAIT = 16, 256
"""Tokens between two attempts of a request whose drafts do not pay."""
ATTEMPT_LEN = 2


class DraftChain:
    """Proposes what the draft model has drafted for the step."""

    forced_share = 0.0

    def __init__(self, model: DraftModel, req: Req) -> None:
        self._model = model
        self.req = req
        self.rate = model.lengths.common_rate
        """the share of drafted tokens that are right, of late"""
        self.ready: Draft | None = None
        """drafted for the step that is being planned"""
        self._expected: list[int] = []
        self._since = 0
        self._wait = FIRST_WAIT
        self._is_attempt = False

    def is_confident(self, context: DraftContext, num_running: int) -> bool:
        """Whether a draft is likely to pay, or is due to be tried."""
        req, lengths = self.req, self._model.lengths
        if req.hold is None or not req.output_ids or not lengths.is_ready or num_running <= 0:
            return False
        if lengths.is_worth(self.rate, num_running):
            return self._model.catches_up(req, self.rate, num_running)
        return self._since >= self._wait and lengths.can_pay(num_running, self._model.behind(req))

    def length(self, planned: int) -> int:
        """Tokens to draft now, where so many pay."""
        self._is_attempt = planned == 0 and self._since >= self._wait
        return ATTEMPT_LEN if self._is_attempt else planned

    def propose(self, context: DraftContext, limits: DraftLimits) -> Draft | None:
        """What is ready, as far as it fits in."""
        draft, self.ready = self.ready, None
        draft = _within(draft, limits) if draft is not None else None
        if draft is None:
            return None
        starts = [0, *draft.points[:-1]]
        self._expected = [draft.ids[start] for start in starts]
        self._since = 0
        return draft

    def note_sampled(self, context: DraftContext, token_id: int) -> None:
        self._since += 1
        if not self._expected:
            return
        is_right = self._expected[0] == token_id
        self._expected = self._expected[1:] if is_right else []
        self.rate += RATE_WEIGHT * (is_right - self.rate)
        self._model.lengths.note_right(is_right)
        if self._is_attempt and not (is_right and self._expected):  # it is over
            self._wait = FIRST_WAIT if is_right else min(2 * self._wait, LONGEST_WAIT)


def _within(draft: Draft, limits: DraftLimits) -> Draft | None:
    """The part of a draft that the limits allow."""
    num = min(len(draft.points), limits.max_samples)
    while num > 0 and draft.points[num - 1] > limits.max_ids:
        num -= 1
    if num == len(draft.points):
        return draft
    return Draft(draft.ids[: draft.points[num - 1]], draft.points[:num], draft.states[:num], draft.proposer) if num else None
