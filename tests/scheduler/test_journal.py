"""The journal of grammars: what a process that dies leaves behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError
from sglang.srt.process.scheduler_process import DUMP, JOURNAL, blamed_grammars
from sglang.srt.scheduler.grammar.engines.registry import create_backend
from sglang.srt.scheduler.grammar.journal import GrammarJournal, NotedBackend, NotedState, grammar_digest, read_journal
from tests.conftest import package_environ
from tests.scheduler.toy import VOCABULARY

A, B, C = (grammar_digest("regex", text) for text in "abc")


def noted(path: Path) -> NotedBackend:
    backend = create_backend(VOCABULARY, GrammarOptions())
    assert backend is not None
    return NotedBackend(backend, GrammarJournal(path), ())


def test_digests_tell_grammars_apart() -> None:
    keys = [
        ("regex", "a"),
        ("ebnf", "a"),
        ("regex", "a", "b"),
        ("regex", "ab"),
        ("rege", "xa"),
        ("regex", "é"),
        ("regex", "\ud800"),
    ]
    assert len({grammar_digest(*key) for key in keys}) == len(keys)


def test_a_grammar_is_there_while_native_code_works_on_it_and_not_after(tmp_path: Path) -> None:
    journal = GrammarJournal(tmp_path / "j")
    seen: list[set[bytes]] = []
    journal.call([A, B], lambda: seen.append({d for e in read_journal(tmp_path / "j") for d in e.digests}))
    assert seen == [{A, B}] and read_journal(tmp_path / "j") == []
    with pytest.raises(ValueError):
        journal.call([C], int, "x")
    (entry,) = read_journal(tmp_path / "j")
    assert entry.digests == {C} and entry.raised and entry.thread == threading.get_ident()
    assert read_journal(tmp_path / "no such file") == []


def test_states_are_the_engines_own(tmp_path: Path) -> None:
    backend, plain = noted(tmp_path / "j"), create_backend(VOCABULARY, GrammarOptions())
    assert plain is not None
    states = [backend.compile("regex", "x{3}[ab]+"), backend.compile("regex", "[ab]+c", "x")]
    others = [plain.compile("regex", "x{3}[ab]+"), plain.compile("regex", "[ab]+c", "x")]
    words = (VOCABULARY.size + 31) // 32
    masks, expected = np.zeros((2, words), np.uint32), np.zeros((2, words), np.uint32)
    backend.fill_masks(states, masks)
    plain.fill_masks(others, expected)
    assert (masks == expected).all()
    state, other = states[0].copy(), others[0].copy()
    assert isinstance(state, NotedState) and state.forced_tokens() == other.forced_tokens() != []
    assert state.accept_all([ord("x")] * 3) and state.accept(ord("a")) and state.rollback(1)
    assert not state.is_finished and state.error is None and not states[0].accept(ord("z"))
    assert read_journal(tmp_path / "j") == []


def test_what_does_not_compile_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(GrammarError):
        noted(tmp_path / "j").compile("regex", "(")
    assert read_journal(tmp_path / "j") == []


def test_a_refused_grammar_is_refused_by_name_and_others_are_not(tmp_path: Path) -> None:
    backend = create_backend(VOCABULARY, GrammarOptions())
    assert backend is not None
    refusing = NotedBackend(backend, GrammarJournal(tmp_path / "j"), (A.hex(),))
    with pytest.raises(GrammarError, match="refused from now on"):
        refusing.compile("regex", "a")
    refusing.compile("regex", "b")
    refusing.compile("regex", "a", "prefix")


DYING = """
import ctypes, faulthandler, os, signal, sys, threading, time
from pathlib import Path
from sglang.srt.scheduler.grammar.journal import GrammarJournal, grammar_digest
from sglang.srt.process.scheduler_process import DUMP, JOURNAL

directory, how = Path(sys.argv[1]), sys.argv[2]
faulthandler.enable((directory / DUMP).open("wb"))
journal = GrammarJournal(directory / JOURNAL)
a, b = grammar_digest("regex", "a"), grammar_digest("regex", "b")
inside = threading.Event()

def wait():
    inside.set()
    time.sleep(100)

def crash():
    ctypes.string_at(0)

threading.Thread(target=journal.call, args=([b], wait), daemon=True).start()
inside.wait()
if how == "in a grammar":
    journal.call([a], crash)
elif how == "elsewhere":
    crash()
elif how == "on a thread":
    other = threading.Thread(target=journal.call, args=([a], crash))
    other.start()
    other.join()
elif how == "on a thread that compiles":
    from sglang.srt.scheduler.grammar.low_priority import LowPriorityThreads
    journal.call([a], LowPriorityThreads(1).run, crash)
elif how == "error":
    try:
        journal.call([a], int, "x")
    finally:
        os._exit(1)
elif how == "hang":
    print("hangs", flush=True)
    journal.call([a], time.sleep, 100)
"""


@pytest.mark.parametrize(
    ("how", "blamed"),
    [
        ("in a grammar", {A}),
        ("on a thread", {A}),
        ("elsewhere", set()),
        ("on a thread that compiles", {A, B}),
        ("error", {A}),
        ("hang", {A, B}),
    ],
)
def test_a_dead_process_names_what_it_died_of(tmp_path: Path, how: str, blamed: set[bytes]) -> None:
    environment = package_environ()
    command = [sys.executable, "-c", DYING, str(tmp_path), how]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if how == "hang":
            assert process.stdout is not None and process.stdout.readline() == b"hangs\n"
            while not any(entry.digests == {A} for entry in read_journal(tmp_path / JOURNAL)):
                assert process.poll() is None
            process.kill()
        status = process.wait(60)
    assert status == {"error": 1, "hang": -signal.SIGKILL}.get(how, -signal.SIGSEGV)
    assert blamed_grammars(tmp_path, status) == blamed
    assert (how in ("error", "hang")) == ((tmp_path / DUMP).read_bytes() == b"")
