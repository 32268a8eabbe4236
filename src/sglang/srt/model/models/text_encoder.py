"""Encoders of texts (BERT, arXiv 1810.04805, and what came of it): bidirectional attention over each text.

    x = norm(word + position + type), then the layers, post-norm or pre-norm (weights/families/encoders.py)

Ops are called one by one on blocks of rows, as for encoders of images: each row is computed alone or among its own text, so
results are batch-invariant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.ops import Activation, Array, Ops, Weight
from sglang.srt.model.layers.rope import rope_tables
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import RopeConfig
from sglang.srt.model.models.vision.layers import BLOCK, Dense, blocks
from sglang.srt.model.quant.formats import HostTensor, dense
from sglang.srt.model.weights.families.encoders import MAX_REACH, EncoderConfig, EncoderNames
from sglang.srt.model.weights.tensor_source import TensorSource

Float32 = npt.NDArray[np.float32]


class EncoderSource:
    """A layers.source.WeightSource over the tensors of a file or folder; names with or without the prefix of models with a head."""

    def __init__(self, source: TensorSource, config: EncoderConfig) -> None:
        self._source = source
        self._stored = {_modern(name.removeprefix(config.prefix)): name for name in self._source.names}

    def has(self, name: str) -> bool:
        return name in self._stored

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        if name not in self._stored:
            raise ModelError(f"{self._source.path} lacks the tensor {name!r} that its config asks for")
        tensor = self._source.read(self._stored[name]).packable()
        if shape is not None and tensor.shape != shape:
            raise ModelError(
                f"{self._source.path}: tensor {name!r} has shape {list(tensor.shape)}, and the config makes it {list(shape)}"
            )
        return tensor

    def vector(self, name: str) -> Float32:
        return np.ascontiguousarray(self.tensor(name).dequantize())


def _modern(name: str) -> str:
    """Files of the first BERTs call the weights of norms after their letters."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


@dataclass
class Rows:
    """The working arrays of one batch of texts; text s is rows starts[s] .. starts[s + 1] - 1."""

    x: Array  # [n, hidden]
    delta: Array  # [n, hidden], in pre-norm models still to be added to x
    mixed: Array  # [n, hidden]
    qkv: Array  # [n, 3 * hidden]
    count: Array  # [1]
    starts: Array  # [texts + 1]
    turns: tuple[Array, Array] | None  # cos and sin of each row, [n, head_dim / 2]
    local_turns: tuple[Array, Array] | None  # those of layers with a window

    @property
    def size(self) -> int:
        return int(self.x.shape[0])


class EncoderNorm:
    """Adds `delta` to x first, in place, if it is given."""

    def __init__(self, ops: Ops, source: WeightSource, name: str, config: EncoderConfig) -> None:
        self.ops, self.eps = ops, config.norm_eps
        self.weight = ops.array(source.tensor(f"{name}.weight", (config.hidden_size,)).dequantize())
        bias = source.tensor(f"{name}.bias", (config.hidden_size,)).dequantize() if config.has_norm_bias else None
        self.bias = ops.array(np.zeros(config.hidden_size, np.float32) if bias is None else bias)

    def __call__(self, x: Array, out: Array | Activation, rows: Array, delta: Array | None = None) -> None:
        self.ops.layer_norm(x, self.weight, self.bias, out, rows, eps=self.eps, delta=delta)


class SelfAttention:
    """Every row of a text looks at all of them, or at those within the window. `bias`: by distance."""

    def __init__(
        self,
        ops: Ops,
        source: WeightSource,
        at: str,
        names: EncoderNames,
        config: EncoderConfig,
        window: int,
        bias: Array | None,
    ) -> None:
        self.ops, self.window, self.bias = ops, window, bias
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        width = config.hidden_size
        size = 3 * width // len(names.qkv)
        self.qkv = Dense(ops, source, {f"{at}{name}": size for name in names.qkv}, width, config.biases[0])
        self.output = Dense(ops, source, {f"{at}{names.output}": width}, width, config.biases[1])

    @property
    def weights(self) -> list[Weight]:
        return [*self.qkv.weights, *self.output.weights]

    def attend(self, rows: Rows) -> None:
        """rows.qkv -> rows.mixed."""
        turns = rows.local_turns if self.window and rows.local_turns is not None else rows.turns
        if turns is not None:
            rows.count[0] = rows.size
            self.ops.rotate(rows.qkv, *turns, rows.count, num_heads=2 * self.num_heads, head_dim=self.head_dim)
        self.ops.segment_attention(
            rows.qkv, rows.starts, rows.mixed, begin=0, end=rows.size, num_heads=self.num_heads, head_dim=self.head_dim,
            scale=self.head_dim**-0.5, window=self.window, bias=self.bias,
        )  # fmt: skip


class FeedForward:
    """second(f(first x)), or gated: second(f(gate x) * up x)."""

    def __init__(self, ops: Ops, source: WeightSource, at: str, names: EncoderNames, config: EncoderConfig) -> None:
        self.ops, self.fn, self.is_gated = ops, config.activation, config.is_gated
        inner, total = config.intermediate_size, config.intermediate_size * (2 if config.is_gated else 1)
        size = total // len(names.first)
        self.first = Dense(ops, source, {f"{at}{name}": size for name in names.first}, config.hidden_size, config.biases[2])
        self.second = Dense(ops, source, {f"{at}{names.second}": config.hidden_size}, inner, config.biases[3])
        self.middle = ops.empty((BLOCK, total))
        halves = self.middle[:, :inner], self.middle[:, inner:]
        self.gate, self.up = reversed(halves) if names.up_first else halves

    @property
    def weights(self) -> list[Weight]:
        return [*self.first.weights, *self.second.weights]

    @property
    def input(self) -> Activation:
        return self.first.input

    def __call__(self, out: Array, rows: Array) -> None:
        self.first(self.middle, rows)
        if self.is_gated:
            assert self.fn in ("silu", "gelu", "gelu_tanh")
            self.ops.gate(self.gate, self.up, self.second.input, rows, gate_fn=self.fn)
        else:
            self.ops.activate(self.middle, self.second.input, rows, fn=self.fn)
        self.second(out, rows)


class EncoderLayer:
    """Either order of norms. In pre-norm models the first layer's attention reads x as it is: the embeddings' norm was before."""

    def __init__(
        self, ops: Ops, source: WeightSource, names: EncoderNames, index: int, config: EncoderConfig, bias: Array | None
    ) -> None:
        self.ops, at = ops, f"{names.layer}{index}."
        window = config.window if config.windowed_layers and config.windowed_layers[index] else 0
        self.attention = SelfAttention(ops, source, at, names, config, window, bias)
        self.mlp = FeedForward(ops, source, at, names, config)
        self.is_pre_norm = config.is_pre_norm
        skips = config.is_pre_norm and index == 0
        self.norm1 = None if skips else EncoderNorm(ops, source, f"{at}{names.norms[0]}", config)
        self.norm2 = EncoderNorm(ops, source, f"{at}{names.norms[1]}", config)

    @property
    def weights(self) -> list[Weight]:
        return [*self.attention.weights, *self.mlp.weights]

    def __call__(self, rows: Rows) -> None:
        attention = self.attention
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            if self.is_pre_norm and self.norm1 is not None:
                self.norm1(rows.x[a:b], attention.qkv.input, rows.count, rows.delta[a:b])
                attention.qkv(rows.qkv[a:b], rows.count)
            else:
                attention.qkv.of(rows.x[a:b], rows.qkv[a:b], rows.count)
        attention.attend(rows)
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            x, delta, middle = rows.x[a:b], rows.delta[a:b], rows.mixed[a:b]
            attention.output.of(middle, delta, rows.count)
            if self.is_pre_norm:
                self.norm2(x, self.mlp.input, rows.count, delta)
                self.mlp(delta, rows.count)
                continue
            assert self.norm1 is not None
            self.norm1(x, middle, rows.count, delta)
            self.ops.store(middle, self.mlp.input, rows.count)
            self.mlp(delta, rows.count)
            self.norm2(middle, x, rows.count, delta)


class TextEncoder:
    """`encode` gives the last layer's rows of texts that are computed together."""

    def __init__(self, ops: Ops, source: EncoderSource, config: EncoderConfig) -> None:
        self.ops, self.config = ops, config
        names, width = config.names, config.hidden_size
        self.words = ops.pack([source.tensor(f"{names.words}.weight", (config.vocab_size, width))])
        places = _places(source, names, config)
        self.places = None if places is None else ops.pack([dense("places", places)])
        self.norm = EncoderNorm(ops, source, names.norm, config)
        bias = ops.array(_distances(source, names, config)) if config.num_buckets else None
        self.layers = [EncoderLayer(ops, source, names, i, config, bias) for i in range(config.num_layers)]
        self.last_norm = EncoderNorm(ops, source, names.last_norm, config) if names.last_norm else None
        self.tables = [_tables(rope, config) for rope in (config.rope, config.local_rope)]

    @property
    def weights(self) -> list[Weight]:
        ends = [self.words, *([] if self.places is None else [self.places])]
        return [*ends, *(w for layer in self.layers for w in layer.weights)]

    def encode(self, texts: Sequence[Sequence[int]], first_lens: Sequence[int] = ()) -> Array:
        """[all tokens, hidden], the texts one after the other. `first_lens`: where the second text of each pair begins, 0 for a text
        alone."""
        ops, width = self.ops, self.config.hidden_size
        lengths = [len(text) for text in texts]
        n = sum(lengths)
        at = np.concatenate([np.arange(size, dtype=np.int32) for size in lengths])
        turns, local_turns = (
            None if table is None else (ops.array(table[0][at]), ops.array(table[1][at])) for table in self.tables
        )
        rows = Rows(
            ops.empty((n, width)), ops.empty((n, width)), ops.empty((n, width)), ops.empty((n, 3 * width)),
            ops.empty((1,), "int32"), ops.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)), turns, local_turns,
        )  # fmt: skip
        ids = ops.array(np.concatenate([np.asarray(text, dtype=np.int32) for text in texts]))
        rows.count[0] = n
        ops.embedding(self.words, ids, rows.mixed, rows.count)
        if self.places is not None:
            places = self._place_ids(at, lengths, first_lens)
            ops.embedding(self.places, ops.array(places), rows.delta, rows.count)
        self.norm(rows.mixed, rows.x, rows.count, None if self.places is None else rows.delta)
        for layer in self.layers:
            layer(rows)
        if self.last_norm is None:
            return rows.x
        rows.count[0] = n
        self.last_norm(rows.x, rows.mixed, rows.count, rows.delta if self.config.is_pre_norm else None)
        return rows.mixed

    def _place_ids(self, at: npt.NDArray[np.int32], lengths: list[int], first_lens: Sequence[int]) -> npt.NDArray[np.int32]:
        """Rows of the table of positions and types."""
        size = self.config.context_len if self.has_positions else 1
        ids = at if self.has_positions else np.zeros_like(at)
        if self.config.num_labels and self.config.num_types > 1 and any(first_lens):
            ends = np.repeat([first or length for first, length in zip(first_lens, lengths, strict=True)], lengths)
            ids = ids + np.where(at < ends, 0, size)
        return ids.astype(np.int32)

    @property
    def has_positions(self) -> bool:
        return self.config.rope is None


def _places(source: EncoderSource, names: EncoderNames, config: EncoderConfig) -> Float32 | None:
    """The sum of position and type embeddings, added to the words'. There is one text at a time unless pairs are judged, so
    only those models have rows for the second type, behind the others."""
    width, num = config.hidden_size, config.context_len + config.first_position
    positions = types = None
    if names.positions:
        table = source.tensor(f"{names.positions}.weight", (num, width)).dequantize()
        positions = table[config.first_position :]
    if names.types and config.num_types:
        types = source.tensor(f"{names.types}.weight", (config.num_types, width)).dequantize()
        types = types[: 2 if config.num_labels else 1]
    if types is None:
        return None if positions is None else np.ascontiguousarray(positions)
    return np.ascontiguousarray(types if positions is None else np.concatenate([positions + row for row in types[:, None]]))


def _distances(source: EncoderSource, names: EncoderNames, config: EncoderConfig) -> Float32:
    """[num_heads, 2 * MAX_REACH + 1], the bias of each distance. Small distances have a bias each, larger ones share them by their
    logarithm; half of the biases are for what stands behind (T5, arXiv 1910.10683)."""
    table = source.tensor(f"{names.distances}.weight", (config.num_buckets, config.num_heads)).dequantize()
    half = config.num_buckets // 2
    exact = half // 2
    away = np.arange(-MAX_REACH, MAX_REACH + 1)
    size = np.abs(away)
    steps = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(MAX_REACH / exact))
    far = exact + (steps * (half - exact)).astype(np.int64)
    bucket = np.where(size < exact, size, np.minimum(far, half - 1)) + np.where(away > 0, half, 0)
    return np.ascontiguousarray(table[bucket].T)


def _tables(rope: RopeConfig | None, config: EncoderConfig) -> tuple[Float32, Float32] | None:
    return None if rope is None else rope_tables(rope, config.context_len)
