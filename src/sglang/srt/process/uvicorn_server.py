"""The HTTP server's side of a process: its address, how uvicorn runs it, limits of files and memory, and the first request."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import uvicorn

from sglang.srt.config import HttpOptions, RuntimeConfig
from sglang.srt.errors import ConfigError
from sglang.srt.server.http.connections import Connections
from sglang.srt.server.http.protocol import LimitedProtocol

logger = logging.getLogger("sglang")

LAST_SECONDS = 3
"""for answers on their way when the time for draining is over"""
MAX_FILES = 65536
M_ARENA_MAX = -8
"""of malloc.h"""


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: Server owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def uvicorn_config(app: Any, http: HttpOptions) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        log_level=http.log_level_http or http.log_level,
        loop="none",
        http=partial(LimitedProtocol, open_ones=Connections(http.max_connections)),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=LAST_SECONDS,
        backlog=4096,
    )


async def first_request(config: RuntimeConfig, embeds: bool) -> None:
    http = config.http
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(http.host, http.host)
    prompt: dict[str, Any] = {"text": "The capital city of France is"}
    if config.text.skip_tokenizer_init:
        prompt = {"input_ids": [10, 11, 12]}
    headers = [(b"Authorization", b"Bearer " + http.api_keys[0].encode())] if http.api_keys else []
    base = f"http://[{host}]:{http.port}" if ":" in host else f"http://{host}:{http.port}"
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=600, trust_env=False) as client:
        await client.get("/v1/models")
        await client.get("/get_model_info")
        if embeds:
            reply = await client.post("/encode", json=prompt)
        else:
            body = prompt | {"sampling_params": {"temperature": 0, "max_new_tokens": 8}}
            reply = await client.post("/generate", json=body)
    if reply.status_code != 200:
        logger.error("The first request failed with status %d: %s", reply.status_code, reply.text[:500])


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, not yet listening. Raises ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError, ValueError, TypeError) as error:  # the last two: an impossible host name
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        is_ours = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        flag = "--port" if is_ours else "--host"
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose another with {flag}") from error
    listener.set_inheritable(False)
    return listener


def raise_file_limit() -> None:
    """Every connection is an open file, and the usual limit of 1024 is for programs of another kind."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_arenas() -> None:
    """glibc gives every thread an arena that keeps what the largest request on it took; two of them are enough for all."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
