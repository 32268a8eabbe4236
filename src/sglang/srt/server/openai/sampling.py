"""OpenAI's names for sampling parameters, translated."""

from __future__ import annotations

import json
from typing import Any

from sglang.srt.errors import RequestError
from sglang.srt.sampling_params import SamplingParams, check_sampling_params
from sglang.srt.server.openai.protocol import CommonRequest

_SAME = [
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "regex",
    "ebnf",
    "json_schema",
    "structural_tag",
    "json_schema_strict",
    "constrained_json_whitespace_pattern",
    "ignore_eos",
    "no_stop_trim",
    "skip_special_tokens",
    "spaces_between_special_tokens",
]
_LISTS = ("stop", "stop_regex", "stop_token_ids")


def sampling_params(request: CommonRequest, max_new_tokens: int | None, defaults: dict[str, Any]) -> SamplingParams:
    """Raises RequestError for values out of range. `defaults` are by native names."""
    values = {**defaults, "max_new_tokens": max_new_tokens}
    given = request.model_fields_set
    for name in _SAME:
        if name in given and (value := getattr(request, name)) is not None:
            values[name] = value
    for name in _LISTS:
        if name in given and (value := getattr(request, name)) is not None:
            values[name] = (value,) if isinstance(value, str) else tuple(value)
    if request.min_tokens is not None:
        values["min_new_tokens"] = request.min_tokens
    if request.logit_bias:
        values["logit_bias"] = _logit_bias(request.logit_bias)
    if request.response_format is not None:
        values.update(_constraint(request.response_format))
    params = SamplingParams(**values)
    check_sampling_params(params)
    return params


def _logit_bias(raw: dict[str, float]) -> dict[int, float]:
    try:
        return {int(key): float(value) for key, value in raw.items()}
    except ValueError as error:
        raise RequestError("logit_bias must map token ids to numbers", "logit_bias") from error


def _constraint(response_format: dict[str, Any]) -> dict[str, Any]:
    kind = response_format.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": '{"type": "object"}'}
    if kind == "json_schema":
        outer = response_format.get("json_schema")
        schema = outer.get("schema", outer.get("schema_")) if isinstance(outer, dict) else None
        if not isinstance(schema, (dict, bool)):
            raise RequestError("response_format.json_schema.schema must be a JSON schema", "response_format")
        assert isinstance(outer, dict)
        return {"json_schema": _dump(schema)} | ({"json_schema_strict": True} if outer.get("strict") is True else {})
    if kind == "structural_tag":
        return {"structural_tag": _dump(response_format)}
    raise RequestError("response_format.type must be text, json_object, json_schema or structural_tag", "response_format")


def _dump(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError as error:
        raise RequestError("response_format is nested too deeply", "response_format") from error
