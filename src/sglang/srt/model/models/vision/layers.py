"""Building blocks of encoders. Unlike the decoder's steps, encodings are not recorded: images differ in size, are rare, and take long,
so ops are called one by one, on blocks of at most BLOCK rows. Between blocks the caller may do other work.

Every op computes each row alone, or with the rows of its own segment, so results are batch-invariant.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sglang.srt.media_item import MediaItem
from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.kernels.ops import Activation, Activator, Array, Ops, Weight
from sglang.srt.model.layers.linear import Linear
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.quant.formats import HostTensor

BLOCK = 256

Encoding = Generator[None, None, list[Array]]
"""Yields between chunks of work; returns the rows of each item."""

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


class Encoder(Protocol):
    """One family's encoder."""

    config: VisionConfig

    @property
    def weights(self) -> list[Weight]: ...

    def check(self, item: MediaItem) -> None:
        """Raises RequestError for an item whose arrays do not fit together."""
        ...

    def cost(self, item: MediaItem) -> int:
        """Patches of an item: what it takes to encode it."""
        ...

    def encode(self, items: Sequence[MediaItem]) -> Encoding: ...


def blocks(n: int, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """(begin, end) of each block of n rows."""
    for begin in range(0, n, size):
        yield begin, min(begin + size, n)


def pixels_of(item: MediaItem) -> Float32:
    """The item's pixels as an array."""
    return np.frombuffer(item.pixels, np.float32).reshape(item.shape)


class Norm(Protocol):
    def __call__(self, x: Array, out: Array | Activation, rows: Array, delta: Array | None = None) -> None: ...


class LayerNorm:
    """Adds `delta` to x first, in place, if it is given (arXiv 1607.06450)."""

    def __init__(self, ops: Ops, source: WeightSource, name: str, eps: float) -> None:
        self.ops = ops
        # not `vector`, which adds what the decoder's norms have added (gemma)
        self.weight, self.bias = (ops.array(source.tensor(f"{name}.{part}").dequantize()) for part in ("weight", "bias"))
        self.eps = eps

    def __call__(self, x: Array, out: Array | Activation, rows: Array, delta: Array | None = None) -> None:
        self.ops.layer_norm(x, self.weight, self.bias, out, rows, eps=self.eps, delta=delta)


class RootNorm:
    """The decoder's RMSNorm with the same signature."""

    def __init__(self, ops: Ops, source: WeightSource, name: str, eps: float) -> None:
        self.ops = ops
        self.weight = ops.array(source.vector(f"{name}.weight"))
        self.eps = eps

    def __call__(self, x: Array, out: Array | Activation, rows: Array, delta: Array | None = None) -> None:
        self.ops.rms_norm(x, self.weight, out, rows, eps=self.eps, delta=delta)


class Dense:
    """A linear layer with the buffer its rows pass through: `reads` fills it, `__call__` multiplies."""

    def __init__(self, ops: Ops, source: WeightSource, outputs: dict[str, int], in_features: int, bias: bool = True) -> None:
        self.ops = ops
        self.linear = Linear(ops, source, outputs, in_features, bias)
        self.input = ops.activation(BLOCK, self.linear.weights)
        self.width = sum(outputs.values())
        self.in_features: int = self.linear.weights[0].in_features

    @property
    def weights(self) -> list[Weight]:
        return self.linear.weights

    def __call__(self, out: Array, rows: Array) -> None:
        """out = weight @ input + bias, for the rows that were put into `input`."""
        self.linear(self.input, out, rows)

    def of(self, x: Array, out: Array, rows: Array) -> None:
        """The same for rows x."""
        self.ops.store(x, self.input, rows)
        self(out, rows)


class WiderSource:
    """A source in which matrices have rows of zeros below, and biases zeros behind: `rows` in all of those that are named."""

    def __init__(self, source: WeightSource, names: Collection[str], rows: int) -> None:
        self._source, self._names, self._rows = source, names, rows

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        if name.removesuffix(".weight") not in self._names:
            return self._source.tensor(name, shape)
        found = self._source.tensor(name)
        return found if found.shape[0] == self._rows else found.with_zero_rows(self._rows)

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def vector(self, name: str) -> Float32:
        found = self._source.vector(name)
        return np.pad(found, (0, self._rows - len(found))) if name.removesuffix(".bias") in self._names else found


class PlainMLP:
    """second @ fn(first @ x). What `second` reads may be wider than the model says (quantized rows are cut into groups): the values
    there are fn(0), which matrices of zeros multiply, and make no scale larger."""

    def __init__(self, ops: Ops, source: WeightSource, first: str, second: str, width: int, inner: int, fn: Activator) -> None:
        self.ops, self.fn = ops, fn
        self.second = Dense(ops, source, {second: width}, inner)
        inner = self.second.in_features
        self.first = Dense(ops, WiderSource(source, [first], inner), {first: inner}, width)
        self.middle = ops.empty((BLOCK, inner))

    @property
    def weights(self) -> list[Weight]:
        return [*self.first.weights, *self.second.weights]

    @property
    def input(self) -> Activation:
        return self.first.input

    def __call__(self, out: Array, rows: Array) -> None:
        self.first(self.middle, rows)
        self.ops.activate(self.middle, self.second.input, rows, fn=self.fn)
        self.second(out, rows)


class GatedMLP:
    """down @ (fn(gate @ x) * (up @ x))."""

    def __init__(self, ops: Ops, source: WeightSource, prefix: str, config: VisionConfig, bias: bool = True) -> None:
        self.ops = ops
        assert config.activation != "quick_gelu"
        self.fn = config.activation
        self.down = Dense(ops, source, {f"{prefix}.down_proj": config.hidden_size}, config.intermediate_size, bias)
        self.inner = self.down.in_features  # as in PlainMLP
        outputs = {f"{prefix}.gate_proj": self.inner, f"{prefix}.up_proj": self.inner}
        self.both = Dense(ops, WiderSource(source, list(outputs), self.inner), outputs, config.hidden_size, bias)
        self.middle = ops.empty((BLOCK, 2 * self.inner))

    @property
    def weights(self) -> list[Weight]:
        return [*self.both.weights, *self.down.weights]

    @property
    def input(self) -> Activation:
        return self.both.input

    def __call__(self, out: Array, rows: Array) -> None:
        self.both(self.middle, rows)
        gate, up = self.middle[:, : self.inner], self.middle[:, self.inner :]
        self.ops.gate(gate, up, self.down.input, rows, gate_fn=self.fn)
        self.down(out, rows)


@dataclass
class Rows:
    """The working arrays of one encoding. Segments cut the rows for attention; `wide` are those of the layers that see whole
    images. cos and sin are None for encoders with learnt positions."""

    x: Array  # [n, hidden]
    delta: Array  # [n, hidden], still to be added to x
    qkv: Array  # [n, 3 * hidden]
    mixed: Array  # [n, hidden]
    count: Array  # [1], rows of the current block
    starts: Array  # [segments + 1]
    wide: Array  # [images + 1]
    cos: Array | None = None  # [n, head_dim / 2]
    sin: Array | None = None

    @property
    def size(self) -> int:
        return int(self.x.shape[0])


def make_rows(ops: Ops, config: VisionConfig, n: int, starts: Int32, wide: Int32, angles: Float32 | None = None) -> Rows:
    """`angles`: [n, head_dim / 2] radians by which pairs turn, if positions are rotary."""
    cos = None if angles is None else ops.array(np.cos(angles, dtype=np.float32))
    sin = None if angles is None else ops.array(np.sin(angles, dtype=np.float32))
    return Rows(
        x=ops.empty((n, config.hidden_size)),
        delta=ops.empty((n, config.hidden_size)),
        qkv=ops.empty((n, 3 * config.hidden_size)),
        mixed=ops.empty((n, config.hidden_size)),
        count=ops.empty((1,), "int32"),
        starts=ops.array(starts),
        wide=ops.array(wide),
        cos=cos,
        sin=sin,
    )


class MLP(Protocol):
    @property
    def weights(self) -> list[Weight]: ...
    @property
    def input(self) -> Activation: ...
    def __call__(self, out: Array, rows: Array) -> None: ...


class EncoderLayer:
    """x += attention(norm(x)); x += mlp(norm(x)). The last addition stays in `delta`. `is_wide`: sees the whole image."""

    def __init__(
        self,
        ops: Ops,
        config: VisionConfig,
        norms: tuple[Norm, Norm],
        qkv: Dense,
        output: Dense,
        mlp: MLP,
        is_wide: bool = True,
    ) -> None:
        self.ops, self.config = ops, config
        self.norm1, self.norm2 = norms
        self.qkv, self.output, self.mlp = qkv, output, mlp
        self.is_wide = is_wide

    @property
    def weights(self) -> list[Weight]:
        return [*self.qkv.weights, *self.output.weights, *self.mlp.weights]

    def __call__(self, rows: Rows, is_first: bool) -> Iterator[None]:
        c, ops = self.config, self.ops
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.norm1(rows.x[a:b], self.qkv.input, rows.count, None if is_first else rows.delta[a:b])
            self.qkv(rows.qkv[a:b], rows.count)
            if rows.cos is not None:
                assert rows.sin is not None
                ops.rotate(
                    rows.qkv[a:b], rows.cos[a:b], rows.sin[a:b], rows.count, num_heads=2 * c.num_heads, head_dim=c.head_dim
                )
            yield
        yield from self.attend(rows)
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.output.of(rows.mixed[a:b], rows.delta[a:b], rows.count)
            self.norm2(rows.x[a:b], self.mlp.input, rows.count, rows.delta[a:b])
            self.mlp(rows.delta[a:b], rows.count)
            yield

    def attend(self, rows: Rows) -> Iterator[None]:
        """Attention from rows.qkv to rows.mixed."""
        c = self.config
        starts, heads = rows.wide if self.is_wide else rows.starts, {"num_heads": c.num_heads, "head_dim": c.head_dim}
        for a, b in blocks(rows.size):
            self.ops.segment_attention(rows.qkv, starts, rows.mixed, begin=a, end=b, scale=c.head_dim**-0.5, **heads)
            yield


def flat_matrix(tensor: HostTensor) -> HostTensor:
    """A convolution's kernel as a matrix: a patch that is flattened the same way times it is the convolution there."""
    rows = tensor.shape[0]
    data: npt.NDArray[Any] = tensor.data.reshape(rows, -1)
    return replace(tensor, shape=data.shape, data=data)


class FlatSource:
    """A source in which convolutions are matrices."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        tensor = self._source.tensor(name)
        return flat_matrix(tensor) if len(tensor.shape) > 2 else tensor

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def vector(self, name: str) -> Float32:
        return self._source.vector(name)
