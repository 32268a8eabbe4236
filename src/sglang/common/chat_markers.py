"""Chat templates as text around messages: the role markers that a model was trained with, by the names of families.

A template is a table of (prefix, suffix) per role. The language writes prompts with it where a server does not report its own
template, and a server makes a Jinja template of it for `--chat-template NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

Message = Mapping[str, Any]


class ChatTemplateStyle(Enum):
    PLAIN = "plain"
    LLAMA2 = "llama2"


@dataclass(frozen=True)
class ChatTemplate:
    """Markers of one family of models. `default_system_prompt`: said when a conversation does not start with a system
    message; `stop_str`: strings that end the assistant's turn."""

    name: str
    default_system_prompt: str | None
    role_prefix_and_suffix: Mapping[str, tuple[str, str]]
    stop_str: tuple[str, ...] = ()
    image_token: str = "<image>"
    audio_token: str = "<audio>"
    style: ChatTemplateStyle = ChatTemplateStyle.PLAIN

    def get_prefix_and_suffix(self, role: str, history: Sequence[Message]) -> tuple[str, str]:
        """Markers of a message of `role` that comes after `history`; ("", "") for an unknown role."""
        prefix, suffix = self.role_prefix_and_suffix.get(role, ("", ""))
        if self.style is ChatTemplateStyle.LLAMA2:
            if role == "system" and not history:
                user_prefix, _ = self.role_prefix_and_suffix.get("user", ("", ""))
                _, system_suffix = self.role_prefix_and_suffix.get("system", ("", ""))
                return user_prefix + prefix, system_suffix
            if role == "user" and len(history) == 1 and history[0]["role"] == "system" and history[0]["content"] is not None:
                return "", suffix
        return prefix, suffix

    def get_prompt(self, messages: Sequence[Message]) -> str:
        """A whole conversation as text. A system message with content None stands for the default system prompt."""
        text = ""
        for i, message in enumerate(messages):
            content = message["content"]
            if message["role"] == "system" and content is None:
                if self.default_system_prompt is None:
                    continue
                content = self.default_system_prompt
            prefix, suffix = self.get_prefix_and_suffix(message["role"], messages[:i])
            text += f"{prefix}{content}{suffix}"
        return text


def _chatml(end: str = "<|im_end|>\n") -> dict[str, tuple[str, str]]:
    return {role: (f"<|im_start|>{role}\n", end) for role in ("system", "user", "assistant")}


def _roles(system: tuple[str, str], user: tuple[str, str], assistant: tuple[str, str]) -> dict[str, tuple[str, str]]:
    return {"system": system, "user": user, "assistant": assistant}


def _header(start: str, end: str, eot: str) -> dict[str, tuple[str, str]]:
    return {role: (f"{start}{role}{end}", eot) for role in ("system", "user", "assistant")}


_HELPFUL = "You are a helpful assistant."
_SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAVA_LLAMA3 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_DBRX = "You are DBRX, created by Databricks."
_END = "<|im_end|>"
_EOT = "<|eot_id|>"
_DEEPSEEK_END = "<｜end▁of▁sentence｜>"
_COHERE_END = "<|END_OF_TURN_TOKEN|>"
_COHERE = "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>"

TABLE = (
    ChatTemplate("default", None, _roles(("SYSTEM:", "\n"), ("USER:", "\n"), ("ASSISTANT:", "\n"))),
    ChatTemplate("chatml", None, _chatml(), (_END,)),
    ChatTemplate("smollm2", _SMOL, _chatml(), (_END,)),
    ChatTemplate("qwen", _HELPFUL, _chatml(), (_END,)),
    ChatTemplate("qwen2-vl", _HELPFUL, _chatml(), (_END,), "<|vision_start|><|image_pad|><|vision_end|>"),
    ChatTemplate("chatml-llava", _HELPFUL, _chatml(), (_END,), "<image>\n"),
    ChatTemplate("internvl-2-5", _HELPFUL, _chatml(), (_END,), "<image>"),
    ChatTemplate("interns1", _HELPFUL, _chatml(), (_END,), "<image>"),
    ChatTemplate("minicpmv", None, _chatml(), (_END, "<|endoftext|>"), "(<image>./</image>)"),
    ChatTemplate("minicpmo", None, _chatml(), (_END, "<|endoftext|>"), "(<image>./</image>)", "(<audio>./</audio>)"),
    ChatTemplate("claude", None, _roles(("", ""), ("\n\nHuman: ", ""), ("\n\nAssistant:", ""))),
    ChatTemplate("vicuna_v1.1", _VICUNA, _roles(("", " "), ("USER:", " "), ("ASSISTANT:", "</s>")), (), " <image>\n"),
    ChatTemplate(
        "llama-2-chat",
        None,
        _roles(("<<SYS>>\n", "\n<</SYS>>\n\n"), ("[INST] ", " [/INST]"), ("", " </s><s>")),
        style=ChatTemplateStyle.LLAMA2,
    ),
    ChatTemplate(
        "mistral",
        None,
        _roles(("[SYSTEM_PROMPT] ", " [/SYSTEM_PROMPT]"), ("[INST] ", " [/INST]"), ("", " </s><s>")),
        ("</s>",),
        "[IMG]",
    ),
    ChatTemplate("llama-3-instruct", None, _header("<|start_header_id|>", "<|end_header_id|>\n\n", _EOT), (_EOT,), "<|image|>"),
    ChatTemplate(
        "llama-3-instruct-llava",
        _LLAVA_LLAMA3,
        _header("<|start_header_id|>", "<|end_header_id|>\n\n", _EOT),
        (_EOT,),
        "<image>\n",
    ),
    ChatTemplate("llama-4", None, _header("<|header_start|>", "<|header_end|>\n\n", "<|eot|>"), ("<|eot|>",), "<|image|>"),
    ChatTemplate(
        "yi-1.5",
        None,
        _roles(("", ""), ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"), ("", "<|im_end|>\n")),
        (_END,),
    ),
    ChatTemplate(
        "yi-vl",
        "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. "
        "Read all the images carefully, and respond to the human's questions with informative, helpful, detailed and polite answers.",
        _roles(("", "\n\n"), ("### Human:", "\n"), ("### Assistant:", "\n")),
        (),
        " <image_placeholder>\n",
    ),
    ChatTemplate(
        "gemma-it",
        None,
        _roles(("", ""), ("<start_of_turn>user\n", "<end_of_turn>\n"), ("<start_of_turn>model\n", "<end_of_turn>\n")),
        ("<end_of_turn>",),
        "<start_of_image>",
    ),
    ChatTemplate("dbrx-instruct", _DBRX, _chatml("\n<|im_end|>"), (_END,)),
    ChatTemplate(
        "c4ai-command-r",
        None,
        _roles(
            (_COHERE.format("SYSTEM"), _COHERE_END),
            (_COHERE.format("USER"), _COHERE_END),
            (_COHERE.format("CHATBOT"), _COHERE_END),
        ),
        (_COHERE_END,),
    ),
    ChatTemplate(
        "deepseek-v3",
        None,
        _roles(("", ""), ("<｜User｜>", ""), ("<｜Assistant｜>", _DEEPSEEK_END)),
        (_DEEPSEEK_END,),
    ),
    ChatTemplate(
        "janus",
        None,
        _roles(("", ""), ("User: ", "\n\n"), ("Assistant: ", "<｜end▁of▁sentence｜>")),
        (_DEEPSEEK_END,),
        "<image_placeholder>\n",
    ),
    ChatTemplate(
        "janus-pro",
        None,
        _roles(("", ""), ("<｜User｜>", ""), ("<｜Assistant｜>", _DEEPSEEK_END)),
        (_DEEPSEEK_END,),
        "<image_placeholder>\n",
    ),
    ChatTemplate(
        "glm-4v",
        None,
        _roles(("<|system|>\n", "\n"), ("<|user|>\n", "\n"), ("<|assistant|>\n", "\n")),
        ("<|user|>", "<|endoftext|>", "<|observation|>"),
        "<|image|>",
    ),
    ChatTemplate(
        "granite-3-instruct",
        None,
        _header("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        ("<|end_of_text|>",),
    ),
)
