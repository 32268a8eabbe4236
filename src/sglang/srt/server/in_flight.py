"""The calls in flight: sends their sequences to the scheduler, and delivers its outputs to their callers.

    Call --begin--> its Sequences --TokenizedReq--> scheduler --TokenOut--> handle --GenerateOut--> Call

Each sequence ends once: with the scheduler's last output, with an abort, or when no scheduler is left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from sglang.srt.config import HttpOptions
from sglang.srt.errors import DeadlyRequestError, EngineDeadError, OverloadError, RequestError, SglangError
from sglang.srt.messages import (
    AbortReq,
    BatchTokenOut,
    FinishReason,
    SchemaCheck,
    TokenizedReq,
    TokenOut,
    ToScheduler,
)
from sglang.srt.server.calls import Call, Progress, Sequence
from sglang.srt.server.generate_req import GenerateOut
from sglang.srt.server.limits.parameter_room import ParameterRoom
from sglang.srt.server.resuming import Resuming
from sglang.srt.server.schema_checks import MAX_RETRIES, SchemaChecks, answer_of, is_cut, next_attempt
from sglang.srt.server.telemetry.call_records import CallRecords
from sglang.srt.server.tokenization.detokenizer import Detokenizer
from sglang.srt.server.tokenization.tokenizer import Tokenizer

AT_ONCE = 200
"""sequences of one call that are taken in before others have their turn"""


class InFlight:
    """Owner of all calls in flight and their sequences. `send` hands a message to the scheduler. Without a tokenizer the outputs
    have ids and no text. Everything runs on one event loop."""

    def __init__(
        self, tokenizer: Tokenizer | None, http: HttpOptions, records: CallRecords, send: Callable[[ToScheduler], None]
    ) -> None:
        self._tokenizer = tokenizer
        self._stream_interval = http.stream_interval
        self._records = records
        self._send = send
        self._sequences: dict[str, Sequence] = {}
        self._calls: dict[str, Call] = {}
        self._parameters = ParameterRoom(bounded=http.max_text_tokens is not None)
        self._resuming = Resuming(send, self._end)
        self._schema_checks = SchemaChecks()
        self._answer_checks: set[asyncio.Task[None]] = set()
        self._heard_at = 0.0
        self.has_scheduler = True
        """False from a scheduler's death until the next one is ready"""

    def __len__(self) -> int:
        """Sequences that have not ended."""
        return len(self._sequences)

    def __contains__(self, key: str) -> bool:
        """Whether a call with this key (generate_req.wire_rid) runs."""
        return key in self._calls

    def close(self) -> None:
        """Ends its child processes."""
        self._schema_checks.close()

    # --- begin --------------------------------------------------------------------------------------------------------------

    async def begin(self, call: Call, requests: list[TokenizedReq]) -> None:
        """Enters a call and sends its sequences, AT_ONCE of them at a time. Raises RequestError or OverloadError and leaves nothing of
        it behind."""
        self._calls[call.key] = call
        try:
            for at in range(0, len(requests), AT_ONCE):
                self._open(call, requests[at : at + AT_ONCE], at)
                if len(requests) > AT_ONCE:
                    await asyncio.sleep(0)
            if call.received:
                self._repeat(call, requests)
            for at in range(0, len(requests), AT_ONCE):
                if at:
                    await asyncio.sleep(0)
                self._hand_over(call, requests[at : at + AT_ONCE])
        except BaseException:
            call.cancel()
            self._calls.pop(call.key, None)
            raise

    def _open(self, call: Call, requests: list[TokenizedReq], first_index: int) -> None:
        """Enters sequences of a call. Raises RequestError if one of their names is taken, OverloadError if they are too much."""
        vocabulary = self._tokenizer.vocabulary if self._tokenizer is not None else None
        taken = next((r.rid for r in requests if r.rid in self._sequences), None)
        if taken is not None:
            raise RequestError(f"a request with the rid {taken[:100]!r} is already running", "rid")
        for index, request in enumerate(requests, first_index):
            drop, sampling = len(request.healed.encode()), request.sampling
            detokenizer = None
            if vocabulary is not None:
                detokenizer = Detokenizer(vocabulary, sampling.skip_special_tokens, drop, sampling.spaces_specials)
            if not sampling.is_short:
                self._parameters.take(request)
            kept = self._resuming.keep(request) if request.media else request
            sequence = Sequence(call, index, kept, detokenizer)
            self._sequences[request.rid] = call.open[request.rid] = sequence

    def _hand_over(self, call: Call, requests: list[TokenizedReq]) -> None:
        """Sends them to the scheduler, unless the call has failed meanwhile or they were aborted. Without a scheduler they go along
        with those that are resumed."""
        for request in requests:
            sequence = call.open.get(request.rid)
            if sequence is not None:
                if self.has_scheduler and not sequence.progress.is_sent:
                    sequence.progress.is_sent = True
                    self._send(sequence.progress.continued(request))
                self._records.handed_over(request)

    def _repeat(self, call: Call, requests: list[TokenizedReq]) -> None:
        """Gives the call what another server gave before; its sequences go on behind that."""
        now = time.monotonic()
        for out in call.received:
            index = int(out.rid)
            if index < len(requests):
                self._on_output(msgspec.structs.replace(out, rid=requests[index].rid), now)
        call.received = []
        for sequence in call.open.values():
            sequence.progress.was_sent = sequence.progress.last is not None

    # --- ends ---------------------------------------------------------------------------------------------------------------

    def replace(self, key: str) -> None:
        """Drops the call with this key, if there is one: the same request comes again, and nobody waits for the earlier one any more."""
        call = self._calls.get(key)
        if call is not None:
            call.cancel()

    def abort(self, key: str, message: str) -> None:
        """Aborts a sequence, or all sequences of a call, by its key (generate_req.wire_rid). Its caller gets the final output. An
        unknown key is ignored."""
        call = self._calls.get(key)
        for name in list(call.open) if call is not None else [key] if key in self._sequences else []:
            if self._note_abort(self._sequences[name], message):
                self._send(AbortReq(rid=name, message=message))

    def abort_all(self, message: str) -> None:
        """Aborts all that the scheduler works on, texts to embed among them."""
        for sequence in list(self._sequences.values()):
            self._note_abort(sequence, message)
        if self.has_scheduler:
            self._send(AbortReq(all=True, message=message))

    def _note_abort(self, sequence: Sequence, message: str) -> bool:
        """True when it is for the scheduler to end the sequence; one that no scheduler has ends here."""
        sequence.progress.aborted = message
        if not sequence.progress.is_sent:
            self._end(sequence, FinishReason("abort", message=message))
        return sequence.progress.is_sent

    def _end(self, sequence: Sequence, finish: FinishReason) -> None:
        """Ends a sequence with the output so far, without a scheduler."""
        rid = sequence.request.rid
        if self._sequences.get(rid) is sequence:
            out = TokenOut(rid, [], finish, prompt_len=sequence.prompt_len, completion_len=len(sequence.progress.ids))
            self._on_output(out, time.monotonic())

    def drop(self, call: Call, message: str) -> None:
        """Aborts a call that has no consumer any more."""
        for rid, sequence in list(call.open.items()):
            self._records.dropped(sequence, message)
            self._forget(call, rid)
            if self.has_scheduler and sequence.progress.is_sent:
                self._records.expect_last(sequence)
                self._send(AbortReq(rid=rid, message=message))

    def _forget(self, call: Call, rid: str) -> None:
        sequence = self._sequences.pop(rid, None)
        if sequence is not None:
            sequence.progress.is_over = True
            if sequence.request.media or sequence.progress.num_deaths:
                self._resuming.forget(sequence)
            if self._parameters.held:
                self._parameters.give_back(rid)
        call.open.pop(rid, None)
        if not call.open:
            self._calls.pop(call.key, None)
            call.closed()

    # --- outputs of the scheduler -------------------------------------------------------------------------------------------

    def handle(self, message: BatchTokenOut, now: float) -> None:
        """Takes what came from the scheduler at `now` (time.monotonic())."""
        self._heard_at = now
        for out in message.outs:
            if not (self._records.leaving and self._records.take_last(out)):
                self._on_output(out, now)

    def _on_output(self, token_out: TokenOut, now: float) -> None:
        sequence = self._sequences.get(token_out.rid)
        if sequence is None:
            return  # dropped meanwhile
        if token_out.unenforced:
            sequence.progress = Progress()  # its client has seen nothing, and the scheduler has forgotten it
            task = asyncio.create_task(self._check_answer(sequence, token_out))
            self._answer_checks.add(task)
            task.add_done_callback(self._answer_checks.discard)
            return
        if sequence is self._resuming.on_trial:
            self._resuming.heard()
        token_out = sequence.progress.note(token_out)
        call = sequence.call
        out = GenerateOut(
            index=sequence.index,
            rid=sequence.rid,
            text=sequence.detokenizer.feed(token_out) if sequence.detokenizer is not None else "",
            ids=token_out.ids,
            finish=token_out.finish,
            prompt_len=token_out.prompt_len or sequence.prompt_len,
            cached_len=token_out.cached_len,
            completion_len=token_out.completion_len,
            input_logprobs=token_out.input_logprobs,
            output_logprobs=token_out.output_logprobs,
            origins=token_out.origins,
            num_retractions=token_out.num_retractions,
            drafts=token_out.drafts,
            seconds=now - call.started_at,
            unsaid_bytes=token_out.hold_bytes if token_out.finish is None else token_out.trim_bytes,
        )
        if call.turn is not None:
            call.turn.add(out.ids)
        if self._records.notes_all or not sequence.first_at:
            self._records.said(sequence, token_out, out, self._heard_at)
        if out.finish is not None:
            self._finish(sequence, out)
        elif call.received:
            sequence.said = True
            call.repeat(out)
        elif (due := sequence.due(out, self._stream_interval)) is not None:
            call.put(due)

    async def _check_answer(self, sequence: Sequence, token_out: TokenOut) -> None:
        """Hands on an answer that is valid; of others the next one is generated, as often as that is worth it."""
        request, sampling = sequence.request, sequence.request.sampling
        assert self._tokenizer is not None and sampling.json_schema is not None and token_out.finish is not None
        answer = answer_of(token_out, request, self._tokenizer.vocabulary)
        verdict = await self._schema_checks.verdict(sampling.json_schema, answer)
        if self._sequences.get(request.rid) is not sequence or sequence.progress.is_sent:
            return  # dropped, or begun anew with another scheduler
        sequence.num_attempts += 1
        cut = is_cut(token_out, request, self._tokenizer.vocabulary)
        if not cut and verdict.error is not None and not verdict.is_final and sequence.num_attempts <= MAX_RETRIES:
            sequence.num_discarded += token_out.completion_len
            self._records.discarded(token_out)
            sequence.request = next_attempt(request, sequence.num_attempts)
            if self.has_scheduler:
                self._resuming.begin_anew(sequence)
            return
        check = SchemaCheck(token_out.unenforced, sequence.num_attempts, verdict.error, sequence.num_discarded)
        finish = msgspec.structs.replace(token_out.finish, check=None if cut and not verdict.is_whole else check)
        self._on_output(msgspec.structs.replace(token_out, finish=finish, unenforced=()), time.monotonic())

    def _finish(self, sequence: Sequence, out: GenerateOut) -> None:
        call = sequence.call
        assert out.finish is not None
        error = _error_of(out.finish)
        if call.turn is not None and error is None:
            call.turn.finish()
            call.turn = None
        self._forget(call, sequence.request.rid)
        self._records.finished(sequence, out)
        if error is None and call.received:
            call.repeat(out)
        elif error is None:
            call.put(sequence.with_held(out))
        else:
            self.drop(call, "another sequence of the same request failed")
            call.fail(error)

    # --- deaths of schedulers -----------------------------------------------------------------------------------------------

    def scheduler_lost(self, is_explained: bool) -> None:
        """The scheduler has died, and another is on its way: sequences are kept for it (see Resuming.note_death)."""
        self.has_scheduler = False
        self._resuming.note_death(list(self._sequences.values()), is_explained)

    def replica_lost(self, names: list[str], is_explained: bool) -> int:
        """One of several schedulers has died, and with it these sequences. The others continue them. Returns how many."""
        waiting = self._resuming.suspects
        lost = [self._sequences[name] for name in names if name in self._sequences]
        self._resuming.note_death(lost, is_explained)
        return self._resuming.resume([s for s in (*lost, *waiting) if not s.progress.is_over])

    def scheduler_restarted(self) -> int:
        """There is a scheduler: it is sent all sequences. Returns how many another one had."""
        self.has_scheduler = True
        return self._resuming.resume(self._sequences.values())

    def scheduler_died(self, message: str, error: type[SglangError] = EngineDeadError) -> None:
        """Ends all calls with an error."""
        self.has_scheduler = False
        for sequence in self._sequences.values():
            self._records.lost(sequence, message)
        calls = {id(s.call): s.call for s in self._sequences.values()}
        self._resuming.clear()
        self._parameters.clear()
        self._sequences.clear()
        self._calls.clear()
        for call in calls.values():
            call.open.clear()
            call.closed()
            call.fail(error(message))


def _error_of(finish: FinishReason) -> SglangError | None:
    """The error behind an abort; None for an abort that a client or operator asked for, which is an ordinary end."""
    if finish.type != "abort" or finish.status_code is None:
        return None
    message = finish.message or "the request was aborted"
    if finish.status_code == 503:
        return OverloadError(message)
    return RequestError(message) if finish.status_code < 500 else DeadlyRequestError(message)
