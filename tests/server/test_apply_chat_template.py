"""POST /apply_chat_template shows what a chat request with the same body has the model read."""

from __future__ import annotations

from typing import Any

import pytest

from sglang.srt.errors import SglangError
from sglang.srt.server.openai.chat import ChatCall
from sglang.srt.server.openai.prompts import ChatOptions, render_chat
from sglang.srt.server.openai.protocol import ChatRequest, parse_request
from sglang.srt.server.parsers.tool_calls import format_of_template
from sglang.srt.server.tokenization.template_forms import MediaToken
from tests.server.conftest import MakeStand
from tests.server.http_tools import client_of
from tests.server.test_published_templates import (
    AGAIN,
    ANSWER,
    CALLED,
    NAMES,
    RESULT,
    SENT,
    SYSTEM,
    TOOL,
    USER,
    image_token,
    theirs,
    tokenizer_with,
)  # fmt: skip

PARTS = [SENT, {"type": "text", "text": "What is it? "}, {"type": "text", "text": "And who?"}]
BODIES: dict[str, dict[str, Any]] = {
    "plain": {"messages": [SYSTEM, USER, ANSWER, AGAIN]},
    "tools": {"messages": [*CALLED, RESULT, AGAIN], "tools": [TOOL]},
    "no tools after all": {"messages": [USER], "tools": [TOOL], "tool_choice": "none"},
    "a named tool": {
        "messages": [USER],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    },
    "words": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
    "effort": {"messages": [USER], "reasoning_effort": "low"},
    "continued": {"messages": [USER, {"role": "assistant", "content": "It is "}], "continue_final_message": True},
    "continued parts": {
        "messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "It"}, {"type": "text", "text": " is"}]}],
        "continue_final_message": True,
    },
    "nothing asked": {"messages": [USER, ANSWER], "add_generation_prompt": False},
    "an image": {"messages": [{"role": "user", "content": PARTS}]},
    "sampling": {"messages": [USER], "temperature": 0.5, "max_tokens": 3, "response_format": {"type": "json_object"}},
}


def options_with(name: str) -> ChatOptions:
    tokenizer = tokenizer_with(name)
    media = {"image": MediaToken(image_token(name), image_token(name))}
    template = tokenizer.chat_template(with_tools=True).source
    return ChatOptions(tokenizer, "m", {}, 100_000, 100_000, tool_parser=format_of_template(template), media_tokens=media)


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_that_of_the_ids(name: str) -> None:
    options = options_with(name)
    for case, body in BODIES.items():
        try:
            ids = ChatCall(parse_request(ChatRequest, body), options).req.input_ids
        except SglangError as error:
            with pytest.raises(type(error)) as caught:
                render_chat(body, options)
            assert str(caught.value) == str(error), case
            continue
        assert ids is not None
        assert render_chat(body, options)["text"] == options.tokenizer.decode(ids, skip_special_tokens=False), case


@pytest.mark.parametrize(
    "name", ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct", "gemma-3-4b-it", "Qwen-Qwen3-0.6B"]
)
def test_without_a_generation_prompt_there_is_nothing_after_the_messages(name: str) -> None:
    turns = [USER, ANSWER]
    asked = theirs(name, turns)
    text = render_chat({"messages": turns, "add_generation_prompt": False}, options_with(name))["text"]
    assert asked.startswith(text) and len(asked) > len(text)


async def test_over_http(make_stand: MakeStand) -> None:
    async with client_of(make_stand()) as client:

        async def post(**body: Any) -> Any:
            return await client.post("/apply_chat_template", json=body)

        plain = (await post(messages=[{"role": "user", "content": "Hi"}])).json()["text"]
        assert plain == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        told = (await post(messages=[{"role": "user", "content": "Hi"}], tools=[TOOL])).json()["text"]
        assert '"name": "get_weather"' in told and told.endswith(plain)
        anyone = (await post(messages=[{"role": "user", "content": "Hi"}], continue_final_message=True)).json()["text"]
        assert anyone == "<|im_start|>user\nHi", "a program may write anybody's turn"
        assert (await post(messages=[{"role": "user", "content": "Hi"}], tols=[TOOL])).status_code == 400
        assert (await post(messages=[{"role": "user", "content": "Hi"}], tools=[{"a": 1}])).status_code == 400
