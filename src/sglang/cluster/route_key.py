"""What the choice of a replica needs to know of a request: which prompt it is, and how much work. Read from its body, without a tokenizer.

Prompts that begin with the same bytes begin with the same blocks; a tool, a system prompt or an image that differs makes others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sglang.cluster.policy import BLOCK_IDS, block_hashes

BLOCK_BYTES = 256
"""of a prompt's JSON; about BLOCK_IDS tokens of English"""
MAX_BLOCKS = 2048
MOST = MAX_BLOCKS * BLOCK_BYTES
MAX_PARSED = 512 << 10
"""bytes of a body, up to which it is parsed; of a longer one, its own beginning stands for that of its prompt: to parse it would hold
the event loop, and what it is made of has not been counted yet"""
SEEDS = ("model", "lora_path", "cache_salt", "extra_key")
"""what keeps equal prompts apart"""
PARTS = ("tools", "system", "instructions", "messages", "prompt", "text", "input", "input_ids", "image_data")
"""where prompts stand, in the order in which they become one"""
LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
USUAL_LENGTH = 1024

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True)
class RouteKey:
    """`blocks`: chained digests of the prompt (policy.block_hashes). `prompt_len`, `max_new_tokens`: estimates in tokens."""

    blocks: tuple[bytes, ...] = ()
    prompt_len: int = 1
    max_new_tokens: int = USUAL_LENGTH

    def as_dict(self) -> dict[str, Any]:
        return {"blocks": list(self.blocks), "prompt_len": self.prompt_len, "max_new_tokens": self.max_new_tokens}


def route_key(pieces: Sequence[bytes | bytearray]) -> RouteKey:
    """That of a body, which has come in pieces; of one that is no JSON object an empty one."""
    length = sum(map(len, pieces))
    if length > MAX_PARSED:
        begin = b"".join(memoryview(piece)[:MOST] for piece in itertools.islice(pieces, MAX_BLOCKS))[:MOST]
        return RouteKey(tuple(block_hashes([], _cut(begin))), length * BLOCK_IDS // BLOCK_BYTES)
    body = b"".join(pieces)
    try:
        fields = _fields(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return RouteKey()
    seed = [bytes(fields[name]) if name in fields else b"" for name in SEEDS]
    text = b"".join(bytes(fields[name]) for name in PARTS if name in fields)
    blocks = block_hashes(seed, _cut(text))
    return RouteKey(tuple(blocks), max(len(text) * BLOCK_IDS // BLOCK_BYTES, 1), _length(fields))


def _cut(text: bytes) -> Iterator[bytes]:
    """The last one is shorter: a prompt of any length that comes again is the same one."""
    count = min(-(-len(text) // BLOCK_BYTES), MAX_BLOCKS)
    return (text[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] for i in range(count))


def _length(fields: dict[str, msgspec.Raw]) -> int:
    found = [fields[name] for name in LENGTHS if name in fields]
    try:
        if "sampling_params" in fields:
            params = _fields(fields["sampling_params"])
            found += [params[name] for name in ("max_new_tokens",) if name in params]
        return min(max(msgspec.json.decode(found[0], type=int), 1), 1 << 20) if found else USUAL_LENGTH
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return USUAL_LENGTH
