"""The encoder of Llama 3.2 Vision (arXiv 2407.21783, section 7): tiles that attend to each other, and the k and v
that each cross-attention layer of the decoder reads.

    tiles -> patches, a class row for each tile, positions -> local layers -> global layers -> [last | some middle ones] -> projected
    projected rows -> k and v of each of the decoder's cross-attention layers, once for an image

The encoder always gets `max_tiles` tiles; those that the image does not fill are zero, and each tile is padded with zero rows to a
multiple of eight. Padding attends only to the image's rows, but the image's rows attend to padding too (the model was trained so).
The image's rows come first here, so that both are runs:

    rows      [ tile 0 | tile 1 | ... of the image ][ tiles it does not fill, padding ]
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaItem
from sglang.srt.model.configs.vision_config import CrossConfig, VisionConfig
from sglang.srt.model.kernels.ops import Array, Ops, Weight
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.models.vision.layers import (
    BLOCK,
    Dense,
    EncoderLayer,
    Encoding,
    FlatSource,
    Float32,
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

FILLED_TO = 8
PRE_NORM_EPS = 1e-5
"""of the norms around the local layers, which the config does not name"""


@dataclass(frozen=True)
class CrossRows:
    """The embedding of an image (EncodeJob.embedding): the row that stands in the prompt, which is what indexing gives, and k and
    v for the decoder's cross-attention layers."""

    name: bytes
    row: Array  # [1, hidden]
    kv: Array  # [rows, layers, 2, num_kv_heads * head_dim]

    def __getitem__(self, rows: slice) -> Array:
        return self.row[rows]

    @property
    def nbytes(self) -> int:
        return int(self.row.nbytes + self.kv.nbytes)


class GatedSource:
    """A source in which some matrices and their biases are multiplied by the tanh of a learnt gate."""

    def __init__(self, source: WeightSource, gates: dict[str, str]) -> None:
        self._source = source
        self._gates = gates

    def _gate(self, name: str) -> np.float32 | None:
        gate = self._gates.get(name.rsplit(".", 1)[0])
        return None if gate is None else np.tanh(self._source.tensor(gate).dequantize()[0])

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        found, gate = self._source.tensor(name, shape), self._gate(name)
        return found if gate is None else dense(name, found.dequantize() * gate)

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def vector(self, name: str) -> Float32:
        found, gate = self._source.vector(name), self._gate(name)
        return found if gate is None else found * gate


class TileLayer(EncoderLayer):
    """Rows from `num_seen` on (rows.wide[1]) see only those before it; those see all."""

    def attend(self, rows: Rows) -> Iterator[None]:
        c, n = self.config, rows.size
        heads = {"num_heads": c.num_heads, "head_dim": c.head_dim, "scale": c.head_dim**-0.5}
        seen, width = int(rows.wide[1]), c.hidden_size
        for a, b in blocks(seen):
            self.ops.segment_attention(rows.qkv, rows.starts, rows.mixed, begin=a, end=b, **heads)
            yield
        # the others ask in the place of the first ones, where k and v are those they may see
        asked, answers = rows.qkv[:seen] + 0, self.ops.empty((seen, width))
        for a, b in blocks(n - seen, min(BLOCK, seen)):
            asked[: b - a, :width] = rows.qkv[seen + a : seen + b, :width]
            self.ops.segment_attention(asked, rows.wide, answers, begin=0, end=b - a, **heads)
            rows.mixed[seen + a : seen + b] = answers[: b - a]
            yield


class CrossReader:
    """Makes k (normed by head) and v of an image's rows for one cross-attention layer of the decoder."""

    def __init__(self, ops: Ops, source: WeightSource, config: CrossConfig, layer: int, in_features: int) -> None:
        self.ops, self.width, self.num_heads = ops, config.num_kv_heads * config.head_dim, config.num_kv_heads
        at = f"model.layers.{layer}.cross_attn"
        self.k = Dense(ops, source, {f"{at}.k_proj": self.width}, in_features, bias=False)
        self.v = Dense(ops, source, {f"{at}.v_proj": self.width}, in_features, bias=False)
        self.norm = RootNorm(ops, source, f"{at}.k_norm", config.norm_eps)
        self.raw, self.normed = ops.empty((BLOCK, self.width)), ops.empty((BLOCK, self.width))
        self.count = ops.empty((1,), "int32")

    @property
    def weights(self) -> list[Weight]:
        return [*self.k.weights, *self.v.weights]

    def __call__(self, rows: Array, out: Array, count: Array) -> None:
        """rows: [n, hidden], n at most BLOCK; out: [n, 2, width]."""
        n = rows.shape[0]
        self.k.of(rows, self.raw, count)
        self.count[0] = n * self.num_heads
        by_head = (BLOCK * self.num_heads, -1)
        self.norm(self.raw.reshape(by_head), self.normed.reshape(by_head), self.count)
        out[:, 0] = self.normed[:n]
        self.v.of(rows, self.raw, count)
        out[:, 1] = self.raw[:n]


class MllamaVision:
    """An Encoder."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        assert config.cross_attention is not None
        self.ops, self.config, self.cross_attention = ops, config, config.cross_attention
        c, at = config, "vision_model"
        self.num_patches = (c.image_size // c.patch_size) ** 2
        self.tile_len = self.num_patches + 1
        self.filling = -self.tile_len % FILLED_TO
        self.patch_values = c.num_channels * c.patch_size**2
        patches = {f"{at}.patch_embedding": c.hidden_size}
        self.embed = Dense(ops, FlatSource(source), patches, self.patch_values, bias=False)
        self.tables = Tables(source, config, self.tile_len)
        self.pre_norm = LayerNorm(ops, source, f"{at}.layernorm_pre", PRE_NORM_EPS)
        self.post_norm = LayerNorm(ops, source, f"{at}.layernorm_post", PRE_NORM_EPS)
        self.local = [self._layer(source, f"{at}.transformer.layers.{i}") for i in range(c.num_layers)]
        self.wide = [
            self._gated(source, f"{at}.global_transformer.layers.{i}") for i in range(self.cross_attention.num_global_layers)
        ]
        self.num_parts = 1 + len(self.cross_attention.taken_layers)
        name = "multi_modal_projector"
        ordered = OrderedSource(source, f"{name}.weight", c.hidden_size, self.num_parts - 1)
        self.project = Dense(ops, ordered, {name: c.out_size}, c.hidden_size * self.num_parts)
        self.readers = [
            CrossReader(ops, source, self.cross_attention, layer, c.out_size) for layer in self.cross_attention.layers
        ]
        table = source.tensor("model.embed_tokens.weight")
        self.row = ops.array(table.slice_rows(c.image_token_id, c.image_token_id + 1).dequantize())
        self.every_row = ops.array(np.arange(BLOCK, dtype=np.int32))

    def _layer(self, source: WeightSource, at: str) -> EncoderLayer:
        c, ops = self.config, self.ops
        norms = (
            LayerNorm(ops, source, f"{at}.input_layernorm", c.norm_eps),
            LayerNorm(ops, source, f"{at}.post_attention_layernorm", c.norm_eps),
        )
        qkv = Dense(ops, source, {f"{at}.self_attn.{part}_proj": c.hidden_size for part in "qkv"}, c.hidden_size, bias=False)
        output = Dense(ops, source, {f"{at}.self_attn.o_proj": c.hidden_size}, c.hidden_size, bias=False)
        mlp = PlainMLP(ops, source, f"{at}.mlp.fc1", f"{at}.mlp.fc2", c.hidden_size, c.intermediate_size, c.activation)
        return TileLayer(ops, c, norms, qkv, output, mlp)

    def _gated(self, source: WeightSource, at: str) -> EncoderLayer:
        gates = {f"{at}.self_attn.o_proj": f"{at}.gate_attn", f"{at}.mlp.fc2": f"{at}.gate_ffn"}
        return self._layer(GatedSource(source, gates), at)

    @property
    def weights(self) -> list[Weight]:
        layers = [weight for layer in (*self.local, *self.wide) for weight in layer.weights]
        read = [weight for reader in self.readers for weight in reader.weights]
        return [*self.embed.weights, *layers, *self.project.weights, *read]

    def check(self, item: MediaItem) -> None:
        tiles = item.grid[0] if len(item.grid) == 3 else 0
        shape = (tiles * self.num_patches, self.patch_values)
        fits = item.shape == shape and len(item.pixels) == 4 * shape[0] * shape[1]
        if not 0 < tiles <= self.cross_attention.max_tiles or not fits:
            raise RequestError(f"the {item.kind}'s pixels are not 1 to {self.cross_attention.max_tiles} whole tiles")
        layout = item.facts.get("shape")
        if type(layout) is not int or not 0 < layout <= self.cross_attention.num_shapes:
            raise RequestError(f"the {item.kind}'s tiles have no known layout")
        if item.num_rows != 1:
            raise RequestError(f"one id stands for the {item.kind}, and {item.num_rows} do here")

    def cost(self, item: MediaItem) -> int:
        return self.cross_attention.max_tiles * (self.tile_len + self.filling)

    def encode(self, items: Sequence[MediaItem]) -> Encoding:
        found = []
        for item in items:
            rows = yield from self._image(item)
            kv = self.ops.empty((rows.shape[0], len(self.readers), 2, self.readers[0].width))
            count = self.ops.empty((1,), "int32")
            for a, b in blocks(rows.shape[0]):
                count[0] = b - a
                for i, reader in enumerate(self.readers):
                    reader(rows[a:b], kv[a:b, i], count)
                    yield
            found.append(CrossRows(item.mm_hash, self.row, kv))
        return found

    def _image(self, item: MediaItem) -> Generator[None, None, Array]:
        """The projected rows of the image's tiles, [tiles * tile_len, out_size]."""
        shape = item.facts["shape"]
        seen = item.grid[0] * self.tile_len
        rows = yield from self._embedded(item, shape, seen)
        shown = self.ops.empty((seen, self.num_parts, self.config.hidden_size))
        for i, layer in enumerate(self.local):
            yield from layer(rows, is_first=i == 0)
            if i in self.cross_attention.taken_layers:
                self._take(rows, shown[:, 1 + self.cross_attention.taken_layers.index(i)], seen)
        tile_of = self.ops.array(self._tile_of(item.grid[0]))
        after = self.ops.array(self.tables.after(shape))
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.post_norm(rows.x[a:b], rows.x[a:b], rows.count, rows.delta[a:b])
            self.ops.overlay(rows.x[a:b], after, tile_of[a:b], rows.count, add=True)
            yield
        for i, layer in enumerate(self.wide):
            yield from layer(rows, is_first=i == 0)
        self._take(rows, shown[:, 0], seen)
        wide, out = shown.reshape(seen, -1), self.ops.empty((seen, self.config.out_size))
        for a, b in blocks(seen):
            rows.count[0] = b - a
            self.project.of(wide[a:b], out[a:b], rows.count)
            yield
        return out

    def _embedded(self, item: MediaItem, shape: int, seen: int) -> Generator[None, None, Rows]:
        tiles, length = self.cross_attention.max_tiles, self.tile_len
        n = tiles * (length + self.filling)
        rows = make_rows(self.ops, self.config, n, np.array([0, n], np.int32), np.array([0, seen], np.int32))
        pixels = self.ops.array(pixels_of(item))
        rows.x[: tiles * length] = self.ops.array(self.tables.before(shape))
        for tile in range(item.grid[0]):
            for a, b in blocks(self.num_patches):
                rows.count[0] = b - a
                at = tile * length + 1
                patches = pixels[tile * self.num_patches + a : tile * self.num_patches + b]
                self.embed.of(patches, rows.delta[at + a : at + b], rows.count)
            yield
        for a, b in blocks(tiles * length):  # fillings stay zero
            rows.count[0] = b - a
            self.pre_norm(rows.x[a:b], rows.x[a:b], rows.count, rows.delta[a:b])
        return rows

    def _take(self, rows: Rows, out: Array, seen: int) -> None:
        """out = the layer's output."""
        for a, b in blocks(seen):
            rows.count[0] = b - a
            part = rows.x[a:b] + 0
            self.ops.overlay(part, rows.delta[a:b], self.every_row, rows.count, add=True)
            out[a:b] = part

    def _tile_of(self, tiles: int) -> Int32:
        every = np.arange(self.cross_attention.max_tiles, dtype=np.int32)
        return np.concatenate([np.repeat(every, self.tile_len), np.repeat(every, self.filling)])


class OrderedSource:
    """The projector's columns: the file has the last layer's, then of each feature those of all taken layers; here the taken
    layers follow one another."""

    def __init__(self, source: WeightSource, name: str, width: int, taken: int) -> None:
        self._source = source
        self._name = name
        middle = np.arange(width * taken).reshape(width, taken).T.reshape(-1)
        self._order = np.concatenate([np.arange(width), width + middle])

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        found = self._source.tensor(name, shape)
        return dense(name, found.dequantize()[:, self._order]) if name == self._name else found

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def vector(self, name: str) -> Float32:
        return self._source.vector(name)


class Tables:
    """Embeddings added to rows by position and by the arrangement of the tiles."""

    def __init__(self, source: WeightSource, config: VisionConfig, tile_len: int) -> None:
        assert config.cross_attention is not None
        self._tiles, self._len, self._width = config.cross_attention.max_tiles, tile_len, config.hidden_size
        at = "vision_model"

        def gate(name: str) -> np.float32:
            value: np.float32 = np.tanh(source.tensor(f"{at}.{name}.gate").dequantize()[0])
            return value

        places = f"{at}.gated_positional_embedding"
        self._gate = gate("gated_positional_embedding")
        self._class = source.tensor(f"{at}.class_embedding").dequantize()
        self._places = source.tensor(f"{places}.embedding").dequantize() * (1 - self._gate)
        self._by_tile = source.tensor(f"{places}.tile_embedding.weight")
        self._pre, self._post = (
            source.tensor(f"{at}.{name}_tile_positional_embedding.embedding.weight").dequantize()
            * gate(f"{name}_tile_positional_embedding")
            for name in ("pre", "post")
        )

    def before(self, shape: int) -> Float32:
        """[max_tiles * tile_len, hidden], what rows begin with but for the patches."""
        found = (
            self._by_tile.slice_rows(shape, shape + 1).dequantize().reshape(self._tiles, self._len, self._width) * self._gate
        )
        found = found + self._places
        found[:, 0] += self._class
        found[:, 1:] += self._pre[shape].reshape(self._tiles, 1, self._width)
        return np.ascontiguousarray(found.reshape(-1, self._width), dtype=np.float32)

    def after(self, shape: int) -> Float32:
        """[max_tiles, hidden], what is added between the local and the global layers."""
        return np.ascontiguousarray(self._post[shape].reshape(self._tiles, self._width), dtype=np.float32)
