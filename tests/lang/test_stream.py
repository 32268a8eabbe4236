"""Streams: nothing lost, nothing twice, and an end in every case."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.common.sse import EventReader, EventSplitter
from sglang.lang.errors import ServerError, StateCancelledError

from .native_server import NativeServer


@sgl.function
def chat(s: ProgramState, question: str) -> None:
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=50))
    s += sgl.user("More?")
    s += sgl.assistant(sgl.gen("more", max_tokens=50) + sgl.select("c", ["yes", "no"]))


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("piece_delay", [0.0, 0.002])
def test_pieces_join_to_the_text(native: NativeServer, backend: RuntimeEndpoint, disjoint: bool, piece_delay: float) -> None:
    native.disjoint, native.piece_delay = disjoint, piece_delay
    whole = chat("q")
    state = chat.run("q", stream=True)
    pieces = list(state.text_iter())
    assert "".join(pieces) == state.text() == whole.text()
    assert pieces[0].startswith("<|im_start|>system\n")
    if piece_delay:
        assert len(pieces) > 8


@pytest.mark.parametrize("name", ["answer", "more", "c"])
def test_one_variable(native: NativeServer, backend: RuntimeEndpoint, name: str) -> None:
    native.piece_delay = 0.001
    state = chat.run("q", stream=True)
    pieces = list(state.text_iter(name))
    assert "".join(pieces) == state[name] and state[name]
    # a second reader afterwards, and one at the same time, see all of it
    assert "".join(state.text_iter(name)) == state[name]


def test_two_readers_at_once(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.piece_delay = 0.001
    state = chat.run("q", stream=True)
    one, other = state.text_iter(), state.text_iter()
    texts = ["", ""]
    for pair in zip(one, other, strict=False):
        texts[0] += pair[0]
        texts[1] += pair[1]
    texts[0] += "".join(one)
    texts[1] += "".join(other)
    assert texts[0] == state.text() and state.text().startswith(texts[1][:20])


def test_a_variable_that_never_comes(backend: RuntimeEndpoint) -> None:
    state = chat.run("q", stream=True)
    assert list(state.text_iter("nothing")) == [""]
    with pytest.raises(KeyError):
        state["nothing"]


def test_without_streaming_there_is_one_piece(backend: RuntimeEndpoint) -> None:
    state = chat("q")
    assert list(state.text_iter()) == [state.text()]
    assert list(state.text_iter("answer")) == [state["answer"]]


def test_reading_variables_while_it_streams(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.piece_delay = 0.001
    state = chat.run("q", stream=True)
    assert state["more"] and state["answer"]  # not yet submitted when asked for


async def test_async_iteration(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.piece_delay = 0.001
    state = chat.run("q", stream=True)
    assert "".join([piece async for piece in state.text_async_iter()]) == state.text()
    state = chat.run("q", stream=True)
    pairs = [pair async for pair in state.text_async_iter("answer", return_meta_data=True)]
    assert "".join(text for text, _ in pairs) == state["answer"]
    assert pairs[-1][1]["id"] and pairs[-1][1]["prompt_tokens"]
    state = chat("q")
    assert [piece async for piece in state.text_async_iter("answer")] == [state["answer"]]


@pytest.mark.parametrize("disjoint", [False, True])
async def test_logprobs_of_all_pieces_arrive(native: NativeServer, backend: RuntimeEndpoint, disjoint: bool) -> None:
    native.disjoint = disjoint

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p" + sgl.gen("x", return_logprob=True)

    state = program.run(stream=True)
    meta = [meta async for _, meta in state.text_async_iter("x", return_meta_data=True)][-1]
    whole = program().get_meta_info("x")
    assert state.get_meta_info("x")["output_token_logprobs"] == whole["output_token_logprobs"]
    assert len(meta["output_token_logprobs"]) <= len(whole["output_token_logprobs"])


def test_an_error_in_the_stream(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.stream_error = "out of memory"
    state = chat.run("q", stream=True)
    seen = []
    with pytest.raises(ServerError, match="out of memory"):
        for piece in state.text_iter("answer"):
            seen.append(piece)
    assert seen  # what came before the error is not lost
    with pytest.raises(ServerError, match="prompt ending in"):
        state.text()


def test_a_stream_that_breaks_off(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.cut_stream = True
    state = chat.run("q", stream=True)
    with pytest.raises(RuntimeError):
        list(state.text_iter())
    assert state.error() is not None


def test_closing_a_stream_cancels(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.piece_delay = 0.05
    state = chat.run("q", stream=True)
    for piece in state.text_iter("answer"):
        if piece:
            break
    with pytest.raises(StateCancelledError):
        state["more"]
    deadline = time.monotonic() + 5
    while native.num_open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert native.num_open == 0 and len(native.generated()) == 1


def test_events_tell_the_whole_story(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "a" + sgl.gen("x", max_tokens=3)
        forks = s.fork(2)
        forks += "b" + sgl.gen("y", max_tokens=2)
        forks.join()

    state = program.run(stream=True)
    events = list(state.events())
    assert {event.branch for event in events} == {"0", "0.0", "0.1"}
    ended = {(event.branch, event.name): event.value for event in events if event.kind == "var_end"}
    assert ended[("0", "x")] == state["x"] and ended[("0", "y")] == state["y"]
    for branch in ("0.0", "0.1"):
        delta = "".join(e.text for e in events if e.branch == branch and e.kind == "var_delta")
        assert delta == ended[(branch, "y")]
    text = "".join(e.text for e in events if e.branch == "0" and e.kind in ("text", "var_delta"))
    assert text == state.text()
    assert [e.children for e in events if e.kind == "fork"] == [("0.0", "0.1")]
    with pytest.raises(ValueError, match="stream=True"):
        next(program().events())


# --- the parser ---


EVENTS = [{"text": "héllo 😀", "n": 1}, {"text": "x" * 300}, {"text": "line\nend"}]
BYTES = b"".join(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in EVENTS) + b"data: [DONE]\n\n"


def parse(chunks: list[bytes]) -> list[str]:
    stream = EventReader()
    return [event for chunk in chunks for event in stream.feed(chunk)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(BYTES)), max_size=12), st.booleans())
def test_any_cut_gives_the_same_events(cuts: list[int], crlf: bool) -> None:
    data = BYTES.replace(b"\n", b"\r\n") if crlf else BYTES
    points = [0, *sorted(cuts), len(data)]
    events = parse([data[a:b] for a, b in zip(points, points[1:], strict=False)])
    assert [json.loads(event) for event in events[:-1]] == EVENTS and events[-1] == "[DONE]"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(BYTES)), max_size=40))
def test_events_that_are_passed_on_are_the_same_for_any_cut(cuts: list[int]) -> None:
    points = [0, *sorted(cuts), len(BYTES)]
    splitter = EventSplitter()
    found = [event for a, b in zip(points, points[1:], strict=False) for event in splitter.feed(BYTES[a:b])]
    assert found == BYTES.split(b"\n\n")[:-1]


def test_an_empty_piece_changes_nothing() -> None:
    for cut in range(len(BYTES) + 1):
        splitter = EventSplitter()
        pieces = [BYTES[:cut], b"", b"", BYTES[cut:]]
        assert [event for piece in pieces for event in splitter.feed(piece)] == BYTES.split(b"\n\n")[:-1]
        assert parse(pieces)[-1] == "[DONE]"


def test_fields_of_the_standard() -> None:
    data = b": comment\nevent: x\ndata: a\ndata:b\nid: 1\n\n\n\nretry: 5\n\ndata\n\ndata: cut off"
    assert parse([data]) == ["a\nb", ""]
    assert parse([b"data: " + b"x" * (1 << 20) + b"\n\n"]) == ["x" * (1 << 20)]
    assert parse([b"data: a\r", b"\rdata: b\r\n\r", b"\n"]) == ["a", "b"]
