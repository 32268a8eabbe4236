"""Checks new requests against the model and the pool, and holds them while their constraints compile. The server has checked the
client's input already; this is the last check before memory and kernels."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import msgspec
import numpy as np

from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.forward_batch import ModelInfo, SampleSpec
from sglang.srt.messages import LogprobOptions, TokenizedReq
from sglang.srt.scheduler.adapters import Adapters
from sglang.srt.scheduler.admission.waiting import WaitingQueue
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.finish import FinishChecker
from sglang.srt.scheduler.grammar.compiler import FREE_TEXT, GrammarCompiler, Job, Key
from sglang.srt.scheduler.media.arriving import ImageIds, RecentPixels, check_media
from sglang.srt.scheduler.media.req_media import req_media
from sglang.srt.scheduler.req import LogprobLog, Req
from sglang.srt.scheduler.speculation.planning import Proposers
from sglang.srt.scheduler.stop_regex import STOP_REGEX, Searches
from sglang.srt.vocabulary import Vocabulary


@dataclass(frozen=True)
class Compiling:
    """A request and the jobs it waits for."""

    req: Req
    grammar: Job | None
    regexes: list[Job]

    @property
    def jobs(self) -> list[Job]:
        return self.regexes if self.grammar is None else [self.grammar, *self.regexes]


class Inlet:
    """Owner of the requests whose constraints compile."""

    def __init__(
        self,
        info: ModelInfo,
        memory: KvMemory,
        vocabulary: Vocabulary | None,
        compiler: GrammarCompiler,
        searches: Searches,
        seed: int,
        jump_forward: bool,
        proposers: Proposers,
        adapters: Adapters,
    ) -> None:
        self._info = info
        self._memory = memory
        self._vocabulary = vocabulary
        self._compiler = compiler
        self._searches = searches
        self._rng = random.Random(seed)
        self._jump_forward = jump_forward
        self._proposers = proposers
        self._adapters = adapters
        self._arrivals = 0
        self.image_ids = ImageIds()
        self._pixels = RecentPixels()
        self._compiling: dict[str, Compiling] = {}
        self._of_key: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._compiling)

    def num_of(self, key: str) -> int:
        """Requests of an API key that wait here."""
        return self._of_key[key]

    def check_room(self, msg: TokenizedReq, waiting: WaitingQueue, most: int) -> None:
        """The number of waiting requests of a key is limited by the places that are left of `most`, so that others find one. Raises
        OverloadError."""
        free = most - len(waiting) - len(self)
        key = msg.client[0] if msg.client else ""
        own = waiting.num_of(key) + self.num_of(key) if key else 0
        if free <= 0:
            raise OverloadError(f"{most} requests are waiting already; try again later")
        if own >= free:
            raise OverloadError(f"{own} requests of this API key are waiting already; try again later")

    def create(self, msg: TokenizedReq) -> Req:
        """The request that `msg` asks for. Raises RequestError or OverloadError."""
        prompt = self._checked_prompt(msg)
        params = msg.sampling
        room = self._info.context_len - len(prompt)
        limit = room if params.max_new_tokens is None else min(params.max_new_tokens, room)
        if (params.stop or params.stop_regex) and self._vocabulary is None:
            raise RequestError("stop and stop_regex need a tokenizer, and this server runs without one", "stop")
        finish = FinishChecker(params, limit, self._vocabulary)
        if msg.healed and msg.grammar_after:
            raise RequestError("token_healing does not go together with reasoning before the answer", "token_healing")
        constrained = params.grammar is not None and not msg.grammar_after
        options = msg.logprobs or LogprobOptions()
        seed = params.seed if params.seed is not None else self._rng.getrandbits(63)
        # Under a grammar the masks forbid the end of text themselves, and only where it is not the one thing allowed.
        spec = SampleSpec(params, seed, msg.input_ids, [], () if constrained else finish.stop_ids)
        if msg.logprobs is not None:
            spec.want_logprob, spec.top_num, spec.token_ids = True, options.top_num, options.token_ids
        self._arrivals += 1
        if msg.media:
            msg = msgspec.structs.replace(msg, media=tuple(self._pixels.filled(item) for item in msg.media))
        media = req_media(msg, self._info) if msg.media or msg.rope_positions else None
        if media is not None:
            check_media(msg, self._info.rope_axes, self._info.media_kinds)
            prompt = self.image_ids.tree_ids(msg, prompt)
        req = Req(msg, self._arrivals, prompt, spec, finish, media)
        req.salt = self.image_ids.salt(msg.cache_salt) if msg.media else msg.cache_salt
        if msg.adapter:
            self._adapters.enter(req)
        req.takes_drafts = params.allows_drafts and msg.logprobs is None and media is None
        if req.takes_drafts and params.grammar is None and not msg.healed:
            req.proposer = self._proposers.for_free_text(req)
        req.origins = bytearray() if msg.origins else None
        req.input_log = LogprobLog(options.top_num, options.token_ids)
        req.output_log = LogprobLog(options.top_num, options.token_ids)
        req.logprob_next = options.start_len if options.start_len >= 0 else len(prompt)
        if msg.resumed:
            self._note_sent(req, msg.resumed)
        elif req.logprob_next == 0:
            req.input_log.add_unpredicted(msg.input_ids[0])
        return req

    @staticmethod
    def _note_sent(req: Req, ids: tuple[int, ...]) -> None:
        """Notes what the client of a resumed request has received: these tokens (`results.take_sent` enters them), their log
        probabilities and the prompt's."""
        req.input_sent = True
        req.sent_len = len(ids)
        req.logprob_next = req.prompt_len + len(ids)

    def _checked_prompt(self, msg: TokenizedReq) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        num_ids, context_len = len(msg.input_ids), self._info.context_len
        if num_ids == 0:
            raise RequestError("the prompt is empty", "input_ids")
        if num_ids >= context_len:
            raise RequestError(f"the prompt has {num_ids} tokens; the model's context holds {context_len}", "input_ids")
        if not self._memory.fits_alone(num_ids):
            slots = self._memory.num_slots
            raise RequestError(f"the prompt has {num_ids} tokens; the KV pool holds {slots}", "input_ids")
        ids = np.array(msg.input_ids, dtype=np.int64)
        if ids.min() < 0 or ids.max() >= self._info.vocab_size:
            raise RequestError(f"the prompt has token ids outside 0 to {self._info.vocab_size - 1}", "input_ids")
        if any(not 0 <= i < self._info.vocab_size for i in msg.resumed or ()):
            raise RequestError(f"the output so far has token ids outside 0 to {self._info.vocab_size - 1}", "resumed")
        if msg.logprobs is not None and any(not 0 <= i < self._info.vocab_size for i in msg.logprobs.token_ids):
            raise RequestError(f"token_ids_logprob must lie in 0 to {self._info.vocab_size - 1}", "token_ids_logprob")
        return ids.astype(np.int32)

    def start(self, req: Req) -> bool:
        """Sees to the constraints of `req`. True when it may queue at once; otherwise `poll` will return it. Raises
        RequestError or OverloadError."""
        params = req.msg.sampling
        healed = req.msg.healed
        if params.grammar is None and not params.stop_regex and not healed:
            return True
        req.finish.skip_bytes = len(healed.encode())
        key: Key | None = params.styled_grammar
        if healed:
            key = (*(key or FREE_TEXT), healed)
        client = req.msg.client
        grammar = self._compiler.submit(key, client) if key is not None else None
        waits = Compiling(req, grammar, [self._compiler.submit((STOP_REGEX, text), client) for text in params.stop_regex])
        if not self._all_done(waits):
            self._compiling[req.rid] = waits
            self._of_key[req.key] += 1
            return False
        self._attach(waits)
        return True

    def remove(self, rid: str) -> bool:
        """Forgets a request that waits here."""
        waits = self._compiling.pop(rid, None)
        if waits is None:
            return False
        self._of_key -= Counter([waits.req.key])
        for job in waits.jobs:
            self._compiler.leave(job)
        return True

    def poll(self) -> tuple[list[Req], list[tuple[Req, RequestError | OverloadError]]]:
        """Requests whose constraints are there, and requests whose constraints failed. Both have left."""
        ready: list[Req] = []
        failed: list[tuple[Req, RequestError | OverloadError]] = []
        for rid, waits in list(self._compiling.items()):
            if not self._all_done(waits):
                continue
            self.remove(rid)
            try:
                self._attach(waits)
            except (RequestError, OverloadError) as error:
                failed.append((waits.req, error))
            else:
                ready.append(waits.req)
        return ready, failed

    def _all_done(self, waits: Compiling) -> bool:
        """Looks at every job, so that each notices when its time is up."""
        pending = [job for job in waits.jobs if not self._compiler.poll(job)]
        return not pending

    def _attach(self, waits: Compiling) -> None:
        for job in waits.jobs:
            if job.error is not None:
                raise job.error
        waits.req.constraints = tuple(waits.jobs)
        if waits.grammar is not None:
            waits.req.grammar = waits.grammar.value.copy()
            waits.req.unenforced = waits.grammar.value.unenforced
            waits.req.in_reasoning = bool(waits.req.msg.grammar_after)
            waits.req.jumps = self._jump_forward
            if self._jump_forward and not waits.req.msg.healed:
                waits.req.proposer = self._proposers.for_grammar(waits.req, waits.grammar.key)
        if waits.regexes:
            waits.req.finish.watch_regexes([job.value for job in waits.regexes], self._searches)
