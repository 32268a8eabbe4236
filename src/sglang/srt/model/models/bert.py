"""BERT encoders (arXiv 1810.04805), for embeddings: bidirectional attention over each text.

    x = norm(word + position + type)
    for each layer:  x = norm(x + attention(x));  x = norm(x + mlp(x))

Ops are called one by one on blocks of rows, as for encoders of images: each row is computed alone or among its own text, so
results are batch-invariant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.ops import Activator, Array, Ops, Weight
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.models.vision.layers import Dense, LayerNorm, PlainMLP, blocks
from sglang.srt.model.quant.formats import HostTensor, dense
from sglang.srt.model.weights.config_fields import MAX_EPS, MAX_LAYERS, MIN_EPS, Fields, read_json
from sglang.srt.model.weights.safetensors_reader import SafetensorsSource

CLASS_NAMES = ("BertModel",)
_ACTIVATIONS: dict[str, Activator] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}
_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
}

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BertConfig:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    context_len: int
    num_types: int
    norm_eps: float
    activation: Activator

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


def is_bert(folder: Path) -> bool:
    """Whether a model folder holds a BERT encoder."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    classes = read_json(path).get("architectures")
    return isinstance(classes, list) and any(name in CLASS_NAMES for name in classes)


def read_bert_config(folder: Path, overrides: Mapping[str, Any]) -> BertConfig:
    """Raises ModelError for a config that is damaged or asks for what is not done here."""
    fields = Fields(read_json(folder / "config.json"), folder / "config.json", _DEFAULTS, overrides)
    if fields.get("position_embedding_type") != "absolute":
        raise fields.bad("position_embedding_type", "must be absolute")
    config = BertConfig(
        vocab_size=fields.count("vocab_size"),
        hidden_size=fields.count("hidden_size"),
        num_layers=fields.count("num_hidden_layers", most=MAX_LAYERS),
        num_heads=fields.count("num_attention_heads"),
        intermediate_size=fields.count("intermediate_size"),
        context_len=fields.count("max_position_embeddings"),
        num_types=fields.count("type_vocab_size"),
        norm_eps=fields.number("layer_norm_eps", above=MIN_EPS, most=MAX_EPS),
        activation=fields.choice("hidden_act", _ACTIVATIONS),
    )
    if config.hidden_size % config.num_heads:
        raise fields.bad(
            "hidden_size", f"({config.hidden_size}) must be a multiple of num_attention_heads ({config.num_heads})"
        )
    return config


class BertSource:
    """A layers.source.WeightSource over a folder's safetensors; names with or without the prefix "bert."."""

    def __init__(self, folder: Path) -> None:
        self._source = SafetensorsSource(folder)
        self._names = {name.removeprefix("bert."): name for name in self._source.names}

    def has(self, name: str) -> bool:
        return name in self._names

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        if name not in self._names:
            raise ModelError(f"{self._source.path} lacks the tensor {name!r} that its config asks for")
        tensor = self._source.read(self._names[name])
        if shape is not None and tensor.shape != shape:
            raise ModelError(
                f"{self._source.path}: tensor {name!r} has shape {list(tensor.shape)}, and the config makes it {list(shape)}"
            )
        return tensor

    def vector(self, name: str) -> Float32:
        return np.ascontiguousarray(self.tensor(name).dequantise())


@dataclass
class Rows:
    """The working arrays of one batch of texts; text s is rows starts[s] .. starts[s + 1] - 1."""

    x: Array  # [n, hidden]
    delta: Array  # [n, hidden]
    mixed: Array  # [n, hidden]
    qkv: Array  # [n, 3 * hidden]
    count: Array  # [1]
    starts: Array  # [texts + 1]

    @property
    def size(self) -> int:
        return int(self.x.shape[0])


class BertLayer:
    def __init__(self, ops: Ops, source: WeightSource, at: str, config: BertConfig) -> None:
        self.ops, self.config = ops, config
        width, eps = config.hidden_size, config.norm_eps
        parts = {f"{at}.attention.self.{part}": width for part in ("query", "key", "value")}
        self.qkv = Dense(ops, source, parts, width)
        self.output = Dense(ops, source, {f"{at}.attention.output.dense": width}, width)
        self.norm1 = LayerNorm(ops, source, f"{at}.attention.output.LayerNorm", eps)
        first, second = f"{at}.intermediate.dense", f"{at}.output.dense"
        self.mlp = PlainMLP(ops, source, first, second, width, config.intermediate_size, config.activation)
        self.norm2 = LayerNorm(ops, source, f"{at}.output.LayerNorm", eps)

    @property
    def weights(self) -> list[Weight]:
        return [*self.qkv.weights, *self.output.weights, *self.mlp.weights]

    def __call__(self, rows: Rows) -> None:
        c, ops = self.config, self.ops
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            self.qkv.of(rows.x[a:b], rows.qkv[a:b], rows.count)
        ops.segment_attention(
            rows.qkv, rows.starts, rows.mixed, begin=0, end=rows.size, num_heads=c.num_heads, head_dim=c.head_dim,
            scale=c.head_dim**-0.5,
        )  # fmt: skip
        for a, b in blocks(rows.size):
            rows.count[0] = b - a
            x, delta, middle = rows.x[a:b], rows.delta[a:b], rows.mixed[a:b]
            self.output.of(middle, delta, rows.count)
            self.norm1(x, middle, rows.count, delta)
            ops.store(middle, self.mlp.input, rows.count)
            self.mlp(delta, rows.count)
            self.norm2(middle, x, rows.count, delta)


class Bert:
    """`encode` gives the last layer's rows of texts that are computed together."""

    def __init__(self, ops: Ops, source: WeightSource, config: BertConfig) -> None:
        self.ops, self.config = ops, config
        width = config.hidden_size
        self.words = ops.pack([source.tensor("embeddings.word_embeddings.weight", (config.vocab_size, width))])
        positions = source.tensor("embeddings.position_embeddings.weight", (config.context_len, width)).dequantise()
        types = source.tensor("embeddings.token_type_embeddings.weight", (config.num_types, width)).dequantise()
        # there is one text at a time here, so the type is always the first
        self.places = ops.pack([dense("positions", positions + types[:1])])
        self.norm = LayerNorm(ops, source, "embeddings.LayerNorm", config.norm_eps)
        self.layers = [BertLayer(ops, source, f"encoder.layer.{i}", config) for i in range(config.num_layers)]

    @property
    def weights(self) -> list[Weight]:
        return [self.words, self.places, *(w for layer in self.layers for w in layer.weights)]

    def encode(self, texts: Sequence[Sequence[int]]) -> Array:
        """[all tokens, hidden], the texts one after the other."""
        ops, width = self.ops, self.config.hidden_size
        lengths = [len(text) for text in texts]
        n = sum(lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        rows = Rows(
            ops.empty((n, width)), ops.empty((n, width)), ops.empty((n, width)), ops.empty((n, 3 * width)),
            ops.empty((1,), "int32"), ops.array(starts),
        )  # fmt: skip
        ids = ops.array(np.concatenate([np.asarray(text, dtype=np.int32) for text in texts]))
        places = ops.array(np.concatenate([np.arange(size, dtype=np.int32) for size in lengths]))
        rows.count[0] = n
        ops.embedding(self.words, ids, rows.mixed, rows.count)
        ops.embedding(self.places, places, rows.delta, rows.count)
        self.norm(rows.mixed, rows.x, rows.count, rows.delta)
        for layer in self.layers:
            layer(rows)
        return rows.x
