"""Starts and watches the processes of a server.

    P0 (this one)  HTTP, tokenizing, detokenizing       TokenizerManager under uvicorn
    P1             one scheduler with its model         scheduler_process.py, restarted if it dies

start.py has opened the address and checked the model. While the model loads, requests get 503.

    starting --model loaded--> ready --SIGTERM, Ctrl-C--> draining --no request left, or timeout--> end
                               |   ^                      a second signal ends it at once
             scheduler died    v   |  another is ready: it is sent all requests in flight (server/resuming.py)
                              broken
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import uvloop

from sglang.srt.config import HttpOptions, RuntimeConfig
from sglang.srt.errors import ConfigError, EngineDeadError
from sglang.srt.process.ending import LastResort, has_terminal, when_stdin_ends
from sglang.srt.process.endpoint import renew_certificate
from sglang.srt.process.heap import keep_loaded_objects, limit_arenas
from sglang.srt.process.scheduler_process import check_model
from sglang.srt.process.schedulers import Schedulers
from sglang.srt.process.uvicorn_server import (
    LAST_SECONDS,
    HttpServer,
    first_request,
    raise_file_limit,
    uvicorn_config,
)
from sglang.srt.scheduler.cache.disk.tier import DRAIN_SECONDS
from sglang.srt.server.http.app import create_app
from sglang.srt.server.http.starting import OuterApp, RootPath
from sglang.srt.server.multimodal.opening import open_intake
from sglang.srt.server.openai.batches.batch_runner import BatchRunner
from sglang.srt.server.side_threads import is_busy
from sglang.srt.server.tokenization.tokenizer import open_tokenizer
from sglang.srt.server.tokenizer_manager import TokenizerManager

logger = logging.getLogger("sglang")


class Server:
    """Owns the scheduler process, the manager and the HTTP server, from the first byte of the model to the last request."""

    def __init__(
        self,
        config: RuntimeConfig,
        listener: socket.socket,
        on_ready: Callable[[], None] | None,
        last_resort: LastResort,
        tls: ssl.SSLContext | None = None,
        reread: Callable[[], HttpOptions] | None = None,
    ) -> None:
        self._config = config
        self._listener = listener
        self._on_ready = on_ready
        self._outer_app = OuterApp()
        app = RootPath(self._outer_app, config.http.root_path)
        self._http = HttpServer(uvicorn_config(app, config.http), tls)
        self._schedulers = Schedulers(config, self._give_up)
        self._batches = BatchRunner(config.batches) if config.batches is not None else None
        self._batching: asyncio.Task[None] | None = None
        self._manager: TokenizerManager | None = None
        self._failure: str | None = None
        self._warming: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._last_resort = last_resort
        self._cache_seconds = DRAIN_SECONDS if config.disk_cache is not None else 0.0
        self._tls = tls
        self._reread = reread
        self._handlers: dict[int, Any] = {}

    def _give_up(self, failure: str) -> None:
        """The schedulers cannot be kept up: the server ends."""
        self._failure = failure
        self._http.should_exit = True

    async def run(self) -> None:
        """Serves until a signal. Raises ConfigError if the model cannot be loaded, EngineDeadError if it cannot be kept up,
        KeyboardInterrupt for a signal before the model was there."""
        self._loading = asyncio.ensure_future(self._load())
        self._listen_to_signals()
        serving = asyncio.ensure_future(self._http.serve(sockets=[self._listener]))
        tasks: list[asyncio.Task[None]] = []
        try:
            manager = await self._load_or_stop()
            self._warming = asyncio.ensure_future(self._warm_up())
            tasks = [asyncio.ensure_future(self._schedulers.run(manager)), self._warming]
            if self._batches is not None:
                self._batching = asyncio.ensure_future(self._batches.run())
                tasks.append(self._batching)
            await serving
        finally:
            self._http.should_exit = True
            for task in tasks:
                task.cancel()
            await self._schedulers.stop(timeout=2.0 + self._cache_seconds)
            if self._manager is not None and self._manager.media is not None:
                await self._manager.media.close()
            await asyncio.gather(serving, *tasks, return_exceptions=True)
            if self._batches is not None:
                self._batches.close()
            if self._manager is not None:
                await asyncio.to_thread(self._manager.close)
            if self._manager is not None and self._manager.records.tracing is not None:
                await asyncio.to_thread(self._manager.records.tracing.close)
            self._stop_listening()
        if self._failure:
            raise EngineDeadError(self._failure)

    async def _load(self) -> TokenizerManager:
        """Reads tokenizer and model at the same time and opens the endpoint. What is wrong with the model is the better error, if
        both fail; a large model may take minutes to load, so its config alone is asked."""
        config = self._config
        loading = asyncio.ensure_future(self._schedulers.ready())
        reading = asyncio.ensure_future(asyncio.to_thread(open_tokenizer, config.text))
        for task in (loading, reading):  # of two failures one is told, and asyncio would complain of the other
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait({loading, reading}, return_when=asyncio.FIRST_EXCEPTION)
        if not loading.done():
            await asyncio.to_thread(check_model, config.model)
            reading.result()
        info, tokenizer = await loading, await reading
        media = await asyncio.to_thread(open_intake, config, info, tokenizer)
        manager = TokenizerManager(tokenizer, info, config.http, config.text, self._schedulers.send, media, config.adapters)
        self._outer_app.app = create_app(manager, config.http, config.flags, self._batches)
        self._manager = manager
        keep_loaded_objects()
        return manager

    async def _load_or_stop(self) -> TokenizerManager:
        try:
            return await self._loading
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    # --- the end ------------------------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        """The handlers run even while the event loop is blocked; what they schedule on it runs afterwards."""
        loop = asyncio.get_running_loop()

        def stop(*_: object) -> None:
            drain = 0.0 if self._last_resort.is_armed else self._config.http.drain_seconds
            self._last_resort.arm(drain + self._cache_seconds)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._on_signal)

        self._handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup asks for nothing to happen
            hang_up = stop if has_terminal() else lambda *_: loop.call_soon_threadsafe(self._reload)
            self._handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
        if self._config.http.stop_with_stdin:
            threading.Thread(target=when_stdin_ends, args=(stop,), name="stdin", daemon=True).start()

    def _stop_listening(self) -> None:
        for number, before in self._handlers.items():
            signal.signal(number, before)

    def _reload(self) -> None:
        """Reads the files of keys and of the certificate again; all else stays as it was at the start."""
        if self._reread is None or self._manager is None:
            return
        try:
            http = self._reread()
            if self._tls is not None:
                renew_certificate(self._tls, http)
        except ConfigError as error:
            logger.error("SIGHUP: nothing is changed, since %s", error)
            return
        self._manager.keys.replace(http.api_keys, http.admin_api_key)
        logger.info("SIGHUP: keys and certificate were read again.")

    def _on_signal(self) -> None:
        if self._manager is None:
            self._loading.cancel()
        elif self._draining is None:
            seconds = self._config.http.drain_seconds
            logger.info("Shutting down: running requests have %g s to finish; press Ctrl-C again to stop at once.", seconds)
            self._manager.begin_drain()
            for task in (self._warming, self._batching):
                if task is not None:
                    task.cancel()
            self._draining = asyncio.ensure_future(self._drain(self._manager, seconds))
        else:
            self._manager.shut_down()
            self._outer_app.send_away()
            self._http.should_exit = self._http.force_exit = True

    async def _drain(self, manager: TokenizerManager, seconds: float) -> None:
        """Lets requests finish, whether they run or are still being read, then ends them; the address answers 503 meanwhile."""
        deadline = time.monotonic() + seconds
        while (manager.num_in_flight or self._outer_app.num_inside) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        if manager.num_in_flight or self._outer_app.num_inside:
            manager.end_drain()
            await asyncio.sleep(min(0.5, LAST_SECONDS / 2))
        if manager.num_in_flight:  # the scheduler does not react
            manager.shut_down()
            await asyncio.sleep(0.05)
        self._outer_app.send_away()
        self._http.should_exit = True

    # --- the beginning ------------------------------------------------------------------------------------------------------

    async def _warm_up(self) -> None:
        """One real request over HTTP; then the server says that it is ready."""
        while not self._http.started:
            await asyncio.sleep(0.01)
        if not self._config.http.skip_server_warmup:
            await first_request(self._config, bool(self._manager and self._manager.info.get("embedding_dim")))
        logger.info("The server is fired up and ready to roll!")
        if self._on_ready is not None:
            self._on_ready()


def run_server(
    config: RuntimeConfig,
    listener: socket.socket,
    on_ready: Callable[[], None] | None,
    tls: ssl.SSLContext | None,
    reread: Callable[[], HttpOptions],
) -> None:
    """Serves on an open socket until Ctrl-C or SIGTERM. `reread`: the options of HTTP, with keys and certificates read again. Raises
    SglangError when the server cannot start or cannot be kept up."""
    raise_file_limit()
    limit_arenas()
    last_resort = LastResort()
    try:
        uvloop.run(Server(config, listener, on_ready, last_resort, tls, reread).run())
        if is_busy():  # with texts of clients who have been told that it is over
            _end_at_once()
    finally:
        if is_busy():
            last_resort.arm(0.0)
        else:
            last_resort.disarm()


def _end_at_once() -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)
