"""Runs of a GPU's KV pool as bytes (forward_batch.KVRuns). Copies take a stream of their own: steps go on meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Int32 = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Tensor = Any  # torch.Tensor


class CudaRuns:
    """`pool`: [num_layers, 2 (K, V), num_heads, num_slots, head_dim]. What is read has been computed, and what is written to belongs to
    nobody: the caller sees to both. For any thread."""

    def __init__(self, pool: Tensor, run: int) -> None:
        num_layers, _, num_heads, _, head_dim = pool.shape
        self.run = run
        self._pool = pool.view(torch.uint8)  # bytes: not every type can be copied by index
        self._shape = (num_layers, 2, num_heads, run, head_dim * pool.element_size())
        self.run_bytes = int(np.prod(self._shape))
        kind = str(pool.dtype).removeprefix("torch.")
        self.layout = f"cuda 1: {num_layers} layers, {num_heads} heads of {head_dim}, runs of {run}, {kind}"
        self._stream = torch.cuda.Stream(pool.device) if pool.device.type == "cuda" else None

    def read(self, slots: Int32, out: Bytes) -> None:
        """`out` [run_bytes] = what lies in `slots` [n <= run], and zeros."""
        missing = self.run - len(slots)
        if missing:
            slots = np.concatenate([slots, np.zeros(missing, np.int32)])
        with self._own_stream():
            first = int(slots[0])
            if (slots == np.arange(first, first + self.run)).all():
                found = self._pool[..., first : first + self.run, :].contiguous()
            else:
                found = self._pool.index_select(3, torch.from_numpy(slots.astype(np.int64)).to(self._pool.device))
            if missing:
                found.reshape(self._shape)[:, :, :, self.run - missing :] = 0
            torch.from_numpy(out).copy_(found.reshape(-1))

    def write(self, slot: int, data: Bytes) -> None:
        """Puts what `read` gave into the run that begins at `slot`."""
        with self._own_stream():
            found = torch.from_numpy(data).to(self._pool.device)
            self._pool[..., slot : slot + self.run, :].copy_(found.reshape(self._shape))

    def arena(self, num_bytes: int) -> Bytes:
        """Host memory that the device copies to and from at its full speed."""
        memory: Bytes = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._stream is not None).numpy()
        return memory

    def release(self, slot: int) -> None:
        """Device memory stays."""

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Everything is done when it ends."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()
