"""Responses that are kept, so that a later one can follow them by `previous_response_id`, and for GET /v1/responses/{id}.

Each holds its own input and output; what went before is found by its predecessor's id, so a long conversation is kept once. They
live in memory, belong to the API key that made them, and the ones unused for longest make room for new ones.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from sglang.srt.errors import RequestError
from sglang.srt.server.responses import encode_json

MAX_RESPONSES = 10_000
MAX_BYTES = 128 << 20
"""of all, as JSON"""
MAX_OWN_BYTES = 16 << 20
"""of one"""


class NoSuchResponseError(RequestError):
    status_code = 404
    err_type = "invalid_request_error"


@dataclass(frozen=True)
class StoredResponse:
    """`items`: what this request's `input` said, as a list. `response`: the answer's body. `size`: bytes."""

    owner: str
    items: list[Any]
    response: dict[str, Any]
    size: int

    @property
    def previous(self) -> str | None:
        name: str | None = self.response["previous_response_id"]
        return name


class ResponseStore:
    """Owner of all of them. Everything runs on one event loop."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._responses)

    @property
    def num_bytes(self) -> int:
        return self._bytes

    def put(self, owner: str, items: list[Any], response: dict[str, Any]) -> None:
        """Keeps a response that has ended; the oldest go when there is no room."""
        size = len(encode_json(items)) + len(encode_json(response))
        self._responses[response["id"]] = StoredResponse(owner, items, response, size)
        self._bytes += size
        while self._responses and (self._bytes > self._max_bytes or len(self._responses) > self._max_responses):
            _, oldest = self._responses.popitem(last=False)
            self._bytes -= oldest.size

    def get(self, name: str, owner: str) -> StoredResponse:
        """Raises NoSuchResponseError."""
        found = self._responses.get(name)
        if found is None or found.owner != owner:
            raise NoSuchResponseError(f"there is no response {name[:100]!r}; it may have been deleted, or made room for others")
        return found

    def delete(self, name: str, owner: str) -> None:
        """Raises NoSuchResponseError."""
        self._bytes -= self.get(name, owner).size
        del self._responses[name]

    def history(self, name: str | None, owner: str) -> tuple[list[Any], int]:
        """Inputs and outputs of a response and all before it, oldest first, and their bytes. Raises RequestError if one of them
        is not there."""
        chain: list[tuple[str, StoredResponse]] = []
        while name is not None:
            try:
                found = self.get(name, owner)
            except NoSuchResponseError as error:
                raise RequestError(f"previous_response_id: {error}", "previous_response_id") from error
            chain.append((name, found))
            name = found.previous
        for used, _ in reversed(chain):  # a conversation that goes on is kept whole
            self._responses.move_to_end(used)
        items = [item for _, found in reversed(chain) for item in (*found.items, *found.response["output"])]
        return items, sum(found.size for _, found in chain)
