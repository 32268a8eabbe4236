"""Finds the prefix and suffix of each role in a chat template, for clients that write prompts turn by turn (the language).

A template is a program; it is run on conversations of markers, and the text between the markers is extracted:

    <|im_start|>system\\nS<|im_end|>\\n<|im_start|>user\\nU<|im_end|>\\n<|im_start|>assistant\\nA<|im_end|>\\n
    [     prefix     ] [  suffix  ][    prefix    ] ...

The result is verified on a longer conversation, and for vision-language models on one with images. A template that does not work turn by
turn has no such form.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.errors import RequestError
from sglang.srt.server.tokenization.tokenizer import Tokenizer

_MARKS = {"system": "\ufdd0S", "user": "\ufdd0U", "assistant": "\ufdd0A"}

Roles = dict[str, tuple[str, str]]


def chat_roles(tokenizer: Tokenizer, image_token: str | None = None) -> dict[str, Any] | None:
    """{"default_system_prompt", "roles": {role: [prefix, suffix]}, "stop", "image_token"}; `roles` is None where there is no such
    form, and messages are rendered one conversation at a time (/apply_chat_template). None without a template."""
    if not tokenizer.has_chat_template:
        return None
    without: dict[str, Any] = {"default_system_prompt": None, "roles": None, "stop": [], "image_token": image_token}
    try:
        roles = _roles(tokenizer)
        if roles is None or not _holds(tokenizer, roles):
            return without
        default = _default_system(tokenizer, roles)
        if image_token is not None and not _shows(tokenizer, roles, default, image_token):
            return without
    except RequestError:
        return without  # it refuses such conversations
    end = roles["assistant"][1].rstrip("\n")
    told: dict[str, Any] = {"default_system_prompt": default, "roles": {role: list(pair) for role, pair in roles.items()}}
    return told | {"stop": list(dict.fromkeys(([end] if end else []) + [*tokenizer.chat_stops])), "image_token": image_token}


def _render(tokenizer: Tokenizer, *roles: str, ask: bool = False) -> str:
    messages = [{"role": role, "content": _MARKS[role]} for role in roles]
    return tokenizer.render_chat(messages, generation_prompt=ask)


def _between(text: str, *roles: str) -> list[str]:
    """The texts before, between and after the marks of these roles, in this order. Raises RequestError for a missing mark."""
    found: list[str] = []
    for role in roles:
        before, mark, text = text.partition(_MARKS[role])
        if not mark:
            raise RequestError("the chat template leaves out a message")
        found.append(before)
    return [*found, text]


def _roles(tokenizer: Tokenizer) -> Roles | None:
    first = _between(_render(tokenizer, "system", "user"), "system", "user")
    asked = _between(_render(tokenizer, "system", "user", ask=True), "system", "user")
    three = _between(_render(tokenizer, "system", "user", "assistant"), "system", "user", "assistant")
    user_suffix = first[2]
    if not asked[2].startswith(user_suffix) or three[2] != asked[2]:
        return None
    system_suffix = _between(_render(tokenizer, "system"), "system")[1]
    if not first[1].startswith(system_suffix):
        return None
    return {
        "system": (first[0], system_suffix),
        "user": (first[1][len(system_suffix) :], user_suffix),
        "assistant": (asked[2][len(user_suffix) :], three[3]),
    }


def _write(roles: Roles, *names: str) -> str:
    return "".join(roles[name][0] + _MARKS[name] + roles[name][1] for name in names)


def _holds(tokenizer: Tokenizer, roles: Roles) -> bool:
    names = ("system", "user", "assistant", "user")
    return _write(roles, *names) + roles["assistant"][0] == _render(tokenizer, *names, ask=True)


def _shows(tokenizer: Tokenizer, roles: Roles, default: str | None, image_token: str) -> bool:
    """Whether images stand where the message has them, and change nothing around them. (Where a template shows none, the
    text for one is written into the message.)"""
    if "image" not in tokenizer.chat_template().forms.of_role("user").media:
        return True
    image, mark = {"type": "image"}, {"type": "text", "text": _MARKS["user"]}
    asked, begun = roles["user"][0], roles["user"][1] + roles["assistant"][0]
    for parts in ([image, mark], [mark, image, mark, image]):
        user = {"role": "user", "content": parts}
        shown = "".join(image_token if part is image else _MARKS["user"] for part in parts)
        told = "" if default is None else roles["system"][0] + default + roles["system"][1]
        if tokenizer.render_chat([user]) != told + asked + shown + begun:
            return False
        system = {"role": "system", "content": [{"type": "text", "text": _MARKS["system"]}]}
        if tokenizer.render_chat([system, user]) != _write(roles, "system") + asked + shown + begun:
            return False
    return True


def _default_system(tokenizer: Tokenizer, roles: Roles) -> str | None:
    """The template's own system message, for messages without one. Raises RequestError if it has another form."""
    before = _between(_render(tokenizer, "user"), "user")[0]
    user_prefix, (prefix, suffix) = roles["user"][0], roles["system"]
    if before == user_prefix:
        return None
    tail = suffix + user_prefix
    if not before.startswith(prefix) or not before.endswith(tail) or len(before) < len(prefix) + len(tail):
        raise RequestError("the chat template begins in its own form")
    return before[len(prefix) : len(before) - len(tail)]
