"""The loop: receive, admit, step, emit.

Owners: `KvMemory` (slots and tree), `Inlet` (grammars compile), `WaitingQueue`, `PrefillPlanner` (the partially computed prompt),
`RunningBatch` (decoding requests). A request is in exactly one of these places, and always in `_live`:

    receive -> inlet -> waiting -> partial -> running -> TokenOut
                           ^----------retract----'
"""

from __future__ import annotations

import logging
import time

import msgspec

from sglang.srt.config import BACKGROUND, GrammarOptions, ScheduleOptions
from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.forward_batch import ModelWorker
from sglang.srt.messages import (
    AbortReq,
    BatchTokenOut,
    ControlReply,
    FinishReason,
    FlushCacheReq,
    Inbox,
    Outbox,
    PauseReq,
    ProfileReq,
    SchedulerStats,
    ShutdownReq,
    StateReq,
    TokenizedReq,
    TokenOut,
    ToScheduler,
    ViewReq,
)
from sglang.srt.scheduler.adapters import Adapters
from sglang.srt.scheduler.admission.background import Background
from sglang.srt.scheduler.admission.inlet import Inlet
from sglang.srt.scheduler.admission.prefill import OutputEstimate, PrefillPlanner, prefill_limits
from sglang.srt.scheduler.admission.restoring import Restoring
from sglang.srt.scheduler.admission.waiting import Turns, WaitingQueue
from sglang.srt.scheduler.batch import Extend, Flight, ScheduleBatch, StepComputer, build_batch
from sglang.srt.scheduler.cache.disk.tier import OpenTier
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.decode import RunningBatch, overtaken
from sglang.srt.scheduler.finish import abort_reason
from sglang.srt.scheduler.grammar.compiler import GrammarCompiler
from sglang.srt.scheduler.grammar.engines.registry import create_backend
from sglang.srt.scheduler.grammar.journal import GrammarJournal, NotedBackend
from sglang.srt.scheduler.grammar.masks import MaskFiller
from sglang.srt.scheduler.grammar.trial import Trials
from sglang.srt.scheduler.media.encoder_gate import EncoderGate
from sglang.srt.scheduler.profiling import Profiler
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.results import StepResults, note_admitted, take_forced, take_searched, take_sent
from sglang.srt.scheduler.speculation.draft.model import DraftModel
from sglang.srt.scheduler.speculation.planning import DraftBudget, Proposers, add_drafts, is_confident
from sglang.srt.scheduler.stats import StepStats
from sglang.srt.scheduler.stop_regex import Searches
from sglang.srt.scheduler.viewing import Viewing
from sglang.srt.vocabulary import Vocabulary

logger = logging.getLogger("sglang")

IDLE_SECONDS, FIRST_IDLE_SECONDS = 1.0, 0.1
COMPILING_SECONDS = 0.002
IDLE_GRACE_SECONDS = 0.003
"""seconds of idleness after which the worker prepares for later steps"""
WAIT_SECONDS = 0.001


class Scheduler:
    """Runs the requests of one model. `run` serves until a ShutdownReq; `step` takes one step (tests drive it by hand)."""

    def __init__(
        self,
        options: ScheduleOptions,
        grammar_options: GrammarOptions,
        worker: ModelWorker,
        vocabulary: Vocabulary | None,
        inbox: Inbox,
        outbox: Outbox,
        journal: GrammarJournal | None = None,
        trials: Trials | None = None,
        open_tier: OpenTier | None = None,
        draft_model: DraftModel | None = None,
    ) -> None:
        """`journal`: of native grammar code; `open_tier`: the cache on disk. Closes `trials`. Raises ConfigError, as for no backend."""
        info = worker.info
        self._options = options
        self._worker = worker
        self._inbox = inbox
        self._outbox = outbox
        self.memory = KvMemory(
            info.max_total_tokens,
            info.slot_run,
            min(info.max_running_requests, info.max_batch_tokens),
            info.context_len,
            options.page_size,
            not options.disable_radix_cache,
            info.state_slots,
        )
        worker.bind(self.memory.rows.table)
        backend = create_backend(vocabulary, grammar_options)
        if backend is not None and journal is not None:
            backend = NotedBackend(backend, journal, grammar_options.refused)
        trials = trials or Trials(vocabulary, grammar_options)
        self._live: dict[str, Req] = {}
        self.adapters = Adapters(worker.adapters, options.lora_eviction_policy, self._live, self.memory.tree)
        self._compiler = GrammarCompiler(backend, grammar_options, trials)
        self._searches = Searches(trials)
        self._masks: MaskFiller | None = None
        if backend is not None and vocabulary is not None:
            self._masks = MaskFiller(backend, info.vocab_size, sorted(vocabulary.eos_token_ids))
        self._steps = StepComputer(worker, self._masks)
        self._proposers = Proposers(options.speculation, self._compiler.num_kept, self.memory.tree, draft_model)
        self._inlet = Inlet(
            info,
            self.memory,
            vocabulary,
            self._compiler,
            self._searches,
            options.random_seed,
            grammar_options.jump_forward,
            self._proposers,
            self.adapters,
        )
        self._waiting = WaitingQueue(options.schedule_policy, options.random_seed)
        tier = open_tier and open_tier(self.memory, worker.finish)
        if tier is not None:
            tier.names.image_of, tier.names.adapter_of = self._inlet.image_ids.item_of, self.adapters.digest_of
        self._restoring = Restoring(tier, self.memory, self._waiting)
        self._estimate = OutputEstimate(options.schedule_conservativeness)
        limits = prefill_limits(options, info)
        self._gate = EncoderGate(worker, limits.chunk_tokens)
        self._takes_images = bool(info.media_kinds)
        self._prefill = PrefillPlanner(self.memory, self._waiting, self._estimate, limits, self._gate, self.adapters)
        self._running = RunningBatch(self.memory, self._waiting, self._prefill, self._estimate, info.max_batch_tokens)
        self._background = Background(self._waiting, self._running, self._prefill)
        self._turns = Turns(self._waiting)
        self._stats = StepStats(self.memory, options.decode_log_interval)
        self._profiler = Profiler()
        self._viewing = Viewing(self.memory.tree, outbox)
        self._flight: Flight | None = None
        self._paused = False
        self._stopping = False
        self._began = False  # some requests have got their first tokens in the last step
        self._ready = False  # the worker has nothing to do before the next step
        self._checked = True  # nothing changed since the last look at the pool

    # --- the loop -----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves until a ShutdownReq. After an error the owners are not to be trusted any more: it goes on to whoever runs the
        scheduler, who ends the requests or has another scheduler resume them."""
        try:
            while not self._stopping:
                self._receive()
                self.step()
            self._end_all(abort_reason(OverloadError("the server is shutting down")))
            self._restoring.drain()
        finally:
            self.close()

    def close(self) -> None:
        """Ends the worker, and the scheduler's threads and child processes."""
        self._restoring.close()
        self._searches.close()
        self._compiler.close()
        if self._masks is not None:
            self._masks.close()
        self._proposers.close()
        self._worker.close()

    def step(self) -> bool:
        """One step. False when there was nothing to compute."""
        results = StepResults(self.memory)
        if self._searches.has_searched:
            self._searches.begin_step()
        self._enter_searched()
        self._enqueue_compiled(results)
        if self._restoring.is_on and self._restoring.poll():
            self._prefill.unblock()
        flight, self._flight = self._flight, None
        if flight is None and not self._paused:
            if self._background.num_live:
                self._background.settle(len(self._live))
            batch = self._plan(results)
            flight = self._steps.compute(batch) if batch is not None else None
        if flight is not None:
            if self._began:  # the device works meanwhile; on a CPU this thread computes as well, but not yet
                self._began = False
                self._outbox.let_read()
            ahead = self._run_ahead(flight)
            began = time.perf_counter()
            batch, output, late = flight.land()
            results.commit(batch, output, late)
            if self._proposers.draft_model is not None:
                self._proposers.note_step(batch, results.drafts)
            self._settle(batch, results)
            if ahead is not None:
                self._flight = self._steps.finish(ahead, *self._steps.begin_masks(ahead, overtaken(ahead)), began)
        elif self._proposers.draft_model is not None:
            self._proposers.note_pause()
        self._emit(results)
        worked = self._takes_images and not self._paused and self._gate.work(busy=flight is not None)
        return flight is not None or worked

    def _receive(self) -> None:
        if self._viewing.is_on:
            self._viewing.report(self._snapshot)
        if self._background.num_live:
            self._background.settle(len(self._live))
        waits = self._running.reqs or self._prefill.partial or len(self._waiting) > self._restoring.num_waiting
        busy = self._flight is not None or (not self._paused and waits)
        for reply in self.adapters.poll() if self.adapters.is_busy else ():
            self._outbox.send(reply)
        if busy or len(self._inlet) or self.adapters.is_busy or (self._restoring.is_on and self._restoring.is_busy):
            messages = self._inbox.receive(0.0 if busy else COMPILING_SECONDS)
        else:
            messages = self._receive_idle()
        for message in messages:
            self.handle(message)

    def _receive_idle(self) -> list[ToScheduler]:
        """Waits for messages, longer and longer."""
        if not self._ready:
            if messages := self._inbox.receive(IDLE_GRACE_SECONDS):
                return messages
            self._ready = not self._worker.get_ready(self.memory.allocator.num_ever_held)
            return self._inbox.receive(0.0)
        messages = self._inbox.receive(self._viewing.limit(IDLE_SECONDS if self._compiler.is_warm else FIRST_IDLE_SECONDS))
        if not messages:
            self._rest()
        return messages

    def _plan(self, results: StepResults) -> ScheduleBatch | None:
        """Plans the requests of the next step, with memory for all of it."""
        full = "the KV pool is full: this request is all that is in it"
        every = self._options.test_retract_every
        if every and self._stats.num_decode_steps and self._stats.num_decode_steps % every == 0:
            self._running.retract_one()
        if self._turns.is_due:
            self._running.give_turn(self._turns)
        for req in self._running.reserve_step():
            results.end(req, FinishReason("length", length=len(req.output_ids), message=full))
        masks = self._masks
        decodes, jumps = self._running.split(
            lambda req: (
                req.finish.is_searching or (masks is not None and req.grammar is not None and masks.must_wait(req.grammar))
            )
        )
        extends = self._prefill.plan(self._running.reqs, sum(jump.length - 1 for jump in jumps))
        for req in self._prefill.unfit:
            results.end(req, FinishReason("length", length=len(req.output_ids), message=full))
        self._prefill.unfit.clear()
        if self._restoring.is_on:
            self._restoring.note_admitted(extends)
        note_admitted(extends)
        if not extends and not self._running.reqs:
            if self._prefill.partial is not None:  # stuck alone: begin again in one piece
                self._prefill.partial.no_reuse = True
                self._running.retract(self._prefill.partial)
            return None
        if not (decodes or jumps or extends):
            time.sleep(WAIT_SECONDS)  # all requests wait for masks or searches
            return None
        if extends and self._proposers.draft_model is not None:
            self._proposers.follow(extends, len(self._running.reqs))
        decodes, extends = self._add_drafts(decodes, jumps, extends)
        return build_batch(decodes, extends, self.memory, self._takes_images)

    def _add_drafts(self, decodes: list[Req], jumps: list[Extend], prompts: list[Extend]) -> tuple[list[Req], list[Extend]]:
        """Drafts of what comes next, as far as the step has room. Grammars whose masks are late take no part."""
        info, extends = self._worker.info, jumps + prompts
        num_running = len(self._running.reqs)
        if not any(is_confident(req, num_running) for req in [*self._running.reqs, *(extend.req for extend in prompts)]):
            return decodes, extends
        rows = len(decodes) + sum(extend.length for extend in extends)
        samples = max(info.max_samples, info.max_running_requests) - len(decodes) - len(extends)
        budget = DraftBudget(info.max_batch_tokens - rows, samples, rows)
        slow = [req for req in decodes if self._steps.is_slow(req)]
        slow_extends = [extend for extend in extends if self._steps.is_slow(extend.req)]
        quick = [req for req in decodes if req not in slow]
        swift = [extend for extend in extends if extend not in slow_extends]
        plain, longer = add_drafts(quick, swift, budget, self.memory, self._proposers)
        return slow + plain, slow_extends + longer

    def _run_ahead(self, flight: Flight) -> ScheduleBatch | None:
        """Begins the step after `flight`, if that needs nothing but its tokens."""
        options = self._options
        if not (options.overlap and self._worker.info.runs_ahead) or options.test_retract_every:
            return None
        if self._paused or self._stopping or self._prefill.partial is not None or self._turns.is_due:
            return None
        if len(self._waiting) and self.memory.rows.num_free and not self._prefill.still_blocked():
            return None
        batch = self._running.build_ahead(flight)
        if batch is not None:
            self._worker.forward(batch.forward)
        return batch

    def _settle(self, batch: ScheduleBatch, results: StepResults) -> None:
        """Brings the owners up to date with a step."""
        if results.ended:
            ended = set(results.ended)
            self._running.reqs = [req for req in self._running.reqs if req not in ended]
        self._running.reqs += results.decoding
        self._began = bool(results.decoding)
        if self._restoring.is_on:
            self._restoring.note_step(batch)
        self._estimate.note_step()
        self._turns.note_step(self._running.holders, [extend.req for extend in batch.extends if extend.is_new])
        self._checked = self._ready = False
        if self._viewing.is_on:
            self._viewing.note_step(batch, results.num_accepted)
        num_decodes, num_queued = len(batch.decodes), len(self._waiting)
        if self._stats.note_step(batch, results.num_accepted, results.drafts, num_decodes, num_queued):
            self._outbox.send(self._snapshot())

    def _emit(self, results: StepResults) -> None:
        for req in results.ended:
            del self._live[req.rid]
            if req.msg.priority == BACKGROUND:
                self._background.leave()
        if results.ended:
            self._prefill.unblock()
        if results.outs:
            self._outbox.send(BatchTokenOut(results.outs))

    def _rest(self) -> None:
        """Idle work: checks the integrity of memory, among others."""
        self._compiler.rest()
        self._stats.note_idle()
        self._estimate.reset()
        if not self._checked:
            self._checked = True
            for problem in self.check_integrity():
                logger.error("KV pool: %s", problem)

    # --- messages -----------------------------------------------------------------------------------------------------------

    def handle(self, message: ToScheduler) -> None:
        """Takes one message. Called between steps only."""
        if isinstance(message, TokenizedReq):
            self._accept(message)
        elif isinstance(message, AbortReq):
            self._abort(message)
        elif isinstance(message, FlushCacheReq):
            self._outbox.send(self._flush(message.call_id))
        elif isinstance(message, PauseReq):
            self._paused = message.pause
            self._outbox.send(ControlReply(message.call_id))
        elif isinstance(message, ProfileReq):
            self._outbox.send(self._profiler.handle(message))
        elif isinstance(message, StateReq):
            self._outbox.send(ControlReply(message.call_id, stats=self._snapshot()))
        elif isinstance(message, ViewReq):
            self._viewing.look(message.on)
        elif isinstance(message, ShutdownReq):
            self._stopping = True
        elif (reply := self.adapters.handle(message)) is not None:
            self._outbox.send(reply)

    def _accept(self, msg: TokenizedReq) -> None:
        in_background = msg.priority == BACKGROUND
        try:
            if msg.rid in self._live:
                raise RequestError(f"a request with the id {msg.rid!r} is already running", "rid")
            if msg.resumed is None:  # one that is resumed was let in before
                most = self._options.max_queued_requests
                if in_background or self._background.num_live:
                    most = self._background.room(msg, most)
                self._inlet.check_room(msg, self._waiting, most)
            req = self._inlet.create(msg)
            if req.media is not None:
                self._gate.check(req.media)
            ready = self._inlet.start(req)
        except (RequestError, OverloadError) as error:
            self._refuse(msg, abort_reason(error))
            return
        self._live[msg.rid] = req
        if in_background:
            self._background.enter()
        if ready:
            results = StepResults(self.memory)
            self._enqueue(req, results)
            self._emit(results)

    def _enqueue(self, req: Req, results: StepResults) -> None:
        """Puts a request into the queue. What its grammar goes on with need not be sampled; if that is all there is, it ends."""
        reason = take_sent(req) if req.msg.resumed else take_forced(req)
        if reason is not None:
            results.end(req, reason)
            return
        self._waiting.add(req)
        if self._restoring.is_on:
            self._restoring.begin(req)
        self._prefill.unblock()

    def _refuse(self, msg: TokenizedReq, reason: FinishReason) -> None:
        self._outbox.send(BatchTokenOut([TokenOut(msg.rid, [], reason, prompt_len=len(msg.input_ids))]))

    def _enqueue_compiled(self, results: StepResults) -> None:
        if not len(self._inlet):
            return
        ready, failed = self._inlet.poll()
        for req in ready:
            self._enqueue(req, results)
        for req, error in failed:
            results.end(req, abort_reason(error))

    def _enter_searched(self) -> None:
        """Requests go on, or end, whose stop expressions were searched off the loop."""
        if not self._searches.num_pending:
            return
        for req in [req for req in self._live.values() if req.finish.is_found]:
            reason = take_searched(req)
            if reason is not None:
                self._end_now([req], reason)

    def _abort(self, message: AbortReq) -> None:
        if message.all:
            self._end_all(FinishReason("abort", message=message.message))
        elif message.rid is not None and message.rid in self._live:
            self._end_now([self._live[message.rid]], FinishReason("abort", message=message.message))

    def _end_all(self, reason: FinishReason) -> None:
        self._end_now(list(self._live.values()), reason)

    def _end_now(self, reqs: list[Req], reason: FinishReason) -> None:
        """Ends requests wherever they are."""
        results = StepResults(self.memory)
        for req in reqs:
            if req is self._prefill.partial:
                self._prefill.partial = None
            elif req.hold is not None:
                self._running.reqs.remove(req)
            elif not (self._background.remove(req) or self._inlet.remove(req.rid)):
                self._waiting.remove(req)
            results.end(req, reason)
        self._checked = False
        self._emit(results)

    def _flush(self, call_id: int) -> ControlReply:
        if self._live or not self.memory.flush():
            return ControlReply(call_id, False, f"{len(self._live)} requests run or wait; the cache was not flushed")
        if not self.memory.allocator.num_held:
            self._worker.release_kv()
        self._compiler.flush()
        self._proposers.flush()
        return ControlReply(call_id)

    # --- looking at the whole -----------------------------------------------------------------------------------------------

    def _snapshot(self) -> SchedulerStats:
        running = len(self._running.reqs) + (self._prefill.partial is not None)
        num_queued = len(self._waiting) + len(self._background)
        stats = self._stats.snapshot(running, num_queued, len(self._inlet), self._running.num_retractions)
        stats = msgspec.structs.replace(stats, num_encoded=self._gate.num_encoded) if self._takes_images else stats
        return self._restoring.add_stats(stats) if self._restoring.is_on else stats

    def check_integrity(self) -> list[str]:
        """Inconsistencies of slots, rows, trees and the places of requests; empty if there are none."""
        problems = self.memory.check_integrity() + self._proposers.check_integrity()
        places = len(self._inlet) + len(self._waiting) + len(self._background) + len(self._running.holders)
        if places != len(self._live):
            problems.append(f"{len(self._live)} requests are alive, {places} are somewhere")
        return problems
