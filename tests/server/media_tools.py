"""Files of images and videos, measured as the server does and decoded as its child processes do, in this process."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from sglang.srt.config import MediaOptions
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal import decode_work
from sglang.srt.server.multimodal.fetched import Fetched
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.media import inspect


def decoded(fetched: Fetched, kind: MediaKind, pixels: int | None = None, **options: Any) -> tuple[Shape, bytes]:
    """The shape and the rows that a child sends. `pixels`: as in decode_work.Order."""
    limits = MediaOptions(**options)
    medium = inspect(fetched, kind, limits)
    order = decode_work.Order(
        label=fetched.label,
        is_video=kind == "video",
        pixels=pixels or (medium.shape.pixels if medium.shape else limits.max_media_pixels),
        max_pixels=limits.max_pixels,
        max_frames=limits.max_frames,
        seconds=limits.decode_timeout,
        container=medium.container,
    )
    parts = bytearray()
    shape = yield_all(decode_work.decode_bands(order, bytes(fetched.data)), parts).shape
    if medium.shape is not None:
        assert shape.frames == medium.shape.frames and shape.pixels <= medium.shape.pixels
    return shape, bytes(parts)


def yield_all(bands: decode_work.Bands, parts: bytearray) -> decode_work.Decoded:
    """What a generator of bands returns; its bands go to `parts`."""
    while True:
        try:
            parts += next(bands)
        except StopIteration as end:
            assert isinstance(end.value, decode_work.Decoded)
            return end.value


def frames_of(data: bytes, kind: MediaKind = "video", content_type: str | None = None, **options: Any) -> list[Image.Image]:
    """The frames of a file. Raises RequestError."""
    shape, rows = decoded(Fetched(data, f"the {kind}", content_type), kind, **options)
    size = 3 * shape.width * shape.height
    assert len(rows) == size * shape.frames
    return [Image.frombytes("RGB", (shape.width, shape.height), rows[i * size : (i + 1) * size]) for i in range(shape.frames)]


def decode(data: bytes, content_type: str | None = None, **options: Any) -> Image.Image:
    """A still picture. Raises RequestError."""
    return frames_of(data, "image", content_type, **options)[0]


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def memory_of(pid: int) -> int:
    """Bytes that a process and its descendants have, shared pages counted once (PSS)."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            match = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(match[1]) * 1024 if match else 0
    return total


class Peak:
    """`with Peak(pid) as peak: ...` then peak.bytes: how far the memory of a process tree rose."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def __enter__(self) -> Peak:
        self._before = memory_of(self._pid)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, memory_of(self._pid) - self._before)
