"""The part of each tensor that a rank holds.

    q, k, v, gate, up      rows          every rank has its heads, its columns of the hidden layer
    o, down                columns       every rank computes a part of a sum (ops.ShardedOps adds the parts)
    embedding, head        rows          every rank has its ids; one row of zeros more stands for all the others
    norms, biases of o     whole         a bias that would be added `size` times is zero on all ranks but the first

KV heads that are fewer than the ranks are held by several. Source: "Megatron-LM", arXiv 1909.08053.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import ConfigError, ModelError
from sglang.srt.model.distributed.ranks import Ranks
from sglang.srt.model.kernels.low_rank import LowRank
from sglang.srt.model.kernels.ops import Array
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ExpertsConfig, ModelConfig
from sglang.srt.model.quant.formats import HostTensor

SUMMED = ("self_attn.o_proj.weight", "mlp.down_proj.weight", "mlp.shared_experts.down_proj.weight")
"""matrices that are cut by columns, as are those of experts"""
_LAYER = re.compile(r"model\.layers\.\d+\.(.+)\.(weight|bias)")
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_BY_HEAD = ("self_attn.k_proj", "self_attn.v_proj")
_OF_HEADS = tuple(f"self_attn.{name}_b_proj" for name in ("kv", "k", "v"))
"""of latent attention, as values"""
_BY_ROWS = (
    "self_attn.q_proj",
    "self_attn.q_b_proj",
    *_OF_HEADS,
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.shared_experts.gate_proj",
    "mlp.shared_experts.up_proj",
)
SINKS = ".self_attn.sinks"
_EXPERT = re.compile(r"mlp\.experts\.\d+\.")


@dataclass(frozen=True)
class Shard:
    """One rank's part of a model."""

    ranks: Ranks
    whole: ModelConfig
    config: ModelConfig
    """of the part: what layers and buffers are made for"""
    ids_each: int
    """token ids a rank has"""

    def local_ids(self, ids: Array) -> Array:
        """Rows of this rank's embedding for token ids, an array of the host or of the device; those of others are the row of
        zeros."""
        local = ids - self.ranks.rank * self.ids_each
        mine = (local >= 0) & (local < self.ids_each)
        return (local - self.ids_each) * mine + self.ids_each  # of the type that ids have

    def cut_adapter(self, name: str, part: LowRank) -> LowRank:
        """This rank's part of what an adapter adds to the matrix `name`: rows of B, or columns of A."""
        stem, rank, size = _stem(f"{name}.weight")[0], self.ranks.rank, self.ranks.size
        if f"{stem}.weight" in SUMMED:
            width = part.a.shape[1] // size
            return replace(part, a=part.a[:, rank * width : (rank + 1) * width])
        rows = rows_of_rank(self, stem, len(part.b))
        return part if rows is None else replace(part, b=part.b[slice(*rows)])


def shard_model(config: ModelConfig, ranks: Ranks) -> Shard:
    """Raises ConfigError for a model that cannot be cut into so many parts."""
    size = ranks.size
    _check(config, size)
    each = -(-config.vocab_size // size)
    local = replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=max(config.num_kv_heads // size, 1),
        intermediate_size=config.intermediate_size // size,
        experts=_narrow(config.experts, size),
        vocab_size=each + 1,
    )
    return Shard(ranks, config, local, each)


def _narrow(experts: ExpertsConfig | None, size: int) -> ExpertsConfig | None:
    """Every rank has a part of the width of all experts."""
    if experts is None:
        return None
    for width in (experts.width, experts.shared_width):
        if width % size:
            raise ConfigError(f"--tp-size {size} does not divide the width {width} of the model's experts")
    return replace(experts, width=experts.width // size, shared_width=experts.shared_width // size)


def _check(config: ModelConfig, size: int) -> None:
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if getattr(config, "cross_layers", ()):
        raise ConfigError("--tp-size: models with cross-attention to images run on one rank")
    if config.qk_norm in ("whole", "layer"):
        raise ConfigError("--tp-size: models whose norms of q and k are over several heads run on one rank")
    if config.layer_inputs is not None or config.kv_owners or config.layer_kinds != [config]:
        raise ConfigError("--tp-size: models whose layers differ, or share K and V, run on one rank")
    if config.learned_positions:
        raise ConfigError("--tp-size: models with learnt positions run on one rank")
    if heads % size:
        raise ConfigError(f"--tp-size {size} does not divide the model's {heads} attention heads")
    if kv_heads % size and size % kv_heads:
        raise ConfigError(f"--tp-size {size} and the model's {kv_heads} KV heads: one must divide the other")
    if config.intermediate_size % size:
        raise ConfigError(f"--tp-size {size} does not divide the model's intermediate size of {config.intermediate_size}")


class ShardedSource:
    """A checkpoint as one rank sees it (layers.source.WeightSource)."""

    def __init__(self, source: WeightSource, shard: Shard) -> None:
        self._source = source
        self._shard = shard

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        part = self._cut(self._source.tensor(name), name)
        if shape is not None and part.shape != tuple(shape):
            raise ModelError(f"the part of {name!r} has shape {list(part.shape)}, and should have {list(shape)}")
        return part

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        values = self._source.vector(name)
        if name.endswith(SINKS):
            heads = self._shard.config.num_heads
            return np.ascontiguousarray(values[self._shard.ranks.rank * heads :][:heads])
        stem, kind = _stem(name)
        if kind != "bias" and stem not in _OF_HEADS:
            return values
        if f"{stem}.weight" in SUMMED:
            return values if self._shard.ranks.rank == 0 else np.zeros_like(values)
        rows = rows_of_rank(self._shard, stem, len(values))
        return values if rows is None else np.ascontiguousarray(values[slice(*rows)])

    def _cut(self, tensor: HostTensor, name: str) -> HostTensor:
        if name in _VOCABULARY:
            return self._vocabulary(tensor)
        stem, _ = _stem(name)
        if f"{stem}.weight" in SUMMED:
            width = tensor.shape[1] // self._shard.ranks.size
            try:
                return tensor.slice_columns(self._shard.ranks.rank * width, (self._shard.ranks.rank + 1) * width)
            except ValueError as error:
                raise ConfigError(f"--tp-size {self._shard.ranks.size} does not fit this checkpoint: {error}") from error
        rows = rows_of_rank(self._shard, stem, tensor.shape[0])
        return tensor if rows is None else tensor.slice_rows(*rows)

    def _vocabulary(self, tensor: HostTensor) -> HostTensor:
        each, rank = self._shard.ids_each, self._shard.ranks.rank
        mine = tensor.slice_rows(min(rank * each, tensor.shape[0]), min((rank + 1) * each, tensor.shape[0]))
        missing = each + 1 - mine.shape[0]
        zeros = np.zeros((missing, *mine.data.shape[1:]), mine.data.dtype)
        scale = None if mine.scale is None else np.concatenate([mine.scale, np.ones(missing, np.float32)])
        return replace(mine, shape=(each + 1, *mine.shape[1:]), data=np.concatenate([mine.data, zeros]), scale=scale)


def rows_of_rank(shard: Shard, stem: str, total: int) -> tuple[int, int] | None:
    """A rank's rows of a matrix or bias; None: all of them."""
    rank, size = shard.ranks.rank, shard.ranks.size
    if stem in _BY_HEAD:
        heads, mine = shard.whole.num_kv_heads, shard.config.num_kv_heads
        first, width = rank * heads // size, total // heads
        return first * width, (first + mine) * width
    if stem in _BY_ROWS:
        return rank * (total // size), (rank + 1) * (total // size)
    return None


def _stem(name: str) -> tuple[str, str]:
    """("self_attn.q_proj", "weight") of a layer's tensor; ("", "") of others. Experts are cut as feed-forward layers are."""
    match = _LAYER.fullmatch(name)
    return (_EXPERT.sub("mlp.", match.group(1)), match.group(2)) if match else ("", "")
