"""One start of a model: what its layers ask of the kernels, in their order, and what was packed.

Layers pack in an order that depends on the model, the options and the code alone, all of which are in the file's key. So the n-th
piece of a file answers the n-th request, and `what` is compared all the same: from the first that differs on, all is packed anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.quant.formats import HostTensor

if TYPE_CHECKING:  # it needs the compiled kernels, which a machine may lack
    from sglang.srt.model.weights.repacked.packed_file import Index, Piece


class PendingTensor(HostTensor):
    """A tensor of which only name, format and shape are known. Its parts are read together when the first is asked for."""

    @staticmethod
    def of(name: str, format_name: str, shape: tuple[int, ...], read: Callable[[], HostTensor]) -> PendingTensor:
        """`read` must give a tensor of this format and shape."""
        tensor = object.__new__(PendingTensor)
        tensor.__dict__.update(name=name, format=format_name, shape=shape, _read=read)
        return tensor

    @cached_property
    def _whole(self) -> HostTensor:
        whole: HostTensor = self.__dict__["_read"]()
        assert (whole.format, whole.shape) == (self.format, self.shape), f"{self.name} is not what it was"
        return whole

    @cached_property
    def data(self) -> npt.NDArray[Any]:
        return self._whole.data

    @cached_property
    def scale(self) -> npt.NDArray[np.float32] | None:
        return self._whole.scale

    @cached_property
    def order(self) -> npt.NDArray[np.int32] | None:
        return self._whole.order

    def with_zero_rows(self, num_rows: int) -> HostTensor:
        shape = (num_rows, self.shape[1])
        return PendingTensor.of(self.name, self.format, shape, lambda: self._whole.with_zero_rows(num_rows))


@dataclass(frozen=True)
class StoredFile:
    """A file whose pieces have been checked. `mapped`: _cpu.MappedFile, a copy or the open file."""

    index: Index
    mapped: Any


class Repacked:
    """The packed weights of one start (kernels.packing asks `take` and tells `add`; the checkpoint asks `tensor`)."""

    def __init__(self, stored: StoredFile | None) -> None:
        self.tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.packed: list[tuple[str, Any]] = []
        """what, and the weight: from a file or packed now, in order"""
        self.num_packed = 0
        """of these, the ones packed now"""
        self.stored_bytes = sum(piece.num_bytes for piece in stored.index.pieces) if stored is not None else 0
        self.was_stored = stored is not None
        self._stored = stored
        self._pieces: tuple[Piece, ...] = stored.index.pieces if stored is not None else ()

    def tensor(self, name: str, read: Callable[[], HostTensor]) -> HostTensor:
        """The tensor that `read` reads: now, or, while pieces come from a file, when its values are needed."""
        known = self._stored.index.tensors.get(name) if self._stored is not None else None
        if known is None:
            found = read()
            self.tensors[name] = (found.format, found.shape)
            return found
        self.tensors[name] = known
        return PendingTensor.of(name, *known, read)

    def take(self, what: str, make: Callable[[Any, int, int], Any]) -> Any:
        """The next weight from the file, or None: it has to be packed. `make(file, start, num_bytes)` raises ValueError for a piece
        that is no such weight."""
        at = len(self.packed)
        if self._stored is None or at >= len(self._pieces) or self._pieces[at].what != what:
            self._stored = None
            return None
        piece = self._pieces[at]
        try:
            weight = make(self._stored.mapped, piece.start, piece.num_bytes)
        except ValueError:
            self._stored = None
            return None
        self.packed.append((what, weight))
        return weight

    def add(self, what: str, weight: Any) -> None:
        """A weight that was packed because `take` had none."""
        self.packed.append((what, weight))
        self.num_packed += 1
