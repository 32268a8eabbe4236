"""The caller's handle of a request in flight: a Call with one Sequence for each sample of each prompt.

The manager fills a call (`put`, `fail`) and its consumer iterates it; a consumer that stops early cancels it, which aborts the
sequences that still run. Everything happens on one event loop; `forward` is for a consumer on another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from sglang.srt.errors import DeadlineError, SglangError
from sglang.srt.messages import TokenizedReq, TokenOut
from sglang.srt.process.relay import End, LoopShare, Relay
from sglang.srt.server.generate_req import GenerateOut, JoinedOut, UnreadOuts, own_rid
from sglang.srt.server.http.journal import output_line
from sglang.srt.server.sessions import Turn
from sglang.srt.server.tokenization.detokenizer import Detokenizer


class Progress(msgspec.Struct, eq=False):
    """The progress of a sequence. `ids`: output tokens that came, `last`: the last output. `is_sent`: a scheduler has it,
    `was_sent`: one that died had it. `aborted`: for which reason the scheduler was told to abort it."""

    ids: list[int] = []  # each its own: msgspec copies it
    last: TokenOut | None = None
    is_sent: bool = False
    was_sent: bool = False
    aborted: str | None = None
    is_over: bool = False
    num_deaths: int = 0

    @property
    def cached_len(self) -> int:
        return self.last.cached_len if self.last is not None else 0

    @property
    def hold_bytes(self) -> int:
        return self.last.hold_bytes if self.last is not None else 0

    def continued(self, request: TokenizedReq) -> TokenizedReq:
        """The request as the next scheduler gets it."""
        if not self.was_sent:
            return request
        return msgspec.structs.replace(request, resumed=tuple(self.ids), resumed_hold=self.hold_bytes)

    def note(self, out: TokenOut) -> TokenOut:
        """Takes an output. What the client has from a scheduler before (prompt log probabilities) is left out."""
        if self.was_sent and self.last is not None:
            out = msgspec.structs.replace(out, input_logprobs=None, cached_len=self.cached_len)
        self.ids += out.ids
        self.last = out
        return out


class Sequence:
    """One sequence in flight, and the times of its outputs. `rid` is its name for the client, `request.rid` for the scheduler."""

    __slots__ = (
        "call",
        "detokenizer",
        "first_at",
        "held",
        "index",
        "last_at",
        "num_attempts",
        "num_discarded",
        "progress",
        "prompt_len",
        "queue_time",
        "request",
        "rid",
        "said",
    )

    def __init__(self, call: Call, index: int, request: TokenizedReq, detokenizer: Detokenizer | None) -> None:
        self.call = call
        self.index = index
        self.request = request
        self.rid = own_rid(request)
        self.prompt_len = len(request.input_ids)
        self.detokenizer = detokenizer
        self.first_at = 0.0
        self.last_at = 0.0
        self.queue_time = 0.0
        self.held: JoinedOut | None = None
        self.said = False
        self.num_attempts = 0
        """answers that were generated and checked (schema_checks.py)"""
        self.num_discarded = 0
        """tokens of those that were thrown away"""
        self.progress = Progress()

    def with_held(self, out: GenerateOut) -> GenerateOut:
        """This output, joined to what was held back before it."""
        held, self.held = self.held, None
        if held is None:
            return out
        held.add(out)
        return held.whole()

    def due(self, out: GenerateOut, interval: int) -> GenerateOut | None:
        """The output to report now: the first token, then every `interval` tokens. The rest is held back."""
        held = self.held
        if held is None and len(out.ids) >= interval:
            self.said = True
            return out
        if not self.said or (held is not None and held.num_ids + len(out.ids) >= interval):
            self.said = True
            return self.with_held(out)
        if held is None:
            self.held = JoinedOut(out)
        else:
            held.add(out)
        return None


class Call:
    """The outputs of one GenerateReq as they come: `async for out in call`. Ends when every sequence has finished or the call
    is cancelled; raises the error of the first sequence that failed."""

    __slots__ = (
        "_drop",
        "_error",
        "_relay",
        "_timer",
        "_unread",
        "_waiter",
        "journal",
        "key",
        "name",
        "open",
        "received",
        "share",
        "started_at",
        "trace",
        "turn",
    )

    def __init__(self, drop: Callable[[Call, str], None], name: str, started_at: float, key: str | None = None) -> None:
        """`drop` aborts the call's open sequences for a reason; `started_at` is a time.monotonic(). `name` is the call's for its
        client, `key` its name among those of all clients."""
        self.name = name
        self.key = name if key is None else key
        self._drop = drop
        self._unread = UnreadOuts()
        self.share = LoopShare()
        self._waiter: asyncio.Future[None] | None = None
        self._error: SglangError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._relay: Relay[GenerateOut] | None = None
        self.open: dict[str, Sequence] = {}
        self.started_at = started_at
        self.trace: str | None = None
        self.turn: Turn | None = None
        self.received: list[TokenOut] = []
        """of another server, while they are repeated here"""
        self.journal: list[bytes] | None = None
        """if a gateway keeps one: lines for the outputs that were taken, to be sent before what is made of them"""

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> GenerateOut:
        apart = self._unread.apart
        if apart and time.monotonic() > self.share.ends_at:
            await self.share.give_way()
        while not apart:
            if self._error is not None:
                raise self._error
            if not self.open:
                raise StopAsyncIteration
            await self._wait()
        out = self._unread.pop()
        if self.journal is not None:
            self.journal.append(output_line(out.as_token_out()))
        return out

    async def ready(self, timeout: float) -> None:
        """Waits for the first output, at most `timeout` seconds. Raises if the call has failed by then."""
        if not self._unread.apart and self._error is None and self.open:
            timer = asyncio.get_running_loop().call_later(timeout, self._wake)
            try:
                await self._wait()
            finally:
                timer.cancel()
        if self._error is not None and not self._unread.apart:
            raise self._error

    def forward(self, relay: Relay[GenerateOut]) -> None:
        """Lets everything come to `relay` instead."""
        self._relay = relay
        self._wake()

    def cancel(self) -> None:
        """Aborts the sequences that still run. Nothing more comes."""
        if self.open:
            self._drop(self, "the client went away")
        self._unread.clear()
        self._wake()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        self.share.begin()

    def _wake(self) -> None:
        if self._relay is not None:
            while self._unread.apart:
                self._relay.put(self._unread.pop())
            if self._error is not None or not self.open:
                self._relay.put(End(self._error))
                self._relay = None
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def limit(self, seconds: float | None) -> None:
        """Lets the call fail with DeadlineError if it has not ended `seconds` after it came."""
        if seconds is not None:
            left = max(self.started_at + seconds - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(left, self._expire, seconds)

    def _expire(self, seconds: float) -> None:
        if self.open:
            message = f"the request was not finished after {seconds:g} s"
            self._drop(self, message)
            self.fail(DeadlineError(message))

    def closed(self) -> None:
        """Called when the last sequence has gone."""
        if self.turn is not None:
            self.turn.drop()
            self.turn = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def put(self, out: GenerateOut) -> None:
        self._unread.put(out)
        self._wake()

    def repeat(self, out: GenerateOut) -> None:
        """An output as another server gave it: it is joined to no other one."""
        self._unread.apart.append(out)

    def fail(self, error: SglangError) -> None:
        self._error = error
        self._wake()
