"""The pages that document the endpoints, and the OpenAPI document behind them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from sglang.srt.server.openai.protocol import ChatRequest, CompletionRequest

_INT, _BOOL, _TEXT = {"type": "integer"}, {"type": "boolean"}, {"type": "string"}
_IDS = {"type": "array", "items": _INT}
_TEXTS = {"type": "array", "items": _TEXT}


def _object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or [], "additionalProperties": False}


_GENERATE = _object(
    text={"anyOf": [_TEXT, _TEXTS]},
    input_ids={"anyOf": [_IDS, {"type": "array", "items": _IDS}]},
    sampling_params={"anyOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}]},
    rid={"anyOf": [_TEXT, _TEXTS]},
    return_logprob=_BOOL,
    logprob_start_len=_INT,
    top_logprobs_num=_INT,
    token_ids_logprob=_IDS,
    return_text_in_logprobs=_BOOL,
    stream=_BOOL,
    session_params=_object(["id"], id=_TEXT, rid=_TEXT, offset=_INT, replace=_BOOL, drop_previous_output=_BOOL),
    cache_salt=_TEXT,
    priority=_INT,
)
_SCORE = _object(
    ["choices"], text=_TEXT, input_ids=_IDS, choices=_TEXTS, unconditional=_BOOL, rid=_TEXT, cache_salt=_TEXT, priority=_INT
)
_TOKENIZE = _object(text={"anyOf": [_TEXT, _TEXTS]}, prompt={"anyOf": [_TEXT, _TEXTS]}, add_special_tokens=_BOOL)
_DETOKENIZE = _object(["tokens"], tokens=_IDS, skip_special_tokens=_BOOL)
_PARSE_CALL = _object(["text"], text=_TEXT, tools={"type": "array", "items": {"type": "object"}}, tool_call_parser=_TEXT)
_REASONING = _object(["text"], text=_TEXT, reasoning_parser=_TEXT)
_EMBED_INPUT = {"anyOf": [_TEXT, _TEXTS, _IDS, {"type": "array", "items": _IDS}]}
_EMBED = _object(
    ["input"], model=_TEXT, input=_EMBED_INPUT, encoding_format=_TEXT, dimensions=_INT, user=_TEXT, rid=_TEXT, prompt_name=_TEXT
)
_ENCODE = _object(
    text={"anyOf": [_TEXT, _TEXTS]}, input_ids={"anyOf": [_IDS, {"type": "array", "items": _IDS}]}, rid=_TEXT, prompt_name=_TEXT
)
_OPEN_SESSION = _object(capacity_of_str_len=_INT, session_id=_TEXT)
_CLOSE_SESSION = _object(["session_id"], session_id=_TEXT)
_ABORT = _object(rid=_TEXT, abort_all=_BOOL)

_POSTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "/generate": ("Generate from text or ids", _GENERATE),
    "/score_choices": ("Score continuations of a prompt", _SCORE),
    "/v1/embeddings": ("Vectors of texts", _EMBED),
    "/encode": ("Vectors of texts", _ENCODE),
    "/tokenize": ("Text to ids", _TOKENIZE),
    "/detokenize": ("Ids to text", _DETOKENIZE),
    "/parse_function_call": ("Tool calls in a text", _PARSE_CALL),
    "/separate_reasoning": ("Reasoning and answer of a text", _REASONING),
    "/open_session": ("Keep a conversation", _OPEN_SESSION),
    "/close_session": ("Forget a conversation", _CLOSE_SESSION),
    "/abort_request": ("Abort a request, or all", _ABORT),
    "/flush_cache": ("Empty the prefix cache", None),
    "/start_profile": ("Profile the scheduler", None),
    "/stop_profile": ("Write the profile to a file", None),
    "/pause_generation": ("Stop taking steps", None),
    "/continue_generation": ("Take steps again", None),
}
_GETS = {
    "/v1/models": "The model served",
    "/get_model_info": "About the model",
    "/get_server_info": "Arguments and state of the server",
    "/get_load": "Requests and tokens that run and wait",
    "/v1/loads": "Requests and tokens that run and wait, by rank",
    "/health": "200 while the engine lives",
    "/health_generate": "200 if the engine generates a token",
    "/metrics": "Prometheus metrics",
    "/tokenizer_info": "Special tokens and the chat template",
}


def documentation(title: str, version: str) -> list[BaseRoute]:
    """Routes to /openapi.json, which describes every endpoint. The page that shows it is page/static/docs.html."""
    app = FastAPI(title=title, version=version, docs_url=None, redoc_url=None)

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(title, version)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    return app.routes


def _document(title: str, version: str) -> dict[str, Any]:
    schema: dict[str, Any] = get_openapi(title=title, version=version, routes=[])
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    posts = dict(_POSTS)
    for path, summary, model in (
        ("/v1/chat/completions", "Answer a conversation", ChatRequest),
        ("/apply_chat_template", "What a conversation has the model read", ChatRequest),
        ("/v1/completions", "Continue a text", CompletionRequest),
    ):
        body = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(body.pop("$defs", {}))
        components[model.__name__] = {**body, "additionalProperties": False}
        posts[path] = (summary, {"$ref": f"#/components/schemas/{model.__name__}"})
    for path, (summary, body_schema) in posts.items():
        operation: dict[str, Any] = {"summary": summary, "responses": _responses()}
        if body_schema is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body_schema}}}
        schema["paths"].setdefault(path, {})["post"] = operation
    for path, summary in _GETS.items():
        schema["paths"].setdefault(path, {})["get"] = {"summary": summary, "responses": _responses()}
    return schema


def _responses() -> dict[str, Any]:
    return {"200": {"description": "OK"}, "400": {"description": "The request is wrong"}}
