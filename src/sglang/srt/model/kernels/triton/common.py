"""Helpers of the kernels: products of tiles, activation functions, sizes of blocks."""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.language.target_info import cuda_capability_geq

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""whether kernels run in Triton's interpreter (on the CPU, slowly, for tests)"""

_WIDEN = tl.constexpr(INTERPRETED)
LOG2E = tl.constexpr(1.4426950408889634)


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least n and `least`: what the sizes of blocks must be."""
    return max(least, 1 << max(n - 1, 0).bit_length())


@triton.jit
def wait_for_inputs():
    """To be called before a kernel that is launched early (`launch_pdl`) reads what kernels before it wrote, or writes at all.

    From Hopper on such a kernel's programs start while the last ones of the kernel before still run. Until then they may load weights
    and what the host has sent (counts, positions, tables: kernels of a step start when its copies have ended):

        before     ====== ====== ===
        this one            w|===== ====== ===          w: such loads    |: waits for all of the kernel before
        next one                            w|=====

    Every program must call it, also one that has nothing to do: who waits for this kernel relies on its having waited.
    """
    if not _WIDEN:  # noqa: SIM102  both would be evaluated
        if cuda_capability_geq(9):
            gdc_launch_dependents()
            gdc_wait()


@triton.jit
def dot(a, b):
    """a @ b added up in float32; float32 operands are multiplied as such, not as TF32."""
    if _WIDEN:  # the interpreter keeps bfloat16 as bits and would multiply those
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def dot_add(a, b, acc):
    """acc + a @ b, as `dot`."""
    if _WIDEN:
        return acc + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def round_to(x, TYPE: tl.constexpr):
    """x in TYPE, to nearest and ties to even."""
    if _WIDEN and TYPE.is_bf16() and x.dtype.is_fp32():  # the interpreter cuts the low bits off
        bits = x.to(tl.uint32, bitcast=True)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, even.to(tl.float32, bitcast=True), x)
    return x.to(TYPE)


@triton.jit
def tanh(x):
    """Exact to a few units in the last place, also for large x."""
    small = x * (1.0 - x * x * (1.0 / 3.0) + x * x * x * x * (2.0 / 15.0))  # where 1 - exp(-2x) would cancel
    e = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    large = tl.where(x < 0, -large, large)
    return tl.where(tl.abs(x) < 0.04, small, large)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-tl.maximum(x, -80.0)))


@triton.jit
def activation(x, FN: tl.constexpr):
    """The functions of ops.Activator, in float32."""
    if FN == "silu":
        return x * sigmoid(x)
    elif FN == "quick_gelu":
        return x * sigmoid(1.702 * x)
    elif FN == "relu":
        return tl.maximum(x, 0.0)
    elif FN == "relu2":
        return tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    elif FN == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1.0 + tanh(inner))
    else:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
