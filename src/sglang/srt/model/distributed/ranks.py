"""Collective operations of the ranks of a model: sum rows, gather logits, agree on a number.

On a CPU through torch's gloo, on CUDA through nccl. Rows are added in the order of the ranks, so that sums do not
depend on how many rows there are; nccl's own sum, which may, is the faster default on CUDA.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from secrets import token_hex
from typing import Any, Protocol

import msgspec

from sglang.common.install import install_extras
from sglang.srt.errors import ConfigError
from sglang.srt.model.kernels.ops import Array

TIMEOUT = timedelta(minutes=10)
"""of one collective; a rank that dies ends the others long before (leader.py, follower.py)"""
JOIN_TIMEOUT = timedelta(minutes=1)
"""for connections among ranks that are all there"""


LOOPBACK = "127.0.0.1"


class Join(msgspec.Struct, tag=True):
    """Where all ranks meet: a file that only this user may read, or a port of rank 0 with a name that nobody else knows."""

    path: str = ""
    host: str = ""
    port: int = 0
    secret: str = ""


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


def join(where: Join, rank: int, size: int, device: str, address: str, deterministic: bool, store: Any = None) -> TorchRanks:
    """Connects this rank with the others, on the network interface that has `address`. `device`: "cpu" or "cuda:0" and so on;
    `store`: rank 0's own, where it has one. Raises ConfigError."""
    torch, dist = import_torch(size)
    try:
        if store is None:
            store = _open_store(dist, where, size)
        if device == "cpu":
            group = dist.ProcessGroupGloo(store, rank, size, _gloo_options(dist, address))
            group._set_default_timeout(TIMEOUT)
        else:
            torch.cuda.set_device(torch.device(device))
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = TIMEOUT
            group = dist.ProcessGroupNCCL(store, rank, size, options)
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"rank {rank} of {size} could not connect to the others: {error}") from error
    return TorchRanks(group, torch, rank, size, device, deterministic or device == "cpu")


def import_torch(size: int) -> tuple[Any, Any]:
    """Raises ConfigError where it is not installed."""
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        command = install_extras("srt", "distributed")
        raise ConfigError(f"--tp-size {size} needs torch for the communication of its ranks: {command}") from error
    return torch, dist


def host_store(address: str, size: int) -> tuple[Any, Join]:
    """A store on a port of `address` alone, and where others find it. Raises ConfigError."""
    _, dist = import_torch(size)
    listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    port, secret = listener.getsockname()[1], token_hex(32)
    store = dist.TCPStore(address, port, size, True, JOIN_TIMEOUT, wait_for_workers=False, master_listen_fd=listener.detach())
    return dist.PrefixStore(secret, store), Join(host=address, port=port, secret=secret)


def _open_store(dist: Any, where: Join, size: int) -> Any:
    if where.path:
        return dist.FileStore(where.path, size)
    store = dist.TCPStore(where.host, where.port, size, False, JOIN_TIMEOUT, wait_for_workers=False)
    return dist.PrefixStore(where.secret, store)


def _gloo_options(dist: Any, address: str) -> Any:
    """One interface alone: no other machine needs to reach the ranks."""
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = JOIN_TIMEOUT
    return options
