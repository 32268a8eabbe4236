"""Failures: raised where the value is used, with the request attached, and never a wait without an end."""

from __future__ import annotations

import socket
import threading
import time

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.lang.errors import (
    BackendConnectionError,
    BackendError,
    BackendTimeoutError,
    BadReplyError,
    RequestRefusedError,
    ServerError,
    StateCancelledError,
    copy_of,
)

from .native_server import NativeServer


@sgl.function
def two(s: ProgramState) -> None:
    s += "the prompt " + sgl.gen("x") + " then " + sgl.gen("y")


def test_raised_at_first_use_with_the_request(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.failures = [(400, {"error": {"message": "temperature is wrong"}})]
    state = two()  # does not raise
    for use in (lambda: state["x"], lambda: state["y"], state.text, state.messages, state.sync):
        with pytest.raises(RequestRefusedError, match="temperature is wrong") as caught:
            use()
        assert caught.value.status_code == 400
        assert caught.value.prompt_tail == "the prompt "
        assert caught.value.rid == native.generated()[0]["rid"]
        assert "prompt ending in 'the prompt '" in str(caught.value) and caught.value.rid in str(caught.value)
    assert isinstance(state.error(), RequestRefusedError)
    assert "error=" in repr(state)
    assert len(native.generated()) == 1  # what followed was not sent


def test_what_was_there_before_the_failure_stays(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.gen("x")
        s["x"]
        native.failures.append((500, {"error": {"message": "broken"}}))
        s += sgl.gen("y")

    state = program()
    with pytest.raises(ServerError):
        state["y"]
    assert state["x"]


def test_a_failed_state_ignores_more_and_never_hangs(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.failures = [(400, {"error": {"message": "no"}})]
    state = two()
    assert state.error() is not None
    state += " more" + sgl.gen("z")
    with pytest.raises(RequestRefusedError):
        state["z"]
    with pytest.raises(RequestRefusedError):
        state.fork(2)[1].text()
    state["z"] = "set by hand"
    assert state["z"] == "set by hand"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "nested"}}, "nested"),
        ({"object": "error", "message": "flat"}, "flat"),
        ({"error": "plain"}, "plain"),
        ({"detail": "fastapi"}, "fastapi"),
        ("<html>Bad Gateway</html>", "Bad Gateway"),
        ("", "no reason given"),
    ],
)
def test_every_shape_of_error_body(native: NativeServer, backend: RuntimeEndpoint, body: object, message: str) -> None:
    native.failures = [(500, body)]
    with pytest.raises(ServerError, match=message):
        two().sync()


def test_replies_that_make_no_sense(native: NativeServer, backend: RuntimeEndpoint) -> None:
    for reply in ({"no": "text"}, [], "not json", [1]):
        native.failures = [(200, reply)]
        with pytest.raises(BadReplyError):
            two().sync()


def test_an_aborted_request_is_an_error(native: NativeServer, backend: RuntimeEndpoint) -> None:
    reason = {"type": "abort", "message": "the grammar is impossible", "status_code": 400}
    native.failures = [(200, {"text": "half", "meta_info": {"finish_reason": reason}})]
    with pytest.raises(RequestRefusedError, match="grammar is impossible"):
        two().sync()


def test_broken_connections_are_tried_again(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.hang_up = 2
    assert two()["y"]
    assert native.num_hung_up == 2


def test_overload_is_tried_again(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.failures = [(503, {"error": {"message": "full"}})] * 2
    assert two()["y"]
    assert len(native.generated()) == 4


def test_trying_again_ends(native: NativeServer) -> None:
    endpoint = RuntimeEndpoint(native.url, retries=1)
    native.hang_up = 100
    with pytest.raises(BackendConnectionError, match="2 tries"):
        two.run(backend=endpoint).sync()
    native.hang_up = 0
    native.failures = [(503, {"error": {"message": "full"}})] * 100
    with pytest.raises(ServerError, match="full"):
        two.run(backend=endpoint).sync()
    assert len(native.generated()) == 2


def test_a_refusal_is_not_tried_again(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.failures = [(400, {"error": {"message": "no"}})]
    with pytest.raises(RequestRefusedError):
        two().sync()
    assert len(native.generated()) == 1


def test_a_silent_server_times_out(native: NativeServer) -> None:
    endpoint = RuntimeEndpoint(native.url, timeout=0.2)
    native.delay = 30
    state = two.run(backend=endpoint)
    with pytest.raises(BackendTimeoutError, match=r"nothing for 0\.2 seconds"):
        state["x"]
    assert isinstance(state.error(), TimeoutError)


def test_no_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(BackendConnectionError, match=f"127.0.0.1:{port}"):
        RuntimeEndpoint(f"http://127.0.0.1:{port}", retries=0)
    for bad in ("localhost:3000", "", "ftp://x"):
        with pytest.raises(ValueError, match="not an http"):
            RuntimeEndpoint(bad)


def test_the_api_key_travels(native: NativeServer) -> None:
    endpoint = RuntimeEndpoint(native.url, api_key="secret")
    two.run(backend=endpoint).sync()
    assert native.last_headers["authorization"] == "Bearer secret"
    assert native.last_headers["content-type"] == "application/json; charset=utf-8"
    assert native.last_headers["host"] == native.url.removeprefix("http://")
    assert int(native.last_headers["content-length"]) > 0


def test_connections_are_used_again(native: NativeServer, backend: RuntimeEndpoint) -> None:
    for _ in range(10):
        two().sync()
    assert native.num_connections <= 2


def test_requests_in_flight_are_limited(native: NativeServer) -> None:
    endpoint = RuntimeEndpoint(native.url, max_connections=3)
    native.delay = 0.02
    states = two.run_batch([{} for _ in range(12)], backend=endpoint)
    assert all(state["y"] for state in states) and native.max_open == 3


def test_cancel(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.delay = 30

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p"
        forks = s.fork(3)
        forks += "q" + sgl.gen("x")
        forks.join()

    state = program()
    threading.Timer(0.1, state.cancel).start()
    started = time.monotonic()
    with pytest.raises(StateCancelledError):
        state["x"]
    assert time.monotonic() - started < 10


def test_the_first_error_of_a_state_stays(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.failures = [(400, {"error": {"message": "no"}})]

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.gen("x")
        with pytest.raises(RequestRefusedError):
            s["x"]
        raise ValueError("later")

    state = program.run(stream=True)
    with pytest.raises(RequestRefusedError, match="no"):
        "".join(state.text_iter("x"))
    assert isinstance(state.error(), RequestRefusedError)
    with pytest.raises(RequestRefusedError, match="no"):
        state["x"]


def test_errors_are_copied_for_each_reader() -> None:
    error = RequestRefusedError("no", status_code=400, server_message="x")
    error.attach("r1", "prompt")
    twin = copy_of(error)
    assert twin is not error and isinstance(twin, RequestRefusedError)
    assert str(twin) == str(error) and twin.status_code == 400 and twin.__cause__ is error
    assert issubclass(BackendError, RuntimeError)
