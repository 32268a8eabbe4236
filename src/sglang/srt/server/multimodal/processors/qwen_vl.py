"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: images of any size in squares of 2 x 2 patches, one row each; videos as pairs of frames.
Those from Qwen3-VL on take each pair for an image of its own, with the time written before it:

    <|vision_start|> rows of all pairs <|vision_end|>                       <0.2 seconds><|vision_start|> rows <|vision_end|><1.2 ...
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.base import (
    LOW_DETAIL_PIXELS,
    ModelFolder,
    fingerprint_of,
    media_hash,
    run_processor,
)
from sglang.srt.server.multimodal.spans import Int32, ProcessedMedia, Span, axis_positions

MODULE = "qwen2_vl.image_processing_pil_qwen2_vl"
MAX_FRAME_PIXELS = 768 * 28 * 28
FRAMES_PER_SECOND = 2.0
"""at which videos that tell no times are taken to be sampled"""


class QwenVLProcessor:
    """A Processor."""

    row_ids: frozenset[int] = frozenset()
    moments = 1
    """what an image counts as in the settings' numbers of pixels"""
    default_tokens = 1280
    """the most that the publisher's examples advise (source: the model cards)"""

    def __init__(self, folder: ModelFolder) -> None:
        self._processor = folder.image_processor(MODULE, "Qwen2VLImageProcessorPil", in_pixels=True)
        self._fingerprint = fingerprint_of(self._processor)
        self.placeholders: dict[MediaKind, int] = {
            "image": folder.number("image_token_id", 151655),
            "video": folder.number("video_token_id", 151656),
        }
        self._writes_times = folder.config["model_type"] not in ("qwen2_vl", "qwen2_5_vl")
        self._around = (folder.number("vision_start_token_id", 151652), folder.number("vision_end_token_id", 151653))
        self._tokenizer = folder.tokenizer
        self.kinds: tuple[MediaKind, ...] = tuple(self.placeholders)
        self.image_token = f"<|vision_start|>{folder.tokenizer.token_text(self.placeholders['image'])}<|vision_end|>"
        timed = folder.config.get("model_type") == "qwen2_5_vl" and folder.vision("tokens_per_second", 1)
        per_second = timed and folder.config["vision_config"].get("tokens_per_second")
        self._merge = int(self._processor.merge_size)
        self._pair = int(self._processor.temporal_patch_size)
        self._per_second = float(per_second or 0)
        self._unit = int(self._processor.patch_size) * self._merge
        module: Any = importlib.import_module(f"transformers.models.{MODULE}")
        self._smart_resize = module.smart_resize

    def num_tokens(self, kind: MediaKind, shape: Shape, view: View) -> int:
        width, height = self._size(shape, self._limits(kind, shape, view))
        rows, pairs = width * height // self._unit**2, -(-shape.frames // self._pair)
        if kind == "video" and self._writes_times:
            return len(self._timed([0.0] * pairs, self.placeholders[kind], 0)) + pairs * rows
        return pairs * rows

    def seen_size(self, shape: Shape, view: View) -> tuple[int, int]:
        return self._size(shape, self._limits("image", shape, view))

    def _limits(self, kind: MediaKind, shape: Shape, view: View) -> dict[str, int]:
        """Pixels that an image, or each frame, is brought to. Raises RequestError for an image that is too thin."""
        size, wanted = self._processor.size, view.pixels
        most = min(size.longest_edge, wanted.most * self.moments or size.longest_edge)
        if view.detail == "low":
            most = min(most, LOW_DETAIL_PIXELS * self.moments)
        if kind == "video":
            most = min(most, MAX_FRAME_PIXELS)
        if view.max_tokens:
            most = min(most, self._pixels_of(view.max_tokens, shape) * self.moments)
        least = wanted.least * self.moments or size.shortest_edge
        limits = {"shortest_edge": min(least, most), "longest_edge": most}
        width, height = self._size(shape, limits)
        if 0 < view.max_tokens < width * height // self._unit**2:  # sides are rounded up where an image is enlarged
            limits["shortest_edge"] = 1
        return limits

    def _pixels_of(self, tokens: int, shape: Shape) -> int:
        """The number of pixels of so many tokens. The shorter side of a thin image has one row at least, for which the longer
        side pays."""
        ratio = min(shape.width, shape.height) / max(shape.width, shape.height)
        return max(1, int(tokens * self._unit**2 * min(1.0, tokens * ratio)))

    def _size(self, shape: Shape, limits: dict[str, int]) -> tuple[int, int]:
        """(width, height) that an image is brought to."""
        edges = {"min_pixels": limits["shortest_edge"], "max_pixels": limits["longest_edge"]}
        try:
            height, width = self.resized(shape.height, shape.width, edges)
        except ValueError as error:
            raise RequestError(f"the model cannot take this image: {error}", "image_url") from error
        return int(width), int(height)

    def resized(self, height: int, width: int, edges: dict[str, int]) -> tuple[int, int]:
        """transformers' rule. Raises ValueError."""
        found: tuple[int, int] = self._smart_resize(height, width, self._unit, **edges)
        return found

    def process(self, kind: MediaKind, clip: Clip, view: View) -> ProcessedMedia:
        height, width = clip.frames[0].shape[:2]
        limits = self._limits(kind, Shape(width, height), view)
        found = [run_processor(self._processor, [frame], size=limits) for frame in clip.frames]
        _, h, w = (int(n) for n in found[0]["image_grid_thw"][0])
        patches = [one["pixel_values"].astype(np.float32, copy=False) for one in found]
        if kind == "image":
            pixels, t = patches[0], 1
        else:
            pixels, t = self._pairs(patches)
        squares = (t, h // self._merge, w // self._merge)
        row_id = self.placeholders[kind]
        timed = kind == "video" and self._writes_times
        rows = squares[1] * squares[2]
        return ProcessedMedia(
            kind=kind,
            mm_hash=media_hash(self._fingerprint, kind, clip.frames, limits),
            tokens=self._timed(self._times(clip), row_id, rows) if timed else (row_id,) * (t * rows),
            row_id=row_id,
            pixels=np.ascontiguousarray(pixels),
            grid=(t, h, w),
            squares=((1, *squares[1:]),) * t if timed else (squares,),
            around=self._around if timed else (),
            time_step=self._time_step(clip) if kind == "video" else 1.0,
        )

    def _times(self, clip: Clip) -> list[float]:
        """Seconds at which each pair of frames is shown: in the middle between the two, of which the last may stand twice."""
        times = list(clip.times) or [i / FRAMES_PER_SECOND for i in range(len(clip.frames))]
        times += times[-1:] * (-len(times) % self._pair)
        return [(times[i] + times[i + self._pair - 1]) / 2 for i in range(0, len(times), self._pair)]

    def _time_step(self, clip: Clip) -> float:
        """Positions between two pairs of frames."""
        if not self._per_second:
            return 1.0
        times = clip.times
        interval = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        return self._per_second * self._pair * (interval if interval > 0 else 1 / FRAMES_PER_SECOND)

    def _timed(self, times: Sequence[float], row_id: int, rows: int) -> tuple[int, ...]:
        """The rows of each pair of frames, with its time before them."""
        tokens: list[int] = []
        for seconds in times:
            tokens += self._tokenizer.encode(f"<{seconds:.1f} seconds>", add_special_tokens=False)
            tokens += [self._around[0], *[row_id] * rows, self._around[1]]
        return tuple(tokens)

    def _pairs(self, patches: list[npt.NDArray[np.float32]]) -> tuple[npt.NDArray[np.float32], int]:
        """An image's patches hold it twice, once for each moment of a pair; here the moments are neighbouring frames. The last
        frame stands in for missing ones."""
        while len(patches) % self._pair:
            patches.append(patches[-1])
        side = int(self._processor.patch_size)
        moments = [p.reshape(len(p), -1, self._pair, side * side)[:, :, 0] for p in patches]
        pairs = [np.stack(moments[i : i + self._pair], axis=2) for i in range(0, len(moments), self._pair)]
        return np.concatenate([pair.reshape(len(pair), -1) for pair in pairs]), len(pairs)

    def positions(self, length: int, images: Sequence[tuple[ProcessedMedia, list[Span]]]) -> tuple[Int32, int] | None:
        spans = [
            (span, squares, image.time_step)
            for image, found in images
            for span, squares in zip(found, image.squares, strict=True)
        ]
        return axis_positions(length, sorted(spans))
