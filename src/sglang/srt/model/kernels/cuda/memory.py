"""Transfers between host and device for torch tensors: inputs in one copy, fetches, tables that mirror the host's, staging buffers.

Only `DeviceFetch.result` waits, and `DeviceInputs.begin` when the host is RING steps ahead. On CUDA host memory is pinned, so copies
overlap with work on both sides; on the CPU (tests) they are plain copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Int32 = npt.NDArray[np.int32]
Tensor = Any  # torch.Tensor

RING = 3
"""steps that may be on their way at once"""
ALIGN = 32
"""ints: every array starts on a 128-byte line"""


class DeviceInputs:
    """ops.Inputs: one device tensor, and RING host copies of it used in turn."""

    def __init__(self, device: Any, sizes: Mapping[str, int]) -> None:
        self._ranges: dict[str, slice] = {}
        end = 0
        for name, size in sizes.items():
            self._ranges[name] = slice(end, end + size)
            end += -(-max(size, 1) // ALIGN) * ALIGN
        self._block = torch.zeros(end, dtype=torch.int32, device=device)
        self.arrays: Mapping[str, Tensor] = {name: self._block[span] for name, span in self._ranges.items()}
        self._on_gpu = device.type == "cuda"
        self._ring = [_host_ints(end, self._on_gpu) for _ in range(RING if self._on_gpu else 1)]
        self._views = [{name: host.numpy()[span] for name, span in self._ranges.items()} for host in self._ring]
        self._sent: list[Any] = [None] * len(self._ring)
        self._turn = 0

    @property
    def host(self) -> Mapping[str, Int32]:
        return self._views[self._turn]

    def begin(self) -> None:
        self._turn = (self._turn + 1) % len(self._ring)
        if self._sent[self._turn] is not None:
            self._sent[self._turn].synchronize()

    def send(self) -> None:
        self._block.copy_(self._ring[self._turn], non_blocking=True)
        if self._on_gpu:
            event = self._sent[self._turn] or torch.cuda.Event()
            event.record()
            self._sent[self._turn] = event


def _host_ints(size: int, pinned: bool) -> Tensor:
    return torch.zeros(size, dtype=torch.int32, pin_memory=pinned)


class DeviceFetch:
    """ops.Fetch: the copy starts when this is made."""

    def __init__(self, x: Tensor) -> None:
        self._event: Any = None
        if x.device.type == "cuda":
            self._host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._host.copy_(x, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = x.clone()

    def result(self) -> npt.NDArray[Any]:
        if self._event is not None:
            self._event.synchronize()
        host = self._host.float() if self._host.dtype in (torch.bfloat16, torch.float16) else self._host
        values: npt.NDArray[Any] = host.numpy()
        return values


class DeviceTable:
    """A device table that follows a host table. `mirror` is what the device holds: only entries that differ are sent."""

    def __init__(self, device: Any, host: Int32) -> None:
        self._device = device
        self._mirror = np.zeros_like(host)
        self.array = torch.zeros(host.shape, dtype=torch.int32, device=device)

    def sync(self, host: Int32, rows: Int32, lengths: Int32) -> None:
        width = int(lengths.max(initial=0))
        if not width:
            return
        wanted = host[rows, :width]
        differs = wanted != self._mirror[rows, :width]
        differs &= np.arange(width) < lengths[:, None]
        at, column = np.nonzero(differs)
        if not len(at):
            return
        values = wanted[at, column]
        self._mirror[rows[at], column] = values
        where = rows[at].astype(np.int64) * host.shape[1] + column
        self.array.view(-1).scatter_(0, upload(where, self._device), upload(values, self._device))


def upload(host: npt.NDArray[Any], device: Any) -> Tensor:
    """The array on the device. The host array may be changed at once: pinned memory is torch's own to keep until it is read."""
    plain = np.ascontiguousarray(host)
    if plain.dtype == np.uint32:
        plain = plain.view(np.int32)
    if device.type != "cuda":
        return torch.from_numpy(plain.copy())
    staged = torch.empty(plain.shape, dtype=torch.from_numpy(plain[:0] if plain.ndim else plain).dtype, pin_memory=True)
    staged.numpy()[...] = plain
    return staged.to(device, non_blocking=True)
