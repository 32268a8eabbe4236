"""Cross-attention to images: which rows of a step see which, and k and v of those images in their own pool.

    step rows     t t t | p a a a a | b b | ...        t attend to no image, a to the image p, b to another
    rows here           [ p a a a a | b b ]            only rows that attend to an image are computed

For the attention op, a run of rows that attend to the same images is one request: the rows of its images are the sequence, and every
row attends to all of it. A group of images gets pages of the pool when a step first needs it, and the least recently used group loses
them: every request has at most one group in a step, so there are always enough.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sglang.srt.forward_batch import MAX_CROSS_IMAGES, ForwardBatch
from sglang.srt.model.kernels.ops import Array, AttentionMeta, KVLayer, Ops, StepShape
from sglang.srt.model.kernels.transfer import Inputs
from sglang.srt.model.model_config import ModelConfig

BLOCK = 256

Int32 = npt.NDArray[np.int32]


class Shown(Protocol):
    """models.vision.mllama.CrossRows: equal names mean equal values."""

    name: bytes
    kv: Array  # [rows, layers, 2, num_kv_heads * head_dim]


@dataclass
class CrossBuffers:
    """Static arrays of the cross-attention layers. `rows`: of the step, those that attend to an image."""

    memory: CrossMemory
    inputs: Inputs
    rows: Array  # [1]
    head_rows: Array  # [1], rows * num_heads
    take: Array  # [max_rows], the step's row for each row here
    back: Array  # [max_rows], the row here for each of the step's, -1: it sees nothing
    meta: AttentionMeta
    x: Array  # [max_rows, hidden]
    scaled: Array  # [max_rows, hidden]
    q: Array  # [max_rows, num_heads * head_dim]
    normed: Array  # [max_rows, num_heads * head_dim]
    num_heads: int

    def load(self, ops: Ops, batch: ForwardBatch) -> None:
        """Writes the step's inputs; images that are not in the pool are put there."""
        self.inputs.begin()
        host, table = self.inputs.host, self.memory.table
        host["back"][: batch.num_tokens] = -1
        row = group = 0
        lengths: list[int] = []
        parts: list[int] = []
        self.memory.begin_step()
        for seen in batch.cross_rows:
            slots = self.memory.place(seen.embeddings)
            n = len(slots)
            # the op counts a run's rows among its sequence, so a long run is several
            for a in range(0, seen.count, n):
                size = min(n, seen.count - a)
                if (table[group, :n] != slots).any():
                    ops.finish()  # the step before may still read the table
                    table[group, :n] = slots
                host["q_start"][group], host["q_len"][group], host["seq_lens"][group] = row, size, n
                here = np.arange(row, row + size)
                host["take"][row : row + size] = np.arange(seen.row + a, seen.row + a + size)
                host["back"][seen.row + a : seen.row + a + size] = here
                host["row_ends"][row : row + size] = n
                host["req_pool_idx"][group] = group
                lengths.append(n)
                parts.append(size)
                row, group = row + size, group + 1
        host["rows"][0], host["head_rows"][0], host["num_reqs"][0] = row, row * self.num_heads, group
        self.inputs.send()
        ops.sync_table(self.meta.req_to_token, table, np.arange(group, dtype=np.int32), np.array(lengths, np.int32))
        ops.bound(self.rows, row)
        ops.bound(self.head_rows, row * self.num_heads)
        ops.bound_step(self.meta, StepShape(row, group, max(parts, default=0)))


class CrossMemory:
    """Owner of the pool: pages of `ops.slot_run` slots. `place` gives the slots of a group's rows."""

    def __init__(self, ops: Ops, config: ModelConfig, max_reqs: int, max_groups: int) -> None:
        assert config.vision is not None and config.vision.cross_attention is not None
        cross = config.vision.cross_attention
        self._ops, self._run = ops, ops.slot_run
        self._kv_heads, self._width = cross.num_kv_heads, cross.num_kv_heads * cross.head_dim
        per_image = -(-rows_of_image(config) // self._run)
        self.table: Int32 = np.zeros((max_groups, MAX_CROSS_IMAGES * per_image * self._run), np.int32)
        num_pages = max_reqs * MAX_CROSS_IMAGES * per_image
        self.layers: list[KVLayer] = ops.kv_layers(len(cross.layers), num_pages * self._run, cross.num_kv_heads, cross.head_dim)
        self._free = list(range(num_pages))
        self._groups: OrderedDict[tuple[bytes, ...], Int32] = OrderedDict()
        self._needed: set[tuple[bytes, ...]] = set()
        self._qkv = ops.empty((BLOCK, 3 * self._width))
        self._still = ops.array(np.zeros(BLOCK, np.int32))
        self._cos, self._sin = ops.array(np.ones((1, 1), np.float32)), ops.array(np.zeros((1, 1), np.float32))
        self._count = ops.empty((1,), "int32")
        self.num_placed = 0

    def begin_step(self) -> None:
        """Begins a step: pages of earlier steps may be reused."""
        self._needed.clear()

    def place(self, images: Sequence[Shown]) -> Int32:
        """Slots of all rows of these images, in order; position p lies in a slot with the same p % slot_run."""
        name = tuple(image.name for image in images)
        self._needed.add(name)
        if name in self._groups:
            self._groups.move_to_end(name)
            return self._groups[name]
        n = sum(int(image.kv.shape[0]) for image in images)
        pages = np.array(self._take(-(-n // self._run)), np.int32)
        slots: Int32 = (pages[:, None] * self._run + np.arange(self._run, dtype=np.int32)).reshape(-1)[:n].astype(np.int32)
        start = 0
        for image in images:
            size = int(image.kv.shape[0])
            self._store(image.kv, slots[start : start + size])
            start += size
        self._groups[name] = slots
        self.num_placed += 1
        return slots

    def _take(self, count: int) -> list[int]:
        while len(self._free) < count:
            oldest = next(name for name in self._groups if name not in self._needed)
            slots = self._groups.pop(oldest)
            self._free += sorted({int(slot) // self._run for slot in slots})
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def _store(self, kv: Array, slots: Int32) -> None:
        """Stores k and v by the op that rotates and stores; here it rotates by zero, with a q that is not read."""
        for a in range(0, len(slots), BLOCK):
            b = min(a + BLOCK, len(slots))
            at = self._ops.array(np.resize(slots[a:b], BLOCK))
            self._count[0] = b - a
            for i, layer in enumerate(self.layers):
                self._qkv[: b - a, self._width : 2 * self._width] = kv[a:b, i, 0]
                self._qkv[: b - a, 2 * self._width :] = kv[a:b, i, 1]
                self._ops.rope_store(
                    self._qkv, layer, self._still, at, self._count,
                    num_heads=self._kv_heads, cos=self._cos, sin=self._sin, q_scale=1.0,
                )  # fmt: skip


def rows_of_image(config: ModelConfig) -> int:
    """The most rows an image may have."""
    vision = config.vision
    assert vision is not None and vision.cross_attention is not None
    return vision.cross_attention.max_tiles * ((vision.image_size // vision.patch_size) ** 2 + 1)


def cross_bytes_per_request(ops: Ops, config: ModelConfig) -> int:
    """Bytes of the pool for each request that may run; 0 for models without cross-attention."""
    cross = config.vision.cross_attention if config.vision is not None else None
    if cross is None:
        return 0
    slots = MAX_CROSS_IMAGES * -(-rows_of_image(config) // ops.slot_run) * ops.slot_run
    return slots * len(cross.layers) * ops.kv_bytes_per_token(cross.num_kv_heads, cross.head_dim)


def create_cross(ops: Ops, config: ModelConfig, max_rows: int, max_reqs: int) -> CrossBuffers | None:
    """None for models without cross-attention."""
    if config.vision is None or config.vision.cross_attention is None:
        return None
    one_tile = (config.vision.image_size // config.vision.patch_size) ** 2 + 1
    groups = max_reqs + -(-max_rows // one_tile)
    memory = CrossMemory(ops, config, max_reqs, groups)
    of_rows = dict.fromkeys(("take", "back", "row_ends"), max_rows)
    of_groups = dict.fromkeys(("req_pool_idx", "q_start", "q_len", "seq_lens"), groups)
    inputs = ops.inputs({"rows": 1, "head_rows": 1, "num_reqs": 1, **of_rows, **of_groups})
    at: Any = inputs.arrays
    meta = AttentionMeta(
        at["num_reqs"], at["req_pool_idx"], at["q_start"], at["q_len"], at["seq_lens"], ops.table(memory.table), at["row_ends"]
    )
    width = config.num_heads * config.head_dim
    return CrossBuffers(
        memory=memory,
        inputs=inputs,
        rows=at["rows"],
        head_rows=at["head_rows"],
        take=at["take"],
        back=at["back"],
        meta=meta,
        x=ops.empty((max_rows, config.hidden_size)),
        scaled=ops.empty((max_rows, config.hidden_size)),
        q=ops.empty((max_rows, width)),
        normed=ops.empty((max_rows, width)),
        num_heads=config.num_heads,
    )
