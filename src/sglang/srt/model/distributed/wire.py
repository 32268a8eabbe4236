"""Messages from rank 0 to the others, mostly steps, as bytes: frames of a length and msgpack.

Followers need what the forward pass reads: rows, lengths, slots, and which rows' logits are wanted. They sample no tokens; ids that
rank 0 has sampled but not fetched yet travel between the devices (runner.py). Of the slot table only the changes are sent, and of images
the rows that their encoder computed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

from sglang.srt.forward_batch import EmbedRows, ForwardBatch, Int32Array, PromptLogprobs
from sglang.srt.model.distributed.ranks import Join

_INTS = ("input_ids", "positions", "out_cache_loc", "req_pool_idx", "q_start", "q_len", "seq_lens", "sample_rows")
_OPTIONAL = ("rope_positions", "row_ends", "previous", "row_adapter")


class Bind(msgspec.Struct, tag=True):
    """The table's shape: the first message."""

    num_rows: int
    context_len: int


class Change(msgspec.Struct, array_like=True):
    """table[row, start : start + len(slots)] = slots."""

    row: int
    start: int
    slots: bytes


class Asked(msgspec.Struct, array_like=True):
    """PromptLogprobs."""

    req_idx: int
    row_start: int
    targets: bytes
    top_num: int
    token_ids: tuple[int, ...]


class Rows(msgspec.Struct, array_like=True):
    """EmbedRows, cut out of their embedding: float32 [count, width]."""

    row: int
    count: int
    values: bytes


class Step(msgspec.Struct, tag=True):
    """ForwardBatch without its samples."""

    ints: dict[str, bytes]
    changes: list[Change]
    asked: list[Asked] = []
    rows: list[Rows] = []


class LoadAdapter(msgspec.Struct, tag=True):
    """AdapterStore.load."""

    uid: int
    path: str


class PlaceAdapter(msgspec.Struct, tag=True):
    """AdapterStore.place of one that rank 0 has loaded."""

    uid: int
    slot: int


class ForgetAdapter(msgspec.Struct, tag=True):
    """AdapterStore.forget."""

    uid: int


class End(msgspec.Struct, tag=True):
    """The last message: rank 0 ends. `reason`: what is wrong, if anything is."""

    reason: str = ""


Message = Join | End | Bind | Step | LoadAdapter | PlaceAdapter | ForgetAdapter
_decoder = msgspec.msgpack.Decoder(Message)


def write_frame(stream: IO[bytes], data: bytes) -> None:
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (size,) = struct.unpack("<Q", head)
    data = stream.read(size)
    return data if len(data) == size else None


def encode(message: Message) -> bytes:
    return msgspec.msgpack.encode(message)


def decode(data: bytes) -> Message:
    message: Message = _decoder.decode(data)
    return message


class TableDiff:
    """The table of slots as followers have it."""

    def __init__(self, table: Int32Array) -> None:
        self._table = table
        self._known = np.zeros_like(table)

    def changes(self, rows: Int32Array, lengths: Int32Array) -> list[Change]:
        """Changes that followers need before a step of these rows of the table, each up to its length."""
        found = []
        for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
            different = np.flatnonzero(self._table[row, :length] != self._known[row, :length])
            if len(different):
                start = int(different[0])
                self._known[row, start:length] = self._table[row, start:length]
                found.append(Change(row, start, self._known[row, start:length].tobytes()))
        return found


def pack_step(batch: ForwardBatch, changes: list[Change], fetch: Callable[[Any], npt.NDArray[Any]]) -> Step:
    """`fetch` brings rows of images to the host."""
    ints = {name: getattr(batch, name).tobytes() for name in _INTS}
    for name in _OPTIONAL:
        if (values := getattr(batch, name)) is not None:
            ints[name] = np.ascontiguousarray(values, np.int32).tobytes()
    asked = [Asked(p.req_idx, p.row_start, p.targets.tobytes(), p.top_num, tuple(p.token_ids)) for p in batch.prompt_logprobs]
    rows = [Rows(e.row, e.count, _floats(fetch(e.embedding[e.start : e.start + e.count]))) for e in batch.embeds]
    return Step(ints, changes, asked, rows)


def unpack_step(step: Step, table: Int32Array, width: int, array: Callable[[npt.NDArray[Any]], Any]) -> ForwardBatch:
    """Enters the changes into `table`. `width`: of images' rows, which `array` brings to the device. The batch has no samples,
    as followers sample nothing."""
    for change in step.changes:
        slots = _ints(change.slots)
        table[change.row, change.start : change.start + len(slots)] = slots
    ints: dict[str, Any] = {name: _ints(step.ints[name]) for name in _INTS}
    axes, ends, previous, row_adapter = (step.ints.get(name) for name in _OPTIONAL)
    return ForwardBatch(
        **ints,
        samples=[],
        prompt_logprobs=[PromptLogprobs(a.req_idx, a.row_start, _ints(a.targets), a.top_num, a.token_ids) for a in step.asked],
        embeds=[EmbedRows(r.row, r.count, array(np.frombuffer(r.values, np.float32).reshape(-1, width)), 0) for r in step.rows],
        rope_positions=None if axes is None else _ints(axes).reshape(3, -1),
        row_ends=None if ends is None else _ints(ends),
        previous=None if previous is None else _ints(previous),
        row_adapter=None if row_adapter is None else _ints(row_adapter),
    )


def _ints(data: bytes) -> Int32Array:
    return np.frombuffer(data, np.int32)


def _floats(values: npt.NDArray[Any]) -> bytes:
    return np.ascontiguousarray(values, np.float32).tobytes()
