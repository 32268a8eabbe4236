"""Answers whose beginning the client gives: Anthropic's last message of the assistant, `continue_final_message` elsewhere."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from sglang.common.reasoning import FORMATS, ReasoningFormat
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of
from tests.server.test_tools import HELLO, prompt_of, received, says

BEGUN = "<|im_start|>user\nThe quick brown fox<|im_end|>\n<|im_start|>assistant\n"
CLAUDE_TOOL = {"name": "get_weather", "input_schema": {"type": "object"}}


async def post(stand: Stand, path: str, **body: Any) -> httpx.Response:
    async with client_of(stand) as client:
        return await client.post(path, json=body)


def begun(content: Any) -> list[dict[str, Any]]:
    return [*HELLO, {"role": "assistant", "content": content}]


@pytest.mark.parametrize(
    "content",
    ["The answer is (", [{"type": "text", "text": "The answer is ("}], "", "ends in a blank ", "日本", "{\n"],
)
async def test_the_assistants_last_message_is_continued(stand: Stand, content: Any) -> None:
    said = content if isinstance(content, str) else content[0]["text"]
    says(stand, "B)")
    reply = await post(stand, "/v1/messages", max_tokens=9, messages=begun(content))
    assert prompt_of(stand) == BEGUN + said
    assert reply.json()["content"] == [{"type": "text", "text": "B)"}]
    count = await post(stand, "/v1/messages/count_tokens", messages=begun(content))
    assert count.json()["input_tokens"] == len(received(stand).input_ids) == reply.json()["usage"]["input_tokens"]
    streamed = (await post(stand, "/v1/messages", max_tokens=9, messages=begun(content), stream=True)).text
    assert prompt_of(stand) == BEGUN + said and '"B"' in streamed


async def test_other_last_messages_are_answered(stand: Stand) -> None:
    says(stand, "x")
    await post(stand, "/v1/messages", max_tokens=9, messages=HELLO)
    assert prompt_of(stand) == BEGUN
    await post(stand, "/v1/chat/completions", messages=begun("a"))
    assert prompt_of(stand) == f"{BEGUN}a<|im_end|>\n<|im_start|>assistant\n", "a chat says so with continue_final_message"


async def test_a_call_is_not_continued(stand: Stand) -> None:
    block = {"type": "tool_use", "id": "t", "name": "get_weather", "input": {}}
    reply = await post(stand, "/v1/messages", max_tokens=9, tools=[CLAUDE_TOOL], messages=begun([block]))
    assert reply.status_code == 400 and "result must follow" in reply.json()["error"]["message"]
    call = {"id": "t", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [*HELLO, {"role": "assistant", "content": "a", "tool_calls": [call]}]
    assert (await post(stand, "/v1/chat/completions", messages=messages, continue_final_message=True)).status_code == 400


@pytest.mark.parametrize("parser", ["deepseek-r1", "qwen3-thinking", "qwen3"])
@pytest.mark.parametrize(
    ("said", "more", "reasoning", "text"),
    [
        ("The answer is", " B.", None, " B."),
        ("<think>hm</think>The answer is", " B.", None, " B."),
        ("<think>h", "m</think>Yes.", "m", "Yes."),
    ],
)
async def test_reasoning_goes_on_only_where_it_was_begun(
    make_stand: MakeStand, parser: str, said: str, more: str, reasoning: str | None, text: str
) -> None:
    stand = make_stand(reasoning_parser=parser)
    says(stand, more)
    reply = await post(stand, "/v1/chat/completions", messages=begun(said), continue_final_message=True)
    message = reply.json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (reasoning, text)
    blocks = (await post(stand, "/v1/messages", max_tokens=99, messages=begun(said))).json()["content"]
    assert [block.get("thinking", block.get("text")) for block in blocks] == [t for t in (reasoning, text) if t]


async def test_under_a_format_all_before_the_end_of_reasoning_is_reasoning(
    make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler writes that end where the model ends its text within them, or has opened none."""
    begin, end = "<|endoftext|>", "<|im_start|>"  # special tokens that stand for marks here
    monkeypatch.setitem(FORMATS, "test", ReasoningFormat(((begin, end),), opens=True))
    stand = make_stand(reasoning_parser="test")
    for reasoning in (f"{begin}hm", "hm"):
        says(stand, f'{reasoning}{end}{{"a":1}}')
        form = {"type": "json_object"}
        message = (await post(stand, "/v1/chat/completions", messages=HELLO, response_format=form)).json()["choices"][0][
            "message"
        ]
        assert (message["reasoning_content"], message["content"]) == ("hm", '{"a":1}')
        assert len(received(stand).grammar_after) == 1
        body = {"messages": begun(f"{begin}well, "), "continue_final_message": True, "response_format": form}
        assert (await post(stand, "/v1/chat/completions", **body)).json()["choices"][0]["message"]["content"] == '{"a":1}'
    says(stand, '"a":1}')
    body = {"messages": begun(f"{begin}hm{end}{{"), "continue_final_message": True, "response_format": form}
    assert (await post(stand, "/v1/chat/completions", **body)).json()["choices"][0]["message"]["content"] == '"a":1}'
    assert received(stand).grammar_after == (), "the reasoning is over"
