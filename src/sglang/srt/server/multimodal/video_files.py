"""Video files (MP4, QuickTime, Matroska, WebM, AVI) to frames, through PyAV where it is installed. Used in a child process.

Such files are untrusted: the container is identified by its first bytes and no other is tried, files that it refers to are not opened,
and frames, pixels and time are limited whatever its header says. Two frames a second are taken, fewer of a long video.
"""

from __future__ import annotations

import importlib
import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.errors import RequestError
from sglang.srt.server.multimodal.clip import Frame
from sglang.srt.server.multimodal.headers import Shape, check_size

FRAMES_PER_SECOND = 2.0
"""at which models take videos to be sampled"""
MAX_DECODED = 40_000
"""frames that are decoded to find those that are taken: 20 minutes at 30 a second"""
MISSING_SHARE = 0.1
"""of the frames that the header promises may be missing at the end"""


class VideoFile:
    """One opened video, used in a `with` statement. Its methods raise RequestError."""

    def __init__(self, data: bytes, container: str, label: str, max_pixels: int, max_frames: int, seconds: float) -> None:
        self._label, self._max_pixels, self._max_frames = label, max_pixels, max_frames
        self._deadline = time.monotonic() + seconds
        try:
            self._av = importlib.import_module("av")
        except ImportError as error:
            raise RequestError(
                f"{label} is a video file, and this server has no video decoder (its operator can install the extra [video]); send "
                "an animated GIF, WebP or PNG"
            ) from error
        settings = {"protocol_whitelist": "none"} | ({"enable_drefs": "0"} if container == "mov" else {})
        with self._sentence():
            self._opened = self._av.open(io.BytesIO(data), format=container, options=settings)
            if not self._opened.streams.video:
                raise RequestError(f"{label} has no video stream in it")
            self._stream: Any = self._opened.streams.video[0]
        if self._stream.codec_context is None:
            raise RequestError(f"{label} is in a coding that cannot be decoded")
        self._stream.codec_context.thread_count = 1  # several files may be decoded at once, each in a process
        self._interval = 1 / FRAMES_PER_SECOND
        self._duration = max(float(self._opened.duration or 0) / 1e6, 0.0)  # only a promise
        if self._duration:
            self._interval = max(self._interval, self._duration / max_frames)

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def expected(self) -> Shape:
        """The shape that the header promises for the frames that are taken."""
        width, height = int(self._stream.width), int(self._stream.height)
        check_size(Shape(width, height), self._max_pixels, self._label)
        count = math.ceil(self._duration / self._interval)
        if self._stream.frames:
            count = min(count, int(self._stream.frames))
        return Shape(width, height, max(1, min(count, self._max_frames)))

    def frames(self) -> Iterator[tuple[float, Frame]]:
        """The sampled frames in order, as RGB, with the seconds from the beginning."""
        with self._sentence():
            yield from self._taken()

    def _taken(self) -> Iterator[tuple[float, Frame]]:
        taken = decoded = 0
        due = 0.0
        for frame in self._opened.decode(self._stream):
            decoded += 1
            self._check_effort(decoded)
            check_size(Shape(frame.width, frame.height), self._max_pixels, self._label)
            seconds = self._time(frame, decoded - 1)
            if seconds + 1e-3 < due:
                continue
            due += self._interval
            if taken == self._max_frames:
                break  # longer than promised
            taken += 1
            yield seconds, frame.to_ndarray(format="rgb24")
        if not taken:
            raise RequestError(f"{self._label} has no frames")
        if decoded < (1 - MISSING_SHARE) * self._stream.frames and taken < self._max_frames:
            raise RequestError(f"{self._label} is cut off: it has {decoded} of {self._stream.frames} frames")

    def _time(self, frame: Any, index: int) -> float:
        """Seconds from the beginning."""
        if frame.time is not None:
            start = self._stream.start_time
            return float(frame.time - (start * self._stream.time_base if start is not None else 0))
        return index / float(self._stream.average_rate or 30)

    def _check_effort(self, decoded: int) -> None:
        if decoded > MAX_DECODED or time.monotonic() > self._deadline:
            raise RequestError(f"{self._label} takes too long to decode: send a shorter or smaller one")

    @contextmanager
    def _sentence(self) -> Iterator[None]:
        """Turns what FFmpeg raises into a RequestError."""
        try:
            yield
        except (self._av.FFmpegError, IndexError, ValueError, TypeError, OverflowError) as error:
            raise RequestError(f"{self._label} is damaged or not a video that can be decoded") from error
