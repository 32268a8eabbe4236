"""Verification: how much of each draft is what was sampled."""

from __future__ import annotations

from collections.abc import Collection

from sglang.srt.forward_batch import ForwardOutput
from sglang.srt.messages import FinishReason
from sglang.srt.scheduler.batch import ScheduleBatch
from sglang.srt.scheduler.finish import nan_reason
from sglang.srt.scheduler.output import take_sampled
from sglang.srt.scheduler.req import Req


def commit_drafts(
    batch: ScheduleBatch, output: ForwardOutput, late: Collection[Req], reasons: dict[str, FinishReason | None]
) -> int:
    """Takes what was sampled after draft tokens, as far as the tokens before came out as drafted. The first token of each request
    has been taken; `reasons` says who ended with it, and who ends now. Returns how many draft tokens came out."""
    bad, num_accepted = set(output.nan_rows), 0
    for at, (extend, i) in enumerate(batch.drafted, len(batch.sampled)):
        req, draft = extend.req, extend.draft
        assert draft is not None and req.hold is not None
        point = draft.points[i]
        new_ids = req.output_ids[extend.end - req.prompt_len :]
        if req in late or reasons[req.rid] is not None or new_ids != draft.ids[:point]:
            continue
        req.hold.kv_len = extend.end + point
        num_accepted += point - (draft.points[i - 1] if i else 0)
        token_id = int(output.next_ids[at])
        reasons[req.rid] = nan_reason() if at in bad else take_sampled(req, token_id, draft.step(i + 1))
    return num_accepted
