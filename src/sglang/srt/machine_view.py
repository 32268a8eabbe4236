"""Parts of what viewers of the machine are told (messages.ViewDelta)."""

from __future__ import annotations

import msgspec


class NodeView(msgspec.Struct, frozen=True, array_like=True):
    """A node of the prefix tree. `parent` of the first nodes of a tree is a node that is never told: its root. `ids`: the first ones."""

    id: int
    parent: int
    start: int
    length: int
    is_locked: bool
    num_hits: int
    """requests that found it in the cache"""
    ids: list[int]


class StepView(msgspec.Struct, frozen=True, array_like=True):
    """The rows of one step, by what they are for, and how long it was after the one before, in seconds."""

    num_decode: int
    num_prompt: int
    num_forced: int
    num_draft: int
    num_accepted: int
    """draft tokens that came out as sampled, and what was forced after them"""
    seconds: float
