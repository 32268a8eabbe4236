"""Compiles constraints on side threads, so that no request waits for another's grammar.

The scheduler `submit`s what a request needs and asks with `poll` whether it is there; nothing here ever blocks it. Results,
errors included, are kept by content (the most recently used ones), and a text that is being compiled is compiled once. The
engine's own long calls run with the lowest priority (aside.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError, OverloadError, RequestError
from sglang.srt.heap import release_freed_memory
from sglang.srt.scheduler.finish import compile_stop_regex
from sglang.srt.scheduler.grammar.base import GrammarBackend

NUM_THREADS = 2
MAX_WAITS = 6
"""A text that no thread has taken up after so many times the time limit is given up."""
STOP_REGEX = "stop_regex"
FREE_TEXT = ("regex", "(?s:.*)")
Key = tuple[str, str] | tuple[str, str, str]
"""(kind, text): a field of SamplingParams and its value, or STOP_REGEX and one expression; or (kind, text, prefix)"""


class Job:
    """One text on its way. `value` or `error` is set when `done`. `started_at`: when a thread took it up."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.submitted_at = time.monotonic()
        self.started_at: float | None = None
        self.done = False
        self.value: Any = None
        self.error: RequestError | OverloadError | None = None


class GrammarCompiler:
    """Owner of the threads and the cache. `backend` None: every grammar is refused. Stop expressions are compiled here too."""

    def __init__(self, backend: GrammarBackend | None, options: GrammarOptions) -> None:
        self._backend = backend
        self._options = options
        self._cache: OrderedDict[Key, Job] = OrderedDict()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        for i in range(NUM_THREADS):
            threading.Thread(target=self._work, name=f"grammar-{i}", daemon=True).start()
        self.is_warm = backend is None

    @property
    def num_kept(self) -> int:
        """Texts that are kept."""
        return self._options.cache_entries

    def warm_up(self) -> None:
        """Builds what all grammars share, if nobody has asked for a grammar yet. For an idle moment: it takes a core for the
        better part of a second."""
        if not self.is_warm and self._backend is not None:
            self.is_warm = True
            self._queue.put(self._backend.prepare)
            self._queue.put(release_freed_memory)

    def encode(self, text: str) -> list[int]:
        """Canonical tokens of a text; empty when there are none."""
        return self._backend.encode(text) if self._backend is not None else []

    def submit(self, key: Key) -> Job:
        """The job for `key`: a new one, one under way, or one done before."""
        job = self._cache.get(key)
        if job is not None:
            self._cache.move_to_end(key)
            return job
        job = Job(key)
        job.error = self._refusal(key)
        if job.error is not None:
            job.done = True
            return job
        self._cache[key] = job
        self.is_warm = self.is_warm or key[0] != STOP_REGEX
        while len(self._cache) > self._options.cache_entries:
            self._cache.popitem(last=False)
        self._queue.put(lambda: self._compile(job))
        return job

    def poll(self, job: Job) -> bool:
        """Whether the job has ended: with a value, with an error, or because its time is up. Its thread then goes on to
        an end that nobody waits for, and the text is refused at once for as long as it is remembered."""
        if job.done:
            return True
        limit, now = self._options.compile_timeout, time.monotonic()
        if job.started_at is not None and now - job.started_at > limit:
            job.error = GrammarError(f"{job.key[0]}: not compiled within {limit:g} s; simplify it", job.key[0])
        elif job.started_at is None and now - job.submitted_at > MAX_WAITS * limit:
            job.error = OverloadError("too many constraints are waiting to be compiled; try again later")
            self._cache.pop(job.key, None)
        else:
            return False
        job.done = True
        return True

    def close(self) -> None:
        """Lets the threads end."""
        for _ in range(NUM_THREADS):
            self._queue.put(None)

    def _refusal(self, key: Key) -> RequestError | None:
        kind, text = key[:2]
        if kind == STOP_REGEX:
            return None
        if self._backend is None:
            return GrammarError(f"{kind} is set, but this server runs without a grammar backend", kind)
        size = len(text)
        if size <= self._options.max_bytes:
            try:
                size = len(text.encode())
            except UnicodeEncodeError:
                return GrammarError(f"{kind}: half of a surrogate pair is no character", kind)
        if size > self._options.max_bytes:
            return GrammarError(f"{kind} has {size} bytes; at most {self._options.max_bytes} are allowed", kind)
        return None

    def _compile(self, job: Job) -> None:
        kind, text = job.key[:2]
        job.started_at = time.monotonic()
        try:
            value = compile_stop_regex(text) if kind == STOP_REGEX else self._compile_grammar(*job.key)
        except RequestError as error:
            self._end(job, None, error)
        except BaseException as error:  # noqa: BLE001  an engine's panic is no Exception; the request must hear of it
            self._end(job, None, GrammarError(f"{kind}: the grammar engine failed: {error}", kind))
        else:
            self._end(job, value, None)

    def _compile_grammar(self, kind: str, text: str, prefix: str = "") -> Any:
        assert self._backend is not None
        return self._backend.compile(kind, text, prefix) if prefix else self._backend.compile(kind, text)

    def _end(self, job: Job, value: Any, error: RequestError | None) -> None:
        if not job.done:  # not given up meanwhile
            job.value, job.error = value, error
            job.done = True

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            try:
                task()
            except Exception:  # noqa: BLE001  outermost loop of this thread; `compile` meets the same error and reports it
                continue
