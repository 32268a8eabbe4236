"""Bytes of one image or video, and their limit for a request."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.errors import RequestError
from sglang.srt.server.limits.shares import Budget

MAX_SHOWN = 80


@dataclass(frozen=True)
class Fetched:
    """Bytes and what they were said to be; `label` names the source in error messages."""

    data: bytes | bytearray
    label: str
    content_type: str | None = None


class Allowance:
    """The byte limit of all media of one request: at most `limit` bytes, which all requests together hold in `budget` until
    `close`."""

    def __init__(self, limit: int, budget: Budget, client: str) -> None:
        self.limit = limit
        self._budget = budget
        self._client = client
        self._taken = 0

    def check(self, size: int, label: str) -> None:
        """Raises RequestError if `size` bytes more are too many, before they are there."""
        if self._taken + size > self.limit:
            raise RequestError(
                f"{label} has too many bytes: at most {self.limit} are allowed for all images and videos of a request together "
                "(--max-media-bytes)"
            )

    def take(self, size: int, label: str) -> None:
        """Enters bytes that are held from now on. Raises RequestError, or OverloadError if the server holds too many."""
        self.check(size, label)
        self._budget.take(self._client, size)
        self._taken += size

    def close(self) -> None:
        """The bytes are gone."""
        if self._taken:
            self._budget.give_back(self._client, self._taken)
        self._taken = 0


def shorten(source: str) -> str:
    """A source as it may be shown in a message."""
    return source if len(source) <= MAX_SHOWN else source[: MAX_SHOWN - 3] + "..."
