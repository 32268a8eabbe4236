"""A scheduler without a model: it speaks messages.py and says the prompt again, token by token.

It keeps the contract of TokenOut to the letter (totals, held and trimmed bytes, log probabilities, one final output for each
request), so that the server's own logic can be tested at full speed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sglang.srt.messages import (
    AbortReq,
    BatchEmbedOut,
    BatchTokenOut,
    ControlReply,
    EmbedOut,
    EmbedReq,
    FinishReason,
    FlushCacheReq,
    FromScheduler,
    LogprobOptions,
    Logprobs,
    PauseReq,
    Position,
    ProfileReq,
    SchedulerStats,
    StateReq,
    TokenizedReq,
    TokenOut,
    ToScheduler,
)
from sglang.srt.scheduler.profiling import Profiler
from sglang.srt.vocabulary import Vocabulary


def logprob_of(token_id: int, position: int) -> float:
    return -((token_id * 7 + position) % 97 + 1) / 16


def pack(positions: list[Position], options: LogprobOptions) -> Logprobs:
    nothing = ((0.0, 0),)
    tops = [p.top or nothing * options.top_num for p in positions]
    asked = [p.ids or nothing * len(options.token_ids) for p in positions]
    return Logprobs(
        np.array([p.token_id for p in positions], np.int32).tobytes(),
        np.array([np.nan if p.logprob is None else p.logprob for p in positions], np.float32).tobytes(),
        np.array([[i for _, i in top] for top in tops], np.int32).tobytes(),
        np.array([[x for x, _ in top] for top in tops], np.float32).tobytes(),
        np.array(options.token_ids, np.int32).tobytes(),
        np.array([[x for x, _ in ids] for ids in asked], np.float32).tobytes(),
    )


@dataclass
class Running:
    req: TokenizedReq
    ids: list[int] = field(default_factory=list)
    unsent: list[int] = field(default_factory=list)
    started: bool = False
    cached_len: int = 0


class EchoScheduler:
    """`tokens_per_step` > 1 makes outputs of several ids. `poison` is a rid whose generation fails with status 400."""

    def __init__(self, vocabulary: Vocabulary, tokens_per_step: int = 1) -> None:
        self.vocabulary = vocabulary
        self.tokens_per_step = tokens_per_step
        self.reply: Callable[[FromScheduler], None] = lambda message: None
        self.running: dict[str, Running] = {}
        self.received: list[ToScheduler] = []
        self.aborted: list[str] = []
        self.paused = False
        self.stuck = False
        self.profiler = Profiler()
        self.poison: str | None = None
        self.max_running: int | None = None
        self.unenforced: tuple[str, ...] = ()
        self.next_of: Callable[[TokenizedReq, int], int] = lambda req, i: req.input_ids[i % len(req.input_ids)]
        self._seen: set[tuple[int, ...]] = set()
        self._task: asyncio.Task[None] | None = None

    def send(self, message: ToScheduler) -> None:
        """What the manager calls."""
        self.received.append(message)
        if self.stuck:
            return
        if isinstance(message, TokenizedReq):
            assert message.sampling.max_new_tokens is not None
            assert message.rid not in self.running
            self.running[message.rid] = Running(message)
        elif isinstance(message, EmbedReq):
            ids = np.array(message.input_ids)
            vector = np.bincount(ids % 8, weights=ids, minlength=8).astype(np.float32)
            out = EmbedOut(message.rid, vector.tobytes())
            asyncio.get_running_loop().call_soon(self.reply, BatchEmbedOut([out]))
        elif isinstance(message, AbortReq):
            for rid in list(self.running) if message.all else [message.rid]:
                if rid in self.running:
                    self._abort(rid, message.message)
        elif isinstance(message, FlushCacheReq):
            self._seen.clear()
            self.reply(ControlReply(message.call_id, ok=not self.running, message="busy" if self.running else ""))
        elif isinstance(message, ProfileReq):
            self.reply(self.profiler.handle(message))
        elif isinstance(message, PauseReq):
            self.paused = message.pause
            self.reply(ControlReply(message.call_id))
        elif isinstance(message, StateReq):
            self.reply(
                ControlReply(message.call_id, stats=SchedulerStats(num_running=len(self.running), max_total_tokens=1000))
            )
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self.running and not self.stuck:
            await asyncio.sleep(0)
            if not self.paused:
                self.step()

    def step(self) -> None:
        outs = [out for running in list(self.running.values())[: self.max_running] if (out := self._step(running)) is not None]
        if outs:
            self.reply(BatchTokenOut(outs))

    def _abort(self, rid: str | None, message: str) -> None:
        assert rid is not None
        self.aborted.append(rid)
        running = self.running.pop(rid)
        finish = FinishReason("abort", message=message)
        asyncio.get_running_loop().call_soon(self.reply, BatchTokenOut([self._out(running, finish, 0, 0)]))

    def _step(self, running: Running) -> TokenOut | None:
        req = running.req
        if req.rid == self.poison:
            del self.running[req.rid]
            return TokenOut(req.rid, [], FinishReason("abort", message="a bad grammar", status_code=400))
        first = not running.started
        if first:
            running.started = True
            key = tuple(req.input_ids)
            running.cached_len = len(key) - 1 if key in self._seen else 0
            self._seen.add(key)
        finish, trim = None, 0
        for _ in range(self.tokens_per_step):
            finish, trim = self._advance(running)
            if finish is not None:
                break
        if finish is not None:
            del self.running[req.rid]
        elif not req.stream or self.unenforced:
            return None
        return self._out(running, finish, trim, 0 if finish is not None else self._hold(running))

    def _advance(self, running: Running) -> tuple[FinishReason | None, int]:
        sampling = running.req.sampling
        limit = sampling.max_new_tokens
        assert limit is not None
        if len(running.ids) >= limit:
            return FinishReason("length", length=limit), 0
        token_id = self.next_of(running.req, len(running.ids))
        running.ids.append(token_id)
        running.unsent.append(token_id)
        if token_id in self.vocabulary.eos_token_ids and not sampling.ignore_eos:
            skipped = sampling.skip_special_tokens and token_id in self.vocabulary.special_ids
            return FinishReason("stop", matched=token_id), 0 if skipped else len(self.vocabulary.token_bytes[token_id])
        text = self.vocabulary.text_bytes(running.ids, sampling.skip_special_tokens)
        for stop in sampling.stop:
            if (at := text.find(stop.encode())) >= 0:
                return FinishReason("stop", matched=stop), 0 if sampling.no_stop_trim else len(text) - at
        if len(running.ids) >= limit:
            return FinishReason("length", length=limit), 0
        return None, 0

    def _hold(self, running: Running) -> int:
        text = self.vocabulary.text_bytes(running.ids, running.req.sampling.skip_special_tokens)
        stops = [stop.encode() for stop in running.req.sampling.stop]
        return max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)

    def _out(self, running: Running, finish: FinishReason | None, trim: int, hold: int) -> TokenOut:
        req = running.req
        ids, running.unsent = running.unsent, []
        first = len(ids) == len(running.ids)
        options = req.logprobs
        base = len(req.input_ids) + len(running.ids) - len(ids)
        return TokenOut(
            rid=req.rid,
            ids=ids,
            finish=finish,
            hold_bytes=hold,
            trim_bytes=trim,
            prompt_len=len(req.input_ids),
            cached_len=running.cached_len,
            completion_len=len(running.ids),
            unenforced=self.unenforced if finish is not None and finish.type == "stop" else (),
            input_logprobs=self._input_logprobs(req, options) if options is not None and first else None,
            output_logprobs=pack([self._position(i, base + k, options) for k, i in enumerate(ids)], options)
            if options is not None
            else None,
        )

    def _input_logprobs(self, req: TokenizedReq, options: LogprobOptions) -> Logprobs:
        if options.start_len < 0:
            return Logprobs()
        positions = [self._position(i, at, options) for at, i in enumerate(req.input_ids)]
        positions[0] = Position(req.input_ids[0], None)
        return pack(positions[options.start_len :], options)

    @staticmethod
    def _position(token_id: int, at: int, options: LogprobOptions) -> Position:
        top = tuple((logprob_of(token_id, at) - k, token_id + k) for k in range(options.top_num))
        return Position(token_id, logprob_of(token_id, at), top, tuple((logprob_of(i, at), i) for i in options.token_ids))
