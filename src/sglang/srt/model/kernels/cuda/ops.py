"""The op set of NVIDIA GPUs: torch tensors, Triton kernels (triton/), cuBLAS through torch. ops.py says what each op means.

    residual stream x, logits     float32
    "hidden" rows, activations    the model's type (bfloat16, float16, float32)
    products                      in the model's type, added up in float32
    K and V                       the model's type, or float8 (e4m3)

Ops only launch; none waits for the device. Launches are sized by what the host knows (`bound`, `bound_step`) and programs read the
true counts on the device, so what `capture` records serves every step up to its bounds.

With device "cpu" the same kernels run in Triton's interpreter: slow, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from sglang.srt.errors import ConfigError
from sglang.srt.model.kernels.cuda import streams
from sglang.srt.model.kernels.cuda import weights as cuda_weights
from sglang.srt.model.kernels.cuda.attention import PARTIAL_BYTES, PagedAttention
from sglang.srt.model.kernels.cuda.experts import CudaBank, Experts, pack_bank
from sglang.srt.model.kernels.cuda.linear import Products
from sglang.srt.model.kernels.cuda.logits import Logits
from sglang.srt.model.kernels.cuda.low_rank import CudaAdapterBank, LowRankSums
from sglang.srt.model.kernels.cuda.memory import DeviceFetch, DeviceInputs, DeviceTable, upload
from sglang.srt.model.kernels.cuda.pool_copies import CudaRuns
from sglang.srt.model.kernels.cuda.states import CudaStates
from sglang.srt.model.kernels.cuda.weights import CudaActivation, CudaKV, CudaWeight
from sglang.srt.model.kernels.low_rank import LowRank, RowAdapters
from sglang.srt.model.kernels.ops import Activator, AttentionMeta, ExpertGate, Gate, KernelLimits, Routes, Routing, StepShape
from sglang.srt.model.kernels.triton import norm
from sglang.srt.model.kernels.triton import rows as row_kernels
from sglang.srt.model.kernels.triton.common import INTERPRETED, power_of_two
from sglang.srt.model.kernels.triton.encoder import segment_attention_kernel
from sglang.srt.model.kernels.triton.rope import rope_store_kernel
from sglang.srt.model.quant.formats import HostTensor

Tensor = Any  # torch.Tensor
# An op set only ever meets its own objects, which types cannot say of a Protocol's arguments: hence Any.
Weight = Any  # a CudaWeight
Activation = Any  # a CudaActivation
KVLayer = Any  # a CudaKV
Int32 = npt.NDArray[np.int32]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TL_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
KV_DTYPES = {**DTYPES, "fp8_e4m3": torch.float8_e4m3fn}
_COLUMNS = 1024
"""columns of a program of the row kernels"""


def create_cuda_ops(
    device: str = "cuda", dtype: str = "bfloat16", kv_cache_dtype: str = "auto", deterministic: bool = False
) -> CudaOps:
    """Raises ConfigError where there is no such device or type."""
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype} is not supported on CUDA; supported are {', '.join(DTYPES)}")
    if kv_cache_dtype not in ("auto", *KV_DTYPES):
        raise ConfigError(f"--kv-cache-dtype {kv_cache_dtype} is not supported; supported are auto, {', '.join(KV_DTYPES)}")
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ConfigError(f"--device cuda: torch {torch.__version__} finds no CUDA device here")
        if INTERPRETED:
            raise ConfigError("--device cuda: TRITON_INTERPRET is set, so kernels would not run on the device; unset it")
    elif not INTERPRETED:
        raise ConfigError(
            "CUDA kernels run on the CPU only in Triton's interpreter: set TRITON_INTERPRET=1 before Python starts"
        )
    return CudaOps(device, dtype, kv_cache_dtype, deterministic)


class CudaOps(CudaStates):
    """The op set of one GPU. See ops.Ops for what each op does; made by `create_cuda_ops`."""

    limits = KernelLimits(max_head_dim=512, max_group=256, max_width=1 << 20)
    """a chunk of K and V of one head lies in shared memory"""
    slot_run = 16  # any slot would do; runs keep neighbouring positions in neighbouring memory

    def __init__(
        self,
        device: str,
        dtype: str,
        kv_cache_dtype: str = "auto",
        deterministic: bool = False,
        partial_bytes: int = PARTIAL_BYTES,
    ) -> None:
        self.device = _device(device)
        self.dtype = DTYPES[dtype]
        self.kv_dtype = self.dtype if kv_cache_dtype == "auto" else KV_DTYPES[kv_cache_dtype]
        self.deterministic = deterministic
        self.runs_ahead = True  # in the interpreter the order is the same
        on_gpu = self.device.type == "cuda"
        processors, where = 2, "interpreted"
        self._float8 = False
        self._early: dict[str, bool] = {}
        self._graph_pool: Any = None
        self._graphs: WeakSet[Any] = WeakSet()
        if on_gpu:
            torch.cuda.set_device(self.device)  # Triton launches on the current one
            properties = torch.cuda.get_device_properties(self.device)
            processors, where = properties.multi_processor_count, properties.name
            version = properties.major, properties.minor
            self._float8 = version >= (8, 9) and self.dtype == torch.bfloat16 and not deterministic
            if version >= (9, 0):
                self._early["launch_pdl"] = True
        self.formats = ("out of order", *(f for f in cuda_weights.FORM if f != "f8" or self._float8))
        self.name = f"cuda {where} {dtype} {'fixed-order triton' if deterministic else 'cublas'}"
        self._products = Products(self.device, self.dtype, deterministic, self._early)
        self._experts = Experts(self.device, self.dtype, self._early, self._products.scratch)
        self._attention = PagedAttention(self.device, processors, deterministic, partial_bytes, self._early)
        self._logits = Logits(self.device)
        self._low_rank = LowRankSums(self.device, self._early)
        # by address, together with the array, so that no other array can come to lie there
        self._bounds: dict[int, tuple[Tensor, int]] = {}
        self._shapes: dict[int, tuple[Tensor, StepShape]] = {}
        self._tables: dict[int, DeviceTable] = {}
        for name in ("pick", "adjust", "mask", "argmax", "log_sum_exp", "top_k", "sample"):
            setattr(self, name, getattr(self._logits, name))

    # --- recording ------------------------------------------------------------------------------------------------------------
    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Records the launches of `run` under the present bounds as a CUDA graph and returns what replays it. `run` is called
        before, so that kernels are compiled and scratch memory is taken. On the CPU it is `run` itself."""
        if self.device.type != "cuda":
            return run
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        torch.cuda.synchronize(self.device)
        if not self._graphs:  # a pool ends with its last graph
            self._graph_pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Graphs run one after the other: one pool for all. Other threads (nccl's watchdog) may ask the device meanwhile.
        with torch.cuda.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"):
            run()
        self._graphs.add(graph)
        replay: Callable[[], None] = graph.replay
        return replay

    # --- memory ---------------------------------------------------------------------------------------------------------------
    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
        kinds = {"float32": torch.float32, "int32": torch.int32, "uint32": torch.int32, "hidden": self.dtype}
        return torch.zeros(shape, dtype=kinds[dtype], device=self.device)

    def array(self, host: npt.NDArray[Any]) -> Tensor:
        return upload(np.array(host, order="C"), self.device)

    def inputs(self, sizes: Mapping[str, int]) -> DeviceInputs:
        return DeviceInputs(self.device, sizes)

    def table(self, host: Int32) -> Tensor:
        table = DeviceTable(self.device, host)
        self._tables[table.array.data_ptr()] = table
        return table.array

    def sync_table(self, table: Tensor, host: Int32, rows: Int32, lengths: Int32) -> None:
        self._tables[table.data_ptr()].sync(host, rows, lengths)

    def write(self, out: Tensor, x: Tensor | npt.NDArray[Any]) -> None:
        out[: len(x)].copy_(x if isinstance(x, torch.Tensor) else upload(x, self.device))

    def fetch(self, x: Tensor) -> DeviceFetch:
        return DeviceFetch(x)

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def bound(self, rows: Tensor, num_rows: int) -> None:
        self._bounds[rows.data_ptr()] = (rows, num_rows)

    def bound_step(self, meta: AttentionMeta, shape: StepShape) -> None:
        self._shapes[meta.num_reqs.data_ptr()] = (meta.num_reqs, shape)

    def _most(self, rows: Tensor, *arrays: Tensor) -> int:
        """The most rows that an op may have: the bound that was given, else the size of its arrays."""
        room = min(len(array) for array in arrays)
        bound = self._bounds.get(rows.data_ptr())
        return room if bound is None else min(room, bound[1])

    # --- weights --------------------------------------------------------------------------------------------------------------
    def can_stack(self, parts: Sequence[HostTensor]) -> bool:
        return len({cuda_weights.kind_of(part, self._float8) for part in parts}) == 1

    def pack(self, parts: Sequence[HostTensor]) -> CudaWeight:
        return cuda_weights.pack(parts, self.dtype, self.device, self._float8)

    def pack_gated(self, gate: HostTensor, up: HostTensor) -> CudaWeight:
        """Gate rows, then up rows."""
        return self.pack([gate, up])

    def pack_experts(self, num_experts: int, read: Callable[[int], Sequence[HostTensor]], *, gated: bool) -> CudaBank:
        return pack_bank(num_experts, read, self.dtype, self.device)

    def adapter_bank(
        self, num_slots: int, max_rank: int, in_features: int, widths: Sequence[int], *, name: str = ""
    ) -> CudaAdapterBank:
        return CudaAdapterBank(num_slots, max_rank, in_features, widths, self.dtype, self.device)

    def pack_adapter(self, bank: Any, parts: Sequence[LowRank | None]) -> Any:
        return bank.pack(parts)

    def place_adapter(self, bank: Any, slot: int, packed: Any) -> None:
        bank.place(slot, packed)

    def activation(self, max_rows: int, readers: Sequence[Weight], num_heads: int = 1) -> CudaActivation:
        widths = {reader.in_features for reader in readers}
        if len(widths) != 1:
            raise ValueError(f"readers of one activation must have one width, got {sorted(widths)}")
        return CudaActivation(max_rows, widths.pop() * num_heads, self.dtype, self.device)

    def kv_layers(self, num_layers: int, num_slots: int, num_kv_heads: int, head_dim: int) -> list[KVLayer]:
        return cuda_weights.kv_layers((num_layers, 2, num_kv_heads, num_slots, head_dim), self.kv_dtype, self.device)

    def touch_kv(self, layers: Sequence[CudaKV], start: int, end: int) -> None:
        """Device memory is there from the beginning."""

    def kv_runs(self, layers: Sequence[CudaKV]) -> CudaRuns:
        return CudaRuns(layers[0].pool, self.slot_run)

    def packed_bits(self, format_name: str) -> float:
        return cuda_weights.packed_bits(format_name, self.dtype)

    def kv_bytes_per_token(self, num_kv_heads: int, head_dim: int) -> int:
        return int(2 * num_kv_heads * head_dim * torch.empty((), dtype=self.kv_dtype).element_size())

    # --- the forward pass -----------------------------------------------------------------------------------------------------
    def take_sampled(self, ids: Tensor, previous: Tensor, sampled: Tensor, rows: Tensor) -> None:
        n = self._most(rows, ids, previous)
        if n:
            row_kernels.take_sampled_kernel[(triton.cdiv(n, _COLUMNS),)](ids, previous, sampled, rows, _COLUMNS, **self._early)

    def embedding(self, weight: Weight, ids: Tensor, out: Tensor, rows: Tensor, *, scale: float = 1.0) -> None:
        n, width = self._most(rows, ids, out), weight.in_features
        if n == 0:
            return
        grid = (n, triton.cdiv(width, _COLUMNS))
        if weight.form == "dense":
            row_kernels.embedding_kernel[grid](
                weight.data, ids, out, rows, width, weight.data.stride(0), out.stride(0), scale, _COLUMNS, **self._early
            )
        else:
            assert weight.form != "f8" and weight.order is None, "checkpoints keep their embeddings in 16 bits"
            minima = weight.minima if weight.minima is not None else weight.scales
            row_kernels.embedding_quantized_kernel[grid](
                weight.data, weight.scales, minima, ids, out, rows, width, out.stride(0), scale,
                weight.bits, weight.group, weight.minima is not None, _COLUMNS, **self._early,
            )  # fmt: skip

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        out: Tensor | Activation,
        rows: Tensor,
        *,
        eps: float,
        delta: Tensor | None = None,
        row_idx: Tensor | None = None,
    ) -> None:
        to = _data(out)
        n, width = self._most(rows, to, x if row_idx is None else row_idx), len(weight)
        if n:
            extra, index = x if delta is None else delta, rows if row_idx is None else row_idx
            block = power_of_two(width)
            norm.rms_norm_kernel[(n,)](
                x, weight, to, extra, index, rows, width, x.stride(0), to.stride(0), extra.stride(0), eps,
                delta is not None, row_idx is not None, block, num_warps=_warps(block), **self._early,
            )  # fmt: skip

    def linear(self, weight: Weight, x: Activation, out: Tensor, rows: Tensor, *, bias: Tensor | None = None) -> None:
        n = self._most(rows, x.data, out)
        if n:
            self._products.linear(weight, x, out, rows, n, bias)

    def gated_linear(self, weight: Weight, x: Activation, out: Activation, rows: Tensor, *, gate: Gate) -> None:
        n, half = self._most(rows, x.data, out.data), weight.out_features // 2

        def in_two(rows: Tensor) -> None:
            both = self._products.scratch("gate_up", len(x.data), 2 * half)[:n]
            self._products.linear(weight, x, both, rows, n, None)
            self.gate(both[:, :half], both[:, half:], out, rows, gate_fn=gate)

        if n and not self._products.gated(weight, x, out.data[:n], rows, gate, in_two):
            in_two(rows)

    def route(
        self, logits: Tensor, routes: Routes, rows: Tensor, *, how: Routing, bias: Tensor | None = None, scales: Tensor | None = None
    ) -> None:  # fmt: skip
        if n := self._most(rows, logits, routes.ids):
            self._experts.route(logits, routes, rows, n, how, bias, scales)

    def gated_experts(
        self,
        bank: Any,
        x: Activation,
        out: Activation,
        routes: Routes,
        rows: Tensor,
        *,
        gate: ExpertGate,
        bias: Tensor | None = None,
    ) -> None:
        if n := self._most(rows, x.data, routes.ids):
            self._experts.gated(bank, x, out, routes, rows, n, gate, bias)

    def experts_linear(
        self, bank: Any, x: Activation, out: Tensor, routes: Routes, rows: Tensor, *, bias: Tensor | None = None
    ) -> None:
        if n := self._most(rows, out, routes.ids):
            self._experts.linear(bank, x, out, routes, rows, n, bias)

    def heads_linear(self, bank: Any, x: Activation, out: Tensor, rows: Tensor) -> None:
        if n := self._most(rows, out, x.data):
            self._experts.of_heads(bank, x, out, rows, n)

    def low_rank(self, bank: Any, x: Activation, out: Tensor, adapters: RowAdapters) -> None:
        self._low_rank.add(bank, x.data, out, adapters, self._most(adapters.num_tiles, adapters.slots))

    def gate(self, gate: Tensor, up: Tensor, out: Tensor | Activation, rows: Tensor, *, gate_fn: Gate) -> None:
        to = _data(out)
        if n := self._most(rows, gate, to):
            row_kernels.gate_kernel[(n, triton.cdiv(to.shape[1], _COLUMNS))](
                gate, up, to, rows, to.shape[1], gate.stride(0), up.stride(0), to.stride(0), gate_fn, _COLUMNS, **self._early,
            )  # fmt: skip

    def store(self, x: Tensor, out: Activation, rows: Tensor) -> None:
        self._activate(x, out, rows, "none")

    def activate(self, x: Tensor, out: Activation, rows: Tensor, *, fn: Activator) -> None:
        self._activate(x, out, rows, fn)

    def _activate(self, x: Tensor, out: Activation, rows: Tensor, fn: str) -> None:
        n, width = self._most(rows, x, out.data), out.width
        if n:
            row_kernels.activate_kernel[(n, triton.cdiv(width, _COLUMNS))](
                x, out.data, rows, width, x.stride(0), out.data.stride(0), fn, _COLUMNS
            )

    def rope_store(
        self,
        qkv: Tensor,
        kv: KVLayer,
        positions: Tensor,
        slots: Tensor,
        rows: Tensor,
        *,
        num_heads: int,
        cos: Tensor,
        sin: Tensor,
        q_scale: float,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
        norm_last: bool = False,
        q_growth: Tensor | None = None,
        q_only: bool = False,
    ) -> None:
        n, pairs, heads = self._most(rows, qkv, positions, slots), cos.shape[1], 4
        num_kv = 0 if q_only else kv.num_kv_heads
        if n == 0:
            return
        rest = kv.head_dim - 2 * pairs
        weights = (q_norm, k_norm) if q_norm is not None and k_norm is not None else (cos, cos)
        rope_store_kernel[(n, triton.cdiv(num_heads + 2 * num_kv, heads))](
            qkv, kv.k, kv.v, positions, slots, rows, cos, sin, *weights, cos if q_growth is None else q_growth,
            qkv.stride(0), cos.stride(0), kv.k.stride(0), num_heads, num_kv, kv.head_dim, pairs, q_scale, eps,
            q_norm is not None and k_norm is not None, norm_last, q_growth is not None, heads, power_of_two(pairs), power_of_two(rest) if rest else 0, **self._early,
        )  # fmt: skip

    def attention(
        self,
        qkv: Tensor,
        kv: KVLayer,
        out: Activation,
        meta: AttentionMeta,
        *,
        num_heads: int,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> None:
        known = self._shapes.get(meta.num_reqs.data_ptr())
        most = StepShape(len(qkv), len(meta.q_len), len(qkv))
        shape = most if known is None else known[1]
        self._attention(qkv, kv, out, meta, shape, num_heads, window, soft_cap, sinks)

    def soft_cap(self, x: Tensor, rows: Tensor, *, cap: float) -> None:
        n, width = self._most(rows, x), x.shape[1]
        if n:
            row_kernels.soft_cap_kernel[(n, triton.cdiv(width, _COLUMNS))](x, rows, width, x.stride(0), cap, _COLUMNS)

    def scale(self, x: Tensor, rows: Tensor, *, by: float) -> None:
        streams.scale(x, rows, self._most(rows, x), by)

    def match_rms(self, x: Tensor, like: Tensor, rows: Tensor) -> None:
        streams.match_rms(x, like, rows, self._most(rows, x, like))

    def sparsify(self, x: Tensor, rows: Tensor, *, deviations: float) -> None:
        streams.sparsify(x, rows, self._most(rows, x), deviations)

    # --- vision-language models -----------------------------------------------------------------------------------------------
    def overlay(self, x: Tensor, source: Tensor, index: Tensor, rows: Tensor, *, add: bool = False) -> None:
        self._overlay(x, source, index, rows, add, True)

    def gather_rows(self, x: Tensor, index: Tensor, out: Tensor, rows: Tensor) -> None:
        self._overlay(out, x, index, rows, False, False)

    def _overlay(self, x: Tensor, source: Tensor, index: Tensor, rows: Tensor, add: bool, keep: bool) -> None:
        n, width = self._most(rows, x, index), source.shape[1]
        if n:
            row_kernels.overlay_kernel[(n, triton.cdiv(width, _COLUMNS))](
                x, source, index, rows, width, x.stride(0), source.stride(0), add, keep, _COLUMNS
            )

    def select_rope(
        self, cos: Tensor, sin: Tensor, positions: Tensor, axes: Tensor, out_cos: Tensor, out_sin: Tensor, rows: Tensor
    ) -> None:
        n, pairs = self._most(rows, out_cos), len(axes)
        if n:
            row_kernels.select_rope_kernel[(n,)](
                cos, sin, positions, axes, out_cos, out_sin, rows, pairs, cos.stride(0), positions.stride(0), out_cos.stride(0),
                power_of_two(pairs),
            )  # fmt: skip

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        out: Tensor | Activation,
        rows: Tensor,
        *,
        eps: float,
        delta: Tensor | None = None,
    ) -> None:
        to = _data(out)
        n, width = self._most(rows, to, x), len(weight)
        if n:
            extra, block = x if delta is None else delta, power_of_two(width)
            norm.layer_norm_kernel[(n,)](
                x, weight, bias, to, extra, rows, width, x.stride(0), to.stride(0), extra.stride(0), eps,
                delta is not None, block, num_warps=_warps(block),
            )  # fmt: skip

    def blend_rows(self, x: Tensor, index: Tensor, weight: Tensor, out: Tensor, rows: Tensor) -> None:
        n, width = self._most(rows, out, index), x.shape[1]
        if n:
            row_kernels.blend_kernel[(n, triton.cdiv(width, _COLUMNS))](
                x, index, weight, out, rows, index.shape[1], width, x.stride(0), weight.stride(0), out.stride(0), _COLUMNS
            )

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, *, num_heads: int, head_dim: int) -> None:
        n, pairs = self._most(rows, x, cos), cos.shape[1]
        if n:
            row_kernels.rotate_kernel[(n, num_heads)](
                x, cos, sin, rows, num_heads, head_dim, pairs, x.stride(0), cos.stride(0), power_of_two(pairs), num_warps=1
            )

    def segment_attention(
        self, qkv: Tensor, starts: Tensor, out: Tensor, *, begin: int, end: int, num_heads: int, head_dim: int, scale: float,
        window: int = 0, bias: Tensor | None = None,
    ) -> None:  # fmt: skip
        if end <= begin:
            return
        block_d, segments = power_of_two(head_dim, 16), len(starts) - 1
        size = 16 if self.dtype == torch.float32 else 64
        tiles = (end - 1) // size - begin // size + 1
        segment_attention_kernel[(tiles, num_heads)](
            qkv, starts, out, qkv if bias is None else bias, begin, end, segments, segments.bit_length(), num_heads, head_dim,
            scale, window, 0 if bias is None else bias.shape[1] // 2, qkv.stride(0), out.stride(0),
            0 if bias is None else bias.stride(0), size, size, block_d, TL_TYPES[self.dtype], window > 0, bias is not None,
            num_warps=4, num_stages=2,
        )  # fmt: skip


def _device(name: str) -> Any:
    """The device with its number: not every function of torch assumes the current one."""
    device = torch.device(name)
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device


def _data(out: Any) -> Tensor:
    return out.data if isinstance(out, CudaActivation) else out


def _warps(block: int) -> int:
    """The number of warps at which a thread holds 8 to 16 values of a row."""
    return min(16, max(1, block // 512))
