"""The media of one request: its rows that are not text, positions on three axes, and which rows attend to which images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang.srt.forward_batch import CrossAttentionRows, EmbedRows, Int32Array, ModelInfo
from sglang.srt.media_item import EncodeJob, MediaItem
from sglang.srt.messages import TokenizedReq


@dataclass(eq=False)
class ReqMedia:
    """The media of one request. `jobs` by digest: held from when it might be admitted until its prompt is computed."""

    items: tuple[MediaItem, ...]
    positions: Int32Array | None  # [3, prompt_len]
    delta: int
    jobs: dict[bytes, EncodeJob]
    bidirectional_images: bool = False
    """rows of an image see all of it: a step must not end inside one"""
    visible: tuple[tuple[int, tuple[MediaItem, ...]], ...] = ()
    """with cross-attention: from which id on which images are attended to, ascending"""
    is_done: bool = False
    """the prompt has been computed"""

    def last_end(self, start: int, end: int) -> int:
        """The last place up to `end` where a step that begins at `start` may end; `start` if there is none. Where images are
        seen by cross-attention, all rows of a step see the same ones."""
        end = min((begin for begin, _ in self.visible if begin > start), default=end) if self.visible else end
        for item in self.items if self.bidirectional_images else ():
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
        if not self.visible:
            offset, length = item.spans[-1]
            return offset + length > start
        ends = [*(begin for begin, _ in self.visible[1:]), None]
        return any((end is None or end > start) and item in items for end, (_, items) in zip(ends, self.visible, strict=True))

    def prompt_done(self) -> None:
        """The prompt is computed: embeddings are not needed any more, unless every row looks at them."""
        self.is_done = True
        if not self.visible:
            self.jobs.clear()

    def cross_rows(self, start: int, end: int, first_row: int) -> list[CrossAttentionRows]:
        """Which of ids [start, end) see which images, `start` being row `first_row` of the step."""
        found: list[CrossAttentionRows] = []
        ends = [*(begin for begin, _ in self.visible[1:]), end]
        for (begin, items), until in zip(self.visible, ends, strict=False):
            low, high = max(start, begin), min(end, until)
            if low < high:
                embeddings = tuple(self.jobs[item.mm_hash].embedding for item in items)
                found.append(CrossAttentionRows(first_row + low - start, high - low, embeddings))
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
    return ReqMedia(
        msg.media, positions, msg.rope_delta, {}, info.bidirectional_images, _visible(msg.media) if info.cross_attention else ()
    )


def _visible(items: tuple[MediaItem, ...]) -> tuple[tuple[int, tuple[MediaItem, ...]], ...]:
    """An image is seen from its own id on, until the next one; images side by side are seen together."""
    found: list[tuple[int, tuple[MediaItem, ...]]] = []
    for item in items:
        at = item.spans[0][0]
        before = found[-1][1] if found and found[-1][0] == at - 1 else ()
        found.append((at, (*before, item)))
    return tuple(found)
