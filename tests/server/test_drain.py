"""The end of a server: what is in flight is finished or told so, wherever it is, and no client can put it off."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.conftest import ROOT, RunningServer, start_server
from tests.server.test_operate import LONG, eventually, health, post, state

LATE = 25.0
"""seconds beyond the time for draining after which a server has not ended in time; the machine may be busy"""
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>What is this?"

pytestmark = pytest.mark.attack


class SlowHost:
    """Serves a picture, once it is told to."""

    def __init__(self) -> None:
        self.asked, self.serve, self.num_asked = threading.Event(), threading.Event(), 0
        out = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(out, "PNG")
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.num_asked += 1
                host.asked.set()
                host.serve.wait(120)
                self.send_response(200)
                self.send_header("Content-Length", str(len(out.getvalue())))
                self.end_headers()
                with contextlib.suppress(OSError):  # nobody waits for it any more
                    self.wfile.write(out.getvalue())

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/picture.png"

    def close(self) -> None:
        self.serve.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture()
def slow() -> Iterator[SlowHost]:
    host = SlowHost()
    yield host
    host.close()


def drain(server: RunningServer, seconds: float) -> int:
    """Has it drain. Returns its exit status."""
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(seconds + LATE)


def start_vision(log: Path, seconds: float) -> RunningServer:
    flags = ("--allow-private-media", "--drain-seconds", str(seconds))
    return start_server(log, *flags, model=str(ROOT / "models" / "toy-vlm"))


def test_a_request_that_is_fetching_a_picture_is_finished(tmp_path: Path, slow: SlowHost) -> None:
    server = start_vision(tmp_path / "log", 60)
    body = {"text": PICTURE, "image_data": slow.url, "sampling_params": {"max_new_tokens": 4}}
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(post, server.url, body)
        assert slow.asked.wait(60)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: health(server) == (503, "draining"))
        refused = post(server.url, body)
        assert refused.status_code == 503 and "shutting down" in refused.text
        slow.serve.set()
        assert future.result().status_code == 200
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log.read_text()


RARE = [pytest.param(path, marks=pytest.mark.slow) for path in ("/v1/responses", "/v1/messages")]


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", *RARE])
def test_a_request_whose_picture_does_not_come_is_told(tmp_path: Path, slow: SlowHost, path: str) -> None:
    server = start_vision(tmp_path / "log", 1)
    picture: dict[str, Any] = {"type": "image_url", "image_url": {"url": slow.url}}
    if path == "/v1/responses":
        picture = {"type": "input_image", "image_url": slow.url}
    elif path == "/v1/messages":
        picture = {"type": "image", "source": {"type": "url", "url": slow.url}}
    messages = [{"role": "user", "content": [picture]}]
    body: dict[str, Any] = (
        {"model": "m", "input": messages} if path == "/v1/responses" else {"model": "m", "messages": messages}
    )
    if path == "/generate":
        body = {"text": PICTURE, "image_data": slow.url, "sampling_params": {"max_new_tokens": 4}, "stream": True}
    if path == "/v1/messages":
        body["max_tokens"] = 4
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(post, server.url, body, path)
        assert slow.asked.wait(60)
        assert drain(server, 1) == 0
        reply = future.result()
    assert reply.status_code == 503 and "shutting down" in reply.text
    log = server.log.read_text()
    assert "Traceback" not in log and " 500 " not in log


@pytest.mark.parametrize("flags", [(), pytest.param(("--replicas", "2"), marks=pytest.mark.slow)])
def test_a_second_signal_tells_everybody(tmp_path: Path, slow: SlowHost, flags: tuple[str, ...]) -> None:
    """Wherever their requests are: fetching, compiling, running, waiting. None gets an internal error or no answer."""
    vision = ("--allow-private-media", "--drain-seconds", "60", "--max-running-requests", "2")
    server = start_server(tmp_path / "log", *vision, *flags, model=str(ROOT / "models" / "toy-vlm"))
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": slow.url}}]}]
    fetches: dict[str, Any] = {"model": "m", "messages": picture}
    runs = {"text": "x", "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}}
    schema = {"type": "string", "pattern": "^([a-z]{1,300}|[0-9a-f]{1,400}x?){1,200}$"}
    asked: list[tuple[str, dict[str, Any]]] = [
        *[("/generate", runs)] * 6,
        ("/generate", runs | {"text": ["x"] * 20}),
        ("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 3000, "json_schema": json.dumps(schema)}}),
        *[("/v1/chat/completions", fetches), ("/v1/chat/completions", fetches | {"stream": True})] * 4,
        ("/v1/messages", fetches | {"max_tokens": 4, "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": slow.url}}]}]}),
    ]  # fmt: skip
    with ThreadPoolExecutor(len(asked)) as pool:
        futures = [pool.submit(post, server.url, body, path) for path, body in asked]
        eventually(lambda: slow.num_asked == 9)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: health(server) == (503, "draining"))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LATE) == 0
        for future, (path, _) in zip(futures, asked, strict=True):
            reply = future.result()
            assert reply.status_code == 503 and "shutting down" in reply.text, f"{path}: {reply.status_code} {reply.text[:200]}"
    log = server.log.read_text()
    assert "Traceback" not in log and " 500 " not in log


def connect(server: RunningServer, head: str) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(head.replace("\n", "\r\n").encode())
    return connection


def test_clients_that_stall_do_not_hold_the_server(tmp_path: Path) -> None:
    """One does not send the rest of its body, one does not read its stream, one asks nothing, one has a deadline far away."""
    server = start_server(tmp_path / "log", "--drain-seconds", "2")
    stream = json.dumps(LONG | {"stream": True, "return_logprob": True, "top_logprobs_num": 50})
    clients = [
        connect(server, "POST /generate HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: 100\n\n{"),
        connect(
            server,
            "POST /generate HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
            f"Content-Length: {len(stream)}\n\n{stream}",
        ),
        connect(server, "GET /hea"),
    ]
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(post, server.url, LONG, "/generate", **{"X-Request-Timeout": "5000"})
        eventually(lambda: state(server.url)["num_running"] == 2)
        began = time.monotonic()
        assert drain(server, 2) == 0
        assert time.monotonic() - began >= 2, "they had their time"
        assert "shutting down" in future.result().text
    clients[0].settimeout(10)
    assert clients[0].recv(1000).startswith(b"HTTP/1.1 503 "), "its body may come too late, but it gets an answer"
    for client in clients:
        client.close()
    assert "Traceback" not in server.log.read_text()


BLOCKED = """
import sys, threading, time

if sys.argv[:1] != ["-c"] and "sglang.launch_server" in getattr(sys, "orig_argv", ()):
    from sglang.srt.server.native import routes as native_api

    async def model_info(self, request):
        time.sleep(1000)  # as a bug would

    native_api.NativeApi.model_info = model_info
    import sglang.srt.process.ending as ending
    ending.EXIT_SECONDS = 2.0
"""


LONG_TEXT = """
import sys, time

if sys.argv[:1] != ["-c"] and "sglang.launch_server" in getattr(sys, "orig_argv", ()):
    from sglang.srt.server import side_threads
    from sglang.srt.server.native import routes as native_api

    async def model_info(self, request):
        await side_threads.run_in_thread(time.sleep, 1000)  # as a tokenizer with a bad pattern would

    native_api.NativeApi.model_info = model_info
"""


def drain_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_by: str, status: int) -> str:
    """The log of a server that something holds when the signal comes; it ends with `status` and leaves no process."""
    (tmp_path / "sitecustomize.py").write_text(held_by)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = start_server(tmp_path / "log", "--drain-seconds", "1", "--skip-server-warmup")
    children = server.children()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/model_info", timeout=2, trust_env=False)
    assert drain(server, 1) == status
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    return server.log.read_text()


def test_a_signal_ends_a_server_that_works_on_a_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in drain_held(tmp_path, monkeypatch, LONG_TEXT, 0)


def test_a_signal_ends_a_server_whose_event_loop_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "in model_info" in drain_held(tmp_path, monkeypatch, BLOCKED, 1), "it says what held it"
