"""The process in front of several servers: its address, keys, limits and signals are those of a server of one model.

loading what is to be there from the start --> ready --SIGTERM, Ctrl-C--> draining --no request left, or timeout--> the servers end
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvloop
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from sglang.cluster.child import LAST_SECONDS as CHILD_SECONDS
from sglang.cluster.child import LoadFailed
from sglang.cluster.gateway import Effects, Gateway
from sglang.cluster.metrics import GatewayMetrics
from sglang.cluster.model_list import ServedModel, write_private
from sglang.cluster.pool import ModelPool
from sglang.cluster.servers import Servers
from sglang.cluster.upstream import Headers
from sglang.srt.config import HttpOptions
from sglang.srt.errors import ConfigError
from sglang.srt.process.ending import LastResort, has_terminal, when_stdin_ends
from sglang.srt.process.endpoint import close_endpoint, open_endpoint, renew_certificate, tls_context
from sglang.srt.process.heap import limit_arenas
from sglang.srt.process.logs import configure_access_log, configure_logging
from sglang.srt.process.secret_values import hide_secrets
from sglang.srt.process.uvicorn_server import (
    LAST_SECONDS,
    HttpServer,
    raise_file_limit,
    uvicorn_config,
)
from sglang.srt.server.http.app import upload_limits
from sglang.srt.server.http.auth import ApiKeys, BodyLimit, RequestScopes
from sglang.srt.server.http.browsers import BrowserGuard, Hosts
from sglang.srt.server.http.keys import KeyRing
from sglang.srt.server.http.starting import OuterApp, RootPath
from sglang.srt.server.openai.batches.batch_runner import BatchRunner
from sglang.srt.server.openai.batches.row_calls import RowCalls
from sglang.srt.server_args import ServerArgs

logger = logging.getLogger("sglang")


MakePool = Callable[[Path, dict[str, Any]], Servers]
"""of a private folder, and flags that all servers get"""


def serve_models(args: ServerArgs, models: list[ServedModel], on_ready: Callable[[], None] | None = None) -> None:
    """Serves several models on this machine until Ctrl-C or SIGTERM. Raises SglangError when it cannot start."""
    serve_pool(args, lambda folder, more: ModelPool(models, folder, more, args.max_loaded), on_ready)


def serve_pool(args: ServerArgs, make_pool: MakePool, on_ready: Callable[[], None] | None = None) -> None:
    """Serves until Ctrl-C or SIGTERM. Raises SglangError when it cannot start."""
    configure_logging(args.log_level, args.log_level_http, args.log_format)
    configure_access_log(args.log_level_http or args.log_level, args.log_format)
    for note in args.notes():
        logger.warning("%s", note)
    http = args.resolve().http
    hide_secrets(args.secrets())
    tls = tls_context(http)
    listener = open_endpoint(http)
    folder = Path(tempfile.mkdtemp(prefix="sglang-models-"))  # 0700
    last_resort = LastResort()
    raise_file_limit()
    limit_arenas()
    try:
        serving = Serving(args, http, make_pool, folder, listener, tls, last_resort, on_ready)
        uvloop.run(serving.run())
    finally:
        last_resort.disarm()
        shutil.rmtree(folder, ignore_errors=True)
        close_endpoint(listener, http.uds)


class KeyFiles:
    """The keys as the servers read them: in the private folder, never on a command line."""

    def __init__(self, folder: Path) -> None:
        self._keys, self._admin = folder / "keys", folder / "admin-key"

    def write(self, http: HttpOptions) -> dict[str, str]:
        """The flags that name the files."""
        flags = {}
        if http.api_keys:
            _write_private(self._keys, list(http.api_keys))
            flags["api_key_file"] = str(self._keys)
        if http.admin_api_key is not None:
            _write_private(self._admin, [http.admin_api_key])
            flags["admin_api_key_file"] = str(self._admin)
        return flags

    def operator(self) -> Headers:
        """With which the servers know who asks."""
        path = next((path for path in (self._admin, self._keys) if path.exists()), None)
        return [] if path is None else [(b"authorization", b"Bearer " + path.read_bytes().splitlines()[0])]


def _write_private(path: Path, lines: list[str]) -> None:
    for line in lines:
        if line.startswith("#"):
            raise ConfigError("an API key begins with #, which marks comments in files of keys: choose another key")
    new = path.with_suffix(".new")
    write_private(new, "\n".join(lines) + "\n")
    new.replace(path)


class Serving:
    """Owns the pool of models and the HTTP server."""

    def __init__(
        self,
        args: ServerArgs,
        http: HttpOptions,
        make_pool: MakePool,
        folder: Path,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        last_resort: LastResort,
        on_ready: Callable[[], None] | None,
    ) -> None:
        self._args, self._options = args, http
        self._listener, self._tls, self._last_resort, self._on_ready = listener, tls, last_resort, on_ready
        self._key_files = KeyFiles(folder)
        more: dict[str, Any] = {**self._key_files.write(http), "drain_seconds": "0"}  # requests have had their time here
        more["host"] = http.host  # it decides who may look at the machine
        more["random_seed"] = str(http.random_seed)  # a server that is restarted samples as the one before
        self._pool = make_pool(folder, more)
        options = args.batch_options()
        self._batches = BatchRunner(options) if options is not None else None
        self._gateway = Gateway(self._pool, GatewayMetrics(), http.page, self._batches, self._key_files.operator)
        self._keys = KeyRing(http.api_keys, http.admin_api_key)
        if self._batches is not None:
            self._batches.calls = RowCalls(self._gateway, self._headers_of)
        self._batching: asyncio.Task[None] | None = None
        self._outer = OuterApp()
        self._outer.app = guarded(self._gateway, http, self._keys, upload_limits(self._batches))
        self._http = HttpServer(uvicorn_config(RootPath(self._outer, http.root_path), http), tls)
        self._draining: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serves until a signal. Raises ConfigError if a model that is to be there from the start cannot be loaded."""
        handlers = self._listen_to_signals()
        serving = asyncio.ensure_future(self._http.serve(sockets=[self._listener]))
        loading = asyncio.ensure_future(self._load())
        failure: BaseException | None = None
        try:
            await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
            failure = loading.exception() if loading.done() and not loading.cancelled() else None
            self._http.should_exit = self._http.should_exit or failure is not None
            await serving
        finally:
            loading.cancel()
            if self._batches is not None:
                await self._end_batches(self._batches)
            await self._pool.close()
            for number, before in handlers.items():
                signal.signal(number, before)
        if failure is not None and self._draining is None:
            raise ConfigError(str(failure)) from failure

    async def _load(self) -> None:
        try:
            await self._pool.preload()
        except LoadFailed as error:
            raise ConfigError(str(error)) from error
        while not self._http.started:
            await asyncio.sleep(0.01)
        if self._batches is not None:
            self._batching = asyncio.ensure_future(self._batches.run())
        logger.info("The server is fired up and ready to roll!")
        if self._on_ready is not None:
            self._on_ready()

    def _headers_of(self, owner: str) -> list[tuple[bytes, bytes]] | None:
        """With which a request of a batch is its owner's."""
        key = self._keys.key_of(owner)
        if key is None:
            return None
        return [(b"authorization", b"Bearer " + key)] if key else []

    async def _end_batches(self, batches: BatchRunner) -> None:
        if self._batching is not None:
            self._batching.cancel()
            await asyncio.gather(self._batching, return_exceptions=True)
        batches.close()

    # --- signals ------------------------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> dict[int, Any]:
        loop = asyncio.get_running_loop()

        def stop(*_: object) -> None:
            seconds = self._options.drain_seconds + CHILD_SECONDS
            self._last_resort.arm(0.0 if self._last_resort.is_armed else seconds)
            loop.call_soon_threadsafe(self._on_signal)

        handlers: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            hang_up = stop if has_terminal() else lambda *_: loop.call_soon_threadsafe(self._reload)
            handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
        if self._options.stop_with_stdin:
            threading.Thread(target=when_stdin_ends, args=(stop,), name="stdin", daemon=True).start()
        return handlers

    def _reload(self) -> None:
        """Reads the files of keys and of the certificate again."""
        try:
            http = self._args.resolve().http
            if self._tls is not None:
                renew_certificate(self._tls, http)
            self._key_files.write(http)
        except ConfigError as error:
            logger.error("SIGHUP: nothing is changed, since %s", error)
            return
        self._keys.replace(http.api_keys, http.admin_api_key)
        self._pool.reload()
        logger.info("SIGHUP: keys and certificate were read again.")

    def _on_signal(self) -> None:
        if self._draining is None:
            seconds = self._options.drain_seconds
            logger.info("Shutting down: running requests have %g s to finish; press Ctrl-C again to stop at once.", seconds)
            self._gateway.begin_drain()
            if self._batching is not None:
                self._batching.cancel()
            self._draining = asyncio.ensure_future(self._drain(seconds))
        else:
            self._outer.send_away()
            self._http.should_exit = self._http.force_exit = True

    async def _drain(self, seconds: float) -> None:
        """Lets requests finish. Those that are left then are ended by their servers, in their own words."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._outer.num_inside and loop.time() < deadline:
            await asyncio.sleep(0.02)
        await self._pool.close()
        deadline = loop.time() + LAST_SECONDS / 2
        while self._outer.num_inside and loop.time() < deadline:
            await asyncio.sleep(0.02)
        self._outer.send_away()
        self._http.should_exit = True


def guarded(gateway: Gateway, http: HttpOptions, keys: KeyRing, limits: Mapping[str, int]) -> ASGIApp:
    """What a server of one model checks before it reads a body (server/http/app.py). `limits`: of sizes, by path."""
    app: ASGIApp = BodyLimit(gateway, max_bytes=http.max_body_bytes, others=limits)
    app = RequestScopes(app)
    if http.api_keys or http.admin_api_key is not None:
        app = ApiKeys(app, keys=keys, open_paths=gateway.open_paths)
    app = BrowserGuard(app, hosts=Hosts(http.allowed_hosts, http.host), origins=http.cors_origins, effects=Effects())
    if http.cors_origins:
        app = CORSMiddleware(app, allow_origins=list(http.cors_origins), allow_methods=["*"], allow_headers=["*"])
    return app
