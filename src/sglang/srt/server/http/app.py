"""The HTTP application: routes, authentication, and the format of errors.

The application is plain Starlette, since every request pays for its overhead. Each handler carries its own documentation
(server/openapi), from which /docs and /openapi.json are made.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from sglang.common.batch_lines import ENDPOINTS
from sglang.srt.config import HttpOptions
from sglang.srt.errors import SglangError
from sglang.srt.server.http.auth import ApiKeys, BodyLimit, GatewayOnly, RequestScopes, operator_only
from sglang.srt.server.http.browsers import BrowserGuard, Hosts
from sglang.srt.server.http.wire import (
    CLIENT_GONE,
    JsonResponse,
    PlainRoute,
    anthropic_error_body,
    error_response,
    request_id,
    speaks_anthropic,
)
from sglang.srt.server.native.adapter_routes import AdapterApi
from sglang.srt.server.native.not_done import NOT_DONE
from sglang.srt.server.native.parsing_api import parse_function_call, separate_reasoning
from sglang.srt.server.native.routes import NativeApi, refused
from sglang.srt.server.openai.batches.batch_routes import BatchApi
from sglang.srt.server.openai.batches.batch_runner import BatchRunner
from sglang.srt.server.openai.batches.row_calls import RowCalls
from sglang.srt.server.openai.embeddings import EmbeddingsApi
from sglang.srt.server.openai.reranking import RerankApi
from sglang.srt.server.openai.responses.input_items import NO_COMPACTION
from sglang.srt.server.openai.routes import OpenAIApi
from sglang.srt.server.openai.scoring import ScoringApi
from sglang.srt.server.openapi.document import document_route
from sglang.srt.server.page.routes import PageApi
from sglang.srt.server.tokenizer_manager import TokenizerManager
from sglang.version import __version__

logger = logging.getLogger("sglang")

NO_BATCHES = (
    "batches of messages are not supported by this server: send the requests to /v1/messages, as many at once as you like"
)

NO_BATCH_DIR = "files and batches need a folder: start the server with --batch-dir DIR, or run the file with `sglang batch`"

Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    manager: TokenizerManager, options: HttpOptions, flags: dict[str, Any] | None = None, batches: BatchRunner | None = None
) -> Starlette:
    """The ASGI application. `flags` are the resolved server arguments, shown by /get_server_info. `batches` is told how to send its
    requests. Raises RequestError for preferred sampling parameters that are none."""
    page = PageApi(manager, options)
    native = NativeApi(manager, options, flags or {}, __version__)
    openai = OpenAIApi(manager, options)
    embeddings = EmbeddingsApi(manager, options.served_model_name)
    scoring = ScoringApi(manager, options.served_model_name)
    adapters = adapter_routes(AdapterApi(manager))
    table = _routes(native, openai, embeddings, scoring, RerankApi(manager)) + adapters + batch_routes(batches) + page.routes()
    routes: list[Route] = [PlainRoute(path, handler, methods) for path, methods, handler in table]
    document = document_route(routes, "sglang", __version__, options.root_path, needs_key=bool(options.api_keys))
    app = Starlette(routes=[*routes, document], exception_handlers=_ERRORS)
    app.router.redirect_slashes = False
    if batches is not None:
        inner = Starlette(routes=[route for route in routes if route.path in ENDPOINTS], exception_handlers=_ERRORS)
        batches.calls = RowCalls(inner, lambda owner: [] if manager.keys.key_of(owner) is not None else None)
    effects = frozenset(path for path, methods, _ in table if {"GET", "POST"} <= set(methods))
    # the last one added is the first to see a request
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes, others=upload_limits(batches))
    app.add_middleware(RequestScopes, behind_gateway=options.behind_gateway)
    if options.api_keys or options.admin_api_key is not None:
        app.add_middleware(ApiKeys, keys=manager.keys, open_paths=page.open_paths)
    hosts = Hosts(options.allowed_hosts, options.host)
    app.add_middleware(BrowserGuard, hosts=hosts, origins=options.cors_origins, effects=effects)
    if options.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(options.cors_origins), allow_methods=["*"], allow_headers=["*"])
    if options.gateway_token is not None:
        app.add_middleware(GatewayOnly, token=options.gateway_token)
    return app


def _routes(
    native: NativeApi, openai: OpenAIApi, embeddings: EmbeddingsApi, scoring: ScoringApi, reranking: RerankApi
) -> list[tuple[str, list[str], Handler]]:
    get, post, both, put = ["GET"], ["POST"], ["GET", "POST"], ["POST", "PUT"]  # `both`: changes something, by GET as well
    return [
        ("/v1/chat/completions", post, openai.chat),
        ("/v1/completions", post, openai.completions),
        ("/v1/responses", post, openai.responses),
        ("/v1/responses/input_tokens", post, openai.response_tokens),
        ("/v1/responses/compact", post, refused(NO_COMPACTION)),
        ("/v1/responses/{response}", get, openai.stored_response),
        ("/v1/responses/{response}", ["DELETE"], openai.delete_response),
        ("/v1/responses/{response}/input_items", get, openai.response_items),
        ("/v1/messages", post, _named(openai.messages)),
        ("/v1/messages/count_tokens", post, _named(openai.count_tokens)),
        ("/v1/messages/batches", both, refused(NO_BATCHES)),
        ("/v1/messages/batches/{rest:path}", [*both, "DELETE"], refused(NO_BATCHES)),
        ("/v1/embeddings", post, embeddings.embeddings),
        ("/v1/score", post, scoring.score),
        ("/v1/rerank", put, reranking.rerank),
        ("/encode", put, embeddings.encode),
        ("/v1/models", get, openai.models),
        ("/v1/models/{model:path}", get, openai.model),
        ("/generate", put, native.generate),
        ("/score_choices", post, native.score_choices),
        ("/parse_function_call", post, parse_function_call),
        ("/separate_reasoning", post, separate_reasoning),
        ("/tokenize", post, native.tokenize),
        ("/apply_chat_template", post, openai.apply_chat_template),
        ("/tokenizer_info", get, native.tokenizer_info),
        ("/v1/tokenize", post, native.tokenize),
        ("/detokenize", post, native.detokenize),
        ("/v1/detokenize", post, native.detokenize),
        ("/get_model_info", get, native.model_info),
        ("/model_info", get, native.model_info),
        ("/get_server_info", get, native.server_info),
        ("/server_info", get, native.server_info),
        ("/get_load", get, native.load),
        ("/v1/loads", get, native.loads),
        ("/health", get, native.health),
        ("/health_generate", get, native.health_generate),
        ("/metrics", get, native.metrics),
        ("/flush_cache", both, operator_only(native.flush_cache)),
        ("/start_profile", both, operator_only(native.start_profile)),
        ("/stop_profile", both, operator_only(native.stop_profile)),
        ("/open_session", both, native.open_session),
        ("/close_session", both, native.close_session),
        *((path, [*both, "PUT"], refused(why)) for path, why in NOT_DONE.items()),
        ("/abort_request", post, native.abort_request),
        ("/pause_generation", post, operator_only(native.pause_generation)),
        ("/continue_generation", post, operator_only(native.continue_generation)),
    ]


def adapter_routes(api: AdapterApi) -> list[tuple[str, list[str], Handler]]:
    post = ["POST"]
    return [
        ("/load_lora_adapter", post, operator_only(api.load)),
        ("/unload_lora_adapter", post, operator_only(api.unload)),
        ("/v1/load_lora_adapter", post, operator_only(api.load_v1)),
        ("/v1/unload_lora_adapter", post, operator_only(api.unload_v1)),
    ]


def batch_routes(batches: BatchRunner | None) -> list[tuple[str, list[str], Handler]]:
    """None: they are not done here."""
    get, post, delete = ["GET"], ["POST"], ["DELETE"]
    if batches is None:
        why = refused(NO_BATCH_DIR)
        table = {"/v1/files": [*get, *post], "/v1/files/{file}": [*get, *delete], "/v1/files/{file}/content": get}
        table |= {"/v1/batches": [*get, *post], "/v1/batches/{batch}": get, "/v1/batches/{batch}/cancel": post}
        return [(path, methods, why) for path, methods in table.items()]
    api = BatchApi(batches)
    return [
        ("/v1/files", post, api.upload),
        ("/v1/files", get, api.list_files),
        ("/v1/files/{file}", get, api.file),
        ("/v1/files/{file}", delete, api.delete_file),
        ("/v1/files/{file}/content", get, api.content),
        ("/v1/batches", post, api.create),
        ("/v1/batches", get, api.list_batches),
        ("/v1/batches/{batch}", get, api.batch),
        ("/v1/batches/{batch}/cancel", post, api.cancel),
    ]


def batch_app(batches: BatchRunner | None) -> Starlette:
    """These endpoints alone, for a gateway."""
    routes = [PlainRoute(path, handler, methods) for path, methods, handler in batch_routes(batches)]
    return Starlette(routes=routes, exception_handlers=_ERRORS)


def upload_limits(batches: BatchRunner | None) -> dict[str, int]:
    """The longest body of an upload: the file, and what stands around it."""
    return {} if batches is None else {"/v1/files": batches.files.options.max_file_bytes + (64 << 10)}


def _named(handler: Handler) -> Handler:
    """Adds the request-id to answers for Anthropic's clients, as errors have it."""

    @wraps(handler)
    async def named(request: Request) -> Response:
        response = await handler(request)
        response.headers.update(request_id())
        return response

    return named


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SglangError)
    if request.url.path == "/health":
        return Response(status_code=503)
    response = error_response(error, request.url.path)
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    messages = {404: f"there is no {request.url.path} here", 405: f"{request.url.path} does not take {request.method}"}
    message = messages.get(error.status_code, error.detail)
    headers = dict(error.headers or {})
    return _plain_error(request.url.path, error.status_code, message, "invalid_request_error", headers)


async def _on_leave(request: Request, error: Exception) -> Response:
    """The client hung up in the middle of its body."""
    return CLIENT_GONE


async def _on_crash(request: Request, error: Exception) -> Response:
    """A bug. The client learns that much; the log has the rest."""
    return _plain_error(request.url.path, 500, "internal error; the server's log has the details", "InternalServerError")


_ERRORS = {SglangError: _on_error, HTTPException: _on_http_error, ClientDisconnect: _on_leave, Exception: _on_crash}


def _plain_error(path: str, status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> Response:
    """The reply to an error that is no SglangError, in the route's format."""
    if speaks_anthropic(path):
        return JsonResponse(anthropic_error_body(status, message), status, (headers or {}) | request_id())
    body: dict[str, Any] = {"message": message}
    if path.startswith("/v1"):
        body |= {"type": kind, "param": None, "code": status}
    return JsonResponse({"error": body}, status, headers)
