"""SigLIP and CLIP towers (arXiv 2303.15343, 2103.00020) and the connectors of SmolVLM, Idefics3 and Gemma 3.

The tower reads tiles of one size, each its own segment, with a learnt position for each patch. CLIP's has a row of no patch before
them, and a norm before the layers.

    image -> tiles -> patches -> tower -> rows          connector -> rows of the decoder's width
                                                          SmolVLM: squares of adjacent rows concatenated, one matrix
                                                          Gemma 3: the mean of each square, a norm, one matrix
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

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
    Int32,
    LayerNorm,
    PlainMLP,
    RootNorm,
    Rows,
    blocks,
    make_rows,
    pixels_of,
)
from sglang.srt.model.quant.formats import HostTensor, dense


class SiglipTower:
    """The tower whose tensors begin with `prefix`. `positions` of a tile's patches: rows of the position table. `normed`: its
    last norm is used."""

    def __init__(
        self, ops: Ops, source: WeightSource, config: VisionConfig, prefix: str, positions: Int32, normed: bool = True
    ) -> None:
        self.ops, self.config = ops, config
        c = config
        self.patch_values = c.num_channels * c.patch_size**2
        at, is_clip = f"{prefix}.embeddings", c.class_row
        self.embed = Dense(ops, FlatSource(source), {f"{at}.patch_embedding": c.hidden_size}, self.patch_values, not is_clip)
        table = source.tensor(f"{at}.position_embedding.weight").dequantize()[positions]
        if is_clip:
            table[0] += source.tensor(f"{at}.class_embedding").dequantize()
        self.positions = ops.array(table)  # [rows of a tile, hidden]
        self.tile_len = len(positions)
        self.num_patches = self.tile_len - int(is_clip)
        self.pre_norm = LayerNorm(ops, source, f"{prefix}.pre_layrnorm", c.norm_eps) if is_clip else None
        self.layers = [self._layer(source, f"{prefix}.encoder.layers.{i}") for i in range(c.num_layers)]
        self.norm = LayerNorm(ops, source, f"{prefix}.post_layernorm", c.norm_eps) if normed else None
        self.every_row = ops.array(np.arange(BLOCK, dtype=np.int32))

    def _layer(self, source: WeightSource, at: str) -> EncoderLayer:
        c, ops = self.config, self.ops
        norms = (
            LayerNorm(ops, source, f"{at}.layer_norm1", c.norm_eps),
            LayerNorm(ops, source, f"{at}.layer_norm2", c.norm_eps),
        )
        outputs = {f"{at}.self_attn.{name}_proj": c.hidden_size for name in "qkv"}
        qkv = Dense(ops, source, outputs, c.hidden_size)
        output = Dense(ops, source, {f"{at}.self_attn.out_proj": c.hidden_size}, c.hidden_size)
        mlp = PlainMLP(ops, source, f"{at}.mlp.fc1", f"{at}.mlp.fc2", c.hidden_size, c.intermediate_size, c.activation)
        return EncoderLayer(ops, c, norms, qkv, output, mlp)

    @property
    def weights(self) -> list[Weight]:
        return [*self.embed.weights, *(w for layer in self.layers for w in layer.weights)]

    def check(self, item: MediaItem) -> None:
        """Raises RequestError unless the pixels are whole tiles."""
        tiles = item.grid[0] if len(item.grid) == 3 else 0
        n = tiles * self.num_patches
        if tiles < 1 or item.shape != (n, self.patch_values) or len(item.pixels) != 4 * n * self.patch_values:
            raise RequestError(f"the {item.kind}'s pixels are not {tiles} whole tiles")

    def encode(self, items: Sequence[MediaItem]) -> Generator[None, None, Array]:
        """Yields between chunks; returns the rows of all tiles, [n, hidden], or where several layers' are taken, those side by
        side."""
        taken = self.config.taken_layers or (len(self.layers),)
        rows = yield from self._embed(items)
        kept: list[Array] = []
        for i, layer in enumerate(self.layers):
            if i in taken:
                kept.append(self._sum(rows, is_first=i == 0))
            yield from layer(rows, is_first=i == 0 and self.pre_norm is not None)
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            if self.norm is not None:
                self.norm(rows.x[a:b], rows.x[a:b], rows.count, rows.delta[a:b])
            else:
                self.ops.overlay(rows.x[a:b], rows.delta[a:b], self.every_row, rows.count, add=True)
        if not kept:
            return rows.x
        width = self.config.hidden_size
        wide = self.ops.empty((rows.size, width * len(taken)))
        for place, layer_idx in enumerate(taken):
            found = rows.x if layer_idx == len(self.layers) else kept[sorted(taken).index(layer_idx)]
            wide[:, place * width : (place + 1) * width] = found
        return wide

    def _embed(self, items: Sequence[MediaItem]) -> Generator[None, None, Rows]:
        """Patches become rows. Their own values stay in delta, unless a norm comes first."""
        pixels = self.ops.array(np.concatenate([pixels_of(item) for item in items]))
        tiles = len(pixels) // self.num_patches
        starts = np.arange(0, tiles * self.tile_len + 1, self.tile_len, dtype=np.int32)
        rows = make_rows(self.ops, self.config, tiles * self.tile_len, starts, starts)
        for tile in range(tiles):
            end = (tile + 1) * self.tile_len
            first, source = end - self.num_patches, tile * self.num_patches
            rows.x[end - self.tile_len : end] = self.positions
            rows.delta[end - self.tile_len : first] = 0.0
            for a, b in blocks(self.num_patches):
                rows.count[0] = b - a
                self.embed.of(pixels[source + a : source + b], rows.delta[first + a : first + b], rows.count)
            yield
        if self.pre_norm is not None:
            for a, b in blocks(rows.size):
                rows.count[0] = b - a
                self.pre_norm(rows.x[a:b], rows.x[a:b], rows.count, rows.delta[a:b])
        return rows

    def _sum(self, rows: Rows, is_first: bool) -> Array:
        """A copy of x with what is still to be added."""
        found = rows.x + 0
        if is_first and self.pre_norm is not None:
            return found
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.ops.overlay(found[a:b], rows.delta[a:b], self.every_row, rows.count, add=True)
        return found


def check_rows(item: MediaItem, rows: int) -> None:
    if item.num_rows != rows:
        raise RequestError(f"the {item.kind} makes {rows} rows, and {item.num_rows} ids stand for them")


class IdeficsVision:
    """SmolVLM and Idefics3. Patches of a tile come in the order of merged squares, so a square is a run of rows."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        self.ops, self.config = ops, config
        side, merge = config.image_size // config.patch_size, config.merge_size
        self.tower = SiglipTower(ops, source, config, "vision_model", squares_of(_grid_buckets(side), merge))
        self.wide = config.hidden_size * merge**2
        self.project = Dense(ops, source, {"connector.modality_projection.proj": config.out_size}, self.wide, bias=False)

    @property
    def weights(self) -> list[Weight]:
        return [*self.tower.weights, *self.project.weights]

    def check(self, item: MediaItem) -> None:
        self.tower.check(item)
        check_rows(item, item.shape[0] // self.config.merge_size**2)

    def cost(self, item: MediaItem) -> int:
        return item.shape[0]

    def encode(self, items: Sequence[MediaItem]) -> Encoding:
        rows = yield from self.tower.encode(items)
        squares = rows.reshape(-1, self.wide)
        count = self.ops.empty((1,), "int32")
        out = self.ops.empty((len(squares), self.config.out_size))
        for a, b in blocks(len(squares)):
            count[0] = b - a
            self.project.of(squares[a:b], out[a:b], count)
            yield
        return split_rows(out, [item.num_rows for item in items])


class GemmaVision:
    """Gemma 3 (arXiv 2503.19786): every tile becomes `out_rows` rows. Patches come row by row, squares are gathered here."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        self.ops, self.config = ops, config
        side, out_side = config.image_size // config.patch_size, int(config.out_rows**0.5)
        pool = side // out_side
        order = np.arange(side * side, dtype=np.int32).reshape(side, side)[: out_side * pool, : out_side * pool]
        self.squares = squares_of(order, pool).reshape(config.out_rows, pool * pool)
        self.share = np.full(self.squares.shape, 1 / pool**2, np.float32)
        self.tower = SiglipTower(ops, source, config, "vision_tower", np.arange(side * side, dtype=np.int32))
        name = "multi_modal_projector"
        self.norm = RootNorm(ops, source, f"{name}.mm_soft_emb_norm", config.norm_eps)
        self.weight = ops.pack([_transposed(source.tensor(f"{name}.mm_input_projection_weight"))])
        self.input = ops.activation(BLOCK, [self.weight])

    @property
    def weights(self) -> list[Weight]:
        return [*self.tower.weights, self.weight]

    def check(self, item: MediaItem) -> None:
        self.tower.check(item)
        check_rows(item, item.grid[0] * self.config.out_rows)

    def cost(self, item: MediaItem) -> int:
        return item.shape[0]

    def encode(self, items: Sequence[MediaItem]) -> Encoding:
        rows = yield from self.tower.encode(items)
        tiles = len(rows) // self.tower.tile_len
        n, count = tiles * self.config.out_rows, self.ops.empty((1,), "int32")
        firsts = np.arange(tiles, dtype=np.int32)[:, None, None] * self.tower.tile_len
        index = self.ops.array((firsts + self.squares).reshape(n, -1))
        weight = self.ops.array(np.tile(self.share, (tiles, 1)))
        pooled, out = self.ops.empty((n, self.config.hidden_size)), self.ops.empty((n, self.config.out_size))
        for a, b in blocks(n):
            count[0] = b - a
            self.ops.blend_rows(rows, index[a:b], weight[a:b], pooled[a:b], count)
            self.norm(pooled[a:b], self.input, count)
            self.ops.linear(self.weight, self.input, out[a:b], count)
            yield
        return split_rows(out, [item.num_rows for item in items])


def _transposed(tensor: HostTensor) -> HostTensor:
    if not tensor.is_dense:  # blocks go along rows
        return dense(tensor.name, tensor.dequantize().T)
    data = np.ascontiguousarray(tensor.data.T)
    return replace(tensor, shape=data.shape, data=data)


def split_rows(out: Array, lengths: Sequence[int]) -> list[Array]:
    """Copies: a view would keep the whole group alive."""
    found, start = [], 0
    for n in lengths:
        found.append(out[start : start + n] + 0)
        start += n
    return found


def _grid_buckets(side: int) -> Int32:
    """Position of each patch of a full tile: its own, but for the rounding of the original, which looks up fractions of the
    tile's side among boundaries in float32 (arXiv 2307.06304)."""
    boundaries = (np.arange(1, side, dtype=np.float64) * (1 / side)).astype(np.float32)
    fractions = np.minimum(np.arange(side, dtype=np.float32) * np.float32(1 / side), np.float32(1 - 1e-6))
    bucket = np.searchsorted(boundaries, fractions, side="right")
    grid: Int32 = (bucket[:, None] * side + bucket[None, :]).astype(np.int32)
    return grid


def squares_of(grid: Int32, merge: int) -> Int32:
    """The patches of a tile in the order of merged squares."""
    h, w = grid.shape
    order: Int32 = grid.reshape(h // merge, merge, w // merge, merge).transpose(0, 2, 1, 3).reshape(-1)
    return order
