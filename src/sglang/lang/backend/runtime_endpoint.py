"""The backend for a server of the native API (ours, or another that has `/generate`), and `Runtime`, which starts such a server."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from sglang.common.server_process import end_process, free_port, wait_for_answer
from sglang.common.sse import EventReader
from sglang.lang.backend.base import Meta, Prompt
from sglang.lang.backend.http import HttpPolicy, HttpServer
from sglang.lang.backend.native import NativeBackend, needs_server_rendering, request_failure, template_of_model
from sglang.lang.chat_template import ChatTemplate, get_chat_template
from sglang.lang.concurrency.background import IO
from sglang.lang.errors import BadReplyError, RequestRefusedError, ServerError

FIRST_PORT, END_PORT = 30000, 40000
"""where a Runtime looks for a free port"""


class RuntimeEndpoint(NativeBackend):
    """Programs run on the server at `base_url`.

    `verify`: a CA file. `chat_template_name`: a registered template, instead of the model's. `timeout`: seconds without a
    byte of an answer after which a request fails; `max_connections`: requests in flight at once. Raises
    BackendConnectionError when there is no server.
    """

    name = "RuntimeEndpoint"

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | bool | None = None,
        chat_template_name: str | None = None,
        *,
        timeout: float = 600.0,
        max_connections: int = 256,
        retries: int = 4,
    ) -> None:
        policy = HttpPolicy(timeout=timeout, max_connections=max_connections, retries=retries)
        address = base_url.rstrip("/").removesuffix("/v1")  # OpenAI's clients are given that one
        self._server = HttpServer(address, api_key, verify, policy)
        self.base_url = self._server.base_url
        self.api_key = api_key
        self.verify = verify
        self.model_info: Meta = IO.run(self._get_either("/get_model_info", "/model_info"))
        self._pieces_are_disjoint: bool | None = None
        renders = chat_template_name is None and needs_server_rendering(self.model_info.get("chat_roles"))
        super().__init__(self._choose_template(chat_template_name), renders)

    def _choose_template(self, name: str | None) -> ChatTemplate:
        if name is not None:
            return get_chat_template(name)
        return template_of_model(self.get_model_name(), self.model_info.get("chat_roles"))

    def get_model_name(self) -> str:
        return str(self.model_info.get("model_path", "default"))

    async def _get_either(self, *paths: str) -> Meta:
        """The first of `paths` that the server knows (names changed between versions)."""
        for path in paths:
            try:
                answer = await self._server.get(path)
            except RequestRefusedError as error:
                if error.status_code == 404 and path != paths[-1]:
                    continue
                raise
            if not isinstance(answer, dict):
                raise BadReplyError(f"{self._server.base_url}{path} answered with something that is not an object")
            return answer
        raise AssertionError("the last path returns or raises")

    # --- transport ---------------------------------------------------------------------------------------------------------

    async def post(self, path: str, payload: Any) -> Any:
        return await self._server.post(path, payload)

    async def stream_replies(self, payload: Meta) -> AsyncGenerator[Meta, None]:
        async with aclosing(self._server.stream("/generate", payload)) as chunks:
            events = EventReader()
            async for chunk in chunks:
                for data in events.feed(chunk):
                    if data.strip() == "[DONE]":
                        return
                    yield _parse_event(data)
        raise ServerError("the server ended the stream without finishing it")

    async def _are_pieces_disjoint(self) -> bool:
        """Whether streamed texts are pieces; by default each is the whole text so far."""
        if self._pieces_are_disjoint is None:
            try:
                info = await self._get_either("/get_server_info", "/server_info")
            except RequestRefusedError:
                info = {}
            self._pieces_are_disjoint = bool(info.get("incremental_streaming_output") or info.get("stream_output"))
        return self._pieces_are_disjoint

    # --- the server ----------------------------------------------------------------------------------------------------------

    def flush_cache(self) -> bool:
        try:
            IO.run(self._server.post("/flush_cache"))
        except RequestRefusedError as error:
            if error.status_code == 400:  # busy: nothing was flushed
                return False
            raise
        return True

    def get_server_info(self) -> Meta:
        return IO.run(self._get_either("/get_server_info", "/server_info"))

    def shutdown(self) -> None:
        """Closes the connections; the server stays."""
        IO.run(self._server.close())


def _parse_event(data: str) -> Meta:
    try:
        reply = json.loads(data)
    except ValueError as error:
        raise BadReplyError(f"an event of the stream is not JSON: {data[:100]!r}") from error
    if not isinstance(reply, dict):
        raise BadReplyError(f"an event of the stream is not an object: {data[:100]!r}")
    failure = reply.get("error")
    if failure:
        message = str(failure.get("message", failure)) if isinstance(failure, dict) else str(failure)
        raise request_failure(message, failure.get("code") if isinstance(failure, dict) else None)
    return reply


class Runtime:
    """Starts a server with the given flags and stops it with the process. `endpoint` is what programs run on; a Runtime can
    be given wherever a backend can. Raises RuntimeError when the server does not start within `launch_timeout` seconds."""

    def __init__(self, log_level: str = "error", launch_timeout: float = 300.0, **flags: Any) -> None:
        host = str(flags.pop("host", "127.0.0.1"))
        port = free_port(host, range(int(flags.pop("port", FIRST_PORT)), END_PORT))
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
            wait_for_answer(f"{self.url}/health_generate", self._process, launch_timeout)
            self.endpoint = RuntimeEndpoint(self.url, api_key=flags.get("api_key"))
        except TimeoutError as error:
            self.shutdown()
            raise RuntimeError(str(error)) from error
        except BaseException:
            self.shutdown()
            raise

    def shutdown(self) -> None:
        """Stops the server and all its processes."""
        process, self._process = self._process, None
        if process is not None and os.getpid() == self._owner:  # a fork that ends leaves it to the process that started it
            end_process(process)
        atexit.unregister(self.shutdown)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()

    # --- the server without the language -------------------------------------------------------------------------------------

    def cache_prefix(self, prefix: str) -> None:
        """Prefills `prefix` into the server's prefix cache."""
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
