"""The fields of OpenAI's API that this server supports, with the extensions of the native API.

Every field of a body is one of five: a field of these models; vLLM's name for one (aliases.py); a field that changes nothing in an
answer and is accepted (ACCEPTED); one that would change it and is not implemented, which is refused with the reason unless its value is
the default (REFUSED); or unknown, which is refused with the nearest known name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Set
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, PlainValidator, PrivateAttr, ValidationError

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.json_drafts import open_to_keywords
from sglang.srt.messages import TokenIds
from sglang.srt.sampling_params import CONSTRAINTS, GREEDY_TEMPERATURE, SamplingParams, check_sampling_params
from sglang.srt.server.fields import SHOWN, Fields, Refusal, check_members, note_unknown, pack_rows, unknown_message
from sglang.srt.server.generate_req import client_names
from sglang.srt.server.native.not_done import NOT_DONE_FIELDS, NOTED
from sglang.srt.server.openai.aliases import ALIASES, STRUCTURED, translate
from sglang.srt.server.openapi.openai_shapes import model_schemas

MAX_PRIORITY = 2**31 - 1

ACCEPTED = NOTED | frozenset(
    [
        "metadata",
        "store",
        "user",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "prediction",
        "moderation",
        "client_metadata",
        "cache_control",
        "provider",
        "models",
        "route",
        "usage",
        "session_id",
        "trace",
        "guided_decoding_backend",
    ]
)


_IDS = "answers are text; /generate takes and gives ids"
REFUSED: dict[str, Refusal] = {
    **NOT_DONE_FIELDS,
    "input_ids": Refusal("the prompt of /v1/completions may be token ids, and so may that of /generate"),
    "functions": Refusal("use tools", ([],)),
    "function_call": Refusal("use tool_choice", ("none", "auto")),
    "modalities": Refusal("answers are text", (["text"],)),
    "audio": Refusal("answers are text"),
    "web_search_options": Refusal("the server searches nothing; give the model a tool of your own"),
    "suffix": Refusal("the model continues texts, it does not fill them in", ("",)),
    "session_params": Refusal("sessions are for /generate"),
    "return_token_ids": Refusal(_IDS, (False,)),
    "return_tokens_as_token_ids": Refusal(_IDS, (False,)),
    "logits_processors": Refusal("no code that a request names is run", ([],)),
    "chat_template": Refusal("the model's own is used, or that of --chat-template"),
    "documents": Refusal("put them into messages", ([],)),
    "prompt_logprobs": Refusal("/v1/completions has echo with logprobs, /generate has logprob_start_len", (0, False)),
    "use_beam_search": Refusal("tokens are sampled, or the likeliest taken", (False,)),
    "length_penalty": Refusal("it is for beam search", (1.0,)),
    "allowed_token_ids": Refusal("use regex or logit_bias", ([],)),
    "bad_words": Refusal("use logit_bias", ([],)),
    "truncate_prompt_tokens": Refusal("start the server with --allow-auto-truncate", ()),
    "kv_transfer_params": Refusal("a server keeps its cache to itself", ({},)),
    "vllm_xargs": Refusal("they mean nothing here", ({},)),
}
_OTHERS: dict[str, Refusal] = {
    "transforms": Refusal("messages are read whole", ([],)),
    "plugins": Refusal("the server adds nothing to messages", ([],)),
    "include_reasoning": Refusal(
        "reasoning is told apart (separate_reasoning) or not asked for (reasoning_effort none)", (True,)
    ),
    **dict.fromkeys(
        ("thinking_budget", "thinking_token_budget"),
        Refusal("max_tokens limits reasoning and answer together"),
    ),
    "enable_search": Refusal("the server searches nothing; give the model a tool of your own", (False,)),
    "add_special_tokens": Refusal("the chat template writes them", (False,)),
    "echo": Refusal("/v1/completions repeats its prompt", (False,)),
    "extra_body": Refusal("its members belong into the body itself", ({},)),
}
"""fields of other servers that none of our APIs has"""
REFUSED |= _OTHERS


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class CommonRequest(BaseModel):
    """Fields of both chat and completions."""

    model_config = ConfigDict(strict=True, protected_namespaces=())

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    regex: str | None = None
    ebnf: str | None = None
    json_schema: str | None = None
    structural_tag: str | None = None
    json_schema_strict: bool | None = None
    constrained_json_whitespace_pattern: str | None = None
    ignore_eos: bool | None = None
    no_stop_trim: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    rid: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    lora_path: str | None = None
    _names: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """The client's names of our fields, where they differ (ours -> its own)."""
        # the same as self._names, which pydantic takes long to find
        names: dict[str, str] = (self.__pydantic_private__ or {})["_names"]
        return names


class ChatRequest(CommonRequest):
    """POST /v1/chat/completions"""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    enable_thinking: bool | None = None
    thinking: bool | dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    return_token_origins: bool | None = None
    separate_reasoning: bool | None = None
    stream_reasoning: bool | None = None


def _as_prompt(value: Any) -> str | list[str] | TokenIds | list[TokenIds]:
    """Token ids packed: there may be very many."""
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return value
    return pack_rows(value, "prompt")


class CompletionRequest(CommonRequest):
    """POST /v1/completions"""

    prompt: Annotated[Any, PlainValidator(_as_prompt, json_schema_input_type=str | list[str] | list[int] | list[list[int]])]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None


def _fields(kind: type[CommonRequest]) -> Fields:
    """`user` is read for fairness, though it changes nothing in the answer."""
    return Fields(
        frozenset(kind.model_fields) | {"user", STRUCTURED, *ALIASES},
        ACCEPTED - {"user"},
        frozenset(REFUSED),
        ids=frozenset(kind.model_fields) & {"prompt"},
        describe=partial(model_schemas, kind, ALIASES, STRUCTURED),
        required=tuple(name for name, field in kind.model_fields.items() if field.is_required()),
        name=kind.__name__,
    )


CHAT_FIELDS, COMPLETION_FIELDS = _fields(ChatRequest), _fields(CompletionRequest)

ANSWERING = frozenset({*ChatRequest.model_fields, *REFUSED, STRUCTURED, *ALIASES, *SamplingParams.__struct_fields__}) - {
    *ACCEPTED,
    *_OTHERS,
    *("enable_thinking", "reasoning", "background", "max_thinking_tokens"),
}
"""what changes an answer under the names of one of our APIs; others refuse it, unless they have it too"""

Request = TypeVar("Request", bound=CommonRequest)


_INDEX = re.compile(r"\[\d+\]")


def note_members(value: Mapping[str, Any], known: Collection[str], where: str, param: str) -> None:
    """Ignores unknown keys of the nested object at `where`, for APIs that take hints (fields.note_unknown). Raises
    UnsupportedError for those by which another API of ours changes an answer. `param`: the field that holds the object."""
    for name in value:
        if name in ANSWERING and name not in known:
            raise UnsupportedError(f"{where}.{name} is not supported by this server", param)
    note_unknown(value, known, f"key of {_INDEX.sub('[]', where)}:")


def parse_request(kind: type[Request], body: dict[str, Any]) -> Request:
    """Raises RequestError for unknown fields and wrong types, UnsupportedError for what is not done here."""
    names: dict[str, str] = {}
    if not _TRANSLATED.isdisjoint(body):
        body, names = translate(body)
    with client_names(names):
        if not body.keys() <= _FIELD_NAMES[kind]:
            body = {name: value for name, value in body.items() if _is_read(kind, name, value)}
        request = _validated(kind, body)
    if names:
        request.names.update(names)
    return request


_TRANSLATED = frozenset({STRUCTURED, *ALIASES})
_FIELD_NAMES: dict[type[CommonRequest], Set[str]] = {
    kind: kind.model_fields.keys() for kind in (ChatRequest, CompletionRequest)
}


def _is_read(kind: type[CommonRequest], name: str, value: Any) -> bool:
    """Whether the field counts. Raises RequestError for an unknown one, UnsupportedError for what is not done here."""
    if name in kind.model_fields:
        return True
    refusal = REFUSED.get(name)
    if refusal is not None:
        refusal.check(name, value)
    elif name not in ACCEPTED:
        known = {*kind.model_fields, *ACCEPTED, *REFUSED, STRUCTURED, *ALIASES}
        raise RequestError(unknown_message(name, known, "field"), name[:SHOWN])
    return False


def _validated(kind: type[Request], known: dict[str, Any]) -> Request:
    try:
        request = kind.model_validate(known)
    except ValidationError as error:
        raise _as_request_error(error) from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    if request.priority is not None and not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise RequestError(f"priority must be between {-MAX_PRIORITY} and {MAX_PRIORITY}", "priority")
    return request


def _as_request_error(error: ValidationError) -> RequestError:
    """The first complaint. A union complains once for each of its members; the field is what matters then."""
    complaints = error.errors(include_url=False, include_context=False, include_input=False)
    first = complaints[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    same = [c for c in complaints if c["loc"][:1] == first["loc"][:1]]
    if len(same) > 1:
        return RequestError(f"{name} has the wrong type or shape", name)
    if first["type"] == "missing":
        return RequestError(f"{name} is missing", name)
    where = ".".join(str(part) for part in first["loc"])
    return RequestError(f"{where}: {first['msg']}", name)


# --- sampling parameters, translated to ours -----------------------------------------------------------------------------------


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
PENALTY_FIELDS = ("frequency_penalty", "presence_penalty", "repetition_penalty")
"""those of the sampling parameters that `left_open` treats apart: a model's own hold for free text that is sampled"""


def left_open(request: CommonRequest, defaults: dict[str, Any], penalties: dict[str, Any]) -> dict[str, Any]:
    """The defaults of a request, by native names. `penalties`: the model's own, for free text that is sampled: greedy decoding
    means the model's likeliest token, and a constraint or a tool decides the form of an answer itself."""
    asks_likeliest = (request.temperature is not None and request.temperature < GREEDY_TEMPERATURE) or request.top_k == 1
    is_bound = has_format(request) or any(getattr(request, name) is not None for name in CONSTRAINTS)
    may_call = bool(getattr(request, "tools", None)) and getattr(request, "tool_choice", None) != "none"
    return defaults if asks_likeliest or is_bound or may_call else {**defaults, **penalties}


def sampling_params(
    request: CommonRequest, max_new_tokens: int | None, defaults: dict[str, Any], stops: tuple[str, ...] = ()
) -> SamplingParams:
    """Raises RequestError for values out of range. `defaults` are by native names; `stops` end the answer besides those asked for."""
    values = {**defaults, "max_new_tokens": max_new_tokens}
    given = request.model_fields_set
    for name in _SAME & given:
        if (value := getattr(request, name)) is not None:
            values[name] = value
    for name in given.intersection(_LISTS):
        if (value := getattr(request, name)) is not None:
            values[name] = (value,) if isinstance(value, str) else tuple(value)
    if stops:
        values["stop"] = tuple(dict.fromkeys((*values.get("stop", ()), *stops)))
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
    """The client's names of sampling parameters (ours -> its own)."""
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
    """The schema of json_object: the one that comes with it, if any, restricted to objects."""
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
    return _dump({"type": "object", **open_to_keywords(schema)} | {"type": "object"})


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
