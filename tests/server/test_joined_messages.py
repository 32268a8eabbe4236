"""Conversations of agents with templates that are strict about roles: what the template refuses comes as fewer messages, in order,
and nothing is lost; what it takes is left alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.errors import TemplateRefusedError
from sglang.srt.server.tokenization.chat_template import ChatTemplate
from sglang.srt.server.tokenization.joined_messages import encode_joined
from sglang.srt.server.tokenization.template_forms import TemplateForms
from tests.server.conftest import Stand
from tests.server.http_tools import client_of
from tests.server.test_tools import prompt_of, says

TEMPLATES = Path(__file__).parent / "facts" / "templates"
STRICT = (
    *("Qwen3.5-4B", "gemma-3-4b-it", "gemma-7b-it", "Mistral-Small-3.2-24B-Instruct-2506", "Pixtral-12B", "aya-expanse"),
    *("mistralai-Ministral-3-14B-Reasoning-2512", "mistralai-Mistral-Nemo-Instruct-2407", "c4ai-command-r-plus"),
)
CONVERSATIONS = ("SU", "SSU", "SSUU", "SUAU", "SUASU", "SUASUAU", "SUAAU", "SSUUAUU", "SSSUSUASU")
ROLES = {"S": "system", "U": "user", "A": "assistant"}
WORDS = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None, "add_generation_prompt": True}


@cache
def template_of(name: str) -> ChatTemplate:
    return ChatTemplate((TEMPLATES / f"{name}.jinja").read_text(), name)


def conversation_of(roles: str, as_parts: bool) -> list[dict[str, Any]]:
    texts = [f"words{i}" for i in range(len(roles))]
    return [
        {"role": ROLES[role], "content": [{"type": "text", "text": text}] if as_parts and i % 2 else text}
        for i, (role, text) in enumerate(zip(roles, texts, strict=True))
    ]


@pytest.mark.parametrize("as_parts", [False, True])
@pytest.mark.parametrize("roles", CONVERSATIONS)
def test_strict_templates_take_what_agents_send(roles: str, as_parts: bool) -> None:
    num_joined = 0
    for name in STRICT:
        template, prompts = template_of(name), []

        def encode(
            messages: list[dict[str, Any]], template: ChatTemplate = template, prompts: list[str] = prompts
        ) -> list[int]:
            prompts.append(template.render({**WORDS, "messages": template.fitted(messages, {})}))
            return [len(messages)]

        conversation = conversation_of(roles, as_parts)
        num_joined += encode_joined(encode, conversation, TemplateForms()) != [len(roles)]
        (prompt,) = prompts
        assert all(f"words{i}" in prompt for i in range(len(roles))), (name, prompt)
        turns = [prompt.find(f"words{i}") for i in range(len(roles)) if roles[i] != "S"]
        assert turns == sorted(turns), (name, prompt)
    assert num_joined > 0 or roles in ("SU", "SUAU")


def test_what_no_form_of_pleases_is_refused() -> None:
    def encode(messages: list[dict[str, Any]]) -> list[int]:
        raise TemplateRefusedError(f"no, not {len(messages)}")

    with pytest.raises(TemplateRefusedError, match="not 4"):
        encode_joined(encode, conversation_of("SSUU", False), TemplateForms())


async def test_responses_join_and_chats_do_not(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = stand.manager.need_tokenizer()
    strict = template_of("Mistral-Small-3.2-24B-Instruct-2506")
    monkeypatch.setattr(tokenizer, "chat_template", lambda with_tools=False: strict)
    says(stand, "Yes.")
    messages = [
        {"role": "developer", "content": "one"},
        {"role": "user", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    async with client_of(stand) as http:
        reply = await http.post("/v1/responses", json={"instructions": "zero", "input": messages})
        assert reply.status_code == 200, reply.text
        assert "zero\n\none" in prompt_of(stand) and "two\n\nthree" in prompt_of(stand)
        assert (await http.post("/v1/chat/completions", json={"messages": messages})).status_code == 400
