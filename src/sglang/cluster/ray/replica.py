"""A replica: an actor of Ray Serve whose child is our own server.

The actor does no work: it lends the server's address, as many times as there are requests, so that Serve knows how many there are. With the
server the actor ends, and Serve starts another one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex
from typing import Any

from ray import serve

from sglang.cluster.child import Child
from sglang.cluster.model_list import ServedModel, write_private
from sglang.cluster.ray.nodes import start_nodes

LOOPBACK = "127.0.0.1"


class Replica:
    """What Serve deploys."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, name: str, flags: dict[str, Any], secrets: dict[str, list[str]], is_local: bool
    ) -> None:
        """`flags`: of the server. `secrets`: lines of the files that flags name. `is_local`: on loopback, else
        at the address by which Ray knows the machine. Raises LoadFailed."""
        folder = Path(tempfile.mkdtemp(prefix="sglang-replica-"))  # 0700
        files = {}
        for flag, lines in secrets.items():
            files[flag] = str(folder / flag)
            write_private(files[flag], "\n".join(lines) + "\n")
        host = LOOPBACK if is_local else _node_address()
        listener = socket.create_server((host, 0))
        token = token_hex(32)
        more, self._nodes = start_nodes({**flags, "served_model_name": name}, host, secret := token_hex(32))
        if more:
            more["dist_token_file"] = str(folder / "dist_token")
            write_private(more["dist_token_file"], secret)
        self._child = Child(ServedModel(name, {**flags, **more}), folder, 0, files, listener, token)
        try:
            await self._child.start(0)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the server has read it
        host, port = listener.getsockname()[:2]
        listener.close()  # the server has its own
        self._place: dict[str, Any] = {"host": host, "port": port, "token": token, "pid": self._child.pid}
        self._place["replica"] = serve.get_replica_context().replica_id.unique_id
        self._place["fingerprint"] = self._child.fingerprint
        self._watching = asyncio.create_task(self._end_with_server())

    async def _end_with_server(self) -> None:
        await self._child.wait()
        os._exit(1)  # Serve notices at once; an actor that ends in order would be waited for

    async def lease(self, key: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yields where the server is, and what it asks of those who come; lasts until it is cancelled. `key`: what the router reads
        (router.py)."""
        yield self._place
        await asyncio.Event().wait()

    async def check_health(self) -> None:
        """Serve asks this every few seconds, and replaces a replica that raises."""
        head, _ = await self._child.upstream.ask("GET", "/health")
        if head.status != 200:
            raise RuntimeError(f"the server says {head.status}")


def _node_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
