"""From what a request names to what the model reads: fetch, decode, preprocess, expand.

    "http://...", "data:...", bytes --Sources--> bytes --media--> frames --processor--> Picture --spans--> ids and MediaItems

Fetching is asynchronous; decoding and preprocessing run on a few side threads, so neither the event loop nor the scheduler
waits. What was preprocessed is remembered by the digest of its bytes, up to PICTURE_BYTES.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sglang.srt.config import MediaOptions
from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaItem
from sglang.srt.server.multimodal.inputs import MediaInput
from sglang.srt.server.multimodal.media import decode_image, decode_video
from sglang.srt.server.multimodal.processors.base import ModelFolder, Processor
from sglang.srt.server.multimodal.processors.registry import create_processor
from sglang.srt.server.multimodal.sources import Fetched, Sources
from sglang.srt.server.multimodal.spans import Picture, expand
from sglang.srt.server.tokenization.tokenizer import Tokenizer

PICTURE_BYTES = 128 << 20
NICENESS = 10
MAX_AT_ONCE = 8
"""files that are in memory at once, all requests together"""


@dataclass(frozen=True)
class MediaPrompt:
    """A prompt with its media: fields of a TokenizedReq."""

    ids: list[int]
    items: tuple[MediaItem, ...]
    rope_positions: bytes = b""
    rope_delta: int = 0


class TokenLines:
    """spans.LineEnds by a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def _is_line_end(self, token_id: int) -> bool:
        text = self._tokenizer.vocabulary.text_bytes([token_id], skip_special=False)
        return bool(text) and not text.strip(b"\n")

    def _encode(self, count: int) -> list[int]:
        return self._tokenizer.encode("\n" * count, add_special_tokens=False)

    def lengthen(self, ids: list[int], count: int) -> None:
        while ids and self._is_line_end(ids[-1]):
            count += len(self._tokenizer.token_text(ids.pop()))
        ids += self._encode(count)

    def after(self, ids: list[int], following: Sequence[int], start: int, count: int) -> int:
        while start < len(following) and self._is_line_end(following[start]):
            count += len(self._tokenizer.token_text(following[start]))
            start += 1
        ids += self._encode(count)
        return start


def _step_back() -> None:
    """Lets the calling thread have what processor time the model's threads leave: pictures are not to slow down decoding. (On
    Linux niceness belongs to threads; elsewhere to whole processes, which is left alone.)"""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class MediaIntake:
    """One server's way in for media."""

    def __init__(self, processor: Processor, options: MediaOptions, tokenizer: Tokenizer) -> None:
        self._processor = processor
        self._lines = TokenLines(tokenizer)
        self._options = options
        self._sources = Sources(options)
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix="media", initializer=_step_back)
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()
        self._picture_bytes = 0

    @property
    def image_token(self) -> str:
        """What stands for an image in a prompt's text."""
        return self._processor.image_token

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._sources.close()

    def check(self, inputs: Sequence[MediaInput]) -> None:
        """Raises RequestError for what can be told without fetching anything."""
        if len(inputs) > self._options.max_items:
            raise RequestError(
                f"a request may have at most {self._options.max_items} images and videos, and this one has {len(inputs)}",
                "image_data",
            )
        for item in inputs:
            if item.kind not in self._processor.kinds:
                raise RequestError(f"this model does not see {item.kind}s", f"{item.kind}_data")

    async def take(self, ids: list[int], inputs: Sequence[MediaInput]) -> MediaPrompt:
        """The prompt with its pictures in it. Raises RequestError."""
        self.check(inputs)
        tasks = [asyncio.ensure_future(self._picture(item, len(inputs) == 1)) for item in inputs]
        try:
            pictures = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        expanded, spans = expand(ids, pictures, self._processor.placeholders, self._processor.image_token, self._lines)
        located = list(zip(pictures, spans, strict=True))
        items = tuple(
            MediaItem(p.kind, p.mm_hash, tuple(found), p.pixels.tobytes(), p.pixels.shape, p.grid, p.facts)
            for p, found in sorted(located, key=lambda pair: pair[1])
        )
        axes = self._processor.positions(len(expanded), located)
        if axes is None:
            return MediaPrompt(expanded, items)
        positions, delta = axes
        return MediaPrompt(expanded, items, positions.tobytes(), delta)

    async def _picture(self, item: MediaInput, alone: bool) -> Picture:
        async with self._room:
            return await self._fetch_and_process(item, alone)

    async def _fetch_and_process(self, item: MediaInput, alone: bool) -> Picture:
        fetched = await self._sources.load(item.source, item.kind)
        key = hashlib.blake2b(fetched.data, digest_size=16, person=f"{item.kind} {item.detail} {alone:d}".encode()).digest()
        known = self._pictures.get(key)
        if known is not None:
            self._pictures.move_to_end(key)
            return known
        picture = await asyncio.get_running_loop().run_in_executor(self._threads, self._process, fetched, item, alone)
        self._remember(key, picture)
        return picture

    def _process(self, fetched: Fetched, item: MediaInput, alone: bool) -> Picture:
        if item.kind == "video":
            frames = decode_video(fetched, self._options)
        else:
            frames = [decode_image(fetched, self._options)]
        return self._processor.process(item.kind, frames, item.detail, alone)

    def _remember(self, key: bytes, picture: Picture) -> None:
        if key in self._pictures:
            return
        self._pictures[key] = picture
        self._picture_bytes += picture.nbytes
        while self._picture_bytes > PICTURE_BYTES:
            _, old = self._pictures.popitem(last=False)
            self._picture_bytes -= old.nbytes


def create_intake(folder: Path, tokenizer: Tokenizer, options: MediaOptions) -> MediaIntake:
    """The way in for the model in `folder`. Raises ModelError if it has no usable image processor."""
    return MediaIntake(create_processor(ModelFolder(folder, tokenizer)), options, tokenizer)
