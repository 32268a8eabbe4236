"""What adapters add to a linear layer: right, batch-invariant, and the same on any number of threads and on a tape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels.low_rank import ADAPTER_TILE, LowRank, RowAdapters, group_rows, row_adapter_sizes
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.op_tape import OpTape

from .support import Float, close, ints, quantized, same_bits, tensor

SLOTS, MAX_RANK = 9, 40
WIDTHS = {"qkv": (48, 16, 24), "one": (70,), "gate_up": (96, 96)}


def parts_of(slot: int, k: int, widths: tuple[int, ...]) -> list[LowRank | None]:
    """Of one adapter: ranks differ, and some matrices are left alone."""
    rng = np.random.default_rng([slot, k])
    found: list[LowRank | None] = []
    for i, width in enumerate(widths):
        rank = (1, 16, 17, 40, 8)[(slot + i) % 5]
        a, b = rng.standard_normal((rank, k), np.float32), rng.standard_normal((width, rank), np.float32)
        half = [values.astype(np.float16).astype(np.float32) * np.float32(size) for values, size in ((a, 2**-30), (b, 2**-12))]
        found.append(None if len(widths) > 1 and (slot + i) % 4 == 3 else LowRank(half[0], half[1], 0.7 * (slot + 1) * 2**40))
    return found


def filled(ops: Any, k: int, widths: tuple[int, ...]) -> Any:
    bank = ops.adapter_bank(SLOTS, MAX_RANK, k, widths)
    for slot in range(SLOTS):
        ops.place_adapter(bank, slot, ops.pack_adapter(bank, parts_of(slot, k, widths)))
    return bank


def row_adapters(slots: list[int], max_rows: int) -> RowAdapters:
    arrays = {name: np.zeros(size, np.int32) for name, size in row_adapter_sizes(max_rows, SLOTS).items()}
    group_rows(ints(*slots), arrays)
    return RowAdapters(**arrays)


def rows_in(ops: Any, x: Float, fmt: str, max_rows: int = 0) -> Any:
    rng = np.random.default_rng(0)
    activation = ops.activation(max_rows or len(x), [ops.pack([tensor(rng, fmt, 16, x.shape[1])])])
    ops.store(x, activation, ints(len(x)))
    return activation


def added(ops: Any, bank: Any, x: Float, slots: list[int], fmt: str, before: float = 0.5) -> Float:
    out = np.full((len(x), sum(bank.widths) + 3), np.float32(before))
    ops.low_rank(bank, rows_in(ops, x, fmt), out, row_adapters(slots, len(x)))
    return out


@pytest.mark.parametrize("fmt", ["f32", "q8_0"])
@pytest.mark.parametrize("shape", list(WIDTHS))
@pytest.mark.parametrize("k", [64, 576, 2080])
def test_values(ops: Any, shape: str, fmt: str, k: int) -> None:
    """Float16 matrices are exact here, so that only sums round; the reference on the rows that the kernel reads."""
    rng = np.random.default_rng(k)
    x = rng.standard_normal((41, k), np.float32)
    slots = rng.integers(-1, SLOTS, 41).tolist()
    got = added(ops, filled(ops, k, WIDTHS[shape]), x, slots, fmt, before=4.0)
    seen = quantized(x).astype(np.float32) if fmt == "q8_0" else x
    want = added(ReferenceOps(), filled(ReferenceOps(), k, WIDTHS[shape]), seen, slots, "f32", before=4.0)
    close(got, want, 2e-5)
    untouched = [i for i, slot in enumerate(slots) if slot < 0]
    assert untouched and (got[untouched] == 4).all() and (got[:, sum(WIDTHS[shape]) :] == 4).all()


def test_emptied_banks_give_their_memory_back(ops: Any) -> None:
    """Once all are empty; what is placed later is as it was."""
    k, widths = 576, WIDTHS["qkv"]
    x = np.random.default_rng(5).standard_normal((SLOTS, k), np.float32)
    one, other = (filled(ops, k, widths) for _ in range(2))
    slots = list(range(SLOTS))
    want = added(ops, one, x, slots, "f32")
    one.empty()
    assert (added(ops, one, x, slots, "f32")[:, : sum(widths)] == 0.5).all()
    same_bits(added(ops, other, x, slots, "f32"), want)
    assert one.a.any() and other.b.any()
    other.empty()
    assert not (one.a.any() or one.b.any() or other.a.any() or other.b.any())
    for slot in slots:
        ops.place_adapter(one, slot, ops.pack_adapter(one, parts_of(slot, k, widths)))
    same_bits(added(ops, one, x, slots, "f32"), want)


def test_rows_are_the_same_in_any_company(ops: Any, more_threads: list[Any]) -> None:
    k, widths = 576, WIDTHS["qkv"]
    rng = np.random.default_rng(3)
    x = rng.standard_normal((50, k), np.float32)
    slots = [int(slot) for slot in rng.integers(-1, SLOTS, 50)]
    slots[:20] = [4] * 20  # more than a tile of one adapter
    bank = filled(ops, k, widths)
    whole = added(ops, bank, x, slots, "q8_0")
    for row in (0, 7, 19, 30, 49):
        same_bits(added(ops, bank, x[row : row + 1], slots[row : row + 1], "q8_0"), whole[row : row + 1])
    order = rng.permutation(50)
    same_bits(added(ops, bank, x[order], [slots[i] for i in order], "q8_0"), whole[order])
    for other in more_threads:
        same_bits(added(other, filled(other, k, widths), x, slots, "q8_0"), whole)


def test_a_slot_of_its_own_and_another_one(ops: Any) -> None:
    """The slot that an adapter lies in does not show, nor what lay there before."""
    k, widths = 64, WIDTHS["qkv"]
    x = np.random.default_rng(1).standard_normal((3, k), np.float32)
    bank, other = filled(ops, k, widths), ops.adapter_bank(2, MAX_RANK, k, widths)
    for slot in (3, 7, 2, 0):  # larger and smaller ranks, and parts that are missing, one after another
        ops.place_adapter(other, 1, ops.pack_adapter(other, parts_of(slot, k, widths)))
        same_bits(added(ops, other, x, [1, -1, 1], "f32")[[0, 2]], added(ops, bank, x, [slot, slot, slot], "f32")[[0, 2]])


def test_on_a_tape_rows_and_adapters_are_read_when_it_runs(ops: Any) -> None:
    k, widths, most = 96, WIDTHS["one"], 40
    bank = filled(ops, k, widths)
    x = np.random.default_rng(5).standard_normal((most, k), np.float32)
    activation, adapters, out = rows_in(ops, x, "q8_0"), row_adapters([-1], most), np.zeros((most, widths[0]), np.float32)
    tape = OpTape()
    with tape.record(ops):
        ops.low_rank(bank, activation, out, adapters)
    arrays = {name: getattr(adapters, name) for name in row_adapter_sizes(most, SLOTS)}
    for slots in ([-1], [2], [1] * 33, [i % SLOTS for i in range(most)]):
        group_rows(ints(*slots), arrays)
        out[:] = 0.5
        tape.replay()
        ops.finish()
        want = np.full_like(out, 0.5)
        want[: len(slots)] = added(ops, bank, x[: len(slots)], slots, "q8_0")[:, : widths[0]]
        same_bits(out, want)


def test_gate_and_up_apart(ops: Any) -> None:
    """`linear` of a weight of `pack_gated`: the bits of two matrices side by side."""
    rng = np.random.default_rng(7)
    for fmt, half in (("q4_1", 96), ("q8_0", 75), ("f16", 33), ("f32", 64)):
        gate, up = (tensor(rng, fmt, half, 128) for _ in range(2))
        for n in (1, 13, 200):
            x = rng.standard_normal((n, 128), np.float32)
            fused, both = ops.pack_gated(gate, up), ops.pack([gate, up])
            activation = ops.activation(n, [both])
            ops.store(x, activation, ints(n))
            got, want = np.zeros((n, 2 * half), np.float32), np.zeros((n, 2 * half), np.float32)
            ops.linear(fused, activation, got, ints(n))
            ops.linear(both, activation, want, ints(n))
            same_bits(got, want)


def test_wrong_rows_are_skipped(ops: Any) -> None:
    """Values inside arrays are read when the op runs: out of range, they do nothing."""
    bank = filled(ops, 64, (16,))
    x = np.ones((4, 64), np.float32)
    for name, value in (("slots", SLOTS), ("slots", -1), ("order", 99), ("order", -3), ("starts", 2**30), ("num_tiles", 2**30)):
        adapters = row_adapters([1, 2, 3, 4], 4)
        getattr(adapters, name)[:] = value
        out = np.zeros((4, 16), np.float32)
        ops.low_rank(bank, rows_in(ops, x, "f32"), out, adapters)
        assert np.isfinite(out).all()


def test_groups() -> None:
    """Every row with an adapter is in one tile, of its own adapter."""
    rng = np.random.default_rng(2)
    for n in (1, 5, 64, 300):
        slots = rng.integers(-1, SLOTS, n)
        adapters = row_adapters(slots.tolist(), 300)
        tiles = [
            (int(adapters.slots[t]), adapters.order[adapters.starts[t] : adapters.starts[t + 1]])
            for t in range(int(adapters.num_tiles[0]))
        ]
        assert all(0 < len(rows) <= ADAPTER_TILE and (slots[rows] == slot).all() for slot, rows in tiles)
        assert sorted(np.concatenate([rows for _, rows in tiles] or [[]])) == np.flatnonzero(slots >= 0).tolist()
