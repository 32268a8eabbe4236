"""Requests with pictures: what stands for a picture in the prefix tree, and whether its embedding is there when it is needed.

The tree compares ids, and all pictures of a model share one placeholder id. So each distinct picture (by its digest) has a range
of negative ids of its own, one for each of its rows, and those go into the tree instead:

    prompt        15  22  7  7  7  7  31         7: the placeholder
    in the tree   15  22 -9 -8 -7 -6  31         the range of this picture: equal pictures match to the last row, others never
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass

import msgspec
import numpy as np

from sglang.common.lru import LruCache
from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.forward_batch import MAX_TOGETHER, EmbedRows, Int32Array, ModelInfo, ModelWorker, SeenRows
from sglang.srt.media_item import EncodeJob, MediaItem
from sglang.srt.messages import TokenizedReq

MAX_RANGES = 1 << 16
"""pictures whose ranges are remembered; one that is forgotten gets a new range, and is computed again"""
NUM_IDS = 1 << 31
PIXEL_BYTES = 256 << 20
MAX_AHEAD = 16
"""requests whose embeddings are held before they run"""
ENCODE_SECONDS = 0.015
"""how long a step with running requests may work on embeddings, unless a single chunk takes longer"""
IDLE_ENCODE_SECONDS = 0.2


class PictureIds:
    """Owner of the ranges. `generation` counts how often all ids were used up: ids of different generations must not meet."""

    def __init__(self, num_ids: int = NUM_IDS, max_ranges: int = MAX_RANGES) -> None:
        self._num_ids = num_ids
        self._ranges: LruCache[bytes, tuple[int, int]] = LruCache(max_ranges)
        self._used = 0
        self.generation = 0

    def first_id(self, item: MediaItem) -> int:
        """The id of the item's first row; the others follow."""
        found = self._ranges.get(item.mm_hash)
        if found is not None and found[1] >= item.num_rows:
            return found[0]
        if self._used + item.num_rows > self._num_ids:
            self._ranges.clear()
            self._used = 0
            self.generation += 1
        self._used += item.num_rows
        first = -self._used
        self._ranges.put(item.mm_hash, (first, item.num_rows))
        return first

    def tree_ids(self, msg: TokenizedReq, prompt: Int32Array) -> Int32Array:
        """The prompt as the tree knows it."""
        ids: Int32Array = prompt.copy()
        for item in msg.media:
            at = self.first_id(item)
            for offset, length in item.spans:
                ids[offset : offset + length] = np.arange(at, at + length)
                at += length
        return ids

    def salt(self, salt: str | None) -> str | None:
        """The namespace of requests with pictures."""
        return salt if self.generation == 0 else f"{salt or ''}\x1f{self.generation}"


class RecentPixels:
    """Pixels of late, for requests that come without: samples of one prompt bring them once."""

    def __init__(self, max_bytes: int = PIXEL_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pixels: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0

    def filled(self, item: MediaItem) -> MediaItem:
        """The item with its pixels. Raises OverloadError if they are not at hand any more."""
        pixels = self._pixels.get(item.mm_hash)
        if item.pixels:
            if pixels is None:
                self._keep(item)
            return item
        if pixels is None:
            raise OverloadError("the pictures of this request are not at hand any more; send it again")
        return msgspec.structs.replace(item, pixels=pixels)

    def _keep(self, item: MediaItem) -> None:
        self._pixels[item.mm_hash] = item.pixels
        self._bytes += len(item.pixels)
        while self._bytes > self._max_bytes and len(self._pixels) > 1:
            _, old = self._pixels.popitem(last=False)
            self._bytes -= len(old)


def check_media(msg: TokenizedReq, num_axes: int, kinds: tuple[str, ...]) -> None:
    """Raises RequestError for media that do not lie in the prompt, or that the model does not see."""
    at = 0
    for item in msg.media:
        if item.kind not in kinds:
            raise RequestError(f"this model does not see {item.kind}s", "image_data")
        for offset, length in item.spans:
            if offset < at or length < 1 or offset + length > len(msg.input_ids):
                raise RequestError("the spans of the media do not lie in the prompt, one after another", "image_data")
            at = offset + length
    if msg.rope_positions and (num_axes != 3 or len(msg.rope_positions) != 12 * len(msg.input_ids)):
        raise RequestError("the positions do not fit the prompt and the model", "image_data")


@dataclass(eq=False)
class ReqMedia:
    """What one request needs of its media. `jobs` by digest: held from when it might be admitted until its prompt is computed."""

    items: tuple[MediaItem, ...]
    positions: Int32Array | None  # [3, prompt_len]
    delta: int
    jobs: dict[bytes, EncodeJob]
    two_way: bool = False
    """rows of a picture see all of it: a step must not end inside one"""
    shown: tuple[tuple[int, tuple[MediaItem, ...]], ...] = ()
    """for models that see by cross-attention: from which id on which pictures are seen, ascending"""
    is_done: bool = False
    """the prompt has been computed"""

    def last_end(self, start: int, end: int) -> int:
        """The last place up to `end` where a step that begins at `start` may end; `start` if there is none. Where pictures are
        seen by cross-attention, all rows of a step see the same ones."""
        end = min((begin for begin, _ in self.shown if begin > start), default=end) if self.shown else end
        for item in self.items if self.two_way else ():
            for offset, length in item.spans:
                if offset < end < offset + length:
                    return max(offset, start)
        return end

    def row_ends(self, start: int, end: int) -> Int32Array:
        """Where what each of ids [start, end) sees ends."""
        ends = np.arange(start + 1, end + 1, dtype=np.int32)
        for item in self.items:
            for offset, length in item.spans:
                ends[max(offset - start, 0) : max(offset + length - start, 0)] = offset + length
        return ends

    @property
    def is_waiting(self) -> bool:
        """Whether embeddings that were asked for are not there yet."""
        return not all(job.is_done for job in self.jobs.values())

    def needs(self, item: MediaItem, start: int) -> bool:
        """Whether computing ids from `start` on needs the item's embedding."""
        if not self.shown:
            offset, length = item.spans[-1]
            return offset + length > start
        ends = [*(begin for begin, _ in self.shown[1:]), None]
        return any((end is None or end > start) and item in items for end, (_, items) in zip(ends, self.shown, strict=True))

    def prompt_done(self) -> None:
        """The prompt is computed: embeddings are not needed any more, unless every row looks at them."""
        self.is_done = True
        if not self.shown:
            self.jobs.clear()

    def seen(self, start: int, end: int, first_row: int) -> list[SeenRows]:
        """Which of ids [start, end) see which pictures, `start` being row `first_row` of the step."""
        found: list[SeenRows] = []
        ends = [*(begin for begin, _ in self.shown[1:]), end]
        for (begin, items), until in zip(self.shown, ends, strict=False):
            low, high = max(start, begin), min(end, until)
            if low < high:
                embeddings = tuple(self.jobs[item.mm_hash].embedding for item in items)
                found.append(SeenRows(first_row + low - start, high - low, embeddings))
        return found

    def rows(self, start: int, end: int, first_row: int) -> list[EmbedRows]:
        """The parts of ids [start, end) that are not text, `start` being row `first_row` of the step."""
        found: list[EmbedRows] = []
        for item in self.items:
            done = 0
            for offset, length in item.spans:
                low, high = max(start, offset), min(end, offset + length)
                if low < high:
                    embedding = self.jobs[item.mm_hash].embedding
                    found.append(EmbedRows(first_row + low - start, high - low, embedding, done + low - offset))
                done += length
        return found

    def positions_of(self, start: int, end: int) -> Int32Array:
        """On three axes, of ids [start, end) of prompt and output."""
        places = np.arange(start, end, dtype=np.int32)
        if self.positions is None:
            return np.broadcast_to(places, (3, end - start))
        known = self.positions.shape[1]
        after = places[max(known - start, 0) :] + np.int32(self.delta)
        return np.concatenate([self.positions[:, start : min(end, known)], np.broadcast_to(after, (3, len(after)))], axis=1)


def req_media(msg: TokenizedReq, info: ModelInfo) -> ReqMedia | None:
    if not msg.media and not msg.rope_positions:
        return None
    positions = np.frombuffer(msg.rope_positions, np.int32).reshape(3, -1) if msg.rope_positions else None
    return ReqMedia(msg.media, positions, msg.rope_delta, {}, info.two_way, _shown(msg.media) if info.crossed else ())


def _shown(items: tuple[MediaItem, ...]) -> tuple[tuple[int, tuple[MediaItem, ...]], ...]:
    """A picture is seen from its own id on, until the next one; pictures side by side are seen together."""
    found: list[tuple[int, tuple[MediaItem, ...]]] = []
    for item in items:
        at = item.spans[0][0]
        before = found[-1][1] if found and found[-1][0] == at - 1 else ()
        found.append((at, (*before, item)))
    return tuple(found)


class MediaGate:
    """Sees to it that embeddings are there before the rows that need them."""

    def __init__(self, worker: ModelWorker, chunk_tokens: int) -> None:
        self._worker = worker
        self._chunk_tokens = chunk_tokens
        self._ahead: weakref.WeakSet[ReqMedia] = weakref.WeakSet()
        self._making: weakref.WeakSet[EncodeJob] = weakref.WeakSet()
        self.num_encoded = 0

    def check(self, media: ReqMedia) -> None:
        """Raises RequestError for items that the model cannot take."""
        for item in media.items:
            self._worker.check_item(item)
            if any(len(items) > MAX_TOGETHER for _, items in media.shown):
                raise RequestError(
                    f"this model sees at most {MAX_TOGETHER} pictures side by side: put words between them", "image_data"
                )
            longest = max(length for _, length in item.spans)
            if media.two_way and longest > self._chunk_tokens:
                raise RequestError(
                    f"a picture takes {longest} tokens, which this model must compute in one step of at most "
                    f"{self._chunk_tokens}: start the server with a larger --chunked-prefill-size",
                    "image_data",
                )

    def is_ready(self, media: ReqMedia, start: int) -> bool:
        """Whether every embedding for ids from `start` on is there. Those that are not are put in line, unless embeddings wait
        for enough other requests already."""
        if not media.jobs and sum(bool(other.jobs) and not other.is_done for other in self._ahead) >= MAX_AHEAD:
            return False
        self._ahead.add(media)
        ready = True
        for item in media.items:
            if not media.needs(item, start):
                continue
            job = media.jobs.get(item.mm_hash)
            if job is None:
                job = media.jobs[item.mm_hash] = self._worker.encode(item)
                if not job.is_done and job not in self._making:
                    self._making.add(job)
                    self.num_encoded += 1
            ready = ready and job.is_done
        return ready

    def work(self, busy: bool) -> bool:
        """Some work on what is in line: little when requests run, so that they go on. False if there was none."""
        return self._worker.encode_some(ENCODE_SECONDS if busy else IDLE_ENCODE_SECONDS)
