"""Applies the results of a step: appends ids, advances grammars, finishes requests, updates memory, sends outputs.

The output of a request grows by the token sampled for it, and by the tokens that its grammar forces after it:

    sampled      {"                    a row of the model, a mask, a sample
    forced          name ":            appended at once; their rows are computed together in the next step
    sampled                  John      from the row of the last forced one

Forced tokens are those that masks would have led to, one sample at a time: the output is the same with and without jump-forward.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from sglang.srt.errors import GrammarError, RequestError
from sglang.srt.forward_batch import ForwardOutput, Int32Array, LogprobResult
from sglang.srt.messages import DRAFTED, FORCED, SAMPLED, DraftCounts, FinishReason, TokenOut
from sglang.srt.scheduler.batch import Extend, ScheduleBatch
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.finish import abort_reason, nan_reason
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.proposer import Draft, DraftStep
from sglang.srt.vocabulary import ends_reasoning

MAX_FORCED = 512
"""Tokens appended at once; what a grammar forces beyond that follows in later steps."""


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
        self.drafts: dict[str, DraftCounts] = {}
        """of this step, by proposer"""

    def commit(self, batch: ScheduleBatch, output: ForwardOutput, late: Collection[Req] = ()) -> None:
        """Enters the output of `batch`. A `late` request has no token yet: its last row is computed again in a later step."""
        for req in batch.decodes:
            assert req.hold is not None
            self._advance(req, req.hold.kv_len + 1, late)
        for extend in batch.extends:
            self._advance(extend.req, extend.end, late)
        for req, asked, scores in zip(batch.scored, batch.forward.prompt_logprobs, output.prompt_logprobs, strict=True):
            self._commit_scores(req, asked.targets, scores)
        reasons = self._commit_tokens(batch, output, late)
        if batch.drafted:
            self.num_accepted += commit_drafts(batch, output, late, reasons)
            count_drafts(batch, self.drafts)
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

    def _advance(self, req: Req, end: int, late: Collection[Req]) -> None:
        """The rows before `end` are computed."""
        assert req.hold is not None
        (self._memory.stay if req in late else self._memory.advance)(req.hold, end)

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
            reasons[req.rid] = take_sampled(req, token_id) if draft is None else take_drafted(req, token_id, draft, 0)
        return reasons


def _late_reason(req: Req) -> FinishReason | None:
    """Why a request ends for which no token was sampled in this step."""
    if req.finish.is_searching:
        return None
    if req.ending is not None:
        return req.ending if req.logprob_next >= req.num_ids else None
    return FinishReason("length", length=len(req.output_ids)) if req.num_left <= 0 else None


def build_out(req: Req, reason: FinishReason | None) -> TokenOut:
    """The output of `req` that the client does not have yet: ids go together with their log probabilities where these are
    wanted."""
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
        drafts=req.drafts if reason is not None and req.drafts.steps else None,
        input_logprobs=input_logprobs,
        output_logprobs=out_logprobs,
        origins=bytes(req.origins[since:until]) if req.origins is not None else b"",
        queue_time=_since_arrival(req, req.started_at) if first else 0.0,
        first_time=_since_arrival(req, req.first_at) if since == 0 else 0.0,
        unenforced=req.unenforced if reason is not None and reason.type == "stop" else (),
    )


def _since_arrival(req: Req, moment: float) -> float:
    return max(moment - req.msg.received_at, 0.0) if moment and req.msg.received_at else 0.0


# --- how one request's output grows -----------------------------------------------------------------------------------------


def take_drafted(req: Req, token_id: int, draft: Draft, i: int) -> FinishReason | None:
    """`take_sampled`, where the draft's `i`th token was to be sampled."""
    at = draft.points[i - 1] if i else 0
    as_drafted = at < len(draft.ids) and draft.ids[at] == token_id
    return take_sampled(req, token_id, draft.step(i), DRAFTED if as_drafted else SAMPLED)


def take_sampled(req: Req, token_id: int, expected: DraftStep | None = None, origin: int = SAMPLED) -> FinishReason | None:
    """Appends the sampled token and what is forced after it. Why the request ends with that, if it does. `expected`: the draft's
    token and what follows it."""
    if req.in_reasoning and req.finish.is_end_of_text(token_id):
        token_id, origin = _end_reasoning(req), FORCED
    if req.proposer is not None and not req.in_reasoning:
        req.proposer.note_sampled(req, token_id)
    if expected is not None and expected.ids[0] == token_id:
        return _take_expected(req, expected)
    req.output_ids.append(token_id)
    req.note_origin(origin)
    req.num_since_forced += 1
    if req.in_reasoning:
        req.in_reasoning = origin != FORCED and not _has_ended_reasoning(req)
    elif req.grammar is not None and not req.grammar.accept(token_id):
        return _stuck(req)
    reason = _check(req, token_id)
    _leave_healed(req)
    return _after_check(req, reason)


def _leave_healed(req: Req) -> None:
    """Once the prompt's end is said, text that nothing else constrains goes on freely."""
    if req.msg.healed and req.finish.skip_bytes == 0 and req.msg.sampling.grammar is None:
        req.grammar = None


def _has_ended_reasoning(req: Req) -> bool:
    return ends_reasoning(req.output_ids, req.msg.grammar_after, req.msg.grammar_lead)


def _end_reasoning(req: Req) -> int:
    """The model ended its text within its reasoning, and its answer has yet to come: what ends reasoning stands in place of what ended
    the text."""
    req.rewritten_at = req.num_ids + 1
    return req.msg.grammar_after[0]


def take_searched(req: Req) -> FinishReason | None:
    """Goes on where a stop expression took long (finish.py). Why the request ends with that, if it does."""
    try:
        reason = req.finish.end_search(len(req.output_ids))
    except RequestError as error:
        return abort_reason(error)
    return _after_check(req, reason)


def _after_check(req: Req, reason: FinishReason | None) -> FinishReason | None:
    """Handles the newest token, once it is known whether it stops the request."""
    if req.finish.is_searching:
        return None
    is_over = req.grammar is not None and not req.in_reasoning and req.grammar.is_finished
    if is_over and (reason is None or reason.type == "length"):
        reason = FinishReason("stop", matched=req.output_ids[-1])
    if reason is None:
        return take_forced(req)
    if req.msg.logprobs is not None and reason.type != "abort" and req.logprob_next < req.num_ids:
        req.ending, reason = reason, None
    return reason


def take_sent(req: Req) -> FinishReason | None:
    """Enters what another scheduler had sent of a resumed request: grammar, stop strings and penalties stand where they stood.
    Then it goes on as behind its last token. Why the request ends with that, if it does."""
    for token_id in req.msg.resumed or ():
        req.output_ids.append(token_id)
        req.note_origin(SAMPLED)  # the client has been told
        if req.in_reasoning:
            req.in_reasoning = not _has_ended_reasoning(req)
        elif req.grammar is not None and not req.grammar.accept(token_id):
            return _stuck(req)
        req.finish.note_sent(token_id)
        _leave_healed(req)
    return _after_check(req, req.finish.go_on(len(req.output_ids), req.msg.resumed_hold))


def _take_expected(req: Req, step: DraftStep) -> FinishReason | None:
    """The draft has followed the grammar already, and the request may go on after all these tokens."""
    for i, token_id in enumerate(step.ids):
        req.output_ids.append(token_id)
        req.note_origin(FORCED if i else DRAFTED)
        req.num_since_forced = req.num_since_forced + 1 if i == 0 else 0
        reason = _check(req, token_id)
        if reason is not None:
            return reason
        if req.finish.is_searching:  # what is left of the draft is not needed
            if req.grammar is not None and not req.grammar.accept_all(step.ids[: i + 1]):
                return _stuck(req)
            return None
    req.grammar = step.state
    return None


def note_admitted(extends: Iterable[Extend]) -> None:
    """Notes of requests that are new in a step what was cached of them, and when they started."""
    for extend in extends:
        req = extend.req
        if extend.is_new and req.cached_len < 0:
            req.cached_len = min(extend.start, req.prompt_len)
            req.started_at = time.monotonic()


def take_forced(req: Req) -> FinishReason | None:
    """Appends the tokens that must come next, if the request jumps. Why the request ends with them, if it does; a request
    that wants log probabilities has yet to get theirs, and ends when they are there (`Req.ending`)."""
    grammar = req.grammar
    if not req.jumps or grammar is None or req.in_reasoning or req.num_left <= 0:
        return None
    forced = grammar.forced_tokens()[: min(MAX_FORCED, req.num_left)]
    if not forced:
        return _stuck(req) if grammar.error is not None else None
    reason = _append(req, forced)
    if reason is not None and req.msg.logprobs is not None and reason.type != "abort":
        req.ending, reason = reason, None
    return reason


def _append(req: Req, forced: list[int]) -> FinishReason | None:
    """Appends up to the end of the request, if that is among them."""
    assert req.grammar is not None
    req.num_since_forced = 0
    reason, taken = None, 0
    while taken < len(forced) and reason is None and not req.finish.is_searching:
        req.output_ids.append(forced[taken])
        req.note_origin(FORCED)
        reason = _check(req, forced[taken])
        taken += 1
    if reason is not None and reason.type != "length":
        return reason
    if not req.grammar.accept_all(forced[:taken]):
        return _stuck(req)
    _leave_healed(req)
    if not req.finish.is_searching and req.grammar is not None and req.grammar.is_finished:
        return FinishReason("stop", matched=req.output_ids[-1])
    return reason


def _check(req: Req, token_id: int) -> FinishReason | None:
    try:
        return req.finish.check(token_id, len(req.output_ids))
    except RequestError as error:
        return abort_reason(error)


def _stuck(req: Req) -> FinishReason:
    detail = req.grammar.error if req.grammar is not None else None
    return abort_reason(GrammarError(f"the constraint cannot be followed any further{': ' + detail if detail else ''}"))


# --- drafts: how much of each is what was sampled ---------------------------------------------------------------------------


def commit_drafts(
    batch: ScheduleBatch, output: ForwardOutput, late: Collection[Req], reasons: dict[str, FinishReason | None]
) -> int:
    """Takes what was sampled after draft tokens, as far as the tokens before came out as drafted. The first token of each request
    has been taken; `reasons` says who ended with it, and who ends now. A request whose stop expressions are still searched for the token
    before takes no further one. Returns how many draft tokens came out."""
    bad, num_accepted = set(output.nan_rows), 0
    for at, (extend, i) in enumerate(batch.drafted, len(batch.sampled)):
        req, draft = extend.req, extend.draft
        assert draft is not None and req.hold is not None
        point = draft.points[i]
        new_ids = req.output_ids[extend.end - req.prompt_len :]
        if req in late or reasons[req.rid] is not None or req.finish.is_searching or new_ids != draft.ids[:point]:
            continue
        req.hold.kv_len = extend.end + point
        num_accepted += point - (draft.points[i - 1] if i else 0)
        token_id = int(output.next_ids[at])
        reasons[req.rid] = nan_reason() if at in bad else take_drafted(req, token_id, draft, i + 1)
    return num_accepted


def count_drafts(batch: ScheduleBatch, counts: dict[str, DraftCounts]) -> None:
    """Counts the drafts of a step whose tokens have been committed, for their requests and in `counts`, by proposer."""
    for extend, i in batch.drafted:
        if i == 0 and (draft := extend.draft) is not None:
            new_ids = extend.req.output_ids[extend.end - extend.req.prompt_len :]
            drafted_at = (draft.points[i - 1] if i else 0 for i in range(len(draft.points)))
            accepted = sum(at < len(new_ids) and new_ids[: at + 1] == draft.ids[: at + 1] for at in drafted_at)
            for each in (extend.req.drafts, counts.setdefault(draft.proposer, DraftCounts())):
                each.note(len(draft.points), accepted, len(draft.ids))
