"""InternViT and the connector of InternVL 3 (arXiv 2504.10479): tiles of one size, each its own segment, with a row of no patch before
the patches. What a layer adds is multiplied channel by channel; squares of 2 x 2 patches become one row.

Patches of a tile come in the order of the squares, so that a square is a run of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaItem
from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.kernels.ops import Ops, Weight
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.models.vision.layers import (
    Dense,
    EncoderLayer,
    Encoding,
    FlatSource,
    Float32,
    LayerNorm,
    Norm,
    PlainMLP,
    RootNorm,
    Rows,
    blocks,
    make_rows,
    pixels_of,
)
from sglang.srt.model.models.vision.llava import Projector
from sglang.srt.model.models.vision.siglip import check_rows, split_rows, squares_of
from sglang.srt.model.quant.formats import HostTensor, dense, quantize_q8_0

QK_EPS = 1e-6


class ScaledSource:
    """A source in which the rows of some matrices, and their biases, are multiplied by a vector."""

    def __init__(self, source: WeightSource, scales: dict[str, str]) -> None:
        self._source = source
        self._scales = {name: source.tensor(scale).dequantize() for name, scale in scales.items()}

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        found, scale = self._source.tensor(name, shape), self._scales.get(name.removesuffix(".weight"))
        if scale is None:
            return found
        values = found.dequantize() * scale[:, None]
        return dense(name, values, found.format) if found.is_dense else quantize_q8_0(name, values)

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def vector(self, name: str) -> Float32:
        found, scale = self._source.vector(name), self._scales.get(name.removesuffix(".bias"))
        return found if scale is None else found * scale


class QKNormLayer(EncoderLayer):
    """q and k are normalized over all heads together first."""

    qk_norms: tuple[Norm, ...] = ()

    def attend(self, rows: Rows) -> Iterator[None]:
        width = self.config.hidden_size
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            for i, norm in enumerate(self.qk_norms):
                part = rows.qkv[a:b, i * width : (i + 1) * width] + 0
                norm(part, part, rows.count)
                rows.qkv[a:b, i * width : (i + 1) * width] = part
            if self.qk_norms:
                yield
        yield from super().attend(rows)


class InternVision:
    """An Encoder."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        self.ops, self.config = ops, config
        c, at = config, "vision_tower.embeddings"
        self.patch_values = c.num_channels * c.patch_size**2
        side = c.image_size // c.patch_size
        self.num_patches = side * side
        self.tile_rows = self.num_patches // c.merge_size**2
        self.embed = Dense(ops, FlatSource(source), {f"{at}.patch_embeddings.projection": c.hidden_size}, self.patch_values)
        table = source.tensor(f"{at}.position_embeddings").dequantize().reshape(-1, c.hidden_size)
        order = squares_of(np.arange(self.num_patches, dtype=np.int32).reshape(side, side), c.merge_size)
        first = table[:1] + source.tensor(f"{at}.cls_token").dequantize().reshape(1, -1)
        self.positions = ops.array(np.concatenate([first, table[1:][order]]))
        self.layers = [self._layer(source, f"vision_tower.encoder.layer.{i}") for i in range(c.num_layers)]
        self.norm = LayerNorm(ops, source, "vision_tower.layernorm", c.norm_eps) if c.final_norm else None
        self.wide = c.hidden_size * c.merge_size**2
        self.merge_norm = LayerNorm(ops, source, "multi_modal_projector.layer_norm", c.projector_eps)
        self.project = Projector(ops, source, c, self.wide)

    def _norm(self, source: WeightSource, name: str) -> Norm:
        kind = RootNorm if self.config.rms_norms else LayerNorm
        return kind(self.ops, source, name, self.config.norm_eps)

    def _layer(self, source: WeightSource, at: str) -> EncoderLayer:
        c, ops = self.config, self.ops
        scaled = ScaledSource(source, {f"{at}.attention.projection_layer": f"{at}.lambda_1", f"{at}.mlp.fc2": f"{at}.lambda_2"})
        norms = self._norm(source, f"{at}.layernorm_before"), self._norm(source, f"{at}.layernorm_after")
        names = {f"{at}.attention.{part}_proj": c.hidden_size for part in "qkv"}
        qkv = Dense(ops, source, names, c.hidden_size, c.attention_bias)
        output = Dense(ops, scaled, {f"{at}.attention.projection_layer": c.hidden_size}, c.hidden_size)
        mlp = PlainMLP(ops, scaled, f"{at}.mlp.fc1", f"{at}.mlp.fc2", c.hidden_size, c.intermediate_size, c.activation)
        layer = QKNormLayer(ops, c, norms, qkv, output, mlp)
        if c.qk_norm:
            layer.qk_norms = tuple(RootNorm(ops, source, f"{at}.attention.{part}_norm", QK_EPS) for part in "qk")
        return layer

    @property
    def weights(self) -> list[Weight]:
        return [*self.embed.weights, *(w for layer in self.layers for w in layer.weights), *self.project.weights]

    def check(self, item: MediaItem) -> None:
        tiles = item.grid[0] if len(item.grid) == 3 else 0
        n = tiles * self.num_patches
        if tiles < 1 or item.shape != (n, self.patch_values) or len(item.pixels) != 4 * n * self.patch_values:
            raise RequestError(f"the {item.kind}'s pixels are not {tiles} whole tiles")
        check_rows(item, tiles * self.tile_rows)

    def cost(self, item: MediaItem) -> int:
        return item.shape[0]

    def encode(self, items: Sequence[MediaItem]) -> Encoding:
        pixels = self.ops.array(np.concatenate([pixels_of(item) for item in items]))
        tiles, tile_len = len(pixels) // self.num_patches, self.num_patches + 1
        starts = np.arange(0, tiles * tile_len + 1, tile_len, dtype=np.int32)
        rows = make_rows(self.ops, self.config, tiles * tile_len, starts, starts)
        for tile in range(tiles):
            at, source = tile * tile_len, tile * self.num_patches
            rows.x[at : at + tile_len] = self.positions
            rows.delta[at] = 0.0
            for a, b in blocks(self.num_patches):
                rows.count[0] = b - a
                self.embed.of(pixels[source + a : source + b], rows.delta[at + 1 + a : at + 1 + b], rows.count)
            yield
        for layer in self.layers:
            yield from layer(rows, is_first=False)  # the patches' own values are still in delta
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            if self.norm is None:
                rows.mixed[a:b] = rows.x[a:b] + rows.delta[a:b]
            else:
                self.norm(rows.x[a:b], rows.mixed[a:b], rows.count, rows.delta[a:b])
        out = self.ops.empty((tiles * self.tile_rows, self.config.out_size))
        for tile in range(tiles):
            squares = rows.mixed[tile * tile_len + 1 : (tile + 1) * tile_len].reshape(-1, self.wide)
            for a, b in blocks(self.tile_rows):
                rows.count[0] = b - a
                self.merge_norm(squares[a:b], self.project.first.input, rows.count)
                at = tile * self.tile_rows
                yield from self.project.stored(out[at + a : at + b], rows.count)
        return split_rows(out, [item.num_rows for item in items])
