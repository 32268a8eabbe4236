"""Headers agree with decoded images, in every format; and places and bytes that clients share."""

from __future__ import annotations

import asyncio
import io
import struct
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.server.limits.shares import Budget, Shares
from sglang.srt.server.multimodal.headers import Shape, measure_image
from sglang.srt.server.multimodal.inputs import parse_media, parse_part
from tests.server.media_tools import decode, frames_of

FORMS = {"PNG": "RGB", "JPEG": "RGB", "WEBP": "RGB", "GIF": "P", "BMP": "RGB", "TIFF": "RGB"}


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).convert(mode)


@given(st.sampled_from(sorted(FORMS)), st.integers(1, 300), st.integers(1, 300), st.integers(1, 5))
@settings(max_examples=120, deadline=None)
def test_sizes_and_frames_as_they_were_written(form: str, width: int, height: int, count: int) -> None:
    frames = [noise(width, height, FORMS[form], seed) for seed in range(count)]
    if form in ("JPEG", "BMP"):
        count, more = 1, {}
    else:
        more = {"save_all": True, "append_images": frames[1:]} if count > 1 else {}
    assert measure_image(encode(frames[0], form, **more), "it", 100) == Shape(width, height, count)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_blocks": 1}),
        ("JPEG", {"exif": b"Exif\0\0" + bytes(60_000)}),
        ("JPEG", {"comment": b"\xff\xd9\xff\xc0" * 50}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0" + bytes(100)}),
        ("TIFF", {"big_tiff": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("MPO", {"save_all": True, "append_images": [noise(30, 20)]}),
        ("PNG", {"interlace": 1}),
    ],
)
def test_variants(form: str, options: dict[str, Any]) -> None:
    data = encode(noise(61, 43), form, **options)
    assert measure_image(data, "it", 10) == Shape(61, 43)
    assert decode(data).size == (61, 43)


def test_an_animation_with_a_picture_for_others() -> None:
    frames = [noise(20, 20, seed=seed) for seed in range(3)]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert measure_image(data, "it", 10) == Shape(20, 20, 3)
    assert len(frames_of(data)) == 3


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_is_a_sentence(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(sorted(FORMS)))
    body = bytearray(encode(noise(40, 30, FORMS[form]), form))
    for _ in range(data.draw(st.integers(0, 8))):
        body[data.draw(st.integers(0, min(len(body) - 1, 400)))] = data.draw(st.integers(0, 255))
    try:
        shape = measure_image(bytes(body[: data.draw(st.integers(0, len(body)))]), "it", 10)
    except RequestError as error:
        assert str(error).startswith("it ")
    else:
        assert shape is None or shape.pixels > 0


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I4sII5s4s", 13, b"IHDR", 9, 9, b"\x08\2\0\0\0", b"crc.")
        + b"\0\0\0\0abcdcrc." * 2_000_000,
        b"\xff\xd8" + b"\xff\xfe\0\2" * 5_000_000,
        b"\xff\xd8" + b"\xff" * 20_000_000,
        b"GIF89a\1\0\1\0\0\0\0" + b"\x21\xfe" + b"\1a" * 10_000_000,
        b"GIF89a\1\0\1\0\0\0\0" + b"\x21\xfe\0" * 7_000_000,
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\2" + bytes(9) + b"abcd\0\0\0\0" * 2_000_000,
        b"II*\0\x08\0\0\0" + (b"\xff\xff" + bytes(65535 * 12)) * 20,
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60) + bytes(100),
    ],
    ids=["png", "jpeg", "fill", "gif blocks", "gif parts", "webp", "tiff", "big tiff"],
)
def test_files_of_nothing_but_headers(data: bytes) -> None:
    begun = time.thread_time()
    try:
        measure_image(data, "it", 700)
    except RequestError:
        pass
    assert time.thread_time() - begun < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(300, 200), (7, 1000), (1200, 500)])
def test_turned_band_by_band(orientation: int, size: tuple[int, int]) -> None:
    image = noise(*size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data, max_pixels=1 << 24)), np.asarray(upright))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_bands_are_the_whole(mode: str) -> None:
    """As the picture would be if it were converted at once."""
    image = noise(700, 400).convert("L").convert("I;16") if mode == "I;16" else noise(700, 400).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    found = np.asarray(decode(encode(image, "PNG")))
    if mode == "I;16":
        whole = np.asarray(image).astype(int)
        assert np.array_equal(found[..., 0], (whole + 128) // 257)
        return
    rgba = Image.open(io.BytesIO(encode(image, "PNG"))).convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    assert np.array_equal(found, np.asarray(Image.alpha_composite(white, rgba).convert("RGB")))


def test_a_header_that_lies() -> None:
    """The decoder is held to what was measured: a JPEG whose second frame header is larger."""
    small, large = encode(noise(16, 16), "JPEG"), encode(noise(900, 900), "JPEG")
    begin = large.index(b"\xff\xc0")
    data = small[:20] + small[20 : small.index(b"\xff\xc0")] + small[small.index(b"\xff\xc0") :][:19] + large[begin:]
    assert measure_image(data, "it", 10) == Shape(16, 16)
    with pytest.raises(RequestError):
        decode(data)


# --- what fields may hold ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(JSON, JSON, JSON, JSON, st.integers(0, 4), st.booleans())
@settings(max_examples=400, deadline=None)
def test_fields_of_any_kind(image: Any, video: Any, modalities: Any, audio: Any, count: int, is_batch: bool) -> None:
    count = count if is_batch else 1
    body = {"image_data": image, "video_data": video, "modalities": modalities, "audio_data": audio}
    for names in (body, {"image_data": image}, {"image_data": "x", "modalities": modalities}):
        try:
            parse_media(names, count, is_batch)
        except RequestError as error:
            assert len(str(error)) < 500


@given(JSON, JSON)
@settings(max_examples=300, deadline=None)
def test_parts_of_any_kind(given: Any, kind: Any) -> None:
    for part in ({"type": kind, "image_url": given}, {"type": "image_url", "image_url": given}):
        try:
            parse_part(part, "messages[0]")
        except RequestError as error:
            assert len(str(error)) < 500


# --- shares -----------------------------------------------------------------------------------------------------------------


async def test_one_owner_leaves_places_for_others() -> None:
    shares = Shares(4, 3, "things are done")
    for _ in range(3):
        await shares.acquire("a", 1)
    waiting = [asyncio.ensure_future(shares.acquire("a", 1)) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.wait_for(shares.acquire("b", 1), 1)
    assert shares.used == 4 and not any(one.done() for one in waiting)
    shares.release("a", 1)
    await asyncio.sleep(0.01)
    assert sum(one.done() for one in waiting) == 1
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert shares.used == 4
    with pytest.raises(OverloadError, match="too many things are done at once"):
        await shares.acquire("b", 1, 0.01)


async def test_who_holds_least_is_served_first() -> None:
    shares, order = Shares(2, 2, "x"), list[str]()
    await shares.acquire("a", 1)
    await shares.acquire("a", 1)

    async def take(owner: str) -> None:
        await shares.acquire(owner, 1)
        order.append(owner)

    tasks = [asyncio.ensure_future(take(owner)) for owner in ("a", "a", "a", "b")]
    await asyncio.sleep(0)
    for _ in range(2):
        shares.release("a", 1)
        await asyncio.sleep(0.01)
    assert order[0] == "b"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_large_amount_gets_its_turn_alone() -> None:
    shares = Shares(10, 8, "x")
    await shares.acquire("a", 5)
    large = asyncio.ensure_future(shares.acquire("b", 30))
    await asyncio.sleep(0)
    small = asyncio.ensure_future(shares.acquire("c", 1))
    await asyncio.sleep(0)
    assert not large.done() and not small.done()  # or small ones would keep the large one waiting for ever
    shares.release("a", 5)
    await asyncio.wait_for(large, 1)
    shares.release("b", 30)
    await asyncio.wait_for(small, 1)
    assert shares.used == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 12), st.booleans()), max_size=40))
@settings(max_examples=60, deadline=None)
def test_everybody_is_served_and_nothing_is_lost(wants: list[tuple[str, int, bool]]) -> None:
    async def run() -> None:
        shares = Shares(10, 7, "x")

        async def hold(owner: str, amount: int, leaves: bool) -> None:
            try:
                async with shares.place(owner, amount, 0.001 if leaves else None):
                    assert shares.used <= max(10, amount)
                    await asyncio.sleep(0)
            except OverloadError:
                assert leaves

        await asyncio.wait_for(asyncio.gather(*(hold(*want) for want in wants)), 20)
        assert shares.used == 0

    asyncio.run(run())


def test_a_budget_is_shared_too() -> None:
    budget = Budget(10, 7, "bytes are held")
    budget.take("a", 7)
    with pytest.raises(OverloadError):
        budget.take("a", 1)
    budget.take("b", 3)
    with pytest.raises(OverloadError):
        budget.take("c", 1)
    budget.give_back("a", 7)
    budget.take("c", 7)
    assert budget.used == 10
