"""Chat templates: Jinja programs that come with a model and turn messages into its prompt.

They are code by strangers, so they run in a sandbox, see only plain data, and are stopped when they take too long or write
too much. The dialect is that of Hugging Face's `apply_chat_template`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from sglang.srt.checkpoint.files import read_object, read_text
from sglang.srt.errors import ConfigError, ModelError, RequestError
from sglang.srt.server.tokenization.sandbox import Sandbox, TemplateLimit, TemplateStop

MAX_RENDER_SECONDS = 5.0
MAX_RENDER_CHARS = 32 << 20
MAX_SOURCE_CHARS = 64 << 10
"""real ones have up to 30,000"""
TRIAL_SECONDS = 2.0

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


_TEMPLATE_FAULTS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError
)  # fmt: skip
"""what a template can raise on data that it does not expect"""
_COMPILE_FAULTS = (*_TEMPLATE_FAULTS, SyntaxError)
"""what compiling one can raise: MemoryError and SyntaxError for what is nested too deeply"""


_TRIAL_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
}
_TRIAL_TURNS = [
    {"role": "system", "content": "a"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
]
_TRIALS: tuple[dict[str, Any], ...] = (
    {"messages": _TRIAL_TURNS[1:2], "add_generation_prompt": True},
    {"messages": _TRIAL_TURNS, "tools": [_TRIAL_TOOL], "add_generation_prompt": True},
)
"""conversations that a template is tried on when it is loaded"""


class ChatTemplate:
    """A compiled template. Raises ConfigError if it does not compile.

    `wants_parts` tells its content format: a list of typed parts ("openai") or one string ("string").
    """

    def __init__(self, source: str, name: str = "default") -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise ConfigError(
                f"the chat template has {len(source)} characters, and no real one has more than {MAX_SOURCE_CHARS}"
            )
        self.source = source
        self._environment = Sandbox()
        try:
            tree = self._environment.parse(source)
            self._template = self._environment.from_string(source)
            self.wants_parts = _iterates_over_content(tree)
        except _COMPILE_FAULTS as error:
            raise ConfigError(
                f"the chat template {name[:80]!r} does not compile: {str(error) or type(error).__name__}"
            ) from error
        self._try(name)

    def _try(self, name: str) -> None:
        """Renders small conversations. A template may refuse them, or want more than they have; it may not be out of all
        proportion to them."""
        for conversation in _TRIALS:
            words = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
            try:
                self._rendered(words | conversation, TRIAL_SECONDS)
            except TemplateLimit as error:
                raise ConfigError(f"the chat template {name[:80]!r} cannot be used: {error}") from error
            except (TemplateStop, *_TEMPLATE_FAULTS):
                continue

    def mentions(self, word: str) -> bool:
        return word in self.source

    def render(self, variables: dict[str, Any]) -> str:
        """The prompt. Raises RequestError with the template's message if it refuses the messages or fails."""
        try:
            return self._rendered(variables, MAX_RENDER_SECONDS)
        except TemplateStop as error:
            raise RequestError(f"the chat template refused the messages: {error}", "messages") from error
        except _TEMPLATE_FAULTS as error:
            raise RequestError(f"the chat template failed on these messages: {error}", "messages") from error

    def _rendered(self, variables: dict[str, Any], seconds: float) -> str:
        self._environment.meter.start(seconds)
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_RENDER_CHARS:
                raise TemplateLimit("it writes too much")
        return "".join(pieces)


def _iterates_over_content(tree: nodes.Template) -> bool:
    """Whether the template walks through a message's content as a list, directly or by another name."""
    aliases = {"content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, aliases):
            aliases.add(assign.target.name)
    return any(_is_content(loop.iter, aliases) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, aliases: set[str]) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_content(node.node, aliases)
    return isinstance(node, nodes.Name) and node.name in aliases


def named_template(name: str) -> str:
    """The source for `--chat-template`: a built-in name, a Jinja file, or a JSON file with "chat_template"."""
    if name in BUILTIN_TEMPLATES:
        return BUILTIN_TEMPLATES[name]
    path = Path(name)
    try:
        if path.suffix != ".json":
            return read_text(path)
        template = read_object(path).get("chat_template")
    except (FileNotFoundError, ModelError, ValueError) as error:  # ValueError: a zero byte in the name
        known = ", ".join(sorted(BUILTIN_TEMPLATES))
        reason = f" ({error})" if isinstance(error, ModelError) else ""
        raise ConfigError(f"--chat-template {name!r} is neither a readable file nor one of {known}{reason}") from error
    if not isinstance(template, str):
        raise ConfigError(f"{name} has no text under the key 'chat_template'")
    return template
