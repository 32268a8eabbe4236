"""`truncation: auto`: the oldest turns of a conversation are left out until its prompt fits.

system   user assistant user assistant   user assistant tool
kept     left out                        kept: from a user's message on, so that no result is without its call
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from sglang.srt.server.openai.chat import ChatCall

Message = dict[str, Any]


def longest_fitting(
    messages: list[Message], make: Callable[[list[int]], ChatCall], max_tokens: int, max_chars: int
) -> ChatCall:
    """The chat with as many of the messages as make a prompt of at most `max_tokens`; where none do, that with the fewest. `make`:
    the chat of the messages with these indices. Raises RequestError."""
    cuts = _cuts(messages)
    calls: dict[int, ChatCall] = {}

    def fits(cut: int) -> bool:
        if sum(_num_chars(messages[i]) for i in cuts[cut]) > max_chars:
            return False
        calls[cut] = make(cuts[cut])
        return len(calls[cut].req.input_ids or ()) <= max_tokens

    last = len(cuts) - 1
    chosen = 0 if last == 0 or fits(0) else bisect_left(range(last), True, lo=1, key=fits)
    return calls.get(chosen) or make(cuts[chosen])


def _cuts(messages: list[Message]) -> list[list[int]]:
    """Ends of the conversation that may be kept, the longest first."""
    num_first = next((i for i, message in enumerate(messages) if message.get("role") not in ("system", "developer")), 0)
    starts = [num_first, *(i for i, message in enumerate(messages) if i > num_first and message.get("role") == "user")]
    return [[*range(num_first), *range(start, len(messages))] for start in starts]


def _num_chars(message: Message) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return sum(len(text) for text in texts if isinstance(text, str))
