"""Chat templates by name, for `--chat-template`: those of this list, a Jinja file, or a JSON file.

A JSON file has a Jinja template under "chat_template", or says how a conversation is written, as SGLang's files do:

    {"name": "mine", "system": "<|im_start|>system", "user": "<|im_start|>user", "assistant": "<|im_start|>assistant",
     "sep_style": "CHATML", "sep": "<|im_end|>", "stop_str": ["<|im_end|>"]}

This file is read before a model is looked for, so it imports neither Jinja nor a tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sglang.common.chat_markers import TABLE, ChatTemplate, ChatTemplateStyle
from sglang.common.suggest import did_you_mean
from sglang.srt.checkpoint.files import read_object, read_text
from sglang.srt.errors import ConfigError, ModelError

PLAIN_IMAGE = "<image>"
"""an image token that is no family's own"""


@dataclass(frozen=True)
class NamedTemplate:
    """`stops`: texts that end an answer. `opens`: whether the tokenizer's own beginning of a text is to stand before it."""

    source: str
    stops: tuple[str, ...] = ()
    opens: bool = False


BUILTIN_TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama-2": (
        "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
        "{{ (system if loop.first else '') + m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "vicuna": (
        "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} {% elif m.role == 'assistant' %}ASSISTANT: "
        "{{ m.content }}{{ eos_token }}{% else %}{{ m.content }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
}


def as_jinja(template: ChatTemplate, opening: str | None = None, trims: bool = False) -> NamedTemplate:
    """`opening`: what asks for an answer; by default what stands before an assistant's message. `trims`: contents lose white space
    at both ends."""
    markers = template.role_prefix_and_suffix
    content = "{{ m.content | trim }}" if trims else "{{ m.content }}"
    contents = {"user": _with_images(content, template.image_token)}
    turns = {role: _shown(before) + contents.get(role, content) + _shown(after) for role, (before, after) in markers.items()}
    if template.style is ChatTemplateStyle.LLAMA2:  # the system's message is the beginning of the first user's
        before, after = markers["user"]
        turns["system"] = _shown(before) + turns["system"]
        inside = "{% if loop.index0 == 1 and messages[0].role == 'system' %}" + contents["user"] + _shown(after) + "{% else %}"
        turns["user"] = inside + turns["user"] + "{% endif %}"
    parts = []
    if template.default_system_prompt is not None:
        before, after = markers["system"]
        usual = _shown(before + template.default_system_prompt + after)
        parts.append("{% if messages[0].role != 'system' %}" + usual + "{% endif %}")
    parts.append("{% for m in messages %}")
    for word, role in zip(("if", "elif", "elif"), ("system", "user", "assistant"), strict=True):
        parts.append("{% " + f"{word} m.role == '{role}'" + " %}" + turns[role])
    parts.append("{% else %}{{ raise_exception('it has no place for a message of role ' + m.role) }}{% endif %}{% endfor %}")
    parts.append(
        "{% if add_generation_prompt %}" + _shown(markers["assistant"][0] if opening is None else opening) + "{% endif %}"
    )
    return NamedTemplate("".join(parts), template.stop_str, opens=True)


def _with_images(text: str, image_token: str) -> str:
    """Content that is a text, or parts where images stand as the family writes them. Others have them written into the text."""
    if image_token == PLAIN_IMAGE:
        return text
    part = "{% if p.type == 'image' %}" + _shown(image_token) + "{% elif p.type == 'text' %}{{ p.text }}{% endif %}"
    return "{% if m.content is string %}" + text + "{% else %}{% for p in m.content %}" + part + "{% endfor %}{% endif %}"


def _shown(text: str) -> str:
    """An expression of Jinja that writes the text."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


# --- names --------------------------------------------------------------------------------------------------------------------

_NOT_SERVED = (
    "claude dbrx-instruct deepseek-ocr deepseek-vl2 glm-4v gme-qwen2-vl interns1 internvl-2-5 janus janus-pro kimi-vl llama-4 minicpmo "
    "minicpmv moss-vl paddle-ocr phi-4-mm points-v15-chat qwen2-audio step3-vl step3p7 unlimited-ocr yi-vl"
)
_ONE_MODEL = "devstral mimo-vl"
REFUSED_NAMES = {
    **dict.fromkeys(_NOT_SERVED.split(), "models of this family are not served"),
    **dict.fromkeys(_ONE_MODEL.split(), "it stands for one model, whose own template says the same"),
}
"""names of SGLang's -> why they are not taken"""

_ROWS = {row.name: row for row in TABLE}


def _renamed(name: str, row: str, image_token: str = PLAIN_IMAGE) -> ChatTemplate:
    return replace(_ROWS[row], name=name, image_token=image_token)


def _vicuna() -> NamedTemplate:
    markers = {"system": ("", " "), "user": ("USER: ", " "), "assistant": ("ASSISTANT: ", "</s>")}
    usual = _ROWS["vicuna_v1.1"].default_system_prompt
    return as_jinja(ChatTemplate("vicuna_v1.1", usual, markers), opening="ASSISTANT:")


def _gemma() -> NamedTemplate:
    markers = {**_ROWS["gemma-it"].role_prefix_and_suffix, "system": ("", "\n\n")}
    row = replace(_ROWS["gemma-it"], role_prefix_and_suffix=markers, style=ChatTemplateStyle.LLAMA2)
    return as_jinja(row, trims=True)


NAMED: dict[str, NamedTemplate] = {
    **{row.name: as_jinja(row) for row in TABLE if row.name not in REFUSED_NAMES},
    "llama_3_vision": as_jinja(_renamed("llama_3_vision", "llama-3-instruct-llava", "<|image|>"), trims=True),
    "llava_llama_3": as_jinja(_renamed("llava_llama_3", "llama-3-instruct-llava"), trims=True),
    "internlm2-chat": as_jinja(_renamed("internlm2-chat", "chatml")),
    "vicuna_v1.1": _vicuna(),
    "gemma-it": _gemma(),
    **{name: NamedTemplate(source) for name, source in BUILTIN_TEMPLATES.items()},
}


def named_template(name: str) -> NamedTemplate:
    """The template that `--chat-template` names. Raises ConfigError with the reason and the way out."""
    if name in NAMED:
        return NAMED[name]
    path = Path(name)
    if name in REFUSED_NAMES and not path.exists():
        raise ConfigError(
            f"--chat-template {name} is not taken: {REFUSED_NAMES[name]}. Without the flag the model's own template is used; any other "
            "can be given as a Jinja file"
        )
    try:
        if path.suffix != ".json":
            return NamedTemplate(read_text(path))
        return _of_json(name, read_object(path))
    except (FileNotFoundError, ModelError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = f" ({error})" if isinstance(error, ModelError) else ""
        hint = did_you_mean(name, NAMED)
        raise ConfigError(
            f"--chat-template {name!r} is neither a readable file nor one of {', '.join(sorted(NAMED))}{reason}{hint}"
        ) from error


# --- files that say how a conversation is written -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """The separators: after a role's word, after a message (SEP: the separator), after the word that asks for an answer, and
    after the system's message. `two`: another separator (sep2) ends the assistant's messages. `silent`: without a system's
    message nothing is written in its place."""

    after: str
    end: str
    opening: str
    system_end: str
    silent: bool = False
    header: tuple[str, str] = ("", "")
    trims: bool = False
    two: bool = False

    def markers(self, words: Mapping[str, str], separator: str, second: str | None) -> tuple[dict[str, tuple[str, str]], str]:
        """Prefix and suffix of users' and the assistant's messages, whose words are given; and what asks for an answer."""
        start, close = self.header
        ends = {"user": separator, "assistant": (second or "") if self.two else separator}
        named = {role: start + word + close for role, word in words.items()}
        pairs = {role: (word + self.after, self.end.replace("SEP", ends[role])) for role, word in named.items()}
        return pairs, named["assistant"] + self.opening


STYLES = {
    "ADD_COLON_SINGLE": Style(": ", "SEP", ":", "SEP"),
    "ADD_COLON_TWO": Style(": ", "SEP", ":", "SEP", two=True),
    "ADD_COLON_SPACE_SINGLE": Style(": ", "SEP", ": ", "SEP"),
    "ADD_NEW_LINE_SINGLE": Style("\n", "SEP", "\n", "SEP"),
    "NO_COLON_SINGLE": Style("", "SEP", "", ""),
    "NO_COLON_TWO": Style("", "SEP", "", "", two=True),
    "DEEPSEEK_CHAT": Style(": ", "SEP", ":", "", two=True),
    "CHATML": Style("\n", "SEP\n", "\n", "SEP\n"),
    "MPT": Style("", "SEP", "", "SEP"),
    "ROBIN": Style(":\n", "SEP", ":\n", "SEP"),
    "FALCON_CHAT": Style(": ", "SEP", ":", "SEP", silent=True),
    "CHATGLM3": Style("\n", "", "", "", silent=True),
    "PHOENIX": Style(": <s>", "</s>", ": <s>", ""),
    "LLAMA3": Style("", "<|eot_id|>", "", "", True, ("<|start_header_id|>", "<|end_header_id|>\n\n"), True),
    "LLAMA4": Style("", "<|eot|>", "", "", True, ("<|header_start|>", "<|header_end|>\n\n"), True),
}
_KEYS = ("system", "user", "assistant", "sep_style")
_WAY_OUT = "write it as a Jinja template, in a file or under the key 'chat_template'"


def _of_json(name: str, content: Mapping[str, Any]) -> NamedTemplate:
    template = content.get("chat_template")
    if isinstance(template, str):
        return NamedTemplate(template)
    missing = [key for key in _KEYS if not isinstance(content.get(key), str)]
    if "chat_template" in content or len(missing) == len(_KEYS):
        raise ConfigError(f"{name} has no text under the key 'chat_template', nor the keys {', '.join(_KEYS)}")
    if missing:
        raise ConfigError(f"{name} says how a conversation is written, but has no text under {', '.join(missing)}")
    style = STYLES.get(content["sep_style"])
    if style is None:
        raise ConfigError(
            f"{name}: the sep_style {content['sep_style']!r} cannot be followed, only {', '.join(STYLES)}: {_WAY_OUT}"
        )
    texts = {
        key: content.get(key, usual)
        for key, usual in (("sep", "\n"), ("system_message", ""), ("sep2", "" if style.two else None))
    }
    if wrong := [key for key, text in texts.items() if text is not None and not isinstance(text, str)]:
        raise ConfigError(f"{name}: {' and '.join(wrong)} must be a text")
    if style.two and not texts["sep2"]:
        raise ConfigError(
            f"{name}: the sep_style {content['sep_style']} ends the assistant's messages with sep2, which is not there"
        )
    markers, opening = style.markers({role: content[role] for role in ("user", "assistant")}, texts["sep"], texts["sep2"])
    markers["system"] = (content["system"] + "\n", style.system_end.replace("SEP", texts["sep"]))
    usual = None if style.silent and not texts["system_message"] else texts["system_message"]
    template = ChatTemplate(str(content.get("name")), usual, markers, _stops(name, content.get("stop_str")))
    return as_jinja(template, opening, style.trims)


def _stops(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else () if value is None else (0,)
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{name}: stop_str must be a text or a list of texts")
    return tuple(text for text in texts if text)
