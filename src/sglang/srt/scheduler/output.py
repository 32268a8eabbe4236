"""How one request's output grows: by the token sampled for it, and by those that its grammar leaves no choice about.

    sampled      {"                    a row of the model, a mask, a sample
    forced          name ":            appended at once; their rows are computed together in the next step
    sampled                  John      from the row of the last forced one

Forced tokens are the ones that the masks would have led to, one sample at a time: with jump-forward or without it, the output
is the same.
"""

from __future__ import annotations

from sglang.srt.errors import GrammarError, RequestError
from sglang.srt.messages import FinishReason
from sglang.srt.scheduler.finish import abort_reason
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.proposer import DraftStep

MAX_FORCED = 512
"""Tokens appended at once; what a grammar forces beyond that follows in later steps."""


def take_sampled(req: Req, token_id: int, expected: DraftStep | None = None) -> FinishReason | None:
    """Appends the sampled token and what is forced after it. Why the request ends with that, if it does. `expected`: the draft's
    token and what follows it."""
    if req.in_reasoning and req.finish.is_end_of_text(token_id):
        token_id = _end_reasoning(req)
    if req.proposer is not None and not req.in_reasoning:
        req.proposer.note_sampled(req, token_id)
    if expected is not None and expected.ids[0] == token_id:
        return _take_expected(req, expected)
    req.output_ids.append(token_id)
    req.num_since_forced += 1
    if req.in_reasoning:
        req.in_reasoning = token_id not in req.msg.grammar_after
    elif req.grammar is not None and not req.grammar.accept(token_id):
        return _stuck(req)
    reason = _check(req, token_id)
    if req.msg.healed and req.finish.skip_bytes == 0 and req.msg.sampling.grammar is None:
        req.grammar = None  # the prompt's end is said; the text goes on freely
    return _after_check(req, reason)


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
    """What follows the newest token, once it is known whether it stops the request."""
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
        if req.in_reasoning:
            req.in_reasoning = token_id not in req.msg.grammar_after
        elif req.grammar is not None and not req.grammar.accept(token_id):
            return _stuck(req)
        req.finish.note_sent(token_id)
        if req.msg.healed and req.finish.skip_bytes == 0 and req.msg.sampling.grammar is None:
            req.grammar = None
    return _after_check(req, req.finish.go_on(len(req.output_ids), req.msg.resumed_hold))


def _take_expected(req: Req, step: DraftStep) -> FinishReason | None:
    """The draft has followed the grammar already, and the request may go on after all these tokens."""
    for i, token_id in enumerate(step.ids):
        req.output_ids.append(token_id)
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
        reason = _check(req, forced[taken])
        taken += 1
    if reason is not None and reason.type != "length":
        return reason
    if not req.grammar.accept_all(forced[:taken]):
        return _stuck(req)
    if req.finish.is_searching:
        return None
    if req.grammar.is_finished:
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
