"""The OpenAI endpoints as request handlers."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from sglang.srt.config import HttpOptions
from sglang.srt.sampling_params import parse_sampling_params
from sglang.srt.server.adapters import ANY_MODEL
from sglang.srt.server.anthropic.messages import MessagesCall
from sglang.srt.server.anthropic.request import MESSAGES_FIELDS, messages_words
from sglang.srt.server.fields import as_text
from sglang.srt.server.generate_req import GenerateReq, client_names
from sglang.srt.server.http.bodies import LONG_BODY, read_as, read_sized
from sglang.srt.server.http.json_pieces import Encoded, cut
from sglang.srt.server.http.request_scope import current_scope, name_user
from sglang.srt.server.http.wire import (
    CLIENT_GONE,
    JsonResponse,
    LargeJsonResponse,
    answer,
    anthropic_error_body,
    request_id,
    stream,
    unless_gone,
)
from sglang.srt.server.openai.chat import ChatCall
from sglang.srt.server.openai.completions import CompletionCall
from sglang.srt.server.openai.prompts import ChatOptions, chat_options, render_chat
from sglang.srt.server.openai.protocol import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    PENALTY_FIELDS,
    ChatRequest,
    CompletionRequest,
    left_open,
    parse_request,
)
from sglang.srt.server.openai.responses.api import ResponsesCall
from sglang.srt.server.openai.responses.replay import first_event, replay
from sglang.srt.server.openai.responses.request_body import NAMES, RESPONSES_FIELDS
from sglang.srt.server.openai.responses.response_disk import SharedResponses
from sglang.srt.server.openai.responses.store import ResponseStore, StoredResponse, history_of, with_referred
from sglang.srt.server.openapi import openai_shapes as shapes
from sglang.srt.server.openapi.anthropic_shapes import COUNTED, MESSAGE_EVENT, MESSAGE_REPLY
from sglang.srt.server.openapi.operation import ANTHROPIC, OPENAI, documented
from sglang.srt.server.openapi.schemas import free
from sglang.srt.server.parsers.reasoning import reasoning_format
from sglang.srt.server.parsers.tool_calls import call_format
from sglang.srt.server.side_threads import run_in_thread
from sglang.srt.server.tokenizer_manager import TokenizerManager

_CHAT = {"model": "default", "messages": [{"role": "user", "content": "Name the capital of France."}], "max_tokens": 16}
_INPUT = {"model": "default", "input": "Name the capital of France.", "max_output_tokens": 16}
_TURNS = {"model": "default", "max_tokens": 16, "messages": [{"role": "user", "content": "Name the capital of France."}]}
_RESPONSE_ID = {"response": "the id of a response"}


class OpenAIApi:
    """The handlers. What a request leaves open is decided by the operator's preferred sampling parameters, then by the
    model's sampling defaults. Raises ConfigError for names of parsers that are none."""

    def __init__(self, manager: TokenizerManager, options: HttpOptions) -> None:
        self._manager = manager
        self._name = options.served_model_name
        self._created = int(time.time())
        models = options.sampling_defaults.values if options.sampling_defaults is not None else {}
        wishes = {**models, **options.preferred_sampling_params}
        params = parse_sampling_params(wishes)
        plain = parse_sampling_params({})
        self._defaults: dict[str, Any] = {
            name: getattr(params, name)
            for name in params.__struct_fields__
            if name != "max_new_tokens" and getattr(params, name) != getattr(plain, name)
        }
        models_own = (self._defaults.keys() & set(PENALTY_FIELDS)) - options.preferred_sampling_params.keys()
        self._penalties = {name: self._defaults.pop(name) for name in models_own}
        self._tool_parser = options.tool_call_parser
        if self._tool_parser is not None:
            call_format(self._tool_parser)
        self._reasoning = reasoning_format(options.reasoning_parser) if options.reasoning_parser is not None else None
        self._chat_options: ChatOptions | None = None
        self._responses = ResponseStore() if options.state_dir is None else SharedResponses(Path(options.state_dir))

    def chat_options(self) -> ChatOptions:
        """Raises RequestError if the server has no tokenizer."""
        if self._chat_options is None:
            self._chat_options = chat_options(
                self._manager, self._tool_parser, self._name, self._defaults, self._reasoning, self._penalties
            )
        return self._chat_options

    @documented(
        "Answer a conversation",
        OPENAI,
        body=CHAT_FIELDS,
        reply=shapes.CHAT_REPLY,
        events=shapes.CHAT_CHUNK,
        examples=(
            _CHAT,
            {**_CHAT, "stream": True, "stream_options": {"include_usage": True}},
            {**_CHAT, "logprobs": True, "n": 2},
        ),
    )
    async def chat(self, request: Request) -> Response:
        return await self._run(request, await read_as(request, CHAT_FIELDS, self._chat_call))

    def _chat_call(self, body: dict[str, Any]) -> ChatCall:
        adapter = self._look_at(body)
        call = ChatCall(parse_request(ChatRequest, body), self.chat_options())
        call.req.adapter = adapter
        return call

    @documented("The prompt of a chat request", OPENAI, body=CHAT_FIELDS, reply=free(), examples=(_CHAT,))
    async def apply_chat_template(self, request: Request) -> Response:
        """The prompt of a chat request with this body."""
        return LargeJsonResponse(await read_as(request, CHAT_FIELDS, lambda body: render_chat(body, self.chat_options())))

    @documented(
        "Continue a text",
        OPENAI,
        body=COMPLETION_FIELDS,
        reply=shapes.COMPLETION_REPLY,
        events=shapes.COMPLETION_CHUNK,
        examples=(
            {"model": "default", "prompt": "One, two,", "max_tokens": 8, "temperature": 0},
            {"prompt": ["One, two,", "Monday, Tuesday,"], "max_tokens": 4, "logprobs": 1, "echo": True},
            {"prompt": [10, 11, 12], "max_tokens": 4, "stream": True},
        ),
    )
    async def completions(self, request: Request) -> Response:
        return await self._run(request, await read_as(request, COMPLETION_FIELDS, self._completion_call))

    def _completion_call(self, body: dict[str, Any]) -> CompletionCall:
        adapter = self._look_at(body)
        request = parse_request(CompletionRequest, body)
        call = CompletionCall(request, self._manager.tokenizer, left_open(request, self._defaults, self._penalties), self._name)
        call.req.adapter = adapter
        return call

    async def _run(self, request: Request, call: ChatCall | CompletionCall) -> Response:
        if call.req.stream:
            return await stream(request, self._manager, call.req, call.events, openai=True)
        reply = await answer(request, self._manager, call.req, call.collect)
        if reply is None:
            return CLIENT_GONE
        return LargeJsonResponse(reply) if call.is_large else JsonResponse(reply)

    @documented(
        "Answer, with items in and out",
        OPENAI,
        body=RESPONSES_FIELDS,
        reply=shapes.RESPONSE,
        events=shapes.RESPONSE_EVENT,
        examples=(_INPUT, {**_INPUT, "stream": True}, {**_INPUT, "instructions": "Be brief.", "store": False}),
    )
    async def responses(self, request: Request) -> Response:
        call = await self._responses_call(request)
        with client_names(NAMES):
            return await self._run_other(request, call)

    @documented(
        "Count the tokens of a response's prompt", OPENAI, body=RESPONSES_FIELDS, reply=shapes.INPUT_TOKENS, examples=(_INPUT,)
    )
    async def response_tokens(self, request: Request) -> Response:
        """Counts the tokens of the prompt of such a request."""
        call = await self._responses_call(request)
        with client_names(NAMES):
            count = await self._count(request, call.req)
        return CLIENT_GONE if count is None else JsonResponse({"object": "response.input_tokens", "input_tokens": count})

    async def _responses_call(self, request: Request) -> ResponsesCall:
        body, size = await read_sized(request, RESPONSES_FIELDS)
        adapter = self._look_at(body)
        owner, previous = current_scope().key, as_text(body, "previous_response_id")
        await self._responses.fetch(previous, owner)
        await self._responses.fetch_referred(body.get("input"), owner)
        chain = self._responses.chain(previous, owner)
        referred = self._responses.referred(body.get("input"), owner)
        options, keep = self.chat_options(), partial(self._responses.put, owner)

        def make() -> ResponsesCall:
            if referred:
                body["input"] = with_referred(body["input"], referred)
            call = ResponsesCall(body, options, history_of(chain), keep)
            call.req.adapter = adapter
            return call

        # rendering and tokenizing a long conversation here would delay all other requests
        size += sum(found.history_size for found in (*chain, *referred.values()))
        return await run_in_thread(make) if size > LONG_BODY else make()

    async def _stored(self, request: Request) -> StoredResponse:
        """Raises NoSuchResponseError."""
        name, owner = request.path_params["response"], current_scope().key
        await self._responses.fetch(name, owner)
        return self._responses.get(name, owner)

    @documented("A stored response", OPENAI, reply=shapes.RESPONSE, paths=_RESPONSE_ID, may_lack=True)
    async def stored_response(self, request: Request) -> Response:
        found = await self._stored(request)
        first = first_event(request.query_params)
        if first is None:
            return LargeJsonResponse(Encoded(cut(found.response)))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(replay(found, first), media_type="text/event-stream", headers=headers)

    @documented("Forget a stored response", OPENAI, reply=shapes.DELETED, paths=_RESPONSE_ID, may_lack=True)
    async def delete_response(self, request: Request) -> Response:
        name = request.path_params["response"]
        await self._stored(request)
        await self._responses.forget(name, current_scope().key)
        return JsonResponse({"id": name, "object": "response", "deleted": True})

    @documented("What the request of a stored response said", OPENAI, reply=shapes.ITEMS, paths=_RESPONSE_ID, may_lack=True)
    async def response_items(self, request: Request) -> Response:
        items = (await self._stored(request)).items
        return LargeJsonResponse({"object": "list", "data": Encoded(cut(items)), "has_more": False})

    @documented(
        "Answer a conversation",
        ANTHROPIC,
        body=MESSAGES_FIELDS,
        reply=MESSAGE_REPLY,
        events=MESSAGE_EVENT,
        examples=(_TURNS, {**_TURNS, "stream": True, "system": "Be brief."}),
    )
    async def messages(self, request: Request) -> Response:
        with messages_words():
            return await self._run_other(request, await read_as(request, MESSAGES_FIELDS, self._messages_call))

    def _messages_call(self, body: dict[str, Any], counts_only: bool = False) -> MessagesCall:
        adapter = self._look_at(body)
        call = MessagesCall(body, self.chat_options(), counts_only)
        call.req.adapter = adapter
        return call

    @documented("Count the tokens of a prompt", ANTHROPIC, body=MESSAGES_FIELDS, reply=COUNTED, examples=(_TURNS,))
    async def count_tokens(self, request: Request) -> Response:
        with messages_words():
            call = await read_as(request, MESSAGES_FIELDS, partial(self._messages_call, counts_only=True))
            count = await self._count(request, call.req)
        return CLIENT_GONE if count is None else JsonResponse({"input_tokens": count})

    async def _count(self, request: Request, req: GenerateReq) -> int | None:
        """Tokens of its prompt, images included; None if the client has gone."""
        return await unless_gone(request, self._manager.count_tokens(req)) if req.media else len(req.input_ids or ())

    def _look_at(self, body: dict[str, Any]) -> str | None:
        """Notes whose the request is. Returns the adapter that it names."""
        if body.get("user") is not None:
            name_user(as_text(body, "user"))
        model = body.get("model")
        if "lora_path" not in body and (model is None or model == self._name):  # as most do
            return None
        return self._manager.adapters.of_body(body)

    async def _run_other(self, request: Request, call: ResponsesCall | MessagesCall) -> Response:
        if call.req.stream:
            return await stream(
                request,
                self._manager,
                call.req,
                call.events,
                openai=True,
                write_error=call.error_event,
                tail=call.tail,
                keep_alive=call.keep_alive,
            )
        reply = await answer(request, self._manager, call.req, call.collect)
        if reply is None:
            return CLIENT_GONE
        await self._responses.settled()
        is_large = isinstance(call, ResponsesCall) and call.is_large
        return LargeJsonResponse(reply) if is_large else JsonResponse(reply)

    @documented("The model served", OPENAI, reply=shapes.MODELS)
    async def models(self, request: Request) -> Response:
        names = [self._name, *self._manager.adapters.names()]
        models: dict[str, Any] = {"object": "list", "data": [self._card(request, name) for name in names]}
        if _is_for_anthropic(request):
            models |= {"has_more": False, "first_id": names[0], "last_id": names[-1]}
        return JsonResponse(models)

    @documented("The model served", OPENAI, reply=shapes.MODEL_CARD, paths={"model": "its name, or default"}, may_lack=True)
    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name in (self._name, ANY_MODEL):
            return JsonResponse(self._card(request, self._name))
        if name in self._manager.adapters.names():
            return JsonResponse(self._card(request, name))
        known = [self._name, *self._manager.adapters.names()]
        message = f"the model {name[:200]!r} does not exist here; this server has {', '.join(map(repr, known[:20]))}"
        if _is_for_anthropic(request):
            return JsonResponse(anthropic_error_body(404, message), 404, request_id())
        error = {
            "message": message,
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        return JsonResponse({"error": error}, 404)

    def _card(self, request: Request, name: str) -> dict[str, Any]:
        """The card of the model, or of an adapter, whose parent the model is; for Anthropic's clients with their fields, too."""
        more = {}
        if _is_for_anthropic(request):
            begun = datetime.fromtimestamp(self._created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            more = {"type": "model", "display_name": name, "created_at": begun}
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "sglang",
            "root": self._name,
            "parent": None if name == self._name else self._name,
            "max_model_len": self._manager.context_len,
            **more,
        }


def _is_for_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers
