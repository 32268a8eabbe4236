"""What the gateway needs to know of servers, wherever they are: pool.ModelPool on this machine, ray.leases.RayPool."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from sglang.cluster.route_key import RouteKey
from sglang.cluster.upstream import Upstream


class Server(Protocol):
    """One that is leased."""

    @property
    def upstream(self) -> Upstream: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def replica(self) -> str:
        """What tells it from other servers of its model; empty for the only one."""
        ...

    @property
    def pid(self) -> int: ...

    def heard(self, num_outputs: int) -> None:
        """So many outputs of its answer have come."""
        ...


class Servers(Protocol):
    """All of them. `wants_key`: whether there is a choice that depends on the prompt: replicas of one model."""

    wants_key: bool

    @property
    def entries(self) -> Mapping[str, Any]: ...

    @property
    def default(self) -> str: ...

    def loaded(self) -> Sequence[Any]: ...

    def replicas(self) -> Sequence[str]:
        """Names of those of the one model that has several."""
        ...

    def leases(self, is_use: bool = True) -> Sequence[AbstractAsyncContextManager[Server]]: ...

    def lease(
        self,
        name: str,
        key: RouteKey | None = None,
        fingerprint: str = "",
        is_use: bool = True,
        replica: str | None = None,
        lost: Collection[str] = (),
    ) -> AbstractAsyncContextManager[Server]: ...

    def reload(self) -> None: ...

    async def preload(self) -> None: ...

    async def close(self) -> None: ...
