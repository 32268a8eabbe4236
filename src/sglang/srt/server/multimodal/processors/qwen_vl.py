"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures of any size in squares of 2 x 2 patches, one row each; videos as pairs of frames.
Qwen3-VL takes each pair for a picture of its own, with the time written before it:

    <|vision_start|> rows of all pairs <|vision_end|>                       <0.2 seconds><|vision_start|> rows <|vision_end|><1.2 ...
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import Detail
from sglang.srt.server.multimodal.processors.base import (
    LOW_DETAIL_PIXELS,
    Frame,
    ModelFolder,
    fingerprint_of,
    picture_hash,
    run_processor,
)
from sglang.srt.server.multimodal.spans import Int32, Picture, Span, axis_positions

MAX_FRAME_PIXELS = 768 * 28 * 28
FRAMES_PER_SECOND = 2.0
"""at which videos are taken to be sampled"""


class QwenVLProcessor:
    """A Processor."""

    def __init__(self, folder: ModelFolder) -> None:
        self._processor = folder.image_processor("qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil")
        self._fingerprint = fingerprint_of(self._processor)
        self.placeholders: dict[MediaKind, int] = {
            "image": folder.number("image_token_id", 151655),
            "video": folder.number("video_token_id", 151656),
        }
        self._writes_times = folder.config["model_type"] == "qwen3_vl"
        self._around = (folder.number("vision_start_token_id", 151652), folder.number("vision_end_token_id", 151653))
        self._tokenizer = folder.tokenizer
        self.kinds: tuple[MediaKind, ...] = tuple(self.placeholders)
        self.image_token = f"<|vision_start|>{folder.tokenizer.token_text(self.placeholders['image'])}<|vision_end|>"
        timed = folder.config.get("model_type") == "qwen2_5_vl" and folder.vision("tokens_per_second", 1)
        per_second = timed and folder.config["vision_config"].get("tokens_per_second")
        self._merge = int(self._processor.merge_size)
        self._pair = int(self._processor.temporal_patch_size)
        self._time_step = float(per_second) * self._pair / FRAMES_PER_SECOND if per_second else 1.0

    def num_tokens(self, kind: MediaKind, shape: Shape, detail: Detail, alone: bool) -> int:
        limits = self._limits(kind, detail)
        edges = {"min_pixels": limits["shortest_edge"], "max_pixels": limits["longest_edge"]}
        try:
            patches = int(self._processor.get_number_of_image_patches(shape.height, shape.width, edges))
        except ValueError as error:
            raise RequestError(f"the model cannot take this image: {error}", "image_url") from error
        rows, pairs = patches // self._merge**2, -(-shape.frames // self._pair)
        if kind == "video" and self._writes_times:
            return len(self._timed(pairs, self.placeholders[kind], 0)) + pairs * rows
        return pairs * rows

    def _limits(self, kind: MediaKind, detail: Detail) -> dict[str, int]:
        """Pixels that a picture, or each frame, is brought to."""
        limits = {"shortest_edge": self._processor.size.shortest_edge, "longest_edge": self._processor.size.longest_edge}
        if detail == "low":
            limits["longest_edge"] = min(limits["longest_edge"], LOW_DETAIL_PIXELS)
        if kind == "video":
            limits["longest_edge"] = min(limits["longest_edge"], MAX_FRAME_PIXELS)
        limits["shortest_edge"] = min(limits.values())
        return limits

    def process(self, kind: MediaKind, frames: Sequence[Frame], detail: Detail, alone: bool) -> Picture:
        mm_hash = picture_hash(self._fingerprint, kind, frames, detail)
        limits = self._limits(kind, detail)
        found = [run_processor(self._processor, [frame], size=limits) for frame in frames]
        _, h, w = (int(n) for n in found[0]["image_grid_thw"][0])
        patches = [one["pixel_values"].astype(np.float32, copy=False) for one in found]
        if kind == "image":
            pixels, t = patches[0], 1
        else:
            pixels, t = self._pairs(patches)
        squares = (t, h // self._merge, w // self._merge)
        row_id = self.placeholders[kind]
        timed = kind == "video" and self._writes_times
        rows = (row_id,) * (squares[0] * squares[1] * squares[2])
        return Picture(
            kind=kind,
            mm_hash=mm_hash,
            tokens=self._timed(t, row_id, squares[1] * squares[2]) if timed else rows,
            row_id=row_id,
            pixels=np.ascontiguousarray(pixels),
            grid=(t, h, w),
            squares=((1, *squares[1:]),) * t if timed else (squares,),
            around=self._around if timed else (),
            time_step=self._time_step if kind == "video" else 1.0,
        )

    def _timed(self, pairs: int, row_id: int, rows: int) -> tuple[int, ...]:
        """Each pair of frames with its time, in the middle between the two."""
        tokens: list[int] = []
        for i in range(pairs):
            seconds = (i * self._pair + (self._pair - 1) / 2) / FRAMES_PER_SECOND
            tokens += self._tokenizer.encode(f"<{seconds:.1f} seconds>", add_special_tokens=False)
            tokens += [self._around[0], *[row_id] * rows, self._around[1]]
        return tuple(tokens)

    def _pairs(self, patches: list[npt.NDArray[np.float32]]) -> tuple[npt.NDArray[np.float32], int]:
        """A picture's patches hold it twice, once for each moment of a pair; here the moments are neighbouring frames. The last
        frame stands in for missing ones."""
        while len(patches) % self._pair:
            patches.append(patches[-1])
        side = int(self._processor.patch_size)
        moments = [p.reshape(len(p), -1, self._pair, side * side)[:, :, 0] for p in patches]
        pairs = [np.stack(moments[i : i + self._pair], axis=2) for i in range(0, len(moments), self._pair)]
        return np.concatenate([pair.reshape(len(pair), -1) for pair in pairs]), len(pairs)

    def positions(self, length: int, pictures: Sequence[tuple[Picture, list[Span]]]) -> tuple[Int32, int] | None:
        spans = [
            (span, squares, picture.time_step)
            for picture, found in pictures
            for span, squares in zip(found, picture.squares, strict=True)
        ]
        return axis_positions(length, sorted(spans))
