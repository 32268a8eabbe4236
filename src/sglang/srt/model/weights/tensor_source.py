"""The interface to a checkpoint's files."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sglang.srt.model.quant.formats import HostTensor


class TensorSource(Protocol):
    """Tensors as a checkpoint stores them, under Hugging Face's names."""

    @property
    def path(self) -> Path:
        """The folder or file as a whole."""
        ...

    @property
    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape from the header; the data is not read."""
        ...

    def format(self, name: str) -> str: ...

    def where(self, name: str) -> Path:
        """The file that holds a tensor."""
        ...

    def read(self, name: str) -> HostTensor: ...

    def read_index(self, name: str, index: int) -> HostTensor:
        """One of the matrices, or rows, that follow one another along a tensor's first dimension."""
        ...


def index_of(tensor: HostTensor, index: int) -> HostTensor:
    """The same of a tensor that was read."""
    rows = 1 if len(tensor.shape) < 3 else tensor.shape[1]
    data = tensor.data[index] if tensor.is_dense else tensor.data[index * rows : (index + 1) * rows]
    return HostTensor(tensor.name, tensor.format, tensor.shape[1:], data)
