"""The encoder of Qwen3-VL: Qwen2-VL's, with learnt positions besides the rotary ones, resampled to each image's grid, and rows
from layers in the middle, which the decoder adds to its own first layers (DeepStack, arXiv 2406.04334).

    layers 0 .. 8 .. 16 .. 24 .. 26        rows of an item: [ after the last layer | after 8 | after 16 | after 24 ]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sglang.srt.media_item import MediaItem
from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.kernels.ops import Array, Ops, Weight
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.models.vision.layers import BLOCK, LayerNorm, Rows, blocks
from sglang.srt.model.models.vision.qwen_vl import Merger, QwenVision

Sources = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""(rows of a table, their weights), [n, 4]"""


class DeepQwenVision(QwenVision):
    """Qwen3-VL's encoder."""

    merger_names = ("visual.merger.norm", "visual.merger.linear_fc1", "visual.merger.linear_fc2")
    mlp_names = ("linear_fc1", "linear_fc2")

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        super().__init__(ops, source, config)
        self.table = ops.array(source.tensor("visual.pos_embed.weight").dequantize())
        names = [f"visual.deepstack_merger_list.{i}" for i in range(len(config.deep_layers))]
        self.deep_norms = [LayerNorm(ops, source, f"{name}.norm", config.norm_eps) for name in names]
        self.deep_mergers = [Merger(ops, source, config, f"{name}.linear_fc1", f"{name}.linear_fc2") for name in names]
        self.every_row = ops.array(np.arange(BLOCK, dtype=np.int32))

    @property
    def weights(self) -> list[Weight]:
        return [*super().weights, *(w for merger in self.deep_mergers for w in merger.weights)]

    @property
    def out_width(self) -> int:
        return self.config.out_size * (1 + len(self.config.deep_layers))

    def run_layers(self, rows: Rows, pixels: Array, items: Sequence[MediaItem], merged: Array) -> Iterator[None]:
        ops, size = self.ops, self.config.out_size
        found = [self._positions(item) for item in items]
        index, weight = (ops.array(np.concatenate(parts)) for parts in zip(*found, strict=True))
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.embed.of(pixels[a:b], rows.delta[a:b], rows.count)
            ops.blend_rows(self.table, index[a:b], weight[a:b], rows.x[a:b], rows.count)
            yield
        is_settled = False
        for i, layer in enumerate(self.layers):
            yield from layer(rows, is_settled)
            is_settled = i in self.config.deep_layers
            if is_settled:
                self._settle(rows)
                which = self.config.deep_layers.index(i)
                squares = rows.x.reshape(len(merged), -1)
                out = merged[:, size * (which + 1) : size * (which + 2)]
                yield from self.deep_mergers[which](squares, out, rows.count, self.deep_norms[which])
        if is_settled:
            rows.delta[:] = 0

    def _settle(self, rows: Rows) -> None:
        """x += delta, at once."""
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.ops.overlay(rows.x[a:b], rows.delta[a:b], self.every_row, rows.count, add=True)

    def _positions(self, item: MediaItem) -> Sources:
        """The learnt positions between which each patch lies; corners of the image lie on corners of the table's grid."""
        t, h, w = item.grid
        side, merge = int(self.config.num_positions**0.5), self.config.merge_size

        def axis(size: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
            at = np.arange(size, dtype=np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
            low = np.floor(at).astype(np.int32)
            return low, np.minimum(low + 1, side - 1).astype(np.int32), at - low

        top, bottom, down = axis(h)
        left, right, across = axis(w)
        corners = [rows[:, None] * side + columns[None, :] for rows in (top, bottom) for columns in (left, right)]
        v, u = down[:, None], across[None, :]
        weights = [(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u]

        def by_squares(parts: list[npt.NDArray[np.int32]] | list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
            grid = np.stack(parts, axis=-1).reshape(h // merge, merge, w // merge, merge, 4).transpose(0, 2, 1, 3, 4)
            return np.tile(grid.reshape(h * w, 4), (t, 1))

        return by_squares(corners).astype(np.int32), by_squares(weights).astype(np.float32)
