"""Code shared by the language, the runtime and the commands."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.common.lru import LruCache
from sglang.common.prefixes import common_len, first_difference
from sglang.common.reasoning import FORMATS, ReasoningSplitter
from sglang.common.server_process import end_process, free_port, how_it_ended, wait_until
from sglang.common.suggest import MAX_NAME_LEN, did_you_mean, nearest

# --- LRU ----------------------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_entries_are_dropped() -> None:
    cache: LruCache[str, int] = LruCache(10)
    cache.put("a", 1, 4)
    cache.put("b", 2, 4)
    assert cache.get("a") == 1  # now "b" was not used for longest
    cache.put("c", 3, 4)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    assert cache.cost == 8 and len(cache) == 2


def test_an_entry_that_is_replaced_costs_once() -> None:
    cache: LruCache[str, int] = LruCache(10)
    cache.put("a", 1, 4)
    cache.put("a", 2, 6)
    assert cache.cost == 6 and cache.get("a") == 2 and len(cache) == 1


def test_what_costs_more_than_all_may_is_not_kept() -> None:
    cache: LruCache[str, int] = LruCache(10)
    cache.put("a", 1, 4)
    cache.put("huge", 2, 11)
    assert cache.get("huge") is None and cache.get("a") is None and cache.cost == 0
    cache.put("b", 3, 10)
    assert cache.get("b") == 3
    cache.clear()
    assert not len(cache) and cache.cost == 0


# --- suggestions --------------------------------------------------------------------------------------------------------------


def test_the_nearest_name() -> None:
    known = {"temperature", "top_p", "top_k"}
    assert nearest("temprature", known) == "temperature" and nearest("zzz", known) is None
    assert did_you_mean("top_q", ["top_p"]) == "; did you mean 'top_p'?" and did_you_mean("zzz", known) == ""
    assert nearest("temperatur", known, cutoff=0.99) is None
    assert nearest("SQL", ["sql"]) == "sql" and nearest("sql", ["SQL"]) == "SQL"


def test_only_the_beginning_of_a_long_name_is_looked_at() -> None:
    assert nearest("x" * 1_000_000, ["x" * MAX_NAME_LEN]) == "x" * MAX_NAME_LEN


# --- common beginnings ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_len_is_that_of_a_plain_loop(a: list[int], b: list[int]) -> None:
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_len(a, b) == expected


def test_the_first_difference_is_that_of_any_choice() -> None:
    assert first_difference([1, 2, 3], [[1, 2, 3, 4], [1, 2, 9]]) == 2
    assert first_difference([1, 2], [[1, 2, 3]]) == 2 and first_difference([1, 2], []) == 2


# --- reasoning ------------------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", " ", "\n", "a", "<reasoning>", "</reasoning>"])),
    st.sampled_from(sorted(FORMATS)),
    st.booleans(),
    st.integers(1, 7),
)
def test_cuts_change_nothing(bits: list[str], name: str, inside: bool, step: int) -> None:
    text = "".join(bits)

    def split(pieces: list[str]) -> tuple[str, str]:
        splitter = ReasoningSplitter(FORMATS[name], inside)
        parts = [*map(splitter.feed, pieces), splitter.close()]
        return "".join(reasoning for reasoning, _ in parts), "".join(answer for _, answer in parts)

    assert split([text[i : i + step] for i in range(0, len(text), step)]) == split([text])


def test_only_marks_are_left_out() -> None:
    splitter = ReasoningSplitter(FORMATS["generic"], False)
    assert splitter.feed("\n<reasoning> a </think> b </reasoning>\n\nc <think>d</think>") == (
        " a </think> b ",
        "\n\nc <think>d</think>",
    )
    assert splitter.was_closed and splitter.is_over


# --- servers as processes ---------------------------------------------------------------------------------------------------------


def test_waiting_ends_when_the_process_does() -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="exit code 3"):
        wait_until(lambda: False, process, 60, "server")
    with pytest.raises(TimeoutError, match="no server after 0 seconds"):
        wait_until(lambda: False, None, 0, "server")
    wait_until(lambda: True, None, 0, "server")


def test_the_whole_tree_ends() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=sys.stdin).wait()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    end_process(process)
    assert process.returncode is not None


def test_a_port_that_is_taken_is_passed_over() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match="free"):
            free_port("127.0.0.1", [port])
    assert free_port("127.0.0.1", [port]) == port


@pytest.mark.parametrize(
    ("status", "words"),
    [(3, "exit code 3"), (-9, "memory runs out"), (-15, "SIGTERM"), (-11, "SIGSEGV"), (-64, "64|SIGRTMAX"), (-99, "signal 99")],
)
def test_the_end_of_a_process_is_described(status: int, words: str) -> None:
    assert re.search(words, how_it_ended(status))
