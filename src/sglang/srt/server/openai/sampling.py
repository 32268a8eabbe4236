"""OpenAI's names for sampling parameters, translated."""

from __future__ import annotations

import json
from typing import Any

from sglang.srt.errors import RequestError
from sglang.srt.sampling_params import SamplingParams, check_sampling_params
from sglang.srt.server.fields import check_members
from sglang.srt.server.openai.protocol import CommonRequest

_FORMAT_KEYS = {
    "text": ("type",),
    "json_object": ("type", "schema"),
    "json_schema": ("type", "json_schema"),
    "structural_tag": ("type", "structures", "triggers"),
}
_SCHEMA_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "description": str,
    "strict": bool,
    "schema": (dict, bool),
    "schema_": (dict, bool),
}
_LISTS = ("stop", "stop_regex", "stop_token_ids")
_SAME = {*SamplingParams.__struct_fields__} & {*CommonRequest.model_fields} - {*_LISTS, "logit_bias"}
"""Parameters that have the same name and type in both APIs."""


def sampling_params(request: CommonRequest, max_new_tokens: int | None, defaults: dict[str, Any]) -> SamplingParams:
    """Raises RequestError for values out of range. `defaults` are by native names."""
    values = {**defaults, "max_new_tokens": max_new_tokens}
    given = request.model_fields_set
    for name in _SAME & given:
        if (value := getattr(request, name)) is not None:
            values[name] = value
    for name in given.intersection(_LISTS):
        if (value := getattr(request, name)) is not None:
            values[name] = (value,) if isinstance(value, str) else tuple(value)
    if request.min_tokens is not None:
        values["min_new_tokens"] = request.min_tokens
    if request.logit_bias:
        values["logit_bias"] = _logit_bias(request.logit_bias)
    if request.response_format is not None:
        values.update(_constraint(request.response_format))
    params = SamplingParams(**values)
    try:
        check_sampling_params(params)
    except RequestError as error:
        error.rename(field_names(request))
        raise
    return params


def field_names(request: CommonRequest) -> dict[str, str]:
    """What the client calls the parameters of sampling (ours -> its own)."""
    longest = "max_completion_tokens" if getattr(request, "max_completion_tokens", None) is not None else "max_tokens"
    names = {"max_new_tokens": longest, "min_new_tokens": "min_tokens", **request.names}
    if has_format(request):
        names |= {"json_schema": "response_format", "structural_tag": "response_format"}
    return names


def has_format(request: CommonRequest) -> bool:
    """Whether `response_format` constrains the answer."""
    return (request.response_format or {}).get("type") not in (None, "text")


def _logit_bias(raw: dict[str, float]) -> dict[int, float]:
    if not all(key.isascii() and key.removeprefix("-").isdigit() and len(key) < 20 for key in raw):
        raise RequestError("logit_bias must map token ids to numbers", "logit_bias")
    return {int(key): float(value) for key, value in raw.items()}


def _constraint(response_format: dict[str, Any]) -> dict[str, Any]:
    kind = response_format.get("type")
    if isinstance(kind, str) and kind in _FORMAT_KEYS:
        check_members(response_format, _FORMAT_KEYS[kind], "response_format", "response_format")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": _object_schema(response_format.get("schema"))}
    if kind == "json_schema":
        outer = response_format.get("json_schema")
        schema = _named_schema(outer) if isinstance(outer, dict) else None
        if not isinstance(schema, (dict, bool)):
            raise RequestError("response_format.json_schema.schema must be a JSON schema", "response_format")
        assert isinstance(outer, dict)
        return {"json_schema": _dump(schema)} | ({"json_schema_strict": True} if outer.get("strict") is True else {})
    if kind == "structural_tag":
        _check_structures(response_format.get("structures"))
        return {"structural_tag": _dump(response_format)}
    raise RequestError("response_format.type must be text, json_object, json_schema or structural_tag", "response_format")


def _object_schema(schema: Any) -> str:
    """That of json_object, which may come with one: what it allows must be an object besides."""
    if schema is None:
        return '{"type": "object"}'
    if not isinstance(schema, dict):
        raise RequestError("response_format.schema must be a JSON schema", "response_format")
    kinds = schema.get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise RequestError(
            "response_format of type json_object asks for an object, but its schema's type is another; json_schema takes any schema",
            "response_format",
        )
    return _dump({"type": "object", **schema} | {"type": "object"})


def _named_schema(outer: dict[str, Any]) -> Any:
    check_members(outer, _SCHEMA_KINDS, "response_format.json_schema", "response_format")
    for name, kind in _SCHEMA_KINDS.items():
        if outer.get(name) is not None and not isinstance(outer[name], kind):
            raise RequestError(f"response_format.json_schema.{name} has the wrong type", "response_format")
    return outer.get("schema", outer.get("schema_"))


def _check_structures(structures: Any) -> None:
    """Keys of what a structural tag holds; its values are the grammar engine's business."""
    for i, structure in enumerate(structures if isinstance(structures, list) else ()):
        if isinstance(structure, dict):
            known = ("begin", "schema", "end")
            check_members(structure, known, f"response_format.structures[{i}]", "response_format")


def _dump(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError as error:
        raise RequestError("response_format is nested too deeply", "response_format") from error
