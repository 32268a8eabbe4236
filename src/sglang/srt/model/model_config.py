"""A model's architecture as numbers: read once from config.json or GGUF metadata, frozen, the same for every source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
    turned_banks: bool = False
    """dense ones lie [num_experts, columns, rows]"""
    alternating_banks: bool = False
    """rows of an expert's modules alternate"""
    grouped_qkv: bool = False
    """a matrix of q, k and v has them head by head: the query heads of a KV head, its k, its v, then those of the next"""
    transposed: bool = False
    """matrices of the layers lie [in_features, out_features]"""
    interleaved: bool = False
    """neighbours form the rotating pairs of q and k (2j and 2j + 1); the kernels turn j and j + d, so rows change places"""


PLAIN_LAYOUT = TensorLayout()


@dataclass(frozen=True)
class CrossConfig:
    """A decoder some of whose layers attend to the rows of images instead of its own, and the encoder of such an image: tiles
    of one size, of which the encoder always sees `max_tiles` (Llama 3.2 Vision, arXiv 2407.21783, section 7)."""

    layers: tuple[int, ...]
    """of the decoder, ascending"""
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    """of the decoder's norms"""
    max_tiles: int
    num_shapes: int
    """ways to lay out the tiles; the encoder has tables for each"""
    num_global_layers: int
    taken_layers: tuple[int, ...]
    """of the encoder, whose output is shown to the decoder beside the last layer's"""


@dataclass(frozen=True)
class VisionConfig:
    """The encoder that turns patches of images into rows of the decoder's width. Each family reads the fields it has."""

    kind: str
    """key of models/vision/registry.py"""
    media_kinds: tuple[str, ...]
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    patch_size: int
    out_size: int
    """width of the rows it makes: the decoder's hidden_size"""
    image_token_id: int
    activation: Literal["silu", "gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    norm_eps: float = 1e-6
    num_channels: int = 3
    temporal_patch_size: int = 1
    merge_size: int = 1
    """so many patches a side become one row"""
    window_size: int = 0
    """pixels a side of an attention window; 0: every layer sees the whole image"""
    full_layers: tuple[int, ...] = ()
    """the layers without windows, where there are windows"""
    image_size: int = 0
    """pixels a side, for encoders of one size"""
    num_positions: int = 0
    """rows of the learnt position table"""
    deep_layers: tuple[int, ...] = ()
    """layers whose output also goes into the decoder's first layers (Qwen3-VL)"""
    out_rows: int = 0
    """rows an image becomes, where that is fixed (Gemma 3)"""
    bidirectional_images: bool = False
    """whether the decoder's rows of an image see all of it, not only what stands before them (Gemma 3)"""
    tied_without_head: bool = False
    """the decoder's part of the config alone says that the head is the embedding: true of a checkpoint that brings no head"""
    cross_attention: CrossConfig | None = None
    """the decoder sees images through layers of their own (Llama 3.2 Vision)"""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


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
    block: Literal["serial", "parallel", "shared"] = "serial"
    """parallel: both halves read the layer's input, each by its own norm; shared: both by one"""
    gate: Gate = "silu"
    """f of the feed-forward layer down(f(gate x) * up x)"""
    plain: Activator | None = None
    """f of the feed-forward layer down(f(up x)) of families that have this instead"""
    mlp_bias: bool = False
    experts: ExpertsConfig | None = None

    # attention
    attention_bias: bool = False
    """biases on q, k and v"""
    output_bias: bool = False
    """bias on o"""
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

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """The layers that attend to images and keep nothing of the sequence."""
        cross = self.vision.cross_attention if self.vision is not None else None
        return cross.layers if cross is not None else ()

    quantization: QuantConfig | None = None
    """how the checkpoint's matrices are quantised, if its config says so"""
