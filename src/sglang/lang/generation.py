"""The output of a model for one gen: whole, or streamed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Meta = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Generation:
    """Result of one gen: n texts, and what is known about each."""

    texts: list[str]
    metas: list[Meta] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Delta:
    """A streamed piece: new text of sample `index`, and the meta data so far."""

    text: str
    meta: Meta
    index: int = 0
