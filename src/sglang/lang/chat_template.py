"""Finds the chat template of a model by its name, for models whose server does not report its own (see common/chat_markers.py).

A table of markers is what the language needs, because it renders a conversation piece by piece while the program writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang.common.chat_markers import TABLE, ChatTemplate, ChatTemplateStyle, Message


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


for _template in TABLE:
    register_chat_template(_template)

__all__ = [
    "ChatTemplate",
    "ChatTemplateStyle",
    "Message",
    "get_chat_template",
    "get_chat_template_by_model_path",
    "match_known_models",
    "ordered_content",
    "register_chat_template",
    "register_chat_template_matching_function",
    "template_names",
    "text_part",
]
