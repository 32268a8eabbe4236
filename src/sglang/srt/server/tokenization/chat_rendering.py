"""Messages as the model's own template writes them: for clients that send prompts as text (the language) to models whose turns
have no simpler form (chat_roles.py)."""

from __future__ import annotations

from typing import Any

from sglang.srt.errors import RequestError
from sglang.srt.server.fields import Fields, as_bool
from sglang.srt.server.openai.messages import parse_messages
from sglang.srt.server.tokenization.tokenizer import Tokenizer

RENDER_FIELDS = Fields(frozenset({"messages", "add_generation_prompt", "continue_final_message"}), frozenset({"model"}))
_END = "\ufdef"
"""stands where the last message has got to; a noncharacter, never part of real text"""


def render_messages(body: dict[str, Any], tokenizer: Tokenizer, sees: bool, max_chars: int | None = None) -> dict[str, Any]:
    """{messages, add_generation_prompt?, continue_final_message?} -> {"text"}. What a chat request with these messages would have
    the model read; with `continue_final_message`, up to the end of the last one's content, whoever's it is. Raises RequestError.
    """
    raw = body.get("messages")
    if not isinstance(raw, list) or not all(isinstance(message, dict) for message in raw):
        raise RequestError("messages must be a list of objects", "messages")
    messages = parse_messages(raw, tokenizer.chat_template(), [] if sees else None)
    tokenizer.check_asked(messages, max_chars)
    if not as_bool(body, "continue_final_message"):
        asks = as_bool(body, "add_generation_prompt", True)
        return {"text": tokenizer.render_chat(messages, generation_prompt=asks)}
    open_message = {**messages[-1], "content": _with_end(messages[-1].get("content"))}
    text = tokenizer.render_chat([*messages[:-1], open_message], generation_prompt=False)
    head, found, _ = text.rpartition(_END)
    if not found:
        raise RequestError("the chat template leaves out the last message, so it cannot be continued", "continue_final_message")
    return {"text": head}


def _with_end(content: Any) -> Any:
    """A message's content with the mark after it."""
    if not isinstance(content, list):
        return f"{content or ''}{_END}"
    if content and content[-1].get("type") == "text":
        return [*content[:-1], {**content[-1], "text": content[-1]["text"] + _END}]
    return [*content, {"type": "text", "text": _END}]
