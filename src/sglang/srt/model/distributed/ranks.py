"""Collective operations of the ranks of a model: sum rows, gather logits, agree on a number.

On a CPU through torch's gloo, on loopback; on CUDA through nccl. Rows are added in the order of the ranks, so that sums do not
depend on how many rows there are; nccl's own sum, which may, is the faster default on CUDA.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from sglang.common.install import install_packages
from sglang.srt.errors import ConfigError
from sglang.srt.model.kernels.ops import Array

TIMEOUT = timedelta(minutes=10)
"""of one collective; a rank that dies ends the others long before (leader.py, follower.py)"""
RENDEZVOUS = "ranks"


class Ranks(Protocol):
    """This process among `size`. All ranks call the same methods in the same order."""

    rank: int
    size: int
    deterministic: bool

    def sum_rows(self, x: Array) -> None:
        """x = the sum of all ranks' x, in place. x: [n, width], contiguous."""
        ...

    def gather_columns(self, part: Array, full: Array) -> None:
        """full[:, r * w : (r + 1) * w] = rank r's part [n, w], as far as full [n, width] reaches."""
        ...

    def share(self, x: Array) -> None:
        """x becomes that of rank 0, in place. x: contiguous."""
        ...

    def least(self, value: int) -> int:
        """The smallest of all ranks' values."""
        ...

    def close(self) -> None: ...


class TorchRanks:
    """Collectives over a torch process group; `gloo` or `nccl`. Arrays are NumPy's or tensors of the rank's device."""

    def __init__(self, group: Any, torch: Any, rank: int, size: int, device: str, deterministic: bool) -> None:
        self.rank = rank
        self.size = size
        self.deterministic = deterministic
        self._group = group
        self._torch = torch
        self._device = device

    def _tensor(self, x: Array) -> Any:
        return x if isinstance(x, self._torch.Tensor) else self._torch.from_numpy(x)

    def _gathered(self, x: Any) -> list[Any]:
        parts = [self._torch.empty_like(x) for _ in range(self.size)]
        self._group.allgather([parts], [x]).wait()
        return parts

    def sum_rows(self, x: Array) -> None:
        mine = self._tensor(x)
        if not self.deterministic:
            self._group.allreduce([mine]).wait()
            return
        parts = self._gathered(mine)
        self._torch.add(parts[0], parts[1], out=mine)
        for part in parts[2:]:
            mine += part

    def gather_columns(self, part: Array, full: Array) -> None:
        out, width = self._tensor(full), part.shape[1]
        for i, columns in enumerate(self._gathered(self._tensor(part).contiguous())):
            room = out[:, i * width : (i + 1) * width]
            room.copy_(columns[:, : room.shape[1]])

    def share(self, x: Array) -> None:
        self._group.broadcast(self._tensor(x), 0).wait()

    def least(self, value: int) -> int:
        mine = self._torch.tensor([value], dtype=self._torch.int64, device=self._device)
        return min(int(part) for part in self._gathered(mine))

    def close(self) -> None:
        self._group = None


def join(directory: Path, rank: int, size: int, device: str, deterministic: bool) -> TorchRanks:
    """Meets the other ranks in `directory`, which only this user may enter. `device`: "cpu" or "cuda:<rank>". Raises ConfigError."""
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        command = install_packages("torch==2.13.0")
        raise ConfigError(f"--tp-size {size} needs torch for the communication of its ranks: {command}") from error
    store = dist.FileStore(str(directory / RENDEZVOUS), size)
    try:
        if device == "cpu":
            group = dist.ProcessGroupGloo(store, rank, size, _gloo_options(dist))
            return TorchRanks(group, torch, rank, size, device, True)
        torch.cuda.set_device(rank)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = TIMEOUT
        group = dist.ProcessGroupNCCL(store, rank, size, options)
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"rank {rank} of {size} could not connect to the others: {error}") from error
    return TorchRanks(group, torch, rank, size, device, deterministic)


def _gloo_options(dist: Any) -> Any:
    """The loopback interface alone: no other machine needs to reach the ranks."""
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = TIMEOUT
    return options
