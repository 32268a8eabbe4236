"""Bytes to pictures: RGB, 8 bits, upright, within limits.

Image files come from strangers, and decoders are easily made to work for minutes or to fill memory: the format is one of a
short list, the size is read from the header and checked before a pixel is decoded, and whatever the decoder raises becomes
one sentence. A still picture is one frame; several frames are a video and must be sent as such.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sglang.srt.config import MediaOptions
from sglang.srt.errors import RequestError
from sglang.srt.server.multimodal.sources import Fetched
from sglang.srt.server.multimodal.video_files import container_of, decode_video_file

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_ASPECT = 200
"""longest side over shortest"""
PNG_START = b"\x89PNG\r\n\x1a\n"

_DECODER_ERRORS = (
    OSError,  # truncated, unidentified
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
)

# Sizes are checked here, against our own limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@contextmanager
def _sentence(label: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a RequestError that names the source."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise RequestError(f"{label} has far too many pixels") from error
    except UnidentifiedImageError as error:
        raise RequestError(f"{label} is not an image in a known format ({', '.join(FORMATS)})") from error
    except _DECODER_ERRORS as error:
        raise RequestError(f"{label} is damaged or cut off and cannot be decoded") from error


def decode_image(source: Fetched, options: MediaOptions) -> Image.Image:
    """The picture as RGB, upright. Raises RequestError. Transparent pixels show white; 16-bit samples keep their upper half."""
    with _sentence(source.label if not _is_text(source) else f"{source.label} ({source.content_type})"):
        image = Image.open(io.BytesIO(source.data), formats=FORMATS)
        check_size(image.size, options.max_pixels, source.label)
        if getattr(image, "is_animated", False):
            frames = getattr(image, "n_frames", 2)
            raise RequestError(f"{source.label} is animated ({frames} frames); send one frame, or send it as a video")
        image.load()
        return to_rgb(image, source.label)


def _is_text(source: Fetched) -> bool:
    return source.content_type is not None and not source.content_type.startswith(
        ("image/", "video/", "application/octet-stream")
    )


def check_size(size: tuple[int, int], max_pixels: int, label: str) -> None:
    """Raises RequestError for a picture that is empty, too large or too thin."""
    width, height = size
    if width < 1 or height < 1:
        raise RequestError(f"{label} has no pixels")
    if width * height > max_pixels:
        raise RequestError(f"{label} has {width} x {height} pixels; at most {max_pixels} are allowed")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RequestError(f"{label} is {width} x {height}: the longer side may be at most {MAX_ASPECT} times the shorter")


def to_rgb(image: Image.Image, label: str) -> Image.Image:
    """8-bit RGB of a picture in any mode, turned as its EXIF orientation says."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise RequestError(f"{label} has floating-point samples, which have no agreed brightness")
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey samples of 16 bits (modes I and I;16*), rounded to 8."""
    samples = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip((samples + 128) // 257, 0, 255).astype(np.uint8))


# --- videos -----------------------------------------------------------------------------------------------------------------


def decode_video(source: Fetched, options: MediaOptions) -> list[Image.Image]:
    """Frames, in order, as RGB of one size. Understands animated GIF, WebP, PNG and TIFF, PNG frames one after another, and,
    where the package `av` is installed, video files. Raises RequestError."""
    data = source.data
    if data.startswith(PNG_START) and (parts := split_pngs(data)) and len(parts) > 1:
        frames = [
            decode_image(Fetched(part, f"a frame of {source.label}"), options)
            for part in _limited(parts, options, source.label)
        ]
    elif (container := container_of(data)) is not None:
        frames = decode_video_file(source, container, options)
    else:
        with _sentence(source.label):
            frames = _frames_of_image(Image.open(io.BytesIO(data), formats=FORMATS), options, source.label)
    if len({frame.size for frame in frames}) != 1:
        raise RequestError(f"the frames of {source.label} differ in size")
    return frames


def _limited(frames: list[Any], options: MediaOptions, label: str) -> list[Any]:
    if len(frames) > options.max_frames:
        raise RequestError(f"{label} has {len(frames)} frames; at most {options.max_frames} are allowed")
    return frames


def _frames_of_image(image: Image.Image, options: MediaOptions, label: str) -> list[Image.Image]:
    check_size(image.size, options.max_pixels, label)
    count = int(getattr(image, "n_frames", 1))
    _limited([None] * count, options, label)
    if count * image.width * image.height > options.max_video_pixels:
        raise RequestError(
            f"{label} has {count} frames of {image.width} x {image.height}; {options.max_video_pixels} pixels are allowed"
        )
    frames = []
    for index in range(count):
        image.seek(index)
        frames.append(to_rgb(image.copy(), label))
    return frames


def split_pngs(data: bytes) -> list[bytes]:
    """PNG files that stand one after another in `data` (how the language's `video()` packs frames). Raises RequestError."""
    parts, start = [], 0
    while start < len(data):
        if not data.startswith(PNG_START, start):
            raise RequestError("a frame of the video is not a PNG image")
        at = start + 8
        while True:
            if at + 12 > len(data):
                raise RequestError("a frame of the video is cut off")
            length, name = struct.unpack_from(">I4s", data, at)
            at += 12 + length
            if name == b"IEND":
                break
        parts.append(data[start:at])
        start = at
    return parts
