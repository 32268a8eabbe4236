"""Pictures and videos that cost more than they should, and hosts that are slow on purpose."""

from __future__ import annotations

import base64
import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from tests.attack.target import Scale, Target


def png(width: int, height: int, bits: int = 8, kind: int = 2) -> bytes:
    """A black PNG, made without its pixels being in memory. `kind`: 0 grey, 2 RGB, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[kind] * bits // 8)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    out = io.BytesIO()
    Image.new("RGB", (2000, 2000), (9, 99, 199)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def ask(target: Target, *urls: str, kind: str = "image_url") -> int:
    content = [{"type": kind, kind: {"url": one}} for one in urls]
    body = {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": "x"}]}], "max_tokens": 2}
    reply = target.post("/v1/chat/completions", body)
    assert reply.status_code in (200, 400, 413), f"{reply.status_code}: {reply.text[:300]}"
    return reply.status_code


def test_videos_of_large_frames(vision_target: Target, scale: Scale) -> None:
    frame = png(8192, 8192, kind=0)
    with vision_target.watched() as watch:
        for count in (40, 10)[: scale.times]:
            ask(vision_target, url(frame * count, "video/png"), kind="video_url")
    vision_target.check(watch)


def test_many_large_pictures(vision_target: Target, scale: Scale) -> None:
    blank = url(png(3584, 3584), "image/png")
    with vision_target.watched() as watch:
        assert ask(vision_target, *[blank] * 30) in (400, 413)
    vision_target.check(watch)


@pytest.mark.parametrize("bits, kind", [(16, 0), (16, 2), (16, 6), (8, 6)])
def test_deep_pictures(vision_target: Target, scale: Scale, bits: int, kind: int) -> None:
    with vision_target.watched() as watch:
        ask(vision_target, url(png(8000, 8000, bits, kind), "image/png"))
    vision_target.check(watch)


def test_pictures_of_many_scans(vision_target: Target, scale: Scale) -> None:
    data = url(many_scans(20_000 if scale.times > 1 else 5_000), "image/jpeg")
    with vision_target.watched() as watch:
        began = time.monotonic()
        ask(vision_target, data)
        assert time.monotonic() - began < 30
    vision_target.check(watch)


@contextmanager
def silent_host() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


def test_slow_hosts_delay_no_other_request(vision_target: Target, scale: Scale) -> None:
    picture = url(png(64, 64), "image/png")
    with silent_host() as port, vision_target.watched() as watch:
        slow = [f"http://127.0.0.1:{port}/{i}.png" for i in range(16)]
        threads = [threading.Thread(target=ask, args=(vision_target, one), daemon=True) for one in slow]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert ask(vision_target, picture) == 200
        assert time.monotonic() - began < 10
        for thread in threads:
            thread.join()
    vision_target.check(watch)


@pytest.mark.parametrize(
    "address",
    ["http://xn--/", "http://192.0.0.192/", "http://[fec0::1]/", "http://[::ffff:10.0.0.1]/", "http://0x7f000001:1/", "http://a\\b/", "http://[v1.x]/", "http://x:99999/", "ftp://x/", "data:,", "data:image/png;base64,!!!!", "file:///etc/passwd", "http://" + "a." * 200 + "b/"],
)  # fmt: skip
def test_addresses_that_are_none(vision_target: Target, address: str) -> None:
    assert ask(vision_target, address) == 400
