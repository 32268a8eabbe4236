"""The quantization scheme of a Hugging Face checkpoint, read from its config's `quantization_config`.

    quant_method          matrices are                                             become
    awq                   int4, zero points, groups of a row                       q4_1
    gptq                  int4 or int8, zero points, groups, perhaps out of order   q4_1, q8_0
    compressed-tensors    one of: int4/int8 packed, int8 plain, float8              q4_1, q8_0, f8
    mxfp4                 4-bit floats of experts, groups of 32                     mxfp4
    fp8, fbgemm_fp8       float8 with a scale for the matrix, each row or each tile f8, or bf16 for tiles

The tensors that are present say which matrices are quantized; the config's `ignore` lists are not read.
Sources: the formats as AutoAWQ, AutoGPTQ, GPTQModel, compressed-tensors and transformers document them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sglang.srt.checkpoint.files import shown

Method = Literal["awq", "gptq", "compressed-tensors", "fp8", "fbgemm_fp8", "mxfp4"]
METHODS: tuple[Method, ...] = ("awq", "gptq", "compressed-tensors", "fp8", "fbgemm_fp8", "mxfp4")
PACKED, PLAIN_INT, FLOAT = "pack-quantized", "int-quantized", "float-quantized"

MAX_GROUP = 1 << 24


@dataclass(frozen=True)
class QuantConfig:
    """`group_size` values of a row share a scale; -1: a whole row does, 0: the tensors say."""

    method: Method
    bits: int = 8
    group_size: int = 0
    zero_offset: int = 0
    """what is added to stored zero points (the older GPTQ form stores them less one)"""
    block: tuple[int, int] | None = None
    """rows and columns of a tile that shares a scale (fp8)"""

    @property
    def name(self) -> str:
        return self.method


def parse_quantization(raw: Any) -> QuantConfig:
    """The value of `quantization_config`. Raises ValueError saying what is not supported of it."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"must be an object, got {shown(raw)}")
    method = raw.get("quant_method")
    if method == "awq":
        return _awq(raw)
    if method == "gptq":
        return _gptq(raw)
    if method in ("compressed-tensors", "compressed_tensors"):
        return _compressed(raw)
    if method == "fp8":
        return QuantConfig("fp8", block=_block(raw.get("weight_block_size")))
    if method == "mxfp4":
        return QuantConfig("mxfp4", 4, 32)
    if method == "fbgemm_fp8":
        return QuantConfig("fbgemm_fp8")
    raise ValueError(
        f"says {shown(method)}; supported: {', '.join(METHODS)}; use the unquantized checkpoint with --quantization int8 or int4, "
        "or a .gguf file"
    )


def _awq(raw: Mapping[str, Any]) -> QuantConfig:
    _among("version", str(raw.get("version", "gemm")).lower(), ("gemm",))
    return QuantConfig("awq", _among("bits", raw.get("bits", 4), (4,)), _group(raw.get("group_size", 128)))


def _gptq(raw: Mapping[str, Any]) -> QuantConfig:
    bits = _among("bits", raw.get("bits"), (4, 8))
    form = _among("checkpoint_format", raw.get("checkpoint_format") or "gptq", ("gptq", "gptq_v2"))
    if raw.get("is_marlin_format"):
        raise ValueError("is in Marlin's own order, which is not read; take the ordinary GPTQ checkpoint")
    return QuantConfig("gptq", bits, _group(raw.get("group_size", 128)), int(form == "gptq"))


def _compressed(raw: Mapping[str, Any]) -> QuantConfig:
    groups = raw.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError("of compressed-tensors has no config_groups")
    found = {_compressed_group(raw, group) for group in groups.values()}
    if len(found) > 1:
        raise ValueError("of compressed-tensors mixes several kinds of weights, and one kind is read")
    return found.pop()


def _compressed_group(raw: Mapping[str, Any], group: Any) -> QuantConfig:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ValueError("of compressed-tensors has a group without weights")
    form = _among("format", group.get("format") or raw.get("format"), (PACKED, PLAIN_INT, "naive-quantized", FLOAT))
    kind = _among("weights.type", weights.get("type", "int"), ("float",) if form == FLOAT else ("int", "float"))
    if kind == "float":
        _among("weights.num_bits", weights.get("num_bits"), (8,))
        return QuantConfig("compressed-tensors", block=_block(weights.get("block_structure")))
    bits = _among("weights.num_bits", weights.get("num_bits"), (4, 8) if form == PACKED else (8,))
    size = weights.get("group_size")
    return QuantConfig("compressed-tensors", bits, -1 if size is None else _group(size))


def _among(name: str, value: Any, known: tuple[Any, ...]) -> Any:
    if value not in known or isinstance(value, bool):
        raise ValueError(f"says {name} {shown(value)}; supported: {', '.join(map(str, known))}")
    return value


def _group(value: Any) -> int:
    if type(value) is not int or (value != -1 and (value < 32 or value % 32 or value > MAX_GROUP)):
        raise ValueError(f"says group_size {shown(value)}; supported: multiples of 32, and -1")
    return value


def _block(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(v) is int and 0 < v <= MAX_GROUP for v in value):
        return value[0], value[1]
    raise ValueError(f"says tiles of {shown(value)}, which should be two sizes")
