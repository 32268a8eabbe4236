"""Bodies that are nearly right: a valid one for every route, and ways to spoil it. The same seed spoils in the same way."""

from __future__ import annotations

import json
import random
from typing import Any

SCALARS: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    1e308,
    -0.0,
    0.5,
    "",
    " ",
    "a",
    "\x00",
    "é🎉\ud800",
    "\udc00",
    "<|im_end|>",
    "﷐\ufdef",
    "a" * 5000,
    "auto",
    "none",
    "required",
    "function",
    "object",
    [],
    {},
    [[]],
    [{}],
    [None],
    [[None]],
    {"": ""},
    {"a": 1},
    {"type": "text"},
    {"type": "image_url", "image_url": {}},
    {"$ref": "#"},
    {"name": {}},
    [1, "a"],
    [["a"], 1],
]
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1" * 400,
    "1" * 5000,
    "0." + "1" * 3000,
    "-0",
    '"\\ud83d"',
    "[" * 100 + "]" * 100,
]
RAW += [
    '{"a":' * 90 + "1" + "}" * 90,
    '{"a":1,"a":2}',
    "tru",
    "[1,]",
    '"\\u0000"',
    "[" * 400 + "]" * 400,
    '{"a":' * 400 + "1" + "}" * 400,
]
"""values as text, which json.dumps would not write"""
_PLACE = "@raw@"

FUNCTION = {
    "name": "f",
    "description": "d",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "string", "enum": ["x"]}, "b": {"type": "array", "items": {"type": "integer"}}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "strict": True,
}
SAMPLING = {
    "max_new_tokens": 3, "min_new_tokens": 1, "stop": ["a"], "stop_token_ids": [4], "temperature": 0.5, "top_p": 0.9, "top_k": 5,
    "min_p": 0.1, "n": 2, "seed": 3, "regex": "[a-z]+", "json_schema": "{}", "logit_bias": {"5": 1.0}, "frequency_penalty": 0.5,
    "presence_penalty": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "stop_regex": "b", "skip_special_tokens": False,
    "no_stop_trim": True, "ebnf": 'root ::= "a"', "structural_tag": "{}", "spaces_between_special_tokens": True,
}  # fmt: skip
SHARED: dict[str, Any] = {
    "model": "x", "n": 2, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "max_tokens": 3,
    "temperature": 0.2, "top_p": 0.9, "frequency_penalty": 0.1, "presence_penalty": 0.1, "logit_bias": {"5": 1}, "seed": 1,
    "stop": ["a"], "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 1, "stop_token_ids": [3], "stop_regex": ["b"],
    "regex": "[a-z]+", "ebnf": 'root ::= "a"', "json_schema": "{}", "structural_tag": "{}", "ignore_eos": True,
    "no_stop_trim": True, "skip_special_tokens": True, "spaces_between_special_tokens": True, "priority": 1, "cache_salt": "s",
    "extra_key": "k", "user": "u", "metadata": {"a": "b"}, "modalities": ["text"], "functions": [], "function_call": "none",
    "verbosity": "medium", "store": False, "documents": [], "session_params": None, "rid": "r",
}  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "s", "name": "n"},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "refusal", "refusal": "b"}]},
    {
        "role": "assistant",
        "content": None,
        "refusal": "no",
        "reasoning_content": "r",
        "tool_calls": [{"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "1"}]},
    {"role": "assistant", "content": "a"},
]
SEEDS: dict[str, dict[str, Any]] = {
    "/generate": {
        "text": "Hi", "input_ids": [5, 6], "stream": False, "return_logprob": True, "top_logprobs_num": 2, "logprob_start_len": 0,
        "token_ids_logprob": [3], "return_text_in_logprobs": True, "rid": None, "cache_salt": "x", "extra_key": "y", "priority": 1,
        "token_healing": True, "session_params": None, "image_data": ["a"], "video_data": "b", "audio_data": None,
        "modalities": ["image"], "log_metrics": True, "lora_path": None, "sampling_params": SAMPLING,
    },
    "/generate#batch": {
        "text": ["Hi", "Ho"], "input_ids": [[5, 6], [7]], "return_logprob": [True, False], "top_logprobs_num": [2, 0],
        "logprob_start_len": [0, -1], "token_ids_logprob": [[3], None], "rid": ["a", "b"], "image_data": [["a"], None],
        "modalities": "image", "stream": True, "sampling_params": [SAMPLING, {"max_new_tokens": 1}],
    },
    "/v1/chat/completions": {
        **SHARED, "messages": MESSAGES, "max_completion_tokens": 3, "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low",
        "continue_final_message": True, "add_generation_prompt": True, "chat_template_kwargs": {"a": {"b": [1]}},
        "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto", "parallel_tool_calls": True,
        "separate_reasoning": True, "stream_reasoning": False, "audio": None, "chat_template": None,
    },
    "/v1/completions": {**SHARED, "prompt": ["Hi", "Ho"], "echo": True, "logprobs": 2, "best_of": 2, "suffix": "", "add_special_tokens": True},
    "/v1/responses": {
        "model": "x", "instructions": "i", "max_output_tokens": 3, "temperature": 0.1, "top_p": 0.9, "stop": "a", "stream": True,
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
            {"type": "function_call_output", "call_id": "c", "output": "o"},
            {"type": "reasoning", "content": []},
        ],
        "tools": [{"type": "function", **FUNCTION}], "tool_choice": {"type": "function", "name": "f"}, "store": True,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "medium"},
        "reasoning": {"effort": None, "summary": None}, "metadata": {"a": "b"}, "previous_response_id": None, "user": "u",
        "parallel_tool_calls": True, "include": [], "truncation": "disabled", "background": False, "conversation": None,
        "chat_template_kwargs": {"a": 1}, "top_logprobs": 0, "stream_options": {}, "priority": 1, "rid": "q", "seed": 1,
    },
    "/v1/messages": {
        "model": "x", "max_tokens": 3, "system": [{"type": "text", "text": "s"}], "temperature": 0.5, "top_p": 0.9, "top_k": 5,
        "stream": True, "stop_sequences": ["a"], "metadata": {"user_id": "u"}, "thinking": {"type": "disabled"},
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}]},
                    {"type": "text", "text": "b"},
                ],
            },
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": FUNCTION["parameters"], "strict": True, "type": "custom"}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "service_tier": "auto", "container": None,
    },
    "/v1/embeddings": {"model": "x", "input": ["a", "b"], "encoding_format": "float", "dimensions": 4, "user": "u", "rid": "r"},
    "/encode": {"text": ["a"], "input_ids": [[1]], "rid": "r", "sampling_params": {}, "priority": 1},
    "/v1/score": {
        "model": "x", "query": "a", "items": ["b", "c"], "label_token_ids": [3, 4], "apply_softmax": True, "item_first": False,
        "rid": "r", "user": "u", "priority": 1,
    },
    "/v1/rerank": {"model": "x", "query": "a", "documents": ["b", "c"], "top_n": 1, "return_documents": True, "rid": "r", "user": "u"},
    "/score_choices": {"text": "Hi", "input_ids": [1], "choices": ["a", "b"], "unconditional": True, "rid": "r", "cache_salt": "s"},
    "/tokenize": {"text": "Hi", "prompt": ["a"], "add_special_tokens": True, "model": "x"},
    "/apply_chat_template": {
        "messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True, "continue_final_message": False, "model": "x",
    },
    "/detokenize": {"tokens": [[1, 2], [3]], "skip_special_tokens": False, "model": "x"},
    "/parse_function_call": {
        "text": '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "tools": [{"type": "function", "function": FUNCTION}],
        "tool_call_parser": "qwen",
    },
    "/separate_reasoning": {"text": "<think>a</think>b", "reasoning_parser": "generic"},
    "/open_session": {"capacity_of_str_len": 10, "session_id": "s"},
    "/close_session": {"session_id": "s"},
    "/abort_request": {"rid": "r", "abort_all": False},
}  # fmt: skip
_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa", "detail": "low"}}
SEEDS["/v1/chat/completions#image"] = {
    **SHARED,
    "messages": [{"role": "user", "content": [_IMAGE, {"type": "text", "text": "a"}]}],
}
SEEDS["/v1/responses#image"] = {
    "input": [
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,aaaa", "detail": "low"}]}
    ]
}
_SOURCE = {"type": "base64", "media_type": "image/png", "data": "aaaa"}
SEEDS["/v1/messages#image"] = {
    "max_tokens": 3,
    "messages": [{"role": "user", "content": [{"type": "image", "source": _SOURCE}]}],
}
SEEDS["/v1/messages#blocks"] = {
    "max_tokens": 3,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}, "title": "t"},
                {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"}]}, "context": "c"},
                {"type": "search_result", "source": "a", "title": "b", "content": [{"type": "text", "text": "a"}]},
                {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                {"type": "compaction", "content": "a"},
            ],
        },
        {
            "role": "system",
            "content": [
                {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {"type": "custom", "name": "f"}}}
            ],
        },
    ],
    "tools": [
        {"type": "text_editor_20250728", "name": "e", "strict": False},
        {"type": "computer_20251124", "name": "c", "display_width_px": 1, "display_height_px": 1},
        {"type": "web_search_20250305", "name": "w"},
    ],
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "thread": None,
}
SEEDS["/v1/messages/count_tokens"] = SEEDS["/v1/messages"]
SEEDS["/v1/responses/input_tokens"] = SEEDS["/v1/responses"]
SEEDS["/load_lora_adapter"] = {"lora_name": "a", "lora_path": "a", "pinned": False}
SEEDS["/unload_lora_adapter"] = {"lora_name": "a"}
NEEDED: dict[str, tuple[str, ...]] = {
    "/generate": ("text",),
    "/generate#batch": ("text",),
    "/v1/chat/completions": ("messages",),
    "/v1/chat/completions#image": ("messages",),
    "/v1/completions": ("prompt",),
    "/v1/responses": ("input",),
    "/v1/responses#image": ("input",),
    "/v1/responses/input_tokens": ("input",),
    "/v1/messages": ("messages", "max_tokens"),
    "/v1/messages#image": ("messages", "max_tokens"),
    "/v1/messages#blocks": ("messages", "max_tokens"),
    "/v1/messages/count_tokens": ("messages",),
    "/v1/embeddings": ("input",),
    "/encode": ("text",),
    "/v1/score": ("query", "items", "label_token_ids"),
    "/v1/rerank": ("query", "documents"),
    "/score_choices": ("text", "choices"),
    "/tokenize": ("text",),
    "/apply_chat_template": ("messages",),
    "/detokenize": ("tokens",),
    "/parse_function_call": ("text", "tools"),
    "/separate_reasoning": ("text",),
}
"""fields of the smallest body of a route"""


def mutated(rng: random.Random, value: Any) -> Any:
    """The value with something in it replaced, left out, repeated or put elsewhere."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(SCALARS) if rng.random() < 0.8 else f"{_PLACE}{rng.randrange(len(RAW))}"
    copy: Any = value.copy()
    key: Any = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    match rng.randrange(6):
        case 0:
            del copy[key]
        case 1:
            copy[key] = [copy[key]] * rng.choice([1, 2, 50])
        case 2 if isinstance(copy, dict):
            copy[str(key) + "s"] = copy[key]
        case _:
            copy[key] = mutated(rng, copy[key])
    return copy


def written(value: Any, ascii_only: bool = True) -> bytes:
    """As JSON, with the raw values in their places."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    for i in reversed(range(len(RAW))):
        text = text.replace(f'"{_PLACE}{i}"', RAW[i])
    return text.encode(errors="surrogatepass")


def spoiled(number: int) -> tuple[str, bytes]:
    """A path and a body for it: the fields that it needs and some others, spoiled in a few places."""
    rng = random.Random(number)
    path = rng.choice(sorted(SEEDS))
    seed = SEEDS[path]
    body: Any = {name: seed[name] for name in NEEDED.get(path, ())}
    others = sorted(seed.keys() - body.keys())
    body |= {name: seed[name] for name in rng.sample(others, min(len(others), rng.choice([0, 1, 1, 2, 5])))}
    for _ in range(rng.choice([1, 1, 2, 3])):
        if body and rng.random() < 0.95:
            extra = sorted(body.keys() - NEEDED.get(path, ()))
            name = rng.choice(extra if extra and rng.random() < 0.7 else sorted(body))
            body[name] = mutated(rng, body[name])
        else:
            body = mutated(rng, body)
            break
    return path.split("#")[0], written(body, rng.random() < 0.7)
