"""The encoders of Qwen2-VL (arXiv 2409.12191) and Qwen2.5-VL (arXiv 2502.13923): images of any size, rotary positions in two
dimensions, four patches merged into one row.

Patches come in the order of the merged squares. Most layers of Qwen2.5-VL use window attention; there the squares are sorted by
window, so that a window is a run of rows, and put back at the end:

    squares of an image   0 1 2 | 3        window order   0 1 2 4 5 6 | 3 7 | 8 9 10 | 11
                           4 5 6 | 7        segments       [ 6 x 4    ][ 2 x 4 ] ...      (4 patches a square)
                           8 9 10| 11
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaItem
from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.kernels.ops import Array, Ops, Weight
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.models.vision.layers import (
    BLOCK,
    Dense,
    EncoderLayer,
    Encoding,
    FlatSource,
    Float32,
    GatedMLP,
    Int32,
    LayerNorm,
    Norm,
    PlainMLP,
    RootNorm,
    Rows,
    blocks,
    make_rows,
    pixels_of,
)

THETA = 10000.0


@dataclass(frozen=True)
class Layout:
    """The places of the patches of one item. `order`: patch for each row; `back`: row of each merged square; `windows`,
    `frames`: lengths of the segments."""

    order: Int32
    back: Int32
    windows: list[int]
    frames: list[int]
    angles: Float32


class MergesSquares(Protocol):
    """Squares of patches side by side to rows of the decoder's width."""

    @property
    def weights(self) -> list[Weight]: ...
    def __call__(self, squares: Array, out: Array, count: Array, norm: Norm | None = None) -> Iterator[None]: ...


class Merger:
    """Squares of patches side by side to rows of the decoder's width: second @ gelu(first @ square)."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig, first: str, second: str) -> None:
        self.ops = ops
        self.wide = config.hidden_size * config.merge_size**2
        self.first = Dense(ops, source, {first: self.wide}, self.wide)
        self.second = Dense(ops, source, {second: config.out_size}, self.wide)
        self.middle = ops.empty((BLOCK, self.wide))

    @property
    def weights(self) -> list[Weight]:
        return [*self.first.weights, *self.second.weights]

    def __call__(self, squares: Array, out: Array, count: Array, norm: Norm | None = None) -> Iterator[None]:
        """out may be a range of columns. `norm` is applied to each square first, if given."""
        for a, b in blocks(squares.shape[0]):
            count[0] = b - a
            if norm is None:
                self.ops.store(squares[a:b], self.first.input, count)
            else:
                norm(squares[a:b], self.first.input, count)
            self.first(self.middle, count)
            self.ops.activate(self.middle, self.second.input, count, fn="gelu")
            self.second(out[a:b], count)
            yield


class QwenVision:
    """Qwen2-VL's encoder: LayerNorm, a plain feed-forward layer, no windows."""

    merger_names = ("visual.merger.ln_q", "visual.merger.mlp.0", "visual.merger.mlp.2")
    mlp_names = ("fc1", "fc2")

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        self.ops, self.config = ops, config
        c = config
        patch_values = c.num_channels * c.temporal_patch_size * c.patch_size**2
        self.patch_values = patch_values
        name = "visual.patch_embed.proj"
        self.embed = Dense(ops, FlatSource(source), {name: c.hidden_size}, patch_values, source.has(f"{name}.bias"))
        self.layers = [self.create_layer(source, i) for i in range(c.num_layers)]
        self.merge_norm = self.create_merge_norm(source)
        self.merger: MergesSquares = self.create_merger(source)

    def create_merge_norm(self, source: WeightSource) -> Norm:
        return self.create_norm(source, self.merger_names[0])

    def create_merger(self, source: WeightSource) -> MergesSquares:
        return Merger(self.ops, source, self.config, *self.merger_names[1:])

    def create_norm(self, source: WeightSource, name: str) -> Norm:
        return LayerNorm(self.ops, source, name, self.config.norm_eps)

    def create_layer(self, source: WeightSource, i: int) -> EncoderLayer:
        c, at = self.config, f"visual.blocks.{i}"
        first, second = (f"{at}.mlp.{name}" for name in self.mlp_names)
        mlp = PlainMLP(self.ops, source, first, second, c.hidden_size, c.intermediate_size, c.activation)
        return EncoderLayer(self.ops, c, self._norms(source, at), *self._projections(source, at), mlp)

    def _norms(self, source: WeightSource, at: str) -> tuple[Norm, Norm]:
        return self.create_norm(source, f"{at}.norm1"), self.create_norm(source, f"{at}.norm2")

    def _projections(self, source: WeightSource, at: str) -> tuple[Dense, Dense]:
        width = self.config.hidden_size
        qkv = Dense(self.ops, source, {f"{at}.attn.qkv": 3 * width}, width)
        return qkv, Dense(self.ops, source, {f"{at}.attn.proj": width}, width)

    @property
    def weights(self) -> list[Weight]:
        return [*self.embed.weights, *self.merger.weights, *(w for layer in self.layers for w in layer.weights)]

    def check(self, item: MediaItem) -> None:
        merge = self.config.merge_size
        good = len(item.grid) == 3 and min(item.grid) > 0 and item.grid[1] % merge == 0 == item.grid[2] % merge
        patches = int(np.prod(item.grid)) if good else -1
        if item.shape != (patches, self.patch_values) or len(item.pixels) != 4 * patches * self.patch_values:
            raise RequestError(f"the {item.kind}'s pixels do not fit its grid {list(item.grid)}")
        if item.num_rows != patches // merge**2:
            raise RequestError(f"the {item.kind} makes {patches // merge**2} rows, and {item.num_rows} ids stand for them")

    def cost(self, item: MediaItem) -> int:
        return item.shape[0]

    def encode(self, items: Sequence[MediaItem]) -> Encoding:
        layouts = [self.layout(item) for item in items]
        n = sum(len(layout.order) for layout in layouts)
        rows = make_rows(
            self.ops,
            self.config,
            n,
            _starts(length for layout in layouts for length in layout.windows),
            _starts(length for layout in layouts for length in layout.frames),
            np.concatenate([layout.angles for layout in layouts]),
        )
        pixels = self.ops.array(np.concatenate([pixels_of(i)[lay.order] for i, lay in zip(items, layouts, strict=True)]))
        merged = self.ops.empty((n // self.config.merge_size**2, self.out_width))
        yield from self.run_layers(rows, pixels, items, merged)
        for a, b in blocks(n):
            rows.count[0] = b - a
            self.merge_norm(rows.x[a:b], rows.mixed[a:b], rows.count, rows.delta[a:b])
        squares = rows.mixed.reshape(len(merged), -1)
        yield from self.merger(squares, merged[:, : self.config.out_size], rows.count)
        return self._split(merged, layouts, rows.count)

    @property
    def out_width(self) -> int:
        return self.config.out_size

    def run_layers(self, rows: Rows, pixels: Array, items: Sequence[MediaItem], merged: Array) -> Iterator[None]:
        """Runs from pixels to the last layer, whose addition to x stays in delta."""
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.embed.of(pixels[a:b], rows.x[a:b], rows.count)
            yield
        for i, layer in enumerate(self.layers):
            yield from layer(rows, i == 0)

    def _split(self, merged: Array, layouts: list[Layout], count: Array) -> list[Array]:
        """The rows of each item, in its own order."""
        found, start = [], 0
        for layout in layouts:
            n = len(layout.back)
            out = self.ops.empty((n, self.out_width))
            count[0] = n
            self.ops.gather_rows(merged[start : start + n], self.ops.array(layout.back), out, count)
            found.append(out)
            start += n
        return found

    # --- geometry -------------------------------------------------------------------------------------------------------------

    def layout(self, item: MediaItem) -> Layout:
        """The order of patches, segments and angles of an item of `grid` (frames, patches down, patches across)."""
        t, h, w = item.grid
        m = self.config.merge_size
        squares, windows = self.window_order(t, h // m, w // m)
        order = (squares[:, None] * m * m + np.arange(m * m)).reshape(-1)
        angles = np.tile(_angles(h, w, m, self.config.head_dim), (t, 1))[order]
        back = np.argsort(squares).astype(np.int32)
        return Layout(order.astype(np.int32), back, [n * m * m for n in windows], [h * w] * t, angles)

    def window_order(self, t: int, h: int, w: int) -> tuple[Int32, list[int]]:
        """Squares in the order of windows, and squares in each window. Here a frame is one window."""
        return np.arange(t * h * w, dtype=np.int32), [h * w] * t


class WindowedQwenVision(QwenVision):
    """Qwen2.5-VL's encoder: RMSNorm, a gated feed-forward layer, windows in all layers but `full_layers`."""

    def create_norm(self, source: WeightSource, name: str) -> Norm:
        return RootNorm(self.ops, source, name, self.config.norm_eps)

    def create_layer(self, source: WeightSource, i: int) -> EncoderLayer:
        c, at = self.config, f"visual.blocks.{i}"
        mlp = GatedMLP(self.ops, source, f"{at}.mlp", c)
        is_wide = i in c.full_layers
        return EncoderLayer(self.ops, c, self._norms(source, at), *self._projections(source, at), mlp, is_wide)

    def window_order(self, t: int, h: int, w: int) -> tuple[Int32, list[int]]:
        side = self.config.window_size // self.config.merge_size // self.config.patch_size
        index = np.arange(t * h * w, dtype=np.int32).reshape(t, h, w)
        windows = [
            index[frame, top : top + side, left : left + side].reshape(-1)
            for frame in range(t)
            for top in range(0, h, side)
            for left in range(0, w, side)
        ]
        return np.concatenate(windows), [len(window) for window in windows]


def _starts(lengths: object) -> Int32:
    ends = np.cumsum(np.fromiter(lengths, np.int64))  # type: ignore[call-overload]
    return np.concatenate([[0], ends]).astype(np.int32)


def _angles(h: int, w: int, merge: int, head_dim: int) -> Float32:
    """Radians of each patch, in the order of merged squares: half of the pairs turn by row, half by column."""
    quarter = head_dim // 4
    freqs = THETA ** (-np.arange(quarter) / quarter)
    down, across = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")

    def by_squares(a: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        squares: npt.NDArray[np.intp] = a.reshape(h // merge, merge, w // merge, merge).transpose(0, 2, 1, 3).reshape(-1)
        return squares

    both = [by_squares(down)[:, None] * freqs, by_squares(across)[:, None] * freqs]
    return np.concatenate(both, axis=1).astype(np.float32)
