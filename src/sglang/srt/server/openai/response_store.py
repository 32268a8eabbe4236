"""Responses that are kept, so that a later one can follow them by `previous_response_id`, and for GET /v1/responses/{id}.

Each holds its own input and output; what went before is found by its predecessor's id, so a long conversation is kept once. They
live in memory as JSON (as objects they would take many times the room), belong to the API key that made them, and the ones unused
for longest make room for new ones.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

from sglang.srt.errors import RequestError
from sglang.srt.server.json_pieces import encode_json

decode = msgspec.json.Decoder().decode

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
    """`items`: what this request's `input` said, as a list; `response`: the answer's body; both as JSON. `previous`: the response that
    it follows."""

    owner: str
    items: bytes
    response: bytes
    previous: str | None

    @property
    def size(self) -> int:
        return len(self.items) + len(self.response)


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
        stored = StoredResponse(owner, encode_json(items), encode_json(response), response["previous_response_id"])
        self._responses[response["id"]] = stored
        self._bytes += stored.size
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
        items: list[Any] = []
        for _, found in reversed(chain):
            items += [*decode(found.items), *decode(found.response)["output"]]
        return items, sum(found.size for _, found in chain)
