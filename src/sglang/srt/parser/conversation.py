"""A path of the original: see sglang.compat.conversation."""

from __future__ import annotations

from sglang.compat.conversation import (
    Conversation,
    SeparatorStyle,
    chat_template_exists,
    chat_templates,
    generate_chat_conv,
    get_conv_template_by_model_path,
    register_conv_template,
)

__all__ = [
    "Conversation",
    "SeparatorStyle",
    "chat_template_exists",
    "chat_templates",
    "generate_chat_conv",
    "get_conv_template_by_model_path",
    "register_conv_template",
]
