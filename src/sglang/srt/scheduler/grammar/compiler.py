"""Compiles constraints on side threads, so that no request waits for another's grammar.

The scheduler calls `submit` with what a request needs and `poll` to learn whether it is ready; neither blocks:

    submit -> cache -> lanes (order, lanes.py) -> trial in a child (trial.py) -> memory limit -> compiled here -> poll

Results, errors included, are kept by content (the most recently used ones, up to a number and to a sum of bytes), and a text
that is being compiled is compiled once. Only what a child has compiled is compiled in this process, with the engine's own long calls at
the lowest priority (low_priority.py), and only what passed the whole trial is given to requests.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import OrderedDict
from typing import Any

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError, OverloadError, RequestError
from sglang.srt.process import isolation
from sglang.srt.process.heap import release_freed_memory
from sglang.srt.process.isolation import START_SECONDS, Cancelled, IsolationError, Patience
from sglang.srt.scheduler.grammar.engines.base import GrammarBackend
from sglang.srt.scheduler.grammar.lanes import NUM_QUICK, NUM_SLOW, QUICK_SECONDS, Client, Lanes, Turn
from sglang.srt.scheduler.grammar.trial import Trials
from sglang.srt.scheduler.stop_regex import STOP_REGEX, compile_stop_regex
from sglang.srt.scheduler.trial_messages import decode_report, encode_trial

MAX_WAITS = 6
"""A text that no thread has taken up after so many times the time limit is given up."""
GRACE_SECONDS = START_SECONDS + 5.0
"""beyond the time of a trial and of compiling: then a thread is taken for lost"""
RELEASE_BYTES = 16 << 20
"""of dropped grammars, after which freed memory goes back to the system"""
REST_SECONDS = 600.0
"""without a new text, after which the children's memory goes back to the system"""
PAUSE_SHARE = 3
"""A thread that compiled a stop expression, which holds the interpreter's lock, then leaves that to others for so many times as
long."""
FREE_TEXT = ("regex", "(?s:.*)")
Key = tuple[str, str] | tuple[str, str, str]
"""(kind, text): a field of SamplingParams and its value, or STOP_REGEX and one expression; or (kind, text, prefix)"""


def _len_of(key: Key) -> int:
    return sum(map(len, key))


class Job:
    """One text on its way. `value` or `error` is set when `done`. `started_at`: when a thread took it up. `num_bytes`: what it
    holds. `num_waiting`: requests that wait for it. `child`: where it is tried."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.submitted_at = time.monotonic()
        self.started_at: float | None = None
        self.done = False
        self.value: Any = None
        self.error: RequestError | OverloadError | None = None
        self.num_bytes = _len_of(key)
        self.num_waiting = 0
        self.child: isolation.Job | None = None

    def end(self, value: Any, error: RequestError | OverloadError | None) -> None:
        if not self.done:  # not given up meanwhile
            self.value, self.error = value, error
            self.done = True


class GrammarCompiler:
    """Owner of the threads and the cache. `backend` None: every grammar is refused. Stop expressions are compiled here too.
    `trials` None: nothing is tried before it is compiled."""

    def __init__(self, backend: GrammarBackend | None, options: GrammarOptions, trials: Trials | None = None) -> None:
        self._backend = backend
        self._options = options
        self._trials = trials
        self._lock = threading.Lock()
        """of the cache, and of what is in use"""
        self._cache: OrderedDict[Key, Job] = OrderedDict()
        self._held: weakref.WeakSet[Job] = weakref.WeakSet()
        """all jobs: in the cache, or in the hands of requests"""
        self._num_dropped = 0
        """bytes, since freed memory went back to the system"""
        self._lanes: Lanes[Job] = Lanes()
        for i in range(NUM_QUICK + NUM_SLOW):
            threading.Thread(target=self._work, name=f"grammar-{i}", daemon=True).start()
        self.is_warm = backend is None

    @property
    def num_kept(self) -> int:
        """Texts that are kept."""
        return self._options.cache_entries

    # --- for the scheduler's loop: none of these waits ------------------------------------------------------------------------

    def rest(self) -> None:
        """Uses an idle moment. Builds what all grammars share, before the first grammar is asked for: it takes a core for the
        better part of a second. Gives back memory that dropped grammars held."""
        self._warm_up()
        if self._trials is not None and self._trials.idle_seconds > REST_SECONDS:
            self._trials.rest()
        if self._num_dropped:
            self._num_dropped = 0
            release_freed_memory()

    def submit(self, key: Key, client: Client = ()) -> Job:
        """The job for `key`: a new one, a running one, or a finished one. A caller that does not wait for its end calls `leave`."""
        with self._lock:
            job = self._cache.get(key)
            if job is not None:
                self._cache.move_to_end(key)
                if not job.done:
                    job.num_waiting += 1
                    self._lanes.put(client, job)  # it may come to its turn earlier
                return job
        job = Job(key)
        job.error = self._refusal(key)
        if job.error is not None:
            job.done = True
            return job
        if key[0] != STOP_REGEX:
            self._warm_up()
        job.num_waiting = 1
        with self._lock:
            self._cache[key] = job
            self._held.add(job)
            self._trim()
        self._lanes.put(client, job)
        return job

    def poll(self, job: Job) -> bool:
        """Whether the job has ended: with a value, with an error, or because its time is up."""
        if job.done:
            return True
        limit, now = self._options.compile_timeout, time.monotonic()
        most = limit if self._trials is None else 2 * limit + GRACE_SECONDS
        if job.started_at is not None and now - job.started_at > most:
            job.error = GrammarError(f"{job.key[0]}: not compiled within {limit:g} s; simplify it", job.key[0])
        elif job.started_at is None and now - job.submitted_at > MAX_WAITS * limit:
            job.error = OverloadError("too many constraints are waiting to be compiled; try again later")
            self._forget(job)
        else:
            return False
        job.done = True
        return True

    def leave(self, job: Job) -> None:
        """A request does not wait for the job any more. A job that no request waits for is stopped."""
        job.num_waiting -= 1
        if job.done or job.num_waiting > 0:
            return
        self._forget(job)
        job.end(None, OverloadError("cancelled"))
        if job.child is not None:
            threading.Thread(target=job.child.cancel, daemon=True).start()

    def flush(self) -> None:
        """Forgets all that is kept. Called when no request runs or waits."""
        with self._lock:
            self._cache = OrderedDict((key, job) for key, job in self._cache.items() if not job.done)
        if self._trials is not None:
            self._trials.rest()
        self._num_dropped = 0
        release_freed_memory()

    def close(self) -> None:
        """Lets the threads end, and the children."""
        self._lanes.close()
        if self._trials is not None:
            self._trials.close()

    # --- the cache ------------------------------------------------------------------------------------------------------------

    def _forget(self, job: Job) -> None:
        with self._lock:
            if self._cache.get(job.key) is job:
                del self._cache[job.key]

    def _num_held(self) -> int:
        return sum(job.num_bytes for job in self._held)

    def _trim(self) -> None:
        """Drops what was used least recently, until numbers and bytes are kept. Under the lock."""
        options, size = self._options, self._num_held()
        for key, job in list(self._cache.items()):
            if len(self._cache) <= options.cache_entries and size <= options.cache_bytes:
                return
            if job.done:
                del self._cache[key]
                size -= job.num_bytes
                self._num_dropped += job.num_bytes

    def _make_room(self, job: Job, num_bytes: int, counted: int = 0) -> None:
        """Makes room for a grammar that is about to be compiled, or that holds more than its `counted` bytes. Raises
        GrammarError or OverloadError when it does not fit beside what requests use."""
        most = self._options.cache_bytes
        if num_bytes > most:
            raise GrammarError(f"{job.key[0]}: too complex: it holds {num_bytes >> 20} MB", job.key[0])
        with self._lock:
            job.num_bytes += num_bytes - counted
            self._trim()
            if self._num_held() > most:  # what left the cache is in use
                raise OverloadError("the constraints of other requests fill the memory for them; try again later")

    # --- the threads ----------------------------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        if self.is_warm or self._backend is None:
            return
        self.is_warm = True
        threading.Thread(target=self._prepare, name="grammar-tables", daemon=True).start()

    def _prepare(self) -> None:
        assert self._backend is not None
        with contextlib.suppress(GrammarError):  # compiling raises it again, and reports it
            self._backend.prepare()
        release_freed_memory()

    def _work(self) -> None:
        while (turn := self._lanes.take()) is not None:
            try:
                seconds = self._compile(turn.item, turn)
            finally:
                turn.end()
            time.sleep(seconds * PAUSE_SHARE)
            del turn  # it would hold what it compiled until the next one comes
            if self._num_dropped > RELEASE_BYTES:
                self._num_dropped = 0
                release_freed_memory()

    def _compile(self, job: Job, turn: Turn[Job]) -> float:
        """Returns for how many seconds it may have held the interpreter's lock."""
        if job.done or job.started_at is not None:  # waited in two places, or is not wanted any more
            return 0.0
        kind, text = job.key[:2]
        job.started_at = time.monotonic()
        try:
            value = self._try(job, self._trials, turn) if self._trials is not None else None
            began = time.monotonic()
            if value is None:
                value = compile_stop_regex(text) if kind == STOP_REGEX else self._compile_grammar(*job.key)
        except Cancelled:
            job.started_at, job.num_bytes = None, _len_of(job.key)
            return 0.0
        except (RequestError, OverloadError) as error:
            if isinstance(error, OverloadError):
                self._forget(job)
            job.num_bytes = _len_of(job.key)
            job.end(None, error)
        except BaseException as error:  # noqa: BLE001  an engine's panic is no Exception; the request must hear of it
            job.end(None, GrammarError(f"{kind}: the grammar engine failed: {error}", kind))
        else:
            job.end(value, None)
            return time.monotonic() - began if kind == STOP_REGEX else 0.0
        return 0.0

    def _try(self, job: Job, trials: Trials, turn: Turn[Job]) -> Any:
        """Tries and compiles the job's text; None for a stop expression, which is compiled after its trial. Raises RequestError
        or OverloadError; Cancelled when the trial has taken too long to go on now."""
        kind, compiled = job.key[0], []
        counted = 0

        def compile_along(report: bytes) -> None:
            nonlocal counted
            counted = decode_report(report).num_bytes
            self._make_room(job, counted)
            compiled.append(self._compile_grammar(*job.key))

        try:
            child = job.child = trials.submit(kind)
            patience = Patience(QUICK_SECONDS, lambda: _goes_on(turn, child))
            reply = child.result(encode_trial(*job.key), patience=patience, on_part=compile_along)
        except Cancelled:
            raise
        except IsolationError as error:
            raise GrammarError(f"{kind}: compiling it {error}; simplify it", kind) from error
        finally:
            job.child = None
        report = decode_report(reply)
        if report.error is not None:
            raise GrammarError(report.error, kind)
        self._make_room(job, report.num_bytes, counted)
        return compiled[0] if compiled else None

    def _compile_grammar(self, kind: str, text: str, prefix: str = "") -> Any:
        assert self._backend is not None
        return self._backend.compile(kind, text, prefix) if prefix else self._backend.compile(kind, text)

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


def _goes_on(turn: Turn[Job], child: isolation.Job) -> bool:
    if not turn.goes_on():
        return False
    child.step_back()
    return True
