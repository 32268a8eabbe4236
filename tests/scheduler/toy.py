"""A small deterministic model that is an oracle for the cache, and a scheduler driven by hand.

The toy model keeps, per slot, which token at which position was written there. The next token is a hash of what the slot table
leads to: a wrong slot, position, row or a prefix shared with the wrong request changes the output. `expected_output` computes
the same from the plain list of ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.forward_batch import (
    AdapterWorker,
    ForwardBatch,
    ForwardOutput,
    Int32Array,
    LogprobResult,
    ModelInfo,
    SampleSpec,
    VocabMasks,
)
from sglang.srt.messages import (
    ControlReply,
    FinishReason,
    FromScheduler,
    LogprobOptions,
    Position,
    SchedulerStats,
    TokenizedReq,
    TokenOut,
    ToScheduler,
)
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.scheduler.cache.disk.tier import OpenTier
from sglang.srt.scheduler.grammar.trial import Trials
from sglang.srt.scheduler.scheduler import Scheduler
from sglang.srt.scheduler.speculation.draft.model import DraftModel
from sglang.srt.vocabulary import Vocabulary

EOS = 259
THINK_END = 260
MODEL_VOCAB = 320


def make_vocabulary() -> Vocabulary:
    """All bytes, some longer pieces, and four special tokens; the model has a few columns more."""
    pieces = [
        b"the",
        b" a",
        b"ab",
        b"abc",
        b"12",
        b'{"',
        b'":',
        b'",',
        b"\xc3\xa9",
        b"\xe2\x82",
        b", ",
        b"true",
        b"\n\n",
        b"END",
    ]
    table = [bytes([i]) for i in range(256)] + [b"<pad>", b"<s>", b"<tool>", b"</s>", b"</think>"] + pieces
    return Vocabulary(tuple(table), frozenset(range(256, 261)), frozenset({EOS}), bos_token_id=257)


VOCABULARY = make_vocabulary()
_RNG = np.random.default_rng(7)
_POWERS = _RNG.integers(1, 2**63, size=1 << 16, dtype=np.uint64) | np.uint64(1)


def hash_history(ids: np.ndarray[tuple[int], np.dtype[np.int64]], salt: int = 0) -> int:
    """Depends on every id and its position."""
    with np.errstate(over="ignore"):
        mixed = (ids.astype(np.uint64) + np.uint64(1)) * _POWERS[: len(ids)]
        mixed ^= mixed >> np.uint64(29)
        value = int((mixed * _POWERS[1 : len(ids) + 1]).sum(dtype=np.uint64))
    value = (value ^ (salt * 0x9E3779B97F4A7C15)) & (2**64 - 1)
    value = (value ^ (value >> 31)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    return value ^ (value >> 29)


def sample_toy(history: np.ndarray[tuple[int], np.dtype[np.int64]], spec: SampleSpec, allowed: list[int]) -> int:
    """The toy's sampler: greedy depends on the history alone, otherwise on (seed, place) as well."""
    if len(spec.output_ids) < spec.params.min_new_tokens:
        allowed = [i for i in allowed if i not in spec.eos_ids] or allowed
    salt = 0 if spec.params.is_greedy else spec.seed * 1000003 + len(spec.output_ids) + 1
    return allowed[hash_history(history, salt) % len(allowed)]


def toy_logprob(history: np.ndarray[tuple[int], np.dtype[np.int64]], target: int) -> float:
    return -float(np.float32((hash_history(history, target + 17) % 100003) / 1000.0))


ALL_IDS = list(range(VOCABULARY.size))


class ToyWorker:
    """See above. Checks in `forward` what the contract of ForwardBatch says."""

    def __init__(
        self, num_slots: int = 1024, run: int = 16, max_running: int = 16, context_len: int = 512, max_batch_tokens: int = 256
    ) -> None:
        self.info = ModelInfo("toy", MODEL_VOCAB, context_len, num_slots, run, max_batch_tokens, max_running, "toy", True, 0, 8)
        self.adapters: AdapterWorker | None = None
        self.tokens = np.full(num_slots, -1, dtype=np.int64)
        self.places = np.full(num_slots, -1, dtype=np.int64)
        self.table: Int32Array = np.zeros((0, 0), dtype=np.int32)
        self.batches: list[ForwardBatch] = []
        self.nan_rids: set[int] = set()
        self.fail_at: int | None = None

    def release_kv(self) -> None:
        """What was written stays."""

    def get_ready(self, num_used: int) -> bool:
        return False

    def close(self) -> None:
        """Nothing runs elsewhere."""

    def bind(self, req_to_token: Int32Array) -> None:
        assert req_to_token.shape == (self.info.max_running_requests, self.info.context_len)
        assert req_to_token.dtype == np.int32 and req_to_token.flags.c_contiguous
        self.table = req_to_token

    def forward(self, batch: ForwardBatch) -> None:
        if self.fail_at is not None and len(self.batches) >= self.fail_at:
            raise RuntimeError("the device is on fire")
        self._check(batch)
        self.tokens[batch.out_cache_loc] = batch.input_ids
        self.places[batch.out_cache_loc] = batch.positions
        self.batches.append(batch)

    def _check(self, b: ForwardBatch) -> None:
        run, n = self.info.slot_run, b.num_tokens
        for array in (b.input_ids, b.positions, b.out_cache_loc, b.req_pool_idx, b.q_start, b.q_len, b.seq_lens, b.sample_rows):
            assert array.dtype == np.int32 and array.ndim == 1
        assert len(b.positions) == len(b.out_cache_loc) == n == int(b.q_len.sum()) <= self.info.max_batch_tokens
        assert len(set(b.out_cache_loc.tolist())) == n, "a slot is written twice"
        assert (b.out_cache_loc % run == b.positions % run).all(), "a slot does not sit where its position belongs"
        assert len(set(b.req_pool_idx.tolist())) == b.num_reqs == len(b.q_start) == len(b.q_len) == len(b.seq_lens)
        assert b.q_start.tolist() == [0, *np.cumsum(b.q_len).tolist()][:-1]
        for row, start, length, end in zip(b.req_pool_idx, b.q_start, b.q_len, b.seq_lens, strict=True):
            assert length > 0
            assert b.positions[start : start + length].tolist() == list(range(end - length, end))
            assert (self.table[row, end - length : end] == b.out_cache_loc[start : start + length]).all()

    def history(self, row: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        slots = self.table[row, :length]
        assert (self.places[slots] == np.arange(length)).all(), "the table leads to another position's slot"
        return self.tokens[slots]

    def _row_history(self, batch: ForwardBatch, at: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        req = int(np.searchsorted(batch.q_start, at, side="right")) - 1
        return self.history(int(batch.req_pool_idx[req]), int(batch.positions[at]) + 1)

    def finish(self) -> None:
        """Everything is done when it returns."""

    def sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> ForwardOutput:
        allowed = {}
        if masks is not None:
            for row, bits in zip(masks.rows.tolist(), masks.bits, strict=True):
                allowed[row] = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist()
                assert allowed[row], "a mask without tokens"
        out = ForwardOutput(np.zeros(len(batch.samples), dtype=np.int32), [], [])
        for i, (at, spec) in enumerate(zip(batch.sample_rows.tolist(), batch.samples, strict=True)):
            history = self._row_history(batch, at)
            assert history.tolist() == [*spec.prompt_ids, *spec.output_ids]
            out.next_ids[i] = sample_toy(history, spec, allowed.get(i, ALL_IDS))
            out.logprobs.append(
                score([(history, int(out.next_ids[i]))], spec.top_num, spec.token_ids) if spec.want_logprob else None
            )
            if id(spec) in self.nan_rids:
                out.nan_rows.append(i)
        for ask in batch.prompt_logprobs:
            pairs = [(self._row_history(batch, ask.row_start + i), int(t)) for i, t in enumerate(ask.targets)]
            out.prompt_logprobs.append(score(pairs, ask.top_num, ask.token_ids))
        return out


class AheadWorker(ToyWorker):
    """A device that samples when it is told to and says what only when asked. Takes `previous` from what it sampled last; a row whose request has moved on meanwhile samples something useless."""

    def __init__(self, *args: int, **more: int) -> None:
        super().__init__(*args, **more)
        self.info = replace(self.info, runs_ahead=True)
        self.sampled = np.zeros(0, np.int32)
        self.num_ahead = 0
        self.num_useless = 0

    def forward(self, batch: ForwardBatch) -> None:
        if batch.previous is not None:
            self.num_ahead += 1
            assert (batch.previous >= 0).all() and (batch.input_ids == 0).all()
            batch = replace(batch, input_ids=self.sampled[batch.previous])
        super().forward(batch)

    def sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> ForwardOutput:
        raise AssertionError("a device that runs ahead is not waited for")

    def begin_sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> Callable[[], ForwardOutput]:
        every = range(len(batch.samples))
        good = [i for i in every if self._is_current(batch, i)]
        self.num_useless += len(batch.samples) - len(good)
        kept = replace(batch, sample_rows=batch.sample_rows[good], samples=[batch.samples[i] for i in good])
        if masks is not None:
            at = {i: k for k, i in enumerate(good)}
            rows = [i for i in masks.rows.tolist() if i in at]
            bits = [b for i, b in zip(masks.rows.tolist(), masks.bits, strict=True) if i in at]
            masks = VocabMasks(np.array([at[i] for i in rows], np.int32), np.array(bits)) if rows else None
        out = super().sample(kept, masks)
        result = ForwardOutput(np.full(len(batch.samples), 77, np.int32), [None for _ in every], out.prompt_logprobs)
        for k, i in enumerate(good):
            result.next_ids[i], result.logprobs[i] = out.next_ids[k], out.logprobs[k]
        result.nan_rows = [good[k] for k in out.nan_rows]
        self.sampled = result.next_ids.copy()
        return lambda: result

    def _is_current(self, batch: ForwardBatch, i: int) -> bool:
        spec = batch.samples[i]
        ids = [*spec.prompt_ids, *spec.output_ids]
        at = int(batch.sample_rows[i])
        return int(batch.positions[at]) + 1 == len(ids) and self._row_history(batch, at).tolist() == ids


class ToyRuns:
    """The toy's pool as bytes (forward_batch.KVRuns): what was written in each slot, and where it belongs."""

    layout = "toy"

    def __init__(self, worker: ToyWorker) -> None:
        self.run = worker.info.slot_run
        self.run_bytes = 16 * self.run
        self._arrays = (worker.tokens, worker.places)

    def read(self, slots: Int32Array, out: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        assert (slots % self.run == np.arange(len(slots))).all()
        for row, array in zip(out.view(np.int64).reshape(2, self.run), self._arrays, strict=True):
            row[: len(slots)], row[len(slots) :] = array[slots], 0

    def write(self, slot: int, data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        assert slot % self.run == 0
        for row, array in zip(data.view(np.int64).reshape(2, self.run), self._arrays, strict=True):
            array[slot : slot + self.run] = row

    def arena(self, num_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        return np.empty(num_bytes, np.uint8)


def score(
    pairs: list[tuple[np.ndarray[tuple[int], np.dtype[np.int64]], int]], top_num: int, token_ids: tuple[int, ...]
) -> LogprobResult:
    """Log probabilities of (history, target) pairs."""
    n = len(pairs)
    top = sorted(range(top_num))
    return LogprobResult(
        np.array([toy_logprob(h, t) for h, t in pairs], dtype=np.float32),
        np.array([[toy_logprob(h, t) for t in top] for h, _ in pairs], dtype=np.float32).reshape(n, top_num),
        np.array([top for _ in pairs], dtype=np.int32).reshape(n, top_num),
        np.array([[toy_logprob(h, t) for t in token_ids] for h, _ in pairs], dtype=np.float32).reshape(n, len(token_ids)),
    )


# --- the expected answer ----------------------------------------------------------------------------------------------------


@dataclass
class Expected:
    ids: list[int]
    finish: FinishReason
    text: bytes


def expected_output(req: TokenizedReq) -> Expected:
    """What an unconstrained request must answer, computed without a scheduler."""
    params = req.sampling
    assert params.max_new_tokens is not None and params.grammar is None
    ids: list[int] = []
    text = b""
    eos = () if params.ignore_eos else tuple(VOCABULARY.eos_token_ids)
    spec = SampleSpec(params, params.seed or 0, req.input_ids, ids, (*eos, *params.stop_token_ids))
    while len(ids) < params.max_new_tokens:
        token = sample_toy(np.array([*req.input_ids, *ids], dtype=np.int64), spec, ALL_IDS)
        ids.append(token)
        piece = b"" if token in VOCABULARY.special_ids else VOCABULARY.token_bytes[token]
        if token in spec.eos_ids:
            return Expected(ids, FinishReason("stop", matched=token), text if not params.no_stop_trim else text + piece)
        for end in range(len(text) + 1, len(text) + len(piece) + 1):
            so_far = (text + piece)[:end]
            found = [s for s in params.stop if so_far.endswith(s.encode())]
            if found and len(ids) >= params.min_new_tokens:
                stop = max(found, key=len)
                cut = end if params.no_stop_trim else end - len(stop.encode())
                return Expected(ids, FinishReason("stop", matched=stop), so_far[:cut])
        text += piece
    return Expected(ids, FinishReason("length", length=len(ids)), text)


# --- driving a scheduler ----------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """All TokenOuts of one request put together."""

    outs: list[TokenOut] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [i for out in self.outs for i in out.ids]

    @property
    def last(self) -> TokenOut:
        return self.outs[-1]

    @property
    def finish(self) -> FinishReason | None:
        return self.outs[-1].finish if self.outs else None

    @property
    def input_logprobs(self) -> list[Position] | None:
        return next((list(out.input_logprobs) for out in self.outs if out.input_logprobs is not None), None)

    @property
    def output_logprobs(self) -> list[Position]:
        return [p for out in self.outs for p in out.output_logprobs or []]

    def text(self) -> bytes:
        whole = VOCABULARY.text_bytes(self.ids)
        return whole[: len(whole) - self.last.trim_bytes]


_trials: dict[tuple[Vocabulary | None, GrammarOptions], Trials] = {}


class SharedTrials(Trials):
    """No scheduler that ends closes them: others of the test run go on to use them."""

    def close(self) -> None:
        pass


def trials_of(vocabulary: Vocabulary | None, grammar: GrammarOptions) -> Trials:
    """All schedulers of a test run share children; they end with it."""
    key = (vocabulary, replace(grammar, cache_entries=0, cache_bytes=0, jump_forward=True))
    if key not in _trials:
        _trials[key] = SharedTrials(vocabulary, grammar)
    return _trials[key]


open_harnesses: list[Harness] = []
"""of the test that runs: conftest.py closes them at its end"""


class Harness:
    """A scheduler, its inbox and outbox. Every step's invariants are checked unless `check` is off."""

    def __init__(
        self,
        worker: ToyWorker | None = None,
        options: ScheduleOptions | None = None,
        grammar: GrammarOptions | None = None,
        vocabulary: Vocabulary | None = VOCABULARY,
        check: bool = True,
        open_tier: OpenTier | None = None,
        draft_model: DraftModel | None = None,
    ) -> None:
        self.worker = worker or ToyWorker()
        self.messages: list[ToScheduler] = []
        self.answers: dict[str, Answer] = {}
        self.replies: list[ControlReply] = []
        self.stats: list[SchedulerStats] = []
        self.check = check
        self.idle_receives = 0
        grammar = grammar or GrammarOptions(backend="none")
        self.scheduler = Scheduler(
            options or ScheduleOptions(),
            grammar,
            self.worker,
            vocabulary,
            self,
            self,
            trials=trials_of(vocabulary, grammar),
            open_tier=open_tier,
            draft_model=draft_model,
        )
        open_harnesses.append(self)

    def receive(self, timeout: float) -> list[ToScheduler]:
        messages, self.messages = self.messages, []
        self.idle_receives += not messages
        return messages

    def send(self, message: FromScheduler) -> None:
        if isinstance(message, ControlReply):
            self.replies.append(message)
        elif isinstance(message, SchedulerStats):
            self.stats.append(message)
        else:
            for out in message.outs:  # type: ignore[union-attr]
                answer = self.answers.setdefault(out.rid, Answer())
                assert answer.finish is None, "a TokenOut after the last"
                answer.outs.append(out)

    def let_read(self) -> None: ...

    def put(self, *messages: ToScheduler) -> None:
        """Hands messages to the scheduler before its next step."""
        for message in messages:
            self.scheduler.handle(message)

    def step(self) -> bool:
        worked = self.scheduler.step()
        if self.check:
            assert self.scheduler.check_integrity() == []
        return worked

    def run(self, *reqs: TokenizedReq, max_steps: int = 20000) -> list[Answer]:
        """Sends requests and steps until nothing is left to do."""
        self.put(*reqs)
        for _ in range(max_steps):
            self.step()
            if not self.scheduler._live:
                break
        else:
            raise AssertionError("the requests do not end")
        assert self.scheduler.check_integrity() == []
        assert self.scheduler.memory.tree.num_locked == 0
        return [self.answers[req.rid] for req in reqs]


def make_req(
    rid: str, ids: list[int], max_new_tokens: int = 8, stream: bool = False, temperature: float = 0.0, **more: object
) -> TokenizedReq:
    """A request. `more`: fields of TokenizedReq or SamplingParams."""
    outer = {k: more.pop(k) for k in list(more) if k in TokenizedReq.__struct_fields__}
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, **more)  # type: ignore[arg-type]
    return TokenizedReq(rid, ids, params, stream=stream, **outer)  # type: ignore[arg-type]


def logprob_options(start: int = -1, top: int = 0, ids: tuple[int, ...] = ()) -> LogprobOptions:
    return LogprobOptions(start, top, ids)
