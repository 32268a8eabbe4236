"""The server's side of every request: from text to ids, to the scheduler, and back.

    GenerateReq --start--> Call --iterate--> GenerateOut, GenerateOut, ...
                    |                             ^
              TokenizedReq (one a sequence)    TokenOut
                    v                             |
                 send(...)   scheduler       handle(...)

Everything here runs on one event loop; only long texts are tokenized on another thread. A call that is cancelled, or whose
consumer goes away, aborts its sequences at once. A scheduler that dies ends all calls with EngineDeadError.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from sglang.srt.config import HttpOptions, TextOptions
from sglang.srt.errors import (
    DeadlineError,
    EngineAwayError,
    EngineDeadError,
    OverloadError,
    RequestError,
    SglangError,
    UnsupportedError,
)
from sglang.srt.media_item import without_pixels
from sglang.srt.messages import (
    AbortReq,
    BatchEmbedOut,
    BatchTokenOut,
    ControlReply,
    FinishReason,
    FlushCacheReq,
    FromScheduler,
    PauseReq,
    ProfileReq,
    SchedulerReady,
    SchedulerStats,
    StateReq,
    TokenizedReq,
    TokenOut,
    ToScheduler,
)
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.detokenizer import Detokenizer
from sglang.srt.server.embedding_calls import EmbeddingCalls, Vector
from sglang.srt.server.generate_req import GenerateOut, GenerateReq, for_each, rids_of, samples_of
from sglang.srt.server.metrics import Metrics
from sglang.srt.server.request_log import RequestLog
from sglang.srt.server.request_scope import current_scope
from sglang.srt.server.tokenization.healing import Healer
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from sglang.srt.server.tracing import Moments, Tracing
from sglang.srt.server.validation import check_request, fit_length

if TYPE_CHECKING:  # these need an image library, which a server of text does without
    from sglang.srt.server.multimodal.intake import MediaIntake, MediaPrompt

LONG_TEXT = 50_000
"""characters above which a call is tokenized on another thread"""
MAX_SEQUENCES = 16_384
CALL_SECONDS = 20.0


class _Sequence:
    """One sequence in flight."""

    __slots__ = ("call", "detokenizer", "first_at", "held", "index", "last_at", "prompt_len", "queue_time", "request", "said")

    def __init__(self, call: Call, index: int, request: TokenizedReq, detokenizer: Detokenizer | None) -> None:
        self.call = call
        self.index = index
        self.request = request
        self.prompt_len = len(request.input_ids)
        self.detokenizer = detokenizer
        self.first_at = 0.0
        self.last_at = 0.0
        self.queue_time = 0.0
        self.held: GenerateOut | None = None
        self.said = False


class Call:
    """The outputs of one GenerateReq as they come: `async for out in call`. Ends when every sequence has finished or the call
    is cancelled; raises the error of the first sequence that failed."""

    __slots__ = ("_error", "_manager", "_queue", "_timer", "_waiter", "name", "open", "started_at", "trace")

    def __init__(self, manager: TokenizerManager, name: str, started_at: float) -> None:
        self.name = name
        self._manager = manager
        self._queue: deque[GenerateOut] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: SglangError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.open: dict[str, _Sequence] = {}
        self.started_at = started_at
        self.trace: str | None = None

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> GenerateOut:
        while not self._queue:
            if self._error is not None:
                raise self._error
            if not self.open:
                raise StopAsyncIteration
            await self._wait()
        return self._queue.popleft()

    async def ready(self, timeout: float) -> None:
        """Waits for the first output, at most `timeout` seconds. Raises if the call has failed by then."""
        if not self._queue and self._error is None and self.open:
            timer = asyncio.get_running_loop().call_later(timeout, self._wake)
            try:
                await self._wait()
            finally:
                timer.cancel()
        if self._error is not None and not self._queue:
            raise self._error

    def cancel(self) -> None:
        """Aborts what still runs. Nothing more comes."""
        if self.open:
            self._manager.drop(self, "the client went away")
        self._wake()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def limit(self, seconds: float | None) -> None:
        """Lets the call fail with DeadlineError if it has not ended `seconds` after it came."""
        if seconds is not None:
            left = max(self.started_at + seconds - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(left, self._expire, seconds)

    def _expire(self, seconds: float) -> None:
        if self.open:
            message = f"the request was not finished after {seconds:g} s"
            self._manager.drop(self, message)
            self.fail(DeadlineError(message))

    def closed(self) -> None:
        """Called when the last sequence has gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def put(self, out: GenerateOut) -> None:
        self._queue.append(out)
        self._wake()

    def fail(self, error: SglangError) -> None:
        self._error = error
        self._wake()


class TokenizerManager:
    """Owns all calls in flight. `send` hands a message to the scheduler; whoever receives gives its messages to `handle`, on
    the event loop. `info` is forward_batch.ModelInfo as a dict. Without a tokenizer only ids go in and out.
    `media` takes images and videos, for models that see."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        info: dict[str, Any],
        http: HttpOptions,
        text: TextOptions,
        send: Callable[[ToScheduler], None],
        media: MediaIntake | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.media = media
        self.info = info
        self.http = http
        self.text = text
        self.stats = SchedulerStats()
        self.metrics = Metrics(http.served_model_name) if http.enable_metrics else None
        self._send = send
        self._log = RequestLog(http.log_requests, http.log_requests_level)
        self._sequences: dict[str, _Sequence] = {}
        self._calls: dict[str, Call] = {}
        self._controls: dict[int, asyncio.Future[ControlReply]] = {}
        self._embeddings = EmbeddingCalls(send)
        self._control_ids = itertools.count(1)
        self._death: str | None = None
        self._healer: Healer | None = None
        self.tracing = Tracing(http.otlp_traces_endpoint, http.served_model_name) if http.otlp_traces_endpoint else None
        self.draining = False
        self._heard_at = 0.0
        self._longest_token = max(map(len, tokenizer.vocabulary.token_bytes)) if tokenizer is not None else 1

    # --- requests -----------------------------------------------------------------------------------------------------------

    @property
    def context_len(self) -> int:
        """Longest sequence the model and its KV pool take."""
        return min(int(self.info["context_len"]), int(self.info["max_total_tokens"]))

    @property
    def num_in_flight(self) -> int:
        return len(self._sequences) + self._embeddings.num_in_flight

    def need_tokenizer(self) -> Tokenizer:
        """Raises RequestError if the server runs without one."""
        if self.tokenizer is None:
            raise RequestError("this server runs without a tokenizer: send input_ids, and no text, stop strings or messages")
        return self.tokenizer

    async def start(self, req: GenerateReq) -> Call:
        """Checks the request and hands its sequences to the scheduler. Raises RequestError, or EngineDeadError while there is
        no scheduler."""
        self._check_alive()
        if self.info.get("embedding_dim"):
            raise RequestError("this server embeds and does not generate: use /v1/embeddings")
        prompts = await self._tokenize(req)
        media = await self._take_media(req, prompts) if req.media is not None else {}
        requests = self._expand(req, prompts, media)
        self._check_alive()  # it may have died while a long text was tokenized
        name = req.rid if isinstance(req.rid, str) else requests[0].rid
        if name in self._calls or any(r.rid in self._sequences for r in requests):
            raise RequestError(f"a request with the rid {name!r} is already running", "rid")
        scope = current_scope()
        call = Call(self, name, scope.arrived_at)
        call.trace = scope.trace
        call.limit(min((t for t in (scope.timeout, self.http.request_timeout) if t is not None), default=None))
        vocabulary = self.tokenizer.vocabulary if self.tokenizer is not None else None
        for index, request in enumerate(requests):
            drop = len(request.healed.encode())
            detokenizer = (
                Detokenizer(vocabulary, request.sampling.skip_special_tokens, drop) if vocabulary is not None else None
            )
            kept = msgspec.structs.replace(request, media=()) if request.media else request  # pixels are not needed again
            sequence = _Sequence(call, index, kept, detokenizer)
            self._sequences[request.rid] = call.open[request.rid] = sequence
        self._calls[name] = call
        try:
            for request in requests:
                self._send(request)
                self._log.received(request)
        except BaseException:
            call.cancel()  # nothing of it stays behind
            raise
        if self.metrics is not None:
            self.metrics.received(requests)
        return call

    async def generate(self, req: GenerateReq) -> AsyncIterator[GenerateOut]:
        """`start` and iterate; the sequences are aborted when the consumer stops early."""
        call = await self.start(req)
        try:
            async for out in call:
                yield out
        finally:
            call.cancel()

    async def _tokenize(self, req: GenerateReq) -> list[list[int]]:
        if req.input_ids is not None:
            if req.text is not None:
                raise RequestError("give either text or input_ids, not both", "text")
            ids: Any = req.input_ids if req.is_batch else [req.input_ids]
            return [list(prompt) for prompt in ids]
        if req.text is None:
            raise RequestError("the request has no prompt: give text or input_ids", "text")
        tokenizer = self.need_tokenizer()
        texts = [self._check_size(text) for text in ([req.text] if isinstance(req.text, str) else req.text)]
        if sum(map(len, texts)) > LONG_TEXT:
            return await asyncio.to_thread(tokenizer.encode_batch, texts, req.add_special_tokens)
        return [tokenizer.encode(text, req.add_special_tokens) for text in texts]

    async def _take_media(self, req: GenerateReq, prompts: list[list[int]]) -> dict[int, MediaPrompt]:
        """The prompts that have media, with these in place, by number. Raises RequestError."""
        assert req.media is not None
        if self.media is None:
            raise UnsupportedError("this model reads text only: it cannot take images or videos", "image_data")
        if len(req.media) != len(prompts):
            raise RequestError(f"there are media for {len(req.media)} prompts, and {len(prompts)} prompts", "image_data")
        for inputs in req.media:
            self.media.check(inputs)
        return {i: await self.media.take(prompts[i], inputs) for i, inputs in enumerate(req.media) if inputs}

    def _check_size(self, text: str) -> str:
        """Refuses, or truncates where that is allowed, what cannot fit however it is tokenized: before the work is done."""
        if len(text) <= self.max_chars:
            return text
        if self.http.allow_auto_truncate:
            return text[: self.max_chars]
        raise RequestError(
            f"the prompt has {len(text)} characters, more than {self.context_len} tokens (the context length) can hold", "text"
        )

    @property
    def max_chars(self) -> int:
        """No text longer than this fits in the context."""
        return self.context_len * self._longest_token

    def _expand(self, req: GenerateReq, prompts: list[list[int]], media: dict[int, MediaPrompt]) -> list[TokenizedReq]:
        """One TokenizedReq for every sample of every prompt."""
        if not prompts:
            raise RequestError("the batch is empty", "text" if req.input_ids is None else "input_ids")
        samplings = for_each("sampling_params", req.sampling, len(prompts))
        logprobs = for_each("logprobs", req.logprobs, len(prompts))
        rids = rids_of(req.rid, len(prompts), req.is_batch)
        if sum(s.n for s in samplings) > MAX_SEQUENCES:
            raise RequestError(f"a request may ask for at most {MAX_SEQUENCES} sequences")
        scope = current_scope()
        requests: list[TokenizedReq] = []
        for i, (prompt, sampling, options, rid) in enumerate(zip(prompts, samplings, logprobs, rids, strict=True)):
            seen = media.get(i)
            ids = seen.ids if seen is not None else prompt or self._empty_prompt()
            check_request(ids, sampling, options, int(self.info["vocab_size"]), has_text=self.tokenizer is not None)
            may_cut = self.http.allow_auto_truncate and seen is None
            ids, fitted = fit_length(ids, sampling, self.context_len, req.max_new_tokens_is_default, may_cut)
            items = seen.items if seen is not None else ()
            ids, healed = self._heal(ids) if req.token_healing and seen is None else (ids, "")
            for name, choice in samples_of(rid, fitted):
                requests.append(
                    TokenizedReq(
                        rid=name,
                        input_ids=ids,
                        sampling=choice,
                        logprobs=options,
                        stream=req.stream,
                        group=rid if sampling.n > 1 else None,
                        cache_salt=req.cache_salt,
                        priority=req.priority,
                        grammar_after=req.grammar_after,
                        media=items,
                        rope_positions=seen.rope_positions if seen is not None else b"",
                        rope_delta=seen.rope_delta if seen is not None else 0,
                        healed=healed,
                        client=scope.client,
                        received_at=scope.arrived_at,
                    )
                )
                items = tuple(without_pixels(item) for item in items)  # those of one prompt follow each other
        return requests

    def _heal(self, ids: list[int]) -> tuple[list[int], str]:
        """The prompt without the tokens at its end that the output begins anew, and their text."""
        if self._healer is None:
            self._healer = Healer(self.need_tokenizer().vocabulary)
        return self._healer.heal(ids)

    def _empty_prompt(self) -> list[int]:
        """What an empty text means: the token that begins a text, or for want of one a token that ends one."""
        vocabulary = self.tokenizer.vocabulary if self.tokenizer is not None else None
        if vocabulary is not None and vocabulary.bos_token_id is not None:
            return [vocabulary.bos_token_id]
        if vocabulary is not None and vocabulary.eos_token_ids:
            return [min(vocabulary.eos_token_ids)]
        raise RequestError("the prompt is empty", "text")

    # --- ends of requests ---------------------------------------------------------------------------------------------------

    def abort(self, rid: str, message: str = "the request was aborted") -> None:
        """Aborts a sequence, or all sequences of a call. Whoever waits gets the final output. An unknown rid is ignored."""
        call = self._calls.get(rid)
        for name in list(call.open) if call is not None else [rid] if rid in self._sequences else []:
            self._send(AbortReq(rid=name, message=message))
        self._embeddings.abort(rid)

    def abort_all(self, message: str = "the request was aborted") -> None:
        self._send(AbortReq(all=True, message=message))

    def drop(self, call: Call, message: str) -> None:
        """Aborts a call that nobody listens to any more."""
        for rid, sequence in list(call.open.items()):
            self._log.dropped(sequence.request, message)
            if self.tracing is not None:
                self._trace(sequence, "abort", sequence.prompt_len, 0)
            self._forget(call, rid)
            if self._death is None:
                self._send(AbortReq(rid=rid, message=message))
            if self.metrics is not None:
                self.metrics.aborted()

    def _forget(self, call: Call, rid: str) -> None:
        self._sequences.pop(rid, None)
        call.open.pop(rid, None)
        if not call.open:
            self._calls.pop(call.name, None)
            call.closed()

    # --- embeddings ---------------------------------------------------------------------------------------------------------

    def need_embedder(self) -> None:
        """Raises RequestError unless the model embeds."""
        if not self.info.get("embedding_dim"):
            raise RequestError("this model generates: start the server with --is-embedding, or with an encoder, to embed")

    async def embed(self, texts: list[list[int]], rids: list[str] | None = None) -> list[Vector]:
        """A vector for each text. Raises RequestError for texts that do not fit."""
        self._check_alive()
        self.need_embedder()
        limit = int(self.info["context_len"])
        for ids in texts:
            if len(ids) > limit:
                raise RequestError(f"a text has {len(ids)} tokens; the model takes at most {limit}", "input")
        return await self._embeddings.embed(texts, rids)

    # --- messages of the scheduler ------------------------------------------------------------------------------------------

    def handle(self, message: FromScheduler) -> None:
        """Takes one message of the scheduler. To be called on the event loop."""
        if isinstance(message, BatchTokenOut):
            self._heard_at = time.monotonic()
            for out in message.outs:
                self._on_output(out)
        elif isinstance(message, BatchEmbedOut):
            self._heard_at = time.monotonic()
            self._embeddings.handle(message)
        elif isinstance(message, SchedulerStats):
            self._on_stats(message)
        elif isinstance(message, ControlReply):
            if message.stats is not None:
                self._on_stats(message.stats)
            future = self._controls.pop(message.call_id, None)
            if future is not None and not future.done():
                future.set_result(message)
        elif isinstance(message, SchedulerReady):
            self.scheduler_restarted(message.info)
        else:
            self.scheduler_died(message.message)

    def _on_output(self, token_out: TokenOut) -> None:
        sequence = self._sequences.get(token_out.rid)
        if sequence is None:
            return  # dropped meanwhile
        call = sequence.call
        out = GenerateOut(
            index=sequence.index,
            rid=token_out.rid,
            text=sequence.detokenizer.feed(token_out) if sequence.detokenizer is not None else "",
            ids=token_out.ids,
            finish=token_out.finish,
            prompt_len=token_out.prompt_len or sequence.prompt_len,
            cached_len=token_out.cached_len,
            completion_len=token_out.completion_len,
            input_logprobs=token_out.input_logprobs,
            output_logprobs=token_out.output_logprobs,
            num_retractions=token_out.num_retractions,
            seconds=self._heard_at - call.started_at,
        )
        self._note_times(sequence, token_out)
        self._log.said(out)
        if out.finish is not None:
            self._finish(sequence, out)
        elif self._is_due(sequence, out):
            call.put(self._with_held(sequence, out))

    def _is_due(self, sequence: _Sequence, out: GenerateOut) -> bool:
        """Whether to report now: the first token, then every `stream_interval` tokens."""
        held = len(sequence.held.ids) if sequence.held is not None else 0
        if held + len(out.ids) < self.http.stream_interval and sequence.said:
            sequence.held = self._with_held(sequence, out)
            return False
        sequence.said = True
        return True

    @staticmethod
    def _with_held(sequence: _Sequence, out: GenerateOut) -> GenerateOut:
        held, sequence.held = sequence.held, None
        return out if held is None else held.join(out)

    def _finish(self, sequence: _Sequence, out: GenerateOut) -> None:
        call = sequence.call
        self._forget(call, out.rid)
        assert out.finish is not None
        first = sequence.first_at - call.started_at if sequence.first_at else None
        self._log.finished(sequence.request, out, first, sequence.queue_time)
        if self.metrics is not None:
            self.metrics.finished(out, first, sequence.request.sampling.grammar is not None)
        if self.tracing is not None:
            self._trace(sequence, out.finish.type, out.prompt_len, out.completion_len)
        error = _error_of(out.finish)
        if error is None:
            call.put(self._with_held(sequence, out))
        else:
            self.drop(call, "another sequence of the same request failed")
            call.fail(error)

    def _note_times(self, sequence: _Sequence, token_out: TokenOut) -> None:
        if not token_out.ids:
            return
        now, count = self._heard_at, len(token_out.ids)
        if not sequence.first_at:
            call_began = sequence.call.started_at
            # without a stream all tokens come at once; the scheduler knows when there was the first
            sequence.first_at = sequence.last_at = call_began + token_out.first_time if token_out.first_time else now
            sequence.queue_time = token_out.queue_time
            if self.metrics is not None:
                self.metrics.first_token(sequence.first_at - call_began, token_out.queue_time)
            count -= 1
        if count and self.metrics is not None:
            self.metrics.next_tokens(now - sequence.last_at, count)
        sequence.last_at = now

    def _trace(self, sequence: _Sequence, reason: str, prompt_len: int, completion_len: int) -> None:
        assert self.tracing is not None
        arrived = sequence.call.started_at
        started = arrived + sequence.queue_time if sequence.first_at else 0.0
        facts = {
            "gen_ai.response.finish_reasons": (reason,),
            "gen_ai.usage.input_tokens": prompt_len,
            "gen_ai.usage.output_tokens": completion_len,
        }
        moments = Moments(arrived, started, sequence.first_at, time.monotonic())
        self.tracing.ended(sequence.request, moments, sequence.call.trace, facts)

    def _on_stats(self, stats: SchedulerStats) -> None:
        self.stats = stats
        if self.metrics is not None:
            self.metrics.scheduler(stats)

    def scheduler_died(self, message: str) -> None:
        """Ends all calls with EngineDeadError; new ones are refused until `scheduler_restarted`."""
        self._death = message
        self._embeddings.fail(EngineDeadError(message))
        for sequence in self._sequences.values():
            self._log.dropped(sequence.request, message)
        calls = {id(s.call): s.call for s in self._sequences.values()}
        self._sequences.clear()
        self._calls.clear()
        for call in calls.values():
            call.open.clear()
            call.closed()
            call.fail(EngineDeadError(message))
        for future in self._controls.values():
            if not future.done():
                future.set_exception(EngineDeadError(message))
        self._controls.clear()

    def scheduler_restarted(self, info: dict[str, Any]) -> None:
        self.info = info
        self._death = None

    def _check_alive(self) -> None:
        if self.draining:
            raise OverloadError("the server is shutting down")
        if self._death is not None:
            raise EngineAwayError(self._death)

    # --- control ------------------------------------------------------------------------------------------------------------

    async def flush_cache(self) -> ControlReply:
        return await self._control(FlushCacheReq)

    async def pause(self, pause: bool) -> ControlReply:
        return await self._control(lambda call_id: PauseReq(call_id, pause))

    async def profile(self, start: bool) -> ControlReply:
        return await self._control(lambda call_id: ProfileReq(call_id, start))

    async def state(self) -> SchedulerStats:
        await self._control(StateReq)
        return self.stats

    async def _control(self, make: Callable[[int], ToScheduler]) -> ControlReply:
        """Asks and waits. Raises OverloadError without an answer in time, EngineDeadError if the scheduler dies."""
        self._check_alive()
        call_id = next(self._control_ids)
        future: asyncio.Future[ControlReply] = asyncio.get_running_loop().create_future()
        self._controls[call_id] = future
        self._send(make(call_id))
        try:
            return await asyncio.wait_for(future, CALL_SECONDS)
        except asyncio.TimeoutError as error:
            raise OverloadError(f"the scheduler did not answer within {CALL_SECONDS:g} s") from error
        finally:
            self._controls.pop(call_id, None)

    @property
    def is_alive(self) -> bool:
        return self._death is None

    @property
    def status(self) -> str:
        """ready, draining or broken; while the model loads there is no manager, and the server says "starting"."""
        return "draining" if self.draining else "broken" if self._death is not None else "ready"

    async def health(self, timeout: float = 20.0) -> bool:
        """Whether the engine generates: any output within `timeout` seconds of asking for one token."""
        if not self.is_alive:
            return False
        if self.info.get("embedding_dim"):
            return await self._embeds(timeout)
        asked = time.monotonic()
        sampling = SamplingParams(max_new_tokens=1, temperature=0.0)
        call = await self.start(GenerateReq(input_ids=[0], sampling=sampling, rid=f"HEALTH_CHECK_{uuid4().hex}"))
        try:
            while time.monotonic() - asked < timeout:
                await call.ready(0.5)
                if self._heard_at > asked:
                    return True
        except SglangError:
            return False
        finally:
            call.cancel()
        return False

    async def _embeds(self, timeout: float) -> bool:
        try:
            return bool(await asyncio.wait_for(self.embed([[0]]), timeout))
        except (SglangError, asyncio.TimeoutError):
            return False


def _error_of(finish: FinishReason) -> SglangError | None:
    """The error behind an abort; None for an abort that somebody asked for, which is an ordinary end."""
    if finish.type != "abort" or finish.status_code is None:
        return None
    message = finish.message or "the request was aborted"
    if finish.status_code == 503:
        return OverloadError(message)
    return RequestError(message) if finish.status_code < 500 else EngineDeadError(message)
