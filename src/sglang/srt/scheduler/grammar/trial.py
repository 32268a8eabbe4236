"""Trials: a constraint is compiled and stepped in a child process before the scheduler compiles it.

    scheduler                                     fork server                        child
    Trials.submit --(kind, text, prefix)-->       builds the engine's tables once    compiles
       compiles it too <--(bytes)-----------------------------------------------------  |  steps, measures
       gives it to requests <--(error, bytes)-----------------------------------------  '

Engines are native code: an input may crash the process, fill its memory or never terminate. The child, which has limits of memory and
time, takes the damage, and the request is refused. Once the child has compiled a text, the scheduler compiles it while the child steps
through it; the scheduler uses it only after the child has finished.

Stop expressions are tried and searched in children of their own (stop_regex.py).
"""

from __future__ import annotations

import gc
import random
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError, RequestError
from sglang.srt.process.heap import held_bytes, release_freed_memory, resident_bytes
from sglang.srt.process.isolation import Isolated, Job, Limits
from sglang.srt.scheduler.grammar.engines.base import GrammarBackend, GrammarState, UInt32Array
from sglang.srt.scheduler.grammar.engines.registry import create_backend
from sglang.srt.scheduler.stop_regex import REGEX_CHILDREN, REGEX_MEMORY, SEARCH, STOP_REGEX
from sglang.srt.scheduler.trial_messages import Report, decode_trial, encode_trial
from sglang.srt.vocabulary import Vocabulary

MEMORY = 512 << 20
"""of a child, beyond the engine's tables"""
NUM_TOKENS = 64
"""of a text that the grammar allows, and of one that it does not"""
EVERY = 4
"""tokens for which a mask is used, as far as they go on to be allowed, or are forced: masks are most of the work"""
STEP_SECONDS = 0.03
"""a token of processor time; others of the step wait for it"""
MAX_SLOW = 3
"""tokens that may take longer: engines find things out once"""
GROWTH = 1024
"""tokens for which a grammar that still grows is taken to go on so"""
MUCH = 64 << 10
"""bytes for half of the tokens; less is noise"""
NICENESS = 10
USUAL = '{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "number"}}}}'
"""what children are made ready with"""
NUM_SPARE = 2
NUM_JOBS = 100
"""of one child, so long as its memory stays what it was"""


class _Setup(msgspec.Struct, frozen=True):
    """Arguments from which the fork server builds an engine."""

    options: GrammarOptions
    vocabulary: Vocabulary | None


class Trials:
    """Owner of two fork servers and their children: one with the engine, and a small one for stop expressions. They start when they
    are first needed. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary | None, options: GrammarOptions) -> None:
        seconds = options.compile_timeout
        limits = Limits(MEMORY, seconds, seconds, NICENESS, jobs=NUM_JOBS)
        self._grammars = Isolated(f"{__name__}:create", lambda: _encode_setup(vocabulary, options), limits, NUM_SPARE)
        self._regexes = Isolated(REGEX_CHILDREN, b"", Limits(REGEX_MEMORY, seconds, seconds, NICENESS), NUM_SPARE)
        self._used_at: float | None = None

    def submit(self, kind: str) -> Job:
        """A child for one job. Raises IsolationError."""
        try:
            return (self._regexes if kind in (STOP_REGEX, SEARCH) else self._grammars).submit()
        finally:
            self._used_at = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """Since the last job, from whichever thread; 0 if there was none since `rest`."""
        used = self._used_at
        return time.monotonic() - used if used is not None else 0.0

    def rest(self) -> None:
        """Ends the fork servers, on a thread: they hold as much memory as an engine's tables take. They are started again by the next
        job."""
        self._used_at = None
        threading.Thread(target=self._end_children, name="grammar-rest", daemon=True).start()

    def _end_children(self) -> None:
        self._grammars.rest()
        self._regexes.rest()

    def close(self) -> None:
        """Ends the fork servers and their children."""
        self._grammars.close()
        self._regexes.close()


def _encode_setup(vocabulary: Vocabulary | None, options: GrammarOptions) -> bytes:
    return msgspec.msgpack.encode(_Setup(options, vocabulary))


# --- in the fork server and its children ------------------------------------------------------------------------------------


def create(setup: bytes) -> Tester:
    """Called once in the fork server: builds the engine, and returns what its children run."""
    given = msgspec.msgpack.decode(setup, type=_Setup)
    return Tester(given.vocabulary, given.options)


class Tester:
    """Does the jobs of children. Starts no thread, which a child would not have."""

    def __init__(self, vocabulary: Vocabulary | None, options: GrammarOptions) -> None:
        self._backend = create_backend(vocabulary, options, threads=False)
        self._is_ready = False
        self._held = 0
        self._try_usual()
        gc.collect()
        gc.freeze()  # a child that collects garbage would touch, and so copy, all of it
        release_freed_memory()
        self._held = held_bytes()

    def get_ready(self) -> None:
        """In a child, before each job. Before the first its memory becomes its own, where jobs will write."""
        if not self._is_ready:
            self._try_usual()
        self._is_ready = True
        self._held = held_bytes()

    def _try_usual(self) -> None:
        if self._backend is not None:
            deque(self(encode_trial("json_schema", USUAL)), maxlen=0)

    def __call__(self, payload: bytes) -> Generator[bytes, None, bytes]:
        """Two reports: when it is compiled, and at the end."""
        kind, text, prefix = decode_trial(payload)
        assert self._backend is not None, "a grammar without an engine is refused before"
        reports = try_grammar(self._backend, kind, text, prefix, self._held or None)
        try:
            yield next(reports).encode()
            return next(reports).encode()
        except RequestError as error:
            return Report(error=str(error)).encode()


def try_grammar(
    backend: GrammarBackend, kind: str, text: str, prefix: str = "", held_before: int | None = None
) -> Iterator[Report]:
    """Compiles, and then steps: each with the bytes that the grammar holds after it, and that it will if it grows on. Raises
    GrammarError."""
    before = held_bytes() if held_before is None else held_before
    state = backend.compile(kind, text, prefix)
    yield Report(num_bytes=max(held_bytes() - before, 0))
    walk = Walk(backend, state.copy(), kind)
    walk.run()
    yield Report(num_bytes=max(held_bytes() - before, 0) + walk.growth * GROWTH)


class Walk:
    """Steps through what a grammar allows, and through what it does not. `growth`: bytes for each token, where
    it is much."""

    def __init__(self, backend: GrammarBackend, state: GrammarState, kind: str) -> None:
        self._state = state
        self._kind = kind
        self._mask: UInt32Array = np.zeros(backend.num_words, dtype=np.uint32)
        self._places = np.flatnonzero(self._mask)
        """words of the mask that allow something"""
        self._rng = random.Random(0)
        self._num_slow = 0
        self.growth = 0

    def run(self) -> None:
        """Raises GrammarError where the engine runs into a limit, or takes long again and again."""
        invalid = self._state.copy()
        taken: list[int] = []
        half = num_with_mask = 0
        while len(taken) < NUM_TOKENS:
            if not half and len(taken) >= NUM_TOKENS // 2:
                half = resident_bytes()
            began = time.thread_time()
            with_mask = len(taken) >= num_with_mask * EVERY
            num_with_mask += with_mask
            tokens = self._step(with_mask)
            self._check(time.thread_time() - began)
            if not tokens:
                self._check_possible(taken)
                break
            taken += tokens[: NUM_TOKENS - len(taken)]
        grown = resident_bytes() - half if half else 0
        self.growth = grown // (NUM_TOKENS // 2) if grown > MUCH else 0
        self._break(invalid, taken[: len(taken) // 2])

    def _step(self, with_mask: bool) -> list[int]:
        """Takes tokens that are allowed, and returns them: all that are forced, or one. None where nothing but the end of the text
        may follow."""
        if self._state.is_finished:
            return []
        forced = self._state.forced_tokens()
        if with_mask:
            self._look()
        if forced:
            return forced if self._state.accept_all(forced) else []
        if not with_mask:
            token, after = self._pick(self._mask, self._places), self._state.copy()
            if token is not None and after.accept(token):
                self._state = after
                return [token]
            self._look()
        token = self._pick(self._mask, self._places)
        return [token] if token is not None and self._state.accept(token) else []

    def _look(self) -> None:
        self._state.fill_mask(self._mask)
        self._places = np.flatnonzero(self._mask)

    def _pick(self, words: UInt32Array, places: npt.NDArray[np.intp]) -> int | None:
        """One of the set bits. `places`: the words that have any."""
        if not len(places):
            return None
        place = int(places[int(self._rng.random() * len(places))])
        bits = int(words[place])
        for _ in range(self._rng.getrandbits(2)):  # one of the lowest
            bits = bits & (bits - 1) or bits
        return place * 32 + (bits & -bits).bit_length() - 1

    def _check(self, seconds: float) -> None:
        if self._state.error is not None:
            raise GrammarError(f"{self._kind}: too complex: {self._state.error}", self._kind)
        self._num_slow += seconds > STEP_SECONDS
        if self._num_slow > MAX_SLOW or seconds > 10 * STEP_SECONDS:
            raise GrammarError(f"{self._kind}: too complex: a token takes {seconds * 1000:.0f} ms; simplify it", self._kind)

    def _check_possible(self, taken: list[int]) -> None:
        if not taken and not len(self._places) and not self._state.is_finished:
            raise GrammarError(f"{self._kind}: no text satisfies it", self._kind)

    def _break(self, state: GrammarState, taken: list[int]) -> None:
        """Goes on from a valid beginning with tokens that are not allowed, as a faulty caller would. The state does not move."""
        state.accept_all(taken)
        state.fill_mask(self._mask)
        refused = ~self._mask
        places = np.flatnonzero(refused)
        for i in range(NUM_TOKENS - len(taken)):
            token = self._pick(refused, places)
            if token is None:
                return
            state.accept(token)
            if i % EVERY == 0:
                state.forced_tokens()
            if state.error is not None:
                return
