"""One start of a model: what its layers ask of the kernels, in their order, and what was packed.

Layers pack in an order that depends on the model, the options and the code alone, all of which are in the file's key. So the n-th
piece of a file answers the n-th request, and `what` is compared all the same: from the first that differs on, all is packed anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang.srt.model.quant.formats import HostTensor
from sglang.srt.model.weights.repacked.pending import PendingTensor

if TYPE_CHECKING:  # it needs the compiled kernels, which a machine may lack
    from sglang.srt.model.weights.repacked.packed_file import Index, Piece


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
