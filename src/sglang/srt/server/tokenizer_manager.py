"""The engine's interface for the endpoints: generate, embed, abort, sessions, control, and the state of the scheduler.

    GenerateReq --start--> Call --iterate--> GenerateOut, GenerateOut, ...
                    |                             ^
              TokenizedReq (one a sequence)    TokenOut
                    v                             |
                 send(...)   scheduler       handle(...)

in_flight.py holds the calls and receives the scheduler's outputs. Everything runs on one event loop; only long texts are tokenized on
another thread. A call that is cancelled, or whose consumer disconnects, aborts its sequences at once. When a scheduler dies, the next
one continues all calls (resuming.py); if there will be none, they end with EngineDeadError.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sglang.common.interrupts import wait_for
from sglang.srt.config import AdapterOptions, HttpOptions, TextOptions
from sglang.srt.errors import (
    DeadlineError,
    EngineAwayError,
    EngineDeadError,
    OverloadError,
    RequestError,
    SglangError,
)
from sglang.srt.messages import (
    BatchEmbedOut,
    BatchTokenOut,
    ControlReply,
    FlushCacheReq,
    FromScheduler,
    ProfileReq,
    SchedulerReady,
    SchedulerStats,
    StateReq,
    TokenizedReq,
    ToScheduler,
    ViewDelta,
)
from sglang.srt.process.heap import release_freed_memory
from sglang.srt.server.adapters import Adapters
from sglang.srt.server.calls import Call
from sglang.srt.server.control_calls import ControlCalls
from sglang.srt.server.embedding_calls import EmbeddingCalls, Vector
from sglang.srt.server.generate_req import GenerateOut, GenerateReq, own_rid, wire_rid
from sglang.srt.server.health_check import HealthCheck
from sglang.srt.server.http.keys import KeyRing
from sglang.srt.server.http.request_scope import current_scope
from sglang.srt.server.in_flight import AT_ONCE, InFlight
from sglang.srt.server.request_maker import RequestMaker
from sglang.srt.server.sessions import Place, Sessions, Turn
from sglang.srt.server.side_threads import run_in_thread
from sglang.srt.server.telemetry.call_records import CallRecords
from sglang.srt.server.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:  # these need an image library, which a server of text does without
    from sglang.srt.server.multimodal.intake import MediaIntake

AWAY_SECONDS = 30.0
"""how long a new request waits for a scheduler that is being restarted"""


class TokenizerManager:
    """`send` hands a message to the scheduler; the receiver gives the scheduler's messages to `handle`, on the event loop. `info` is
    forward_batch.ModelInfo as a dict. Without a tokenizer only ids go in and out. `media` takes the images and videos of
    vision-language models."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        info: dict[str, Any],
        http: HttpOptions,
        text: TextOptions,
        send: Callable[[ToScheduler], None],
        media: MediaIntake | None = None,
        adapters: AdapterOptions | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.media = media
        self.http = http
        self.text = text
        self.stats = SchedulerStats()
        self.on_view: Callable[[ViewDelta], None] = lambda delta: None
        """who is told what viewers of the machine see"""
        self.records = CallRecords(http)
        self._in_flight = InFlight(tokenizer, http, self.records, send)
        self._controls = ControlCalls(send)
        self.adapters = Adapters(adapters, info.get("adapters"), http.served_model_name, self._controls)
        self.maker = RequestMaker(tokenizer, info, http, media, self.adapters.find)
        self._embeddings = EmbeddingCalls(send)
        self.sessions = Sessions(http.max_sessions, http.max_session_tokens, http.session_timeout)
        self.keys = KeyRing(http.api_keys, http.admin_api_key)
        self._death: str | None = None
        self._away: str | None = None
        self._back = asyncio.Event()
        self._draining_since = math.inf
        self._heard_at = 0.0
        embed = self.embed if info.get("embedding_dim") else None
        self._health = HealthCheck(self.start, lambda: self._heard_at, embed)
        self._asking: asyncio.Task[None] | None = None

    # --- requests -----------------------------------------------------------------------------------------------------------

    @property
    def info(self) -> dict[str, Any]:
        """forward_batch.ModelInfo as a dict, of the scheduler that runs."""
        return self.maker.info

    @property
    def context_len(self) -> int:
        """Longest sequence the model and its KV pool take."""
        return self.maker.context_len

    @property
    def max_chars(self) -> int:
        """No text longer than this fits in the context."""
        return self.maker.max_chars

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight) + self._embeddings.num_in_flight

    def need_tokenizer(self) -> Tokenizer:
        """Raises RequestError if the server runs without one."""
        return self.maker.need_tokenizer()

    async def start(self, req: GenerateReq) -> Call:
        """Checks the request and hands its sequences to the scheduler. While one is being restarted it waits for a while. Raises
        RequestError, OverloadError, or EngineDeadError if there is no scheduler."""
        await self._wait_for_scheduler()
        if self.info.get("embedding_dim"):
            raise RequestError("this server embeds and does not generate: use /v1/embeddings")
        place = self.sessions.place(req.session, current_scope().key) if req.session is not None else None
        requests = await self.maker.make(req, place.ids if place is not None else None)
        self._check_open()  # much may have happened while a long text was tokenized
        if any(request.adapter for request in requests):
            self.adapters.check(requests)
        scope = current_scope()
        name = req.rid if isinstance(req.rid, str) else own_rid(requests[0])
        key = wire_rid(scope.key, name)
        if scope.journal is not None:
            self._in_flight.replace(key)
        if key in self._in_flight:
            raise RequestError(f"a request with the rid {name[:100]!r} is already running", "rid")
        call = Call(self._in_flight.drop, name, scope.arrived_at, key)
        if scope.journal is not None and req.stream:
            call.journal, call.received = [], scope.journal.take_received()
        call.turn = self._enter(place, requests[0]) if place is not None else None
        call.trace = scope.trace
        call.limit(self._time_limit())
        if len(requests) > AT_ONCE:
            with self.adapters.entering(requests):
                await self._in_flight.begin(call, requests)
        else:
            await self._in_flight.begin(call, requests)
        self.records.received(requests, req)
        return call

    async def count_tokens(self, req: GenerateReq) -> int:
        """Counts the tokens of a request's prompt, including images and videos. Raises RequestError and OverloadError."""
        (request,) = await self.maker.make(req)
        return len(request.input_ids)

    def _enter(self, place: Place, request: TokenizedReq) -> Turn:
        """Takes a request into its session. Raises RequestError or OverloadError."""
        if place.capacity is not None and len(self.need_tokenizer().decode(request.input_ids)) > place.capacity:
            raise RequestError(f"the conversation is longer than the session's {place.capacity} characters", "session_params")
        return self.sessions.enter(place, own_rid(request), request.input_ids)

    def open_session(self, name: str | None, capacity: int | None) -> str:
        """The name of a new session of the client of this request. Raises RequestError or OverloadError."""
        if capacity is not None:
            self.need_tokenizer()
        return self.sessions.open(name, capacity, current_scope().key)

    def close_session(self, name: str) -> None:
        """Raises RequestError if the client of this request has no such session."""
        self.sessions.close(name, current_scope().key)

    async def generate(self, req: GenerateReq) -> AsyncIterator[GenerateOut]:
        """`start` and iterate; the sequences are aborted when the consumer stops early."""
        call = await self.start(req)
        try:
            async for out in call:
                yield out
        finally:
            call.cancel()

    # --- ends of requests ---------------------------------------------------------------------------------------------------

    def abort(self, rid: str, message: str = "the request was aborted") -> None:
        """Aborts a sequence, or all sequences of a call, of the client of this request; for the operator, of any client. Its caller
        gets the final output. An unknown rid is ignored."""
        scope = current_scope()
        for client in self.keys.clients if scope.is_operator else (scope.key,):
            key = wire_rid(client, rid)
            self._in_flight.abort(key, message)
            self._embeddings.abort(key)

    def abort_all(self, message: str = "the request was aborted") -> None:
        self._in_flight.abort_all(message)
        self._embeddings.abort_all(message)

    # --- embeddings ---------------------------------------------------------------------------------------------------------

    async def embed(
        self, texts: Sequence[Sequence[int]], rids: list[str] | None = None, first_lens: Sequence[int] | None = None
    ) -> list[Vector]:
        """A vector for each text. The texts have passed RequestMaker.check_embed. `first_lens`: see EmbedReq."""
        await self._wait_for_scheduler()
        scope = current_scope()
        names = [wire_rid(scope.key, rid) for rid in rids] if rids is not None else None
        client = "/".join(scope.client) if scope.is_background else scope.key
        return await self._embeddings.embed(texts, names, client, first_lens)

    # --- messages of the scheduler ------------------------------------------------------------------------------------------

    def handle(self, message: FromScheduler) -> None:
        """Takes one message of the scheduler. To be called on the event loop."""
        if isinstance(message, BatchTokenOut):
            self._heard_at = time.monotonic()
            self._in_flight.handle(message, self._heard_at)
        elif isinstance(message, BatchEmbedOut):
            self._heard_at = time.monotonic()
            self._embeddings.handle(message)
        elif isinstance(message, SchedulerStats):
            self._on_stats(message)
        elif isinstance(message, ControlReply):
            if message.stats is not None:
                self._on_stats(message.stats)
            self._controls.handle(message)
        elif isinstance(message, ViewDelta):
            self.on_view(message)
        elif isinstance(message, SchedulerReady):
            self.scheduler_restarted(message.info)
        else:
            self.scheduler_died(message.message)

    def _on_stats(self, stats: SchedulerStats) -> None:
        self.stats = stats
        self.records.scheduler(stats)

    def scheduler_lost(self, message: str, is_explained: bool = False) -> None:
        """The scheduler has died, and another is on its way: calls are kept for it, new ones wait. `is_explained`: it is known
        what killed it, and that is no request in flight that will be tried again."""
        self._away = message
        self._back.clear()
        self._controls.fail(EngineAwayError(message))
        self._embeddings.note_death()
        self._note_death()
        self._in_flight.scheduler_lost(is_explained)

    def replica_lost(self, names: list[str], is_explained: bool) -> None:
        """One of several schedulers has died, and with it these sequences: the others continue them."""
        self.records.replica_died(names)
        self.records.restarted(self._in_flight.replica_lost(names, is_explained), counts_anew=False)

    def replica_back(self, adapters: Mapping[Any, Any] | None) -> None:
        """One of several schedulers has been started again, with these adapters (by uid)."""
        self._controls.resume()
        self.adapters.replica_back(adapters)

    def scheduler_restarted(self, info: dict[str, Any]) -> None:
        """There is a scheduler: it is sent all calls."""
        self.maker.info = info
        self.adapters.restarted(info.get("adapters"))
        self._death = self._away = None
        self._back.set()
        self._controls.resume()
        num_resumed = self._embeddings.resume() + self._in_flight.scheduler_restarted()
        self.records.restarted(num_resumed)

    def scheduler_died(self, message: str, error: type[SglangError] = EngineDeadError) -> None:
        """Ends all calls with an error; new ones are refused until `scheduler_restarted`."""
        self._death = message
        self._note_death()
        self._back.set()
        self._embeddings.fail(error(message))
        self._in_flight.scheduler_died(message, error)
        self._controls.fail(error(message))

    def _note_death(self) -> None:
        """No more outputs or statistics of that scheduler will come."""
        self.records.scheduler_died()
        self._on_stats(SchedulerStats())

    async def _wait_for_scheduler(self) -> None:
        """Waits while the scheduler is being restarted. Raises OverloadError, EngineAwayError or DeadlineError."""
        self._check_open()
        if self._away is None:
            return
        scope, limit = current_scope(), self._time_limit()
        left = math.inf if limit is None else scope.arrived_at + limit - time.monotonic()
        with contextlib.suppress(asyncio.TimeoutError):
            await wait_for(self._back.wait(), max(min(AWAY_SECONDS, left), 0.0))
        self._check_open()
        if self._away is not None and left < AWAY_SECONDS:
            raise DeadlineError(f"the request was not finished after {limit:g} s")
        if self._away is not None:
            raise EngineAwayError(self._away)

    def _time_limit(self) -> float | None:
        """Seconds that the request of the current scope may take. One of a batch may wait for as long as others are there."""
        scope, most = current_scope(), self.http.request_timeout
        if scope.is_background:
            return None
        return most if scope.timeout is None else scope.timeout if most is None else min(scope.timeout, most)

    def _check_open(self) -> None:
        """Raises for a request that has come too late: while the server drains, or when there will be no scheduler."""
        if current_scope().arrived_at > self._draining_since:
            raise OverloadError("the server is shutting down")
        if self._death is not None:
            raise EngineAwayError(self._death)

    def _check_alive(self) -> None:
        self._check_open()
        if self._away is not None:
            raise EngineAwayError(self._away)

    # --- the end of the server ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends its child processes."""
        self._in_flight.close()

    def begin_drain(self) -> None:
        """Begins to refuse new requests; those that have arrived continue."""
        self._draining_since = time.monotonic()

    def end_drain(self) -> None:
        """Refuses all requests and aborts the running ones."""
        self._draining_since = -math.inf
        self.abort_all("the server is shutting down")

    def shut_down(self) -> None:
        """Ends all requests at once, without the scheduler."""
        self._draining_since = -math.inf
        self.scheduler_died("the server is shutting down", OverloadError)

    @property
    def draining(self) -> bool:
        return self._draining_since != math.inf

    # --- control ------------------------------------------------------------------------------------------------------------

    async def flush_cache(self) -> ControlReply:
        self._check_alive()
        if self.media is not None:
            await self.media.flush()
        reply = await self._controls.ask(FlushCacheReq)
        await run_in_thread(release_freed_memory)
        return reply

    async def pause(self, pause: bool) -> ControlReply:
        self._check_alive()
        return await self._controls.pause(pause)

    def view(self, on: bool) -> None:
        """Starts or ends the observation of the machine, for `on_view`."""
        self._controls.view(on, self.is_alive)

    async def profile(self, start: bool) -> ControlReply:
        self._check_alive()
        return await self._controls.ask(lambda call_id: ProfileReq(call_id, start))

    async def state(self) -> SchedulerStats:
        self._check_alive()
        await self._controls.ask(StateReq)
        return self.stats

    async def refresh_stats(self, seconds: float) -> None:
        """Brings `stats` and gauges up to date; concurrent callers share one request to the scheduler. A scheduler that takes longer
        than `seconds` for a step, or is being restarted, leaves them as they are."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_state())
        await asyncio.wait([self._asking], timeout=seconds)

    async def _ask_state(self) -> None:
        with contextlib.suppress(OverloadError, EngineDeadError):
            await self.state()

    @property
    def is_alive(self) -> bool:
        return self._in_flight.has_scheduler

    @property
    def status(self) -> str:
        """ready, draining or broken; while the model loads there is no manager, and the server says "starting"."""
        return "draining" if self.draining else "ready" if self.is_alive else "broken"

    async def health(self, timeout: float = 20.0) -> bool:
        """Whether the engine generates: any output within `timeout` seconds of asking for one token."""
        return self.is_alive and await self._health.ask(timeout)
