"""Our own C++ kernels behind the op interface: packed weights, int8 activations where weights are quantized, float16 KV.

The extension `_cpu` (sources in csrc/, a distribution of its own) holds one set of kernels per instruction set and picks the best
one this processor runs. Here its handles are wrapped in the signatures of `ops.Ops`; every argument is checked once, when an op is
called or recorded. docs/kernels.md describes the memory layouts and the rules that keep results independent of the batch.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sglang_anywhere_kernels

if importlib.util.find_spec("sglang_anywhere_kernels._cpu") is None:
    raise ImportError("they were not compiled")
from sglang_anywhere_kernels import _cpu

from sglang.srt.errors import ConfigError
from sglang.srt.model.kernels.cpu_states import CpuStates
from sglang.srt.model.kernels.host import HostArrays
from sglang.srt.model.kernels.kv_runs import NativeRuns
from sglang.srt.model.kernels.low_rank import Blocks, LowRank, PackedAdapterBank, RowAdapters
from sglang.srt.model.kernels.ops import (
    Activation,
    Activator,
    Array,
    AttentionMeta,
    Bank,
    ExpertGate,
    Gate,
    KernelLimits,
    KVLayer,
    Routes,
    Routing,
    Weight,
)
from sglang.srt.model.kernels.packing import INTS, SMALL, Packing, can_stack, packed_bits
from sglang.srt.model.kernels.transfer import Fetch, Inputs
from sglang.srt.model.quant.formats import HostTensor
from sglang.version import __version__

if sglang_anywhere_kernels.__version__ != __version__:
    raise ImportError(f"sglang-anywhere {__version__} needs kernels of its version, not {sglang_anywhere_kernels.__version__}")
if not _cpu.usable_isas():
    raise ImportError(f"they were compiled for another processor: this one has {', '.join(_cpu.processor_isas())}")

Int32 = npt.NDArray[np.int32]

# Between Python and kernels that run while it goes on: the memory is one, the moments are not. What an op reads or writes belongs to
# it until it has run. So inputs are written to copies and get to their place in turn, as an op like any other, and so do results on
# their way out. Nothing waits but `StagedInputs.begin`, when it is RING steps ahead, and `CopiedFetch.result`.
RING = 3
"""steps that may be on their way at once"""
ALIGN = 16
"""ints: every array starts on its own line"""


class StagedInputs:
    """ops.Inputs: one block that the ops read, and RING copies of it, written in turn."""

    def __init__(self, runtime: Any, sizes: Mapping[str, int]) -> None:
        ranges: dict[str, slice] = {}
        end = 0
        for name, size in sizes.items():
            ranges[name] = slice(end, end + size)
            end += -(-max(size, 1) // ALIGN) * ALIGN
        self._runtime = runtime
        self._block: Int32 = np.zeros(end, np.int32)
        self.arrays: Mapping[str, Int32] = {name: self._block[span] for name, span in ranges.items()}
        self._ring: list[Int32] = [np.zeros(end, np.int32) for _ in range(RING)]
        self._views = [{name: copy[span] for name, span in ranges.items()} for copy in self._ring]
        self._sent = [0] * RING
        self._turn = 0

    @property
    def host(self) -> Mapping[str, Int32]:
        return self._views[self._turn]

    def begin(self) -> None:
        self._turn = (self._turn + 1) % RING
        self._runtime.wait(self._sent[self._turn])

    def send(self) -> None:
        self._sent[self._turn] = self._runtime.copy(self._block, self._ring[self._turn])


class CopiedFetch:
    """ops.Fetch: the copy is made when its turn comes."""

    def __init__(self, runtime: Any, x: npt.NDArray[Any]) -> None:
        self._runtime = runtime
        self._values = np.empty_like(x, order="C")
        self._job: int = runtime.copy(self._values, x)

    def result(self) -> npt.NDArray[Any]:
        self._runtime.wait(self._job)
        return self._values


SPIN_US = 300
"""Microseconds that a thread waits awake for the next step before it sleeps."""


def usable_isas() -> list[str]:
    """The instruction sets there are kernels for and that this processor has, best first."""
    names: list[str] = _cpu.usable_isas()
    return names


def missing_isa() -> str | None:
    """The best instruction set of this processor, where a checkout that came from another machine has no kernels for it."""
    best: str = _cpu.processor_isas()[0]
    return None if best in usable_isas() else best


def default_threads() -> int:
    """Physical cores this process may use: its affinity, less what a container's quota takes away."""
    try:
        allowed = set(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in allowed}
    quota = _cgroup_cpus()
    return max(1, min(len(cores), math.ceil(quota) if quota else len(cores)))


def _siblings(cpu: int) -> str:
    """The hardware threads of a logical processor's core; the processor itself where the system does not say."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _cgroup_cpus() -> float | None:
    """Processors' worth of time that the control group allows, None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            base = Path("/sys/fs/cgroup/cpu")
            quota, period = ((base / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)


class CpuOps(CpuStates, HostArrays):
    """The op set of the native kernels. `threads=None`: one per physical core. `isa`: one of `usable_isas()`, None for the
    best. `kv_form`: how K and V are kept, float16, int8 or fp8_e4m3. Handles of one CpuOps (weights, activations, KV) are for that
    one alone.

    With `ahead`, tapes and the ops that choose tokens return at once and run, in order, on other threads; whoever asks for a
    result lends them this one, unless all `threads` compute already. Every other op first waits for what is on its way.

    A forked child may go on using it: its first op starts its own threads. What was on its way at the fork is computed in
    the parent only; asking for it raises RuntimeError."""

    slot_run = 16
    deterministic = True
    formats = SMALL
    limits = KernelLimits(max_head_dim=1024, max_group=256, max_width=1 << 20)
    """A thread's scratch of 4 MiB holds a group's rows of q beside a chunk of K and V (csrc/bindings.cpp,
    attention), and a row of a norm"""

    def __init__(
        self, threads: int | None = None, isa: str | None = None, ahead: bool = False, kv_form: str = "float16"
    ) -> None:
        if threads is not None and not 1 <= threads <= 256:
            raise ConfigError(f"threads must be between 1 and 256, got {threads}")
        if isa is not None and isa not in usable_isas():
            raise ConfigError(f"no kernels for {isa!r} run here; there are {', '.join(usable_isas())}")
        self.runs_ahead, self.kv_form = ahead, kv_form
        self.runtime = _cpu.Runtime(threads or default_threads(), isa or "", SPIN_US, ahead)
        self.name = f"cpu {self.runtime.isa}"
        self.packing = Packing(self.runtime)
        self._blocks = Blocks()

    @property
    def num_threads(self) -> int:
        return int(self.runtime.threads)

    # --- recording (op_tape.py) -----------------------------------------------------------------------------------------------
    def begin_tape(self) -> Any:
        """Starts recording: ops are checked and appended to the returned tape instead of run."""
        tape = _cpu.Tape()
        self.runtime.begin(tape)
        return tape

    def end_tape(self) -> None:
        self.runtime.end()

    # --- between host and device ----------------------------------------------------------------------------------------------
    def inputs(self, sizes: Mapping[str, int]) -> Inputs:
        return StagedInputs(self.runtime, sizes) if self.runs_ahead else super().inputs(sizes)

    def fetch(self, x: npt.NDArray[Any]) -> Fetch:
        return CopiedFetch(self.runtime, x) if self.runs_ahead else super().fetch(x)

    def write(self, out: npt.NDArray[Any], x: npt.NDArray[Any]) -> None:
        self.finish()
        super().write(out, x)

    def pick(self, x: npt.NDArray[Any], row_idx: Any, ids: Any) -> npt.NDArray[np.float32]:
        self.finish()
        return super().pick(x, row_idx, ids)

    def finish(self) -> None:
        self.runtime.finish()

    def take_sampled(self, ids: Array, previous: Array, sampled: Array, rows: Array) -> None:
        self.runtime.take_sampled(ids, previous, sampled, rows)

    # --- memory and weights ---------------------------------------------------------------------------------------------------
    def array(self, host: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.array(host, order="C")  # a copy: a view would keep the whole mapped file

    def can_stack(self, parts: Sequence[HostTensor]) -> bool:
        return can_stack(parts)

    def pack(self, parts: Sequence[HostTensor]) -> Weight:
        return self.packing.pack(parts)

    def pack_gated(self, gate: HostTensor, up: HostTensor) -> Weight:
        return self.packing.pack_gated(gate, up)

    def pack_experts(self, num_experts: int, read: Callable[[int], Sequence[HostTensor]], *, gated: bool) -> Bank:
        return self.packing.pack_experts(num_experts, read, gated=gated)

    def adapter_bank(
        self, num_slots: int, max_rank: int, in_features: int, widths: Sequence[int], *, name: str = ""
    ) -> PackedAdapterBank:
        return PackedAdapterBank(num_slots, max_rank, in_features, widths, self._blocks)

    def pack_adapter(self, bank: Any, parts: Sequence[LowRank | None]) -> Any:
        return bank.pack(parts)

    def place_adapter(self, bank: Any, slot: int, packed: Any) -> None:
        self.finish()
        bank.place(slot, packed)

    def activation(self, max_rows: int, readers: Sequence[Any], num_heads: int = 1) -> Activation:
        widths = {reader.in_features for reader in readers}
        if len(widths) != 1:
            raise ValueError(f"readers of one activation must have one width, got {sorted(widths)}")
        kinds = {reader.kind for reader in readers}
        ints, floats = bool(kinds & INTS), bool(kinds - INTS)
        activation: Activation = _cpu.Activation(max_rows, widths.pop() * num_heads, ints, floats)
        return activation

    def kv_layers(self, num_layers: int, num_slots: int, num_kv_heads: int, head_dim: int) -> list[KVLayer]:
        layers: list[KVLayer] = _cpu.KVLayer.make(num_layers, num_slots, num_kv_heads, head_dim, self.kv_form)
        return layers

    def touch_kv(self, layers: Sequence[Any], start: int, end: int) -> None:
        layers[0].touch(start, end)  # all layers of a run lie together

    def kv_runs(self, layers: Sequence[Any]) -> NativeRuns:
        return NativeRuns(layers[0].runs(len(layers)), layers[0].num_kv_heads, self.slot_run, self.kv_form)

    def packed_bits(self, format_name: str) -> float:
        return packed_bits(format_name)

    def kv_bytes_per_token(self, num_kv_heads: int, head_dim: int) -> int:
        padded = -(-head_dim // 16) * 16
        return 2 * num_kv_heads * (padded * 2 if self.kv_form == "float16" else padded + 4)

    # --- the forward pass -----------------------------------------------------------------------------------------------------
    def embedding(self, weight: Weight, ids: Array, out: Array, rows: Array, *, scale: float = 1.0) -> None:
        self.runtime.embedding(weight, ids, out, rows, scale)

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
        """Normalizes rows. With `row_idx` x itself stays unchanged, since a row may be asked for twice."""
        self.runtime.rms_norm(x, weight, out, rows, eps, delta, row_idx)

    def linear(self, weight: Weight, x: Activation, out: Array, rows: Array, *, bias: Array | None = None) -> None:
        self.runtime.linear(weight, x, out, rows, bias)

    def linear_blocks(
        self, weight: Weight, x: Activation, out: Array, rows: Array, whole: Array, num_blocks: Array, blocks: Array
    ) -> None:
        self.runtime.linear_blocks(weight, x, out, rows, whole, num_blocks, blocks)

    def gated_linear(self, weight: Weight, x: Activation, out: Activation, rows: Array, *, gate: Gate) -> None:
        self.runtime.gated_linear(weight, x, out, rows, gate)

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
        groups = how.num_groups, how.top_groups, how.group_best
        self.runtime.route(logits, routes, rows, how.score == "sigmoid", how.normalize, how.scale, *groups, bias, scales)

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
        self.runtime.gated_experts(bank, x, out, routes, rows, gate, bias)

    def experts_linear(
        self, bank: Bank, x: Activation, out: Array, routes: Routes, rows: Array, *, bias: Array | None = None
    ) -> None:
        """A row's experts are added up by ascending id."""
        self.runtime.experts_linear(bank, x, out, routes, rows, bias)

    def heads_linear(self, bank: Bank, x: Activation, out: Array, rows: Array) -> None:
        self.runtime.heads_linear(bank, x, out, rows)

    def low_rank(self, bank: Any, x: Activation, out: Array, adapters: RowAdapters) -> None:
        matrices = (bank.a_bits, bank.b_bits, bank.scales, bank.ranks, bank.columns, bank.max_rank)
        self.runtime.low_rank(*matrices, x, out, adapters.num_tiles, adapters.slots, adapters.starts, adapters.order)

    def gate(self, gate: Array, up: Array, out: Array | Activation, rows: Array, *, gate_fn: Gate) -> None:
        self.runtime.gate(gate, up, out, rows, gate_fn)

    def store(self, x: Array, out: Activation, rows: Array) -> None:
        self.runtime.store(x, out, rows)

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
        norms = (q_norm, k_norm, eps, norm_last)
        self.runtime.rope_store(qkv, kv, positions, slots, rows, num_heads, cos, sin, q_scale, *norms, q_growth, q_only)

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
        self.runtime.attention(qkv, kv, out, meta, num_heads, window, soft_cap, sinks)

    def soft_cap(self, x: Array, rows: Array, *, cap: float) -> None:
        self.runtime.soft_cap(x, rows, cap)

    def scale(self, x: Array, rows: Array, *, by: float) -> None:
        self.runtime.scale(x, rows, by)

    def match_rms(self, x: Array, like: Array, rows: Array) -> None:
        self.runtime.match_rms(x, like, rows)

    def sparsify(self, x: Array, rows: Array, *, deviations: float) -> None:
        self.runtime.sparsify(x, rows, deviations)

    # --- vision-language models -----------------------------------------------------------------------------------------------
    def overlay(self, x: Array, source: Array, index: Array, rows: Array, *, add: bool = False) -> None:
        self.runtime.overlay(x, source, index, rows, add)

    def select_rope(
        self, cos: Array, sin: Array, positions: Array, axes: Array, out_cos: Array, out_sin: Array, rows: Array
    ) -> None:
        self.runtime.select_rope(cos, sin, positions, axes, out_cos, out_sin, rows)

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
        self.runtime.layer_norm(x, weight, bias, out, rows, eps, delta)

    def activate(self, x: Array, out: Activation, rows: Array, *, fn: Activator) -> None:
        self.runtime.activate(x, out, rows, fn)

    def gather_rows(self, x: Array, index: Array, out: Array, rows: Array) -> None:
        self.runtime.gather_rows(x, index, out, rows)

    def blend_rows(self, x: Array, index: Array, weight: Array, out: Array, rows: Array) -> None:
        self.runtime.blend_rows(x, index, weight, out, rows)

    def rotate(self, x: Array, cos: Array, sin: Array, rows: Array, *, num_heads: int, head_dim: int) -> None:
        self.runtime.rotate(x, cos, sin, rows, num_heads, head_dim)

    def segment_attention(
        self, qkv: Array, starts: Array, out: Array, *, begin: int, end: int, num_heads: int, head_dim: int, scale: float,
        window: int = 0, bias: Array | None = None,
    ) -> None:  # fmt: skip
        self.runtime.segment_attention(qkv, starts, out, begin, end, num_heads, head_dim, scale, window, bias)

    # --- on logits ------------------------------------------------------------------------------------------------------------
    def adjust(self, x: Array, indptr: Array, ids: Array, scale: Array, bias: Array) -> None:
        self.runtime.adjust(x, indptr, ids, scale, bias)

    def mask(self, x: Array, row_idx: Array, bits: Array) -> None:
        self.runtime.mask(x, row_idx, bits)

    def argmax(self, x: Array, num_rows: int, out: Array) -> None:
        self.runtime.argmax(x, num_rows, out)

    def log_sum_exp(self, x: Array, num_rows: int, out: Array) -> None:
        self.runtime.log_sum_exp(x, num_rows, out)

    def top_k(self, x: Array, num_rows: int, k: int, ids: Array, values: Array) -> None:
        self.runtime.top_k(x, num_rows, k, ids, values)

    def sample(
        self, x: Array, num_rows: int, temperature: Array, top_k: Array, top_p: Array, min_p: Array, uniform: Array, out: Array
    ) -> None:
        self.runtime.sample(x, num_rows, temperature, top_k, top_p, min_p, uniform, out)
