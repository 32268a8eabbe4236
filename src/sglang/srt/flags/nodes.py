"""Reads the flags of a model over several machines: --nnodes and what belongs to it."""

from __future__ import annotations

import logging

from sglang.srt.config import NodeOptions
from sglang.srt.errors import ConfigError
from sglang.srt.flags.groups import AdapterFlags, DeviceAndMemoryFlags
from sglang.srt.flags.values import read_private

logger = logging.getLogger("sglang")

LEAST_TOKEN = 16
"""characters of the secret: shorter ones could be guessed"""
MAKE_TOKEN = "umask 077; python3 -c 'import secrets; print(secrets.token_hex(32))' > dist_token"


def node_options(device: DeviceAndMemoryFlags, adapters: AdapterFlags) -> NodeOptions | None:
    """None for a model on one machine, and where Ray starts the nodes of each replica. Raises ConfigError."""
    count, rank = device.nnodes, device.node_rank
    if rank >= count:
        raise ConfigError(f"--node-rank {rank}: nodes are numbered from 0, and there are {count} (--nnodes)")
    if count == 1:
        _check_unused(device, "without --nnodes")
        return None
    if device.tp_size % count:
        raise ConfigError(
            f"--nnodes {count} does not divide --tp-size {device.tp_size}: each node has as many ranks as the others"
        )
    if adapters.enable_lora or adapters.lora_paths or adapters.lora_root:
        raise ConfigError(
            "--nnodes: a model over several machines takes no adapters yet; leave --enable-lora and --lora-paths out"
        )
    if device.ray is not None:
        if rank:
            raise ConfigError(f"--node-rank {rank} does not go together with --ray: Ray starts the other nodes of each replica")
        _check_unused(device, "with --ray")
        return None
    if device.replicas > 1:
        raise ConfigError("--replicas does not go together with --nnodes: start one server for each replica, or use --ray")
    host, port = _address(device.dist_init_addr)
    return NodeOptions(count, rank, host, port, _token(device.dist_token_file), device.dist_timeout)


def _check_unused(device: DeviceAndMemoryFlags, when: str) -> None:
    for flag, value in (("--dist-init-addr", device.dist_init_addr), ("--dist-token-file", device.dist_token_file)):
        if value is not None:
            logger.warning("%s has no effect %s", flag, when)


def _address(text: str | None) -> tuple[str, int]:
    if text is None:
        raise ConfigError(
            "--nnodes needs --dist-init-addr HOST:PORT: an address of node 0 that the other nodes reach, and a free port there"
        )
    host, _, port = text.removeprefix("tcp://").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535 or not port.isascii():
        raise ConfigError(f"--dist-init-addr is HOST:PORT of node 0, such as 10.0.0.1:5000, got {text[:100]!r}")
    if host in ("0.0.0.0", "::"):
        raise ConfigError(
            f"--dist-init-addr {text}: name the address of node 0 that the other nodes reach; it listens there alone"
        )
    return host, int(port)


def _token(path: str | None) -> str:
    if path is None:
        raise ConfigError(
            f"--nnodes needs --dist-token-file: a file with the same secret on all nodes, which keeps others out. To make one: {MAKE_TOKEN}"
        )
    token = read_private("--dist-token-file", path).strip()
    if len(token) < LEAST_TOKEN:
        raise ConfigError(f"--dist-token-file {path} has fewer than {LEAST_TOKEN} characters. To make one: {MAKE_TOKEN}")
    return token
