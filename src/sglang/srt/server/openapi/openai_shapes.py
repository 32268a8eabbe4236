"""Replies of OpenAI's API, the parts of its requests that are objects, and the schemas of what its pydantic models have."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from sglang.srt.server.openapi.schemas import (
    CONSTANT,
    IDS,
    SAYS,
    TEXTS,
    Named,
    Schema,
    anything,
    free,
    integer,
    list_of,
    nullable,
    number,
    one_of,
    shape,
    text,
    truth,
)

PART = free("a part of a content: text, image_url, video_url ...", type=text())
CONTENT = one_of(text(), list_of(PART))
MESSAGE = Named(
    "ChatMessage",
    {
        **free(
            role=text("who says it", enum=["system", "developer", "user", "assistant", "tool", "function"]),
            content=nullable(CONTENT),
            name=nullable(text()),
            tool_calls=nullable(list_of(free())),
            tool_call_id=nullable(text("the call whose result this is")),
            reasoning_content=nullable(text("the reasoning of an earlier answer")),
        ),
        "required": ["role"],
    },
)
TOOL = Named(
    "Tool",
    {
        **free(
            type=text(enum=["function"]),
            function={
                **free(
                    name=text(), description=text(), parameters=free("a JSON schema"), strict=nullable(truth("calls follow it"))
                ),
                "required": ["name"],
            },
        ),
        "required": ["type", "function"],
    },
)
USAGE = Named(
    "Usage",
    shape(
        "",
        {"completion_tokens": integer(), "prompt_tokens_details": nullable(free(cached_tokens=integer()))},
        prompt_tokens=integer(),
        total_tokens=integer(),
    ),
)
_CALL = free(id=nullable(text()), type=text(), function=free(name=nullable(text()), arguments=nullable(text("JSON"))))
_SAID = {
    "role": nullable(text()),
    "content": nullable(text()),
    "reasoning_content": nullable(text()),
    "tool_calls": nullable(list_of(_CALL)),
}
_FINISH = nullable(text("stop, length, tool_calls or abort"))
_HEAD = {"id": text(), "created": integer("seconds since 1970"), "model": text()}
_ORIGINS = {"token_origins": list_of(free(), "where each token comes from, if return_token_origins asks")}
_LOGPROBS = nullable(free("log probabilities, if asked for"))
CHAT_REPLY = Named(
    "ChatCompletion",
    shape(
        **_HEAD,
        object=text(const="chat.completion"),
        choices=list_of(shape("", _ORIGINS, index=integer(), message=free(**_SAID), finish_reason=_FINISH, logprobs=_LOGPROBS)),
        usage=USAGE,
    ),
)
CHAT_CHUNK = Named(
    "ChatCompletionChunk",
    shape(
        "",
        {"usage": nullable(USAGE)},
        **_HEAD,
        object=text(const="chat.completion.chunk"),
        choices=list_of(
            shape("", {"logprobs": _LOGPROBS, **_ORIGINS}, index=integer(), delta=free(**_SAID), finish_reason=_FINISH)
        ),
    ),
)
COMPLETION_REPLY = Named(
    "Completion",
    shape(
        **_HEAD,
        object=text(const="text_completion"),
        choices=list_of(shape(index=integer(), text=text(), finish_reason=_FINISH, logprobs=_LOGPROBS)),
        usage=USAGE,
    ),
)
COMPLETION_CHUNK = Named(
    "CompletionChunk",
    shape(
        "",
        {"usage": nullable(USAGE)},
        **_HEAD,
        object=text(const="text_completion"),
        choices=list_of(shape("", {"logprobs": _LOGPROBS}, index=integer(), text=text(), finish_reason=_FINISH)),
    ),
)
EMBEDDINGS = Named(
    "Embeddings",
    shape(
        object=text(const="list"),
        data=list_of(
            shape(
                object=text(const="embedding"),
                index=integer(),
                embedding=one_of(list_of(number()), text("base64 of float32, little-endian")),
            )
        ),
        model=text(),
        usage=USAGE,
    ),
)
SCORED = Named("Scores", shape(object=text(const="scoring"), model=text(), scores=list_of(list_of(number())), usage=USAGE))
RERANKED = list_of(
    Named(
        "Ranked",
        shape(score=number("the higher, the better"), document=nullable(text()), index=integer(), meta_info=free()),
    )
)
MODEL_CARD = Named(
    "Model",
    shape(
        "with the header anthropic-version also Anthropic's fields",
        {"type": text(const="model"), "display_name": text(), "created_at": text()},
        id=text(),
        object=text(const="model"),
        created=integer(),
        owned_by=text(),
        root=text(),
        max_model_len=integer(),
    ),
)
MODELS = shape(
    "with the header anthropic-version also Anthropic's fields",
    {"has_more": truth(), "first_id": text(), "last_id": text()},
    object=text(const="list"),
    data=list_of(MODEL_CARD),
)
RESPONSE = Named(
    "Response",
    shape(
        id=text(),
        object=text(const="response"),
        created_at=number("seconds since 1970"),
        status=text("in_progress, completed, incomplete or failed"),
        error=nullable(free()),
        incomplete_details=nullable(free()),
        model=text(),
        output=list_of(free("a message, reasoning, or the call of a function", type=text())),
        usage=nullable(free(input_tokens=integer(), output_tokens=integer(), total_tokens=integer())),
    ),
)
RESPONSE_EVENT = Named("ResponseEvent", shape(type=text("such as response.output_text.delta"), sequence_number=integer()))
DELETED = shape(id=text(), object=text(), deleted=truth())
FILE = Named(
    "File",
    shape(
        id=text(),
        object=text(const="file"),
        bytes=integer(),
        created_at=integer("seconds since 1970"),
        expires_at=nullable(integer()),
        filename=text(),
        purpose=text("batch, or batch_output for the answers of one"),
        status=text(),
    ),
)
BATCH = Named(
    "Batch",
    shape(
        id=text(),
        object=text(const="batch"),
        endpoint=text(),
        errors=nullable(free("what is wrong with the input", data=list_of(free()))),
        input_file_id=text(),
        completion_window=text(),
        status=text("validating, in_progress, finalizing, completed, failed, expired, cancelling or cancelled"),
        output_file_id=nullable(text("a file with the answers")),
        error_file_id=nullable(text("a file with the requests that failed")),
        created_at=integer("seconds since 1970; and so are the other times"),
        expires_at=integer(),
        request_counts=shape(total=integer(), completed=integer(), failed=integer()),
        metadata=nullable(free()),
    ),
)


def _listed(of: Schema) -> Schema:
    ends = {"first_id": nullable(text()), "last_id": nullable(text())}
    return shape(object=text(const="list"), data=list_of(of), has_more=truth(), **ends)


FILES, BATCHES = _listed(FILE), _listed(BATCH)
ITEMS = shape(object=text(const="list"), data=list_of(free()), has_more=truth())
INPUT_TOKENS = shape(object=text(), input_tokens=integer())

_OBJECTS: dict[str, Schema] = {
    "messages": list_of(MESSAGE),
    "tools": list_of(TOOL),
    "response_format": {**free(type=text(enum=["text", "json_object", "json_schema", "structural_tag"])), "required": ["type"]},
}
_STRUCTURED = free(
    json=anything("a JSON schema, as an object or as text"),
    regex=text(),
    choice=TEXTS,
    grammar=text(),
    structural_tag=text(),
    json_object=truth(),
    whitespace_pattern=text(),
    disable_any_whitespace=truth(),
)


def model_schemas(kind: type[BaseModel], aliases: dict[str, str], structured: str) -> dict[str, Schema]:
    """The schemas of a request that is a pydantic model, with vLLM's names of its fields."""
    whole = kind.model_json_schema()
    inner = {name: Named(name, _plain(schema)) for name, schema in whole.get("$defs", {}).items()}
    found: dict[str, Schema] = {}
    for name, schema in whole["properties"].items():
        if name in CONSTANT:
            found[name] = CONSTANT[name]
        else:
            found[name] = {**(_OBJECTS.get(name) or _plain(_inline(schema, inner))), "description": SAYS[name]}
    found["user"] = CONSTANT["user"]
    for name, ours in aliases.items():
        schema = anything() if name.startswith("guided_") else found[ours]
        found[name] = {**schema, "description": f"vLLM's name of {ours}", "deprecated": True}
    found[structured] = {**_STRUCTURED, "description": SAYS[structured]}
    return found


def _inline(schema: Schema, inner: dict[str, Named]) -> Schema:
    if "$ref" in schema:
        return inner[str(schema["$ref"]).rpartition("/")[2]]
    return {**schema, "anyOf": [_inline(one, inner) for one in schema["anyOf"]]} if "anyOf" in schema else schema


def _plain(schema: Any) -> Any:
    """Without titles, which repeat the name, and without defaults of null, which say nothing."""
    if isinstance(schema, Named):
        return schema
    if isinstance(schema, dict):
        kept = {key: value for key, value in schema.items() if not (key == "default" and value is None)}
        kept = {key: value for key, value in kept.items() if not (key == "title" and isinstance(value, str))}
        return {key: _plain(value) for key, value in kept.items()}
    return [_plain(item) for item in schema] if isinstance(schema, list) else schema


INPUT = one_of(text(), TEXTS, IDS, list_of(IDS), says="texts, or token ids")
