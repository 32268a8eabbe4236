"""`sglang serve --ray`: a gateway in this process, and replicas where Ray has room for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang.cluster.model_list import ServedModel, common_flags
from sglang.cluster.ray.deployment import Deployment, Scale
from sglang.cluster.ray.leases import RayPool
from sglang.cluster.serving import serve_pool
from sglang.common.devices import cuda_is_here
from sglang.srt.errors import ConfigError
from sglang.srt.server_args import ServerArgs

USUAL_POOL_TOKENS = 1 << 16
"""of a replica's KV pool, where --max-total-tokens does not say: what the router believes to be cached there"""


def serve_on_ray(args: ServerArgs, on_ready: Callable[[], None] | None = None) -> None:
    """Serves until Ctrl-C or SIGTERM. Raises SglangError when it cannot start."""
    most = args.max_replicas if args.max_replicas is not None else args.replicas
    if most < args.replicas:
        raise ConfigError(f"--max-replicas is {most}, and --replicas {args.replicas}: it cannot be less")
    if args.nnodes > 1 and not args.replica_cpus:
        raise ConfigError("--nnodes: the nodes of a replica need CPUs of their own: --replica-cpus more than 0")
    on_cuda = args.device == "cuda" or (args.device == "auto" and cuda_is_here())
    ranks_here = args.tp_size // args.nnodes
    num_gpus = float(ranks_here) if on_cuda else 0.0
    scale = Scale(args.replicas, most, args.target_requests, args.replica_cpus, num_gpus, args.nnodes, args.replica_idle)
    name = args.served_model_name or args.model_path
    flags = {flag: value for flag, value in common_flags(args).items() if flag != "replicas"}
    flags["model_path"] = args.model_path
    if args.threads is None and not on_cuda:
        flags["threads"] = str(max(int(args.replica_cpus) // ranks_here, 1))
    model = ServedModel(name, flags)

    def make_pool(folder: Path, more: dict[str, Any]) -> RayPool:
        application = "sglang-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[-100:]
        tokens = args.max_total_tokens or USUAL_POOL_TOKENS
        deployment = Deployment(str(args.ray), application, scale, args.drain_seconds, tokens)
        return RayPool(deployment, model, more, args.replica_wait)

    serve_pool(args, make_pool, on_ready)
