"""Batches: order, progress, errors, shared prefixes, files, and no thread for those that only wait."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.lang.errors import RequestRefusedError
from sglang.lang.program.batch import BatchItem

from .native_server import NativeServer

SHARED = "A long common beginning of every prompt in the batch, more than sixty-four characters. "


@sgl.function
def qa(s: ProgramState, question: str, mark: str = "?") -> None:
    s += SHARED + question + mark + sgl.gen("answer")


def test_results_are_in_order(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.answer = lambda prompt, params: prompt[len(SHARED) :]
    states = qa.run_batch([{"question": str(i)} for i in range(50)], num_threads=8)
    assert [state["answer"] for state in states] == [f"{i}?" for i in range(50)]
    assert native.max_open <= 8


def test_tuples_and_defaults(backend: RuntimeEndpoint) -> None:
    states = qa.run_batch([("a",), ["b", "!"]])
    assert [state.text()[len(SHARED) :][:2] for state in states] == ["a?", "b!"]
    assert qa.run_batch([]) == []


def test_bad_batches(backend: RuntimeEndpoint) -> None:
    with pytest.raises(TypeError, match="list of arguments"):
        qa.run_batch("abc")
    with pytest.raises(TypeError, match="item 1"):
        qa.run_batch([{}, 5])
    with pytest.raises(ValueError, match="item 0 of the batch has 3 values"):
        qa.run_batch([(1, 2, 3)])
    with pytest.raises(TypeError, match="nonsense"):
        qa.run_batch([], nonsense=1)
    for threads in (0, "many"):
        with pytest.raises(ValueError):
            qa.run_batch([("a",)], num_threads=threads)


def test_the_shared_prefix_is_found_and_read_once(native: NativeServer, backend: RuntimeEndpoint) -> None:
    qa.run_batch([(f"q{i}",) for i in range(20)])
    assert [body["text"] for body in native.prefills()] == [SHARED + "q"]
    assert native.requests[1][1]["sampling_params"] == {"max_new_tokens": 0}


def test_no_prefix_when_there_is_none_or_when_it_is_off(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def short(s: ProgramState, i: int) -> None:
        s += f"{i}" + sgl.gen("x")

    short.run_batch([(i,) for i in range(5)])
    sgl.global_config.enable_precache_with_tracing = False
    try:
        qa.run_batch([(f"q{i}",) for i in range(5)])
    finally:
        sgl.global_config.enable_precache_with_tracing = True
    assert native.prefills() == []


def test_no_body_runs_twice(backend: RuntimeEndpoint) -> None:
    runs: list[int] = []

    @sgl.function
    def program(s: ProgramState, i: int) -> None:
        assert isinstance(i, int)
        runs.append(i)
        s += "x"

    program.run_batch([(i,) for i in range(10)])
    assert sorted(runs) == list(range(10))


def test_programs_that_wait_for_one_another(native: NativeServer, backend: RuntimeEndpoint) -> None:
    """The gate of the shared prefix must not wait for all first prompts."""
    first_done = threading.Event()

    @sgl.function
    def program(s: ProgramState, i: int) -> None:
        if i:
            assert first_done.wait(10)
        s += SHARED + f"{i}" + sgl.gen("x")
        s["x"]
        first_done.set()

    assert len(program.run_batch([(i,) for i in range(4)])) == 4


def test_more_programs_wait_than_threads_exist(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.hold_until_open = 100
    before = threading.active_count()
    most = 0

    @sgl.function
    def program(s: ProgramState, i: int) -> None:
        nonlocal most
        s += f"{i}" + sgl.gen("x")
        most = max(most, threading.active_count() - before)

    program.run_batch([(i,) for i in range(150)])
    assert native.max_open >= 100 and most <= 66


def test_an_error_of_the_model_stays_in_its_state(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.failures = [(400, {"error": {"message": "no"}})]
    states = qa.run_batch([("a",), ("b",), ("c",)], num_threads=1)
    assert [state.error() is None for state in states] == [False, True, True]
    native.failures = [(400, {"error": {"message": "no"}})]
    results = qa.run_batch([("a",), ("b",)], num_threads=1, return_exceptions=True)
    assert isinstance(results[0], RequestRefusedError) and results[1]["answer"]


def test_an_error_of_the_code(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState, i: int) -> None:
        s += "x" + sgl.gen("x")
        if i == 2:
            raise ZeroDivisionError
        s["x"]

    with pytest.raises(ZeroDivisionError):
        program.run_batch([(i,) for i in range(5)])
    results = program.run_batch([(i,) for i in range(5)], return_exceptions=True)
    assert [isinstance(result, ZeroDivisionError) for result in results] == [False, False, True, False, False]


def test_a_stopped_batch_stops(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState, i: int) -> None:
        if i == 3:
            raise ZeroDivisionError
        s += f"{i}" + sgl.gen("x")

    with pytest.raises(ZeroDivisionError):
        program.run_batch([(i,) for i in range(1000)], num_threads=2)
    assert len(native.generated()) < 50


def test_generator_style(native: NativeServer, backend: RuntimeEndpoint) -> None:
    states = qa.run_batch([(str(i),) for i in range(10)], generator_style=True)
    assert not isinstance(states, list)
    assert [state.text()[len(SHARED)] for state in states] == [str(i) for i in range(10)]


def test_closing_a_generator_stops_the_rest(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.delay = 0.02
    states = qa.run_batch([(str(i),) for i in range(500)], generator_style=True, num_threads=4)
    next(states)
    states.close()
    sent = len(native.generated())
    assert sent < 100


def test_as_completed(native: NativeServer, backend: RuntimeEndpoint) -> None:
    items = list(qa.run_batch([(str(i),) for i in range(10)], as_completed=True))
    assert all(isinstance(item, BatchItem) for item in items)
    assert sorted(item.index for item in items) == list(range(10))
    assert all(item.arguments == (str(item.index),) and item.state["answer"] for item in items)


def test_progress_bar(native: NativeServer, backend: RuntimeEndpoint, capsys: pytest.CaptureFixture[str]) -> None:
    qa.run_batch([(str(i),) for i in range(3)], progress_bar=True)
    err = capsys.readouterr().err
    assert "3/3" in err and "tok/s" in err and "cached" in err


def test_progress_of_joined_forks_with_samples(
    native: NativeServer, backend: RuntimeEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    @sgl.function
    def program(s: ProgramState, i: int) -> None:
        s += f"{i}"
        forks = s.fork(2)
        forks += " a" + sgl.gen("x", max_tokens=2, n=2)
        inner = forks[0].fork(2)
        inner += " b" + sgl.gen("y", max_tokens=2, n=3)
        inner.join()
        forks.join()
        s += sgl.gen("z", max_tokens=2)

    states = program.run_batch([(i,) for i in range(3)], progress_bar=True)
    assert [len(state["x"]) for state in states] == [2, 2, 2] and all(state.error() is None for state in states)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("meta", [7, "text", [None, 3, [[{}]]], {"prompt_tokens": "many"}, {"completion_tokens": [1, None]}])
def test_progress_with_whatever_a_backend_tells(backend: RuntimeEndpoint, meta: Any) -> None:
    @sgl.function
    def program(s: ProgramState, i: int) -> None:
        s += f"{i}" + sgl.gen("x", max_tokens=2)
        s.sync()
        s.stream_executor.vars.metas["x"] = meta

    assert len(program.run_batch([(i,) for i in range(2)], progress_bar=True)) == 2


def test_progress_where_nobody_can_see_it(backend: RuntimeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    states = qa.run_batch([(str(i),) for i in range(3)], progress_bar=True)
    assert all(state["answer"] for state in states)


def test_results_on_disk_and_resume(native: NativeServer, backend: RuntimeEndpoint, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    batch = [{"question": str(i)} for i in range(6)]
    native.failures = [(400, {"error": {"message": "no"}})]
    qa.run_batch(batch, out=path, num_threads=1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["index"] for row in rows) == list(range(6))
    assert rows[0]["error"].startswith("RequestRefusedError") and rows[1]["variables"]["answer"]
    with pytest.raises(FileExistsError):
        qa.run_batch(batch, out=path)
    with path.open("a") as file:
        file.write('{"index": 5, "cut o')
    sent = len(native.generated())
    batch[4] = {"question": "another"}
    results = qa.run_batch(batch, out=path, resume=True)
    # only the failed one and the changed one run again
    assert len(native.generated()) == sent + 2
    assert [i for i, state in enumerate(results) if state is not None] == [0, 4]
    assert qa.run_batch(batch, out=path, resume=True) == [None] * 6


def test_results_with_any_text(native: NativeServer, backend: RuntimeEndpoint, tmp_path: Path) -> None:
    """A line ends at a line feed alone, and half a pair of surrogates is written as JSON's escape."""
    path = tmp_path / "results.jsonl"
    native.answer = lambda prompt, params: "one\u2028two\x85three"
    batch = [{"question": "\ud83d"}, {"question": "b\x1e"}]
    assert all(state is not None for state in qa.run_batch(batch, out=path))
    assert qa.run_batch(batch, out=path, resume=True) == [None, None]


def test_a_batch_inside_a_program(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def outer(s: ProgramState, i: int) -> None:
        inner = qa.run_batch([(f"{i}{j}",) for j in range(5)])
        s += "".join(state["answer"] for state in inner)

    assert all(state.text() for state in outer.run_batch([(i,) for i in range(70)]))


def test_streams_inside_programs(backend: RuntimeEndpoint) -> None:
    """Bodies of streamed runs must not starve behind the bodies that wait for them."""

    @sgl.function
    def outer(s: ProgramState, i: int) -> None:
        s += "".join(qa.run(str(i), stream=True).text_iter("answer"))

    assert all(state.text() for state in outer.run_batch([(i,) for i in range(80)]))
