"""Starts and watches the processes of a server.

    P0 (this one)  HTTP, tokenizing, detokenizing       TokenizerManager under uvicorn
    P1             one scheduler with its model         scheduler_process.py, restarted if it dies

The address is taken first, so that a busy port is reported before a model is loaded; it answers once the model is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import uvicorn
import uvloop

from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import HttpOptions, RuntimeConfig
from sglang.srt.errors import ConfigError, EngineDeadError
from sglang.srt.logs import configure_access_log, configure_logging
from sglang.srt.messages import SchedulerFailed, SchedulerReady, ShutdownReq, StateReq, ToScheduler
from sglang.srt.scheduler_process import write_config
from sglang.srt.server.http_server import create_app
from sglang.srt.server.tokenization.tokenizer import Tokenizer, open_tokenizer
from sglang.srt.server.tokenizer_manager import TokenizerManager
from sglang.srt.server_args import ServerArgs
from sglang.srt.transport import SocketServerEnd

logger = logging.getLogger("sglang")

GRACE_SECONDS = 5.0
"""how long running requests may go on after Ctrl-C or SIGTERM"""
MAX_RESTARTS = 5
"""scheduler deaths within RESTART_WINDOW seconds after which the server gives up"""
RESTART_WINDOW = 120.0
HEARTBEAT_SECONDS = 10.0


class SchedulerProcess:
    """One scheduler process and the socket to it."""

    def __init__(self, config: RuntimeConfig) -> None:
        self.link = SocketServerEnd()
        command = [sys.executable, "-m", "sglang.srt.scheduler_process", str(self.link.directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # died at once: `wait` tells
            write_config(self._process.stdin, config)

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        while (code := self._process.poll()) is None:
            await asyncio.sleep(0.05)
        return code

    async def ready(self) -> dict[str, Any]:
        """ModelInfo as a dict, once the model is loaded. Raises ConfigError if it cannot be."""
        message = asyncio.ensure_future(self.link.receive())
        ended = asyncio.ensure_future(self.wait())
        await asyncio.wait({message, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not message.done():
            with contextlib.suppress(asyncio.TimeoutError):  # its last word may still be on the way
                await asyncio.wait_for(asyncio.shield(message), 0.5)
        ended.cancel()
        if not message.done():
            message.cancel()
            raise ConfigError(f"the scheduler process ended with status {self._process.returncode} while loading the model")
        first = message.result()
        if isinstance(first, SchedulerFailed):
            raise ConfigError(first.message)
        assert isinstance(first, SchedulerReady)
        return first.info

    def kill(self) -> None:
        self._process.kill()

    async def stop(self, timeout: float) -> None:
        """Asks it to end, then makes it."""
        if self._process.poll() is None:
            self.link.send(ShutdownReq())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.wait(), timeout)
        if self._process.poll() is None:
            self._process.kill()
            await self.wait()
        self.link.close()


class Server:
    """Owns the scheduler process, the manager and the HTTP server, from the first byte of the model to the last request."""

    def __init__(self, config: RuntimeConfig, listener: socket.socket, on_ready: Callable[[], None] | None) -> None:
        self._config = config
        self._listener = listener
        self._on_ready = on_ready
        self._scheduler = SchedulerProcess(config)
        self._deaths: list[float] = []
        self._last_sign = time.monotonic()
        self._failure: str | None = None
        self._stopping = False

    def _send(self, message: ToScheduler) -> None:
        self._scheduler.link.send(message)

    async def run(self) -> None:
        """Serves until a signal. Raises ConfigError if the model cannot be loaded, EngineDeadError if it cannot be kept up."""
        try:
            tokenizer, info = await self._load()
            config = self._config
            self._manager = TokenizerManager(tokenizer, info, config.http, config.text, self._send)
            self._http = _HttpServer(_uvicorn_config(create_app(self._manager, config.http, config.flags), config.http))
            self._receiver = asyncio.ensure_future(self._receive())
            tasks = [asyncio.ensure_future(t) for t in (self._supervise(), self._heartbeat(), self._warm_up())]
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._on_signal)
            await self._http.serve(sockets=[self._listener])
            self._stopping = True
            for task in (*tasks, self._receiver):
                task.cancel()
            await asyncio.gather(*tasks, self._receiver, return_exceptions=True)
        finally:
            self._stopping = True
            await self._scheduler.stop(timeout=2.0)
        if self._failure:
            raise EngineDeadError(self._failure)

    async def _load(self) -> tuple[Tokenizer | None, dict[str, Any]]:
        """Tokenizer and model at the same time. What is wrong with the model is the better error, if both fail."""
        reading = asyncio.to_thread(open_tokenizer, self._config.text)
        info, tokenizer = await asyncio.gather(self._scheduler.ready(), reading, return_exceptions=True)
        for result in (info, tokenizer):
            if isinstance(result, BaseException):
                raise result
        return tokenizer, info

    def _on_signal(self) -> None:
        if self._http.should_exit:
            self._http.force_exit = True
            return
        logger.info("Shutting down: running requests have %g s to finish; press Ctrl-C again to stop at once.", GRACE_SECONDS)
        self._http.should_exit = True
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._manager.abort_all, "the server is shutting down")

    async def _receive(self) -> None:
        link = self._scheduler.link
        while True:
            message = await link.receive()
            self._last_sign = time.monotonic()
            self._manager.handle(message)

    async def _supervise(self) -> None:
        """Starts another scheduler when one dies. Its requests end with an error at once."""
        while True:
            code = await self._scheduler.wait()
            if self._stopping:
                return
            self._manager.scheduler_died(f"the scheduler died (status {code}); it is being restarted")
            if self._http.should_exit:
                return
            logger.error("The scheduler died with status %d; starting another one.", code)
            now = time.monotonic()
            self._deaths = [t for t in self._deaths if now - t < RESTART_WINDOW] + [now]
            if len(self._deaths) > MAX_RESTARTS:
                self._give_up(f"the scheduler died {len(self._deaths)} times within {RESTART_WINDOW:g} s")
                return
            self._receiver.cancel()
            self._scheduler.link.close()
            self._scheduler = SchedulerProcess(self._config)
            try:
                info = await self._scheduler.ready()
            except ConfigError as error:  # it has ended, or is about to: the next round counts and reports it
                logger.error("%s", error)
                continue
            self._receiver = asyncio.ensure_future(self._receive())
            self._last_sign = time.monotonic()
            self._manager.scheduler_restarted(info)
            logger.info("The scheduler is back.")

    def _give_up(self, message: str) -> None:
        logger.error("Giving up: %s.", message)
        self._failure = message
        self._http.should_exit = True

    async def _heartbeat(self) -> None:
        """The watchdog: a scheduler that is silent for too long is killed, and so restarted."""
        limit = self._config.schedule.watchdog_timeout
        while True:
            await asyncio.sleep(min(HEARTBEAT_SECONDS, limit / 4))
            self._send(StateReq(call_id=0))
            silent = time.monotonic() - self._last_sign
            if silent > limit:
                logger.error("The scheduler has given no sign of life for %.0f s; killing it.", silent)
                self._last_sign = time.monotonic()
                self._scheduler.kill()

    async def _warm_up(self) -> None:
        """One real request through the real door; then the server says that it is ready."""
        while not self._http.started:
            await asyncio.sleep(0.01)
        if not self._config.http.skip_server_warmup:
            await _first_request(self._config)
        logger.info("The server is fired up and ready to roll!")
        if self._on_ready is not None:
            self._on_ready()


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: Server owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: Any, http: HttpOptions) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        log_level=http.log_level_http or http.log_level,
        loop="none",
        lifespan="off",
        timeout_keep_alive=60,
        timeout_graceful_shutdown=int(GRACE_SECONDS) + 3,
        h11_max_incomplete_event_size=64 << 10,
    )


async def _first_request(config: RuntimeConfig) -> None:
    http = config.http
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(http.host, http.host)
    prompt: dict[str, Any] = {"text": "The capital city of France is"}
    if config.text.skip_tokenizer_init:
        prompt = {"input_ids": [10, 11, 12]}
    headers = {"Authorization": f"Bearer {http.api_keys[0]}"} if http.api_keys else {}
    base = f"http://[{host}]:{http.port}" if ":" in host else f"http://{host}:{http.port}"
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=600, trust_env=False) as client:
        await client.get("/v1/models")
        await client.get("/get_model_info")
        body = prompt | {"sampling_params": {"temperature": 0, "max_new_tokens": 8}}
        reply = await client.post("/generate", json=body)
    if reply.status_code != 200:
        logger.error("The first request failed with status %d: %s", reply.status_code, reply.text[:500])


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, not yet listening. Raises ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose another with --port") from error
    listener.set_inheritable(False)
    return listener


def launch_server(args: ServerArgs, on_ready: Callable[[], None] | None = None) -> None:
    """Serves until Ctrl-C or SIGTERM. Raises SglangError when the server cannot start or cannot be kept up."""
    configure_logging(args.log_level, args.log_level_http)
    configure_access_log(args.log_level_http or args.log_level)
    config = args.resolve()
    listener = _listen(config.http.host, config.http.port)
    logger.info("server_args=%s", dataclasses.replace(args, api_key=config.flags["api_key"], admin_api_key=config.flags["admin_api_key"]))
    resolve_model(config.model.model_path, revision=config.model.revision, download_dir=config.model.download_dir)
    try:
        uvloop.run(Server(config, listener, on_ready).run())
    finally:
        listener.close()
