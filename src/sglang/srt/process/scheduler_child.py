"""The parent's handle of the scheduler process: starting it, waiting for it, explaining its death, stopping it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang.common.interrupts import children_without_interrupts, wait_for
from sglang.common.server_process import how_it_ended
from sglang.srt.config import RuntimeConfig
from sglang.srt.errors import ConfigError
from sglang.srt.messages import (
    ControlReply,
    FromScheduler,
    LoadAdapterReq,
    SchedulerFailed,
    SchedulerReady,
    ShutdownReq,
    UnloadAdapterReq,
)
from sglang.srt.process.scheduler_process import blamed_grammars, write_config
from sglang.srt.process.transport import SocketServerEnd

NATIVE_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS})
"""signals by which native code ends a process"""


def oom_kills() -> int:
    """Processes that Linux has killed for lack of memory since it started; 0 elsewhere."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class SchedulerProcess:
    """One scheduler process and the socket to it. `environ`: variables besides those of this process."""

    def __init__(self, config: RuntimeConfig, environ: Mapping[str, str] | None = None) -> None:
        self.link = SocketServerEnd()
        command = [sys.executable, "-m", "sglang.srt.process.scheduler_process", str(self.link.directory)]
        env = {**os.environ, **environ} if environ else None
        with children_without_interrupts():
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env)
        self._was_hanging = False
        self._oom_kills = oom_kills()
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
        first = await self._heard()
        if first is None:
            raise ConfigError(f"the scheduler process {self.how_it_ended()} while the model was loaded{self._advice()}")
        if isinstance(first, SchedulerFailed):
            raise ConfigError(first.message)
        assert isinstance(first, SchedulerReady)
        return first.info

    async def ask(self, message: LoadAdapterReq | UnloadAdapterReq) -> ControlReply:
        """The answer to a call, before the scheduler gets requests and while nobody else receives. Raises ConfigError if it ends
        meanwhile."""
        self.link.send(message)
        while (reply := await self._heard()) is not None:
            if isinstance(reply, ControlReply) and reply.call_id == message.call_id:
                return reply
        raise ConfigError(f"the scheduler process {self.how_it_ended()} while it was told of adapters")

    async def _heard(self) -> FromScheduler | None:
        """Its next message; None if it has ended without one."""
        message = asyncio.ensure_future(self.link.receive())
        ended = asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait({message, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not message.done():
                with contextlib.suppress(asyncio.TimeoutError):  # its last word may still be on the way
                    await wait_for(asyncio.shield(message), 0.5)
            return message.result() if message.done() else None
        finally:
            ended.cancel()
            message.cancel()

    def how_it_ended(self) -> str:
        """Its end in words. Memory ran out where the system has counted that since the start."""
        code = self._process.returncode
        if code == -signal.SIGKILL and not self._was_hanging and oom_kills() > self._oom_kills:
            return "was killed because memory ran out"
        return how_it_ended(code)

    def _advice(self) -> str:
        if self._process.returncode != -signal.SIGKILL:
            return ""
        return ": try a smaller model, --quantization int4, or a shorter --context-length"

    def kill(self) -> None:
        """Kills it because it hangs; `blamed_grammars` then has those it was working on."""
        self._was_hanging = True
        self._process.kill()

    def blamed_grammars(self) -> set[bytes]:
        """Digests of the grammars that it died of: those that native code was working on when it crashed, hung or raised."""
        code = self._process.returncode
        if code < 0 and -code not in NATIVE_CRASHES and not self._was_hanging:
            return set()  # killed from outside
        return blamed_grammars(self.link.directory, code)

    async def stop(self, timeout: float) -> None:
        """Asks it to end, then makes it."""
        if self._process.poll() is None:
            self.link.send(ShutdownReq())
            with contextlib.suppress(asyncio.TimeoutError):
                await wait_for(self.wait(), timeout)
        if self._process.poll() is None:
            self._process.kill()
            await self.wait()
        self.link.close()
