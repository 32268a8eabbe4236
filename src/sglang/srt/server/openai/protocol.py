"""What OpenAI's API takes, as far as this server does it, and with the extensions of the native API.

Every field of a body is one of four: a field of these models; one that changes nothing in an answer and is accepted
(ACCEPTED); one that would change it and is not done here, which is refused unless it says what is the case anyway (REFUSED);
or unknown, which is refused with the nearest known name.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.fields import SHOWN, Fields, unknown_message

MAX_PRIORITY = 2**31 - 1

ACCEPTED = frozenset(
    [
        "metadata",
        "store",
        "user",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "custom_labels",
        "no_logs",
    ]
)

REFUSED: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "verbosity": ("medium",),
    "suffix": ("",),
    "lora_path": (),
    "session_params": (),
    "return_hidden_states": (False,),
    "return_token_ids": (False,),
    "custom_logit_processor": (),
    "chat_template": (),
    "documents": ([],),
}
"""field -> the values that ask for nothing; null always does"""


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


class ChatRequest(CommonRequest):
    """POST /v1/chat/completions"""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    separate_reasoning: bool | None = None
    stream_reasoning: bool | None = None


class CompletionRequest(CommonRequest):
    """POST /v1/completions"""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None


def _fields(kind: type[CommonRequest]) -> Fields:
    """`user` is read for fairness, though it changes nothing in the answer."""
    return Fields(frozenset(kind.model_fields) | {"user"}, ACCEPTED - {"user"}, frozenset(REFUSED))


CHAT_FIELDS, COMPLETION_FIELDS = _fields(ChatRequest), _fields(CompletionRequest)

ANSWERING = frozenset({*ChatRequest.model_fields, *REFUSED, *SamplingParams.__struct_fields__}) - ACCEPTED
"""what changes an answer under the names of one of our APIs; others refuse it, unless they have it too"""

Request = TypeVar("Request", bound=CommonRequest)


def parse_request(kind: type[Request], body: dict[str, Any]) -> Request:
    """Raises RequestError for unknown fields and wrong types, UnsupportedError for what is not done here."""
    fields = kind.model_fields
    known = {}
    for name, value in body.items():
        if name in fields:
            known[name] = value
        elif name in ACCEPTED:
            continue
        elif name not in REFUSED:
            raise RequestError(unknown_message(name, {*fields, *ACCEPTED, *REFUSED}, "field"), name[:SHOWN])
        elif value is not None and value not in REFUSED[name]:
            raise UnsupportedError(f"{name} is not supported by this server", name)
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
