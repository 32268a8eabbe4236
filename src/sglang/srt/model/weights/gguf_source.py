"""The tensors of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.model.quant.formats import HostTensor
from sglang.srt.model.weights.tensor_source import index_of

RELEASE_BYTES = 16 << 20
"""how much of the file may lie in memory beside the weights made of it"""


class GGUFSource:
    """A GGUF file as a source of tensors, under its own names."""

    def __init__(self, gguf: GGUFFile) -> None:
        self.path = gguf.path
        self._gguf = gguf
        self._num_read = 0

    @property
    def names(self) -> list[str]:
        return list(self._gguf.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._gguf.tensors[name].shape

    def format(self, name: str) -> str:
        return self._gguf.tensors[name].format

    def where(self, name: str) -> Path:
        return self._gguf.where(name)

    def read(self, name: str) -> HostTensor:
        stored = self._gguf.tensors[name]
        self._num_read += stored.data.nbytes
        if self._num_read > RELEASE_BYTES:
            self._gguf.release()
            self._num_read = 0
        return HostTensor(name, stored.format, stored.shape, stored.data)

    def read_index(self, name: str, index: int) -> HostTensor:
        return index_of(self.read(name), index)
