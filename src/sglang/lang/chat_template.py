"""Chat templates as text around messages: the role markers that a model was trained with.

A template is a table of (prefix, suffix) per role. It is what the language needs, because it renders a conversation piece by
piece while the program writes it. The table below covers models whose server does not report its own template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


def ordered_content(text: str, places: Sequence[int], template: ChatTemplate) -> str | list[dict[str, Any]]:
    """A message's content with parts in the order of `text`, in which images stand at `places`. Images are only named: they travel
    beside."""
    if not places:
        return text.lstrip()
    parts: list[dict[str, Any]] = []
    at = len(text) - len(text.lstrip())
    for place in places:
        parts += [text_part(text[at:place])] if text[at:place] else []
        parts.append({"type": "image_url", "image_url": {"url": "data:,"}})
        at = place + len(template.image_token)
    return [*parts, text_part(text[at:])] if text[at:] else parts


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@dataclass
class _Registry:
    templates: dict[str, ChatTemplate] = field(default_factory=dict)
    matchers: list[Callable[[str], Any]] = field(default_factory=list)


_registry = _Registry()


def register_chat_template(template: ChatTemplate) -> None:
    """Adds a template, or replaces the one of its name."""
    _registry.templates[template.name] = template


def register_chat_template_matching_function(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """Adds a function from model path to template name (or None: not mine; or the template itself). Earlier ones win."""
    _registry.matchers.append(function)
    return function


def template_names() -> list[str]:
    """The names of all templates."""
    return sorted(_registry.templates)


def get_chat_template(name: str) -> ChatTemplate:
    """Raises KeyError with the names there are."""
    try:
        return _registry.templates[name]
    except KeyError:
        raise KeyError(f"no chat template named {name!r}; there are {', '.join(sorted(_registry.templates))}") from None


def get_chat_template_by_model_path(model_path: str) -> ChatTemplate:
    """The template of a model by its name or path; "default" when nothing is known about it."""
    for match in _registry.matchers:
        found = match(model_path)
        if isinstance(found, ChatTemplate):
            return found
        if found is not None:
            return get_chat_template(found)
    return get_chat_template("default")


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

_TABLE = (
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

# (what the path must contain, what it must not, template); the first row that fits wins
_RULES: tuple[tuple[str, str | None, str], ...] = (
    (r"smollm2.*instruct|smollm2-.*-it", None, "smollm2"),
    (r"deepseek-(v3|r1)", r"base|distill", "deepseek-v3"),
    (r"janus-pro", None, "janus-pro"),
    (r"janus", None, "janus"),
    (r"dbrx.*instruct", None, "dbrx-instruct"),
    (r"vicuna|llava-v1\.5|llava-next-video-7b", None, "vicuna_v1.1"),
    (r"llama-?2.*chat|codellama.*instruct", None, "llama-2-chat"),
    (r"pixtral|(mistral|mixtral).*instruct", None, "mistral"),
    (r"llama-?3.*llava|llava.*llama-?3", None, "llama-3-instruct-llava"),
    (r"llama-?4.*instruct", None, "llama-4"),
    (r"llama-?3.*instruct", None, "llama-3-instruct"),
    (r"tinyllama.*chat|tinyllama", None, "chatml"),
    (r"internvl-?2[._-]5|internvl3", None, "internvl-2-5"),
    (r"interns1", None, "interns1"),
    (r"minicpm-v", None, "minicpmv"),
    (r"minicpm-o", None, "minicpmo"),
    (r"qwen.*vl", None, "qwen2-vl"),
    (r"llava.*(qwen|yi-34b|34b)|llava-next-video-34b|llava-onevision-qwen2", None, "chatml-llava"),
    (r"glm.*4v", None, "glm-4v"),
    (r"qwen-?3", r"base|embedding", "chatml"),
    (r"qwen.*(chat|instruct)", None, "qwen"),
    (r"yi-vl", None, "yi-vl"),
    (r"yi-1\.5.*chat", None, "yi-1.5"),
    (r"gemma.*it\b|gemma-?3", r"270m(?!.*it\b)|-pt\b", "gemma-it"),
    (r"command-r", None, "c4ai-command-r"),
    (r"granite.*instruct", None, "granite-3-instruct"),
)


@register_chat_template_matching_function
def match_known_models(model_path: str) -> str | None:
    """The rules above, on the path without regard to case."""
    for wanted, unwanted, name in _RULES:
        if re.search(wanted, model_path, re.IGNORECASE) and not (unwanted and re.search(unwanted, model_path, re.IGNORECASE)):
            return name
    return None


for _template in _TABLE:
    register_chat_template(_template)
