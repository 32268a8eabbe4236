"""The interface to a checkpoint's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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


class RenamedSource:
    """`inner` under other names. `ours`: the name that each of its names becomes."""

    def __init__(self, inner: TensorSource, ours: Callable[[str], str]) -> None:
        self.path = inner.path
        self._inner = inner
        self._stored = {ours(name): name for name in inner.names}

    @property
    def names(self) -> list[str]:
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._inner.shape(self._stored[name])

    def format(self, name: str) -> str:
        return self._inner.format(self._stored[name])

    def where(self, name: str) -> Path:
        return self._inner.where(self._stored[name])

    def read(self, name: str) -> HostTensor:
        return replace(self._inner.read(self._stored[name]), name=name)

    def read_index(self, name: str, index: int) -> HostTensor:
        return replace(self._inner.read_index(self._stored[name], index), name=name)


def index_of(tensor: HostTensor, index: int) -> HostTensor:
    """The same of a tensor that was read."""
    rows = 1 if len(tensor.shape) < 3 else tensor.shape[1]
    data = tensor.data[index] if tensor.is_dense else tensor.data[index * rows : (index + 1) * rows]
    return HostTensor(tensor.name, tensor.format, tensor.shape[1:], data)
