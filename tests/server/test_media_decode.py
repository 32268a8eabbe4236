"""Image and video files of every kind: decoded correctly, or refused with a sentence."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sglang.srt.errors import RequestError, SglangError
from tests.server.media_tools import decode, frames_of


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def picture(width: int = 8, height: int = 6) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_common_formats() -> None:
    for form in ("PNG", "WEBP", "BMP", "TIFF", "GIF"):
        data = encode(picture(), form, **({"lossless": True} if form == "WEBP" else {}))
        assert np.array_equal(np.asarray(decode(data)), np.asarray(picture()))
    assert decode(encode(picture(64, 64), "JPEG")).getpixel((4, 4))[0] > 240


def test_exif_rotation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    image = decode(encode(picture(), "PNG", exif=exif))
    assert image.size == (6, 8)
    assert image.getpixel((0, 0)) == (255, 0, 0) and image.getpixel((0, 7)) == (0, 0, 255)


def test_cmyk_palette_grey_bilevel() -> None:
    cmyk = decode(encode(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG"))
    assert cmyk.mode == "RGB" and cmyk.getpixel((20, 20))[0] > 230 > 40 > cmyk.getpixel((20, 20))[1]
    assert decode(encode(picture().convert("P"), "PNG")).getpixel((0, 0)) == (255, 0, 0)
    assert decode(encode(Image.new("L", (4, 4), 77), "PNG")).getpixel((1, 1)) == (77, 77, 77)
    assert decode(encode(Image.new("1", (4, 4), 1), "PNG")).getpixel((1, 1)) == (255, 255, 255)


def test_16_bit_grey_keeps_its_brightness() -> None:
    samples = np.array([[0, 257 * 10, 257 * 200, 65535]] * 4, dtype=np.uint16)
    for form in ("PNG", "TIFF"):
        image = decode(encode(Image.fromarray(samples), form))
        assert [image.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 10, 200, 255)]


def test_transparency_shows_white() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 1), (10, 20, 30, 255))
    decoded = decode(encode(image, "PNG"))
    assert decoded.getpixel((0, 0)) == (255, 255, 255) and decoded.getpixel((1, 1)) == (10, 20, 30)
    assert decode(encode(Image.new("LA", (2, 2), (0, 0)), "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_animation_is_no_still_image() -> None:
    for form in ("GIF", "WEBP", "PNG"):
        data = encode(
            picture(), form, save_all=True, append_images=[picture().rotate(90, expand=False), Image.new("RGB", (8, 6))]
        )
        with pytest.raises(RequestError, match="animated .*send it as a video"):
            decode(data)


def test_truncated_files() -> None:
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        rng = np.random.default_rng(0)
        data = encode(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), form)
        with pytest.raises(RequestError):
            decode(data[: len(data) // (3 if form == "JPEG" else 2)])


def test_size_is_checked_before_decoding() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    with pytest.raises(RequestError, match="pixels"):
        decode(bomb)
    with pytest.raises(RequestError, match="at most 40 are allowed"):
        decode(encode(picture(), "PNG"), max_pixels=40)
    with pytest.raises(RequestError, match="200 times the shorter"):
        decode(encode(Image.new("RGB", (1, 300)), "PNG"))


def test_what_is_no_image() -> None:
    with pytest.raises(RequestError, match=r"the image \(text/html\) is not an image"):
        decode(b"<html>not found</html>", "text/html")
    for data in (b"x", b"\x89PNG\r\n\x1a\n", b"%PDF-1.4", b"<svg/>", b"GIF89a", b"\xff\xd8\xff"):
        with pytest.raises(RequestError):
            decode(data)
    with pytest.raises(RequestError, match="floating-point"):
        decode(encode(Image.new("F", (4, 4)), "TIFF"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_never_raise_anything_else(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    body = bytearray(encode(picture(32, 32), form))
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(body), max_pixels=1 << 20)
    except SglangError:
        return
    assert image.mode == "RGB" and image.width * image.height <= 1 << 20


# --- videos -----------------------------------------------------------------------------------------------------------------


COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
FRAMES = [Image.new("RGB", (8, 6), color) for color in COLORS]


def test_animations_are_videos() -> None:
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encode(
            FRAMES[0], form, save_all=True, append_images=FRAMES[1:], **({"lossless": True} if form == "WEBP" else {})
        )
        assert [frame.getpixel((0, 0)) for frame in frames_of(data)] == COLORS
    assert len(frames_of(encode(FRAMES[0], "PNG"))) == 1


def test_frames_one_after_another() -> None:
    data = b"".join(encode(frame, "PNG") for frame in FRAMES)
    assert [frame.getpixel((0, 0)) for frame in frames_of(data)] == COLORS
    with pytest.raises(RequestError, match="cut off"):
        frames_of(data[:-5])
    with pytest.raises(RequestError, match="not a PNG"):
        frames_of(data + b"junk")
    with pytest.raises(RequestError, match="differ in size"):
        frames_of(data + encode(Image.new("RGB", (4, 4)), "PNG"))


def test_video_limits() -> None:
    data = encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
    with pytest.raises(RequestError, match="too many frames; at most 2"):
        frames_of(data, max_frames=2)
    with pytest.raises(RequestError, match="at most 2"):
        frames_of(b"".join(encode(frame, "PNG") for frame in FRAMES), max_frames=2)


def test_video_file_without_a_decoder_or_damaged() -> None:
    with pytest.raises(RequestError, match="video decoder|damaged"):
        frames_of(b"\0\0\0\x18ftypmp42" + b"\0" * 100)
