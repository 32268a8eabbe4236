"""Trials: a constraint is compiled and stepped in a child process before the scheduler compiles it.

    scheduler                                     fork server                        child, one per trial
    Trials.run --(kind, text, prefix)-->          builds the engine's tables once    compiles, steps, measures, ends
               <--(error, bytes, seconds)--------------------------------------------'

Engines are native code: a text may stop the process, fill its memory or never come to an end. It does so in the child then, which
has limits of memory and time, and the request is refused. What passed here is compiled in the scheduler.

Stop expressions (stop_regex.py) are tried and searched in the same children.
"""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable

import msgspec
import numpy as np

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError, RequestError
from sglang.srt.heap import held_bytes, release_freed_memory
from sglang.srt.process.isolation import Isolated, Job, Limits
from sglang.srt.scheduler.grammar.base import GrammarBackend, GrammarState, UInt32Array
from sglang.srt.scheduler.stop_regex import SEARCH, STOP_REGEX, search, try_stop_regex
from sglang.srt.vocabulary import Vocabulary

MEMORY = 512 << 20
"""of a child, beyond the engine's tables"""
NUM_TOKENS = 64
"""of a text that the grammar allows, and of one that it does not"""
STEP_SECONDS = 0.03
"""a token of processor time; others of the step wait for it"""
MAX_SLOW = 3
"""tokens that may take longer: engines find things out once"""
NICENESS = 10
NUM_SPARE = 2


class Report(msgspec.Struct, frozen=True):
    """What came of a trial. `num_bytes`: what the constraint holds after it."""

    error: str | None = None
    num_bytes: int = 0


class _Setup(msgspec.Struct, frozen=True):
    """What the fork server builds an engine from. `vocabulary` None: it has none, and tries stop expressions only."""

    options: GrammarOptions
    vocabulary: Vocabulary | None


class Trials:
    """Owner of the fork server and its children. It starts with the first trial, or with `start`. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary | None, options: GrammarOptions) -> None:
        seconds = options.compile_timeout
        limits = Limits(MEMORY, seconds, seconds, NICENESS)
        self._isolated = Isolated(f"{__name__}:create", lambda: _encode_setup(vocabulary, options), limits, NUM_SPARE)

    def start(self) -> None:
        """Has the engine built in the fork server; does not wait for it. Raises IsolationError."""
        self._isolated.start()

    def submit(self) -> Job:
        """A child for one job. Raises IsolationError."""
        return self._isolated.submit()

    def close(self) -> None:
        """Ends the fork server and its children."""
        self._isolated.close()


def encode_trial(kind: str, text: str, prefix: str = "") -> bytes:
    """The payload of a job that tries a constraint; its reply is read by `decode_report`."""
    return msgspec.msgpack.encode([kind, text.encode(errors="surrogatepass"), prefix])


def decode_report(reply: bytes) -> Report:
    return msgspec.msgpack.decode(reply, type=Report)


def _encode_setup(vocabulary: Vocabulary | None, options: GrammarOptions) -> bytes:
    return msgspec.msgpack.encode(_Setup(options, vocabulary if options.backend != "none" else None))


# --- in the fork server and its children ------------------------------------------------------------------------------------


def create(setup: bytes) -> Callable[[bytes], bytes]:
    """Called once in the fork server: builds the engine, and returns what its children run. Starts no thread, which a child
    would not have."""
    from sglang.srt.scheduler.grammar.registry import create_backend

    given = msgspec.msgpack.decode(setup, type=_Setup)
    backend = create_backend(given.vocabulary, given.options, threads=False)
    with contextlib.suppress(GrammarError):  # compiling meets it again
        if backend is not None:
            backend.prepare()
    del setup, given
    gc.collect()
    gc.freeze()  # a child that collects garbage would touch, and so copy, all of it
    release_freed_memory()
    return lambda payload: _work(backend, payload)


def _work(backend: GrammarBackend | None, payload: bytes) -> bytes:
    kind, *rest = msgspec.msgpack.decode(payload)
    if kind == SEARCH:
        return search(rest)
    data, prefix = rest
    text = data.decode(errors="surrogatepass")
    try:
        if kind == STOP_REGEX:
            report = Report(num_bytes=try_stop_regex(text))
        else:
            assert backend is not None, "a grammar without an engine is refused before"
            report = Report(num_bytes=try_grammar(backend, kind, text, prefix))
    except RequestError as error:
        report = Report(error=str(error))
    return msgspec.msgpack.encode(report)


def try_grammar(backend: GrammarBackend, kind: str, text: str, prefix: str = "") -> int:
    """Compiles and steps. Returns the bytes held after that. Raises GrammarError."""
    before = held_bytes()
    state = backend.compile(kind, text, prefix)
    _Walk(backend, state.copy(), kind).run()
    return max(held_bytes() - before, 0)


class _Walk:
    """Steps through what a grammar allows, and through what it does not."""

    def __init__(self, backend: GrammarBackend, state: GrammarState, kind: str) -> None:
        self._state = state
        self._kind = kind
        self._mask: UInt32Array = np.zeros(backend.num_words, dtype=np.uint32)
        self._rng = random.Random(0)
        self._num_slow = 0

    def run(self) -> None:
        """Raises GrammarError where the engine runs into a limit, or takes long again and again."""
        invalid, taken = self._state.copy(), []
        for _ in range(NUM_TOKENS):
            began = time.thread_time()
            token = self._step()
            if token is not None:
                taken.append(token)
            self._check(time.thread_time() - began)
            if token is None or self._state.is_finished:
                break
        self._break(invalid, taken[: len(taken) // 2])

    def _step(self) -> int | None:
        """Takes a token that is allowed, and returns it; None where only the end of the text is."""
        self._state.fill_mask(self._mask)
        self._state.forced_tokens()
        words = np.flatnonzero(self._mask)
        if not len(words):
            return None
        word = int(words[self._rng.randrange(len(words))])
        bits = int(self._mask[word])
        token = word * 32 + self._rng.choice([i for i in range(32) if bits >> i & 1])
        return token if self._state.accept(token) else None

    def _check(self, seconds: float) -> None:
        if self._state.error is not None:
            raise GrammarError(f"{self._kind}: too complex: {self._state.error}", self._kind)
        self._num_slow += seconds > STEP_SECONDS
        if self._num_slow > MAX_SLOW or seconds > 10 * STEP_SECONDS:
            raise GrammarError(f"{self._kind}: too complex: a token takes {seconds * 1000:.0f} ms; simplify it", self._kind)

    def _break(self, state: GrammarState, taken: list[int]) -> None:
        """Goes on from a valid beginning with tokens that are not allowed, as a faulty caller would."""
        state.accept_all(taken)
        for _ in range(NUM_TOKENS - len(taken)):
            state.fill_mask(self._mask)
            barred = np.flatnonzero(self._mask != np.uint32(0xFFFFFFFF))
            if not len(barred):
                return
            word = int(barred[self._rng.randrange(len(barred))])
            bits = int(self._mask[word])
            state.accept(word * 32 + self._rng.choice([i for i in range(32) if not bits >> i & 1]))
            state.forced_tokens()
            if state.error is not None:
                return
