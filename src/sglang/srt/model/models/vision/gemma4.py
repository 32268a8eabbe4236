"""The encoder of Gemma 4: images of any size, positions from a table of each axis and by rotation, and squares of patches that are
averaged before one linear layer. Inputs and outputs of its linear layers may have bounds.

Patches come row by row; each head's q and k are stored so that the pairs which turn together are half a head apart.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np

from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaItem
from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.kernels.ops import Array, Ops, Weight
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.models.vision.layers import (
    BLOCK,
    Dense,
    Encoding,
    Float32,
    Int32,
    RootNorm,
    Rows,
    blocks,
    make_rows,
    pixels_of,
)
from sglang.srt.model.models.vision.siglip import check_rows, split_rows, squares_of
from sglang.srt.model.quant.formats import HostTensor

BOUNDS = ("input_min", "input_max", "output_min", "output_max")


class TurnedSource:
    """A source in which the rows of some matrices, head by head, are in the order `order`."""

    def __init__(self, source: WeightSource, order: Int32, num_heads: int) -> None:
        self._source = source
        self._rows = (np.arange(num_heads)[:, None] * len(order) + order).reshape(-1)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        found = self._source.tensor(name, shape)
        return found.take_rows(self._rows) if name.endswith(".weight") else found

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def vector(self, name: str) -> Float32:
        return self._source.vector(name)


class BoundedDense:
    """out = clip(weight @ clip(x)), with bounds of the checkpoint where `config.bounded` says that there are any."""

    def __init__(self, ops: Ops, source: WeightSource, name: str, width: int, in_features: int, config: VisionConfig) -> None:
        self.dense = Dense(ops, source, {f"{name}.linear": width}, in_features, bias=False)
        self.bounds: tuple[float, ...] = ()
        if config.bounded:
            self.bounds = tuple(float(source.tensor(f"{name}.{bound}").dequantize().reshape(())) for bound in BOUNDS)

    @property
    def weights(self) -> list[Weight]:
        return self.dense.weights

    def __call__(self, x: Array, out: Array, rows: Array) -> None:
        if not self.bounds:
            self.dense.of(x, out, rows)
            return
        input_min, input_max, output_min, output_max = self.bounds
        self.dense.of(x.clip(input_min, input_max), out, rows)
        out[...] = out.clip(output_min, output_max)


class Gemma4VisionLayer:
    """x += after(attention(before(x))); x += after(mlp(before(x))). The last addition stays in `delta`. q, k and v have a norm of
    each head, v's without weights; scores are not scaled."""

    def __init__(self, ops: Ops, source: WeightSource, at: str, config: VisionConfig) -> None:
        c = self.config = config
        self.ops = ops
        width, inner, attn = c.hidden_size, c.intermediate_size, f"{at}.self_attn"
        order = head_order(c.head_dim)
        turned = TurnedSource(source, order, c.num_heads)
        self.before, self.after, self.before_mlp, self.after_mlp = (
            RootNorm(ops, source, f"{at}.{name}_layernorm", c.norm_eps)
            for name in ("input", "post_attention", "pre_feedforward", "post_feedforward")
        )
        self.qkv = [
            BoundedDense(ops, source if part == "v" else turned, f"{attn}.{part}_proj", width, width, c) for part in "qkv"
        ]
        self.output = BoundedDense(ops, source, f"{attn}.o_proj", width, width, c)
        self.gate, self.up = (BoundedDense(ops, source, f"{at}.mlp.{part}_proj", inner, width, c) for part in ("gate", "up"))
        self.down = BoundedDense(ops, source, f"{at}.mlp.down_proj", width, inner, c)
        assert c.activation != "quick_gelu"
        self.fn = c.activation
        norms = [np.tile(source.vector(f"{attn}.{part}_norm.weight")[order], (c.num_heads, 1)) for part in "qk"]
        self.head_scales = ops.array(np.concatenate(norms).astype(np.float32))
        self.ones = ops.array(np.ones(c.head_dim, np.float32))
        self.normed, self.middle = ops.empty((BLOCK, width)), ops.empty((BLOCK, 2 * inner))
        self.gated = ops.empty((BLOCK, inner))
        self.num_heads_of_rows = ops.empty((1,), "int32")

    @property
    def weights(self) -> list[Weight]:
        parts = (*self.qkv, self.output, self.gate, self.up, self.down)
        return [weight for part in parts for weight in part.weights]

    def __call__(self, rows: Rows, is_first: bool) -> Iterator[None]:
        c, width = self.config, self.config.hidden_size
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            normed = self.normed[: b - a]
            self.before(rows.x[a:b], normed, rows.count, None if is_first else rows.delta[a:b])
            for i, part in enumerate(self.qkv):
                part(normed, rows.qkv[a:b, i * width : (i + 1) * width], rows.count)
            self._norm_heads(rows.qkv[a:b])
            assert rows.cos is not None and rows.sin is not None
            turned = {"num_heads": 2 * c.num_heads, "head_dim": c.head_dim}
            self.ops.rotate(rows.qkv[a:b], rows.cos[a:b], rows.sin[a:b], rows.count, **turned)
            yield
        for a, b in blocks(rows.size):
            heads = {"num_heads": c.num_heads, "head_dim": c.head_dim}
            self.ops.segment_attention(rows.qkv, rows.starts, rows.mixed, begin=a, end=b, scale=1.0, **heads)
            yield
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            delta = rows.delta[a:b]
            self.output(rows.mixed[a:b], delta, rows.count)
            self.after(delta, delta, rows.count)
            self.before_mlp(rows.x[a:b], self.normed[: b - a], rows.count, delta)
            self._mlp(self.normed[: b - a], delta, rows.count)
            self.after_mlp(delta, delta, rows.count)
            yield

    def _norm_heads(self, qkv: Array) -> None:
        """Norms of all heads of [rows, 3 * num_heads * head_dim], in place."""
        c, count = self.config, 3 * self.config.num_heads
        heads = qkv.reshape(-1, c.head_dim)
        self.num_heads_of_rows[0] = len(heads)
        self.ops.rms_norm(heads, self.ones, heads, self.num_heads_of_rows, eps=c.norm_eps)
        by_row = qkv.reshape(-1, count, c.head_dim)
        by_row[:, : 2 * c.num_heads] *= self.head_scales

    def _mlp(self, x: Array, out: Array, rows: Array) -> None:
        inner, size = self.config.intermediate_size, x.shape[0]
        gate, up = self.middle[:size, :inner], self.middle[:size, inner:]
        self.gate(x, gate, rows)
        self.up(x, up, rows)
        self.ops.gate(gate, up, self.gated, rows, gate_fn=self.fn)
        self.down(self.gated[:size], out, rows)


class Gemma4Vision:
    """An Encoder."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        self.ops, self.config = ops, config
        c, at = config, "vision_tower"
        self.patch_values = c.num_channels * c.patch_size**2
        self.embed = Dense(ops, source, {f"{at}.patch_embedder.input_proj": c.hidden_size}, self.patch_values, bias=False)
        tables = source.tensor(f"{at}.patch_embedder.position_embedding_table").dequantize()
        self.positions = ops.array(tables.reshape(2 * c.num_positions, c.hidden_size))
        self.layers = [Gemma4VisionLayer(ops, source, f"{at}.encoder.layers.{i}", c) for i in range(c.num_layers)]
        self.standard: tuple[Array, ...] = ()
        if c.standardized:
            self.standard = tuple(ops.array(source.tensor(f"{at}.std_{part}").dequantize()) for part in ("bias", "scale"))
        self.ones = ops.array(np.ones(c.hidden_size, np.float32))
        self.project = Dense(ops, source, {"embed_vision.embedding_projection": c.out_size}, c.hidden_size, bias=False)

    @property
    def weights(self) -> list[Weight]:
        return [*self.embed.weights, *(w for layer in self.layers for w in layer.weights), *self.project.weights]

    def check(self, item: MediaItem) -> None:
        side, most = self.config.merge_size, self.config.num_positions
        good = len(item.grid) == 3 and item.grid[0] == 1 and all(0 < n <= most and n % side == 0 for n in item.grid[1:])
        patches = item.grid[1] * item.grid[2] if good else -1
        if item.shape != (patches, self.patch_values) or len(item.pixels) != 4 * patches * self.patch_values:
            raise RequestError(f"the {item.kind}'s pixels do not fit its grid {list(item.grid)}")
        check_rows(item, patches // side**2)

    def cost(self, item: MediaItem) -> int:
        return item.shape[0]

    def encode(self, items: Sequence[MediaItem]) -> Encoding:
        pixels = self.ops.array(np.concatenate([pixels_of(item) for item in items]) * np.float32(2) - np.float32(1))
        starts = np.cumsum([0, *(item.shape[0] for item in items)]).astype(np.int32)
        places = np.concatenate([_places(item.grid[1], item.grid[2]) for item in items])
        rows = make_rows(self.ops, self.config, len(pixels), starts, starts, self._angles(places))
        index = self.ops.array(places + np.array([0, self.config.num_positions], np.int32))
        weight = self.ops.array(np.ones(places.shape, np.float32))
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.embed.of(pixels[a:b], rows.x[a:b], rows.count)
            self.ops.blend_rows(self.positions, index[a:b], weight[a:b], rows.delta[a:b], rows.count)
            yield
        for layer in self.layers:
            yield from layer(rows, is_first=False)
        out = yield from self._pool(rows, [item.grid for item in items], starts)
        return split_rows(out, [item.num_rows for item in items])

    def _pool(self, rows: Rows, grids: Sequence[Sequence[int]], starts: Int32) -> Generator[None, None, Array]:
        """Squares of patches become rows of the decoder's width."""
        c = self.config
        found = rows.x + rows.delta
        squares = [
            start + squares_of(np.arange(down * across, dtype=np.int32).reshape(down, across), c.merge_size)
            for start, (_, down, across) in zip(starts.tolist(), grids, strict=False)
        ]
        members = np.concatenate(squares).reshape(-1, c.merge_size**2)
        index = self.ops.array(members.astype(np.int32))
        weight = self.ops.array(np.full(members.shape, c.hidden_size**0.5 / c.merge_size**2, np.float32))
        pooled, out = self.ops.empty((len(members), c.hidden_size)), self.ops.empty((len(members), c.out_size))
        for a, b in blocks(len(members)):
            rows.count[0] = b - a
            part = pooled[a:b]
            self.ops.blend_rows(found, index[a:b], weight[a:b], part, rows.count)
            if self.standard:
                bias, scale = self.standard
                part[...] = (part - bias) * scale
            self.ops.rms_norm(part, self.ones, self.project.input, rows.count, eps=c.norm_eps)
            self.project(out[a:b], rows.count)
            yield
        return out

    def _angles(self, places: Int32) -> Float32:
        """Radians of each patch: the first half of a head's pairs turns by column, the second by row."""
        half = self.config.head_dim // 2
        freqs = 1 / self.config.rope_theta ** (np.arange(0, half, 2, dtype=np.float32) / np.float32(half))
        angles: Float32 = (places[:, :, None] * freqs).reshape(len(places), half).astype(np.float32)
        return angles


def head_order(head_dim: int) -> Int32:
    """Where a head's values come from. In the checkpoint each axis has a half of the head, and turns pairs within it."""
    quarters = np.arange(head_dim, dtype=np.int32).reshape(4, head_dim // 4)
    return quarters[[0, 2, 1, 3]].reshape(-1)


def _places(down: int, across: int) -> Int32:
    """(column, row) of each patch of an image, row by row."""
    row, column = np.divmod(np.arange(down * across, dtype=np.int32), np.int32(across))
    return np.stack([column, row], axis=1)
