"""Compiles every Triton kernel for an H100 (compute capability 9.0), which takes no GPU: `python -m tests.kernels.compile_triton`.

Prints what each needs, and fails for one that does not compile, takes more shared memory than a processor has or keeps registers
in memory: what the interpreter cannot see. The sizes are those the op set launches with for heads of 64, 128 and 256.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

from sglang.srt.model.kernels.triton import (
    attention,
    encoder,
    experts,
    linear,
    logits,
    low_rank,
    norm,
    rope,
    rows,
    sampling,
    streams,
)

TARGET = GPUTarget("cuda", 90, 32)


class NoDevice:
    """What Triton asks for the target of `cuda_capability_geq`."""

    @staticmethod
    def get_current_target() -> GPUTarget:
        return TARGET


MAX_SHARED = 227 << 10
MAX_STACK = 64
"""bytes of a thread"""
F32, BF16, F16, F8, I32, I8, U8 = "*fp32", "*bf16", "*fp16", "*fp8e4nv", "*i32", "*i8", "*u8"
ALIGNED = ("n", "k", "width", "head_dim")
"""sizes that are multiples of 16, besides all strides"""

Case = tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]
"""kernel, types of arguments that are not int32, constants, launch options"""


def attention_cases() -> Iterator[Case]:
    common = dict.fromkeys(("qkv", "k_pool", "v_pool", "out"), BF16) | {
        "partial_acc": F32,
        "partial_ml": F32,
        "sinks": F32,
        "soft_cap": "fp32",
    }
    ints = ("req_pool_idx", "q_start", "q_len", "seq_lens", "num_reqs_at", "req_to_token", "row_ends")
    common |= dict.fromkeys(ints, I32)
    float8 = common | {"k_pool": F8, "v_pool": F8}
    for dim, chunk, group, types in ((128, 128, 7, common), (128, 64, 7, float8), (64, 128, 2, common), (256, 64, 2, common)):
        sizes = {"GROUP": group, "BLOCK_D": dim, "CHUNK": chunk, "MAX_REQS": 256, "SPAN": 8}
        few = {"num_warps": 4, "num_stages": 2}
        yield attention.decode_kernel, types, {**sizes, "ROWS": 16, "SINKS": True, "SOFT_CAP": False, "WIDE": False}, few
        yield attention.decode_merge_kernel, types, {**sizes, "ROWS": 16, "SINKS": True}, {"num_warps": 4}
        plain = {"SINKS": False, "SOFT_CAP": False, "WINDOW": False, "ROW_ENDS": False, "WIDE": False}
        wide = {"ROWS": 128 if dim <= 128 else 64, "SPANS": False}
        yield attention.extend_kernel, types, {**sizes, **plain, **wide}, {"num_warps": 8, "num_stages": 2}
        every = {"SINKS": True, "SOFT_CAP": True, "WINDOW": True, "ROW_ENDS": True, "WIDE": True}
        yield attention.extend_kernel, types, {**sizes, **every, "ROWS": 16, "SPANS": True}, few
    segments = {"ROWS": 64, "KEYS": 64, "BLOCK_D": 128, "TYPE": triton.language.bfloat16}
    types = {"qkv": F32, "starts": I32, "out": F32, "bias": F32, "scale": "fp32"}
    for window, bias in ((False, False), (True, True)):
        narrowed = {**segments, "WINDOW": window, "BIAS": bias}
        yield encoder.segment_attention_kernel, types, narrowed, {"num_warps": 4, "num_stages": 2}


def linear_cases() -> Iterator[Case]:
    types = {"x": BF16, "w": BF16, "bias": F32, "out": BF16, "rows": I32, "order": I32}
    types |= {"levels": U8, "scales": F16, "minima": F16}
    four = {"num_warps": 4}
    plain = {"HAS_BIAS": True, "GATED": False, "FN": "silu", "EVEN_K": True}
    for m, n, k, stages in ((16, 16, 256, 4), (16, 32, 256, 4), (64, 64, 64, 3)):
        blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "STAGES": stages}
        yield linear.linear_kernel, types, {**plain, **blocks}, four
        yield linear.linear_kernel, types | {"out": F32}, {**plain, **blocks, "EVEN_K": False}, four
    gated = {**plain, "HAS_BIAS": False, "GATED": True, "BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 256, "STAGES": 4}
    yield linear.linear_kernel, types, gated, four
    for n, k, warps, is_gated in ((4, 512, 4, False), (16, 512, 8, False), (4, 1024, 4, True), (16, 512, 8, True)):
        blocks = {"BLOCK_N": n, "BLOCK_K": k, "HAS_BIAS": not is_gated, "GATED": is_gated, "FN": "silu", "EVEN_K": True}
        yield linear.vector_kernel, types, blocks, {"num_warps": warps}
    for m, n, k, warps, ordered in (
        (16, 32, 128, 4, True),
        (16, 64, 128, 4, False),
        (16, 32, 256, 8, False),
        (64, 32, 128, 4, False),
    ):
        blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "STAGES": 4, "HAS_BIAS": True, "HAS_ORDER": ordered}
        options = {"num_warps": warps}
        yield linear.quantized_kernel, types, {**blocks, "BITS": 4, "GROUP": 32, "HAS_MIN": True}, options
        eight = {**blocks, "BITS": 8, "GROUP": 16 if m < 64 else 32, "HAS_MIN": False}
        yield linear.quantized_kernel, types | {"levels": I8}, eight, options
        yield linear.quantized_kernel, types | {"levels": I8}, {**eight, "GROUP": 32, "HAS_MIN": True}, options
    for n, k, warps in ((4, 512, 2), (2, 2048, 4), (4, 256, 1)):
        blocks = {"BLOCK_N": n, "BLOCK_K": k, "HAS_BIAS": True, "HAS_ORDER": n == 2}
        yield linear.quantized_vector_kernel, types, {**blocks, "BITS": 4, "GROUP": 32, "HAS_MIN": True}, {"num_warps": warps}
        eight = {**blocks, "BITS": 8, "GROUP": 32, "HAS_MIN": False}
        yield linear.quantized_vector_kernel, types | {"levels": I8}, eight, {"num_warps": warps}
    yield linear.dequantize_kernel, types, {"BITS": 4, "GROUP": 32, "HAS_MIN": True, "HAS_ORDER": True, "BLOCK": 1024}, {}
    yield linear.quantize_rows_kernel, types | {"out": F8, "scales": F32, "limit": "fp32"}, {"BLOCK": 1024}, {}


def adapter_cases() -> Iterator[Case]:
    types = {"x": BF16, "a": BF16, "b": BF16, "out": BF16, "h": F32, "scales": F32}
    types |= dict.fromkeys(("ranks", "num_tiles", "slots", "starts", "order"), I32)
    yield low_rank.low_rank_down_kernel, types, {"ROWS": 16, "RANK": 16, "BLOCK_K": 128}, {"num_warps": 4}
    yield low_rank.low_rank_up_kernel, types, {"ROWS": 16, "RANK": 16, "COLUMNS": 64}, {"num_warps": 4}


def expert_cases() -> Iterator[Case]:
    types = {
        "x": BF16,
        "w": BF16,
        "out": BF16,
        "scales": F16,
        "minima": F16,
        "bias": F32,
        "logits": F32,
        "weights": F32,
        "pairs": F32,
    }
    types |= dict.fromkeys(("rows", "order", "starts", "ids", "keys"), I32) | {"scale": "fp32"}
    route = {
        "TOP_K": 8,
        "HAS_BIAS": True,
        "HAS_SCALES": True,
        "NORMALIZE": True,
        "BLOCK": 256,
        "BLOCK_K": 8,
        "BLOCK_G": 8,
        "GROUP_BEST": 2,
    }
    yield experts.route_kernel, types, {**route, "SIGMOID": True, "GROUPS": 8, "TOP_GROUPS": 4}, {}
    yield experts.route_kernel, types, {**route, "SIGMOID": False, "GROUPS": 1, "TOP_GROUPS": 1}, {}
    sizes = {"BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_E": 128, "HAS_BIAS": True}
    for m in (16, 64):
        for bits, group, has_min, levels in ((16, 1, False, BF16), (4, 32, True, U8), (8, 32, False, I8)):
            form = {**sizes, "BLOCK_M": m, "BITS": bits, "GROUP": group, "HAS_MIN": has_min}
            yield experts.experts_kernel, types | {"w": levels}, {**form, "GATED": True, "FN": "clamped_silu"}, {"num_warps": 4}
            yield (
                experts.experts_kernel,
                types | {"w": levels, "out": F32},
                {**form, "GATED": False, "FN": "silu"},
                {"num_warps": 4},
            )
    yield experts.combine_kernel, types | {"out": F32}, {"BLOCK": 1024}, {}


def row_cases() -> Iterator[Case]:
    types = dict.fromkeys(("table", "out", "gate", "up", "delta", "qkv", "k_pool", "v_pool"), BF16)
    types |= dict.fromkeys(
        ("x", "source", "weight", "cos", "sin", "out_cos", "out_sin", "bias", "q_weight", "k_weight", "q_growth"), F32
    )
    types |= dict.fromkeys(("ids", "rows", "index", "positions", "axes", "row_idx", "slots", "previous", "sampled"), I32)
    types |= dict.fromkeys(("scale", "cap", "eps", "q_scale"), "fp32") | {"levels": U8, "scales": F16, "minima": F16}
    wide = {"BLOCK": 1024}
    yield rows.take_sampled_kernel, types, wide, {}
    yield rows.embedding_kernel, types, wide, {}
    yield rows.embedding_quantized_kernel, types, {**wide, "BITS": 4, "GROUP": 32, "HAS_MIN": True}, {}
    for fn in ("silu", "gelu", "gelu_tanh"):
        yield rows.gate_kernel, types, {**wide, "FN": fn}, {}
    for fn in ("quick_gelu", "relu", "relu2", "none"):
        yield rows.activate_kernel, types, {**wide, "FN": fn}, {}
    yield rows.soft_cap_kernel, types, wide, {}
    for x in (F32, BF16):
        for kernel in (streams.scale_kernel, streams.match_rms_kernel, streams.sparsify_kernel):
            yield kernel, types | {"x": x, "like": F32, "by": "fp32", "deviations": "fp32"}, wide, {}
    yield rows.overlay_kernel, types, {**wide, "ADD": True, "KEEP": True}, {}
    yield rows.overlay_kernel, types, {**wide, "ADD": False, "KEEP": False}, {}
    yield rows.blend_kernel, types, wide, {}
    yield rows.select_rope_kernel, types, {"BLOCK": 64}, {}
    yield rows.rotate_kernel, types, {"BLOCK": 32}, {"num_warps": 1}
    yield norm.rms_norm_kernel, types, {"HAS_DELTA": True, "HAS_INDEX": False, "BLOCK": 4096}, {"num_warps": 8}
    yield norm.rms_norm_kernel, types, {"HAS_DELTA": False, "HAS_INDEX": True, "BLOCK": 4096}, {"num_warps": 8}
    yield norm.layer_norm_kernel, types, {"HAS_DELTA": True, "BLOCK": 2048}, {"num_warps": 4}
    kind = {"NORM_LAST": False, "HAS_GROWTH": False}
    heads = {"HEADS": 4, "BLOCK_PAIRS": 64, "BLOCK_REST": 0}
    yield rope.rope_store_kernel, types, {**heads, **kind, "HAS_NORM": True}, {}
    yield rope.rope_store_kernel, types, {**heads, "HAS_NORM": True, "NORM_LAST": True, "HAS_GROWTH": True}, {}
    yield (
        rope.rope_store_kernel,
        types | {"k_pool": F8, "v_pool": F8},
        {**heads, **kind, "HAS_NORM": False, "BLOCK_REST": 64},
        {},
    )


def logits_cases() -> Iterator[Case]:
    types = dict.fromkeys(("x", "x_all", "scale", "bias", "temperatures", "top_ps", "min_ps", "uniforms"), F32)
    types |= dict.fromkeys(("values", "sums"), F32)
    types |= dict.fromkeys(("indptr", "ids", "row_idx", "bits", "out", "greedy", "top_ks", "counts"), I32)
    yield logits.adjust_kernel, types, {"BLOCK": 256}, {}
    yield logits.mask_kernel, types, {"BLOCK": 1024}, {}
    yield logits.argmax_parts_kernel, types, {"BLOCK": 8192}, {"num_warps": 16}
    yield logits.argmax_kernel, types, {"PARTS": 32}, {"num_warps": 1}
    yield logits.log_sum_exp_kernel, types | {"out": F32}, {"BLOCK": 8192}, {"num_warps": 16}
    yield logits.pick_kernel, types | {"out": F32}, {"BLOCK": 256}, {}
    yield sampling.candidates_kernel, types, {"BINS": 256, "ROOM": 4096, "BLOCK": 8192}, {"num_warps": 16}
    yield sampling.sample_kernel, types, {"ROOM": 4096, "BLOCK": 4096}, {"num_warps": 8}


def build(case: Case) -> tuple[int, str, str]:
    """(bytes of shared memory, code for the assembler, binary)."""
    kernel, types, constants, options = case
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or (signature[name] == "i32" and (name in ALIGNED or name.endswith("stride")))
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    built = triton.compile(ASTSource(kernel, signature, values, aligned), target=TARGET, options=options)
    return built.metadata.shared, built.asm["ptx"], built.asm["cubin"]


def stack_bytes(cubin: bytes) -> int:
    """Registers of a thread that did not fit, in bytes, as the toolchain that comes with Triton reports them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return max(int(size) for size in re.findall(r"STACK:(\d+)", report))


def main() -> int:
    bad = 0
    driver.set_active(NoDevice())  # type: ignore[arg-type]
    for case in (*row_cases(), *logits_cases(), *linear_cases(), *expert_cases(), *adapter_cases(), *attention_cases()):
        kernel, _, constants, _ = case
        shared, ptx, cubin = build(case)
        stack = stack_bytes(cubin)
        cores = "wgmma" if "wgmma" in ptx else "mma" if "mma.sync" in ptx else ""
        good = shared <= MAX_SHARED and stack <= MAX_STACK
        bad += not good
        print("ok " if good else "BAD", kernel.__name__, constants, f"shared {shared}, stack {stack}", cores, flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
