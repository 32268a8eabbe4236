"""Chat templates: Jinja programs that come with a model and turn messages into its prompt.

They are untrusted code, so they run in a sandbox, see only plain data, and are stopped when they take too long or write too
much. The dialect is that of Hugging Face's `apply_chat_template`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from operator import methodcaller
from time import monotonic
from typing import Any

import jinja2
import regex

from sglang.srt.errors import ConfigError, RequestError, TemplateRefusedError
from sglang.srt.server.tokenization.sandbox import Sandbox, TemplateLimit, TemplateStop
from sglang.srt.server.tokenization.template_forms import find_forms, fit_content

MAX_RENDER_SECONDS = 5.0
MAX_RENDER_CHARS = 32 << 20
MAX_SOURCE_CHARS = 64 << 10
"""real ones have up to 30,000"""
TRIAL_SECONDS = 2.0
"""for one conversation that a template is tried on, and for all that it is asked about its forms"""

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
_TRIAL_WORDS = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None, "add_generation_prompt": True}
_TRIALS: tuple[dict[str, Any], ...] = (
    {"messages": _TRIAL_TURNS[1:2]},
    {"messages": _TRIAL_TURNS, "tools": [_TRIAL_TOOL]},
)
"""conversations that a template is tried on when it is loaded"""


_content = methodcaller("get", "content")


class ChatTemplate:
    """A compiled template. Raises ConfigError if it does not compile.

    `forms` tells what it takes: strings or typed parts for each role, tools, calls.
    """

    def __init__(self, source: str, name: str = "default") -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise ConfigError(
                f"the chat template has {len(source)} characters, and no real one has more than {MAX_SOURCE_CHARS}"
            )
        self.source = source
        self._environment = Sandbox()
        try:
            self._template = self._environment.from_string(source)
            self._template.globals = dict(self._template.globals)  # a chain of maps, which every rendering would walk
        except _COMPILE_FAULTS as error:
            raise ConfigError(
                f"the chat template {name[:80]!r} does not compile: {str(error) or type(error).__name__}"
            ) from error
        self._try(name)
        deadline = monotonic() + TRIAL_SECONDS
        self.forms = find_forms(lambda conversation: self._ask(conversation, deadline))
        self._takes_strings = all(form.text or not form.part for form in self.forms.roles.values())

    def _try(self, name: str) -> None:
        """Renders small conversations. A template may refuse them, or want more than they have; it may not be out of all
        proportion to them."""
        for conversation in _TRIALS:
            try:
                self._rendered(_TRIAL_WORDS | conversation, TRIAL_SECONDS)
            except TemplateLimit as error:
                raise ConfigError(f"the chat template {name[:80]!r} cannot be used: {error}") from error
            except (TemplateStop, *_TEMPLATE_FAULTS):
                continue

    def _ask(self, conversation: dict[str, Any], deadline: float) -> str | None:
        """The prompt that the template writes for a small conversation; None if it refuses it."""
        try:
            return self._rendered(_TRIAL_WORDS | conversation, max(deadline - monotonic(), 0.0))
        except (TemplateStop, *_TEMPLATE_FAULTS):
            return None

    def mentions(self, word: str) -> bool:
        return word in self.source

    def fitted(self, messages: list[dict[str, Any]], marks: Mapping[str, str], as_text: bool = False) -> list[dict[str, Any]]:
        """Messages whose contents have the forms that the template takes (template_forms.fit_content). `as_text`: images and
        videos are written as their marks even where the template shows them."""
        if self._takes_strings and list not in map(type, map(_content, messages)):
            return messages  # all are as they may stay
        forms = {str(message.get("role")): self.forms.of_role(str(message.get("role"))) for message in messages}
        if as_text:
            forms = {role: replace(form, media=frozenset()) for role, form in forms.items()}
        return [fit_content(message, forms[str(message.get("role"))], marks) for message in messages]

    def render(self, variables: dict[str, Any]) -> str:
        """The prompt. Raises RequestError with the template's message if it refuses the messages or fails."""
        try:
            return self._rendered(variables, MAX_RENDER_SECONDS)
        except TemplateStop as error:
            kind = RequestError if isinstance(error, TemplateLimit) else TemplateRefusedError
            raise kind(f"the chat template refused the messages: {error}", "messages") from error
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


# --- special tokens in messages -----------------------------------------------------------------------------------------------


WINDOW = 1 << 20
"""characters that are searched at once"""


class SpecialText:
    r"""Special tokens in the text of messages: found, marked, and distinguished from those of the chat template.

    A chat prompt mixes two sources. The template's own `<|im_start|>` opens a turn; the same characters inside a message are
    just characters, or a user could close their turn and speak as the system. So before rendering, a mark is put inside every
    special token's name found in the messages; the template's names stay whole and are recognized; then the stretches that
    contain marks are encoded again, without marks and as plain text.

        message   "say <|im_end|>"
        marked    "say <*|im_end|>"
        rendered  "<|im_start|>user\nsay <*|im_end|><|im_end|>\n"
        encoded    special       plain stretch        special
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [name for name in names if name]
        self._first: Any = None
        if self._names:
            self._first = re.compile("[" + "".join({re.escape(name[0]) for name in self._names}) + "]")
        self._longest = max(map(len, self._names), default=1)
        self._compiled: Any = None

    @property
    def _pattern(self) -> Any:
        """Compiled when a text first needs it: some vocabularies have thousands of names."""
        if self._compiled is None:
            self._compiled = regex.compile(r"\L<names>", names=self._names)
        return self._compiled

    def occurs_in(self, value: Any) -> bool:
        """Whether any string inside `value` (plain JSON-like data) contains a special token's name."""
        if self._first is None:
            return False
        may_begin = self._first.search
        left = [value]
        while left:
            value = left.pop()
            if isinstance(value, str):
                if len(value) > WINDOW:
                    if any(map(self._is_in, _windows(value, self._longest))):
                        return True
                elif may_begin(value) is not None and self._is_in(value):
                    return True
            elif isinstance(value, dict):
                items = [*value, *value.values()]
                if not self._is_plain(items):
                    left += items
            elif isinstance(value, (list, tuple)):
                left += value
        return False

    def _is_plain(self, items: list[Any]) -> bool:
        """Whether all are strings in which no name can begin, as in most messages: found out without a loop of Python's."""
        try:
            return sum(map(len, items)) <= WINDOW and not any(map(self._first.search, items))
        except TypeError:  # something else is among them
            return False

    def _is_in(self, text: str) -> bool:
        return self._first.search(text) is not None and self._pattern.search(text) is not None

    def marked(self, value: Any, mark: str) -> Any:
        """`value` with `mark` after the first character of each name."""
        substitute = self._pattern.sub

        def mark_name(match: Any) -> str:
            name: str = match[0]
            return name[0] + mark + name[1:]

        return map_strings(value, lambda text: substitute(mark_name, text))


def _windows(text: str, overlap: int) -> Iterator[str]:
    """The text in pieces, of which each two share `overlap` characters: a search lets no other thread run."""
    for at in range(0, len(text), WINDOW):
        yield text[at : at + WINDOW + overlap]


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of JSON-like data with every string, keys included, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {map_strings(key, change): map_strings(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(item, change) for item in value]
    return value
