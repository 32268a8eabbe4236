"""Chat templates: Jinja programs that come with a model and turn messages into its prompt.

They are code by strangers, so they run in a sandbox, see only plain data, and are stopped when they take too long or write
too much. The dialect is that of Hugging Face's `apply_chat_template`.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sglang.srt.errors import ConfigError, RequestError

MAX_RENDER_SECONDS = 5.0
MAX_RENDER_CHARS = 32 << 20
MAX_REPEAT = 1 << 20
"""largest count or length that `*` and `**` may work with inside a template"""

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
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError
)  # fmt: skip
"""what a template can raise on data that it does not expect"""


class TemplateStop(Exception):
    """Raised inside a template: by itself (`raise_exception`) or because it ran too long."""


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks what a model is trained on; to render it means nothing."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Render(threading.local):
    """When what this thread renders must be done: others render from the same template meanwhile."""

    deadline = 0.0


class _Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox with a clock: every turn of a loop looks at it."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag], cache_size=0
        )
        self._render = _Render()
        self.filters["tojson"] = _tojson
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)

    def begin(self) -> None:
        self._render.deadline = time.monotonic() + MAX_RENDER_SECONDS

    def tick(self) -> str:
        if time.monotonic() > self._render.deadline:
            raise TemplateStop(f"it took longer than {MAX_RENDER_SECONDS:g} s")
        return ""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        loops: list[Any] = list(tree.find_all((nodes.For, nodes.Macro)))
        for loop in loops:
            call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(call).set_lineno(loop.lineno))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for count, other in ((left, right), (right, left)):
            size = len(other) if isinstance(other, (str, list, tuple)) else 1
            if isinstance(count, int) and abs(count) * max(size, 1) > MAX_REPEAT:
                raise TemplateStop("a product in it is too large")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateStop(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatTemplate:
    """A compiled template. Raises ConfigError if it does not compile.

    `wants_parts` tells its content format: a list of typed parts ("openai") or one string ("string").
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._environment = _Sandbox()
        try:
            tree = self._environment.parse(source)
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ConfigError(f"the chat template does not compile: {error}") from error
        self.wants_parts = _iterates_over_content(tree)

    def mentions(self, word: str) -> bool:
        return word in self.source

    def render(self, variables: dict[str, Any]) -> str:
        """The prompt. Raises RequestError with the template's message if it refuses the messages or fails."""
        self._environment.begin()
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_RENDER_CHARS:
                    raise TemplateStop("it writes too much")
        except TemplateStop as error:
            raise RequestError(f"the chat template refused the messages: {error}", "messages") from error
        except _TEMPLATE_FAULTS as error:
            raise RequestError(f"the chat template failed on these messages: {error}", "messages") from error
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
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(BUILTIN_TEMPLATES))
        raise ConfigError(f"--chat-template {name!r} is neither a readable file nor one of {known}") from error
    if path.suffix != ".json":
        return text
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not valid JSON: {error}") from error
    template = value.get("chat_template") if isinstance(value, dict) else None
    if not isinstance(template, str):
        raise ConfigError(f"{name} has no text under the key 'chat_template'")
    return template
