"""A server process of one's own as a backend: `Runtime(model_path=...)`."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx

from sglang.lang.backend.base import Meta, Prompt
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.background import IO

_POLL_SECONDS = 0.2


class Runtime:
    """Starts a server with the given flags and stops it with the process. `endpoint` is what programs run on; a Runtime can
    be given wherever a backend can. Raises RuntimeError when the server does not start within `launch_timeout` seconds."""

    def __init__(self, log_level: str = "error", launch_timeout: float = 300.0, **flags: Any) -> None:
        host = str(flags.pop("host", "127.0.0.1"))
        port = _first_free_port(host, int(flags.pop("port", 30000)))
        self.url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        self.generate_url = f"{self.url}/generate"
        flags = {"host": host, "port": port, "log_level": log_level, **flags}
        self._flags = flags
        command = [sys.executable, "-m", "sglang.launch_server", *_command_line(flags)]
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(command)
        self.pid = self._process.pid
        self._owner = os.getpid()
        atexit.register(self.shutdown)
        try:
            self._wait(launch_timeout)
            self.endpoint = RuntimeEndpoint(self.url, api_key=flags.get("api_key"))
        except BaseException:
            self.shutdown()
            raise

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        assert self._process is not None
        with httpx.Client(trust_env=False, timeout=30.0) as client:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise RuntimeError(f"the server ended with exit code {self._process.returncode} instead of starting")
                try:
                    if client.get(f"{self.url}/health_generate").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(_POLL_SECONDS)
        raise RuntimeError(f"the server did not start within {timeout:g} seconds")

    def shutdown(self) -> None:
        """Stops the server and all its processes."""
        process, self._process = self._process, None
        if process is not None and os.getpid() == self._owner:  # a fork that ends leaves it to the process that started it
            from sglang.utils import terminate_process

            terminate_process(process)
        atexit.unregister(self.shutdown)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()

    # --- the server without the language -------------------------------------------------------------------------------------

    def cache_prefix(self, prefix: str) -> None:
        """Has the server read `prefix`, so that prompts beginning with it are cheaper."""
        IO.run(self.endpoint.cache_prefix(Prompt(prefix)))

    def generate(self, prompt: str | list[str], sampling_params: Meta | None = None, **fields: Any) -> str:
        """/generate, with the reply as JSON text."""
        payload = {"text": prompt, "sampling_params": sampling_params or {}, **fields}
        return json.dumps(IO.run(self.endpoint.post("/generate", payload)))

    def encode(self, prompt: str | list[str]) -> str:
        """/encode, with the reply as JSON text."""
        return json.dumps(IO.run(self.endpoint.post("/encode", {"text": prompt})))

    async def async_generate(self, prompt: str, sampling_params: Meta | None = None) -> AsyncGenerator[str, None]:
        """Pieces of the generated text as they come, for a running event loop."""
        position = 0
        payload = {"text": prompt, "sampling_params": sampling_params or {}, "stream": True}
        replies = self.endpoint.stream_replies(payload)
        try:
            while (reply := await asyncio.wrap_future(IO.spawn(_next(replies)))) is not None:
                piece, position = reply["text"][position:], len(reply["text"])
                if piece:
                    yield piece
        finally:
            await asyncio.wrap_future(IO.spawn(_close(replies)))

    add_request = async_generate

    async def get_server_info(self) -> Meta:
        """How the model is served."""
        return await asyncio.to_thread(self.endpoint.get_server_info)

    def flush_cache(self) -> bool:
        return self.endpoint.flush_cache()

    def start_profile(self) -> None:
        IO.run(self.endpoint.post("/start_profile", {}))

    def stop_profile(self) -> None:
        IO.run(self.endpoint.post("/stop_profile", {}))

    def get_tokenizer(self) -> Any:
        """The served model's tokenizer, as an object of transformers (an extra)."""
        from sglang.srt.server.tokenization.as_transformers import load_transformers_tokenizer

        path = self.endpoint.model_info.get("tokenizer_path") or self.endpoint.get_model_name()
        return load_transformers_tokenizer(str(path), self._flags.get("revision"), self._flags.get("download_dir"))


async def _next(replies: AsyncGenerator[Meta, None]) -> Meta | None:
    return await anext(replies, None)


async def _close(replies: AsyncGenerator[Meta, None]) -> None:
    await replies.aclose()


def _first_free_port(host: str, start: int) -> int:
    for port in range(start, 40000):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port from {start} to 39999")


def _command_line(flags: Meta) -> list[str]:
    """Flags as the command line wants them: true means present, false and None mean absent, a list is repeated words."""
    words: list[str] = []
    for name, value in flags.items():
        if value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is True:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [json.dumps(one) if isinstance(one, dict) else str(one) for one in values]
    return words
