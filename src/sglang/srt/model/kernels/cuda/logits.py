"""Ops on logits for torch tensors. Arguments may be host arrays: they are copied through pinned memory without waiting; results that go
to host arrays are waited for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton

from sglang.srt.model.kernels.cuda.memory import DeviceFetch, upload
from sglang.srt.model.kernels.triton.common import power_of_two
from sglang.srt.model.kernels.triton.logits import (
    adjust_kernel,
    argmax_kernel,
    argmax_parts_kernel,
    log_sum_exp_kernel,
    mask_kernel,
    pick_kernel,
)
from sglang.srt.model.kernels.triton.sampling import candidates_kernel, sample_kernel

Tensor = Any  # torch.Tensor

BLOCK, WARPS = 8192, 16
"""columns and warps of a program that walks the whole vocabulary: alone on its row, it needs many loads under way"""
CANDIDATES, BINS = 4096, 256
"""of a row that is sampled: how many of its best are looked at alone, found among so many ranges of values"""
_LOW_WORD = 0xFFFFFFFF


class Logits:
    """The device half of ops.Ops from `pick` on; x is [n, vocab] float32."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def _here(self, values: Any, dtype: Any = None) -> Tensor:
        tensor = values if isinstance(values, torch.Tensor) else upload(np.asarray(values), self._device)
        return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)

    def _result(self, out: Any, values: Tensor) -> None:
        """Puts values into `out`, a tensor or, after a wait, an array of the host."""
        if isinstance(out, torch.Tensor):
            out[: len(values)].copy_(values)
        else:
            out[: len(values)] = DeviceFetch(values).result()

    def pick(self, x: Tensor, row_idx: Any, ids: Any) -> npt.NDArray[np.float32]:
        count = len(ids)
        if count == 0:
            return np.empty(0, np.float32)
        out = torch.empty(count, dtype=torch.float32, device=self._device)
        rows, columns = self._here(row_idx, torch.int32), self._here(ids, torch.int32)
        pick_kernel[(triton.cdiv(count, 256),)](x, rows, columns, out, count, x.stride(0), 256)
        return DeviceFetch(out).result()

    def adjust(self, x: Tensor, indptr: Any, ids: Any, scale: Any, bias: Any) -> None:
        if len(indptr) > 1:
            args = (self._here(a) for a in (indptr, ids, scale, bias))
            adjust_kernel[(len(indptr) - 1,)](x, *args, x.shape[1], x.stride(0), 256)

    def mask(self, x: Tensor, row_idx: Any, bits: Any) -> None:
        if len(row_idx) == 0:
            return
        block = min(1024, power_of_two(x.shape[1], 16))
        words = self._here(bits)
        words = words.view(torch.int32) if words.dtype != torch.int32 else words
        grid = (len(row_idx), triton.cdiv(x.shape[1], block))
        mask_kernel[grid](x, self._here(row_idx), words, x.shape[1], words.shape[1], x.stride(0), block)

    def argmax(self, x: Tensor, num_rows: int, out: Any) -> None:
        if num_rows:
            self._result(out, self._argmax(x, num_rows))

    def _argmax(self, x: Tensor, num_rows: int) -> Tensor:
        block, best = _block(x), torch.empty(num_rows, dtype=torch.int32, device=self._device)
        parts = triton.cdiv(x.shape[1], block)
        values = torch.empty((num_rows, parts), dtype=torch.float32, device=self._device)
        ids = torch.empty_like(values, dtype=torch.int32)
        argmax_parts_kernel[(num_rows, parts)](x, values, ids, x.shape[1], x.stride(0), block, num_warps=WARPS)
        argmax_kernel[(num_rows,)](values, ids, best, parts, power_of_two(parts), num_warps=1)
        return best

    def log_sum_exp(self, x: Tensor, num_rows: int, out: Any) -> None:
        if num_rows:
            values = torch.empty(num_rows, dtype=torch.float32, device=self._device)
            log_sum_exp_kernel[(num_rows,)](x, values, x.shape[1], x.stride(0), _block(x), num_warps=WARPS)
            self._result(out, values)

    def top_k(self, x: Tensor, num_rows: int, k: int, ids: Any, values: Any) -> None:
        """Finds the best columns by one integer per column that orders as (value, then lower id) does."""
        rows = x[:num_rows]
        bits = (rows + 0.0).view(torch.int32)
        order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
        column = torch.arange(x.shape[1], device=self._device, dtype=torch.int64)
        best = torch.topk(order * (_LOW_WORD + 1) + (_LOW_WORD - column), k, dim=1).values
        found = _LOW_WORD - (best & _LOW_WORD)
        broken = torch.isnan(rows).any(dim=1, keepdim=True)
        self._result(ids, torch.where(broken, -1, found).to(torch.int32))
        self._result(values, torch.where(broken, float("nan"), rows.gather(1, found)))

    def sample(
        self, x: Tensor, num_rows: int, temperature: Any, top_k: Any, top_p: Any, min_p: Any, uniform: Any, out: Any
    ) -> None:
        if num_rows == 0:
            return
        sampled = torch.empty(num_rows, dtype=torch.int32, device=self._device)
        params = [self._here(a) for a in (temperature, top_k, top_p, min_p, uniform)]
        best, found = self._argmax(x, num_rows), self._candidates(num_rows)
        candidates_kernel[(num_rows,)](
            x, best, params[0], *found, x.shape[1], x.stride(0), BINS, CANDIDATES, _block(x), num_warps=WARPS
        )  # fmt: skip
        sample_kernel[(num_rows,)](
            x, best, *params, *found, sampled, x.shape[1], x.stride(0), CANDIDATES, min(_block(x), 4096), num_warps=8
        )  # fmt: skip
        self._result(out, sampled)

    def _candidates(self, num_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values, ids, counts and sums, for candidates_kernel to write."""
        values = torch.empty((num_rows, CANDIDATES), dtype=torch.float32, device=self._device)
        counts = torch.empty(num_rows, dtype=torch.int32, device=self._device)
        sums = torch.empty((num_rows, 2), dtype=torch.float32, device=self._device)
        return values, torch.empty_like(values, dtype=torch.int32), counts, sums


def _block(x: Tensor) -> int:
    return min(BLOCK, power_of_two(x.shape[1], 16))
