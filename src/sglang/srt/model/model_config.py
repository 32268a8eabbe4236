"""A model's architecture as numbers: read once from config.json or GGUF metadata, frozen, the same for every source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.kernels.ops import Activator, ExpertGate, Gate, Routing
from sglang.srt.model.quant.scheme import QuantConfig


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base frequency, how many elements of a head rotate, and the long-context variant.

    Sources: llama3 and linear scaling as in Hugging Face's config `rope_scaling`; yarn: arXiv 2309.00071.
    """

    theta: float
    rotary_dim: int
    kind: Literal["default", "linear", "llama3", "yarn", "longrope"] = "default"
    factor: float = 1.0
    original_context_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """multiplies cos and sin. yarn: None means 0.1 ln(factor) + 1, or, where both mscale and mscale_all_dim are given,
    (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1). longrope: None means sqrt(1 + ln(factor) / ln(original))"""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """yarn: round the correction range outwards to whole dimensions"""
    freq_divisors: tuple[float, ...] = ()
    """[rotary_dim / 2] if not empty: each inverse frequency of the base is divided by its element (GGUF's `rope_freqs`, which is
    how those files carry llama3 scaling); `kind` is then "default". longrope: the short factors"""
    long_divisors: tuple[float, ...] = ()
    """longrope: take the place of freq_divisors where the context is longer than the original one"""


@dataclass(frozen=True)
class TensorLayout:
    """A family's names and splits of tensors that the decoder reads under the names of Llama and Gemma (weights/shapes.py)."""

    root: str = "model."
    """what stands before the decoder's names; files of the bare decoder lack it"""
    whole: Mapping[str, str] = field(default_factory=dict)
    """stored name without root -> ours, of what is not part of a layer"""
    layers: str = "layers"
    """stored name of the list of layers"""
    modules: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """stored name in a layer -> ours; several: their rows follow one another in the stored matrix. A * is
    the number of an expert"""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """stored name in a layer -> ours, both with what of a module it is"""
    banks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """stored name in a layer of a tensor [num_experts, rows, columns] -> an expert's modules, whose rows follow one another"""
    stacks: Mapping[str, str] = field(default_factory=dict)
    """stored name of a tensor of no layer -> names of the matrices along its first dimension, whose number is the *"""
    turned_banks: bool | Literal["by shape"] = False
    """dense ones lie [num_experts, columns, rows]; by shape: if that of `down` is so"""
    alternating_banks: bool = False
    """rows of an expert's modules alternate"""
    grouped_qkv: bool = False
    """a matrix of q, k and v has them head by head: the query heads of a KV head, its k, its v, then those of the next"""
    transposed: bool = False
    """matrices of the layers lie [in_features, out_features]"""
    decays: bool = False
    """what stands for A_log is what it is there for: -exp(A_log)"""
    interleaved: bool = False
    """neighbours form the rotating pairs of q and k (2j and 2j + 1); the kernels turn j and j + d, so rows change places"""


PLAIN_LAYOUT = TensorLayout()


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in the place of feed-forward layers (layers/experts.py)."""

    count: int
    top_k: int
    """experts of a row"""
    width: int
    """of an expert's hidden layer"""
    layers: tuple[bool, ...]
    """per layer: whether it has experts; the others have a feed-forward layer of intermediate_size"""
    routing: Routing = Routing()
    router_bias: bool = False
    choice_bias: bool = False
    """scores are corrected for the choice, not in the weights (arXiv 2408.15664)"""
    gate: ExpertGate | None = None
    """None: ModelConfig.gate"""
    bias: bool = False
    """biases on all matrices of the experts"""
    shared_width: int = 0
    """of the hidden layer of what every row has besides; 0: nothing"""
    shared_gate: bool = False
    """that is multiplied by a sigmoid"""
    beside: bool = False
    """they stand beside a feed-forward layer of intermediate_size, with norms of their own; each has a scale (Gemma 4)"""


@dataclass(frozen=True)
class LayerInputs:
    """Every token has a short row for each layer besides its embedding (Gemma 3n)."""

    width: int
    vocab_size: int
    """tokens that have such rows; the others take those of token 0"""
    pad_id: int = 0
    """whose rows an image's take"""


@dataclass(frozen=True)
class StreamsConfig:
    """The residual stream is several: each layer predicts them all, computes on the first and corrects them by what came out
    (AltUp, arXiv 2301.13310). Beside attention runs a low-rank linear layer (LAuReL, arXiv 2411.07501)."""

    count: int
    rank: int
    """of the low-rank layer"""
    scaled: bool
    """the first stream is scaled, channel by channel, where the rows of LayerInputs act on it"""


@dataclass(frozen=True)
class ConvConfig:
    """Short convolutions between two gates: out(c * conv(b * x)) (LFM2, arXiv 2511.23404)."""

    width: int
    """channels: the hidden size"""
    taps: int
    bias: bool = False

    core_width = 0
    """columns that are read from a state before they are gated"""

    @property
    def mixed_width(self) -> int:
        """Columns that the layer's first matrices write, and those that are made of them."""
        return 3 * self.width

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """What a layer keeps of a text, by name."""
        return {"conv": (self.taps - 1, self.width)}


@dataclass(frozen=True)
class DeltaConfig:
    """The gated delta rule behind a short convolution (arXiv 2412.06464)."""

    num_k_heads: int
    num_v_heads: int
    k_dim: int
    v_dim: int
    taps: int
    turns: bool = False
    """head h of v goes with head h % num_k_heads of k, else neighbours share one"""

    @property
    def k_width(self) -> int:
        return self.num_k_heads * self.k_dim

    @property
    def v_width(self) -> int:
        return self.num_v_heads * self.v_dim

    @property
    def conv_width(self) -> int:
        """Columns of q, k and v."""
        return 2 * self.k_width + self.v_width

    @property
    def mixed_width(self) -> int:
        return self.conv_width + self.v_width + 2 * self.num_v_heads

    @property
    def core_width(self) -> int:
        return self.v_width

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.taps - 1, self.conv_width), "memory": (self.num_v_heads, self.k_dim, self.v_dim)}


@dataclass(frozen=True)
class StateSpaceConfig:
    """Mamba 2's state space behind a short convolution (arXiv 2405.21060)."""

    num_heads: int
    head_dim: int
    num_groups: int
    """of heads that share B and C"""
    state_dim: int
    taps: int
    in_bias: bool = False
    out_bias: bool = False
    conv_bias: bool = True
    norm: Literal["", "gate_first", "gate_last"] = "gate_first"
    """RMS over each group of what is read from the state, after it is gated by z or before; or it is only gated"""
    step_limits: tuple[float, float] = (0.0, float("inf"))
    scales: tuple[float, ...] = ()
    """multiply z, x, B, C and the step of each head, as the first matrix leaves them; empty: nothing does"""

    @property
    def width(self) -> int:
        """Columns of x and z."""
        return self.num_heads * self.head_dim

    @property
    def conv_width(self) -> int:
        return self.width + 2 * self.num_groups * self.state_dim

    @property
    def mixed_width(self) -> int:
        """z, then x, B and C, then the step of each head, and room for what it keeps."""
        return self.width + self.conv_width + 2 * self.num_heads

    @property
    def core_width(self) -> int:
        return self.width

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.taps - 1, self.conv_width), "memory": (self.num_heads, self.state_dim, self.head_dim)}


@dataclass(frozen=True)
class SelectiveScanConfig:
    """Mamba 1's state space behind a short convolution (arXiv 2312.00752), with norms of its parameters (Jamba, arXiv 2403.19887)."""

    width: int
    state_dim: int
    dt_rank: int
    taps: int
    bias: bool = False
    conv_bias: bool = True

    @property
    def mixed_width(self) -> int:
        """x and z, then what makes the steps, B and C, then the steps."""
        return 3 * self.width + self.dt_rank + 2 * self.state_dim

    core_width = 0

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.taps - 1, self.width), "memory": (self.state_dim, self.width)}


StateMixer = ConvConfig | DeltaConfig | StateSpaceConfig | SelectiveScanConfig


@dataclass(frozen=True)
class RecurrentConfig:
    """Layers with a state of fixed size in the place of attention (layers/recurrent.py)."""

    layers: tuple[bool, ...]
    """per layer: whether it is such a one"""
    mixer: StateMixer
    beside: tuple[float, float] | None = None
    """such a layer attends as well, to the same rows: what multiplies what attention finds, and what the mixer does"""


@dataclass(frozen=True)
class LatentConfig:
    """Attention whose K and V are made of one row for all heads: what rotates of K, and a latent (layers/latent.py)."""

    rank: int
    """of the latent"""
    rope_dim: int
    nope_dim: int
    """of a head of q and k, what does not rotate"""
    v_dim: int
    q_rank: int = 0
    """q comes out of a narrow row; 0: it does not"""
    interleaved: bool = True
    """neighbours form the rotating pairs"""
    is_split: bool = False
    """the matrices of K and V are two, [heads, rank, nope_dim] and [heads, v_dim, rank]"""
    norm_eps: float = 1e-6

    @property
    def q_dim(self) -> int:
        return self.nope_dim + self.rope_dim


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only text model, with the encoder of what else it sees if `vision` is given."""

    architecture: str
    """the family; key of models/registry.py where it has its own layers"""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    context_len: int
    norm_eps: float
    rope: RopeConfig
    layout: TensorLayout = PLAIN_LAYOUT

    # the two halves of a layer
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    """layer norms only"""
    norm_place: Literal["before", "around", "after"] = "before"
    """of the halves, where norms stand: around is before and after"""
    halves: tuple[Literal["mixer", "channels"], ...] = ()
    """per layer: the half that it has; empty: all have both"""
    block: Literal["serial", "parallel", "shared"] = "serial"
    """parallel: both halves read the layer's input, each by its own norm; shared: both by one"""
    gate: Gate = "silu"
    """f of the feed-forward layer down(f(gate x) * up x)"""
    plain: Activator | None = None
    """f of the feed-forward layer down(f(up x)) of families that have this instead"""
    mlp_scales: tuple[float, float] = (1.0, 1.0)
    """multiply gate x, and what the layer makes"""
    mlp_bias: bool = False
    experts: ExpertsConfig | None = None
    recurrent: RecurrentConfig | None = None

    # attention
    latent: LatentConfig | None = None
    """then there is one KV head, as wide as the row that all heads share"""
    attention_bias: bool = False
    """biases on q, k and v"""
    output_bias: bool = False
    """bias on o"""
    output_gate: bool = False
    """what attention finds is multiplied by a sigmoid before o (arXiv 2505.06708)"""
    qk_norm: Literal["", "head", "rotated", "whole", "layer"] = ""
    """norms of q and k: RMS over each head, the same after rotation, RMS over all heads together, or layer norms over each head
    with its own weights"""
    local_rope: RopeConfig | None = None
    """rope of the sliding-window layers where it differs (gemma3)"""
    sliding_window: int = 0
    windowed_layers: tuple[bool, ...] = ()
    """per layer: whether the window applies; empty means none does"""
    unrotated_layers: tuple[bool, ...] = ()
    """per layer: whether q and k are left as they are; empty means none is"""
    bidirectional: bool = False
    """every row of a text sees all of it, or what is nearer than sliding_window: such a model embeds and does not generate"""
    attn_soft_cap: float = 0.0
    attention_sinks: bool = False
    """each head has a score besides, learnt, that takes a share of its weights (arXiv 2309.17453)"""
    query_scale: float | None = None
    """None means 1 / sqrt(head_dim)"""
    query_growth: tuple[float, int] | None = None
    """(b, n): q is multiplied by 1 + b ln(1 + floor(position / n)) besides"""

    value_norm: bool = False
    """RMS over each head of v, without weights"""

    # what differs between layers, one value a layer; empty: all are the same
    head_dims: tuple[int, ...] = ()
    kv_heads: tuple[int, ...] = ()
    inner_widths: tuple[int, ...] = ()
    kv_owners: tuple[int, ...] = ()
    """the layer whose K and V it reads; those that read another's have neither"""
    keys_as_values: tuple[bool, ...] = ()
    """v is what k is before its norm"""
    sparsity: tuple[float, ...] = ()
    """the share of each row of gates that becomes 0 in a feed-forward layer; 0: it is as usual"""
    layer_inputs: LayerInputs | None = None
    streams: StreamsConfig | None = None
    layer_scales: bool = False
    """a number multiplies x after each layer"""

    # the two ends
    tie_word_embeddings: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """multiplies what a half adds to x"""
    logit_scale: float = 1.0
    final_soft_cap: float = 0.0
    learned_positions: int = 0
    """rows of a table that is added to the embeddings, position by position"""
    norm_offset: float = 0.0
    """added to every norm weight of the file at load (gemma: 1 in Hugging Face files, 0 in GGUF)"""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    dtype: str = "float32"
    """of the checkpoint"""
    vision: VisionConfig | None = None
    rope_axes: tuple[int, ...] = ()
    """for each rotating pair, the axis (0 time, 1 height, 2 width) whose position turns it; empty: one position for all"""
    num_extra_ids: int = 0
    """rows of the embedding beyond the vocabulary, for ids that are never produced"""

    @property
    def stream_eps(self) -> float:
        """For norms of x. What is added to x is not multiplied by residual_scale m; x is kept as x / m instead, which a norm turns
        into the same if its eps is divided by m^2."""
        return self.norm_eps / self.residual_scale**2

    def of_layer(self, layer: int) -> ModelConfig:
        """The numbers of one layer."""
        if not (self.head_dims or self.kv_heads or self.inner_widths):
            return self
        return replace(
            self,
            head_dim=self.head_dims[layer] if self.head_dims else self.head_dim,
            num_kv_heads=self.kv_heads[layer] if self.kv_heads else self.num_kv_heads,
            intermediate_size=self.inner_widths[layer] if self.inner_widths else self.intermediate_size,
        )

    @property
    def layer_kinds(self) -> list[ModelConfig]:
        """The different ones among `of_layer`."""
        every = zip(*(t for t in (self.head_dims, self.kv_heads, self.inner_widths) if t), strict=True)
        return [self.of_layer(i) for i in {shape: i for i, shape in enumerate(every)}.values()] or [self]

    def keeps_kv(self, layer: int) -> bool:
        return not self.kv_owners or self.kv_owners[layer] == layer

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """The layers that attend to images and keep nothing of the sequence."""
        cross = self.vision.cross_attention if self.vision is not None else None
        return cross.layers if cross is not None else ()

    @property
    def recurrent_layers(self) -> tuple[bool, ...]:
        """Per layer: whether a state is what it keeps of a text."""
        return self.recurrent.layers if self.recurrent is not None else (False,) * self.num_layers

    def attends(self, layer: int) -> bool:
        """Whether it attends to its own sequence."""
        if layer in self.cross_layers or (self.halves and self.halves[layer] == "channels"):
            return False
        return not self.recurrent_layers[layer] or (self.recurrent is not None and self.recurrent.beside is not None)

    quantization: QuantConfig | None = None
    """how the checkpoint's matrices are quantized, if its config says so"""
