"""The connection to Ray, and what is deployed there: one application of Serve, whose replicas are servers of one model.

A gateway that finds the application there uses it, so that several gateways may stand before the same replicas. The one that deployed it
takes it down when it ends in order; when it is killed, the replicas stay, unless it had started Ray itself.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from sglang.cluster.ray.connection import Connecting
from sglang.cluster.ray.replica import Replica
from sglang.cluster.ray.router import PrefixRouter
from sglang.srt.errors import ConfigError

logger = logging.getLogger("sglang")

MAX_LEASES = 10_000
"""requests of one replica at a time; its own server refuses before"""
HEALTH_SECONDS, HEALTH_TIMEOUT = 5.0, 15.0
"""Serve asks a replica so often, and waits so long; it replaces one that did not answer three times together"""
MAX_STARTS = 3
"""of a replica that cannot be started"""


@dataclass(frozen=True)
class Scale:
    """How many replicas, and what each of them is given. `least` < `most`: Serve scales between them, so that each has about
    `target_requests`."""

    least: int
    most: int
    target_requests: float
    num_cpus: float
    num_gpus: float
    num_nodes: int = 1
    """machines that a replica needs, each with these CPUs and GPUs"""
    idle_seconds: float = 600.0
    """for which a replica is not needed, until it is removed"""


class Deployment:
    """Owner of the application `name` as far as this process has made it."""

    def __init__(self, address: str, name: str, scale: Scale, drain_seconds: float, pool_tokens: int) -> None:
        self._address = address
        self._name = name
        self._scale = scale
        self._drain_seconds = drain_seconds
        self._pool_tokens = pool_tokens
        self._connecting: Connecting | None = None
        self._has_started_ray = self._has_deployed = False
        self.is_local = False
        """Ray runs on this machine alone"""

    async def connect(self) -> None:
        """Raises ConfigError."""
        self._connecting = Connecting(self._address)
        self._has_started_ray, self.is_local = await self._connecting.result()

    async def deploy(self, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        """Returns a handle, and the arguments of the replicas that are there. Raises ConfigError if none can be started."""
        try:
            return await asyncio.to_thread(self._deploy, arguments)
        except RuntimeError as error:
            raise ConfigError(f"no replica could be started: {_reason(error)}") from error

    def _deploy(self, arguments: tuple[Any, ...]) -> Any:
        serve.start(proxy_location="Disabled")
        if self._name in serve.status().applications:
            logger.info("The application %s is there already: its replicas are used as they are.", self._name)
            return serve.get_app_handle(self._name)
        self._has_deployed = True
        return serve.run(self._application(arguments), name=self._name, route_prefix=None)

    def _application(self, arguments: tuple[Any, ...]) -> Any:
        scale = self._scale
        count: dict[str, Any] = {"num_replicas": scale.least}
        if scale.least < scale.most:
            scaling = AutoscalingConfig(
                min_replicas=scale.least,
                max_replicas=scale.most,
                target_ongoing_requests=scale.target_requests,
                downscale_delay_s=scale.idle_seconds,
            )
            count = {"autoscaling_config": scaling}
        if scale.num_nodes > 1:  # the actor of the replica is in the first bundle
            bundle = {"CPU": scale.num_cpus, "GPU": scale.num_gpus}
            bundle = {kind: number for kind, number in bundle.items() if number}
            count |= {"placement_group_bundles": [bundle] * scale.num_nodes, "placement_group_strategy": "SPREAD"}
        router = RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"pool_tokens": self._pool_tokens}
        )
        made = serve.deployment(Replica).options(
            name="replica",
            ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
            max_ongoing_requests=MAX_LEASES,
            request_router_config=router,
            health_check_period_s=HEALTH_SECONDS,
            health_check_timeout_s=HEALTH_TIMEOUT,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=self._drain_seconds,
            max_constructor_retry_count=MAX_STARTS,
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
            **count,
        )
        return made.bind(*arguments)

    async def close(self) -> None:
        if self._connecting is not None and await self._connecting.end():
            return
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if not ray.is_initialized():
            return
        if self._has_started_ray:
            serve.shutdown()
        elif self._has_deployed:
            serve.delete(self._name)
        ray.shutdown()


def _reason(error: RuntimeError) -> str:
    """The line that says why, among Ray's traces of it."""
    lines = [line for line in str(error).splitlines() if "LoadFailed" in line]
    return lines[-1].partition("LoadFailed: ")[2] or str(error)[-500:] if lines else str(error)[-500:]
