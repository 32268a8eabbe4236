"""Runs uvicorn in a process: its settings, limits of open files and memory, and the warm-up request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import uvicorn

from sglang.srt.config import HttpOptions, RuntimeConfig
from sglang.srt.process.endpoint import BACKLOG
from sglang.srt.server.http.connections import Connections
from sglang.srt.server.http.protocol import HEAD_SECONDS, LimitedProtocol
from sglang.srt.server.http.starts import Starts

logger = logging.getLogger("sglang")

LAST_SECONDS = 3
"""for answers on their way when the time for draining is over"""
MAX_FILES = 65536


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: Server owns the signals. `tls`: how connections are encrypted."""

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(config)
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts as uvicorn does, but the TLS handshake has the same time limit as a request's head."""
        config = self.config

        def connection(_loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Protocol:
            protocol: Any = config.http_protocol_class
            made: asyncio.Protocol = protocol(config=config, server_state=self.server_state, app_state={}, _loop=_loop)
            return made

        timeout = HEAD_SECONDS if self._tls is not None else None
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                connection, sock=listener, ssl=self._tls, backlog=config.backlog, ssl_handshake_timeout=timeout
            )
            for listener in sockets or []
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def uvicorn_config(app: Any, http: HttpOptions) -> uvicorn.Config:
    open_ones, level = Connections(http.max_connections), http.log_level_http or http.log_level
    return uvicorn.Config(
        app,
        log_config=None,
        log_level=level,
        access_log=logging.getLevelName(level.upper()) <= logging.INFO,  # its lines cost something even where none are kept
        loop="none",
        http=partial(LimitedProtocol, open_ones=open_ones, starts=Starts(), probes=Starts()),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=LAST_SECONDS,
        backlog=BACKLOG,
    )


def own_url(http: HttpOptions) -> str:
    """The URL at which this process reaches its own server."""
    scheme = "https" if http.ssl_certfile is not None else "http"
    if http.uds is not None:
        return f"{scheme}://localhost"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(http.host, http.host)
    return f"{scheme}://[{host}]:{http.port}" if ":" in host else f"{scheme}://{host}:{http.port}"


async def first_request(config: RuntimeConfig, embeds: bool) -> None:
    http = config.http
    prompt: dict[str, Any] = {"text": "The capital city of France is"}
    if config.text.skip_tokenizer_init:
        prompt = {"input_ids": [10, 11, 12]}
    headers = [(b"Authorization", b"Bearer " + http.api_keys[0].encode())] if http.api_keys else []
    # it speaks to itself: whom the certificate names says nothing
    transport = httpx.AsyncHTTPTransport(uds=http.uds, verify=False)
    async with httpx.AsyncClient(base_url=own_url(http), headers=headers, timeout=600, transport=transport) as client:
        await client.get("/v1/models")
        await client.get("/get_model_info")
        if embeds:
            reply = await client.post("/encode", json=prompt)
        else:
            body = prompt | {"sampling_params": {"temperature": 0, "max_new_tokens": 8}}
            reply = await client.post("/generate", json=body)
    if reply.status_code != 200:
        logger.error("The first request failed with status %d: %s", reply.status_code, reply.text[:500])


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
