"""Video files (MP4, QuickTime, Matroska, WebM, AVI) to frames, through PyAV where it is installed.

Such files come from strangers: the container is told by its first bytes and nothing else is tried, nothing that it refers to is
opened, and frames, pixels and time are limited whatever its header promises. Two frames a second are taken, fewer of a long video.
"""

from __future__ import annotations

import importlib
import io
import time
from typing import Any

from PIL import Image

from sglang.srt.config import MediaOptions
from sglang.srt.errors import RequestError
from sglang.srt.server.multimodal.sources import Fetched

FRAMES_PER_SECOND = 2.0
"""at which models take videos to be sampled"""
MAX_DECODED = 40_000
"""frames that are decoded to find those that are taken: 20 minutes at 30 a second"""
MISSING_SHARE = 0.1
"""of the frames that the header promises may be missing at the end"""


def container_of(data: bytes) -> str | None:
    """FFmpeg's name of the container, by its first bytes; None: it is none of those that are read."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") and len(data) > 12:
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    return None


def decode_video_file(source: Fetched, container: str, options: MediaOptions) -> list[Image.Image]:
    """Frames in order, as RGB. Raises RequestError."""
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        raise RequestError(
            f"{source.label} is a video file, and this server has no video decoder (it comes with sglang-anywhere[video]); send "
            "an animated GIF, WebP or PNG"
        ) from error
    settings = {"protocol_whitelist": "none", "enable_drefs": "0"} if container == "mov" else {"protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(source.data), format=container, options=settings) as opened:
            if not opened.streams.video:
                raise RequestError(f"{source.label} has no moving pictures in it")
            return _Sampler(source.label, options, opened).frames()
    except (av.FFmpegError, IndexError, ValueError, MemoryError, OverflowError) as error:
        raise RequestError(f"{source.label} is damaged or not a video that can be decoded") from error


class _Sampler:
    """Goes through one opened video."""

    def __init__(self, label: str, options: MediaOptions, opened: Any) -> None:
        self._label, self._options, self._opened = label, options, opened
        self._stream = opened.streams.video[0]
        if self._stream.codec_context is None:
            raise RequestError(f"{label} is in a coding that cannot be decoded")
        self._stream.codec_context.thread_count = 1  # several files may be decoded at once, on threads of ours
        self._seconds = 1 / FRAMES_PER_SECOND
        if opened.duration:  # in microseconds, and only a promise
            self._seconds = max(self._seconds, opened.duration / 1e6 / options.max_frames)
        self._deadline = time.monotonic() + options.timeout

    def frames(self) -> list[Image.Image]:
        self._check_size(self._stream.width, self._stream.height)
        taken: list[Image.Image] = []
        decoded, due, pixels = 0, 0.0, 0
        for frame in self._opened.decode(self._stream):
            decoded += 1
            self._check_effort(decoded)
            self._check_size(frame.width, frame.height)
            if self._time(frame, decoded - 1) + 1e-3 < due:
                continue
            due += self._seconds
            pixels += frame.width * frame.height
            if len(taken) == self._options.max_frames:
                break  # longer than promised
            if pixels > self._options.max_video_pixels:
                raise RequestError(
                    f"{self._label} has {len(taken) + 1} or more frames of {frame.width} x {frame.height}; "
                    f"{self._options.max_video_pixels} pixels are allowed"
                )
            taken.append(frame.to_image().convert("RGB"))
        if not taken:
            raise RequestError(f"{self._label} has no frames")
        if decoded < (1 - MISSING_SHARE) * self._stream.frames and len(taken) < self._options.max_frames:
            raise RequestError(f"{self._label} is cut off: it has {decoded} of {self._stream.frames} frames")
        return taken

    def _time(self, frame: Any, index: int) -> float:
        """Seconds from the beginning."""
        if frame.time is not None:
            start = self._stream.start_time
            return float(frame.time - (start * self._stream.time_base if start is not None else 0))
        return index / float(self._stream.average_rate or 30)

    def _check_size(self, width: int, height: int) -> None:
        if width < 1 or height < 1 or width * height > self._options.max_pixels:
            raise RequestError(
                f"{self._label} has frames of {width} x {height}; at most {self._options.max_pixels} pixels are allowed"
            )

    def _check_effort(self, decoded: int) -> None:
        if decoded > MAX_DECODED or time.monotonic() > self._deadline:
            raise RequestError(f"{self._label} takes too long to decode: send a shorter or smaller one")
