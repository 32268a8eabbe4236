"""Endpoints that load and unload adapters: SGLang's, and vLLM's of the same names below /v1."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sglang.srt.errors import RequestError
from sglang.srt.server.fields import Fields, as_bool, as_text
from sglang.srt.server.http.bodies import read_object
from sglang.srt.server.http.wire import JsonResponse
from sglang.srt.server.openapi import schemas
from sglang.srt.server.openapi.operation import CONTROL, documented
from sglang.srt.server.tokenizer_manager import TokenizerManager

_NAME = schemas.text("how requests will name it")
_PATH = schemas.text("its folder or file, below --lora-root")
_PINNED = schemas.truth("it never makes room for another in a step")
_LOAD = Fields.of(
    {"lora_name": _NAME, "lora_path": _PATH, "pinned": _PINNED}, required=("lora_name", "lora_path"), name="LoadAdapterRequest"
)
_LOAD_V1 = Fields.of(
    {"lora_name": _NAME, "lora_path": _PATH, "load_inplace": schemas.truth("refused: unload the old one first")},
    required=("lora_name", "lora_path"),
    name="LoadAdapterRequestV1",
)
_UNLOAD = Fields.of({"lora_name": _NAME}, required=("lora_name",), name="UnloadAdapterRequest")
_UNLOAD_V1 = Fields.of(
    {"lora_name": _NAME, "lora_int_id": schemas.anything("without effect: adapters have names")},
    required=("lora_name",),
    name="UnloadAdapterRequestV1",
)
_DONE = schemas.shape(
    success=schemas.truth(), error_message=schemas.text(), loaded_adapters=schemas.free("names of all that are loaded")
)
_EXAMPLE = {"lora_name": "sql", "lora_path": "sql-adapter"}


class AdapterApi:
    """The handlers, for the operator."""

    def __init__(self, manager: TokenizerManager) -> None:
        self._adapters = manager.adapters

    @documented("Load a LoRA adapter", CONTROL, body=_LOAD, reply=_DONE, examples=(_EXAMPLE,), admin=True, may_lack=True)
    async def load(self, request: Request) -> Response:
        """Requests go on meanwhile. Needs --lora-root."""
        body = await read_object(request, _LOAD)
        await self._adapters.load(_text(body, "lora_name"), _text(body, "lora_path"), as_bool(body, "pinned"))
        return self._done()

    @documented(
        "Unload a LoRA adapter", CONTROL, body=_UNLOAD, reply=_DONE, examples=({"lora_name": "sql"},), admin=True, may_lack=True
    )
    async def unload(self, request: Request) -> Response:
        """Answers when the requests that have it have ended; new ones are refused at once."""
        body = await read_object(request, _UNLOAD)
        await self._adapters.unload(_text(body, "lora_name"))
        return self._done()

    @documented("Load a LoRA adapter", CONTROL, body=_LOAD_V1, text=True, examples=(_EXAMPLE,), admin=True, may_lack=True)
    async def load_v1(self, request: Request) -> Response:
        body = await read_object(request, _LOAD_V1)
        name = _text(body, "lora_name")
        if as_bool(body, "load_inplace"):
            raise RequestError("load_inplace is not supported: unload the adapter first, its requests go on to their end")
        await self._adapters.load(name, _text(body, "lora_path"))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @documented(
        "Unload a LoRA adapter",
        CONTROL,
        body=_UNLOAD_V1,
        text=True,
        examples=({"lora_name": "sql"},),
        admin=True,
        may_lack=True,
    )
    async def unload_v1(self, request: Request) -> Response:
        body = await read_object(request, _UNLOAD_V1)
        name = _text(body, "lora_name")
        await self._adapters.unload(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    def _done(self) -> Response:
        names = dict.fromkeys(self._adapters.names(), True)
        return JsonResponse({"success": True, "error_message": "", "loaded_adapters": names})


def _text(body: dict[str, Any], name: str) -> str:
    value = as_text(body, name)
    if not value:
        raise RequestError(f"{name} is missing", name)
    return value
