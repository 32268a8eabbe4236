"""Quantized Hugging Face checkpoints as a source of tensors: the parts of each quantized matrix appear as one
tensor.

    awq, gptq              X.qweight, X.qzeros, X.scales (, X.g_idx)                           -> X.weight   q4_1, q8_0
    compressed-tensors     X.weight_packed, X.weight_scale (, X.weight_zero_point, ...)        -> X.weight   q4_1, q8_0
                           X.weight of int8, X.weight_scale                                    -> X.weight   q8_0
    mxfp4                  X_blocks, X_scales of all experts of a layer                        -> X          mxfp4
    all kinds of fp8       X.weight of float8, X.weight_scale or X.weight_scale_inv            -> X.weight   f8, bf16

Scales of activations and of the KV cache are ignored: activations are quantized dynamically by row, if at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import ModelError
from sglang.srt.model.quant.float8 import tile_values
from sglang.srt.model.quant.formats import HostTensor, dense
from sglang.srt.model.quant.repack import mxfp4_blocks, pack_blocks, pack_out_of_order, unpack, unpack_awq
from sglang.srt.model.quant.scheme import QuantConfig
from sglang.srt.model.weights.safetensors_reader import SafetensorsSource
from sglang.srt.model.weights.tensor_source import index_of

_MATRIX = (".qweight", ".weight_packed")
_PARTS = (
    *(".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_scale_inv", ".weight_zero_point", ".weight_shape"),
    *(".weight_g_idx", ".input_scale", ".input_scale_ub", ".input_zero_point", ".output_scale", ".k_scale", ".v_scale"),
    *(".q_scale", ".activation_scale"),
)
_BLOCKS, _SCALES = "_blocks", "_scales"
"""what follows the name of a tensor of mxfp4"""
_FLOAT8, _INT8 = "F8_E4M3", "I8"


class QuantizedSource:
    """`inner` as it would be with whole matrices (weights.loader.TensorSource)."""

    def __init__(self, inner: SafetensorsSource, quant: QuantConfig) -> None:
        self.path = inner.path
        self._inner = inner
        self._quant = quant
        self._stored = set(inner.names)
        self._packed = {_stem(name): name for name in inner.names if name.endswith(_MATRIX)}
        self.names = self._names()
        readers: dict[str, Callable[[str], HostTensor]] = {
            "awq": self._read_awq,
            "gptq": self._read_gptq,
            "compressed-tensors": self._read_packed,
        }
        self._read_words = readers.get(quant.method)
        if self._packed and self._read_words is None:
            raise ModelError(f"{self.path} holds packed matrices, and its quantization_config says {quant.method!r}")

    def _names(self) -> list[str]:
        names = [f"{stem}.weight" for stem in self._packed]
        names += [name.removesuffix(_BLOCKS) for name in self._inner.names if self._is_mxfp4(name.removesuffix(_BLOCKS))]
        for name in self._inner.names:
            if self._is_mxfp4(name.removesuffix(_BLOCKS).removesuffix(_SCALES)):
                continue
            if name.endswith(_MATRIX) or name.endswith(_PARTS):
                continue
            if name.endswith(".bias") and _stem(name) in self._packed and not self._inner.read(name).dequantize().any():
                continue  # AutoGPTQ gives every matrix a bias, of zeros where the model has none
            names.append(name)
        return names

    # --- what a TensorSource tells ------------------------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        if self._is_mxfp4(name):
            *rows, groups, half = self._inner.shape(name + _BLOCKS)
            return (*rows, groups * half * 2)
        packed = self._packed.get(_stem(name)) if name.endswith(".weight") else None
        if packed is None:
            return self._inner.shape(name)
        shape = self._inner.shape(packed)
        if len(shape) != 2:
            raise ModelError(f"{self.where(name)}: the packed matrix {packed!r} has shape {list(shape)}, which is not a matrix")
        per_word = 32 // self._quant.bits
        if self._quant.method == "awq":
            return shape[1] * per_word, shape[0]
        if self._quant.method == "gptq":
            return shape[1], shape[0] * per_word
        return shape[0], shape[1] * per_word

    def format(self, name: str) -> str:
        if self._is_mxfp4(name):
            return "mxfp4"
        if self._is_packed(name):
            return "q4_1" if self._quant.bits == 4 else "q8_0"
        stored = self._inner.format(name)
        return {_FLOAT8: "f8", _INT8: "q8_0"}.get(stored, stored)

    def where(self, name: str) -> Path:
        if self._is_mxfp4(name):
            return self._inner.where(name + _BLOCKS)
        return self._inner.where(self._packed[_stem(name)] if self._is_packed(name) else name)

    def read(self, name: str) -> HostTensor:
        try:
            if self._is_packed(name):
                assert self._read_words is not None
                return self._read_words(_stem(name))
            stored = self._inner.format(name)
            if stored == _FLOAT8:
                return self._read_float8(name)
            if stored == _INT8:
                return self._read_int8(name)
        except (ValueError, IndexError) as error:
            raise ModelError(f"{self.where(name)}: the quantized matrix {name!r} cannot be read: {error}") from error
        return self._inner.read(name)

    def read_index(self, name: str, index: int) -> HostTensor:
        if not self._is_mxfp4(name):
            return index_of(self.read(name), index)
        data, scales = (self._inner.read_raw(name + part) for part in (_BLOCKS, _SCALES))
        if data.shape[:-1] != scales.shape or data.shape[-1] != 16:
            raise ModelError(
                f"{self.where(name)}: blocks of shape {list(data.shape)} have scales of shape {list(scales.shape)}: {name!r}"
            )
        return mxfp4_blocks(name, data[index], scales[index])

    def _is_mxfp4(self, name: str) -> bool:
        return self._quant.method == "mxfp4" and name + _BLOCKS in self._stored

    def _is_packed(self, name: str) -> bool:
        return name.endswith(".weight") and _stem(name) in self._packed

    # --- the forms ----------------------------------------------------------------------------------------------------------

    def _read_awq(self, stem: str) -> HostTensor:
        levels = np.ascontiguousarray(unpack_awq(self._words(f"{stem}.qweight")).T)
        zeros = unpack_awq(self._words(f"{stem}.qzeros")).T
        return pack_blocks(f"{stem}.weight", 4, levels, self._groups(f"{stem}.scales", levels, transposed=True), zeros)

    def _read_gptq(self, stem: str) -> HostTensor:
        bits, quant = self._quant.bits, self._quant
        levels = unpack(np.ascontiguousarray(self._words(f"{stem}.qweight").T), bits)
        zeros = (unpack(self._words(f"{stem}.qzeros"), bits).T + np.uint8(quant.zero_offset)) & np.uint8(2**bits - 1)
        scales = self._groups(f"{stem}.scales", levels, transposed=True)
        return self._in_order(stem, f"{stem}.g_idx", levels, scales, zeros)

    def _read_packed(self, stem: str) -> HostTensor:
        """Signed levels are stored plus half their range, and so are zero points."""
        bits = self._quant.bits
        levels = unpack(self._words(f"{stem}.weight_packed"), bits)
        scales = self._groups(f"{stem}.weight_scale", levels)
        zeros: npt.NDArray[Any] = np.full(scales.shape, 2 ** (bits - 1), np.uint8)
        if f"{stem}.weight_zero_point" in self._stored:
            zeros = unpack(np.ascontiguousarray(self._words(f"{stem}.weight_zero_point").T), bits).T[: len(levels)]
        return self._in_order(stem, f"{stem}.weight_g_idx", levels, scales, zeros)

    def _in_order(
        self, stem: str, index: str, levels: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32], zeros: npt.NDArray[Any]
    ) -> HostTensor:
        """The matrix, whether or not its groups are of neighbours."""
        name, bits = f"{stem}.weight", self._quant.bits
        if zeros.shape != scales.shape:
            raise ValueError(f"its zero points are {list(zeros.shape)} and its scales {list(scales.shape)}")
        if index in self._stored:
            group_of = self._inner.read_raw(index)
            size = levels.shape[1] // scales.shape[1]
            if group_of.shape != levels.shape[1:] or group_of.min() < 0 or group_of.max() >= scales.shape[1]:
                raise ValueError(f"{index} does not name a group for each of {levels.shape[1]} columns")
            if not np.array_equal(group_of, np.arange(levels.shape[1]) // size):
                return pack_out_of_order(name, bits, levels, scales, zeros, group_of)
        return pack_blocks(name, bits, levels, scales, zeros)

    def _read_int8(self, name: str) -> HostTensor:
        signed = self._inner.read_raw(name)
        levels = signed.view(np.uint8) ^ np.uint8(128)
        scales = self._groups(f"{_stem(name)}.weight_scale", levels)
        return pack_blocks(name, 8, levels, scales, np.full(scales.shape, 128, np.uint8))

    def _read_float8(self, name: str) -> HostTensor:
        data, stem = self._inner.read_raw(name), _stem(name)
        inverse = f"{stem}.weight_scale_inv"
        found = inverse if inverse in self._stored else f"{stem}.weight_scale"
        scale = self._floats(found)
        rows = data.shape[0]
        if scale.size in (1, rows):
            return HostTensor(name, "f8", data.shape, data, np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), rows)))
        block = self._quant.block
        if block is None or scale.shape != tuple(-(-size // part) for size, part in zip(data.shape, block, strict=True)):
            raise ValueError(f"{found} has shape {list(scale.shape)}, which fits neither its rows nor tiles of {block}")
        return dense(name, tile_values(data, scale, block), "bf16")

    # --- parts --------------------------------------------------------------------------------------------------------------

    def _part(self, name: str) -> str:
        if name not in self._stored:
            raise ValueError(f"{name!r} is missing")
        return name

    def _words(self, name: str) -> npt.NDArray[np.int32]:
        words = self._inner.read_raw(self._part(name))
        if words.dtype != np.int32 or words.ndim != 2:
            raise ValueError(f"{name!r} should be a matrix of int32")
        return words

    def _floats(self, name: str) -> npt.NDArray[np.float32]:
        return self._inner.read(self._part(name)).dequantize()

    def _groups(self, name: str, levels: npt.NDArray[Any], transposed: bool = False) -> npt.NDArray[np.float32]:
        """Scales as [n, groups]; checked against the config, if that says how long a group is."""
        scales = self._floats(name)
        scales = scales.T if transposed else scales.reshape(-1, 1) if scales.ndim < 2 else scales
        n, k = levels.shape
        if scales.shape == (1, 1):
            scales = np.broadcast_to(scales, (n, 1))
        size = self._quant.group_size
        groups = 1 if size == -1 else k // size if size else scales.shape[1]
        if scales.shape != (n, groups):
            raise ValueError(f"{name!r} has shape {list(scales.shape)}, and should be {[n, groups]}")
        return np.ascontiguousarray(scales)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
