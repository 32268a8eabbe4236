"""Random weights of a config's shape, for `--load-format dummy`: to test capacity and speed without a checkpoint.

All tensors are slices of one block of random numbers, at different offsets, so that the shapes of a 7B model cost no more than
copying their bytes. Values are normal with deviation 0.02, norm weights 1 and biases 0.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np

from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.quant.formats import HostTensor, dense
from sglang.srt.model.weights.shapes import expected_shapes
from sglang.srt.model.weights.tensor_source import index_of

BLOCK_LEN = (1 << 20) - 3
"""a prime, so that the rows of a matrix do not repeat each other"""

DEVIATION = 0.02
_FORMATS = {"bfloat16": "bf16", "float16": "f16"}


class DummySource:
    """A source of random tensors; the same seed gives the same weights."""

    def __init__(self, config: ModelConfig, path: Path, seed: int) -> None:
        self.path = path
        self._format = _FORMATS.get(config.dtype, "f32")
        self._shapes = expected_shapes(config)
        self._norm_value = 1.0 - config.norm_offset
        values = np.random.default_rng(seed).standard_normal(BLOCK_LEN, np.float32) * np.float32(DEVIATION)
        self._block = dense("random", values, self._format).data

    @property
    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def format(self, name: str) -> str:
        return self._format

    def where(self, name: str) -> Path:
        return self.path

    def read(self, name: str) -> HostTensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            value = 0.0 if name.endswith(".bias") else self._norm_value
            return dense(name, np.full(shape, value, np.float32), self._format)
        count = math.prod(shape)
        data = np.empty(count, self._block.dtype)
        begin = zlib.crc32(name.encode()) % BLOCK_LEN
        filled = 0
        while filled < count:
            piece = self._block[begin : begin + count - filled]
            data[filled : filled + len(piece)] = piece
            filled += len(piece)
            begin = 0
        return HostTensor(name, self._format, shape, data.reshape(shape))

    def read_index(self, name: str, index: int) -> HostTensor:
        return index_of(self.read(name), index)
