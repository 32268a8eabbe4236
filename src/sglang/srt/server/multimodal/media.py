"""The kind and cost of a request's file, from its first bytes and its header, before anything is decoded.

A still image is one frame; several frames are a video and must be sent as such. If a camera appended further images, or a TIFF file has
pages, the first is used. Limits of one file are checked here, limits of a request in intake.py; the decoder (decode_work.py) enforces
both.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.config import MediaOptions
from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.fetched import Fetched
from sglang.srt.server.multimodal.headers import Data, Shape, check_size, has_pages, measure_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


@dataclass(frozen=True)
class Medium:
    """A file that may be decoded. `container`: FFmpeg's name of it where it is a video file, whose shape only FFmpeg can tell."""

    fetched: Fetched
    kind: MediaKind
    shape: Shape | None
    container: str | None = None


def inspect(fetched: Fetched, kind: MediaKind, options: MediaOptions) -> Medium:
    """Raises RequestError for what is neither an image nor a video, or too much of one."""
    is_first_page = kind == "image" and has_pages(fetched.data)
    shape = measure_image(fetched.data, fetched.label, 0 if is_first_page else options.max_frames)
    if shape is None:
        container = container_of(fetched.data) if kind == "video" else None
        if container is None:
            raise RequestError(f"{_described(fetched)} is not an image in a known format ({', '.join(FORMATS)})")
        return Medium(fetched, kind, None, container)
    check_size(shape, options.max_pixels, fetched.label)
    if kind == "image" and shape.frames > 1:
        raise RequestError(
            f"{fetched.label} is animated ({shape.frames} frames); send one frame, or send it as a video", "image_data"
        )
    if shape.frames > options.max_frames:
        raise RequestError(f"{fetched.label} has too many frames; at most {options.max_frames} are allowed")
    return Medium(fetched, kind, shape if kind == "video" else Shape(shape.width, shape.height))


def container_of(data: Data) -> str | None:
    """FFmpeg's name of a video file's container, by its first bytes; None: it is none of those that are read."""
    if bytes(data[4:8]) in (b"ftyp", b"moov", b"mdat", b"wide") and len(data) > 12:
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    return None


def _described(fetched: Fetched) -> str:
    told = fetched.content_type
    if told is None or told.startswith(("image/", "video/", "application/octet-stream")):
        return fetched.label
    return f"{fetched.label} ({told[:80]})"
