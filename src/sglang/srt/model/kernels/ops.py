"""The declaration of every op. `reference.py` (NumPy, the documentation in code), `cpu.py` (our C++) and `cuda/ops.py` implement it.

Rules that hold for every op set:

* Results go to out-arguments; nothing is allocated in a step. Arrays are the device's own (NumPy, or torch on CUDA) and are
  made by `empty` and `array`, so that model code never calls an array library.
* Buffers are static and have room for the largest step. How many rows count is read from `rows`, an int32 array of one
  element, when the op *runs*: so a recorded op ("op tape") serves every batch.
* Each output row is reduced in an order that does not depend on how many rows are in the call, nor on how a request's tokens
  were cut into steps. Results are batch-invariant: bitwise the same alone and in a batch.
* All arithmetic on activations is float32. (On CUDA products are taken in the model's type and added up in float32.)

All transfers between host and device go through six methods: `array` and `inputs` at load time, `Inputs.send`, `write`,
`sync_table` on the way in, `fetch` on the way out. On a CPU the host's memory is the device's; still an op may run later than it is
called (`runs_ahead`), and what it reads and writes is its own until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from sglang.srt.forward_batch import KVRuns
from sglang.srt.model.kernels.low_rank import AdapterBank, LowRank, RowAdapters
from sglang.srt.model.kernels.states import StateOps
from sglang.srt.model.kernels.transfer import Fetch, Inputs
from sglang.srt.model.quant.formats import HostTensor

Array = Any
"""An array of the op set's device: numpy.ndarray or torch.Tensor. A 2-D argument may be a column range of a wider buffer."""

Gate = Literal["silu", "gelu_tanh", "gelu"]
ExpertGate = Literal["silu", "gelu_tanh", "gelu", "clamped_silu", "relu2"]
"""clamped_silu is g sigmoid(1.702 g) (u + 1) of g up to 7 and u within -7 and 7 (gpt-oss, arXiv 2508.10925); the others f(g) u"""
Activator = Literal["silu", "gelu_tanh", "gelu", "quick_gelu", "relu", "relu2"]


class Weight(Protocol):
    """A packed matrix: opaque but for its shape. One object may serve `linear` and `embedding` (tied heads)."""

    out_features: int
    in_features: int
    num_bytes: int


class Bank(Weight, Protocol):
    """The matrices of a layer's experts, packed one behind the other. `out_features`: rows of all of them."""

    num_experts: int


class Activation(Protocol):
    """Input rows of a linear layer in whatever form its weights want (float32, or int8 with one scale per group of 32).

    Written by `rms_norm`, `attention`, `gated_linear`, `gate` and `store`, read by `linear` and `gated_linear`.
    """

    width: int


class KVLayer(Protocol):
    """K and V of one layer for every slot of the pool. The layout is the op set's own business."""

    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class StepShape:
    """The host's knowledge of a step: upper bounds of `rows` and AttentionMeta on the device."""

    num_rows: int
    num_reqs: int
    max_q_len: int


@dataclass(frozen=True)
class AttentionMeta:
    """Static arrays that say which request owns which rows and slots (see forward_batch.ForwardBatch)."""

    num_reqs: Array  # [1]
    req_pool_idx: Array  # [max_reqs]
    q_start: Array  # [max_reqs]
    q_len: Array  # [max_reqs]
    seq_lens: Array  # [max_reqs]
    req_to_token: Array  # [max_running_requests, context_len]
    row_ends: Array | None = None  # [max_rows]: where what a row sees ends; None: after its own position


@dataclass(frozen=True)
class KernelLimits:
    """Models that an op set can compute. What lies outside is refused before anything is allocated (model/kernel_limits.py)."""

    max_head_dim: int = 1 << 14
    """of decoders and encoders"""
    max_group: int = 1 << 16
    """query heads that share a KV head"""
    max_width: int = 1 << 24
    """hidden_size"""


@dataclass(frozen=True)
class Routing:
    """How a row chooses its experts: by the softmax or the sigmoids of its logits, from all or from the best groups (arXiv 2412.19437)."""

    score: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    """weights are divided by their sum"""
    scale: float = 1.0
    """weights are multiplied by it, at last"""
    num_groups: int = 1
    """experts are so many equal runs of neighbours"""
    top_groups: int = 1
    """so many groups may be chosen from"""
    group_best: int = 2
    """a group is as good as so many of its best experts together: 1 or 2"""


@dataclass(frozen=True)
class Routes:
    """Which experts compute the rows of a step: static arrays that `route` writes. A pair is a row and one of its experts: pair
    row * k + choice. Sorted pairs are in the order of experts, those of one in the order of rows."""

    ids: Array  # [max_rows, k] int32, experts of a row, the best first
    weights: Array  # [max_rows, k]
    order: Array  # [max_rows * k] int32, the pair at each place among the sorted
    starts: Array  # [num_experts + 1] int32, expert e has the places starts[e] .. starts[e + 1] - 1


class Ops(StateOps, Protocol):
    """One set of kernels on one device."""

    name: str
    """shown to users, e.g. "cpu avx512_vnni" """
    slot_run: int
    """KV slots come in aligned runs of this many (forward_batch.ModelInfo.slot_run)"""
    deterministic: bool
    limits: KernelLimits
    runs_ahead: bool
    """whether ops return before they have run, so that the host may prepare the next step meanwhile"""

    # --- memory and weights: at load time only --------------------------------------------------------------------------------
    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Array:
        """A zeroed array of the device. dtype: float32, int32, uint32, or "hidden": the op set's own for rows that one op
        writes and the next reads (float32 on a CPU, the model's type on CUDA)."""
        ...

    def array(self, host: npt.NDArray[Any]) -> Array:
        """A host array on the device (on a CPU possibly the same memory)."""
        ...

    def inputs(self, sizes: Mapping[str, int]) -> Inputs:
        """An int32 array of each name and size, zeroed."""
        ...

    def table(self, host: npt.NDArray[np.int32]) -> Array:
        """The device's side of a host table that its owner goes on writing (on a CPU the same memory)."""
        ...

    def sync_table(
        self, table: Array, host: npt.NDArray[np.int32], rows: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
    ) -> None:
        """table[r, :n] = host[r, :n] for each (r, n) of rows and lengths. Does not wait."""
        ...

    def write(self, out: Array, x: Array) -> None:
        """out[: len(x)] = x, an array of the host or the device, seen by ops called from here on and by none before. `x` may be
        changed at once. Where ops run ahead, waits for those before."""
        ...

    def fetch(self, x: Array) -> Fetch:
        """A copy of x as it is once the ops called so far have run. Does not wait."""
        ...

    def finish(self) -> None:
        """Waits until every op called so far has run."""
        ...

    def bound(self, rows: Array, num_rows: int) -> None:
        """`rows` (of `inputs` or `empty`) holds at most num_rows until it is said again: a hint, without which sizes count."""
        ...

    def bound_step(self, meta: AttentionMeta, shape: StepShape) -> None:
        """The same for attention over `meta`."""
        ...

    def pack(self, parts: Sequence[HostTensor]) -> Weight:
        """Stacks matrices [n_i, k] along their rows and packs them. All parts must be packable together (`can_stack`)."""
        ...

    def can_stack(self, parts: Sequence[HostTensor]) -> bool:
        """Whether `pack` can make one weight of these parts without changing their values (same packed format)."""
        ...

    def pack_gated(self, gate: HostTensor, up: HostTensor) -> Weight:
        """Packs the two matrices [f, k] of a gated feed-forward layer for `gated_linear`. Requires can_stack([gate, up])."""
        ...

    def pack_experts(self, num_experts: int, read: Callable[[int], Sequence[HostTensor]], *, gated: bool) -> Bank:
        """Packs the matrices of experts, one expert after the other: `read(e)` gives those of expert e, as `pack_gated` or `pack`
        takes them, and they are not kept. All experts' must pack alike."""
        ...

    def adapter_bank(
        self, num_slots: int, max_rank: int, in_features: int, widths: Sequence[int], *, name: str = ""
    ) -> AdapterBank:
        """Room for what adapters add to a linear layer of matrices of `widths` rows side by side. `name`: of the first."""
        ...

    def pack_adapter(self, bank: AdapterBank, parts: Sequence[LowRank | None]) -> Any:
        """What `place_adapter` takes, of what one adapter adds to each of the bank's matrices. May be called on any thread."""
        ...

    def place_adapter(self, bank: AdapterBank, slot: int, packed: Any) -> None:
        """Writes it into a slot, for ops called from here on. No op that was called before may still read the slot."""
        ...

    def activation(self, max_rows: int, readers: Sequence[Weight], num_heads: int = 1) -> Activation:
        """A buffer for rows that all of `readers` multiply; its width is their common in_features, times num_heads."""
        ...

    def kv_layers(self, num_layers: int, num_slots: int, num_kv_heads: int, head_dim: int) -> list[KVLayer]:
        """The KV pool of each layer, zeroed; memory is taken as it is used. `num_slots` is a multiple of `slot_run`."""
        ...

    def touch_kv(self, layers: Sequence[KVLayer], start: int, end: int) -> None:
        """Has the system bring the memory of slots [start, end) now, not when it is first written to. They hold nothing."""
        ...

    def kv_runs(self, layers: Sequence[KVLayer]) -> KVRuns | None:
        """The pool's memory as bytes; None where it is not this process's memory."""
        ...

    def packed_bits(self, format_name: str) -> float:
        """Bits of a value of a matrix, once it is packed. An unknown format counts as 8."""
        ...

    def kv_bytes_per_token(self, num_kv_heads: int, head_dim: int) -> int:
        """Bytes one token takes in one layer, K and V together."""
        ...

    # --- the forward pass: recorded ---------------------------------------------------------------------------------------------
    def take_sampled(self, ids: Array, previous: Array, sampled: Array, rows: Array) -> None:
        """ids[i] = max(sampled[previous[i]], 0) where previous[i] is not negative. All are int32; ids, previous: [max_rows];
        sampled: ids that `argmax` or `sample` chose, -1 where they could not."""
        ...

    def embedding(self, weight: Weight, ids: Array, out: Array, rows: Array, *, scale: float = 1.0) -> None:
        """out[i] = scale * weight[ids[i]]. ids: [max_rows] int32; out: [max_rows, hidden]."""
        ...

    def rms_norm(
        self,
        x: Array,
        weight: Array,
        out: Array | Activation,
        rows: Array,
        *,
        eps: float,
        delta: Array | None = None,
        row_idx: Array | None = None,
    ) -> None:
        """x[r] += delta[r] in place if given; then out[i] = x[r] / sqrt(mean(x[r]^2) + eps) * weight, where r = row_idx[i] if
        given, else i. x, delta: [max_rows, hidden]; weight: [hidden]. `out` may be `delta` itself. Given both
        delta and row_idx, what x holds afterwards is the op set's own business: a row may be named twice."""
        ...

    def linear(self, weight: Weight, x: Activation, out: Array, rows: Array, *, bias: Array | None = None) -> None:
        """out[i] = weight @ x[i] (+ bias). out: [max_rows, >= out_features], possibly a column range of a wider buffer. Of a weight
        of `pack_gated`: gate's columns, then up's, without a bias."""
        ...

    def linear_blocks(
        self, weight: Weight, x: Activation, out: Array, rows: Array, whole: Array, num_blocks: Array, blocks: Array
    ) -> None:
        """`linear` for rows of which not all is wanted: the first whole[0] get all columns, the others only 16 b .. 16 b + 15
        for b in blocks[: num_blocks[0]], bitwise the same there. blocks: [>= ceil(out_features / 16)]. Not of every op set."""
        ...

    def gated_linear(self, weight: Weight, x: Activation, out: Activation, rows: Array, *, gate: Gate) -> None:
        """out[i] = f(gate @ x[i]) * (up @ x[i]) for a weight of `pack_gated`; bitwise equal to `linear` followed by `gate`."""
        ...

    def route(
        self,
        logits: Array,
        routes: Routes,
        rows: Array,
        *,
        how: Routing,
        bias: Array | None = None,
        scales: Array | None = None,
    ) -> None:
        """Chooses the best experts of each row, equal ones by lower id, and sorts the pairs. logits: [max_rows, num_experts];
        bias: [num_experts], added to scores for the choice and not in weights; scales: [num_experts], multiply an expert's weights."""
        ...

    def gated_experts(
        self,
        bank: Bank,
        x: Activation,
        out: Activation,
        routes: Routes,
        rows: Array,
        *,
        gate: ExpertGate,
        bias: Array | None = None,
    ) -> None:
        """out[i] = f(gate_e @ x[r], up_e @ x[r]) for the i-th of the sorted pairs, of row r and expert e; bank: of gated matrices;
        out: rows for max_rows * k pairs. bias: [num_experts, 2 * f], of gates before ups. gate "relu2" is of a bank of single
        matrices: out[i] = relu(up_e @ x[r])^2; bias: [num_experts, f]."""
        ...

    def experts_linear(
        self, bank: Bank, x: Activation, out: Array, routes: Routes, rows: Array, *, bias: Array | None = None
    ) -> None:
        """out[r] = sum over the pairs i of row r, in a fixed order, of weight_i * (matrix_e @ x[i] + bias[e]). x: rows of sorted
        pairs; bias: [num_experts, out]."""
        ...

    def heads_linear(self, bank: Bank, x: Activation, out: Array, rows: Array) -> None:
        """Every head by a matrix of its own: out[i, h n : (h + 1) n] = matrix_h @ x[i, h k : (h + 1) k], of a bank of dense ones."""
        ...

    def low_rank(self, bank: AdapterBank, x: Activation, out: Array, adapters: RowAdapters) -> None:
        """out[i] += scale * (b @ (a @ x[i])), with the matrices of row i's adapter, for each of the bank's matrices in its columns of
        out: [max_rows, >= sum of widths]. Rows are batch-invariant. Rows without an adapter stay as they are."""
        ...

    def gate(self, gate: Array, up: Array, out: Array | Activation, rows: Array, *, gate_fn: Gate) -> None:
        """out[i] = f(gate[i]) * up[i]. gate, up: [max_rows, f], possibly column ranges; `out` is no part of them."""
        ...

    def store(self, x: Array, out: Activation, rows: Array) -> None:
        """out[i] = x[i]. x: [max_rows, width]."""
        ...

    def rope_store(
        self,
        qkv: Array,
        kv: KVLayer,
        positions: Array,
        slots: Array,
        rows: Array,
        *,
        num_heads: int,
        cos: Array,
        sin: Array,
        q_scale: float,
        q_norm: Array | None = None,
        k_norm: Array | None = None,
        eps: float = 0.0,
        norm_last: bool = False,
        q_growth: Array | None = None,
        q_only: bool = False,
    ) -> None:
        """qkv: [max_rows, (num_heads + 2 * num_kv_heads) * head_dim], heads of q, then k, then v. For each row, in place on q:
        RMS-normalize each head of q and k (if q_norm and k_norm, [head_dim], are given), rotate q and k by the row's
        position (with `norm_last`, first rotate, then normalize), multiply q by q_scale, and by q_growth[position] if given
        ([max_positions]); then store k and v in the row's slot of `kv`.

        Rotation is of the half-split kind: with d = cos.shape[1], elements j and j + d of a head form a pair for j < d; what
        lies beyond 2 * d is left alone. cos, sin: [max_positions, d]. With `q_only` qkv is [max_rows, num_heads * head_dim] and
        nothing is stored."""
        ...

    def attention(
        self,
        qkv: Array,
        kv: KVLayer,
        out: Activation,
        meta: AttentionMeta,
        *,
        num_heads: int,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Array | None = None,
    ) -> None:
        """Causal grouped-query attention of every request's new rows over its slots. q is read from the first num_heads *
        head_dim columns of qkv, already scaled. A row at position p sees positions max(0, p - window + 1) .. p (all up to p
        when window is 0), or up to meta.row_ends - 1 where that is later, which must lie in the request's own seq_len. soft_cap c > 0 turns a score s into c * tanh(s / c).
        `sinks`, [num_heads], if given: a score of each head that takes its share of the weights and has no V. out: [rows, num_heads * head_dim]."""
        ...

    def soft_cap(self, x: Array, rows: Array, *, cap: float) -> None:
        """x[i] = cap * tanh(x[i] / cap) in place. x: [max_rows, n]."""
        ...

    # --- several residual streams: recorded ----------------------------------------------------------------------------------------
    def scale(self, x: Array, rows: Array, *, by: float) -> None:
        """x[i] *= by in place. x: [max_rows, n]."""
        ...

    def match_rms(self, x: Array, like: Array, rows: Array) -> None:
        """x[i] *= sqrt(mean(like[i]^2)) / sqrt(max(mean(x[i]^2), 1e-5)) in place. x, like: [max_rows, n]."""
        ...

    def sparsify(self, x: Array, rows: Array, *, deviations: float) -> None:
        """x[i] = max(x[i] - m - deviations * d, 0) in place, m and d being mean and standard deviation of x[i]. x: [max_rows, n],
        possibly a column range."""
        ...

    # --- what the decoder of a vision-language model needs besides: recorded ----------------------------------------------------------
    def overlay(self, x: Array, source: Array, index: Array, rows: Array, *, add: bool = False) -> None:
        """x[i] = source[index[i]] where index[i] >= 0, or with `add` x[i] += source[index[i]]; other rows stay. x: [max_rows,
        n]; source: [m, n]; index: [max_rows] int32."""
        ...

    def select_rope(
        self, cos: Array, sin: Array, positions: Array, axes: Array, out_cos: Array, out_sin: Array, rows: Array
    ) -> None:
        """out_cos[i, j] = cos[positions[axes[j], i], j], and so for sin: tables by row for positions of several axes
        (arXiv 2409.12191). cos, sin: [num_positions, d]; positions: [3, max_rows] int32; axes: [d] int32; out_*: [max_rows, d]."""
        ...

    # --- encoders of images: rows are patches; `rows` as everywhere -----------------------------------------------------------
    def layer_norm(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        out: Array | Activation,
        rows: Array,
        *,
        eps: float,
        delta: Array | None = None,
    ) -> None:
        """x[i] += delta[i] in place if given; then out[i] = (x[i] - mean) / sqrt(variance + eps) * weight + bias."""
        ...

    def activate(self, x: Array, out: Activation, rows: Array, *, fn: Activator) -> None:
        """out[i] = fn(x[i]). quick_gelu(x) = x / (1 + exp(-1.702 x)); relu2(x) = max(x, 0)^2."""
        ...

    def gather_rows(self, x: Array, index: Array, out: Array, rows: Array) -> None:
        """out[i] = x[index[i]]. index: [max_rows] int32."""
        ...

    def blend_rows(self, x: Array, index: Array, weight: Array, out: Array, rows: Array) -> None:
        """out[i] = sum over j, ascending, of weight[i, j] * x[index[i, j]]. index: [max_rows, k] int32; weight: [max_rows, k]."""
        ...

    def rotate(self, x: Array, cos: Array, sin: Array, rows: Array, *, num_heads: int, head_dim: int) -> None:
        """Turns the first num_heads heads of each row in place, pairs (j, j + d) of a head by the row's own cos and sin
        [max_rows, d]."""
        ...

    def segment_attention(
        self, qkv: Array, starts: Array, out: Array, *, begin: int, end: int, num_heads: int, head_dim: int, scale: float,
        window: int = 0, bias: Array | None = None,
    ) -> None:  # fmt: skip
        """Rows begin .. end - 1 attend (bidirectionally) to all rows of their own segment: segment s is rows starts[s] ..
        starts[s + 1] - 1 (starts: int32, ascending, from 0 to the number of rows). qkv: [n, 3 * num_heads * head_dim], heads of q,
        then k, then v; out: [n, num_heads * head_dim]. `window`: a row sees only rows at most so far away, if it is not 0.
        `bias`, [num_heads, 2 r + 1], if given: bias[h, clip(j - i, -r, r) + r] is added to the score of rows i and j."""
        ...

    # --- on logits: called after the forward pass, not recorded; x is [num_rows, vocab] float32. Arguments other than x may be
    # host arrays on any device; results go to arrays of the device (`fetch` brings them) or, after a wait, to host arrays -------
    def pick(self, x: Array, row_idx: Array, ids: Array) -> npt.NDArray[np.float32]:
        """x[row_idx[i], ids[i]] on the host, in its own array. Waits."""
        ...

    def adjust(self, x: Array, indptr: Array, ids: Array, scale: Array, bias: Array) -> None:
        """For each row i and each j in indptr[i] .. indptr[i+1]-1: v = x[i, ids[j]]; v = v / scale[j] if v > 0 else
        v * scale[j]; x[i, ids[j]] = v + bias[j]. This is repetition penalty (scale) and frequency and presence penalties and
        logit bias (bias) at once."""
        ...

    def mask(self, x: Array, row_idx: Array, bits: Array) -> None:
        """Row row_idx[i] of x becomes -inf wherever bits[i] has a 0. bits: [n, ceil(vocab / 32)] uint32; columns beyond the
        bits become -inf as well."""
        ...

    def argmax(self, x: Array, num_rows: int, out: Array) -> None:
        """out[i] = index of the largest value of x[i], the lowest such index; -1 if the row holds a NaN."""
        ...

    def log_sum_exp(self, x: Array, num_rows: int, out: Array) -> None:
        """out[i] = log(sum(exp(x[i]))), float32."""
        ...

    def top_k(self, x: Array, num_rows: int, k: int, ids: Array, values: Array) -> None:
        """The k largest values of each row, best first, equal values by lower id. ids: [n, k] int32; values: [n, k]."""
        ...

    def sample(
        self, x: Array, num_rows: int, temperature: Array, top_k: Array, top_p: Array, min_p: Array, uniform: Array, out: Array
    ) -> None:
        """Samples out[i] from row i: softmax(x / temperature), keep the top_k most likely (all if top_k <= 0), of those the
        smallest set reaching top_p of the mass, of those what is at least min_p times the best; sample by inverting the
        cumulative sum in descending order (ties by id) at uniform[i] in [0, 1). A row with temperature 0 is argmax. -1 if the
        row holds a NaN or nothing but -inf. All arguments are [num_rows]."""
        ...
