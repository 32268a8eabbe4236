"""Launches paged attention: sizes of tiles by head size and mode, and the memory for partial results (triton/attention.py)."""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.model.kernels.cuda.weights import CudaActivation, CudaKV
from sglang.srt.model.kernels.ops import AttentionMeta, StepShape
from sglang.srt.model.kernels.triton.attention import decode_kernel, decode_merge_kernel, extend_kernel
from sglang.srt.model.kernels.triton.common import power_of_two

Tensor = Any  # torch.Tensor

PARTIAL_BYTES = 128 << 20
"""for partial results of split requests; where it does not do, requests are split less, with the same bits"""
SPAN = 8
"""chunks that are folded before they are folded into the result"""
MAX_INT32 = (1 << 31) - 1
MIN_TILE = 16
"""rows of the smallest tile a tensor core takes"""


class PagedAttention:
    """One for all layers: they run one after the other. `num_processors`: what a launch should keep busy. `early`: the option
    of launching kernels early (common.wait_for_inputs)."""

    def __init__(
        self,
        device: Any,
        num_processors: int,
        deterministic: bool,
        partial_bytes: int = PARTIAL_BYTES,
        early: dict[str, bool] | None = None,
    ) -> None:
        self._device = device
        self._early = early or {}
        self._processors = num_processors
        self.busy = max(1, num_processors // 2)
        """with so many spans to compute, requests are not cut into chunks"""
        self._deterministic = deterministic
        self._partial_bytes = partial_bytes
        self._partials: dict[int, tuple[Tensor, Tensor, int]] = {}

    def __call__(
        self,
        qkv: Tensor,
        kv: CudaKV,
        out: CudaActivation,
        meta: AttentionMeta,
        shape: StepShape,
        num_heads: int,
        window: int,
        soft_cap: float,
        sinks: Tensor | None = None,
    ) -> None:
        if shape.num_reqs == 0:
            return
        call = _Call(qkv, kv, out.data, meta, num_heads // kv.num_kv_heads, window, soft_cap, sinks)
        self._decode(call, shape)
        if shape.max_q_len > 1:
            self._extend(call, shape)

    def _decode(self, c: _Call, shape: StepShape) -> None:
        kv = c.kv
        acc, ml, capacity = self._partial(kv.num_kv_heads * c.group, kv.head_dim, len(c.meta.q_len))
        lengths = (c.meta.q_start, c.meta.q_len, c.meta.seq_lens, c.meta.num_reqs)
        sizes = {"GROUP": c.group, "ROWS": power_of_two(c.group, MIN_TILE), **c.blocks}
        # as many programs as registers let reside; each takes items in turns
        programs = max(1, 2 * self._processors // kv.num_kv_heads)
        decode_kernel[(kv.num_kv_heads, programs)](
            c.qkv, kv.k, kv.v, c.out, acc, ml, c.sinks, c.meta.req_pool_idx, *lengths, c.meta.req_to_token,
            c.qkv.stride(0), kv.k.stride(0), c.meta.req_to_token.stride(0), c.out.stride(0), kv.num_kv_heads, kv.head_dim,
            c.window, c.soft_cap, capacity, self.busy, **sizes, **c.sunk, SOFT_CAP=c.soft_cap > 0, WIDE=c.wide, num_warps=4, num_stages=2, **self._early,
        )  # fmt: skip
        decode_merge_kernel[(kv.num_kv_heads, shape.num_reqs)](
            c.out, acc, ml, c.sinks, *lengths, c.out.stride(0), kv.num_kv_heads, kv.head_dim, c.window, capacity, self.busy, **sizes, **c.sunk,
            num_warps=4, **self._early,
        )  # fmt: skip

    def _extend(self, c: _Call, shape: StepShape) -> None:
        kv, least = c.kv, power_of_two(c.group, MIN_TILE)
        rows = least if self._deterministic else max(least, c.wide_rows)
        tiles = -(-shape.num_rows // (rows // c.group)) + shape.num_reqs
        ends = c.meta.row_ends
        extend_kernel[(tiles, kv.num_kv_heads)](
            c.qkv, kv.k, kv.v, c.out, c.sinks, c.meta.req_pool_idx, c.meta.q_start, c.meta.q_len, c.meta.seq_lens, c.meta.num_reqs,
            c.meta.req_to_token, ends if ends is not None else c.meta.q_len,
            c.qkv.stride(0), c.out.stride(0), kv.k.stride(0), c.meta.req_to_token.stride(0), kv.head_dim, c.window, c.soft_cap,
            GROUP=c.group, ROWS=rows, **c.blocks, **c.sunk, SOFT_CAP=c.soft_cap > 0, WINDOW=c.window > 0, ROW_ENDS=ends is not None,
            SPANS=self._deterministic, WIDE=c.wide, num_warps=4 if rows < 64 else 8, num_stages=2,
        )  # fmt: skip

    def _partial(self, num_heads: int, head_dim: int, max_reqs: int) -> tuple[Tensor, Tensor, int]:
        """(acc, maxima and sums, items there is room for: at least one for every request)."""
        width = num_heads * head_dim
        if width not in self._partials or self._partials[width][2] < max_reqs:
            capacity = max(max_reqs, self._partial_bytes // (4 * (width + 2 * num_heads)))
            acc = torch.empty(capacity * width, dtype=torch.float32, device=self._device)
            ml = torch.empty(capacity * num_heads * 2, dtype=torch.float32, device=self._device)
            self._partials[width] = acc, ml, capacity
        return self._partials[width]


class _Call:
    """The arguments of one layer's attention."""

    def __init__(
        self,
        qkv: Tensor,
        kv: CudaKV,
        out: Tensor,
        meta: AttentionMeta,
        group: int,
        window: int,
        soft_cap: float,
        sinks: Tensor | None,
    ) -> None:
        self.sinks = sinks if sinks is not None else meta.q_len
        self.sunk = {"SINKS": sinks is not None}
        self.qkv, self.kv, self.out, self.meta = qkv, kv, out, meta
        self.group, self.window, self.soft_cap = group, window, soft_cap
        self.wide = kv.k.shape[1] * kv.head_dim > MAX_INT32
        block_d = power_of_two(kv.head_dim, 16)
        # larger heads take shorter chunks: a chunk of K and one of V lie in shared memory; float8 is widened in registers
        chunk = 128 if block_d <= 128 and kv.k.element_size() > 1 else 64
        self.wide_rows = 128 if block_d <= 128 else 64
        if qkv.element_size() == 4:  # float32 products are no tensor cores': operands must fit registers
            chunk, self.wide_rows = 32, 16
        self.blocks = {"BLOCK_D": block_d, "CHUNK": chunk, "MAX_REQS": power_of_two(meta.q_len.shape[0], 16), "SPAN": SPAN}
