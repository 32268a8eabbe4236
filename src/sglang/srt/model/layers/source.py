"""The source of layers' weights: the interface that they need of a checkpoint."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from sglang.srt.model.quant.formats import HostTensor


class WeightSource(Protocol):
    """Tensors by their Hugging Face names (`weights.loader.Checkpoint`). All raise ModelError naming the file."""

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        """The tensor as stored; an error if it is missing or not of `shape`."""
        ...

    def has(self, name: str) -> bool: ...

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """A 1-D tensor in float32; norm weights with the model's norm offset added."""
        ...
