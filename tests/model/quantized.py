"""Tiny llamas whose layers' matrices are packed bit by bit, as AWQ, GPTQ, compressed-tensors and float8 checkpoints store them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.model.tiny import save_model

Tensors = dict[str, Any]
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
PROMPT = [int(i) for i in np.random.default_rng(8).integers(3, 199, 21)]
AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]
"""AutoAWQ: nibble i of a word is this one of its eight columns"""


def words(levels: Any, bits: int, axis: int, order: list[int] | None = None) -> Any:
    """Levels packed into int32 along an axis, nibble by nibble."""
    levels = np.moveaxis(np.asarray(levels, np.int64), axis, 0)
    per = 32 // bits
    out = np.zeros((len(levels) // per, *levels.shape[1:]), np.int64)
    for row in range(len(out)):
        for i in range(per):
            out[row] |= levels[row * per + (order[i] if order else i)] << (bits * i)
    return torch.from_numpy(np.moveaxis(out, 0, axis).astype(np.uint32).view(np.int32).copy())


def quantize(weight: Any, bits: int, group: int, symmetric: bool) -> tuple[Any, Any, Any]:
    """(levels [n, k], scales [n, groups], zeros [n, groups]); scales are float16."""
    n, k = weight.shape
    parts = weight.float().numpy().reshape(n, k // group, group)
    top = 2**bits - 1
    if symmetric:
        scales = (np.abs(parts).max(-1) / (top / 2)).astype(np.float16)
        zeros = np.full(scales.shape, (top + 1) // 2)
    else:
        scales = ((parts.max(-1) - parts.min(-1)) / top).astype(np.float16)
        zeros = np.clip(np.rint(-parts.min(-1) / scales), 0, top).astype(int)
    levels = np.clip(np.rint(parts / scales[..., None].astype(np.float32)) + zeros[..., None], 0, top)
    return levels.reshape(n, k).astype(int), scales, zeros


def values(levels: Any, scales: Any, zeros: Any, group_of: Any) -> Any:
    shifted = levels - zeros[:, group_of]
    return torch.from_numpy((shifted * scales.astype(np.float32)[:, group_of]).astype(np.float32))


def awq(stem: str, weight: Any) -> tuple[Tensors, Any]:
    levels, scales, zeros = quantize(weight, 4, 64, False)
    stored = {
        f"{stem}.qweight": words(levels.T, 4, 1, AWQ_COLUMNS),
        f"{stem}.qzeros": words(zeros.T, 4, 1, AWQ_COLUMNS),
        f"{stem}.scales": torch.from_numpy(scales.T.copy()),
    }
    return stored, values(levels, scales, zeros, np.arange(levels.shape[1]) // 64)


def gptq(
    bits: int = 4, symmetric: bool = True, act_order: bool = False, less: int = 1
) -> Callable[[str, Any], tuple[Tensors, Any]]:
    def pack(stem: str, weight: Any) -> tuple[Tensors, Any]:
        k, group = weight.shape[1], 32
        order = np.random.default_rng(k).permutation(k) if act_order else np.arange(k)
        levels, scales, zeros = quantize(weight[:, order], bits, group, symmetric)
        group_of = np.empty(k, int)
        group_of[order] = np.arange(k) // group
        natural = np.empty_like(levels)
        natural[:, order] = levels
        stored = {
            f"{stem}.qweight": words(natural.T, bits, 0),
            f"{stem}.qzeros": words((zeros.T - less) & (2**bits - 1), bits, 1),
            f"{stem}.scales": torch.from_numpy(scales.T.copy()),
            f"{stem}.g_idx": torch.from_numpy(group_of.astype(np.int32)),
            f"{stem}.bias": torch.zeros(len(weight), dtype=torch.float16),  # as AutoGPTQ does
        }
        return stored, values(natural, scales, zeros, group_of)

    return pack


def packed(bits: int, symmetric: bool) -> Callable[[str, Any], tuple[Tensors, Any]]:
    def pack(stem: str, weight: Any) -> tuple[Tensors, Any]:
        levels, scales, zeros = quantize(weight, bits, 32, symmetric)
        stored = {
            f"{stem}.weight_packed": words(levels, bits, 1),
            f"{stem}.weight_scale": torch.from_numpy(scales.astype(np.float32)).bfloat16(),
            f"{stem}.weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            stored[f"{stem}.weight_zero_point"] = words(zeros, bits, 0)
        scales = stored[f"{stem}.weight_scale"].float().numpy()
        return stored, values(levels, scales, zeros, np.arange(levels.shape[1]) // 32)

    return pack


def int8(stem: str, weight: Any) -> tuple[Tensors, Any]:
    scale = (weight.abs().amax(1, keepdim=True) / 127).half().float()
    levels = (weight / scale).round().clamp(-128, 127)
    return {f"{stem}.weight": levels.to(torch.int8), f"{stem}.weight_scale": scale}, levels * scale


def float8(kind: str) -> Callable[[str, Any], tuple[Tensors, Any]]:
    def pack(stem: str, weight: Any) -> tuple[Tensors, Any]:
        stored_scale = f"{stem}.weight_scale"
        if kind == "tensor":
            scale = weight.abs().max().reshape(1) / 448
            full = scale.expand_as(weight)
        elif kind == "row":
            scale = weight.abs().amax(1, keepdim=True) / 448
            full = scale.expand_as(weight)
        else:
            n, k = weight.shape
            rows, columns = -(-n // 48), -(-k // 64)  # the last tile of rows is cut
            scale = torch.rand(rows, columns) * 0.01 + 0.01
            full = scale.repeat_interleave(48, 0)[:n].repeat_interleave(64, 1)[:, :k]
            stored_scale = f"{stem}.weight_scale_inv"
        small = (weight / full).to(torch.float8_e4m3fn)
        stored = {f"{stem}.weight": small, stored_scale: scale, f"{stem}.input_scale": torch.ones(1)}
        return stored, small.float() * full

    return pack


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": weights}}}


Pack = Callable[[str, Any], tuple[Tensors, Any]]
FORMS: dict[str, tuple[Pack, dict[str, Any], float]] = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}, 2e-2),
    "gptq": (gptq(), {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}, 1e-4),
    "gptq asymmetric": (gptq(symmetric=False), {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}, 2e-2),
    "gptq act-order": (gptq(act_order=True), {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}, 0.15),
    "gptq 8 bits": (gptq(8), {"quant_method": "gptq", "bits": 8, "group_size": 32}, 1e-4),
    "gptq v2": (gptq(less=0), {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}, 1e-4),
    "w4a16": (packed(4, True), compressed("pack-quantized", num_bits=4, type="int", group_size=32), 2e-2),
    "w4a16 asymmetric": (packed(4, False), compressed("pack-quantized", num_bits=4, type="int", group_size=32), 3e-2),
    "w8a16": (packed(8, True), compressed("pack-quantized", num_bits=8, type="int", group_size=32), 2e-2),
    "w8a8": (int8, compressed("int-quantized", num_bits=8, type="int"), 1e-4),
    "w8a8 float": (float8("row"), compressed("float-quantized", num_bits=8, type="float", strategy="channel"), 5e-2),
    "fbgemm": (float8("row"), {"quant_method": "fbgemm_fp8"}, 5e-2),
    "fp8": (float8("tensor"), {"quant_method": "fp8", "activation_scheme": "static"}, 5e-2),
    "fp8 tiles": (float8("tiles"), {"quant_method": "fp8", "weight_block_size": [48, 64]}, 5e-2),
}
"""name: how to pack, quantization_config, how far logits may lie from those of the very values (they are about 10)"""


def save_quantized(folder: Path, pack: Pack, config: dict[str, Any]) -> Any:
    """A tiny llama whose layers' matrices are packed; returns transformers' model of the dequantized values."""
    from safetensors.torch import load_file, save_file

    model = save_model(folder, "llama", **SIZES)
    tensors: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "_proj." not in name:
            tensors[name] = tensor
            continue
        stem = name.removesuffix(".weight")
        stored, exact = pack(stem, tensor)
        tensors |= stored
        model.get_parameter(name).data = exact
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "quantization_config": config}))
    return model
