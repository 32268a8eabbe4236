"""Stores responses, for `previous_response_id` and GET /v1/responses/{id}.

Each holds its own input and output; earlier turns are found by its predecessor's id, so a long conversation is stored once. They are in
memory as JSON (as objects they would be many times larger) and belong to the API key that created them. When space is needed, the client
that holds most loses its least recently used responses: nobody loses theirs to a client that stores without end.

A request that continues a response is small, however long the conversation is: so the history that the server reads for it is limited by
MAX_HISTORY_BYTES and counted once, and of each response only the output is read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from sglang.srt.errors import NoSuchResponseError, RequestError
from sglang.srt.server.http.json_pieces import Encoded, encode_json, json_pieces
from sglang.srt.server.limits.json_limits import CHUNK, JsonScan, Pieces
from sglang.srt.server.limits.json_reader import JsonReader

decode = msgspec.json.Decoder().decode

MAX_RESPONSES = 10_000
MAX_BYTES = 128 << 20
"""of all, as JSON"""
MAX_OWN_BYTES = 16 << 20
"""of one"""
MAX_HISTORY_BYTES = 16 << 20
"""of inputs and outputs that stand before a request, as JSON"""


@dataclass(frozen=True)
class StoredResponse:
    """`items`: what this request's `input` said, as a list; `response`: the answer's body; `output`: a part of that; all as JSON.
    `previous`: the response that it follows. `output_ids`: of the answer's items."""

    items: bytes
    response: bytes
    output: bytes
    previous: str | None
    output_ids: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.items) + len(self.response) + len(self.output)

    @property
    def history_size(self) -> int:
        """Bytes that are read for a request that follows it."""
        return len(self.items) + len(self.output)

    @cached_property
    def scan(self) -> JsonScan:
        """The size of these values once they are read. Raises RequestError if it is too large."""
        return JsonScan().read(self.items).read(self.output)


class _Shelf:
    """The stored responses of one client, least recently used first."""

    def __init__(self) -> None:
        self.responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self.outputs: dict[str, str] = {}
        """names of responses by the ids of their output's items"""
        self.num_bytes = 0

    def add(self, name: str, stored: StoredResponse) -> None:
        self.responses[name] = stored
        self.outputs.update(dict.fromkeys(stored.output_ids, name))
        self.num_bytes += stored.size

    def remove(self, name: str) -> None:
        stored = self.responses.pop(name)
        for output_id in stored.output_ids:
            del self.outputs[output_id]
        self.num_bytes -= stored.size


class ResponseStore:
    """Owner of all of them, a shelf for each client (RequestScope.key). Everything runs on one event loop."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._shelves: dict[str, _Shelf] = {}

    def __len__(self) -> int:
        return sum(len(shelf.responses) for shelf in self._shelves.values())

    @property
    def num_bytes(self) -> int:
        return sum(shelf.num_bytes for shelf in self._shelves.values())

    def put(self, owner: str, items: list[Any], response: dict[str, Any]) -> None:
        """Keeps a response that has ended."""
        ids = tuple(item["id"] for item in response["output"])
        output = b"".join(json_pieces(response["output"]))
        whole = b"".join(json_pieces({**response, "output": Encoded([output])}))
        stored = StoredResponse(encode_json(items), whole, output, response["previous_response_id"], ids)
        self.enter(owner, response["id"], stored)
        self.kept(owner, response["id"], stored)

    def enter(self, owner: str, name: str, stored: StoredResponse) -> None:
        """Puts it into memory; others make room."""
        self._shelves.setdefault(owner, _Shelf()).add(name, stored)
        while self.num_bytes > self._max_bytes:
            self._make_room(lambda shelf: shelf.num_bytes)
        while len(self) > self._max_responses:
            self._make_room(lambda shelf: len(shelf.responses))

    def kept(self, owner: str, name: str, stored: StoredResponse) -> None:
        """One was put that had not been there (response_disk.py)."""

    async def fetch(self, name: str | None, owner: str) -> None:
        """Makes sure that memory has what there is of this response and of those before it."""

    async def fetch_referred(self, items: object, owner: str) -> None:
        """The same of the responses that items refer to."""

    async def settled(self) -> None:
        """Until what was put last is kept wherever it is to be."""

    def peek(self, name: str, owner: str) -> StoredResponse | None:
        shelf = self._shelves.get(owner)
        return shelf.responses.get(name) if shelf is not None else None

    def drop(self, name: str, owner: str) -> None:
        """Takes it out of memory."""
        self._shelves[owner].remove(name)

    def close(self) -> None:
        """The server ends."""

    def _make_room(self, held: Callable[[_Shelf], int]) -> None:
        """Drops the oldest response of the client that holds most."""
        shelf = max(self._shelves.values(), key=held)
        shelf.remove(next(iter(shelf.responses)))

    def get(self, name: str, owner: str) -> StoredResponse:
        """Raises NoSuchResponseError."""
        shelf = self._shelves.get(owner)
        found = shelf.responses.get(name) if shelf is not None else None
        if found is None:
            raise NoSuchResponseError(f"there is no response {name[:100]!r}; it may have been deleted, or made room for others")
        return found

    def delete(self, name: str, owner: str) -> None:
        """Raises NoSuchResponseError."""
        self.get(name, owner)
        self.drop(name, owner)

    async def forget(self, name: str, owner: str) -> None:
        """Deletes it wherever it is kept. Raises NoSuchResponseError."""
        self.delete(name, owner)

    def chain(self, name: str | None, owner: str) -> list[StoredResponse]:
        """A response and all before it, oldest first. Raises RequestError if one of them is not there."""
        chain: list[tuple[str, StoredResponse]] = []
        while name is not None:
            try:
                found = self.get(name, owner)
            except NoSuchResponseError as error:
                raise RequestError(f"previous_response_id: {error}", "previous_response_id") from error
            chain.append((name, found))
            name = found.previous
        for used, _ in reversed(chain):  # a conversation that goes on is kept whole
            self._shelves[owner].responses.move_to_end(used)
        return [found for _, found in reversed(chain)]

    def referred(self, items: Any, owner: str) -> dict[str, StoredResponse]:
        """The responses that hold what the items of a request's input refer to, by its id. Raises RequestError if one is not there,
        or is referred to twice."""
        found: dict[str, StoredResponse] = {}
        shelf = self._shelves.get(owner, _Shelf())
        for i, item in enumerate(items if isinstance(items, list) else ()):
            if not _is_reference(item):
                continue
            name = item.get("id")
            if not isinstance(name, str) or name not in shelf.outputs:
                raise RequestError(
                    f"input[{i}] refers to an item {str(name)[:100]!r} that is not stored: send the item itself", "input"
                )
            if name in found:
                raise RequestError(f"input[{i}] refers to the item {name!r} once more", "input")
            found[name] = shelf.responses[shelf.outputs[name]]
            shelf.responses.move_to_end(shelf.outputs[name])
        return found


def reference_ids(items: Any) -> list[str]:
    """The names of items that an input refers to."""
    found = [item.get("id") for item in items if _is_reference(item)] if isinstance(items, list) else []
    return [name for name in found if isinstance(name, str)]


def _is_reference(item: Any) -> bool:
    """Its type may be left out."""
    return isinstance(item, dict) and (item.get("type") == "item_reference" or ("id" in item and item.keys() <= {"id", "type"}))


def with_referred(items: list[Any], found: dict[str, StoredResponse]) -> list[Any]:
    """An input whose references are replaced by what ResponseStore.referred has found. Raises RequestError for more than one body
    may hold."""
    stored = list({id(response): response for response in found.values()}.values())
    _check_size(stored)
    outputs = {item["id"]: item for response in stored for item in read_json(response.output)}
    return [outputs[item["id"]] if _is_reference(item) else item for item in items]


def history_of(chain: list[StoredResponse]) -> list[Any]:
    """Inputs and outputs of stored responses. Raises RequestError for more than a request may follow."""
    _check_size(chain)
    items: list[Any] = []
    for found in chain:
        items += [*read_json(found.items), *read_json(found.output)]
    return items


def _check_size(chain: list[StoredResponse]) -> None:
    """Raises RequestError for more than may be read again for one request."""
    size = sum(found.history_size for found in chain)
    if size > MAX_HISTORY_BYTES:
        raise RequestError(
            f"previous_response_id: the conversation before has {size} bytes, and at most {MAX_HISTORY_BYTES} are read again",
            "previous_response_id",
        )
    JsonScan.check_sum(found.scan for found in chain)


def read_json(data: bytes) -> Any:
    """Reads a stored value from its JSON; piece by piece if it is long."""
    if len(data) <= CHUNK:
        return decode(data)
    body = Pieces([b'{"it":', *(data[at : at + CHUNK] for at in range(0, len(data), CHUNK)), b"}"])
    return JsonReader(body, lambda name: True, lambda name: None).read()["it"]
