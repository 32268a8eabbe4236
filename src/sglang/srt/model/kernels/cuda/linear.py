"""Chooses the kernel of a matrix product, the library's (cuBLAS through torch) or ours, by weight format, number of rows and mode.

                     few rows (<= FEW)              more rows
    dense            what is fastest here           torch.mm; gate and up together up to SOME rows what is fastest here
    int4, int8       what is fastest here           dequantized into scratch memory, torch.mm; up to SOME rows what is fastest here
    f8               torch._scaled_mm               torch._scaled_mm, rows quantized as they come
    deterministic    dense: triton, blocks by the number of rows, not the kernel for one row, which adds up in another order
                     int4, int8, and all in float32: triton with one size of blocks

Tensor cores add up 16 products after 16 in ascending order, so dense products in 16 bits have the same bits with blocks of every
size (`benchmarks/cuda.py` checks it: "same bits"), and deterministic mode is free to choose among them too.

"What is fastest here", torch.mm or ours with one of several sizes of blocks, is measured when a shape of weights is first met outside
a graph with one row, with few, with some; on the CPU (tests) it is torch.mm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton

from sglang.srt.model.kernels.cuda.weights import CudaActivation, CudaWeight
from sglang.srt.model.kernels.triton.linear import (
    dequantize_kernel,
    linear_kernel,
    quantize_rows_kernel,
    quantized_kernel,
    quantized_vector_kernel,
    vector_kernel,
)

Tensor = Any  # torch.Tensor

FEW, SOME, MANY = 16, 64, 512
F8_MAX = 448.0
Sizes = tuple[int, int, int, int, int]
"""rows, columns, k, stages and warps of a program"""
_FIXED: Sizes = (64, 64, 64, 3, 4)
"""deterministic mode in float32"""
_MANY_SIZES: tuple[Sizes, ...] = ((128, 128, 64, 4, 8), (128, 256, 64, 3, 8))
"""deterministic mode, up to MANY rows and above"""
_FEW_SIZES: tuple[Sizes, ...] = ((16, 16, 256, 4, 4), (16, 32, 256, 3, 4), (16, 64, 128, 4, 4), (16, 16, 512, 3, 4))
"""few rows: narrow columns, so that all processors have some, and deep k, so that loads are long and many are under way"""
_SOME_SIZES: tuple[Sizes, ...] = ((64, 32, 128, 5, 4), (64, 64, 128, 4, 4))
_ONE_SIZES: tuple[Sizes, ...] = ((1, 4, 512, 1, 4), (1, 2, 512, 1, 2), (1, 1, 2048, 1, 4), (1, 2, 2048, 1, 8))
"""one row, which no tensor core is asked for"""
_SHORT_K: tuple[Sizes, ...] = ((16, 16, 64, 4, 4),)
_LEVELS: dict[str, tuple[Sizes, ...]] = {
    "one": ((1, 4, 512, 1, 2), (1, 2, 2048, 1, 4), (1, 4, 256, 1, 1)),
    "few": ((16, 32, 128, 4, 4), (16, 64, 128, 4, 4), (16, 32, 256, 4, 8)),
    "some": ((64, 32, 128, 3, 4), (32, 32, 128, 4, 4)),
}
"""int4 and int8; the first of "some" also in deterministic mode"""
_TRIALS = 11
_COLD_BYTES = 512 << 20
"""more than any cache holds, and so much that the host is done launching before the device has emptied it"""


class Products:
    """Owner of the scratch memory and of what was measured. `dtype`: the model's type. `early`: the option of launching kernels
    early (common.wait_for_inputs)."""

    def __init__(self, device: Any, dtype: Any, deterministic: bool, early: dict[str, bool] | None = None) -> None:
        self._device, self._dtype = device, dtype
        self._deterministic = deterministic
        self._early = early or {}
        self._on_gpu = device.type == "cuda"
        self._scratch: dict[str, Tensor] = {}
        self._outgrown: list[Tensor] = []
        self._times: dict[tuple[int, int, str], dict[Sizes | None, float]] = {}
        self._biases: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def linear(self, weight: CudaWeight, x: CudaActivation, out: Tensor, rows: Tensor, n: int, bias: Tensor | None) -> None:
        """out[:n] = x[:n] @ weight.T + bias. `rows` says how many of n count."""
        out = out[:n, : weight.out_features]
        if weight.form == "dense":
            if self._deterministic:
                self._launch(self._same_bits(weight, x, out, bias), weight, x, out, rows, n, bias, None)
            elif n <= FEW and (sizes := self._few(weight, x, out, bias)) is not None:
                self._launch(sizes, weight, x, out, rows, n, bias, None)
            else:
                self._library(x.data[:n], weight.data, out, bias)
        elif weight.form == "f8":
            self._scaled(weight, x, out, rows, n, bias)
        elif (sizes := self._quantized(weight, x, out, bias)) is not None:
            self._launch(sizes, weight, x, out, rows, n, bias, None)
        else:
            self._dequantize(weight, x, out, bias)

    def gated(
        self, weight: CudaWeight, x: CudaActivation, out: Tensor, rows: Tensor, fn: str, in_two: Callable[[Tensor], None]
    ) -> bool:
        """Gate, up and their product in one launch, where that pays: few rows of dense weights. False: not done, and `in_two(rows)`,
        which does one after the other, is to be called."""
        n = len(out)
        if weight.form != "dense" or self._deterministic or n > SOME or not self._on_gpu:
            return False
        sizes = self._fastest(weight, x, out, None, fn, in_two)
        if sizes is not None:
            self._launch(sizes, weight, x, out, rows, n, None, fn)
        return sizes is not None

    def scratch(self, name: str, rows: int, width: int, dtype: Any = None) -> Tensor:
        """Memory of this name that lasts until the next call for it; grows to the largest that was asked for."""
        dtype = dtype or self._dtype
        have = self._scratch.get(name)
        if have is None or have.numel() < rows * width:
            if have is not None:
                self._outgrown.append(have)  # a recorded graph may write there
            have = self._scratch[name] = torch.empty(rows * width, dtype=dtype, device=self._device)
        return have[: rows * width].view(rows, width)

    def dequantized(self, weight: CudaWeight) -> Tensor:
        n, k = weight.out_features, weight.in_features
        out = self.scratch("weight", n, k)
        block = 1024
        grid = (n, triton.cdiv(k, block))
        minima = weight.minima if weight.minima is not None else weight.scales
        dequantize_kernel[grid](
            weight.data, weight.scales, minima, weight.order if weight.order is not None else minima, out, n, k,
            weight.bits, weight.group, weight.minima is not None, weight.order is not None, block,
        )  # fmt: skip
        return out

    # --- the library ----------------------------------------------------------------------------------------------------------
    def _library(self, x: Tensor, w: Tensor, out: Tensor, bias: Tensor | None) -> None:
        if out.dtype == torch.float32 != x.dtype and self._on_gpu and bias is None and out.is_contiguous():
            torch.mm(x, w.t(), out_dtype=torch.float32, out=out)
        elif out.dtype != x.dtype:
            out.copy_(_wide_product(x, w, out.dtype) if bias is None else _wide_product(x, w, out.dtype) + bias)
        elif bias is None:
            torch.mm(x, w.t(), out=out)
        else:
            torch.addmm(self._bias(bias, x.dtype), x, w.t(), out=out)

    def _bias(self, bias: Tensor, dtype: Any) -> Tensor:
        """The bias in another type; kept, together with the original, whose address is the key."""
        if bias.dtype == dtype:
            return bias
        key = (bias.data_ptr(), bias.numel())
        if key not in self._biases:
            self._biases[key] = (bias, bias.to(dtype))
        return self._biases[key][1]

    def _scaled(self, weight: CudaWeight, x: CudaActivation, out: Tensor, rows: Tensor, n: int, bias: Tensor | None) -> None:
        k = weight.in_features
        max_rows = x.data.shape[0]
        narrow = self.scratch("f8 rows", max_rows, k, torch.float8_e4m3fn)[:n]
        scales = self.scratch("f8 scales", max_rows, 1, torch.float32)[:n]
        quantize_rows_kernel[(n,)](x.data, narrow, scales, rows, k, x.data.stride(0), F8_MAX, 1024)
        result = torch._scaled_mm(
            narrow, weight.data.t(), scale_a=scales, scale_b=weight.scales.view(1, -1), out_dtype=torch.bfloat16
        )
        out.copy_(result if bias is None else result + bias)

    # --- ours -----------------------------------------------------------------------------------------------------------------
    def _launch(
        self,
        sizes: Sizes,
        weight: CudaWeight,
        x: CudaActivation,
        out: Tensor,
        rows: Tensor,
        n: int,
        bias: Tensor | None,
        fn: str | None,
    ) -> None:
        if weight.form in ("int4", "int8"):
            self._launch_quantized(sizes, weight, x, out, rows, n, bias)
            return
        m_block, n_block, k_block, stages, warps = sizes
        if weight.data.element_size() == 4:
            k_block = max(16, k_block // 2)  # shared memory
        columns, k = weight.out_features, weight.in_features
        if fn is not None:
            columns //= 2
        if m_block == 1:
            vector_kernel[(triton.cdiv(columns, n_block),)](
                x.data, weight.data, bias if bias is not None else rows, out, rows, columns, k,
                bias is not None, fn is not None, fn or "silu", k % k_block == 0, n_block, k_block, num_warps=warps, **self._early,
            )  # fmt: skip
            return
        grid = (triton.cdiv(n, m_block), triton.cdiv(columns, n_block))
        linear_kernel[grid](
            x.data, weight.data, bias if bias is not None else rows, out, rows, columns, k, x.data.stride(0), out.stride(0),
            bias is not None, fn is not None, fn or "silu", k % k_block == 0, m_block, n_block, k_block, stages,
            num_warps=warps, **self._early,
        )  # fmt: skip

    def _launch_quantized(
        self, sizes: Sizes, weight: CudaWeight, x: CudaActivation, out: Tensor, rows: Tensor, n: int, bias: Tensor | None
    ) -> None:
        m_block, n_block, k_block, stages, warps = sizes
        columns, k = weight.out_features, weight.in_features
        minima = weight.minima if weight.minima is not None else weight.scales
        order = weight.order if weight.order is not None else rows
        common = x.data, weight.data, weight.scales, minima, order, bias if bias is not None else rows, out, rows, columns, k
        form = weight.bits, weight.group, weight.minima is not None, weight.order is not None, bias is not None
        if m_block == 1:
            quantized_vector_kernel[(triton.cdiv(columns, n_block),)](
                *common, *form, n_block, k_block, num_warps=warps, **self._early
            )
            return
        while k % k_block:
            k_block //= 2
        grid = (triton.cdiv(n, m_block), triton.cdiv(columns, n_block))
        quantized_kernel[grid](
            *common, x.data.stride(0), out.stride(0), *form, m_block, n_block, k_block, stages, num_warps=warps, **self._early
        )

    # --- what is fastest ------------------------------------------------------------------------------------------------------
    def _same_bits(self, weight: CudaWeight, x: CudaActivation, out: Tensor, bias: Tensor | None) -> Sizes:
        """The block sizes in deterministic mode."""
        n = len(out)
        if not self._on_gpu or self._dtype == torch.float32:  # neither adds up as tensor cores do
            return _FIXED
        if n > SOME:
            return _MANY_SIZES[n > MANY]
        sizes = self._fastest(weight, x, out, bias, None, None)
        assert sizes is not None
        return sizes

    def _few(self, weight: CudaWeight, x: CudaActivation, out: Tensor, bias: Tensor | None) -> Sizes | None:
        """The block sizes for few rows of weights of this shape; None: the library."""
        if not self._on_gpu:
            return None
        return self._fastest(weight, x, out, bias, None, lambda _: self._library(x.data[: len(out)], weight.data, out, bias))

    def _quantized(self, weight: CudaWeight, x: CudaActivation, out: Tensor, bias: Tensor | None) -> Sizes | None:
        """The block sizes for a matrix of 4 or 8 bits; None: dequantized, and the library."""
        n = len(out)
        if self._deterministic:
            return candidates_for(weight, "some")[0]
        if not self._on_gpu:
            return _LEVELS["few"][0] if n <= FEW else None
        if n > SOME:
            return None
        return self._fastest(weight, x, out, bias, None, lambda _: self._dequantize(weight, x, out, bias))

    def _dequantize(self, weight: CudaWeight, x: CudaActivation, out: Tensor, bias: Tensor | None) -> None:
        self._library(x.data[: len(out)], self.dequantized(weight), out, bias)

    def _fastest(
        self,
        weight: CudaWeight,
        x: CudaActivation,
        out: Tensor,
        bias: Tensor | None,
        fn: str | None,
        library: Callable[[Tensor], None] | None,
    ) -> Sizes | None:
        """Measured when first asked, on all rows of `out`, whose contents are lost: the step's own number of rows may be 0 then.
        `library`: what else there is, in the default mode, for a number of rows."""
        n = len(out)
        group = "one" if n == 1 and library is not None else "few" if n <= FEW else "some"
        key = weight.out_features, weight.in_features, f"{weight.form} {group}, {fn or out.dtype}"
        candidates = candidates_for(weight, group)
        if key not in self._times:
            if torch.cuda.is_current_stream_capturing():
                return candidates[0]
            rows = torch.full((1,), n, dtype=torch.int32, device=self._device)
            times: dict[Sizes | None, float] = {}
            if library is not None:
                times[None] = _time(partial(library, rows), self._device)
            for sizes in candidates:
                times[sizes] = _time(partial(self._launch, sizes, weight, x, out, rows, n, bias, fn), self._device)
            self._times[key] = times
        times = self._times[key]
        return min(times, key=lambda sizes: times[sizes])

    def measured(self) -> list[dict[str, Any]]:
        """Measurements so far: for each shape, microseconds by block sizes, and of the library."""
        return [
            {"out": n, "in": k, "kind": kind, "us": {str(sizes or "library"): 1e3 * took for sizes, took in times.items()}}
            for (n, k, kind), times in self._times.items()
        ]


def candidates_for(weight: CudaWeight, group: str) -> tuple[Sizes, ...]:
    """Sizes to choose among for "one" row, "few", "some"."""
    if weight.form in ("int4", "int8"):  # groups of 16 values take more registers
        return tuple(sizes for sizes in _LEVELS[group] if sizes[0] < 64 or weight.group > 16)
    if weight.in_features < 1024:
        return _SHORT_K
    return {"one": _ONE_SIZES, "few": _FEW_SIZES, "some": _SOME_SIZES}[group]


def _wide_product(x: Tensor, w: Tensor, dtype: Any) -> Tensor:
    """x @ w.T in a wider type than theirs, added up and kept in float32."""
    if x.device.type == "cuda" and dtype == torch.float32:
        return torch.mm(x, w.t(), out_dtype=torch.float32)
    return torch.mm(x.to(dtype), w.to(dtype).t())


def _time(run: Callable[[], None], device: Any) -> float:
    """Milliseconds of one run on the device, the median of several, with weights that lie in no cache. What empties the caches
    also gives the host the time to launch."""
    cold = torch.empty(min(_COLD_BYTES, torch.cuda.mem_get_info(device)[0] // 4), dtype=torch.uint8, device=device)
    run()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_TRIALS)]
    for begin, end in marks:
        cold.zero_()
        begin.record()
        run()
        end.record()
    marks[-1][1].synchronize()
    return float(sorted(begin.elapsed_time(end) for begin, end in marks)[_TRIALS // 2])
