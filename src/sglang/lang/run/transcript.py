"""The prompt of a state so far, in two forms: one text, and a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.lang.backend.base import Prompt
from sglang.lang.chat_template import ChatTemplate, Message, ordered_content, text_part
from sglang.lang.ir import Image


class Transcript:
    """Written only by the code that runs the state's expressions; others read `text` and, once the state is idle, `messages`."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.text = ""
        self.messages: list[Message] = []
        self.images: list[Image] = []
        self.role: str | None = None
        self.role_start = 0
        self._role_images: list[Image] = []
        self._turns: list[Message] = []
        self._places: list[int] = []
        """where images stand in text[role_start:]"""

    def copy(self) -> Transcript:
        twin = Transcript(self.template)
        twin.text, twin.role, twin.role_start = self.text, self.role, self.role_start
        twin.messages, twin.images = list(self.messages), list(self.images)
        twin._role_images = list(self._role_images)
        twin._turns, twin._places = list(self._turns), list(self._places)
        return twin

    def prompt(self) -> Prompt:
        """All of it, as a backend sees it."""
        turns, places = tuple(self._turns), tuple(self._places)
        return Prompt(self.text, tuple(self.messages), tuple(self.images), self.role, self.role_start, turns, places)

    def begin_role(self, role: str) -> str:
        """Begins a message and returns the text added: its marker, after the default system message where one is due."""
        start = len(self.text)
        default = self.template.default_system_prompt
        if not self.messages and role != "system" and default is not None:
            self.begin_role("system")
            self.text += default
            self.end_role()
        if self.text[self.role_start :].strip():
            self._end_turn(None)
        prefix, _ = self.template.get_prefix_and_suffix(role, self.messages)
        self.text += prefix
        self._places = []
        self.role, self.role_start, self._role_images = role, len(self.text), []
        return self.text[start:]

    def end_role(self) -> str:
        """Ends the open message and returns the text added."""
        assert self.role is not None
        # the suffix depends on the messages before this one
        _, suffix = self.template.get_prefix_and_suffix(self.role, self.messages)
        content = self.text[self.role_start :].lstrip()
        self._end_turn(self.role)
        self.messages.append(make_message(self.role, content, self._role_images, self.template.image_token))
        self.text += suffix
        self.role, self.role_start, self._role_images, self._places = None, len(self.text), [], []
        return suffix

    def _end_turn(self, role: str | None) -> None:
        content = ordered_content(self.text[self.role_start :], [p - self.role_start for p in self._places], self.template)
        self._turns.append({"role": role, "content": content})

    def add_image(self, image: Image) -> str:
        self.images.append(image)
        self._role_images.append(image)
        self._places.append(len(self.text))
        self.text += self.template.image_token
        return self.template.image_token


def make_message(role: str, content: str, images: Sequence[Image], image_token: str) -> Message:
    """A finished message in OpenAI's format. With images: one text part without their placeholders, then the images; or,
    with several, text and images in the order of the prompt."""
    if not images:
        return {"role": role, "content": content}
    texts = content.split(image_token, len(images))
    if len(images) == 1:
        return {"role": role, "content": [text_part("".join(texts)), _image_part(images[0])]}
    parts: list[dict[str, Any]] = []
    for i, text in enumerate(texts):
        if text:
            parts.append(text_part(text))
        if i < len(images):
            parts.append(_image_part(images[i]))
    return {"role": role, "content": parts}


def _image_part(image: Image) -> dict[str, Any]:
    url = image.data if image.data.startswith(("http://", "https://")) else f"data:{image.mime};base64,{image.data}"
    return {"type": "image_url", "image_url": {"url": url}}
