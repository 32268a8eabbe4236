"""The media pipeline of one request: fetch, inspect, decode, preprocess, expand.

    "http://...", "data:...", bytes --Sources--> files --media--> shapes --Decoder--> frames --processor--> ProcessedMedia --spans--> ids
                                     limits of the whole request, and of its prompts' lengths  ^

All files of a request are fetched, and their cost is known from their headers, before the first is decoded. Fetching, short work on
bytes, decoding and preprocessing have separate limits, so that none waits for another: inline or cached data never wait for the network.
Preprocessed media are cached by the digest of their bytes, up to PROCESSED_BYTES. A request whose client disconnects is cancelled at any
stage.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from sglang.common.lru import LruCache
from sglang.srt.config import MediaOptions, ModelFiles
from sglang.srt.errors import ContextLengthError, RequestError
from sglang.srt.media_item import MediaItem, without_pixels
from sglang.srt.process.heap import release_freed_memory
from sglang.srt.server.http.request_scope import current_scope
from sglang.srt.server.limits.shares import Budget
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.decoding import Decoder
from sglang.srt.server.multimodal.fetched import Allowance
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import MediaInput, MediaTask, View
from sglang.srt.server.multimodal.media import Medium, inspect
from sglang.srt.server.multimodal.processors.base import Processor, open_folder
from sglang.srt.server.multimodal.processors.registry import create_processor
from sglang.srt.server.multimodal.sources import Sources
from sglang.srt.server.multimodal.spans import ProcessedMedia, expand, find_places
from sglang.srt.server.tokenization.template_forms import MediaToken
from sglang.srt.server.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

PROCESSED_BYTES = 128 << 20
HELD_REQUESTS, SHARE_REQUESTS = 4, 3
"""files of how many requests of the largest size are held at once, of all clients and of one"""
HELD_INPUTS, SHARE_INPUTS = 4096, 3072
MAX_PROMPTS = 16
"""prompts full of different images and videos that a batch may have"""
TIDY_PIXELS, TIDY_SECONDS = 16 << 20, 0.5
"""after so many pixels freed memory is given back, when so much time has passed"""
NICENESS = 10

T = TypeVar("T")


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
    """Lets the calling thread have what processor time the model's threads leave: images are not to slow down decoding. (On
    Linux niceness belongs to threads; elsewhere to whole processes, which is left alone.)"""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@dataclass(frozen=True)
class _Known:
    """An input whose cost is known and that is not decoded yet. `key` names its image; `num_tokens` is exact, but for video
    files at most what they will have."""

    item: MediaInput
    view: View
    medium: Medium
    shape: Shape
    key: bytes
    num_tokens: int


@dataclass(frozen=True)
class _Ready:
    """An image or video, and its pixels as they are sent: made once, however often it is shown."""

    image: ProcessedMedia
    pixels: bytes


class MediaIntake:
    """One server's way in for media."""

    def __init__(self, processor: Processor, options: MediaOptions, tokenizer: Tokenizer) -> None:
        self._processor = processor
        self._lines = TokenLines(tokenizer)
        names = {kind: tokenizer.token_text(token_id) for kind, token_id in processor.placeholders.items()}
        self.media_tokens: dict[str, MediaToken] = {
            kind: MediaToken(name, processor.image_token.replace(names["image"], name)) for kind, name in names.items()
        }
        """what stands for each kind of media in a prompt's text"""
        self._options = options
        self._sources = Sources(options)
        self._decoder = Decoder(options, with_videos="video" in processor.kinds)
        self._decoder.start()
        self._threads = ThreadPoolExecutor(options.num_side_threads, thread_name_prefix="media", initializer=_step_back)
        held, share = HELD_REQUESTS * options.max_bytes, SHARE_REQUESTS * options.max_bytes
        self._bytes = Budget(held, share, "bytes of images and videos are being worked on")
        self._inputs = Budget(HELD_INPUTS, SHARE_INPUTS, "images and videos are being worked on")
        self._untidy = 0
        self._tidying: asyncio.TimerHandle | None = None
        self._processed: LruCache[bytes, _Ready] = LruCache(PROCESSED_BYTES)

    @property
    def max_image_tokens(self) -> int:
        """The most tokens of an image without `detail`; 0: the publisher's size."""
        limit = self._options.max_image_tokens
        return self._processor.default_tokens if limit is None else limit

    @property
    def image_token(self) -> str:
        """The placeholder of an image in a prompt's text."""
        return self._processor.image_token

    async def close(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
        self._decoder.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._sources.close()

    async def take(self, tasks: Sequence[MediaTask], context_len: int) -> list[MediaPrompt]:
        """The prompts of one request with their images in them. Raises RequestError and OverloadError."""
        for task in tasks:
            self._check(task.inputs)
            self.check_places(task.ids, len(task.inputs))
        distinct = {_identity(item, task): (item, len(task.inputs) == 1) for task in tasks for item in task.inputs}
        _check_count(len(distinct), MAX_PROMPTS * self._options.max_items)
        client = current_scope().key
        allowance = Allowance(self._options.max_bytes, self._bytes, client)
        self._inputs.take(client, len(distinct))
        try:
            found = await _together([self._know(*use, allowance, client) for use in distinct.values()])
            known = dict(zip(distinct, found, strict=True))
            for task in tasks:
                _check_length(task, [known[_identity(item, task)].num_tokens for item in task.inputs], context_len)
            grants = self._grant(found)
            ready = await _together([self._ready(one, grant, client) for one, grant in zip(found, grants, strict=True)])
        finally:
            allowance.close()
            self._inputs.give_back(client, len(distinct))
        made = dict(zip(distinct, ready, strict=True))
        prompts = [self._prompt(task, [made[_identity(item, task)] for item in task.inputs]) for task in tasks]
        return _without_repeated_pixels(prompts)

    def check_places(self, ids: Sequence[int], count: int = 0) -> None:
        """Raises RequestError if a prompt's places for images and videos are not `count`."""
        if not self._processor.row_ids.isdisjoint(ids):
            raise RequestError(f"the prompt names an image's rows itself; write {self.image_token} in its place", "image_data")
        find_places(ids, count, self._processor.placeholders, self._processor.image_token)

    # --- what it costs ------------------------------------------------------------------------------------------------------

    def _check(self, inputs: Sequence[MediaInput]) -> None:
        """Raises RequestError for what can be told without fetching anything."""
        _check_count(len(inputs), self._options.max_items)
        for item in inputs:
            if item.kind not in self._processor.kinds:
                raise RequestError(f"this model does not support {item.kind}s", f"{item.kind}_data")

    def _view(self, item: MediaInput, alone: bool) -> View:
        """The operator's limit holds for all; the default, for those who do not say how closely to look."""
        limit = self._options.max_image_tokens
        if limit is None:
            says = item.detail == "original" or item.pixels.most
            limit = 0 if says else self._processor.default_tokens
        return View(item.detail, alone, item.pixels, limit)

    async def _know(self, item: MediaInput, alone: bool, allowance: Allowance, client: str) -> _Known:
        fetched = await self._sources.load(item.source, item.kind, allowance, client)
        medium = await self._sources.run_in_thread(inspect, fetched, item.kind, self._options)
        if medium.shape is not None:
            return await self._sources.run_in_thread(
                self._count, item, self._view(item, alone), medium, medium.shape, medium.shape
            )
        async with self._decoder.place(0, client):
            shape = await self._decoder.measure(medium)
        at_least = replace(shape, frames=max(shape.frames - 1, 1))  # a video's length is a promise
        return await self._sources.run_in_thread(self._count, item, self._view(item, alone), medium, shape, at_least)

    def _count(self, item: MediaInput, view: View, medium: Medium, shape: Shape, at_least: Shape) -> _Known:
        num_tokens = self._processor.num_tokens(item.kind, at_least, view)
        if item.kind == "image" and view.max_tokens:
            self._log_size(medium, shape, view)
        digest = hashlib.blake2b(f"{item.kind} {view}|".encode(), digest_size=16)
        digest.update(medium.fetched.data)
        return _Known(item, view, medium, shape, digest.digest(), num_tokens)

    def _log_size(self, medium: Medium, shape: Shape, view: View) -> None:
        """Says so where the budget makes an image smaller than its publisher would."""
        size = self._processor.seen_size(shape, view)
        if size != self._processor.seen_size(shape, replace(view, max_tokens=0)):
            logger.info(
                "%s, %d x %d, was resized to %d x %d: the budget is %d tokens an image (--max-image-tokens)",
                medium.fetched.label, shape.width, shape.height, *size, view.max_tokens,
            )  # fmt: skip

    def _grant(self, found: Sequence[_Known]) -> list[int]:
        """Pixels that each may have: those that its header promises; video files, whose promises are vague, also a part of what
        the request may have besides. Raises RequestError if they promise too many."""
        allowed, promised = self._options.max_media_pixels, sum(one.shape.pixels for one in found)
        if promised > allowed:
            raise RequestError(
                f"the images and videos of this request have {promised} pixels together; at most {allowed} are allowed "
                "(--max-media-pixels)",
                "image_data",
            )
        vague = sum(one.medium.container is not None for one in found)
        extra = (allowed - promised) // vague if vague else 0
        return [one.shape.pixels + (extra if one.medium.container is not None else 0) for one in found]

    # --- what it shows ------------------------------------------------------------------------------------------------------

    async def _ready(self, one: _Known, pixels: int, client: str) -> _Ready:
        if (seen := self._processed.get(one.key)) is not None:
            return seen
        async with self._decoder.place(one.shape.pixels, client):
            if (seen := self._processed.get(one.key)) is not None:  # equal ones came at the same time
                return seen
            clip = await self._decoder.decode(one.medium, one.shape, pixels)
            ready = await asyncio.get_running_loop().run_in_executor(self._threads, self._process, clip, one)
        self._processed.put(one.key, ready, ready.image.nbytes)
        self._tidy_later(one.shape.pixels)
        return ready

    def _process(self, clip: Clip, one: _Known) -> _Ready:
        image = self._processor.process(one.item.kind, clip, one.view)
        pixels = image.pixels.tobytes()
        view = np.frombuffer(pixels, image.pixels.dtype).reshape(image.pixels.shape)
        return _Ready(replace(image, pixels=view), pixels)

    async def flush(self) -> None:
        """Forgets all that was processed."""
        self._processed.clear()
        await self._sources.run_in_thread(release_freed_memory)

    def _tidy_later(self, pixels: int) -> None:
        """Large images leave holes in the heap."""
        self._untidy += pixels
        if self._untidy >= TIDY_PIXELS and self._tidying is None:
            self._tidying = asyncio.get_running_loop().call_later(TIDY_SECONDS, self._tidy)

    def _tidy(self) -> None:
        self._untidy, self._tidying = 0, None
        self._threads.submit(release_freed_memory)

    def _prompt(self, task: MediaTask, ready: Sequence[_Ready]) -> MediaPrompt:
        images = [one.image for one in ready]
        processor = self._processor
        expanded, spans = expand(task.ids, images, processor.placeholders, processor.image_token, self._lines)
        located = sorted(zip(ready, spans, strict=True), key=lambda pair: pair[1])
        items = tuple(
            MediaItem(p.kind, p.mm_hash, tuple(found), one.pixels, p.pixels.shape, p.grid, p.facts)
            for one, found in located
            for p in (one.image,)
        )
        axes = processor.positions(len(expanded), list(zip(images, spans, strict=True)))
        if axes is None:
            return MediaPrompt(expanded, items)
        positions, delta = axes
        return MediaPrompt(expanded, items, positions.tobytes(), delta)


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise RequestError(f"a request may have at most {most} images and videos, and this one has {count}", "image_data")


def _identity(item: MediaInput, task: MediaTask) -> tuple[object, ...]:
    """Equal for what one source is to several prompts of a request."""
    return id(item.source), item.kind, item.detail, item.pixels, len(task.inputs) == 1


async def _together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, or the first error. Whatever ends it, nothing of it runs on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _check_length(task: MediaTask, num_tokens: Sequence[int], context_len: int) -> None:
    """Raises RequestError if a prompt cannot fit whatever its images show. (An image may take two of the ids around its
    place.)"""
    length = len(task.ids) + sum(num_tokens) - 3 * len(num_tokens)
    if length >= context_len:
        media = f"send fewer or smaller images ({len(num_tokens)} images and videos; the largest has {max(num_tokens)} tokens)"
        raise ContextLengthError("image_data", length, context_len, is_least=True, way_out=media)


def _without_repeated_pixels(prompts: list[MediaPrompt]) -> list[MediaPrompt]:
    """Prompts that show the one image of the prompt before do not bring its pixels again."""
    kept = prompts[:1]
    for before, prompt in pairwise(prompts):
        one = len(before.items) == len(prompt.items) == 1 and before.items[0].mm_hash == prompt.items[0].mm_hash
        kept.append(replace(prompt, items=(without_pixels(prompt.items[0]),)) if one else prompt)
    return kept


def create_intake(files: ModelFiles, tokenizer: Tokenizer, options: MediaOptions) -> MediaIntake:
    """The way in for a model. Raises ModelError if it has no usable image processor."""
    return MediaIntake(create_processor(open_folder(files, tokenizer)), options, tokenizer)
