"""Limits of the cost of images and videos for a real server: memory, time, and places that other clients need. Each case was a way to end it, or
to keep everybody waiting."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from sglang.srt.config import MediaOptions
from sglang.srt.errors import RequestError
from sglang.srt.server.multimodal.decoding import Decoder
from sglang.srt.server.multimodal.fetched import Fetched
from sglang.srt.server.multimodal.media import inspect
from tests.conftest import ROOT, RunningServer, start_server
from tests.server.media_tools import Peak, tree

PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
MIB = 1 << 20

pytestmark = [pytest.mark.attack, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("log") / "log"
    flags = ["--allow-private-media", "--api-key", "a,b", "--media-timeout", "8", "--media-decode-timeout", "40"]
    running = start_server(log, *flags, model=str(ROOT / "models" / "toy-vlm"))
    with client(running) as web:  # warm: what is loaded once is no cost of a request
        assert ask(web, [png(Image.new("RGB", (300, 200)))]).status_code == 200
    yield running
    running.process.terminate()
    running.process.wait(30)


def client(running: RunningServer, key: str = "a", timeout: float = 120) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=running.url, timeout=timeout, trust_env=False, headers=headers)


def ask(web: httpx.Client, files: list[bytes | str], kind: str = "image", tokens: int = 1) -> httpx.Response:
    """Asks about files, or what stands for them."""
    named = [f if isinstance(f, str) else f"data:{kind}/png;base64," + base64.b64encode(f).decode() for f in files]
    place = PLACE if kind == "image" else PLACE.replace("image", "video")
    body = {"text": place * len(named), f"{kind}_data": named, "sampling_params": {"max_new_tokens": tokens}}
    return web.post("/generate", json=body)


def refusal(reply: httpx.Response) -> str:
    assert reply.status_code == 400, reply.text[:300]
    return str(reply.json()["error"]["message"])


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def png(image: Image.Image) -> bytes:
    return encode(image, "PNG")


def blank_png(width: int, height: int, bits: int = 8, color: int = 0, ahead: bytes = b"") -> bytes:
    """Black, made without a picture. `ahead`: chunks before the pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    packer = zlib.compressobj(9)
    row = bytes(1 + width * channels * bits // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    palette = chunk(b"PLTE", bytes(768)) if color == 3 else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + ahead + palette + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """As hard to compress as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    smooth += rng.integers(-6, 6, smooth.shape, dtype=np.int16)
    return Image.fromarray(np.clip(smooth, 0, 255).astype(np.uint8))


def many_scans(picture: Image.Image, count: int) -> bytes:
    """A progressive JPEG whose last scan stands there `count` times more."""
    data = encode(picture, "JPEG", progressive=True, quality=50)
    last = [found.start() for found in re.finditer(rb"\xff\xda", data)][-1]
    return data[:-2] + data[last:-2] * count + data[-2:]


# --- memory and time --------------------------------------------------------------------------------------------------------


def refused_cases() -> list[Any]:
    frame = blank_png(8192, 8192)
    gif = encode(Image.new("P", (4000, 4000)), "GIF")
    start, end = gif.index(b",\0\0\0\0"), len(gif) - 1
    tiff = encode(
        Image.new("L", (8000, 8000)),
        "TIFF",
        compression="tiff_adobe_deflate",
        save_all=True,
        append_images=[Image.new("L", (8000, 8000))] * 3,
    )
    animation = encode(
        Image.new("RGB", (2000, 2000)),
        "WEBP",
        lossless=True,
        save_all=True,
        append_images=[Image.new("RGB", (2000, 2000), (i, 0, 0)) for i in range(1, 40)],
    )
    return [
        pytest.param([frame * 40], "video", "pixels together", id="40 frames of 8192 x 8192"),
        pytest.param([gif[:end] + gif[start:end] * 60 + gif[end:]], "video", "pixels together", id="a GIF of 61 frames"),
        pytest.param([tiff], "video", "pixels together", id="a TIFF of pages"),
        pytest.param([animation], "video", "pixels together", id="an animated WebP"),
        pytest.param([blank_png(7000, 7000)] * 3, "image", "pixels together", id="three large pictures"),
        pytest.param([blank_png(8200, 8200)], "image", "at most", id="one picture that is too large"),
        pytest.param([many_scans(Image.new("RGB", (2000, 1500)), 20_000)], "image", "damaged", id="20,000 scans"),
    ]


@pytest.mark.parametrize(("files", "kind", "message"), refused_cases())
def test_refused_by_their_headers(vision: RunningServer, files: list[bytes], kind: str, message: str) -> None:
    with client(vision) as web, Peak(vision.process.pid) as peak:
        begun = time.monotonic()
        assert message in refusal(ask(web, files, kind))
        assert time.monotonic() - begun < 10
    assert peak.bytes < 6 * sum(map(len, files)) + 100 * MIB


def test_more_pictures_than_the_context_holds(tmp_path: Any) -> None:
    """Thirty pictures of which one alone exceeds it, at the publisher's sizes."""
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "models" / "toy-vlm", folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"max_pixels": 12845056}))
    running = start_server(tmp_path / "log", "--max-image-tokens", "0", model=str(folder))
    try:
        with client(running) as web:
            assert ask(web, [png(Image.new("RGB", (300, 200)))]).status_code == 200
            with Peak(running.process.pid) as peak:
                assert "the largest has 16384 tokens" in refusal(ask(web, [blank_png(3584, 3584)] * 30))
            assert peak.bytes < 100 * MIB
            assert ask(web, [png(Image.new("RGB", (300, 200)))]).status_code == 200
    finally:
        running.process.terminate()
        running.process.wait(30)


RARE = [pytest.param(*mode, marks=pytest.mark.slow) for mode in ((16, 0), (16, 2), (8, 3), (1, 0), (16, 4), (8, 2))]


@pytest.mark.parametrize(("bits", "color"), [(16, 6), *RARE], ids=str)
def test_the_largest_picture_in_every_mode(vision: RunningServer, bits: int, color: int) -> None:
    data = blank_png(8192, 8192, bits, color)
    assert len(data) < MIB
    with client(vision) as web, Peak(vision.process.pid) as peak:
        reply = ask(web, [data])
    assert reply.status_code == 200, reply.text
    assert peak.bytes < 900 * MIB


def test_photographs_of_many_at_once(vision: RunningServer) -> None:
    files = [encode(photograph(4000, 3000, seed), "JPEG", quality=88) for seed in range(8)]
    with client(vision) as web, Peak(vision.process.pid) as peak, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda data: ask(web, [data]), files))
    assert [reply.status_code for reply in replies] == [200] * 8
    assert peak.bytes < 900 * MIB


@pytest.mark.parametrize("form", ["text", "compressed text", "profile", "tiff"])
def test_bombs_in_small_files(vision: RunningServer, form: str) -> None:
    """Parts of a file that swell: refused, or skipped, and never kept."""
    bomb = zlib.compress(bytes(500 * MIB), 9) if form != "text" else b""
    chunks = {
        "text": chunk(b"tEXt", b"a\0" + b"b" * 1000) * 2000,
        "compressed text": chunk(b"zTXt", b"a\0\0" + bomb) + chunk(b"iTXt", b"a\0\1\0\0\0" + bomb),
        "profile": chunk(b"iCCP", b"a\0\0" + bomb),
    }
    if form == "tiff":
        body = encode(Image.new("L", (64, 64)), "TIFF", compression="tiff_adobe_deflate")
        at = body.index(zlib.compress(bytes(64 * 64))[:2])
        data = body[:at] + bomb + body[at:]
    else:
        data = blank_png(64, 64, ahead=chunks[form])
    with client(vision) as web, Peak(vision.process.pid) as peak:
        assert ask(web, [data]).status_code in (200, 400)
    assert peak.bytes < 250 * MIB


def test_decoding_has_a_deadline() -> None:
    """What no header tells: the child is killed, before and while it sends."""
    options = MediaOptions(decode_timeout=0.01)

    async def run() -> None:
        decoder = Decoder(options, with_videos=False)
        try:
            for data in (many_scans(photograph(2000, 1500), 85), many_scans(photograph(4000, 3000), 5)):
                medium = inspect(Fetched(data, "the image"), "image", options)
                assert medium.shape is not None
                with pytest.raises(RequestError, match="took more than"):
                    await decoder.decode(medium, medium.shape, medium.shape.pixels)
        finally:
            decoder.close()

    asyncio.run(run())


def test_bytes_are_counted_before_they_are_decoded(vision: RunningServer) -> None:
    """Two of 33 MiB each, and each alone is allowed."""
    body = "A" * (45 * MIB)
    with client(vision) as web, Peak(vision.process.pid) as peak:
        assert web.post("/generate", json={"text": PLACE, "image_data": body}).status_code == 400
    assert peak.bytes < 450 * MIB


def test_a_decoder_that_dies_costs_one_request(vision: RunningServer) -> None:
    """Children and the process that forks them are killed while pictures come; the server lives on."""
    pids = set(tree(vision.process.pid)) - {vision.process.pid}
    forkers = [pid for pid in pids if b"fork_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert forkers
    with client(vision) as web:
        for pid in forkers:
            os.kill(pid, signal.SIGKILL)
        statuses = [ask(web, [png(Image.new("RGB", (40 + i, 40)))]).status_code for i in range(5)]
    assert statuses[-1] == 200 and set(statuses) <= {200, 400, 503}


# --- places -----------------------------------------------------------------------------------------------------------------


class Misbehaving:
    """A TCP server; `answer` is what it does with a connection after the request. Counts the connections that are open."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.num_open = 0
        self.num_seen = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self.num_open += 1
            self.num_seen += 1
        try:
            with connection:
                connection.recv(65536)
                self._answer(connection)
                while connection.recv(65536):
                    pass
        except OSError:
            pass
        finally:
            with self._lock:
                self.num_open -= 1

    def wait_for(self, what: Any, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not what(self):
            assert time.monotonic() < deadline, (self.num_open, self.num_seen)
            time.sleep(0.02)

    def close(self) -> None:
        self._listener.close()


def serve_picture(connection: socket.socket) -> None:
    data = png(Image.new("RGB", (45, 45), (time.monotonic_ns() & 255, 1, 2)))
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)


@pytest.mark.parametrize("number", [8, 100])
def test_slow_hosts_delay_no_other_request(vision: RunningServer, number: int) -> None:
    """Inline pictures never wait, and those of other hosts neither: other clients' at once, and the client's own too."""
    slow, fast = Misbehaving(lambda connection: None), Misbehaving(serve_picture)
    with ThreadPoolExecutor(number) as pool, client(vision) as web, client(vision, "b") as other, client(vision) as busy:
        waiting = [pool.submit(ask, busy, [f"{slow.url}/{i}"]) for i in range(number)]
        slow.wait_for(lambda s: s.num_open >= min(number, 8))
        for asking in (web, other):
            begun = time.monotonic()
            assert ask(asking, [png(Image.new("RGB", (50, 50), (number, 7, 7)))]).status_code == 200
            assert ask(asking, [f"{fast.url}/x"]).status_code == 200
            assert time.monotonic() - begun < 6
        assert sum(not one.done() for one in waiting) >= 8
        for one in waiting:
            assert one.result().status_code in (400, 503)
    slow.close()
    fast.close()


def test_a_client_that_leaves_ends_its_fetches(vision: RunningServer) -> None:
    for stream in (False, True):
        slow = Misbehaving(lambda connection: None)
        body = {"text": PLACE * 4, "image_data": [f"{slow.url}/{i}" for i in range(4)], "stream": stream}
        with client(vision, timeout=1.5) as web, pytest.raises(httpx.TimeoutException):
            web.post("/generate", json=body)
        slow.wait_for(lambda s: s.num_seen == 4 and s.num_open == 0, 4)
        slow.close()


def test_a_client_that_leaves_ends_its_decoding(vision: RunningServer) -> None:
    data = many_scans(photograph(4000, 3000), 85)
    with client(vision, timeout=0.6) as web, pytest.raises(httpx.TimeoutException):
        ask(web, [data], tokens=1)
    deadline = time.monotonic() + 4
    while busy_children(vision):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def busy_children(vision: RunningServer) -> list[int]:
    """Children of the fork server that are running."""
    found = []
    for pid in tree(vision.process.pid):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as line, open(f"/proc/{pid}/stat") as status:
                if b"fork_server" in line.read() and status.read().rsplit(") ", 1)[1][0] == "R":
                    found.append(pid)
        except OSError:
            continue
    return found


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(100):
        connection.sendall(b"x")
        time.sleep(0.2)


def endless_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for i in range(10_000_000):
        connection.sendall(b"X-%d: " % i + b"y" * 1000 + b"\r\n")


def endless_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(1 << 20):
        connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")


def cookies(connection: socket.socket) -> None:
    many = b"".join(b"Set-Cookie: c%d=%s; Path=/\r\n" % (i, b"v" * 100) for i in range(90))
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + many + b"Content-Length: 4\r\n\r\nabcd")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (drip, "too slowly|took longer"),
        (endless_headers, "connection failed"),
        (endless_body, "too many bytes"),
        (cookies, "not an image"),
        (lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc") or c.shutdown(2), "connection failed"),
        (lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n" % (b"9" * 5001)), "connection failed|too many"),
        (lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc"), "connection failed"),
        (lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"), "compressed"),
        (lambda c: c.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://xn--/\r\nContent-Length: 0\r\n\r\n"), "not a valid URL"),
        (lambda c: c.sendall(b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe//\r\nContent-Length: 0\r\n\r\n"), "redirects"),
        (lambda c: c.sendall(b"HTTP/1.1 999999 ?\r\n\r\n"), "connection failed"),
        (lambda c: c.sendall(b"\0\1\2\3 not HTTP\r\n\r\n"), "connection failed"),
        (lambda c: c.shutdown(2), "connection failed"),
    ],
)
def test_hosts_that_misbehave(vision: RunningServer, answer: Any, message: str) -> None:
    host = Misbehaving(answer)
    with client(vision) as web, Peak(vision.process.pid) as peak:
        assert re.search(message, refusal(ask(web, [f"{host.url}/a.png"])))
    assert peak.bytes < 250 * MIB
    host.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://xn--/",
        "http://xn--a/",
        "http://xn--\u00fc/",
        "http://h:99999/",
        "http://h:0/",
        "http://h:-1/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://a\\b/",
        "http://a\\@b/",
        "http://u:p@h/",
        "http://%00/",
        "http://a b/",
        "http://..../",
        "http://a..b/",
        "http://" + "a" * 70 + ".com/",
        "http://" + "a." * 200,
        "http://\ud800.com/",
        "http:///x",
        "http://[]/",
        "http://*/",
        "http://a/" + "b" * 9000,
        "https://",
        "http:",
        "HTTP://?",
        "http://\u2488.com/",
        "http://1.2.3.4.5/",
        "data:image/png;base64",
        "data:image/png,%%%",
        "data:image/png," + "%41" * 400_000,
        "data:;base64,====",
        "data:text/html;base64,YQ==",
        "file:///etc/passwd",
        "file://host/x",
        "ftp://a/b",
        "javascript:alert(1)",
        "",
        " ",
        "\0",
        "video:",
    ],
    ids=lambda url: ascii(url)[:40],
)
def test_what_names_nothing(vision: RunningServer, url: str) -> None:
    """One sentence, by every route."""
    place = PLACE.replace("image", "video") if url.startswith("video:") else PLACE
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    with client(vision) as web:
        for path, body in (
            ("/generate", {"text": place, "image_data": [url] if url else [[""]]}),
            ("/v1/chat/completions", {"model": "x", "messages": chat}),
        ):
            reply = web.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
            assert len(refusal(reply)) < 500
