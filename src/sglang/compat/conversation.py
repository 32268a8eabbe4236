"""Conversations as prompts, by the templates that the language knows."""

from __future__ import annotations

import copy as copy_module
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang.lang.chat_template import ChatTemplate, get_chat_template, get_chat_template_by_model_path, template_names

ROLES = ("user", "assistant")


@dataclass
class Conversation:
    """Messages of one conversation. A last message without text is the one that the model is to write."""

    template: ChatTemplate
    system_message: str | None = None
    messages: list[list[str | None]] = field(default_factory=list)
    image_data: list[Any] = field(default_factory=list)
    video_data: list[Any] = field(default_factory=list)
    roles: tuple[str, str] = ROLES

    @property
    def name(self) -> str:
        return self.template.name

    @property
    def image_token(self) -> str:
        """What stands for an image in a message."""
        return self.template.image_token

    @property
    def stop_str(self) -> list[str]:
        """What ends the model's turn."""
        return list(self.template.stop_str)

    def set_system_message(self, system_message: str) -> None:
        self.system_message = system_message

    def append_message(self, role: str, message: str | None) -> None:
        """`role`: one of `roles`."""
        self.messages.append([role, message])

    def update_last_message(self, message: str) -> None:
        self.messages[-1][1] = message

    def append_image(self, image: Any, detail: str | None = None) -> None:
        """An image for the next place where `image_token` stands."""
        self.image_data.append(image)

    def append_video(self, video: Any) -> None:
        self.video_data.append(video)

    def get_prompt(self) -> str:
        """The text that the model continues."""
        done = self._conversation()
        is_open = bool(done) and done[-1]["role"] == "assistant" and not done[-1]["content"]
        if not is_open:
            return self.template.get_prompt(done)
        prefix, _ = self.template.get_prefix_and_suffix("assistant", done[:-1])
        return self.template.get_prompt(done[:-1]) + prefix

    def _conversation(self) -> list[dict[str, Any]]:
        has_default = self.template.default_system_prompt is not None
        system = [{"role": "system", "content": self.system_message}] if self.system_message is not None or has_default else []
        return system + [{"role": role, "content": text} for role, text in self.messages]

    def to_openai_api_messages(self) -> list[dict[str, Any]]:
        """The messages in OpenAI's format."""
        return [message for message in self._conversation() if message["content"]]

    def copy(self) -> Conversation:
        """Another conversation that begins with the same messages."""
        return Conversation(
            self.template,
            self.system_message,
            copy_module.deepcopy(self.messages),
            list(self.image_data),
            list(self.video_data),
        )


class _Templates(Mapping[str, Conversation]):
    """An empty conversation for each template."""

    def __getitem__(self, name: str) -> Conversation:
        return Conversation(get_chat_template(name))

    def __iter__(self) -> Iterator[str]:
        return iter(template_names())

    def __len__(self) -> int:
        return len(template_names())


chat_templates: Mapping[str, Conversation] = _Templates()


def chat_template_exists(template_name: str) -> bool:
    return template_name in template_names()


def get_conv_template_by_model_path(model_path: str) -> str | None:
    """The name of the template of a model; None if nothing is known of it."""
    name = get_chat_template_by_model_path(model_path).name
    return None if name == "default" else name


def generate_chat_conv(request: Any, template_name: str) -> Conversation:
    """The conversation of a chat request (an object or a dict with `messages`), open for the model's turn."""
    conversation = chat_templates[template_name].copy()
    for message in _get(request, "messages"):
        role, content = _get(message, "role"), _get(message, "content")
        text = content if isinstance(content, str) or content is None else _text_of(content, conversation)
        if role in ("system", "developer"):
            conversation.set_system_message(text or "")
        elif role in ROLES:
            conversation.append_message(role, text)
        else:
            raise ValueError(f"a message of role {role!r} has no place in a template of the language")
    conversation.append_message("assistant", None)
    return conversation


def _get(thing: Any, name: str) -> Any:
    return thing[name] if isinstance(thing, Mapping) else getattr(thing, name)


def _text_of(parts: Sequence[Any], conversation: Conversation) -> str:
    """The text of a message's parts, with marks where its images are."""
    text = ""
    media: dict[str, Callable[[Any], None]] = {"image_url": conversation.append_image, "video_url": conversation.append_video}
    for part in parts:
        kind = _get(part, "type")
        if kind == "text":
            text += _get(part, "text")
        elif kind in media:
            media[kind](_get(_get(part, kind), "url"))
            text += conversation.image_token
        else:
            raise ValueError(f"a part of type {kind!r} cannot stand in a message")
    return text
