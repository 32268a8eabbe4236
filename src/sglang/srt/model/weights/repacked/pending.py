"""A tensor that is read only if somebody looks at its values."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.quant.formats import HostTensor


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
