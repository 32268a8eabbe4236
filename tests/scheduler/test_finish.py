"""When a request ends, and what of its text is shown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import RequestError
from sglang.srt.messages import FinishReason
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.scheduler.finish import FinishChecker, StopStrings
from sglang.srt.scheduler.stop_regex import Found, Search, Searches, Span, StopRegexes, compile_stop_regex
from sglang.srt.vocabulary import Vocabulary
from tests.scheduler.toy import EOS, VOCABULARY, trials_of


def make_searches() -> Searches:
    return Searches(trials_of(VOCABULARY, GrammarOptions(backend="none")))


def unhurried_searches() -> Searches:
    """Everything is searched on the loop."""
    searches = make_searches()
    searches._left = 60.0
    return searches


def check(checker: FinishChecker, token_id: int, num_out: int) -> FinishReason | None:
    """What the check says in the end."""
    reason = checker.check(token_id, num_out)
    if not checker.is_searching:
        return reason
    assert reason is None
    wait_for_search(checker)
    return checker.end_search(num_out)


def wait_for_search(checker: FinishChecker | StopRegexes) -> None:
    deadline = time.monotonic() + 60
    while not checker.is_found:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def feed(checker: FinishChecker, ids: list[int]) -> tuple[FinishReason | None, list[bytes], bytes]:
    """Runs ids through. Returns how it ended, what was visible after each token, and the final text."""
    visible, out = [], []
    reason = None
    for i in ids:
        out.append(i)
        reason = check(checker, i, len(out))
        text = VOCABULARY.text_bytes(out)
        if reason is not None:
            return reason, visible, text[: len(text) - checker.trim_bytes]
        visible.append(text[: len(text) - checker.hold_bytes])
    return reason, visible, VOCABULARY.text_bytes(out)


def checker_for(
    max_new_tokens: int = 1000, regexes: tuple[str, ...] = (), searches: Searches | None = None, **params: object
) -> FinishChecker:
    checker = FinishChecker(SamplingParams(**params), max_new_tokens, VOCABULARY)  # type: ignore[arg-type]
    if regexes:
        checker.watch_regexes([compile_stop_regex(text) for text in regexes], searches or unhurried_searches())
    return checker


def ids_of(text: str) -> list[int]:
    return list(text.encode())


PIECES = {piece.decode(errors="ignore"): i for i, piece in enumerate(VOCABULARY.token_bytes) if i >= 261}


def test_length_and_end_of_text() -> None:
    assert feed(checker_for(3), ids_of("abcd"))[0] == FinishReason("length", length=3)
    assert feed(checker_for(), [97, EOS])[0] == FinishReason("stop", matched=EOS)
    assert feed(checker_for(2), [97, EOS])[0] == FinishReason("stop", matched=EOS), "a stop at the limit is a stop"
    assert feed(checker_for(ignore_eos=True), [97, EOS])[0] is None
    assert feed(checker_for(stop_token_ids=(98,), ignore_eos=True), [97, 98])[0] == FinishReason("stop", matched=98)


def test_a_stop_tokens_text_is_not_shown() -> None:
    assert feed(checker_for(stop_token_ids=(98,)), [97, 98])[2] == b"a"
    assert feed(checker_for(stop_token_ids=(98,), no_stop_trim=True), [97, 98])[2] == b"ab"
    checker = checker_for(skip_special_tokens=False)
    assert checker.check(EOS, 1) is not None and checker.trim_bytes == len(b"</s>")


@pytest.mark.parametrize(
    ("ids", "stops", "text", "matched"),
    [
        (ids_of("say stop now"), ("stop",), b"say ", "stop"),
        ([*ids_of("x"), PIECES["abc"], 100], ("bc",), b"xa", "bc"),  # inside a token
        ([PIECES["ab"], PIECES["abc"]], ("ba",), b"a", "ba"),  # across tokens, ending in the middle of one
        ([PIECES["abc"]], ("abc", "b"), b"a", "b"),  # the first to be complete
        ([PIECES["abc"]], ("bc", "abc", "c"), b"", "abc"),  # complete together: the longest
        (ids_of("aaaab"), ("aaab",), b"a", "aaab"),  # falls back to a shorter beginning
        (ids_of("caf\u00e9!"), ("\u00e9",), b"caf", "\u00e9"),
        ([0xC3, 0xA9], ("\u00e9",), b"", "\u00e9"),
    ],
)
def test_stop_strings(ids: list[int], stops: tuple[str, ...], text: bytes, matched: str) -> None:
    reason, _, shown = feed(checker_for(stop=stops), ids)
    assert reason == FinishReason("stop", matched=matched) and shown == text


def test_a_kept_stop_string_ends_the_text() -> None:
    reason, _, text = feed(checker_for(stop=("b",), no_stop_trim=True), [PIECES["abc"]])
    assert reason is not None and text == b"ab"


def test_a_special_tokens_name_stops_though_it_is_not_shown() -> None:
    reason, _, text = feed(checker_for(stop=("<tool>",)), [97, 258])
    assert reason == FinishReason("stop", matched="<tool>") and text == b"a"


def test_stops_before_the_minimum_are_passed_over() -> None:
    reason, _, text = feed(checker_for(stop=("aa",), min_new_tokens=4), ids_of("aabaac"))
    assert reason is not None and text == b"aab"
    reason, _, text = feed(checker_for(regexes=("a+b",), min_new_tokens=4), ids_of("abcab"))
    assert reason is not None and text == b"abc"


def test_hold_covers_what_may_become_a_stop_string() -> None:
    checker = checker_for(stop=("</a>", "<b"))
    holds = []
    for n, i in enumerate(ids_of("x<</ab</"), 1):
        checker.check(i, n)
        holds.append(checker.hold_bytes)
    assert holds == [0, 1, 1, 2, 3, 0, 1, 2]


def test_without_a_vocabulary_only_given_ids_stop() -> None:
    checker = FinishChecker(SamplingParams(stop_token_ids=(5,)), 9, None)
    assert checker.check(EOS, 1) is None and checker.check(5, 2) == FinishReason("stop", matched=5)


def test_stop_strings_with_lone_surrogates_never_match() -> None:
    assert feed(checker_for(stop=("\ud800",)), ids_of("abc"))[0] is None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*b"ab<", *(i for i in range(261, VOCABULARY.size))]), max_size=30),
    st.lists(st.text("ab<c\u00e9", min_size=1, max_size=5), min_size=1, max_size=4, unique=True),
)
def test_what_is_shown_on_the_way_begins_the_final_text(ids: list[int], stops: list[str]) -> None:
    reason, visible, text = feed(checker_for(stop=tuple(stops)), ids)
    whole = VOCABULARY.text_bytes(ids)
    ends = [end for end in range(len(whole) + 1) if any(whole[:end].endswith(s.encode()) for s in stops)]
    if ends:
        stop = max((s for s in stops if whole[: ends[0]].endswith(s.encode())), key=lambda s: len(s.encode()))
        assert reason == FinishReason("stop", matched=stop) and text == whole[: ends[0] - len(stop.encode())]
    else:
        assert reason is None and text == whole
    for earlier, later in zip(visible, [*visible[1:], text], strict=False):
        assert later.startswith(earlier)
    for so_far in visible:
        assert text.startswith(so_far)


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=3))
def test_hold_is_exactly_the_longest_possible_beginning(text: str, stops: list[str]) -> None:
    watcher = StopStrings(stops)
    data = text.encode()
    for i in range(len(data)):
        watcher.feed(data[i : i + 1], False)
        so_far = data[: i + 1]
        longest = max(n for s in stops for n in range(len(s)) if so_far.endswith(s.encode()[:n]))
        assert watcher.hold_bytes == longest


@pytest.mark.parametrize(
    ("pattern", "text", "shown"),
    [
        (r"\d{3}", "a12b123c", b"a12b"),
        (r"[.!?]\s", "Yes. No.", b"Yes"),
        (r"(?<=x)y", "yxy", b"yx"),
        (r"\u00e9+", "caf\u00e9s", b"caf"),
        (r"end$|stop", "the stop", b"the "),
    ],
)
def test_stop_expressions(pattern: str, text: str, shown: bytes) -> None:
    reason, visible, final = feed(checker_for(regexes=(pattern,)), ids_of(text))
    assert reason == FinishReason("stop", matched=pattern) and final == shown
    assert all(final.startswith(piece) for piece in visible)


def test_a_stop_expression_holds_what_may_still_match() -> None:
    checker = checker_for(regexes=(r"ab+c",))
    holds = []
    for n, i in enumerate(ids_of("xabbxa"), 1):
        checker.check(i, n)
        holds.append(checker.hold_bytes)
    assert holds == [0, 1, 2, 3, 0, 1]
    checker = checker_for(regexes=("\u00e9a",))
    checker.check(0xC3, 1)
    checker.check(0xA9, 2)
    assert checker.hold_bytes == 2


@pytest.mark.parametrize("pattern", ["[", "(?P<a", "a{2,1}", "(" * 3000 + ")" * 3000, "a*", "|x"])
def test_bad_stop_expressions_are_refused(pattern: str) -> None:
    with pytest.raises(RequestError, match="stop_regex"):
        compile_stop_regex(pattern)


CATASTROPHIC = r"(x+)(x+)(x+)(x+)(x+)(x+)\1[!?]"


def test_a_catastrophic_stop_expression_ends_its_request_only() -> None:
    watcher = StopRegexes([compile_stop_regex(CATASTROPHIC)], make_searches())
    began = time.thread_time()
    assert watcher.feed(b"x" * 200 + b".", True) is None and watcher.is_searching
    assert time.thread_time() - began < 0.04, "the loop does not search for long"
    wait_for_search(watcher)
    with pytest.raises(RequestError, match="stop_regex takes longer"):
        watcher.end_search()


def test_all_searches_of_a_step_share_their_time() -> None:
    searches = make_searches()
    patterns = [compile_stop_regex(CATASTROPHIC) for _ in range(64)]
    watchers = [StopRegexes(patterns, searches) for _ in range(64)]
    began = time.thread_time()
    for watcher in watchers:
        watcher.feed(b"x" * 200 + b".", True)
    assert time.thread_time() - began < 0.5, "each by itself would have taken 64 times 50 ms"
    assert all(watcher.is_searching for watcher in watchers) and searches.num_pending == 64
    for watcher in watchers:
        watcher.drop()
    assert searches.num_pending == 0
    searches.close()


class NoTime(Searches):
    """Nothing is searched on the loop."""

    def begin_step(self) -> None:
        self._left = 0.0


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.text("ab\n\u00e9", max_size=12),
    st.lists(st.sampled_from(["ab", "a+b", "b$", "(?<=a)b", "(?s)a.*\u00e9", "(?=ab)a"]), min_size=1, max_size=3),
    st.integers(0, 5),
)
def test_where_a_search_runs_changes_nothing(text: str, regexes: list[str], minimum: int) -> None:
    away = NoTime(trials_of(VOCABULARY, GrammarOptions(backend="none")))
    away.begin_step()
    here = checker_for(9, tuple(regexes), min_new_tokens=minimum)
    there = checker_for(9, tuple(regexes), away, min_new_tokens=minimum)
    assert feed(here, ids_of(text)) == feed(there, ids_of(text))
    away.close()


class Undecided(Searches):
    """Every search goes on and on."""

    def now(self, patterns: Sequence[Any], text: str, span: Span) -> Found | None:
        return None

    def later(self, patterns: Sequence[Any], text: str, span: Span) -> Search:
        self.num_pending += 1
        return Search(b"")


EXPRESSIONS = ["ab", "a+b", "b$", "(?<=a)b", "(?<=ab)", "(?s)a.*\u00e9", "(?=ab)a", "b.b", "a.*<", "ab|b<a", "ab(<a)?|<.b"]
TABLE_IDS = [*b"ab<", PIECES["ab"], PIECES["\u00e9"], 0xC3, 0xA9]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(TABLE_IDS), min_size=1, max_size=12),
    st.lists(st.sampled_from(EXPRESSIONS), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(["ab<a", "bb", "<\u00e9", "aab"]), max_size=2, unique=True),
    st.integers(0, 8),
    st.data(),
)
def test_a_resumed_request_ends_where_it_would_have_ended(
    ids: list[int], regexes: list[str], stops: list[str], minimum: int, data: st.DataObject
) -> None:
    """Wherever the other scheduler died, and whether or not it knew what its last token meant."""
    searches = unhurried_searches()

    def new_checker() -> FinishChecker:
        return checker_for(12, tuple(regexes), searches, min_new_tokens=minimum, stop=tuple(stops))

    def state(checker: FinishChecker, reason: FinishReason | None) -> object:
        return reason, checker.trim_bytes, checker.hold_bytes if reason is None else 0

    lived, died, resumed = new_checker(), new_checker(), new_checker()
    num_sent = data.draw(st.integers(1, len(ids)))
    for n in range(1, num_sent):
        if lived.check(ids[n - 1], n) is not None or died.check(ids[n - 1], n) is not None:
            return
    expected = state(lived, lived.check(ids[num_sent - 1], num_sent))
    if data.draw(st.booleans()):
        assert died._regexes is not None
        died._regexes._searches = Undecided(searches._children)
    if died.check(ids[num_sent - 1], num_sent) is not None:
        return
    for i in ids[:num_sent]:
        resumed.note_sent(i)
    assert state(resumed, resumed.go_on(num_sent, died.hold_bytes)) == expected
    for n in range(num_sent + 1, len(ids) + 1):
        if expected[0] is not None:
            return
        expected = state(lived, lived.check(ids[n - 1], n))
        assert state(resumed, resumed.check(ids[n - 1], n)) == expected


def test_all_matches_before_the_minimum_are_passed_over() -> None:
    reason, _, text = feed(checker_for(regexes=("b",), min_new_tokens=3), [*ids_of("bb"), PIECES["ab"], *ids_of("cb")])
    assert reason == FinishReason("stop", matched="b") and text == b"bba"
    two_at_once = [PIECES['",'], PIECES[", "], *ids_of("ab,")]
    reason, _, text = feed(checker_for(regexes=(",",), min_new_tokens=3), two_at_once)
    assert reason == FinishReason("stop", matched=",") and text == b'",, ab'
    reason, _, text = feed(checker_for(regexes=("[\\n]",), min_new_tokens=2), [PIECES["\n\n"], *ids_of("a\n")])
    assert text == b"\n\na", "the second of one token is no match of the next"


def test_stop_ids_are_what_the_minimum_forbids() -> None:
    assert checker_for(stop_token_ids=(7,), stop=("<tool>",)).stop_ids == (7, 258, EOS)
    assert checker_for(ignore_eos=True).stop_ids == ()


def test_ids_beyond_the_table_add_no_text() -> None:
    tiny = Vocabulary((b"a",), frozenset(), frozenset())
    assert FinishChecker(SamplingParams(stop=("a",)), 9, tiny).check(50, 1) is None
