"""One server as a child process, reached through a unix socket in a private folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from secrets import token_hex
from typing import Any

from sglang.cluster.model_list import ServedModel, write_flags, write_private
from sglang.cluster.upstream import Address, Upstream, UpstreamLost
from sglang.common.interrupts import wait_for
from sglang.common.server_process import descendants, how_it_ended
from sglang.srt.server.http.auth import TOKEN_HEADER

logger = logging.getLogger("sglang")

PREFIX = "SGLANG_"
LAST_SECONDS = 12.0
"""a server ends itself by then, whatever it does"""
POLL_SECONDS = 0.05
PLAN_SECONDS = 120.0
MAX_LINE = 2000
ASK_SECONDS, ANSWER_SECONDS, MAX_SILENCES = 5.0, 15.0, 3
"""a server is asked so often whether it answers, has so long for that, and is killed when it did not so many times together"""


class LoadFailed(Exception):
    """The model cannot be served. The message is the server's own."""


class Child:
    """The server of a model: `number` tells it from those of the same model before it. `folder`: private, with the files of keys."""

    def __init__(
        self,
        model: ServedModel,
        folder: Path,
        number: int,
        more: dict[str, Any],
        listener: socket.socket | None = None,
        token: str = "",
    ) -> None:
        """`listener`: for one that is reached by TCP; then `token` is what its requests have to bring."""
        self.model = model
        self._listener = listener
        self._config = folder / f"{number}.yaml"
        self._socket = folder / f"{number}.sock"
        self._flags = {**model.flags, **more, "served_model_name": model.name}
        if listener is None:
            self._flags["uds"] = str(self._socket)
            self.upstream = Upstream(Address(path=str(self._socket)))
        else:
            host, port = listener.getsockname()[:2]
            token_file = folder / f"{number}.token"
            write_private(token_file, token)
            self._flags |= {"listen_fd": str(listener.fileno()), "gateway_token_file": str(token_file)}
            self.upstream = Upstream(Address(host=host, port=port), [(TOKEN_HEADER, token.encode())])
        self.info: dict[str, Any] = {}
        """what /get_server_info says of the model"""
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._error = ""

    @property
    def replica(self) -> str:
        return ""

    @property
    def fingerprint(self) -> str:
        """Equal for servers that compute the same bits."""
        return str(self.info.get("fingerprint", ""))

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def heard(self, num_outputs: int) -> None:
        """So many outputs of an answer have come: nothing is chosen by that here."""

    async def start(self, reserved: int) -> None:
        """Returns when it takes requests. `reserved`: bytes of memory that are free now and that others are going to take. Raises
        LoadFailed."""
        more = {"stop_with_stdin": "true", "behind_gateway": "true", "reserve_memory": str(reserved)}
        write_flags(str(self._config), {**self._flags, **more})
        command = (sys.executable, "-m", "sglang.launch_server", "--config", str(self._config))
        # a session of its own: Ctrl-C in a terminal reaches the gateway alone, which lets requests end first
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            start_new_session=True,
            pass_fds=() if self._listener is None else (self._listener.fileno(),),
        )
        self._reading = asyncio.create_task(self._read_log())
        ended = asyncio.ensure_future(self._process.wait())
        try:
            while not await self._is_ready_before(ended):
                if ended.done():
                    await self._reading
                    raise LoadFailed(self._error or f"its server {how_it_ended(ended.result())}")
                await asyncio.wait({ended}, timeout=POLL_SECONDS)
        except asyncio.CancelledError:
            await self.stop()
            raise
        finally:
            ended.cancel()
        self._watching = asyncio.create_task(self._end_silent())

    async def _is_ready_before(self, ended: asyncio.Future[int]) -> bool:
        """Where its address is open in this process too, nobody answers for a server that has ended, nor refuses."""
        asking = asyncio.ensure_future(self._is_ready())
        first: list[asyncio.Future[Any]] = [asking, ended]
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            return asking.done() and asking.result()
        finally:
            asking.cancel()

    async def _is_ready(self) -> bool:
        """Asks at most one thing: a server that loads answers 503."""
        with contextlib.suppress(UpstreamLost):
            head, _ = await self.upstream.ask("GET", "/health")
            if head.status == 200:
                _, body = await self.upstream.ask("GET", "/get_server_info", self._key())
                self.info = json.loads(body).get("model", {})
                return True
        return False

    def _key(self) -> list[tuple[bytes, bytes]]:
        path = self._flags.get("admin_api_key_file") or self._flags.get("api_key_file")
        if path is None:
            return []
        key = Path(str(path)).read_text().splitlines()[0]
        return [(b"authorization", b"Bearer " + key.encode())]

    async def _read_log(self) -> None:
        """Hands its lines on, with the model's name, and keeps the one that says why it ended."""
        assert self._process is not None and self._process.stderr is not None
        rest = b""
        is_text = self._flags.get("log_format") != "json"
        mark = f"[{self.model.name}] ".encode() if is_text else b""
        while data := await self._process.stderr.read(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if b"error: " in line:
                    self._error = line.partition(b"error: ")[2].decode(errors="replace")[:MAX_LINE]
                sys.stderr.buffer.write(mark + line + b"\n")
            sys.stderr.buffer.flush()

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.returncode is not None

    async def wait(self) -> str:
        """Until it has ended: how, in words."""
        assert self._process is not None
        return how_it_ended(await self._process.wait())

    async def _end_silent(self) -> None:
        """Kills it when it does not answer any more, whatever holds it: what waits for it goes on with another one."""
        silences = 0
        while silences < MAX_SILENCES and not self.has_ended:
            await asyncio.sleep(ASK_SECONDS)
            try:
                with contextlib.suppress(UpstreamLost):
                    await wait_for(self.upstream.ask("GET", "/health"), ANSWER_SECONDS)
                silences = 0
            except asyncio.TimeoutError:
                silences += 1
        if self._process is not None and not self.has_ended:
            logger.error("The server of %s does not answer any more, and is killed.", self.model.name)
            self._process.kill()

    def reload(self) -> None:
        """Lets it read its keys again."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)

    def memory(self) -> int:
        """Bytes that it and its children have in memory now."""
        pids = [self.pid, *(pid for pid, _ in descendants(self.pid))] if self.pid else []
        return sum(map(_resident, pids))

    async def stop(self) -> None:
        """Lets it end: its requests have had their time, so that only one that hangs is killed."""
        process = self._process
        if self._watching is not None:
            self._watching.cancel()
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await wait_for(process.wait(), LAST_SECONDS)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()
        self.upstream.close()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=1.0)
        for path in (self._config, self._socket):
            path.unlink(missing_ok=True)


async def planned_bytes(model: ServedModel, folder: Path) -> int:
    """Memory that the model takes at least; 0 where that shows only when it is loaded. Raises LoadFailed."""
    config = folder / f"plan-{token_hex(8)}.yaml"
    write_flags(str(config), model.flags)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sglang.commands.plan", "--config", str(config)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
        start_new_session=True,
    )
    try:
        out, errors = await wait_for(process.communicate(), PLAN_SECONDS)
    except asyncio.TimeoutError:
        process.kill()
        raise LoadFailed(f"its files could not be read within {PLAN_SECONDS:g} s") from None
    finally:
        config.unlink(missing_ok=True)
    if process.returncode != 0:
        said = [line.partition("error: ")[2] for line in errors.decode(errors="replace").splitlines() if "error: " in line]
        raise LoadFailed(said[-1][:MAX_LINE] if said else f"reading its files failed: {how_it_ended(process.returncode or 0)}")
    return int(json.loads(out)["bytes"])


def child_environment() -> dict[str, str]:
    """Without the flags of the gateway, which are in the child's file where they concern it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
