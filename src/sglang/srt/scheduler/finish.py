"""The ends of a request: stop ids, stop strings, stop expressions, the length limit.

Stop strings are matched on the bytes of the tokens, as if the bytes came one at a time: the first complete string wins, independent of
token boundaries. Until then, `hold_bytes` says how many bytes at the end may be the beginning of a stop string and must not be shown
yet. No byte before the match is examined twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.messages import FinishReason
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.scheduler.stop_regex import Searches, StopRegexes
from sglang.srt.vocabulary import SpecialSpacing, Vocabulary


def abort_reason(error: RequestError | OverloadError) -> FinishReason:
    """The finish reason of a request that cannot be served."""
    return FinishReason("abort", message=str(error), status_code=error.status_code, err_type=error.err_type)


def failure_reason(message: str) -> FinishReason:
    """The finish reason after an internal error."""
    return FinishReason("abort", message=message, status_code=500, err_type="InternalServerError")


def nan_reason() -> FinishReason:
    """The finish reason when the logits of a request are NaN."""
    return failure_reason("the model's logits are not numbers (NaN)")


class Matcher(Protocol):
    """Watches the text of one request for its end."""

    hold_bytes: int

    def go_on(self, pieces: Sequence[bytes], num_passed: int, hold_bytes: int) -> None:
        """Begins behind the texts of tokens that did not end the request: what matched within the first `num_passed` of them was
        passed over, and a match that counts lies within the last `hold_bytes`, or behind. Before the next `feed`."""
        ...

    def feed(self, chunk: bytes, look: bool) -> tuple[str, int, int] | None:
        """Takes the next bytes. With `look`, returns what matched and how many bytes of the text so far lie behind the
        beginning and behind the end of the match."""
        ...


@lru_cache(maxsize=1024)
def _failure_table(pattern: bytes) -> list[int]:
    """table[i]: length of the longest proper prefix of the pattern that ends pattern[: i + 1] (Knuth, Morris, Pratt)."""
    table = [0] * len(pattern)
    k = 0
    for i in range(1, len(pattern)):
        while k and pattern[i] != pattern[k]:
            k = table[k - 1]
        if pattern[i] == pattern[k]:
            k += 1
        table[i] = k
    return table


class StopStrings:
    """All stop strings of one request, each with the length of its prefix that ends the text so far."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = list(stops)
        self._patterns = [stop.encode(errors="surrogatepass") for stop in stops]
        self._tables = [_failure_table(pattern) for pattern in self._patterns]
        self._states = [0] * len(stops)
        self.hold_bytes = 0

    def go_on(self, pieces: Sequence[bytes], num_passed: int, hold_bytes: int) -> None:
        end = b"".join(pieces)[-max(map(len, self._patterns)) :]  # nothing before that can still be part of a match
        self.feed(end, look=False)

    def feed(self, chunk: bytes, look: bool) -> tuple[str, int, int] | None:
        best: tuple[int, int, int] | None = None  # end in the chunk, minus the length, which string
        for i, pattern in enumerate(self._patterns):
            if not self._states[i] and pattern[0] not in chunk:
                continue
            end = self._advance(i, chunk)
            if end is not None and look:
                found = (end, -len(pattern), i)
                best = found if best is None else min(best, found)
        self.hold_bytes = max(self._states)
        if best is None:
            return None
        behind = len(chunk) - best[0]
        return self._stops[best[2]], behind - best[1], behind

    def _advance(self, i: int, chunk: bytes) -> int | None:
        """Runs one pattern over the chunk; where its first match ends, if there is one."""
        pattern, table, k = self._patterns[i], self._tables[i], self._states[i]
        first_end = None
        for at, byte in enumerate(chunk):
            while k and byte != pattern[k]:
                k = table[k - 1]
            if byte == pattern[k]:
                k += 1
                if k == len(pattern):
                    k = table[k - 1]
                    if first_end is None:
                        first_end = at + 1
        self._states[i] = k
        return first_end


class FinishChecker:
    """Decides after each token whether the request is over. `trim_bytes` then says how much of the end of the text is not to
    be shown; before, `hold_bytes` how much is not to be shown yet."""

    def __init__(self, params: SamplingParams, max_new_tokens: int, vocabulary: Vocabulary | None) -> None:
        """`max_new_tokens`: the limit in force. Stop expressions come later, by `watch_regexes`."""
        self.max_new_tokens = max_new_tokens
        self._min_new_tokens = params.min_new_tokens
        self._keep_stop = params.no_stop_trim
        self._skip_special = params.skip_special_tokens
        self._spacing: SpecialSpacing | None = None
        if params.spaces_specials and vocabulary is not None:
            self._spacing = SpecialSpacing(vocabulary.special_ids)
        self._vocabulary = vocabulary
        eos = vocabulary.eos_token_ids if vocabulary is not None and not params.ignore_eos else frozenset()
        self._eos_ids = eos
        self._stop_ids = eos.union(params.stop_token_ids)
        self._named: dict[int, str] = {}
        self._matchers: list[Matcher] = []
        self._regexes: StopRegexes | None = None
        if vocabulary is not None:
            self._named = special_stops(vocabulary, params.stop)
        if params.stop:
            self._matchers.append(StopStrings(params.stop))
        self._sent: list[bytes] = []
        self.skip_bytes = 0  # at the beginning of the output: they belong to the prompt
        self.hold_bytes = 0
        self.trim_bytes = 0

    def watch_regexes(self, patterns: Sequence[Any], searches: Searches) -> None:
        """Adds stop expressions, made by compile_stop_regex. Called before the first `check`."""
        self._regexes = StopRegexes(patterns, searches)
        self._matchers.append(self._regexes)

    @property
    def _looks(self) -> bool:
        """Whether it matters what the text is."""
        return bool(self._matchers or self.skip_bytes)

    @property
    def is_searching(self) -> bool:
        """Whether the last `check` has no answer yet: a stop expression takes long. Until `end_search` there must be no other."""
        return self._regexes is not None and self._regexes.is_searching

    @property
    def is_found(self) -> bool:
        """Whether `end_search` may be called."""
        return self._regexes is not None and self._regexes.is_found

    def drop_search(self) -> None:
        """The request is over: a search under way is of no interest."""
        if self._regexes is not None:
            self._regexes.drop()

    def note_sent(self, token_id: int) -> None:
        """Notes the next token that the client of a resumed request has."""
        if self._spacing is not None:
            self._spacing.note(token_id)
        if self._looks:  # as `check` does
            self._sent.append(self._shown(token_id))

    def go_on(self, num_out: int, hold_bytes: int) -> FinishReason | None:
        """Begins behind the `num_out` tokens that were noted; of their text, the client does not have the last `hold_bytes`. Then
        looks at the last of them again, as `check`: the other scheduler may have died while it searched."""
        for matcher in self._matchers:
            matcher.go_on(self._sent, max(self._min_new_tokens - 1, 0), hold_bytes)
        self._sent.clear()
        return self._check_text(b"", num_out)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end the request."""
        return tuple(sorted(self._stop_ids | self._named.keys()))

    def is_end_of_text(self, token_id: int) -> bool:
        """Whether the model says with it that it has no more to say, and is taken at its word."""
        return token_id in self._eos_ids

    def check(self, token_id: int, num_out: int) -> FinishReason | None:
        """Looks at the newest of `num_out` tokens. None also while `is_searching`."""
        if self._spacing is not None:
            self._spacing.note(token_id)
        if token_id in self._stop_ids or token_id in self._named:
            self.hold_bytes = 0
            self.trim_bytes = 0 if self._keep_stop else len(self._shown(token_id))
            return FinishReason("stop", matched=self._named.get(token_id, token_id))
        return self._check_text(self._shown(token_id) if self._looks else b"", num_out)

    def end_search(self, num_out: int) -> FinishReason | None:
        """The delayed result of the last `check`. Raises RequestError when the search took too long."""
        assert self._regexes is not None
        found = self._regexes.end_search()
        if found is not None:
            return self._stop(found)
        self.hold_bytes = max(matcher.hold_bytes for matcher in self._matchers)
        return self._check_length(num_out)

    def _check_length(self, num_out: int) -> FinishReason | None:
        if num_out < self.max_new_tokens:
            return None
        self.hold_bytes = 0
        return FinishReason("length", length=num_out)

    def _check_text(self, chunk: bytes, num_out: int) -> FinishReason | None:
        for matcher in self._matchers:
            found = matcher.feed(chunk, num_out >= self._min_new_tokens)
            if found is not None:
                return self._stop(found)
        self.hold_bytes = max((matcher.hold_bytes for matcher in self._matchers), default=0)
        return None if self.is_searching else self._check_length(num_out)

    def _stop(self, found: tuple[str, int, int]) -> FinishReason:
        matched, behind_start, behind_end = found
        self.hold_bytes = behind_start  # log probabilities of forced tokens may still be wanted before the request ends
        self.trim_bytes = behind_end if self._keep_stop else behind_start
        return FinishReason("stop", matched=matched)

    def _shown(self, token_id: int) -> bytes:
        """The bytes that the token adds to the text that the client sees; it is the one noted last, if blanks are added."""
        vocabulary = self._vocabulary
        if vocabulary is None or token_id >= vocabulary.size:
            return b""
        if self._skip_special and token_id in vocabulary.special_ids:
            return b""
        shown = vocabulary.token_bytes[token_id]
        if self._spacing is not None:
            shown = self._spacing.gap + shown
        if self.skip_bytes:
            skipped = min(self.skip_bytes, len(shown))
            self.skip_bytes, shown = self.skip_bytes - skipped, shown[skipped:]
        return shown


def special_stops(vocabulary: Vocabulary, stops: Sequence[str]) -> dict[int, str]:
    """Stop strings that are the name of a special token: skipped in the text, they stop as ids."""
    if not stops:
        return {}
    names = {stop.encode(errors="surrogatepass"): stop for stop in stops}
    return {i: names[vocabulary.token_bytes[i]] for i in vocabulary.special_ids if vocabulary.token_bytes[i] in names}
