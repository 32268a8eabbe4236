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
