"""The OpenAPI document (https://spec.openapis.org/oas/v3.1.0), generated from the routes of an application."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from sglang.srt.server.fields import Fields
from sglang.srt.server.http.wire import JsonResponse
from sglang.srt.server.openapi.operation import TAGS, Operation, operation_of
from sglang.srt.server.openapi.schemas import IGNORED, Named, Schema, anything, free, nullable, shape, text

_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_JSON, _EVENTS = "application/json", "text/event-stream"

NATIVE_ERROR = Named("NativeError", shape(error=shape(message=text("what is wrong, and what would be right"))))
OPENAI_ERROR = Named(
    "OpenAIError",
    shape(
        error=shape(
            message=text("what is wrong, and what would be right"),
            type=text(),
            param=nullable(text("the field that is wrong")),
            code=anything("the status, or a word"),
        )
    ),
)
ANTHROPIC_ERROR = Named(
    "AnthropicError",
    shape(type=text(const="error"), error=shape(type=text(), message=text("what is wrong, and what would be right"))),
)
_STATUSES = {
    400: "the request is wrong: the message names field, value and limit",
    401: "a valid API key is needed",
    403: "the Host, the origin of a web page, or the key may not do this",
    404: "it is not there",
    413: "the body is longer than --max-body-bytes",
    415: "a body must be application/json",
    500: "a fault of the server; its log has the details",
    503: "too many requests wait, or the server starts, recovers or ends; Retry-After says when to ask again",
    504: "the request took longer than --request-timeout or X-Request-Timeout",
}


def document_route(routes: list[Route], title: str, version: str, root_path: str, needs_key: bool) -> Route:
    """/openapi.json about these routes. The document is made at the first request for it."""
    make = cache(partial(make_document, routes, title, version, root_path, needs_key))

    async def openapi(request: Request) -> Response:
        return JsonResponse(make())

    return Route("/openapi.json", openapi)


def make_document(routes: Iterable[BaseRoute], title: str, version: str, root_path: str, needs_key: bool) -> dict[str, Any]:
    """Describes every route whose handler is documented. `root_path`: where clients see the server."""
    components: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route in routes:
        operation = operation_of(route.endpoint) if isinstance(route, Route) else None
        if isinstance(route, Route) and operation is not None:
            path = _PARAMETER.sub(r"{\1}", route.path)
            described = _hoist(_describe(path, operation), components)
            for method in sorted((route.methods or set()) - {"HEAD"}, key=_order):
                paths.setdefault(path, {})[method.lower()] = described | {"operationId": _name(path, method, route)}
    keys = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "a key of --api-key"},
        "x-api-key": {
            "type": "apiKey",
            "in": "header",
            "name": "x-api-key",
            "description": "the same key, as Anthropic's clients send it",
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": root_path or "/"}],
        "security": [*([] if needs_key else [{}]), *({name: []} for name in keys)],
        "tags": [{"name": name, "description": says} for name, says in TAGS.items()],
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items())), "securitySchemes": keys},
    }


def _order(method: str) -> int:
    return ("POST", "GET", "PUT", "DELETE").index(method)


def _name(path: str, method: str, route: Route) -> str:
    """post_generate, get_v1_models_model"""
    return f"{method.lower()}_{'_'.join(re.findall(r'[A-Za-z0-9_]+', path)) or 'root'}"


def _describe(path: str, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": _responses(path, operation),
    }
    if operation.about:
        described["description"] = operation.about
    if operation.why:
        described |= {"deprecated": True, "description": operation.why}
    parameters = _PARAMETER.findall(path)
    if parameters:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": text(operation.paths.get(name, ""))} for name in parameters
        ]
    if operation.body is not None:
        described["requestBody"] = _body(operation)
    return described


def _body(operation: Operation) -> dict[str, Any]:
    assert operation.body is not None
    content: dict[str, Any] = {"schema": body_schema(operation.body)}
    if operation.examples:
        content["examples"] = {f"example {i + 1}": {"value": value} for i, value in enumerate(operation.examples)}
    return {"required": True, "content": {_JSON: content}}


def body_schema(fields: Fields) -> Schema:
    """The schema of a body: every field that the route reads, with those that it accepts and that change nothing."""
    schemas = fields.describe()
    properties = {name: schema if name in fields.required else nullable(schema) for name, schema in schemas.items()}
    properties |= {name: anything(IGNORED) for name in sorted(fields.ignored)}
    schema = {**free(), "properties": properties, "additionalProperties": fields.takes_hints, "required": list(fields.required)}
    return Named(fields.name, schema) if fields.name else schema


def _responses(path: str, operation: Operation) -> dict[str, Any]:
    error = _error_of(path)
    failures = [403, 500, 503, *([] if operation.is_probe else [400, 401])]
    failures += [404] if operation.may_lack else []
    failures += [413, 415, 504] if operation.body is not None else []
    found: dict[str, Any] = {} if operation.why else {"200": {"description": operation.summary, **_content(operation)}}
    for status in sorted(failures):
        found[str(status)] = {"description": _STATUSES[status], "content": {_JSON: {"schema": error}}}
    if operation.is_probe:
        found["503"] = {"description": "the server is not ready", **_content(operation)}
    return found


def _content(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.reply is not None:
        content[_JSON] = {"schema": operation.reply}
    if operation.events is not None:
        content[_EVENTS] = {"schema": {"description": "the data of each event", **operation.events}}
        if isinstance(operation.events, Named):
            content[_EVENTS]["schema"] = operation.events
    if operation.text:
        content["text/plain"] = {"schema": text()}
    return {"content": content} if content else {}


def _error_of(path: str) -> Schema:
    if path.startswith("/v1/messages"):
        return ANTHROPIC_ERROR
    return OPENAI_ERROR if path.startswith("/v1") else NATIVE_ERROR


def _hoist(value: Any, components: dict[str, Any]) -> Any:
    """Moves schemas that have a name among the components."""
    if isinstance(value, Named):
        if value.name not in components:
            components[value.name] = None  # it may hold itself
            components[value.name] = _hoist(dict(value), components)
        return {"$ref": f"#/components/schemas/{value.name}"}
    if isinstance(value, dict):
        return {key: _hoist(item, components) for key, item in value.items()}
    return [_hoist(item, components) for item in value] if isinstance(value, list) else value
