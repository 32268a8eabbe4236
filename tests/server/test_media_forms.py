"""Files in practice: of cameras, scanners and phones, truncated ones, and images in memory."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from sglang.srt.config import MediaOptions
from sglang.srt.errors import RequestError
from sglang.srt.server.limits.shares import Budget
from sglang.srt.server.multimodal.decode_work import Order, decode_bands
from sglang.srt.server.multimodal.fetched import Allowance
from sglang.srt.server.multimodal.headers import Shape, measure_image
from sglang.srt.server.multimodal.inputs import parse_media, parse_part
from sglang.srt.server.multimodal.sources import Sources
from tests.server.media_tools import decode, frames_of, yield_all

SIZES = [(640, 427), (401, 603), (97, 31)]


def photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth like a photograph, with some noise, and nowhere grey."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 100, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(
        np.clip(np.asarray(coarse).astype(int) + rng.integers(0, 12, (size[1], size[0], 3)), 0, 110).astype(np.uint8)
    )


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def alike(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and float(np.abs(np.asarray(a).astype(int) - np.asarray(b.convert("RGB")).astype(int)).mean()) < 6


@pytest.mark.parametrize("form", ["MPO", "TIFF"])
@pytest.mark.parametrize("size", SIZES)
def test_the_first_of_several_pictures(form: str, size: tuple[int, int]) -> None:
    """Others may be smaller or larger, and do not count."""
    others = [photo((1200, 900), 1), photo((16, 16), 2)]
    data = encode(photo(size), form, save_all=True, append_images=others)
    assert alike(decode(data, max_pixels=size[0] * size[1]), photo(size))


def test_a_second_picture_that_is_cut_off() -> None:
    data = encode(photo((300, 200)), "MPO", save_all=True, append_images=[photo((800, 600), 1)])
    assert alike(decode(data[: len(data) // 2]), photo((300, 200)))


def test_a_turned_photograph_with_a_second_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo((300, 200)), "MPO", save_all=True, append_images=[photo((80, 60), 1)], exif=exif)
    assert alike(decode(data), photo((300, 200)).transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}, {"quality": 100}, {"orientation": True}])
def test_avif(size: tuple[int, int], options: dict[str, Any]) -> None:
    image = photo(size)
    if options.pop("orientation", False):
        exif = Image.Exif()
        exif[0x0112] = 8
        options["exif"] = exif
        image = image.transpose(Image.Transpose.ROTATE_90)
    data = encode(photo(size), "AVIF", speed=10, **options)
    assert measure_image(data, "it", 5) == Shape(*size)
    assert alike(decode(data), image)


def test_avif_that_is_transparent_moves_or_is_damaged() -> None:
    clear = photo((64, 48)).convert("RGBA")
    clear.putalpha(0)
    assert decode(encode(clear, "AVIF")).getpixel((5, 5)) == (255, 255, 255)
    moving = encode(
        photo((64, 48)), "AVIF", save_all=True, append_images=[photo((64, 48), 1), photo((64, 48), 2)], duration=250
    )
    assert measure_image(moving, "it", 5) == Shape(64, 48, 3)
    assert len(frames_of(moving)) == 3
    with pytest.raises(RequestError, match="animated"):
        decode(moving)
    data, rng = encode(photo((64, 48)), "AVIF"), np.random.default_rng(0)
    for length in rng.integers(12, len(data) - 8, 20):
        with pytest.raises(RequestError):
            decode(data[:length])
    for _ in range(60):
        broken = bytearray(data)
        broken[int(rng.integers(12, len(data)))] = int(rng.integers(0, 256))
        try:
            decode(bytes(broken), max_pixels=1 << 20)
        except RequestError:
            continue


# --- cut off ----------------------------------------------------------------------------------------------------------------


def cut(data: bytes) -> tuple[Image.Image, str]:
    """What is made of it, and what is said."""
    shape = measure_image(data, "it", 1)
    assert shape is not None
    order = Order("it", False, shape.pixels, shape.pixels, 1, 1.0)
    parts = bytearray()
    made = yield_all(decode_bands(order, data), parts)
    return Image.frombytes("RGB", (made.width, made.height), bytes(parts)), made.warning


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_rows": 2}])
def test_a_jpeg_that_lacks_its_last_bytes(mode: str, options: dict[str, Any]) -> None:
    """Rows are right as far as there are any, and grey from there on."""
    image = photo((400, 301)).convert(mode)
    data = encode(image, "JPEG", quality=92, **options)
    whole = np.asarray(decode(data)).astype(int)
    for share in (0.9, 0.8, 0.62):
        found, warning = cut(data[: int(share * len(data))])
        rows = np.asarray(found).astype(int)
        first = int(warning.split("the last ")[1].split(" of")[0])
        assert "rows are grey" in warning and 0 < first < 301 * (1 - share) + 20
        assert np.abs(rows[: 301 - first - 18] - whole[: 301 - first - 18]).max() <= 2
        assert len(np.unique(rows[301 - first + 1 :])) == 1
    for share in (0.4, 0.2):
        with pytest.raises(RequestError, match="of its 301 rows are there"):
            cut(data[: int(share * len(data))])


def test_a_jpeg_that_lacks_nothing_but_its_end() -> None:
    data = encode(photo((400, 301)), "JPEG")
    for count in (1, 2):
        found, warning = cut(data[:-count])
        assert warning == "lacks its last bytes" and np.array_equal(np.asarray(found), np.asarray(decode(data)))


def test_a_progressive_jpeg_that_is_cut_anywhere() -> None:
    """Also in the middle of a table between two scans: what was there before is shown."""
    data = encode(photo((200, 120)), "JPEG", quality=90, progressive=True)
    whole = decode(data)
    sharp = 0
    for length in range(len(data) // 2, len(data), 17):
        found, warning = cut(data[:length])
        assert warning and alike(found, whole)
        sharp += np.array_equal(np.asarray(found), np.asarray(whole))
    assert sharp < 20
    for length in range(2, 200, 3):
        with pytest.raises(RequestError):
            cut(data[:length])


def test_other_formats_that_are_cut_off_are_refused() -> None:
    for form in ("PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        data = encode(photo((64, 64)), form)
        with pytest.raises(RequestError):
            decode(data[: -len(data) // 10])


# --- names ------------------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_data_uris() -> None:
    data = encode(photo((20, 10)), "PNG")
    text = base64.b64encode(data).decode()
    sources = Sources(MediaOptions())
    allowance = Allowance(1 << 20, Budget(1 << 22, 1 << 22, "bytes"), "")
    heads = [
        "data:image;base64",
        "data:IMAGE;base64",
        "data:;base64",
        "data:image/png;base64",
        "data:image/png;name=a.png;base64",
    ]
    for head in heads:
        assert (await sources.load(f"{head},{text}", "image", allowance)).data == data
    for head in ("data:video;base64", "data:imageless;base64", "data:text;base64"):
        with pytest.raises(RequestError, match="is no image"):
            await sources.load(f"{head},{text}", "image", allowance)
    sources.close()


def test_how_closely_to_look() -> None:
    def part(beside: dict[str, Any], **fields: Any) -> Any:
        return parse_part({"type": "image_url", "image_url": {"url": "x", **fields}, **beside}, "it")

    assert part({}, detail="original").detail == "original"
    for found in (
        part({}, min_pixels=5, max_pixels=9),
        part({"min_pixels": 5, "max_pixels": 9}),
        part({"min_pixels": 5}, max_pixels=9),
    ):
        assert (found.pixels.least, found.pixels.most) == (5, 9)
    for beside, fields in (({}, {"max_pixels": 0}), ({"max_pixels": "9"}, {}), ({}, {"min_pixels": 9, "max_pixels": 5})):
        with pytest.raises(RequestError, match="pixels"):
            part(beside, **fields)
    (inputs,) = parse_media({"image_data": ["a", "b"], "mm_processor_kwargs": {"max_pixels": 9}}, 1, False) or [[]]
    assert [item.pixels.most for item in inputs] == [9, 9]
    for wrong, words in (
        ({"fps": 2}, "'fps' is not supported"),
        ([], "must be an object"),
        ({"max_pixels": -1}, "number of pixels"),
    ):
        with pytest.raises(RequestError, match=words):
            parse_media({"image_data": "a", "mm_processor_kwargs": wrong}, 1, False)


# --- images that programs hold -------------------------------------------------------------------------------------------------


def shown(image: Any) -> Any:
    """What the server makes of a PIL image given to the Engine."""
    ((item,),) = parse_media({"image_data": image}, 1, False) or [[None]]  # type: ignore[list-item]
    return np.asarray(decode(item.source))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_images_of_16_bits_keep_their_brightness(mode: str) -> None:
    samples = np.array([[0, 2570, 51400, 65535]] * 3, dtype=np.int32)
    image = Image.fromarray(samples)
    if mode != "I":
        image = Image.frombytes(mode, (4, 3), samples.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    assert [tuple(value) for value in shown(image)[0]] == [(v, v, v) for v in (0, 10, 200, 255)]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_images_of_other_modes_look_as_they_do(mode: str) -> None:
    image = photo((40, 30)).convert(mode)
    assert np.array_equal(shown(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "La", "RGBa"])
def test_transparent_images_show_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    kept = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(mode, mode)
    image = image.convert(kept)
    image = image.convert(mode) if mode != "PA" else image.convert("RGB").convert("P").convert("PA")
    if mode == "PA":
        image.putalpha(0)
    assert (shown(image) == 255).all()


def test_images_without_an_agreed_brightness_are_refused() -> None:
    with pytest.raises(RequestError, match="floating-point"):
        parse_media({"image_data": Image.new("F", (4, 4))}, 1, False)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_opened_photograph_is_turned_like_its_file(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(io.BytesIO(encode(photo((40, 30)), "JPEG", exif=exif)))
    assert np.array_equal(shown(image), np.asarray(ImageOps.exif_transpose(image)))
