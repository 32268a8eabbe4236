"""JSON schemas of fields and replies, as the OpenAPI document has them (JSON Schema 2020-12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]


class Named(Schema):
    """A schema that stands once among the document's components, under `name`."""

    def __init__(self, name: str, schema: Schema) -> None:
        super().__init__(schema)
        self.name = name


def text(says: str = "", **more: Any) -> Schema:
    return _typed("string", says, more)


def integer(says: str = "", **more: Any) -> Schema:
    return _typed("integer", says, more)


def number(says: str = "", **more: Any) -> Schema:
    return _typed("number", says, more)


def truth(says: str = "", **more: Any) -> Schema:
    return _typed("boolean", says, more)


def list_of(of: Schema, says: str = "", **more: Any) -> Schema:
    return {"items": of, **_typed("array", says, more)}


def anything(says: str = "") -> Schema:
    return {"description": says} if says else {}


def free(says: str = "", /, **properties: Schema) -> Schema:
    """An object with other members besides."""
    return {**_typed("object", says, {}), "properties": properties, "additionalProperties": True}


def one_of(*kinds: Schema, says: str = "") -> Schema:
    return {**({"description": says} if says else {}), "anyOf": list(kinds)}


def shape(says: str = "", optional: Mapping[str, Schema] | None = None, /, **members: Schema) -> Schema:
    """An object of a reply: `members` are always there, `optional` ones sometimes; clients are to expect others in time."""
    return {**free(says, **members, **(optional or {})), "required": list(members)}


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    kind = schema.get("type")
    if isinstance(kind, str):
        more = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
        return {**schema, "type": [kind, "null"], **more} if not isinstance(schema, Named) else one_of(schema, {"type": "null"})
    if "anyOf" in schema:
        has_null = any(one.get("type") == "null" for one in schema["anyOf"])
        return schema if has_null else {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return schema


def _typed(kind: str, says: str, more: dict[str, Any]) -> Schema:
    return {"type": kind, **({"description": says} if says else {}), **more}


TEXTS = list_of(text())
IDS = list_of(integer())
RID = text("the request's id, by which it can be aborted; unique among those of a key", maxLength=1024)
PRIORITY = integer("larger goes first, among the requests of a key", minimum=-(2**31) + 1, maximum=2**31 - 1)
SALT = text("requests share cached prefixes only with those of the same salt")
MODEL = text("any name is taken: there is one model")
USER = text("whose request it is, for a fair share among the users of a key")

SAYS: dict[str, str] = {
    "max_new_tokens": "the most tokens that are generated; null: as many as the context has room for",
    "min_new_tokens": "the end is not sampled before so many tokens",
    "stop": "texts at which the answer ends, without them",
    "stop_token_ids": "ids of tokens at which the answer ends",
    "stop_regex": "regular expressions; the answer ends where one matches",
    "temperature": "0: the likeliest token; larger: more even chances",
    "top_p": "only the likeliest tokens that have this probability together",
    "top_k": "only so many of the likeliest tokens; -1: all",
    "min_p": "only tokens with this part of the likeliest one's probability",
    "frequency_penalty": "taken off a token's logit for each time it was generated",
    "presence_penalty": "taken off a token's logit once it was generated",
    "repetition_penalty": "divides the logits of tokens that were there; 1: none",
    "n": "number of answers to a prompt",
    "seed": "with the same seed, the same answer is sampled, whatever else is running",
    "logit_bias": "token id -> what is added to its logit",
    "json_schema": "the answer follows this JSON schema (as text)",
    "regex": "the answer matches this regular expression",
    "ebnf": "the answer follows this grammar",
    "structural_tag": "parts of the answer that follow schemas, between tags (as text)",
    "json_schema_strict": "refuse a schema that decoding cannot follow as a whole, instead of checking the end",
    "constrained_json_whitespace_pattern": "regular expression of the white space between the parts of JSON",
    "ignore_eos": "go on after the end of text",
    "skip_special_tokens": "leave special tokens out of the text",
    "spaces_between_special_tokens": "blanks around special tokens that are shown",
    "no_stop_trim": "leave what stopped the answer at its end",
    "max_tokens": "the most tokens of the answer",
    "max_completion_tokens": "the most tokens of the answer",
    "min_tokens": "the end is not sampled before so many tokens",
    "stream": "send the answer as it is made, as server-sent events",
    "stream_options": "what the events of a stream have besides",
    "response_format": "`text`, `json_object`, or `json_schema` with a schema that the answer follows",
    "messages": "the conversation",
    "prompt": "texts or token ids to continue",
    "tools": "functions that the model may call",
    "tool_choice": "`none`, `auto`, `required`, or a function that is to be called",
    "parallel_tool_calls": "whether an answer may have several calls",
    "logprobs": "log probabilities of the answer's tokens",
    "top_logprobs": "how many of the likeliest tokens at each place are told with their log probabilities",
    "reasoning_effort": "a word for templates that use it; `none`: no reasoning",
    "verbosity": "a word for templates that use it",
    "enable_thinking": "whether the model reasons first, for templates that have a switch for it",
    "thinking": "the same: true, false, or an object of the type `enabled`, `disabled` or `auto`",
    "reasoning": "`effort` and `enabled`: another way to say reasoning_effort and enable_thinking",
    "continue_final_message": "go on with the last message instead of answering it",
    "add_generation_prompt": "whether the prompt ends by asking for the next turn",
    "chat_template_kwargs": "variables of the chat template",
    "mm_processor_kwargs": "`min_pixels` and `max_pixels` of images",
    "separate_reasoning": "reasoning in its own field",
    "return_token_origins": "where each token comes from: sampled, draft or forced",
    "stream_reasoning": "stream reasoning as it is made",
    "echo": "repeat the prompt before its continuation",
    "best_of": "the same as n, or nothing",
    "add_special_tokens": "add the tokens that the tokenizer puts around a text",
    "extra_key": "another part of cache_salt",
    "lora_path": "the name of a loaded adapter; model may name it as well",
    "structured_outputs": "vLLM's way to constrain an answer: `json`, `regex`, `choice`, `grammar`, `structural_tag`",
}
"""what fields are for that several APIs have"""
CONSTANT: dict[str, Schema] = {"model": MODEL, "rid": RID, "priority": PRIORITY, "cache_salt": SALT, "user": USER}
IGNORED = "accepted, and changes nothing in an answer"
