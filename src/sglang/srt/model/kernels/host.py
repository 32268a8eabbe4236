"""Base of op sets whose arrays are host arrays: nothing is copied, nothing waits (see ops.Ops)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels.ops import AttentionMeta, KVLayer, StepShape
from sglang.srt.model.kernels.transfer import Fetch, Inputs

Int32 = npt.NDArray[np.int32]


class HostInputs:
    """ops.Inputs in one place: what is written is what is read."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.arrays: Mapping[str, Int32] = {name: np.zeros(size, np.int32) for name, size in sizes.items()}
        self.host = self.arrays

    def begin(self) -> None:
        """Does nothing: no copy is pending."""

    def send(self) -> None:
        """Already there."""


class HostFetch:
    """ops.Fetch of values that are there."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._values = values

    def result(self) -> npt.NDArray[Any]:
        return self._values


class HostArrays:
    """The memory part of ops.Ops for a device that is the host."""

    runs_ahead = False

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> npt.NDArray[Any]:
        return np.zeros(shape, "float32" if dtype == "hidden" else dtype)

    def inputs(self, sizes: Mapping[str, int]) -> Inputs:
        return HostInputs(sizes)

    def table(self, host: Int32) -> Int32:
        return host

    def sync_table(self, table: Int32, host: Int32, rows: Int32, lengths: Int32) -> None:
        """One memory."""

    def write(self, out: npt.NDArray[Any], x: npt.NDArray[Any]) -> None:
        out[: len(x)] = x

    def fetch(self, x: npt.NDArray[Any]) -> Fetch:
        return HostFetch(x.copy())

    def finish(self) -> None:
        """An op has run when it returns."""

    def touch_kv(self, layers: Sequence[KVLayer], start: int, end: int) -> None:
        """NumPy's memory comes as it is written."""

    def bound(self, rows: Int32, num_rows: int) -> None:
        """The kernels read `rows` themselves."""

    def bound_step(self, meta: AttentionMeta, shape: StepShape) -> None:
        """The kernels read `meta` themselves."""

    def pick(self, x: npt.NDArray[Any], row_idx: Any, ids: Any) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = x[row_idx, ids]
        return values
