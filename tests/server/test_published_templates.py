"""Published chat templates, rendered as transformers renders them: the way of a request from its body to the prompt's ids."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.errors import SglangError
from sglang.srt.server.multimodal.inputs import MediaInput
from sglang.srt.server.openai.prompts import parse_messages
from sglang.srt.server.tokenization.joined_messages import encode_joined
from sglang.srt.server.tokenization.model_files import TextFacts
from sglang.srt.server.tokenization.template_forms import MediaToken
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from tests.server.models import train_byte_level

TEMPLATES = Path(__file__).parent / "facts" / "templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))

ONLY_PARTS = {"SmolVLM-Instruct", "llava-onevision-qwen2-ov"}
"""They iterate over every content and show nothing of a string."""
USER_IMAGES = ONLY_PARTS | {
    "Apriel-1.6-15b-Thinker-fixed", "GLM-4.1V-Thinking", "GLM-4.5V", "Llama-3.2-11B-Vision-Instruct", "Llama-4-Scout-Instruct",
    "Mistral-Small-3.2-24B-Instruct-2506", "Pixtral-12B", "Qwen2-VL-7B-Instruct", "Qwen2.5-Omni", "Qwen3-VL-Instruct",
    "Qwen3.5-4B", "Reka-Edge", "StepFun3.5-Flash", "gemma-3-4b-it", "google-gemma-4-31B-it-interleaved", "llava-1.5",
    "mistralai-Ministral-3-14B-Reasoning-2512", "moonshotai-Kimi-K2", "unsloth-mistral-Devstral-Small-2507",
}  # fmt: skip
"""They show an image part of the user's."""
TOOL_IMAGES = ONLY_PARTS | {
    "Qwen2-VL-7B-Instruct", "Qwen2.5-Omni", "Qwen3-VL-Instruct", "Qwen3.5-4B", "Reka-Edge", "StepFun3.5-Flash",
    "google-gemma-4-31B-it-interleaved", "llava-1.5",
}  # fmt: skip
"""They show an image part of a tool's result."""
IMAGE_TOKENS = {
    **dict.fromkeys(("GLM-4.1V-Thinking", "GLM-4.5V"), "<|begin_of_image|><|image|><|end_of_image|>"),
    **dict.fromkeys(
        ("Llama-3.2-11B-Vision-Instruct", "Llama-4-Scout-Instruct", "google-gemma-4-31B-it-interleaved"), "<|image|>"
    ),
    **dict.fromkeys(("Qwen2-VL-7B-Instruct", "Qwen3-VL-Instruct", "Qwen3.5-4B"), "<|vision_start|><|image_pad|><|vision_end|>"),
    **dict.fromkeys(("Reka-Edge", "SmolVLM-Instruct", "llava-1.5", "llava-onevision-qwen2-ov"), "<image>"),
    "Qwen2.5-Omni": "<|vision_bos|><|IMAGE|><|vision_eos|>",
    "StepFun3.5-Flash": "<im_patch>",
    "gemma-3-4b-it": "<start_of_image>",
    "moonshotai-Kimi-K2": "<|media_pad|>",
}
"""What they write for it; "[IMG]" the others that do."""
TEXT_ARGUMENTS = {"DeepSeek-V3"}
"""They write a call's arguments as they are, which is right for a text of JSON alone."""

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name"}},
            "required": ["city"],
        },
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
SYSTEM = {"role": "system", "content": "Be brief. "}
USER = {"role": "user", "content": "Hello <there>\n é"}
ANSWER = {"role": "assistant", "content": " Hi. "}
AGAIN = {"role": "user", "content": " And now? "}
CALLED = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": "18 °C"}

CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": ([USER, ANSWER, AGAIN], {}),
    "system": ([SYSTEM, USER], {}),
    "tools": ([USER], {"tools": [TOOL]}),
    "system and tools": ([SYSTEM, USER, ANSWER, AGAIN], {"tools": [TOOL]}),
    "tool result": ([*CALLED, RESULT], {"tools": [TOOL]}),
    "after a tool result": ([*CALLED, RESULT, ANSWER, AGAIN], {"tools": [TOOL]}),
    "earlier reasoning": ([USER, {**ANSWER, "reasoning_content": "Hmm."}, AGAIN], {"enable_thinking": True}),
    "earlier reasoning by another name": ([USER, {**ANSWER, "reasoning": "Hmm."}, AGAIN], {}),
    "reasoning of a call": ([USER, {**CALLED[1], "reasoning_content": "Hmm."}, RESULT], {"tools": [TOOL]}),
    "no thinking": ([USER], {"enable_thinking": False}),
    "continued": ([USER, ANSWER], {"continue_final_message": True}),
    "continued below a system message": ([SYSTEM, USER, {**ANSWER, "content": "Hi"}], {"continue_final_message": True}),
}


@functools.cache
def tokenizer_with(name: str) -> Tokenizer:
    source = (TEMPLATES / f"{name}.jinja").read_bytes().decode()
    return Tokenizer(train_byte_level(), TextFacts(names=SPECIAL, templates={"default": source}))


def ours(
    name: str, messages: list[dict[str, Any]], tools: Any = None, continue_final_message: bool = False, **words: Any
) -> str:
    """The prompt's text, from ids that lose nothing. "refused" for what is a 400."""
    tokenizer = tokenizer_with(name)
    media: list[MediaInput] = []
    try:
        ids = tokenizer.encode_chat(
            parse_messages(copy.deepcopy(messages), tokenizer.chat_template(), media),
            tools=tools,
            continue_final_message=continue_final_message,
            template_variables=words,
            media_tokens={"image": MediaToken(image_token(name), image_token(name))},
        )
    except SglangError:
        return "refused"
    return tokenizer.decode(ids, skip_special_tokens=False)


def image_token(name: str) -> str:
    return IMAGE_TOKENS.get(name, "[IMG]")


def theirs(name: str, messages: list[dict[str, Any]], continue_final_message: bool = False, **words: Any) -> str:
    """transformers' text for messages with the arguments of calls as it wants them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = copy.deepcopy(messages)
    for message in messages:
        for call in message.get("tool_calls", ()):
            if name not in TEXT_ARGUMENTS:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        if isinstance(message["content"], str) and name in ONLY_PARTS:
            message["content"] = [{"type": "text", "text": message["content"]}]
    try:
        texts, _ = render_jinja_template(
            conversations=[messages],
            chat_template=tokenizer_with(name).chat_template().source,
            continue_final_message=continue_final_message,
            add_generation_prompt=not continue_final_message,
            **SPECIAL,
            **words,
        )
    except Exception:  # noqa: BLE001  whatever a template does to data that it does not expect
        return "refused"
    return str(texts[0])


SENT = {"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}
IMAGE = {"type": "image"}


def test_there_are_many_families() -> None:
    assert len(NAMES) >= 80
    assert set(NAMES) > USER_IMAGES | TOOL_IMAGES | TEXT_ARGUMENTS


@pytest.mark.parametrize("name", NAMES)
def test_a_published_template(name: str) -> None:
    for case, (messages, words) in CASES.items():
        assert ours(name, messages, **words) == theirs(name, messages, **words), case


@pytest.mark.parametrize("name", NAMES)
def test_lists_stay_lists_or_become_text(name: str) -> None:
    """Either way, nothing of them is lost, and no list is written out."""
    turns = (SYSTEM, USER, ANSWER, AGAIN)
    for i, message in enumerate(turns):
        for texts in (("alpha", "omega"), ("alpha \n", " omega", "!")):
            parts = [{"type": "text", "text": text} for text in texts]
            as_list = [*turns[:i], {**message, "content": parts}, *turns[i + 1 :]]
            as_text = [*turns[:i], {**message, "content": "".join(texts)}, *turns[i + 1 :]]
            prompt = ours(name, as_list)
            expected = theirs(name, as_text)
            assert prompt in (theirs(name, as_list), expected)
            assert prompt.count("alpha") == prompt.count("omega") == expected.count("alpha")
            assert "'type'" not in prompt


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_in_parts_is_continued_where_it_stands(name: str) -> None:
    """Exactly: what follows depends on every blank."""
    for texts in (("The", " capital", " is"), ("a\n", "\n b", "c ")):
        parts = [{"type": "text", "text": text} for text in texts]
        in_parts, as_text = ([USER, {"role": "assistant", "content": content}] for content in (parts, "".join(texts)))
        prompt = ours(name, in_parts, continue_final_message=True)
        assert prompt == ours(name, as_text, continue_final_message=True)
        assert prompt == "refused" or prompt.rstrip().endswith("".join(texts).rstrip())


def written(name: str, parts: list[dict[str, Any]]) -> list[Any]:
    """How parts can be given to a template that shows no images: as one text, or as parts of text."""
    texts = [part.get("text", image_token(name)) for part in parts]
    return [" ".join(texts), [{"type": "text", "text": text} for text in texts]]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_the_user(name: str) -> None:
    """As the template shows it, or as text where it does not."""
    parts = [IMAGE, {"type": "text", "text": "What is it?"}]
    prompt = ours(name, [{"role": "user", "content": [SENT, parts[1]]}, ANSWER, AGAIN])
    shown = [parts] if name in USER_IMAGES else written(name, parts)
    assert prompt in [theirs(name, [{"role": "user", "content": content}, ANSWER, AGAIN]) for content in shown]
    assert prompt.count(image_token(name)) == 1 or prompt == "refused"


@pytest.mark.parametrize("name", NAMES)
def test_an_image_in_a_tools_result(name: str) -> None:
    parts = [{"type": "text", "text": "This is it."}, IMAGE]
    prompt = ours(name, [*CALLED, {**RESULT, "content": [parts[0], SENT]}], tools=[TOOL])
    shown = [parts] if name in TOOL_IMAGES else written(name, parts)
    assert prompt in [theirs(name, [*CALLED, {**RESULT, "content": content}], tools=[TOOL]) for content in shown]


def test_an_image_that_the_template_leaves_out_is_text() -> None:
    """With tools, this template shows only the text of the first message."""
    name = "Llama-3.2-11B-Vision-Instruct"
    asked = [{"role": "user", "content": [SENT, {"type": "text", "text": "What is it?"}]}]
    assert "<|image|>What is it?" in ours(name, asked)
    with_tools = ours(name, asked, tools=[TOOL])
    assert with_tools.count("<|image|>") == 1
    assert with_tools.endswith("<|image|>What is it?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


def test_the_templates_own_way_of_showing_an_image_stays() -> None:
    """Though it is not the model's whole text for one: its placeholder is what counts."""
    asked = [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What is it?"}]}]
    tokenizer = tokenizer_with("SmolVLM-Instruct")
    ids = tokenizer.encode_chat(asked, media_tokens={"image": MediaToken("<image>", "[<image>]")})
    assert tokenizer.decode(ids, skip_special_tokens=False) == theirs("SmolVLM-Instruct", asked)


FOR_TOOLS_ALONE = {
    "CohereForAI-c4ai-command-r-plus-tool_use", "GigaChat-20B-A3B-instruct", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "fireworks-ai-llama-3-firefunction-v2",
}  # fmt: skip
"""They refuse every conversation without tools, or without their own variables."""
AGENT_TURNS = [
    {"role": "system", "content": "mark1"},
    {"role": "system", "content": "mark2"},
    {"role": "user", "content": "mark3"},
    {"role": "system", "content": [{"type": "text", "text": "mark4"}]},
    {"role": "assistant", "content": "mark5"},
    {"role": "assistant", "content": "mark6"},
    {"role": "user", "content": [{"type": "text", "text": "mark7"}]},
    {"role": "user", "content": "mark8"},
    {"role": "system", "content": "mark9"},
]


@pytest.mark.parametrize("name", sorted(set(NAMES) - FOR_TOOLS_ALONE))
def test_every_turn_of_an_agent_is_shown(name: str) -> None:
    """Some templates refuse such conversations, and some leave messages out."""
    tokenizer = tokenizer_with(name)
    ids = encode_joined(tokenizer.encode_chat, AGENT_TURNS, tokenizer.chat_template().forms)
    prompt = tokenizer.decode(ids, skip_special_tokens=False)
    assert [i for i in range(1, 10) if f"mark{i}" not in prompt] == []
    plain = [message for message in AGENT_TURNS if message["content"] in ("mark3", "mark5", "mark8")]
    assert encode_joined(tokenizer.encode_chat, plain, tokenizer.chat_template().forms) == tokenizer.encode_chat(plain)
