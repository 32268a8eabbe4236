"""Finds the forms of message content that a chat template supports, by probing it.

Some templates take a message's content as one string, some as a list of typed parts, many either, and some treat each role in
a way of its own. Their source does not say which, so a template is run on small conversations with words that it cannot know, and
its output is inspected:

    content "alpha"                             the word is there                    the role takes text
    content [text alpha]                        the word is there, and no dump       the role takes a part
    content [text alpha, text omega]            both words are there                 the role takes parts
    content [text alpha, image, text omega]     something more than without          the role takes images among the parts
    tools, calls, results                       their words are there                the template shows them
    a system message at first, and later        their words are there                it shows them

`fit_content` then brings each message into a form that its role takes: strings stay strings and lists stay lists where they may.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.errors import UnsupportedError

MEDIA_TYPES = ("image", "video")
_FIRST, _SECOND, _KEY = "alphaqx", "omegaqx", "keyqx"
_DUMP = re.compile(rf"""\\?['"]text\\?['"]\s*:\s*\\?['"]{_FIRST}""")
"""a part written out as JSON or as Python does"""

Render = Callable[[dict[str, Any]], str | None]
"""the text for a template's variables, None if it refuses them or fails"""
Conversation = Callable[[Any], dict[str, Any]]
"""the variables of a conversation around some content"""


@dataclass(frozen=True)
class MediaToken:
    """A prompt's placeholder of an image or a video: `text`, in which `placeholder` is the token that counts."""

    placeholder: str
    text: str


@dataclass(frozen=True)
class ContentForm:
    """The forms of content that the template takes for one role. `part`: a list with one part of text; `parts`: with several.
    `media`: the types of media parts that it shows among them."""

    text: bool = True
    part: bool = False
    parts: bool = False
    media: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TemplateForms:
    """`tools`: the template shows the tools that may be called. `calls`: it shows earlier calls. `argument_objects`: it wants a
    call's arguments as an object, not as a text of JSON. `system`, `late_system`: it shows a system message at the beginning, and
    one after other turns."""

    roles: Mapping[str, ContentForm] = field(default_factory=dict)
    tools: bool = False
    calls: bool = False
    argument_objects: bool = True
    system: bool = True
    late_system: bool = True

    def of_role(self, role: str) -> ContentForm:
        return self.roles.get("tool" if role == "function" else role, ContentForm())


def find_forms(render: Render) -> TemplateForms:
    """Asks the template."""
    roles: dict[str, ContentForm] = {}
    for role, conversations in _CONVERSATIONS.items():
        roles[role] = _content_form(render, conversations, roles)
    shown = render(_fitted({"messages": [_user("a")], "tools": [_TOOL]}, roles)) or ""
    as_object = render(_fitted(_after_call("a", {_KEY: _FIRST}), roles))
    as_text = render(_fitted(_after_call("a", json.dumps({_KEY: _FIRST})), roles)) or ""

    def shows(*messages: dict[str, Any]) -> bool:
        prompt = render(_fitted({"messages": list(messages)}, roles)) or ""
        words = [str(message["content"]) for message in messages]
        return all(word in prompt for word in words if word in (_FIRST, _SECOND))

    fails = as_object is None or f"'{_KEY}'" in as_object
    return TemplateForms(
        roles=roles,
        tools=_NAME in shown,
        calls=_FIRST in (as_object or as_text),
        argument_objects=not (fails and f'"{_KEY}": "{_FIRST}"' in as_text),
        system=shows(_system(_FIRST), _user("a")),
        late_system=all(
            shows(_system(_FIRST), _user("a"), _system(_SECOND), *more) for more in ((), (_assistant("b"), _user("c")))
        ),
    )


def _content_form(render: Render, conversations: tuple[Conversation, ...], known: Mapping[str, ContentForm]) -> ContentForm:
    """The form of content, from the first conversation that the template renders. Messages around have the forms that are
    `known`."""
    for conversation in conversations:

        def ask(content: Any, make: Conversation = conversation) -> str | None:
            return render(_fitted(make(content), known))

        text = _FIRST in (ask(_FIRST) or "")
        part = _shown_in(ask([_part(_FIRST)]), _FIRST)
        both = ask([_part(_FIRST), _part(_SECOND)])
        parts = _shown_in(both, _FIRST, _SECOND)
        if text or part:
            among = {kind: ask([_part(_FIRST), {"type": kind}, _part(_SECOND)]) for kind in MEDIA_TYPES}
            media = {kind for kind, shown in among.items() if parts and shown != both and _shown_in(shown, _FIRST, _SECOND)}
            return ContentForm(text, part, parts, frozenset(media))
    return ContentForm()


def _fitted(conversation: dict[str, Any], known: Mapping[str, ContentForm]) -> dict[str, Any]:
    """The messages with strings in the forms that known roles take. The message in question has a role that is not known
    yet."""
    messages = [
        fit_content(message, known[message["role"]], {}) if message["role"] in known else message
        for message in conversation["messages"]
    ]
    return {**conversation, "messages": messages}


def _shown_in(prompt: str | None, *words: str) -> bool:
    """Whether it has the words, and not because the list that held them was written out."""
    return prompt is not None and all(word in prompt for word in words) and _DUMP.search(prompt) is None


def fit_content(message: dict[str, Any], form: ContentForm, marks: Mapping[str, str]) -> dict[str, Any]:
    """The message with its content as the template takes it. Media that it does not show are written as text: `marks` has
    theirs, by type. Raises UnsupportedError for media without one."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part if part["type"] == "text" or part["type"] in form.media else _written(part, marks) for part in content]
        content = parts if form.parts else _as_text(parts, [part["type"] == "text" for part in content])
    if isinstance(content, str) and form.part and not form.text:
        content = [_part(content)]
    return message if content is message.get("content") else {**message, "content": content}


def _as_text(parts: list[dict[str, Any]], are_texts: list[bool]) -> str:
    """Texts follow one another as they are, as in the templates that take parts; a blank stands between them and what is no text."""
    pieces: list[str] = []
    for i, (part, is_text) in enumerate(zip(parts, are_texts, strict=True)):
        pieces += ["" if i == 0 or (is_text and are_texts[i - 1]) else " ", part["text"]]
    return "".join(pieces)


def _written(part: dict[str, Any], marks: Mapping[str, str]) -> dict[str, Any]:
    mark = marks.get(part["type"])
    if mark is None:
        raise UnsupportedError(f"a part is of type {part['type']!r}, but the chat template takes text only", "messages")
    return _part(mark)


# --- the conversations ------------------------------------------------------------------------------------------------------


def _part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def _assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


_NAME = "toolqx"
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "a",
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "b"}},
            "required": [_KEY],
        },
    },
}


def _after_call(result: Any, arguments: Any) -> dict[str, Any]:
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    told = {"role": "tool", "tool_call_id": call["id"], "name": _NAME, "content": result}
    return {"messages": [_user("a"), {**_assistant(""), "tool_calls": [call]}, told], "tools": [_TOOL]}


_CONVERSATIONS: dict[str, tuple[Conversation, ...]] = {
    "user": (
        lambda c: {"messages": [_user(c)]},
        lambda c: {"messages": [{"role": "system", "content": "a"}, _user(c)]},
    ),
    "assistant": (
        lambda c: {"messages": [_user("a"), _assistant(c), _user("b")]},
        lambda c: {"messages": [_user("a"), _assistant(c)]},
    ),
    "system": (lambda c: {"messages": [{"role": "system", "content": c}, _user("a")]},),
    "developer": (lambda c: {"messages": [{"role": "developer", "content": c}, _user("a")]},),
    "tool": (lambda c: _after_call(c, {_KEY: "a"}), lambda c: _after_call(c, json.dumps({_KEY: "a"}))),
}
"""for each role, conversations to try; around its own message stand those of roles above it"""
