"""Conversations as prompts, by the templates that the language knows and those that programs register."""

from __future__ import annotations

import copy as copy_module
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from sglang.lang.chat_template import ChatTemplate, get_chat_template, get_chat_template_by_model_path, template_names
from sglang.srt.server.tokenization.named_templates import STYLES

ROLES = ("user", "assistant")
_SYSTEM = "{system_message}"


SeparatorStyle = Enum(
    "SeparatorStyle",
    "ADD_COLON_SINGLE ADD_COLON_TWO ADD_COLON_SPACE_SINGLE NO_COLON_SINGLE NO_COLON_TWO ADD_NEW_LINE_SINGLE LLAMA2 LLAMA3 LLAMA4 CHATGLM "
    "CHATML CHATINTERN DOLLY RWKV PHOENIX ROBIN FALCON_CHAT CHATGLM3 DEEPSEEK_CHAT METAMATH DeepSeekVL2 QWEN2_VL_EMBED QWEN2_AUDIO "
    "GEMMA3 MPT",
)
"""how a conversation is written; `Conversation` says which of them it follows"""


class Conversation:
    """Messages of one conversation. A last message without text is the one that the model is to write.

    Made from words and separators as the original's are, or by `of` from a template. Raises ValueError for a style that is not
    followed.
    """

    def __init__(
        self,
        name: str,
        system_template: str = _SYSTEM,
        system_message: str = "",
        roles: Sequence[str] = ("USER", "ASSISTANT"),
        messages: Sequence[Sequence[str | None]] = (),
        offset: int = 0,
        sep_style: SeparatorStyle = SeparatorStyle.ADD_COLON_SINGLE,
        sep: str = "\n",
        sep2: str | None = None,
        stop_str: str | Sequence[str] | None = None,
        image_token: str = "<image>",
        audio_token: str = "<audio>",
    ) -> None:
        style = STYLES.get(sep_style.name)
        if style is None:
            raise ValueError(f"conversations in the style {sep_style.name} are not written here, only in {', '.join(STYLES)}")
        before, found, after = system_template.partition(_SYSTEM)
        if not found:
            raise ValueError(f"the system_template {system_template!r} has no {_SYSTEM}")
        markers, opening = style.markers({"user": roles[0], "assistant": roles[1]}, sep, sep2)
        self._opening: str | None = opening
        markers["system"] = (before, after + style.system_end.replace("SEP", sep))
        usual = None if style.silent and not system_message else system_message
        stops = (stop_str,) if isinstance(stop_str, str) else tuple(stop_str or ())
        self.template = ChatTemplate(name, usual, markers, stops, image_token, audio_token)
        self._trims = style.trims
        self.roles = (roles[0], roles[1])
        self.offset = offset
        self.system_message: str | None = system_message or None
        self.messages: list[list[str | None]] = [list(message) for message in messages]
        self.image_data: list[Any] = []
        self.video_data: list[Any] = []

    @classmethod
    def of(cls, template: ChatTemplate) -> Conversation:
        """An empty conversation in a template of the language."""
        conversation = cls(template.name, roles=ROLES)
        conversation.template, conversation._trims = template, False
        conversation._opening = None
        return conversation

    @property
    def name(self) -> str:
        return self.template.name

    @property
    def image_token(self) -> str:
        """The placeholder of an image in a message."""
        return self.template.image_token

    @property
    def stop_str(self) -> list[str]:
        """The texts that end the model's turn."""
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
        return self.template.get_prompt(done[:-1]) + (prefix if self._opening is None else self._opening)

    def _conversation(self) -> list[dict[str, Any]]:
        has_default = self.template.default_system_prompt is not None
        system = [{"role": "system", "content": self.system_message}] if self.system_message is not None or has_default else []
        names = dict(zip(self.roles, ROLES, strict=True))
        texts = [(role, text.strip() if text and self._trims else text) for role, text in self.messages]
        return system + [{"role": names.get(role or "", role), "content": text} for role, text in texts]

    def to_openai_api_messages(self) -> list[dict[str, Any]]:
        """The messages in OpenAI's format."""
        return [message for message in self._conversation() if message["content"]]

    def copy(self) -> Conversation:
        """Another conversation that begins with the same messages."""
        other = copy_module.copy(self)
        other.messages = copy_module.deepcopy(self.messages)
        other.image_data, other.video_data = list(self.image_data), list(self.video_data)
        return other


_registered: dict[str, Conversation] = {}


class _Templates(Mapping[str, Conversation]):
    """An empty conversation for each template, and what programs have registered."""

    def __getitem__(self, name: str) -> Conversation:
        return _registered[name].copy() if name in _registered else Conversation.of(get_chat_template(name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*template_names(), *_registered)))

    def __len__(self) -> int:
        return len({*template_names(), *_registered})


chat_templates: Mapping[str, Conversation] = _Templates()


def chat_template_exists(template_name: str) -> bool:
    return template_name in {*chat_templates}


def register_conv_template(template: Conversation, override: bool = False) -> None:
    """Adds a conversation to `chat_templates`, in this process. Raises ValueError if its name is there and `override` is not given."""
    if not override and chat_template_exists(template.name):
        raise ValueError(f"there is a template named {template.name!r} already: override=True replaces it")
    _registered[template.name] = template.copy()


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
            conversation.append_message(conversation.roles[ROLES.index(role)], text)
        else:
            raise ValueError(f"a message of role {role!r} has no place in a template of the language")
    conversation.append_message(conversation.roles[1], None)
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
