"""Pixtral's tower (arXiv 2410.07073) with the connectors of Pixtral and of Mistral 3: images of any size, rotary positions in two
dimensions. Mistral 3 merges squares of patches; those come in the order of the squares, so that a square is a run of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaItem
from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.kernels.ops import Array, Ops, Weight
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.models.vision.layers import (
    Dense,
    EncoderLayer,
    Encoding,
    FlatSource,
    Float32,
    GatedMLP,
    RootNorm,
    blocks,
    make_rows,
    pixels_of,
)
from sglang.srt.model.models.vision.llava import Projector
from sglang.srt.model.models.vision.siglip import check_rows, split_rows, squares_of
from sglang.srt.model.quant.formats import HostTensor, dense


class ByPatchSource:
    """A source in which the columns of `name` go patch by patch; they are stored channel by channel."""

    def __init__(self, source: WeightSource, name: str, patches: int) -> None:
        self._source, self._name, self._patches = source, name, patches

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        found = self._source.tensor(name, shape)
        if name != self._name:
            return found
        if not found.is_dense:
            found = dense(name, found.dequantize())
        turned = found.data.reshape(found.shape[0], -1, self._patches).transpose(0, 2, 1)
        return replace(found, data=np.ascontiguousarray(turned).reshape(found.shape))

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def vector(self, name: str) -> Float32:
        return self._source.vector(name)


class PixtralVision:
    """An Encoder."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        self.ops, self.config = ops, config
        c, at = config, "vision_tower"
        self.patch_values = c.num_channels * c.patch_size**2
        self.embed = Dense(ops, FlatSource(source), {f"{at}.patch_conv": c.hidden_size}, self.patch_values, bias=False)
        self.pre_norm = RootNorm(ops, source, f"{at}.ln_pre", c.norm_eps)
        self.layers = [self._layer(source, f"{at}.transformer.layers.{i}") for i in range(c.num_layers)]
        self.wide = c.hidden_size * c.merge_size**2
        self.norm: RootNorm | None = None
        self.merge: Dense | None = None
        if c.kind == "mistral3":
            name = "multi_modal_projector.patch_merger.merging_layer"
            self.norm = RootNorm(ops, source, "multi_modal_projector.norm", c.projector_eps)
            by_patch = ByPatchSource(source, f"{name}.weight", c.merge_size**2)
            self.merge = Dense(ops, by_patch, {name: c.hidden_size}, self.wide, bias=False)
        self.project = Projector(ops, source, c, c.hidden_size)

    def _layer(self, source: WeightSource, at: str) -> EncoderLayer:
        c, ops = self.config, self.ops
        norms = RootNorm(ops, source, f"{at}.attention_norm", c.norm_eps), RootNorm(ops, source, f"{at}.ffn_norm", c.norm_eps)
        qkv = Dense(ops, source, {f"{at}.attention.{part}_proj": c.hidden_size for part in "qkv"}, c.hidden_size, bias=False)
        output = Dense(ops, source, {f"{at}.attention.o_proj": c.hidden_size}, c.hidden_size, bias=False)
        return EncoderLayer(ops, c, norms, qkv, output, GatedMLP(ops, source, f"{at}.feed_forward", c, bias=False))

    @property
    def weights(self) -> list[Weight]:
        merge = [] if self.merge is None else self.merge.weights
        return [*self.embed.weights, *(w for layer in self.layers for w in layer.weights), *merge, *self.project.weights]

    def check(self, item: MediaItem) -> None:
        merge = self.config.merge_size
        good = len(item.grid) == 3 and min(item.grid) > 0 and item.grid[0] == 1
        good = good and item.grid[1] % merge == 0 == item.grid[2] % merge
        patches = item.grid[1] * item.grid[2] if good else -1
        if item.shape != (patches, self.patch_values) or len(item.pixels) != 4 * patches * self.patch_values:
            raise RequestError(f"the {item.kind}'s pixels do not fit its grid {list(item.grid)}")
        check_rows(item, patches // merge**2)

    def cost(self, item: MediaItem) -> int:
        return item.shape[0]

    def encode(self, items: Sequence[MediaItem]) -> Encoding:
        pixels = self.ops.array(np.concatenate([pixels_of(item) for item in items]))
        starts = np.cumsum([0, *(item.shape[0] for item in items)]).astype(np.int32)
        angles = np.concatenate([self._angles(item.grid[1], item.grid[2]) for item in items])
        rows = make_rows(self.ops, self.config, len(pixels), starts, starts, angles)
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.embed.of(pixels[a:b], rows.mixed[a:b], rows.count)
            self.pre_norm(rows.mixed[a:b], rows.x[a:b], rows.count)
            yield
        for i, layer in enumerate(self.layers):
            yield from layer(rows, is_first=i == 0)
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            if self.norm is None:
                rows.mixed[a:b] = rows.x[a:b] + rows.delta[a:b]
            else:
                self.norm(rows.x[a:b], rows.mixed[a:b], rows.count, rows.delta[a:b])
        squares = rows.mixed.reshape(-1, self.wide)
        out = self.ops.empty((len(squares), self.config.out_size))
        if self.merge is None:
            yield from self.project(squares, out, rows.count)
        else:
            yield from self._merged(squares, out, rows.count)
        return split_rows(out, [item.num_rows for item in items])

    def _merged(self, squares: Array, out: Array, count: Array) -> Encoding:
        assert self.merge is not None
        merged = self.ops.empty((len(squares), self.config.hidden_size))
        for a, b in blocks(len(squares)):
            count[0] = b - a
            self.merge.of(squares[a:b], merged[a:b], count)
            yield
        yield from self.project(merged, out, count)
        return []

    def _angles(self, down: int, across: int) -> Float32:
        """Radians of each patch: pairs of even frequencies turn by row, those of odd ones by column."""
        dim, merge = self.config.head_dim, self.config.merge_size
        freqs = self.config.rope_theta ** (-np.arange(0, dim, 2) / dim)
        order = squares_of(np.arange(down * across, dtype=np.int32).reshape(down, across), merge)
        row, column = order // across, order % across
        both = [row[:, None] * freqs[0::2], column[:, None] * freqs[1::2]]
        return np.concatenate(both, axis=1).astype(np.float32)
