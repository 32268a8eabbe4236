"""The encoder of GLM-4.1V, 4.5V and 4.6V (arXiv 2507.01006): Qwen2-VL's way with patches, with a table of positions that is stretched over the image
besides, and squares of patches that become one row by a convolution and a gated layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sglang.srt.media_item import MediaItem
from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.kernels.ops import Array, Ops, Weight
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.models.vision.layers import (
    BLOCK,
    Dense,
    EncoderLayer,
    FlatSource,
    Float32,
    GatedMLP,
    Int32,
    LayerNorm,
    Norm,
    RootNorm,
    Rows,
    blocks,
)
from sglang.srt.model.models.vision.pixtral import ByPatchSource
from sglang.srt.model.models.vision.qwen_vl import QwenVision
from sglang.srt.model.models.vision.siglip import squares_of

CUBIC = -0.75
"""the parameter of the cubic kernel (PyTorch's)"""
MERGE_EPS = 1e-5


class GlmMerger:
    """Squares of patches to rows of the decoder's width: a convolution, then down(silu(gate y) * up y) of y = gelu(norm(proj x))."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        self.ops, width, name = ops, config.out_size, "visual.downsample"
        flat = ByPatchSource(FlatSource(source), f"{name}.weight", config.merge_size**2)
        self.convolve = Dense(ops, flat, {name: width}, config.hidden_size * config.merge_size**2)
        self.project = Dense(ops, source, {"visual.merger.proj": width}, width, bias=False)
        self.norm = LayerNorm(ops, source, "visual.merger.post_projection_norm", MERGE_EPS)
        outputs = {f"visual.merger.{part}_proj": config.merger_size for part in ("gate", "up")}
        self.both = Dense(ops, source, outputs, width, bias=False)
        self.down = Dense(ops, source, {"visual.merger.down_proj": width}, config.merger_size, bias=False)
        assert config.activation != "quick_gelu"
        self.fn = config.activation
        self.row, self.middle = ops.empty((BLOCK, width)), ops.empty((BLOCK, 2 * config.merger_size))

    @property
    def weights(self) -> list[Weight]:
        parts = (self.convolve, self.project, self.both, self.down)
        return [weight for part in parts for weight in part.weights]

    def __call__(self, squares: Array, out: Array, count: Array, norm: Norm | None = None) -> Iterator[None]:
        assert norm is None
        ops, half = self.ops, self.middle.shape[1] // 2
        for a, b in blocks(squares.shape[0]):
            count[0] = b - a
            self.convolve.of(squares[a:b], self.row, count)
            self.project.of(self.row, self.row, count)
            self.norm(self.row, self.row, count)
            ops.activate(self.row, self.both.input, count, fn="gelu")
            self.both(self.middle, count)
            ops.gate(self.middle[:, :half], self.middle[:, half:], self.down.input, count, gate_fn=self.fn)
            self.down(out[a:b], count)
            yield


class GlmVision(QwenVision):
    """An Encoder."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        super().__init__(ops, source, config)
        self.first_norm = RootNorm(ops, source, "visual.post_conv_layernorm", config.norm_eps)
        self.table = ops.array(source.tensor("visual.embeddings.position_embedding.weight").dequantize())

    def create_norm(self, source: WeightSource, name: str) -> Norm:
        return RootNorm(self.ops, source, name, self.config.norm_eps)

    def create_merge_norm(self, source: WeightSource) -> Norm:
        return self.create_norm(source, "visual.post_layernorm")

    def create_merger(self, source: WeightSource) -> GlmMerger:
        return GlmMerger(self.ops, source, self.config)

    def create_layer(self, source: WeightSource, i: int) -> EncoderLayer:
        c, at = self.config, f"visual.blocks.{i}"
        qkv = Dense(self.ops, source, {f"{at}.attn.qkv": 3 * c.hidden_size}, c.hidden_size, c.attention_bias)
        output = Dense(self.ops, source, {f"{at}.attn.proj": c.hidden_size}, c.hidden_size, bias=False)
        mlp = GatedMLP(self.ops, source, f"{at}.mlp", c, bias=False)
        return EncoderLayer(self.ops, c, self._norms(source, at), qkv, output, mlp)

    def run_layers(self, rows: Rows, pixels: Array, items: Sequence[MediaItem], merged: Array) -> Iterator[None]:
        side = self.config.image_size // self.config.patch_size
        found = [_stretched(item.grid, side, self.config.merge_size) for item in items]
        index, weight = (self.ops.array(np.concatenate(part)) for part in zip(*found, strict=True))
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.embed.of(pixels[a:b], rows.mixed[a:b], rows.count)
            self.first_norm(rows.mixed[a:b], rows.x[a:b], rows.count)
            self.ops.blend_rows(self.table, index[a:b], weight[a:b], rows.delta[a:b], rows.count)
            yield
        for layer in self.layers:
            yield from layer(rows, is_first=False)


def _stretched(grid: Sequence[int], side: int, merge: int) -> tuple[Int32, Float32]:
    """Which rows of a table of side x side places, and how much of each, make the position of each patch, in the order of merged
    squares: bicubic interpolation, with the table's edges beyond it. [patches, 16] each."""

    frames, down, across = grid

    def axis(size: int) -> tuple[npt.NDArray[np.int64], Float32]:
        """Places and weights of each of `size`, [size, 4]."""
        one, two = np.float32(1), np.float32(2)
        norm = ((np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)) * two - one
        at = ((norm + one) * np.float32(side) - one) / two
        low = np.floor(at)
        t = (at - low).astype(np.float64)
        distance = np.abs(t[:, None] - np.arange(-1, 3))
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
        places = np.clip(low.astype(np.int64)[:, None] + np.arange(-1, 3), 0, side - 1)
        return places, np.where(distance <= 1, near, far).astype(np.float32)

    (rows, v), (columns, h) = axis(down), axis(across)
    index = (rows[:, None, :, None] * side + columns[None, :, None, :]).reshape(down * across, 16).astype(np.int32)
    weight = (v[:, None, :, None] * h[None, :, None, :]).reshape(down * across, 16)
    order = squares_of(np.arange(down * across, dtype=np.int32).reshape(down, across), merge)
    return np.tile(index[order], (frames, 1)), np.tile(weight[order], (frames, 1))
