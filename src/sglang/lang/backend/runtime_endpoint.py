"""A server of the native API (ours, or another that speaks `/generate`) as a backend."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from sglang.lang.backend.base import Meta
from sglang.lang.backend.http import HttpPolicy, HttpServer
from sglang.lang.backend.native import NativeBackend, renders_chats, request_failure, template_of_model
from sglang.lang.backend.sse import EventStream
from sglang.lang.background import IO
from sglang.lang.chat_template import ChatTemplate, get_chat_template
from sglang.lang.errors import BadReplyError, RequestRefusedError, ServerError


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
        self._server = HttpServer(base_url, api_key, verify, policy)
        self.base_url = self._server.base_url
        self.api_key = api_key
        self.verify = verify
        self.model_info: Meta = IO.run(self._get_either("/get_model_info", "/model_info"))
        self._pieces_are_disjoint: bool | None = None
        renders = chat_template_name is None and renders_chats(self.model_info.get("chat_roles"))
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
            events = EventStream()
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


def __getattr__(name: str) -> Any:
    """The original has Runtime here, too."""
    if name == "Runtime":
        from sglang.lang.backend.runtime import Runtime

        return Runtime
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
