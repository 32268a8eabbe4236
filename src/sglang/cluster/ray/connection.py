"""The connection of this process to Ray."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from sglang.common.server_process import descendants
from sglang.srt.errors import ConfigError

logger = logging.getLogger("sglang")

END_SECONDS, LOOK_SECONDS = 3.0, 10.0
STARTS = 3
"""of Ray itself, which gives up after 30 s: on a busy machine that may be too early"""


class Connecting:
    """One attempt, on a thread of its own that keeps no process from ending: Ray's start cannot be called off."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._is_over = self._is_cut = False
        self._result: concurrent.futures.Future[tuple[bool, bool]] = concurrent.futures.Future()
        threading.Thread(target=self._run, name="ray", daemon=True).start()

    def _run(self) -> None:
        try:
            has_started = connect(self._address, lambda: not self._is_over)
            self._result.set_result((has_started, _is_local(has_started)))
        except BaseException as error:  # noqa: BLE001  # it is raised where the result is
            self._result.set_exception(error)
        threading.Event().wait()  # what a thread has started and the kernel is to end with it must not end now

    async def result(self) -> tuple[bool, bool]:
        """Whether Ray was started for this process, and whether it runs on this machine alone. Raises ConfigError."""
        return await asyncio.shield(asyncio.wrap_future(self._result))

    async def end(self) -> bool:
        """Whether it was not finished: what it has started then ends with this process."""
        self._is_over = True
        if not self._is_cut and not self._result.done():
            self._is_cut = True
            atexit.register(_kill_all)
            deadline = time.monotonic() + END_SECONDS
            while not self._result.done() and time.monotonic() < deadline:
                _kill_all()
                await asyncio.sleep(0.1)
        return self._is_cut


def _is_local(has_started: bool) -> bool:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return len(nodes) == 1 and (has_started or nodes[0]["NodeManagerAddress"].startswith("127."))


def _kill_all() -> None:
    """All processes below this one: there are none yet but those that Ray's start has made."""
    for pid, _ in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def connect(address: str, may_start: Callable[[], bool] = lambda: True) -> bool:
    """Whether Ray was started for this process: `auto` does that where none runs. Raises ConfigError."""
    if address != "auto":
        _look_at(address)
    options = {"log_to_driver": True, "logging_level": logging.WARNING, "namespace": "sglang", "ignore_reinit_error": True}
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        if address != "auto":
            raise ConfigError(f"--ray {address}: there is no Ray cluster at this address: {error}") from error
        logger.info("No Ray cluster runs here: one is started on this machine, for this command.")
        _start(options, may_start)
        return True
    except (RuntimeError, ValueError, OSError) as error:  # another version of Ray or of Python, no address
        raise ConfigError(f"--ray {address}: this cluster cannot be used: {error}") from error
    return False


def _look_at(address: str) -> None:
    """Ray itself waits for minutes for an address where nobody listens. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise ConfigError(
            f"--ray {address}: give auto, or HOST:PORT of the cluster's head (ray start prints it, port 6379 by default); clients of Ray "
            "(ray://) cannot lend replicas"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), LOOK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--ray {address}: there is no Ray cluster at this address: {error}") from error


def _start(options: dict[str, Any], may_start: Callable[[], bool]) -> None:
    for count in range(STARTS):
        if not may_start():
            raise ConfigError("Ray is not started: the server is to end")
        try:
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **options)
            return
        except Exception as error:  # noqa: BLE001  # it raises nothing more specific
            ray.shutdown()
            if count + 1 == STARTS:
                raise ConfigError(f"Ray could not be started: {error}") from error
            if may_start():
                logger.warning("Ray could not be started, and is started again: %s", error)
