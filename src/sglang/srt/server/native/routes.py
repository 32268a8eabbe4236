"""The native API's handlers: /generate and operators' endpoints. Formats are in native/format.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sglang.srt.config import HttpOptions, SamplingDefaults
from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.sampling_params import parse_sampling_params
from sglang.srt.server.calls import Call
from sglang.srt.server.fields import Fields, as_bool, as_int, as_text, pack_rows
from sglang.srt.server.generate_req import check_count
from sglang.srt.server.http.auth import need_admin
from sglang.srt.server.http.bodies import read_as, read_object
from sglang.srt.server.http.json_pieces import JsonArray, LateArray, encode_json, json_pieces
from sglang.srt.server.http.wire import CLIENT_GONE, JsonResponse, LargeJsonResponse, answer, stream
from sglang.srt.server.native.format import GENERATE_FIELDS, collect, core_of_load, format_load, parse_generate, stream_replies
from sglang.srt.server.native.score_choices import SCORE_FIELDS, collect_scores, parse_score, plan_score
from sglang.srt.server.openapi import native_shapes as shapes
from sglang.srt.server.openapi import schemas
from sglang.srt.server.openapi.operation import CONTROL, INFORMATION, NATIVE, NOT_HERE, documented
from sglang.srt.server.tokenization.chat_roles import chat_roles
from sglang.srt.server.tokenizer_manager import TokenizerManager

GAUGE_SECONDS = 1.0
"""Seconds that the metrics page waits for a scheduler in the middle of a step."""


def _chat_roles(manager: TokenizerManager) -> dict[str, Any] | None:
    """The model's turns, for clients that write prompts themselves."""
    image_token = manager.media.image_token if manager.media is not None else None
    return chat_roles(manager.tokenizer, image_token) if manager.tokenizer is not None else None


MAX_TOKENIZE_CHARS = 1 << 20
MAX_DETOKENIZE = 1 << 20
MAX_DETOKENIZED_BYTES = 8 << 20
"""of text: a token may be a hundred spaces"""
_OPEN_SESSION = Fields.of(
    {
        "capacity_of_str_len": schemas.integer("the most tokens of the session", minimum=0),
        "session_id": schemas.text("its name; otherwise the server makes one"),
    },
    name="OpenSessionRequest",
)
_CLOSE_SESSION = Fields.of({"session_id": schemas.text("its name")}, required=("session_id",), name="CloseSessionRequest")
_ONE_OR_MORE = schemas.one_of(schemas.text(), schemas.TEXTS, says="a text, or a list of them")
_TOKENIZE = Fields.of(
    {
        "text": _ONE_OR_MORE,
        "prompt": {**_ONE_OR_MORE, "description": "another name of text"},
        "add_special_tokens": schemas.truth(schemas.SAYS["add_special_tokens"], default=True),
    },
    frozenset({"model"}),
    name="TokenizeRequest",
)
_DETOKENIZE = Fields.of(
    {
        "tokens": schemas.one_of(schemas.IDS, schemas.list_of(schemas.IDS), says="token ids, or a list of such lists"),
        "skip_special_tokens": schemas.truth(schemas.SAYS["skip_special_tokens"], default=True),
    },
    frozenset({"model"}),
    ids=frozenset({"tokens"}),
    required=("tokens",),
    name="DetokenizeRequest",
)
_ABORT = Fields.of(
    {"rid": schemas.RID, "abort_all": schemas.truth("all requests of all clients; needs the admin key")}, name="AbortRequest"
)


def refused(why: str) -> Callable[[Request], Awaitable[Response]]:
    """A handler that says so."""

    @documented("Not done here", NOT_HERE, why=why)
    async def handler(request: Request) -> Response:
        raise UnsupportedError(why)

    return handler


class NativeApi:
    """The handlers. `flags` are shown by /get_server_info; `model_path` and `tokenizer_path` are among them."""

    def __init__(self, manager: TokenizerManager, options: HttpOptions, flags: dict[str, Any], version: str) -> None:
        self._manager = manager
        self._options = options
        self._flags = flags
        self._version = version
        self._chat_roles = _chat_roles(manager)
        self._preferred = dict(options.preferred_sampling_params)
        parse_sampling_params(self._preferred)

    @documented(
        "Generate from text or ids",
        NATIVE,
        body=GENERATE_FIELDS,
        reply=shapes.GENERATED_ONE_OR_MANY,
        events=shapes.GENERATED,
        examples=(
            {"text": "The capital of France is", "sampling_params": {"temperature": 0, "max_new_tokens": 8}},
            {"text": ["One, two,", "Monday,"], "sampling_params": {"max_new_tokens": 4}, "return_logprob": True},
            {"input_ids": [10, 11, 12], "sampling_params": {"max_new_tokens": 4}, "stream": True},
        ),
    )
    async def generate(self, request: Request) -> Response:
        manager, tokenizer = self._manager, self._manager.tokenizer
        native = await read_as(request, GENERATE_FIELDS, partial(parse_generate, preferred=self._preferred))
        if native.req.stream:
            whole = not self._options.stream_output

            async def events(call: Call) -> AsyncIterator[bytes]:
                async with aclosing(stream_replies(native, call, tokenizer, whole, JsonArray)) as replies:
                    async for reply in replies:
                        if native.wants_logprobs:
                            for piece in json_pieces(reply, b"data: ", b"\n\n"):
                                yield piece
                        else:
                            yield b"data: " + encode_json(reply) + b"\n\n"

            return await stream(request, manager, native.req, events, openai=False)
        reply = await answer(request, manager, native.req, lambda call: collect(native, call, tokenizer, LateArray))
        return CLIENT_GONE if reply is None else LargeJsonResponse(reply)

    @documented(
        "Score continuations of a prompt",
        NATIVE,
        body=SCORE_FIELDS,
        reply=shapes.SCORES,
        examples=({"text": "The capital of France is", "choices": [" Paris", " Rome"], "unconditional": True},),
    )
    async def score_choices(self, request: Request) -> Response:
        score = await read_as(request, SCORE_FIELDS, parse_score)
        tokenizer = self._manager.need_tokenizer()
        plan = await plan_score(self._manager.maker, score)
        reply = await answer(request, self._manager, plan.req, lambda call: collect_scores(plan, call, tokenizer))
        return CLIENT_GONE if reply is None else LargeJsonResponse(reply)

    @documented(
        "Keep a conversation", NATIVE, body=_OPEN_SESSION, reply=schemas.text("its id"), examples=({"session_id": "example"},)
    )
    async def open_session(self, request: Request) -> Response:
        """{capacity_of_str_len?, session_id?} -> the session's id as a JSON string."""
        body = await read_object(request, _OPEN_SESSION)
        capacity = as_int(body, "capacity_of_str_len", 0, 0, 2**31 - 1)
        return JsonResponse(self._manager.open_session(as_text(body, "session_id"), capacity or None))

    @documented("Forget a conversation", NATIVE, body=_CLOSE_SESSION, examples=({"session_id": "example"},))
    async def close_session(self, request: Request) -> Response:
        body = await read_object(request, _CLOSE_SESSION)
        name = as_text(body, "session_id")
        if name is None:
            raise RequestError("session_id is missing", "session_id")
        self._manager.close_session(name)
        return Response(status_code=200)

    @documented(
        "Text to token ids",
        NATIVE,
        body=_TOKENIZE,
        reply=shapes.TOKENS,
        examples=({"text": "One, two"}, {"prompt": ["a", "b"]}),
    )
    async def tokenize(self, request: Request) -> Response:
        reply = await read_as(request, _TOKENIZE, self._tokenized)
        return LargeJsonResponse(reply)

    def _tokenized(self, body: dict[str, Any]) -> dict[str, Any]:
        if None not in (body.get("text"), body.get("prompt")):
            raise RequestError("prompt is another name of text: give one of them", "prompt")
        name = "text" if body.get("text") is not None else "prompt"
        text: Any = body.get(name)
        texts = text if isinstance(text, list) else [text]
        check_count(len(texts), name)
        if not all(isinstance(t, str) for t in texts):
            raise RequestError(f"{name} must be a string or a list of strings", name)
        if sum(map(len, texts)) > MAX_TOKENIZE_CHARS:
            raise RequestError(f"at most {MAX_TOKENIZE_CHARS} characters are tokenized at once", name)
        special = as_bool(body, "add_special_tokens", True)
        tokens = self._manager.need_tokenizer().encode_batch(texts, special)
        counts = [len(t) for t in tokens]
        shown = (tokens, counts) if isinstance(text, list) else (tokens[0], counts[0])
        return {"tokens": shown[0], "count": shown[1], "max_model_len": self._manager.context_len}

    @documented("Token ids to text", NATIVE, body=_DETOKENIZE, reply=shapes.DETOKENIZED, examples=({"tokens": [10, 11, 12]},))
    async def detokenize(self, request: Request) -> Response:
        text = await read_as(request, _DETOKENIZE, self._detokenized)
        return LargeJsonResponse({"text": text, "prompt": text})

    def _detokenized(self, body: dict[str, Any]) -> str | list[str]:
        tokens: Any = body.get("tokens")
        nested = isinstance(tokens, list) and bool(tokens) and not isinstance(tokens[0], int)
        check_count(len(tokens) if nested else 1, "tokens")
        packed: Any = pack_rows(tokens, "tokens")
        rows = packed if nested else [packed]
        if sum(map(len, rows)) > MAX_DETOKENIZE:
            raise RequestError(f"at most {MAX_DETOKENIZE} tokens are made text at once", "tokens")
        size, skip = int(self._manager.info["vocab_size"]), as_bool(body, "skip_special_tokens", True)
        if any(row and not 0 <= min(row) <= max(row) < size for row in rows):
            raise RequestError(f"tokens must be between 0 and {size - 1}", "tokens")
        tokenizer = self._manager.need_tokenizer()
        table = tokenizer.vocabulary.token_bytes
        if sum(len(table[i]) for row in rows for i in row if i < len(table)) > MAX_DETOKENIZED_BYTES:
            raise RequestError(f"the text of these tokens has more than {MAX_DETOKENIZED_BYTES} bytes", "tokens")
        texts = [tokenizer.decode(row, skip) for row in rows]
        return texts if nested else texts[0]

    @documented("Special tokens and the chat template", INFORMATION, reply=shapes.TOKENIZER_INFO)
    async def tokenizer_info(self, request: Request) -> Response:
        """Facts for clients that count tokens through /tokenize (lm-eval's remote tokenizer)."""
        tokenizer = self._manager.need_tokenizer()
        table, eos = tokenizer.vocabulary.token_bytes, tokenizer.vocabulary.eos_token_ids
        bos = tokenizer.vocabulary.bos_token_id
        return JsonResponse(
            {
                "eos_token": table[min(eos)].decode(errors="replace") if eos else None,
                "bos_token": table[bos].decode(errors="replace") if bos is not None else None,
                "chat_template": tokenizer.chat_template().source if tokenizer.has_chat_template else None,
                "vocab_size": len(table),
            }
        )

    # --- information --------------------------------------------------------------------------------------------------------

    @documented("About the model", INFORMATION, reply=shapes.MODEL_INFO)
    async def model_info(self, request: Request) -> Response:
        info, tokenizer = self._manager.info, self._manager.tokenizer
        defaults = self._options.sampling_defaults or SamplingDefaults()
        return JsonResponse(
            {
                "model_path": self._flags.get("model_path", self._options.served_model_name),
                "tokenizer_path": self._flags.get("tokenizer_path", self._manager.text.tokenizer_path),
                "served_model_name": self._options.served_model_name,
                "is_generation": not info.get("embedding_dim"),
                "preferred_sampling_params": self._options.preferred_sampling_params or None,
                "sampling_defaults": defaults.values,
                "sampling_defaults_from": defaults.source,
                "suggested_system_prompt": defaults.system or None,
                "architectures": [info["architecture"]],
                "has_image_understanding": self._manager.media is not None and "image" in info.get("media_kinds", ()),
                "max_image_tokens": self._manager.media.max_image_tokens if self._manager.media is not None else None,
                "has_chat_template": tokenizer is not None and tokenizer.has_chat_template,
                "chat_roles": self._chat_roles,
                "context_length": self._manager.context_len,
            }
        )

    @documented("Flags and state of the server", INFORMATION, reply=shapes.SERVER_INFO)
    async def server_info(self, request: Request) -> Response:
        manager = self._manager
        stats = await manager.state()
        state = {name: getattr(stats, name) for name in stats.__struct_fields__} | {"num_inflight": manager.num_in_flight}
        info = {
            "version": self._version,
            "status": manager.status,
            "max_total_num_tokens": manager.info["max_total_tokens"],
            "max_req_input_len": manager.context_len - 1,
            "max_running_requests": manager.info["max_running_requests"],
            "incremental_streaming_output": self._options.stream_output,
            "model": manager.info,
            "internal_states": [state],
        }
        return JsonResponse({**self._flags, **info})

    @documented("Requests and tokens that run and wait", INFORMATION, reply=shapes.LOAD)
    async def load(self, request: Request) -> Response:
        """The server's load in the format that routers read; a list, since other servers have several ranks."""
        manager = self._manager
        await manager.refresh_stats(GAUGE_SECONDS)
        return JsonResponse([core_of_load(manager.stats)])

    @documented("Requests and tokens that run and wait, by rank", INFORMATION, reply=shapes.LOADS)
    async def loads(self, request: Request) -> Response:
        """The same under the newer path, with more of it."""
        manager = self._manager
        await manager.refresh_stats(GAUGE_SECONDS)
        load = format_load(manager.stats, int(manager.info["max_running_requests"]))
        return JsonResponse({"version": self._version, "dp_rank_count": 1, "loads": [load]})

    @documented("Whether requests are welcome", INFORMATION, reply=shapes.HEALTH, is_probe=True)
    async def health(self, request: Request) -> Response:
        """200 when requests are welcome, else 503; the body says how things stand."""
        status = self._manager.status
        return JsonResponse({"status": status}, 200 if status == "ready" else 503)

    @documented("Whether the engine generates a token", INFORMATION, is_probe=True)
    async def health_generate(self, request: Request) -> Response:
        healthy = await self._manager.health()
        return Response(status_code=200 if healthy else 503)

    @documented("Metrics for Prometheus, with --enable-metrics", INFORMATION, text=True, may_lack=True)
    async def metrics(self, request: Request) -> Response:
        metrics = self._manager.records.metrics
        if metrics is None:
            return JsonResponse({"error": {"message": "there are no metrics: start the server with --enable-metrics"}}, 404)
        await self._manager.refresh_stats(GAUGE_SECONDS)
        return PlainTextResponse(metrics.render(), media_type="text/plain; version=0.0.4")

    # --- control ------------------------------------------------------------------------------------------------------------

    @documented("Empty the prefix cache", CONTROL, text=True, admin=True)
    async def flush_cache(self, request: Request) -> Response:
        reply = await self._manager.flush_cache()
        text = "Cache flushed.\n" if reply.ok else f"Cache not flushed: {reply.message or 'requests are running or waiting'}\n"
        return PlainTextResponse(text, 200 if reply.ok else 400)

    @documented("Abort a request, or all", CONTROL, body=_ABORT, examples=({"rid": "example"},))
    async def abort_request(self, request: Request) -> Response:
        body = await read_object(request, _ABORT)
        rid = as_text(body, "rid")
        if as_bool(body, "abort_all"):
            need_admin("abort_all")
            self._manager.abort_all()
        elif rid is not None:
            self._manager.abort(rid)
        else:
            raise RequestError("give a rid, or abort_all", "rid")
        return Response(status_code=200)

    @documented("Profile the scheduler", CONTROL, reply=shapes.DONE, admin=True)
    async def start_profile(self, request: Request) -> Response:
        """Starts cProfile in the scheduler. Its result goes to a file of the server's choice, which stop_profile names."""
        return await self._profile(True)

    @documented("Write the profile to a file, and say which", CONTROL, reply=shapes.DONE, admin=True)
    async def stop_profile(self, request: Request) -> Response:
        return await self._profile(False)

    async def _profile(self, start: bool) -> Response:
        reply = await self._manager.profile(start)
        if not reply.ok:
            raise RequestError(reply.message)
        return JsonResponse({"message": reply.message, "status": "ok"})

    @documented("Stop taking steps", CONTROL, reply=shapes.DONE, admin=True)
    async def pause_generation(self, request: Request) -> Response:
        return await self._pause(True, "generation is paused")

    @documented("Take steps again", CONTROL, reply=shapes.DONE, admin=True)
    async def continue_generation(self, request: Request) -> Response:
        return await self._pause(False, "generation goes on")

    async def _pause(self, pause: bool, message: str) -> Response:
        reply = await self._manager.pause(pause)
        if not reply.ok:
            raise RequestError(reply.message)
        return JsonResponse({"message": message, "status": "ok"})
