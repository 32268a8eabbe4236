"""Placeholders to spans: where the rows of images and videos stand in a prompt, and at which positions.

ids       ... <image> ...                          one id an item, as the template or the caller wrote it
expanded  ... <start> <row> <row> <row> <end> ...  what its `tokens` say; spans are the runs of its row id
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaKind

Span = tuple[int, int]
"""(offset, length)"""
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ProcessedMedia:
    """An image or video as one model wants it. `tokens` stand in the prompt for its placeholder; where they equal `row_id`,
    rows of the encoder stand. `squares`: (frames, down, across) of the rows of each span, where positions follow from that;
    `time_step`: positions between frames."""

    kind: MediaKind
    mm_hash: bytes
    tokens: tuple[int, ...]
    row_id: int
    pixels: npt.NDArray[np.float32]
    grid: tuple[int, ...] = ()
    squares: tuple[tuple[int, int, int], ...] = ()
    time_step: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)
    newlines: tuple[int, int] = (0, 0)
    """line ends before and after the tokens, which are tokenized together with those of the text that they meet"""
    around: tuple[int, ...] = ()
    """ids before and after the placeholder that the tokens bring themselves: they go with it"""

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + 8 * len(self.tokens)


def expand(
    ids: Sequence[int],
    images: Sequence[ProcessedMedia],
    placeholders: dict[MediaKind, int],
    name: str,
    lines: LineEnds | None = None,
) -> tuple[list[int], list[list[Span]]]:
    """The prompt with every placeholder replaced, and the spans of each image or video. `name` is what a placeholder is called; `lines`
    is asked where they bring line ends.

    Raises RequestError if there are not as many placeholders as images and videos, or not of their kinds.
    """
    found = find_places(ids, len(images), placeholders, name)
    order = _assign([ids[i] for i in found], images, placeholders)
    expanded: list[int] = []
    spans: list[list[Span]] = [[] for _ in images]
    start = 0
    for at, which in zip(found, order, strict=True):
        expanded += ids[start:at]
        start = at + 1
        image = images[which]
        if image.around and expanded[-1:] + list(ids[start : start + 1]) == list(image.around):
            expanded.pop()
            start += 1
        if image.newlines[0] and lines is not None:
            lines.lengthen(expanded, image.newlines[0])
        spans[which] = [(len(expanded) + begin, length) for begin, length in runs(image.tokens, image.row_id)]
        expanded += image.tokens
        if image.newlines[1] and lines is not None:
            start = lines.after(expanded, ids, start, image.newlines[1])
    expanded += ids[start:]
    return expanded, spans


def find_places(ids: Sequence[int], count: int, placeholders: dict[MediaKind, int], name: str) -> list[int]:
    """The places of placeholders. Raises RequestError if there are not `count` of them."""
    marks = set(placeholders.values())
    found = [i for i, token in enumerate(ids) if token in marks]
    if len(found) != count:
        raise RequestError(
            f"the prompt has {len(found)} places for images and videos ({name}), and {count} were given", "image_data"
        )
    return found


class LineEnds(Protocol):
    """Joins line ends as the tokenizer would have in one text."""

    def lengthen(self, ids: list[int], count: int) -> None:
        """`count` more line ends at the end of `ids`."""
        ...

    def after(self, ids: list[int], following: Sequence[int], start: int, count: int) -> int:
        """`count` line ends at the end of `ids`, together with those that begin following[start:]; returns where the rest
        of that begins."""
        ...


def _assign(marks: list[int], images: Sequence[ProcessedMedia], placeholders: dict[MediaKind, int]) -> list[int]:
    """Which image or video goes to each placeholder: the next one of its kind; or simply the next, where the kinds do not add up and
    the prompt knows only one (the language writes the image's placeholder for videos too)."""
    queues: dict[int, list[int]] = {mark: [] for mark in placeholders.values()}
    for i, image in enumerate(images):
        queues[placeholders[image.kind]].append(i)
    if all(len(queue) == marks.count(mark) for mark, queue in queues.items()):
        return [queues[mark].pop(0) for mark in marks]
    if len(set(marks)) > 1:
        raise RequestError("the prompt's places for images and for videos do not fit the images and videos given", "image_data")
    return list(range(len(images)))


def runs(tokens: Sequence[int], row_id: int) -> list[Span]:
    """(begin, length) of each run of `row_id`."""
    found: list[Span] = []
    for i, token in enumerate(tokens):
        if token != row_id:
            continue
        if found and sum(found[-1]) == i:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((i, 1))
    return found


def axis_positions(length: int, spans: Sequence[tuple[Span, tuple[int, int, int], float]]) -> tuple[Int32, int]:
    """Positions on the axes time, height and width, [3, length], and what is to be added to the place of later tokens (M-RoPE,
    arXiv 2409.12191). `spans`: (span, its squares, time step), ascending. Text counts on; an image's squares lie on a grid from
    where the text had got, which goes on after the grid's longer side."""
    positions = np.empty((3, length), np.int32)
    at = current = 0
    for (offset, size), (t, h, w), step in spans:
        positions[:, at:offset] = current + np.arange(offset - at)
        current += offset - at
        frames = np.floor(np.arange(t) * step).astype(np.int32)
        grid = np.meshgrid(frames, np.arange(h), np.arange(w), indexing="ij")
        positions[:, offset : offset + size] = current + np.stack(grid).reshape(3, -1)
        current += max(h, w)
        at = offset + size
    positions[:, at:] = current + np.arange(length - at)
    end = int(positions.max()) + 1 if length else 0
    return positions, end - length
