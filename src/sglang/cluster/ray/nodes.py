"""A replica over several machines: one bundle of its placement group for each, in the first the replica's actor, in the others one of these.

They compute as `sglang serve --node-rank N` does: steps go from server to ranks over TCP (srt/model/distributed), and none through Ray.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sglang.cluster.child import child_environment
from sglang.cluster.model_list import write_flags, write_private


class Node:
    """An actor whose child is another node of a replica. It ends with the child, and Ray starts it again; the replica's server waits
    for it meanwhile."""

    def __init__(self, flags: dict[str, Any], token: str) -> None:
        """`flags`: of `sglang serve`."""
        self._folder = Path(tempfile.mkdtemp(prefix="sglang-node-"))  # 0700
        secret, config = self._folder / "token", self._folder / "flags.yaml"
        write_private(secret, token)
        write_flags(str(config), {**flags, "dist_token_file": str(secret), "stop_with_stdin": "true"})
        command = (sys.executable, "-m", "sglang.launch_server", "--config", str(config))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=child_environment(), start_new_session=True)
        threading.Thread(target=self._end_with_child, name="child", daemon=True).start()

    def _end_with_child(self) -> None:
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)

    def stop(self) -> None:
        """Lets the child end, and this actor with it."""
        self._process.send_signal(signal.SIGTERM)


def start_nodes(flags: dict[str, Any], host: str, token: str) -> tuple[dict[str, Any], list[Any]]:
    """Starts the other nodes of the replica whose actor calls this. `host`: the address of its machine. Returns what its server's flags
    need besides, and the actors, which live as long as somebody holds them."""
    count = int(flags.get("nnodes", 1))
    if count == 1:
        return {}, []
    group = get_current_placement_group()
    assert group is not None, "replicas of several nodes are deployed with a placement group"
    with socket.create_server((host, 0)) as probe:
        address = f"{host}:{probe.getsockname()[1]}"
    actors = []
    for rank in range(1, count):
        bundle = group.bundle_specs[rank]
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        made = ray.remote(Node).options(
            num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), max_restarts=-1, scheduling_strategy=place
        )
        actors.append(made.remote({**flags, "node_rank": str(rank), "dist_init_addr": address}, token))
    return {"node_rank": "0", "dist_init_addr": address}, actors
