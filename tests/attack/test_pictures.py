"""Pictures and videos that cost more than they should, and hosts that are slow on purpose."""

from __future__ import annotations

import base64
import io
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image

from tests.attack.target import Scale, Target, mostly_slow


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


def file_of(form: str) -> bytes:
    """A small picture or animation in a format."""
    pictures = [Image.effect_noise((96, 64), 60 + i).convert("RGB") for i in range(3)]
    out = io.BytesIO()
    several: dict[str, Any] = {"save_all": True, "append_images": pictures[1:]}
    if form == "deep PNG":
        return png(96, 64, 16, 6)
    name, _, kind = form.partition(" ")
    options = {"progressive": {"progressive": True}, "several": several}.get(kind, {})
    pictures[0].save(out, name, **options)
    return out.getvalue()


FORMS = ["PNG", "deep PNG", "PNG several", "JPEG", "JPEG progressive", "MPO several", "GIF", "GIF several", "WEBP", "WEBP several", "TIFF", "TIFF several", "AVIF", "AVIF several", "BMP"]  # fmt: skip


def spoiled(data: bytes, rng: random.Random) -> bytes:
    """With some bytes, mostly of its head, or some numbers replaced, or cut off, or repeated."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 10])):
        at = rng.randrange(len(changed) if rng.random() < 0.4 else min(len(changed), 400))
        number = rng.choice(
            [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\0\1", bytes([rng.randrange(256)])]
        )
        changed[at : at + len(number)] = number
    match rng.randrange(5):
        case 0:
            return bytes(changed[: rng.randrange(len(changed))])
        case 1:
            return bytes(changed) * rng.choice([2, 50])
        case 2:
            at = rng.randrange(len(changed))
            return bytes(changed[:at] + changed[at // 2 : at] * 20 + changed[at:])
    return bytes(changed)


@pytest.mark.parametrize("form", mostly_slow(FORMS, 5))
def test_damaged_pictures_and_videos(vision_target: Target, scale: Scale, form: str) -> None:
    try:
        data = file_of(form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {form}")
    rng = random.Random(form)
    with vision_target.watched() as watch, ThreadPoolExecutor(4) as pool:
        sent = []
        for i in range(8 * scale.times**2):
            kind = rng.choice(["image_url", "image_url", "video_url"])
            told = rng.choice(["image/png", "video/mp4", "application/octet-stream", "text/html"])
            sent.append(pool.submit(ask, vision_target, url(spoiled(data, rng) if i else data, told), kind=kind))
        for one in sent:
            one.result()
    assert watch.peak_mb < vision_target.warm_mb + 768, f"{watch.peak_mb:.0f} MB"
    vision_target.check(watch)


SMALL = url(png(64, 64), "image/png")
NESTED = {
    "a URL in a URL": "data:image/png;base64," + base64.b64encode(SMALL.encode()).decode(),
    "URLs in URLs": "data:image/png;base64,data:image/png;base64," + SMALL,
    "many parameters": "data:image/png;" + "a=b;" * 100_000 + "base64,AAAA",
    "percent signs": "data:image/png," + "%89%50%4e%47" * 10_000,
    "white space": SMALL.replace(",", "," + "\n" * 500_000),
    "a type that is a path": "data:../../etc/passwd;base64,AAAA",
    "SVG": url(b"<svg xmlns='http://www.w3.org/2000/svg' xmlns:x='http://www.w3.org/1999/xlink'><image x:href='file:///etc/passwd'/></svg>", "image/svg+xml"),
    "sound": url(b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0D\xac\0\0\x88X\1\0\2\0\x10\0data\0\0\0\0", "audio/wav"),
    "a playlist": url(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "application/vnd.apple.mpegurl"),
    "a list of files": url(b"ffconcat version 1.0\nfile /etc/passwd\n", "video/mp4"),
    "PostScript": url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n/x{loop}def x\n", "image/eps"),
    "a font of a program": url(b"MZ" + bytes(2000), "image/x-icon"),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_data_that_is_no_picture(vision_target: Target, name: str) -> None:
    for kind in ("image_url", "video_url"):
        status = ask(vision_target, NESTED[name], kind=kind)
        assert status == 400 or name == "white space"
    for part in (
        {"type": "input_audio", "input_audio": {"data": NESTED[name], "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": NESTED[name]}},
        {"type": "file", "file": {"file_data": NESTED[name]}},
    ):
        body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
        reply = vision_target.post("/v1/chat/completions", body)
        assert reply.status_code == 400 and len(reply.text) < 2000, reply.text[:300]


def routes_of_pictures(one: str) -> list[tuple[str, dict[str, Any]]]:
    """Every way by which pictures come in."""
    media_type, _, data = one.removeprefix("data:").partition(";base64,")
    source = {"type": "base64", "media_type": media_type, "data": data}
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    return [
        ("/generate", {"text": text, "image_data": one, "sampling_params": {"max_new_tokens": 1}}),
        ("/generate", {"text": text.replace("image", "video"), "video_data": one, "sampling_params": {"max_new_tokens": 1}}),
        ("/generate", {"text": [text] * 3, "image_data": [[one], [one], [one]], "sampling_params": {"max_new_tokens": 1}}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": one}]}], "max_output_tokens": 1}),
        ("/v1/responses", {"input": [{"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}"}, {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": one}]}], "max_output_tokens": 1}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}], "max_tokens": 1}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}),
        ("/apply_chat_template", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": one}}]}]}),
    ]  # fmt: skip


@pytest.mark.parametrize("form", mostly_slow(["many scans", "deep", "too many pixels", "a fraction of a video", "random"], 5))
def test_pictures_by_every_route(vision_target: Target, scale: Scale, form: str) -> None:
    data = {
        "deep": lambda: png(5000, 5000, 16, 6),
        "many scans": lambda: many_scans(3000),
        "too many pixels": lambda: png(20_000, 20_000, 1, 0),
        "a fraction of a video": lambda: png(4096, 4096, kind=0) * 30,
        "random": lambda: random.Random(1).randbytes(5_000_000),
    }[form]()
    with vision_target.watched() as watch:
        for path, body in routes_of_pictures(url(data, "image/png")):
            reply = vision_target.post(path, body)
            assert reply.status_code in (200, 400, 413, 503), f"{path}: {reply.status_code}: {reply.text[:300]}"
            assert reply.status_code == 200 or len(reply.text) < 2000
    assert watch.peak_mb < vision_target.warm_mb + 1024, f"{watch.peak_mb:.0f} MB"
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
