"""Decodes files in child processes: a codec that crashes, hangs or fills its memory costs one request.

    Medium --Order--> a child (decode_work.py) --bands of RGB--> frames, views of one buffer

At most PLACES files, and WORK_PIXELS pixels of them, are decoded and preprocessed at a time, all requests together; one client
has a part of that. So the memory that images take is known: 3 bytes a pixel here, and in the children what decode_work.py says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import numpy as np

from sglang.srt.config import MediaOptions
from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.process.isolation import Isolated, IsolationError, Job, Limits
from sglang.srt.server.limits.shares import Shares
from sglang.srt.server.multimodal import decode_work
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.media import Medium

ENTRY = "sglang.srt.server.multimodal.decode_work:prepare"
PLACES = 4
WORK_PIXELS = 64 << 20
WAITING = 3.0
"""a child may wait for the processor: it has so many times the seconds that it may compute"""
NICENESS = 10
"""images are not to slow down running requests"""

logger = logging.getLogger(__name__)


class Decoder:
    """Owner of the child processes. `close` ends them."""

    def __init__(self, options: MediaOptions, with_videos: bool) -> None:
        self._options = options
        pixels = options.max_pixels
        limits = Limits(
            memory=decode_work.MEMORY + decode_work.BYTES_OF_A_PIXEL * pixels,
            cpu_seconds=options.decode_timeout,
            seconds=WAITING * options.decode_timeout,
            niceness=NICENESS,
            reply=3 * max(options.max_media_pixels, pixels) + (1 << 20),
        )
        self._isolated = Isolated(ENTRY, b"video" if with_videos else b"", limits, num_spare=2)
        self._threads = ThreadPoolExecutor(PLACES, thread_name_prefix="media-decode")
        share = WORK_PIXELS * (PLACES - 1) // PLACES
        self._places = Shares(WORK_PIXELS, share, "images and videos are being decoded")

    def start(self) -> None:
        """Gets a child ready; does not wait for it."""
        try:
            self._isolated.start()
        except IsolationError as error:
            raise OverloadError(f"no process can be started that decodes images: {error}") from error

    def close(self) -> None:
        self._isolated.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def place(self, pixels: int, client: str) -> AsyncIterator[None]:
        """Room to decode and preprocess so many pixels."""
        async with self._places.place(client, max(pixels, WORK_PIXELS // PLACES)):
            yield

    async def measure(self, medium: Medium) -> Shape:
        """The shape that a video file promises. Raises RequestError."""
        found = await self._run(medium, self._options.max_media_pixels, bytearray())
        return found.shape

    async def decode(self, medium: Medium, shape: Shape, pixels: int) -> Clip:
        """The frames, of about that shape, which may have so many pixels together. Raises RequestError. Cancelled, it kills the
        child."""
        parts = bytearray()
        memory = decode_work.memory_for(shape.width * shape.height, medium.container is not None)
        found = await self._run(medium, pixels, parts, memory=memory)
        size = found.frames * found.height * found.width * 3
        if size != len(parts) or not size:
            raise RequestError(f"{medium.fetched.label} cannot be decoded: the decoder contradicts itself")
        if found.warning:
            logger.warning("%s %s", medium.fetched.label, found.warning)
        frames = np.frombuffer(parts, np.uint8).reshape(found.frames, found.height, found.width, 3)
        return Clip(list(frames), found.times)

    async def _run(self, medium: Medium, pixels: int, parts: bytearray, memory: int = 0) -> decode_work.Decoded:
        order = decode_work.Order(
            label=medium.fetched.label,
            is_video=medium.kind == "video",
            pixels=pixels,
            max_pixels=self._options.max_pixels,
            max_frames=self._options.max_frames,
            seconds=WAITING * self._options.decode_timeout,
            container=medium.container,
            measure=not memory,
            memory=memory,
        )
        try:
            job = self._isolated.submit()
            reply = await self._result(job, decode_work.pack(order), medium.fetched.data, parts)
            found = msgspec.msgpack.decode(reply, type=decode_work.Decoded)
        except (IsolationError, msgspec.DecodeError) as error:
            if str(error).startswith("failed"):
                raise OverloadError(f"images and videos cannot be decoded now: decoding {error}") from error
            raise RequestError(f"{medium.fetched.label} cannot be decoded: decoding it {error}") from error
        if found.error:
            raise RequestError(found.error)
        return found

    async def _result(self, job: Job, head: bytes, data: bytes | bytearray, parts: bytearray) -> bytes:
        work = partial(job.result, head, data, parts=parts)
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await future
        except asyncio.CancelledError:
            job.cancel()
            raise
