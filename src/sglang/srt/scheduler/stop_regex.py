"""Stop expressions (regular expressions that end an output): compiled once, searched after every token of a request that has some.

The package `regex` holds the interpreter lock and backtracks, so a search may take exponential time. Therefore

    compiling   is tried in a child first, under limits of time and memory
    searching   on the loop there are STEP_SECONDS a step for all requests together; a search that needs longer goes on in a child
                (`Searches`), and its request skips steps until it is done. SEARCH_SECONDS for all expressions of a request and one
                token is the limit: beyond it the request fails

The place of a search does not change its result.
"""

from __future__ import annotations

import codecs
import queue
import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol

import msgspec
import regex

from sglang.srt.errors import RequestError
from sglang.srt.process.heap import held_bytes
from sglang.srt.process.isolation import Cancelled, IsolationError, Job
from sglang.srt.scheduler.trial_messages import Report, decode_trial

STOP_REGEX = "stop_regex"
SEARCH = "search"
"""the jobs of children"""
SEARCH_SECONDS = 0.05
"""processor time for one token of a request"""
STEP_SECONDS = 0.002
"""of the loop's processor time, for all requests together"""
MIN_SECONDS = 0.0001
"""what a search on the loop needs to be worth a try"""
QUICK_SECONDS = 0.0005
"""a search of so much processor time may be on the loop again"""
COMPILE_SECONDS = 0.02
"""processor time; compiling holds the interpreter's lock"""
MAX_BYTES = 2 << 20
"""of a compiled expression"""
REGEX_CHILDREN = f"{__name__}:create"
REGEX_MEMORY = 64 << 20
"""of a child"""
NUM_THREADS = 2
"""searches in children at a time"""


def compile_stop_regex(text: str) -> Any:
    """A stop expression, in the syntax of the package `regex` (Python's and more). Raises RequestError."""
    try:
        pattern = regex.compile(text, cache_pattern=False)
    except regex.error as error:
        raise RequestError(f"stop_regex {text!r} is not valid: {error}", STOP_REGEX) from error
    except (RecursionError, OverflowError, MemoryError) as error:
        raise RequestError("a stop_regex is nested too deeply or repeats too often", STOP_REGEX) from error
    try:
        matches_nothing = pattern.fullmatch("", timeout=SEARCH_SECONDS) is not None
    except TimeoutError as error:
        raise RequestError(f"stop_regex {text!r} takes too long", STOP_REGEX) from error
    if matches_nothing:
        raise RequestError(f"stop_regex {text!r} matches the empty text and would stop at once", STOP_REGEX)
    return pattern


def try_stop_regex(text: str) -> int:
    """Compiles an expression in a child; returns the bytes that it holds. Raises RequestError."""
    before, began = held_bytes(), time.thread_time()
    pattern = compile_stop_regex(text)
    seconds, size = time.thread_time() - began, max(held_bytes() - before, 0)
    if seconds > COMPILE_SECONDS or size > MAX_BYTES:
        raise RequestError(f"stop_regex {pattern.pattern[:100]!r} repeats too often: it is too large", STOP_REGEX)
    return size


# --- one search -------------------------------------------------------------------------------------------------------------


class Found(msgspec.Struct, frozen=True):
    """The result of a search for all expressions of a request. `starts`: where a match of each may still begin; `match`: end
    and start of the first match to end, and which expression's it is."""

    starts: list[int]
    match: tuple[int, int, int] | None = None
    seconds: float = 0.0


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Which matches in a text count. `starts`: where one of each expression may begin. Without `look` all are passed over.

    Behind a text that was searched by another scheduler, token by token: `ends` are the lengths of its beginnings whose matches
    were passed over, and none that counts begins before `known`."""

    starts: list[int]
    look: bool
    ends: list[int] = []
    known: int = 0

    @property
    def num_places(self) -> int:
        """Tokens that are searched for."""
        return len(self.ends) + 1


def search_all(patterns: Sequence[Any], text: str, span: Span, seconds: float) -> Found:
    """Searches `span` for all expressions. Raises TimeoutError after so much processor time, which is what `regex` goes by as well: on a
    busy machine a search takes longer, and is no more expensive for that."""
    deadline = time.thread_time() + seconds
    after: list[int] = []
    found: tuple[int, int, str, int] | None = None
    for i, (pattern, start) in enumerate(zip(patterns, span.starts, strict=True)):
        for end in span.ends:
            start, _ = _first_match(pattern, text[:end], start, False, deadline)
        start, match = _first_match(pattern, text, max(start, span.known), span.look, deadline)
        after.append(start)
        if match is not None:
            this = (match.end(), match.start(), pattern.pattern, i)
            found = this if found is None else min(found, this)
    return Found(after, found and (found[0], found[1], found[3]))


def _first_match(pattern: Any, text: str, start: int, look: bool, deadline: float) -> tuple[int, Any]:
    """The place where a later match may begin, and the first match from `start` on. Without `look` matches are skipped."""
    while start <= len(text):
        left = deadline - time.thread_time()
        if left <= 0:
            raise TimeoutError
        match = pattern.search(text, start, partial=True, timeout=left)
        if match is None or match.partial:
            return len(text) if match is None else match.start(), None
        if look:
            return match.end(), match
        start = max(match.end(), start + 1)  # an empty one is passed over as well
    return start, None


class SearchJob(msgspec.Struct, frozen=True, array_like=True):
    """A search in a child process; texts are UTF-8 and may hold surrogates."""

    kind: str
    expressions: list[bytes]
    text: bytes
    span: Span


def create(setup: bytes) -> Callable[[bytes], bytes]:
    """Called once in the fork server of stop expressions."""
    try_stop_regex("a|[b-c]{2}")  # what the first one builds is no other's fault
    return _work


def _work(payload: bytes) -> bytes:
    (kind, *_) = msgspec.msgpack.decode(payload)
    if kind == SEARCH:
        return _search(msgspec.msgpack.decode(payload, type=SearchJob))
    try:
        report = Report(num_bytes=try_stop_regex(decode_trial(payload)[1]))
    except RequestError as error:
        report = Report(error=str(error))
    return msgspec.msgpack.encode(report)


def _search(job: SearchJob) -> bytes:
    """Found; nothing when the time is up."""
    patterns = [regex.compile(expression.decode(errors="surrogatepass")) for expression in job.expressions]
    began = time.thread_time()
    try:
        found = search_all(patterns, job.text.decode(errors="surrogatepass"), job.span, SEARCH_SECONDS * job.span.num_places)
    except TimeoutError:
        return b""
    return msgspec.msgpack.encode(msgspec.structs.replace(found, seconds=time.thread_time() - began))


# --- searches off the loop --------------------------------------------------------------------------------------------------


class Children(Protocol):
    """The children in which searches continue (grammar/trial.py)."""

    def submit(self, kind: str) -> Job: ...


class Search:
    """One search in a child. `found` or `error` is set when `done`."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.done = False
        self.dropped = False
        self.found: Found | None = None
        self.error: RequestError | None = None

    def run(self, job: Job) -> None:
        try:
            reply = job.result(self.payload)
        except Cancelled:
            self.error = RequestError("stop_regex: the server is shutting down", STOP_REGEX)
        except IsolationError as error:
            self.error = RequestError(f"stop_regex: the search {error}", STOP_REGEX)
        else:
            if reply:
                self.found = msgspec.msgpack.decode(reply, type=Found)
            else:
                limit = f"{SEARCH_SECONDS:g} s"
                self.error = RequestError(f"stop_regex takes longer than {limit} on one token; simplify it", STOP_REGEX)
        self.done = True


class Searches:
    """Owner of the time that searches may take on the loop, and of the threads that wait for children. Used by one thread."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._queue: queue.SimpleQueue[Search | None] = queue.SimpleQueue()
        self._num_threads = 0
        self._left = STEP_SECONDS
        self.has_searched = False
        """since `begin_step`"""
        self.num_pending = 0
        """searches off the loop whose requests have not gone on"""

    def begin_step(self) -> None:
        self._left = STEP_SECONDS
        self.has_searched = False

    def now(self, patterns: Sequence[Any], text: str, span: Span) -> Found | None:
        """Searches at once; None when that takes more time than the step has left."""
        if self._left < MIN_SECONDS:
            return None
        self.has_searched = True
        began = time.thread_time()
        try:
            return search_all(patterns, text, span, self._left)
        except TimeoutError:
            return None
        finally:
            self._left -= time.thread_time() - began

    def later(self, patterns: Sequence[Any], text: str, span: Span) -> Search:
        """Begins to search in a child."""
        expressions = [pattern.pattern.encode(errors="surrogatepass") for pattern in patterns]
        job = SearchJob(SEARCH, expressions, text.encode(errors="surrogatepass"), span)
        search = Search(msgspec.msgpack.encode(job))
        if self._num_threads < NUM_THREADS:
            threading.Thread(target=self._work, name=f"stop-regex-{self._num_threads}", daemon=True).start()
            self._num_threads += 1
        self.num_pending += 1
        self._queue.put(search)
        return search

    def close(self) -> None:
        """Lets the threads end."""
        for _ in range(self._num_threads):
            self._queue.put(None)

    def _work(self) -> None:
        while (search := self._queue.get()) is not None:
            if search.dropped:
                continue
            try:
                job = self._children.submit(SEARCH)
            except IsolationError as error:
                search.error = RequestError(f"stop_regex: the search {error}", STOP_REGEX)
                search.done = True
            else:
                search.run(job)


class StopRegexes:
    """Stop expressions, searched in the characters that are complete. Each remembers where a match could still begin."""

    def __init__(self, patterns: Sequence[Any], searches: Searches) -> None:
        self._patterns = list(patterns)
        self._searches = searches
        self._starts = [0] * len(self._patterns)
        self._ends: list[int] = []
        self._known = 0
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self._is_slow = False
        self._search: Search | None = None
        self.hold_bytes = 0

    @property
    def is_searching(self) -> bool:
        """Whether `end_search` has yet to give the result of the last `feed`."""
        return self._search is not None

    @property
    def is_found(self) -> bool:
        """Whether `end_search` may be called."""
        return self._search is not None and self._search.done

    def go_on(self, pieces: Sequence[bytes], num_passed: int, hold_bytes: int) -> None:
        """See `Matcher.go_on`."""
        text = b"".join(pieces)
        known = text[: max(len(text) - hold_bytes, 0)]
        if hold_bytes:  # another matcher may hold part of a character
            known = known[: len(known) - len(_cut(known))]
        self._known = len(known.decode(errors="surrogateescape"))
        shown = [self._decoder.decode(piece) for piece in pieces]
        self._text = "".join(shown)
        self._ends = list(dict.fromkeys(accumulate(map(len, shown[:num_passed]))))

    def feed(self, chunk: bytes, look: bool) -> tuple[str, int, int] | None:
        """See `Matcher.feed`."""
        assert self._search is None, "the last search comes first"
        self._text += self._decoder.decode(chunk)
        span = Span(self._starts, look, self._ends, self._known)
        found = None if self._is_slow else self._searches.now(self._patterns, self._text, span)
        if found is None:
            self._is_slow = True
            self._search = self._searches.later(self._patterns, self._text, span)
            self.hold_bytes = self._bytes_behind(max(min(self._starts), self._known))
            return None
        return self._take(found)

    def end_search(self) -> tuple[str, int, int] | None:
        """The delayed result of `feed`. Raises RequestError when the search took too long."""
        search = self._search
        assert search is not None and search.done
        self.drop()
        if search.error is not None:
            raise search.error
        assert search.found is not None
        self._is_slow = search.found.seconds > QUICK_SECONDS
        return self._take(search.found)

    def drop(self) -> None:
        """Forgets a search under way: its result is no longer needed."""
        if self._search is not None:
            self._search.dropped = True
            self._search = None
            self._searches.num_pending -= 1

    def _take(self, found: Found) -> tuple[str, int, int] | None:
        self._starts, self._ends, self._known = found.starts, [], 0
        if found.match is not None:
            end, start, i = found.match
            return self._patterns[i].pattern, self._bytes_behind(start), self._bytes_behind(end)
        self.hold_bytes = self._bytes_behind(min(self._starts))
        return None

    def _bytes_behind(self, start: int) -> int:
        waiting = self._decoder.getstate()[0]
        return len(self._text[start:].encode(errors="surrogateescape")) + len(waiting)


def _cut(text: bytes) -> bytes:
    """The beginning of a character at the end of the text."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
    decoder.decode(text)
    return decoder.getstate()[0]
