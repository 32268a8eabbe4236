"""The static arrays a step runs in. Ops are recorded once with these arrays as arguments and replayed for every step, so a
step is: write the inputs, replay, read the logits.

    rows of the body    0 .. rows[0]            every new token of the step
    rows of the head    0 .. head_rows[0]       those whose logits are wanted: head_row_idx[i] is the body row
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from sglang.srt.forward_batch import Int32Array
from sglang.srt.model.kernels.low_rank import RowAdapters
from sglang.srt.model.kernels.ops import Activation, Array, AttentionMeta, Ops, Routes, Weight
from sglang.srt.model.kernels.states import StateMeta, state_meta_sizes
from sglang.srt.model.kernels.transfer import Inputs
from sglang.srt.model.layers.adapters import AdapterSite
from sglang.srt.model.layers.cross import CrossBuffers, create_cross
from sglang.srt.model.model_config import ExpertsConfig, LatentConfig, ModelConfig, RecurrentConfig

ROW_INPUTS = ("input_ids", "previous", "positions", "slots")
END_INPUTS = ("row_ends", "local_ends")
"""of models whose rows see what follows them"""
REQ_INPUTS = ("req_pool_idx", "q_start", "q_len", "seq_lens")


@dataclass
class Readers:
    """The weights that read each kind of activation: they decide its form. `sites`: the layers that adapters may add to."""

    attn_in: list[Weight] = field(default_factory=list)
    attn_out: list[Weight] = field(default_factory=list)
    mlp_in: list[Weight] = field(default_factory=list)
    mlp_out: list[Weight] = field(default_factory=list)
    head_in: list[Weight] = field(default_factory=list)
    expert_out: list[Weight] = field(default_factory=list)
    shared_out: list[Weight] = field(default_factory=list)
    layer_in: list[Weight] = field(default_factory=list)
    layer_out: list[Weight] = field(default_factory=list)
    stream_in: list[Weight] = field(default_factory=list)
    mode_in: list[Weight] = field(default_factory=list)
    low_rank_in: list[Weight] = field(default_factory=list)
    mixer_out: list[Weight] = field(default_factory=list)
    """of recurrent layers"""
    scan_in: list[Weight] = field(default_factory=list)
    scan_low: list[Weight] = field(default_factory=list)
    """of selective scans, what reads x, and what steps are made of"""
    latent_q_in: list[Weight] = field(default_factory=list)
    latent_q: list[Weight] = field(default_factory=list)
    latent_out: list[Weight] = field(default_factory=list)
    sites: list[AdapterSite] = field(default_factory=list)


@dataclass
class MediaBuffers:
    """Further buffers of a vision-language model's decoder: rows that are not text, and, where positions have several axes,
    rotation tables made for the step."""

    inputs: Inputs  # index, positions and, where rows see ahead, row_ends
    embeds: Array  # [max_rows, hidden], rows of encoders (with DeepStack several times hidden)
    index: Array  # [max_rows], row of `embeds` for a row of the step, -1 for text
    positions: Array  # [3, max_rows]
    cos: Array  # [max_rows, rotary_dim / 2]
    sin: Array  # [max_rows, rotary_dim / 2]


@dataclass
class ExpertBuffers:
    """What layers of experts need besides."""

    logits: Array  # [max_rows, num_experts]
    routes: Routes
    hidden: Activation  # [max_rows * top_k, width], rows of sorted pairs
    shared_out: Activation | None  # [max_rows, shared_width]
    shared: Array | None  # [max_rows, hidden]
    gate: SharedGate | None


@dataclass
class SharedGate:
    """The sigmoid that shared experts are multiplied by: routes to a single expert."""

    logits: Array  # [max_rows, 1]
    routes: Routes
    index: Array  # [max_rows, 1], 0, 1, 2 ...
    out: Array  # [max_rows, hidden]


@dataclass
class LayerInputBuffers:
    """What rows of tokens for each layer need besides."""

    x: Activation  # [max_rows, hidden]
    inputs: Array  # [max_rows, num_layers * width], one after the other
    tokens: Array  # the same, while they are made
    last: Array  # [max_rows, width], of the last layer, for the rows that it computes
    gate: Array  # [max_rows, width]
    gated: Activation  # [max_rows, width]
    pad_id: int  # the token whose rows an image's rows take


@dataclass
class StreamBuffers:
    """What several residual streams need besides. Those of `streams` and `predicted` follow one another: stream s has the rows
    from s * max_rows on."""

    streams: Array  # [count * max_rows, hidden]
    predicted: Array  # [(count + 1) * max_rows, hidden], and what the layer makes of the first of them
    rows_in: Activation  # [max_rows, hidden]
    modes: Array  # [max_rows, count]
    modes_in: Activation  # [max_rows, count]
    weights: Array  # [max_rows, count * count], of every stream in the prediction of each
    corrections: Array  # [max_rows, count * 3], of `of_three`
    of_all: Array  # [max_rows, count], the row of every stream in `streams`
    of_three: list[Array]  # of each stream: [max_rows, 3], its row in `predicted`, the layer's, and that of the first stream
    low_rank: Array  # [max_rows, rank]
    low_rank_in: Activation  # [max_rows, rank]
    beside: Array  # [max_rows, hidden], what the layer beside attention makes

    def stream(self, i: int) -> Array:
        return self.streams[i * len(self.of_all) : (i + 1) * len(self.of_all)]

    def prediction(self, i: int) -> Array:
        """Of a stream; of `count`, what the layer makes of the first."""
        return self.predicted[i * len(self.of_all) : (i + 1) * len(self.of_all)]


@dataclass
class RecurrentBuffers:
    """What recurrent layers need besides."""

    meta: StateMeta
    mixed: Array  # [max_rows, mixed_width of the mixer]
    core: Array | None  # [max_rows, core_width]
    beside: Array | None  # [max_rows, hidden], what the mixer makes where attention makes its own
    out: Activation  # [max_rows, width of what the mixer's last matrix reads]
    scan_in: Activation | None = None
    scan_low: Activation | None = None


@dataclass
class GatedBuffers:
    """Of attention whose output has a gate."""

    found: Activation  # [max_rows, num_heads * head_dim], in full precision
    gate: Array  # [max_rows, num_heads * head_dim]


@dataclass
class LatentBuffers:
    """What latent attention needs besides."""

    q: Array  # [max_rows, num_heads * q_dim]
    q_in: Activation
    v: Array  # [max_rows, num_heads * v_dim]
    v_in: Activation
    q_low: Array | None  # [max_rows, q_rank], where q comes out of a narrow row
    q_low_in: Activation | None


@dataclass
class StepBuffers:
    """All layers share these: at any moment only one layer computes."""

    # inputs of the step: what `inputs` and `head_inputs` send
    inputs: Inputs
    rows: Array  # [1]
    input_ids: Array  # [max_rows]
    previous: Array  # [max_rows], see ForwardBatch.previous
    positions: Array  # [max_rows]
    slots: Array  # [max_rows]
    meta: AttentionMeta
    local_meta: AttentionMeta  # of layers with a window; another one where rows see what follows them
    window: int  # ModelConfig.sliding_window
    every: Array  # [max_rows], 0, 1, 2 ...: the index of an op that takes one, for all rows
    # between ops
    x: Array  # [max_rows, hidden], the residual stream
    delta: Array  # [max_rows, hidden], what is still to be added to x
    branch: Array  # [max_rows, hidden], an output that is normalized before it becomes delta
    qkv: Array  # [max_rows, (num_heads + 2 * num_kv_heads) * head_dim], of the widest layer
    gate_up: Array | None  # [max_rows, 2 * intermediate], only where some layer writes it
    attn_in: Activation
    attn_out: Mapping[int, Activation]  # by width
    mlp_in: Activation
    mlp_out: Mapping[int, Activation]  # by width
    # the head
    head_inputs: Inputs
    head_rows: Array  # [1]
    head_row_idx: Array  # [max_logit_rows]
    head_columns: tuple[Array, Array, Array] | None  # whole [1], num_blocks [1], blocks; where the op set has `linear_blocks`
    head_x: Array  # [max_logit_rows or max_rows, hidden], their residual stream
    head_in: Activation
    logits: Array  # [max_logit_rows, vocab_size]
    media: MediaBuffers | None = None
    cross: CrossBuffers | None = None
    experts: ExpertBuffers | None = None
    layer_inputs: LayerInputBuffers | None = None
    streams: StreamBuffers | None = None
    recurrent: RecurrentBuffers | None = None
    gated: GatedBuffers | None = None
    latent: LatentBuffers | None = None
    # which rows of `rows` and of `head_rows` have adapters; None in programs for steps without any
    adapters: RowAdapters | None = None
    head_adapters: RowAdapters | None = None


@dataclass(frozen=True)
class StepLimits:
    """The largest step."""

    max_rows: int
    max_reqs: int
    max_logit_rows: int


def create_buffers(
    ops: Ops, config: ModelConfig, readers: Readers, limits: StepLimits, req_to_token: Int32Array, needs_gate_up: bool
) -> StepBuffers:
    """`req_to_token`: the host's table. `needs_gate_up`: whether some layer writes `gate_up`."""
    n, hidden = limits.max_rows, config.hidden_size
    qkv_width = _qkv_width(config)

    def activation(weights: Sequence[Weight], size: int = n) -> Activation:
        return ops.activation(size, weights)

    def hidden_rows(width: int) -> Array:
        return ops.empty((n, width), "hidden")

    row_inputs = (*ROW_INPUTS, *(END_INPUTS if config.bidirectional else ()))
    of_states = state_meta_sizes(limits.max_reqs) if config.recurrent is not None else {}
    inputs = ops.inputs(
        {"rows": 1, **dict.fromkeys(row_inputs, n), "num_reqs": 1, **dict.fromkeys(REQ_INPUTS, limits.max_reqs), **of_states}
    )
    blocks = -(-(config.vocab_size + config.num_extra_ids) // 16) if hasattr(ops, "linear_blocks") else 0
    columns = {"whole": 1, "num_blocks": 1, "blocks": blocks} if blocks else {}
    head_inputs = ops.inputs({"rows": 1, "row_idx": limits.max_logit_rows, **columns})
    media = _media_buffers(ops, config, n) if config.vision is not None else None
    at, delta = inputs.arrays, hidden_rows(hidden)
    row_ends = media.inputs.arrays.get("row_ends") if media is not None else at.get("row_ends")
    meta = local_meta = _attention_meta(ops, inputs, req_to_token, row_ends)
    if config.bidirectional:
        local_meta = replace(meta, row_ends=at["local_ends"])
    elif config.vision is not None and config.vision.only_windows_see_ahead:
        meta = replace(meta, row_ends=None)
    return StepBuffers(
        inputs=inputs,
        rows=at["rows"],
        input_ids=at["input_ids"],
        previous=at["previous"],
        positions=at["positions"],
        slots=at["slots"],
        meta=meta,
        local_meta=local_meta,
        window=config.sliding_window,
        every=ops.array(np.arange(n, dtype=np.int32)),
        x=ops.empty((n, hidden)),
        delta=delta,
        branch=hidden_rows(hidden) if config.norm_place != "before" else delta,
        qkv=hidden_rows(qkv_width),
        gate_up=hidden_rows(2 * _inner_width(config)) if needs_gate_up else None,
        attn_in=activation(readers.attn_in),
        attn_out=_by_width(activation, readers.attn_out)
        if config.latent is None
        else {config.num_heads * config.head_dim: ops.activation(n, readers.attn_out, config.num_heads)},
        mlp_in=activation(readers.mlp_in),
        mlp_out=_by_width(activation, readers.mlp_out),
        head_inputs=head_inputs,
        head_rows=head_inputs.arrays["rows"],
        head_row_idx=head_inputs.arrays["row_idx"],
        head_columns=tuple(head_inputs.arrays[name] for name in columns) if columns else None,
        head_x=ops.empty((min(limits.max_logit_rows, n), hidden)),
        head_in=activation(readers.head_in, limits.max_logit_rows),
        logits=ops.empty((limits.max_logit_rows, config.vocab_size)),
        media=media,
        cross=create_cross(ops, config, n, limits.max_reqs),
        experts=_expert_buffers(ops, config.experts, readers, n, hidden) if config.experts is not None else None,
        layer_inputs=_layer_input_buffers(ops, config, readers, n) if config.layer_inputs is not None else None,
        streams=_stream_buffers(ops, config, readers, n) if config.streams is not None else None,
        recurrent=_recurrent_buffers(ops, config.recurrent, readers, at, n, hidden) if config.recurrent is not None else None,
        gated=_gated_buffers(ops, config, n) if config.output_gate else None,
        latent=_latent_buffers(ops, config.latent, config.num_heads, readers, n) if config.latent is not None else None,
    )


def _stream_buffers(ops: Ops, config: ModelConfig, readers: Readers, n: int) -> StreamBuffers:
    assert config.streams is not None
    count, hidden, row = config.streams.count, config.hidden_size, np.arange(n, dtype=np.int32)

    def index(*streams: int) -> Array:
        return ops.array(np.stack([s * n + row for s in streams], axis=1).astype(np.int32))

    return StreamBuffers(
        streams=ops.empty((count * n, hidden)),
        predicted=ops.empty(((count + 1) * n, hidden)),
        rows_in=ops.activation(n, readers.stream_in),
        modes=ops.empty((n, count), "hidden"),
        modes_in=ops.activation(n, readers.mode_in),
        weights=ops.empty((n, count * count), "hidden"),
        corrections=ops.empty((n, count * 3), "hidden"),
        of_all=index(*range(count)),
        of_three=[index(i, count, 0) for i in range(count)],
        low_rank=ops.empty((n, config.streams.rank), "hidden"),
        low_rank_in=ops.activation(n, readers.low_rank_in),
        beside=ops.empty((n, hidden), "hidden"),
    )


def _layer_input_buffers(ops: Ops, config: ModelConfig, readers: Readers, n: int) -> LayerInputBuffers:
    assert config.layer_inputs is not None
    width = config.layer_inputs.width
    inputs, tokens = (ops.empty((n, config.num_layers * width), "hidden") for _ in range(2))
    last, gate = (ops.empty((n, width), "hidden") for _ in range(2))
    return LayerInputBuffers(
        ops.activation(n, readers.layer_in),
        inputs,
        tokens,
        last,
        gate,
        ops.activation(n, readers.layer_out),
        config.layer_inputs.pad_id,
    )


def _recurrent_buffers(
    ops: Ops, recurrent: RecurrentConfig, readers: Readers, inputs: Mapping[str, Array], n: int, hidden: int
) -> RecurrentBuffers:
    mixer = recurrent.mixer
    return RecurrentBuffers(
        meta=StateMeta(**{field.name: inputs[field.name] for field in fields(StateMeta)}),
        mixed=ops.empty((n, mixer.mixed_width)),
        core=ops.empty((n, mixer.core_width)) if mixer.core_width else None,
        beside=ops.empty((n, hidden), "hidden") if recurrent.beside is not None else None,
        out=ops.activation(n, readers.mixer_out),
        scan_in=ops.activation(n, readers.scan_in) if readers.scan_in else None,
        scan_low=ops.activation(n, readers.scan_low) if readers.scan_low else None,
    )


def _gated_buffers(ops: Ops, config: ModelConfig, n: int) -> GatedBuffers:
    width = config.num_heads * config.head_dim
    return GatedBuffers(found=ops.float_activation(n, width), gate=ops.empty((n, width), "hidden"))


def _expert_buffers(ops: Ops, experts: ExpertsConfig, readers: Readers, n: int, hidden: int) -> ExpertBuffers:
    shared = bool(readers.shared_out)
    return ExpertBuffers(
        logits=ops.empty((n, experts.count)),
        routes=_routes(ops, experts.count, n, experts.top_k),
        hidden=ops.activation(n * experts.top_k, readers.expert_out),
        shared_out=ops.activation(n, readers.shared_out) if shared else None,
        shared=ops.empty((n, hidden), "hidden") if shared else None,
        gate=SharedGate(
            logits=ops.empty((n, 1)),
            routes=_routes(ops, 1, n, 1),
            index=ops.array(np.arange(n, dtype=np.int32)[:, None]),
            out=ops.empty((n, hidden), "hidden"),
        )
        if experts.shared_gate
        else None,
    )


def _latent_buffers(ops: Ops, latent: LatentConfig, heads: int, readers: Readers, n: int) -> LatentBuffers:
    return LatentBuffers(
        q=ops.empty((n, heads * latent.q_dim), "hidden"),
        q_in=ops.activation(n, readers.latent_q, heads),
        v=ops.empty((n, heads * latent.v_dim), "hidden"),
        v_in=ops.activation(n, readers.latent_out),
        q_low=ops.empty((n, latent.q_rank), "hidden") if latent.q_rank else None,
        q_low_in=ops.activation(n, readers.latent_q_in) if latent.q_rank else None,
    )


def _routes(ops: Ops, num_experts: int, n: int, k: int) -> Routes:
    ids, order, starts = (ops.empty(shape, "int32") for shape in ((n, k), (n * k,), (num_experts + 1,)))
    return Routes(ids, ops.empty((n, k)), order, starts)


def _inner_width(config: ModelConfig) -> int:
    """Of the widest feed-forward layer."""
    widest = max(kind.intermediate_size for kind in config.layer_kinds)
    return max(widest, config.experts.shared_width if config.experts is not None else 0)


def _qkv_width(config: ModelConfig) -> int:
    """Of the widest layer."""
    return max((kind.num_heads + 2 * kind.num_kv_heads) * kind.head_dim for kind in config.layer_kinds)


def _by_width(create: Callable[[Sequence[Weight]], Activation], readers: Sequence[Weight]) -> dict[int, Activation]:
    """An activation for the readers of each width."""
    return {n: create([w for w in readers if w.in_features == n]) for n in dict.fromkeys(w.in_features for w in readers)}


def _attention_meta(ops: Ops, inputs: Inputs, req_to_token: Int32Array, row_ends: Array | None) -> AttentionMeta:
    at = inputs.arrays
    return AttentionMeta(
        num_reqs=at["num_reqs"],
        req_pool_idx=at["req_pool_idx"],
        q_start=at["q_start"],
        q_len=at["q_len"],
        seq_lens=at["seq_lens"],
        req_to_token=ops.table(req_to_token),
        row_ends=row_ends,
    )


def _media_buffers(ops: Ops, config: ModelConfig, n: int) -> MediaBuffers:
    assert config.vision is not None
    parts, pairs = 1 + len(config.vision.deep_layers), max(len(config.rope_axes), 1)
    sizes = {"index": n, "positions": 3 * n, **({"row_ends": n} if config.vision.bidirectional_images else {})}
    inputs = ops.inputs(sizes)
    return MediaBuffers(
        inputs=inputs,
        embeds=ops.empty((n, config.hidden_size * parts)),
        index=inputs.arrays["index"],
        positions=inputs.arrays["positions"].reshape(3, n),
        cos=ops.empty((n, pairs)),
        sin=ops.empty((n, pairs)),
    )


def buffer_bytes(config: ModelConfig, limits: StepLimits) -> int:
    """About what `create_buffers` takes, for the memory plan made before it is called."""
    qkv_width = _qkv_width(config)
    attn_width = config.num_heads * sum({kind.head_dim for kind in config.layer_kinds})
    embeds = 1 + len(config.vision.deep_layers) if config.vision is not None else 0
    floats_a_row = (5 + embeds) * config.hidden_size + qkv_width + attn_width + 3 * _inner_width(config)
    if config.experts is not None:  # rows of pairs go in and out of the hidden layers
        floats_a_row += config.experts.top_k * (config.hidden_size + config.experts.width) + 2 * config.hidden_size
    if config.layer_inputs is not None:
        floats_a_row += (2 * config.num_layers + 4) * config.layer_inputs.width + config.hidden_size
    if config.streams is not None:
        floats_a_row += 2 * (config.streams.count + 2) * config.hidden_size
    if config.recurrent is not None:
        floats_a_row += 2 * config.recurrent.mixer.mixed_width
    if config.output_gate:
        floats_a_row += 2 * attn_width
    if config.latent is not None:
        floats_a_row += 2 * config.num_heads * (config.latent.q_dim + config.latent.v_dim) + 2 * config.latent.q_rank
    return 4 * (limits.max_rows * floats_a_row + limits.max_logit_rows * (config.vocab_size + 2 * config.hidden_size))
