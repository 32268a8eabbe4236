"""Another machine of a model that spans several (`--node-rank 1` and on): starts the ranks that are here, and starts them again when node 0
has lost them or has started its scheduler again.

    node 0          scheduler process, rank 0 --TCP-- ranks of this machine      steps; none passes through this process
    this process    --standard input--> its ranks                                ends them when it ends
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import time

from sglang.common.interrupts import children_without_interrupts
from sglang.common.server_process import how_it_ended
from sglang.srt.config import NodeOptions, RuntimeConfig
from sglang.srt.config_codec import encode_config
from sglang.srt.errors import ConfigError
from sglang.srt.model.distributed.follower import FAILED, OVER, OfThisMachine
from sglang.srt.model.distributed.handshake import Hello, Refused, connect
from sglang.srt.model.distributed.links import follower_command, keep_alive
from sglang.srt.model.distributed.ranks import import_torch
from sglang.srt.model.distributed.wire import write_frame

logger = logging.getLogger("sglang")

POLL_SECONDS = 0.1
LAST_SECONDS = 5.0


def run_node(config: RuntimeConfig) -> None:
    """Until node 0 ends in order, or Ctrl-C or SIGTERM. Raises ConfigError when node 0 does not take this node, or is gone for too long."""
    nodes = config.nodes
    assert nodes is not None
    import_torch(config.device.tp_size)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    while True:
        logger.info("Node %d of %d: looking for node 0 at %s:%d.", nodes.rank, nodes.count, nodes.host, nodes.port)
        connections = _connect(config, nodes)
        ranks = _start(config, connections)
        try:
            code = _wait(ranks)
        finally:
            _end(ranks)
        if code == OVER:
            logger.info("Node 0 has ended, and so does node %d.", nodes.rank)
            return
        if code == FAILED:
            raise ConfigError(f"node {nodes.rank} cannot take part in the model; the line above says why")
        logger.warning("Node 0 and this one have lost each other (a rank %s); looking for it again.", how_it_ended(code))


def _connect(config: RuntimeConfig, nodes: NodeOptions) -> list[socket.socket]:
    """One connection for each rank of this machine. Raises ConfigError."""
    per_node, deadline = config.device.ranks_here, time.monotonic() + nodes.timeout
    connections: list[socket.socket] = []
    try:
        for rank in range(nodes.rank * per_node, (nodes.rank + 1) * per_node):
            hello = Hello(rank, nodes.rank, nodes.count, config.device.tp_size)
            connections.append(connect(nodes, hello, deadline))
    except BaseException as error:
        for connection in connections:
            connection.close()
        if isinstance(error, Refused):
            raise ConfigError(str(error)) from error
        raise
    return connections


def _start(config: RuntimeConfig, connections: list[socket.socket]) -> list[subprocess.Popen[bytes]]:
    own = encode_config(OfThisMachine(config.model, config.device.threads))
    ranks = []
    for connection in connections:
        keep_alive(connection)
        reads = connection.detach()
        writes = os.dup(reads)
        with children_without_interrupts():
            process = subprocess.Popen(follower_command(reads, writes), stdin=subprocess.PIPE, pass_fds=[reads, writes])
        os.close(reads)
        os.close(writes)
        ranks.append(process)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            write_frame(process.stdin, own)
    return ranks


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """The status of the first that ends."""
    while True:
        for process in ranks:
            if (code := process.poll()) is not None:
                return code
        time.sleep(POLL_SECONDS)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
    for process in ranks:
        try:
            process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
