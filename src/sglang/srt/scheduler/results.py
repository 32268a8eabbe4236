"""What a step brought: ids are appended, grammars move on, requests end or stay, memory follows, clients hear of it."""

from __future__ import annotations

import time
from collections.abc import Collection

from sglang.srt.forward_batch import ForwardOutput, Int32Array, LogprobResult
from sglang.srt.messages import FinishReason, TokenOut
from sglang.srt.scheduler.batch import ScheduleBatch
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.finish import nan_reason
from sglang.srt.scheduler.output import take_sampled
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.verify import commit_drafts


class StepResults:
    """The outcome of one step, request by request. `ended` have a final TokenOut in `outs` and hold nothing any more;
    `decoding` have computed their prompts in this step and go on."""

    def __init__(self, memory: KvMemory) -> None:
        self._memory = memory
        self.outs: list[TokenOut] = []
        self.ended: list[Req] = []
        self.decoding: list[Req] = []
        self.num_accepted = 0
        """draft tokens that came out as sampled, and those forced after them"""

    def commit(self, batch: ScheduleBatch, output: ForwardOutput, late: Collection[Req] = ()) -> None:
        """Enters the output of `batch`. Who is `late` has no token yet: its last row is computed again in a later step."""
        for req in batch.decodes:
            assert req.hold is not None
            req.hold.kv_len += req not in late
        for extend in batch.extends:
            assert extend.req.hold is not None
            extend.req.hold.kv_len = extend.end - (extend.req in late)
        for req, asked, scores in zip(batch.scored, batch.forward.prompt_logprobs, output.prompt_logprobs, strict=True):
            self._commit_scores(req, asked.targets, scores)
        reasons = self._commit_tokens(batch, output, late)
        self.num_accepted += commit_drafts(batch, output, late, reasons)
        for req in batch.decodes:
            if req not in late:
                self._conclude(req, reasons[req.rid])
        for extend in batch.extends:
            req = extend.req
            reason = reasons.get(req.rid)
            if extend.completes and reason is None:
                reason = _late_reason(req)
            if reason is None and not extend.is_jump:
                assert req.hold is not None
                self._memory.share(req.hold, req.fill_ids()[: req.hold.kv_len])
            if extend.completes:
                if req.media is not None:
                    req.media.prompt_done()
                if req not in late:
                    self._conclude(req, reason)
                if reason is None and not extend.is_jump:
                    self.decoding.append(req)

    def _commit_scores(self, req: Req, targets: Int32Array, scores: LogprobResult) -> None:
        """Log probabilities of tokens that were not sampled: first the prompt's, then forced ones."""
        first = max(req.logprob_next, 1)
        num_prompt = max(req.prompt_len - first, 0)
        req.input_log.add(targets[:num_prompt], scores.rows(0, num_prompt))
        req.output_log.add(targets[num_prompt:], scores.rows(num_prompt, len(targets)))
        req.logprob_next = first + len(targets)

    def end(self, req: Req, reason: FinishReason) -> None:
        """Ends a request in whatever state it is; its slots are free or in the tree after that."""
        if req.hold is not None:
            self._memory.close(req.hold, req.fill_ids())
            req.hold = None
        req.finish.drop_search()
        self.ended.append(req)
        self.outs.append(build_out(req, reason))

    def _conclude(self, req: Req, reason: FinishReason | None) -> None:
        if reason is not None:
            self.end(req, reason)
        elif req.msg.stream and not req.unenforced:
            self.outs.append(build_out(req, None))

    def _commit_tokens(
        self, batch: ScheduleBatch, output: ForwardOutput, late: Collection[Req]
    ) -> dict[str, FinishReason | None]:
        bad = set(output.nan_rows)
        reasons: dict[str, FinishReason | None] = {}
        ids = output.next_ids[: len(batch.sampled)].tolist()
        drafts = {extend.req: extend.draft for extend, i in batch.drafted if i == 0}
        for i, (req, token_id) in enumerate(zip(batch.sampled, ids, strict=True)):
            if req in late:
                continue
            if i in bad:
                reasons[req.rid] = nan_reason()
                continue
            if not req.first_at:
                req.first_at = time.monotonic()
            scores = output.logprobs[i]
            if scores is not None:
                req.output_log.add(output.next_ids[i : i + 1], scores)
                req.logprob_next = req.num_ids + 1
            draft = drafts.get(req)
            reasons[req.rid] = take_sampled(req, token_id, draft.step(0) if draft is not None else None)
        return reasons


def _late_reason(req: Req) -> FinishReason | None:
    """Why a request ends for which no token was sampled in this step."""
    if req.finish.is_searching:
        return None
    if req.ending is not None:
        return req.ending if req.logprob_next >= req.num_ids else None
    return FinishReason("length", length=len(req.output_ids)) if req.num_left <= 0 else None


def build_out(req: Req, reason: FinishReason | None) -> TokenOut:
    """What the client does not know yet of `req`: ids go together with their log probabilities where these are wanted."""
    since = req.sent_len
    until = since + len(req.output_log) if req.spec.want_logprob else len(req.output_ids)
    req.sent_len = until
    out_logprobs = req.output_log.take() if req.spec.want_logprob else None
    input_logprobs = None
    first = not req.input_sent
    if first and req.msg.logprobs is not None and req.msg.logprobs.start_len >= 0:
        input_logprobs = req.input_log.take()
    req.input_sent = True
    return TokenOut(
        rid=req.rid,
        ids=req.output_ids[since:until],
        finish=reason,
        hold_bytes=0 if reason is not None else req.finish.hold_bytes,
        trim_bytes=req.finish.trim_bytes,
        prompt_len=req.prompt_len,
        cached_len=max(req.cached_len, 0),
        completion_len=until,
        num_retractions=req.num_retractions,
        input_logprobs=input_logprobs,
        output_logprobs=out_logprobs,
        queue_time=_since_arrival(req, req.started_at) if first else 0.0,
        first_time=_since_arrival(req, req.first_at) if since == 0 else 0.0,
        unenforced=req.unenforced if reason is not None and reason.type == "stop" else (),
    )


def _since_arrival(req: Req, moment: float) -> float:
    return max(moment - req.msg.received_at, 0.0) if moment and req.msg.received_at else 0.0
