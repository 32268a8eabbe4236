"""Arguments that the bindings refuse: every count, array and object that would lead a kernel out of bounds, or to results by chance."""

from __future__ import annotations

import array
import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sglang_anywhere_kernels import _cpu

from sglang.srt.model.kernels import cpu
from sglang.srt.model.kernels.packing import F16, IQ1, IQ2, Q2, Q3
from sglang.srt.model.op_tape import OpTape

from .support import ints, meta_of, same_bits, tensor

INT_MAX = 2**31 - 1
Call = Callable[[], Any]


class Parts:
    """Arguments that are right, for each op."""

    def __init__(self, ops: Any) -> None:
        rng = np.random.default_rng(0)
        self.ops = ops
        self.weight = ops.pack([tensor(rng, "q8_0", 64, 64)])
        self.gated = ops.pack_gated(*(tensor(rng, "q8_0", 64, 64) for _ in range(2)))
        self.x = rng.standard_normal((8, 64), np.float32)
        self.out = np.zeros((8, 64), np.float32)
        self.activation, self.other = (ops.activation(8, [self.weight]) for _ in range(2))
        self.rows, self.eight = ints(8), np.arange(8, dtype=np.int32)
        self.ones = np.ones(64, np.float32)
        self.kv = ops.kv_layers(1, 32, 1, 16)[0]
        self.qkv = rng.standard_normal((8, 96), np.float32)  # 4 heads and one of K and V
        self.turn = np.ones((32, 8), np.float32)
        self.table = np.arange(32, dtype=np.int32).reshape(1, 32)


@pytest.fixture
def parts(ops: Any) -> Parts:
    return Parts(ops)


def refused(call: Call, match: str) -> None:
    """With our sentence, or with the extension's own where it admits no object of that kind at all."""
    with pytest.raises((ValueError, TypeError), match=f"{match}|incompatible function arguments"):
        call()


# ---- arrays -----------------------------------------------------------------------------------------------------------------------
def unaligned(like: Any) -> Any:
    raw = np.zeros(like.nbytes + 8, np.uint8)
    return raw[1 : 1 + like.nbytes].view(like.dtype).reshape(like.shape)


class Lies:
    """An array that is longer than it is."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        return 1 << 40

    def __array_interface__(self) -> Any:
        return self._values.__array_interface__

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._values.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()


def test_arrays_of_all_kinds(parts: Parts) -> None:
    p = parts
    rows = {
        "None": None,
        "a list": [8],
        "a number": 8,
        "int64": np.array([8]),
        "two dimensions": np.array([[8]], np.int32),
        "empty": ints(),
        "no dimension": np.array(8, np.int32),
        "of the other byte order": np.array([8], ">i4"),
        "unaligned": unaligned(ints(8)),
        "a float": np.array([8], np.float32),
    }
    for kind, wrong in rows.items():
        with pytest.raises((ValueError, TypeError)):
            p.ops.store(p.x, p.activation, wrong)
            pytest.fail(f"rows: {kind}")
    frozen = p.out.copy()
    frozen.setflags(write=False)
    matrices = {
        "read-only": frozen,
        "unaligned": unaligned(p.out),
        "of rows that overlap": np.lib.stride_tricks.as_strided(p.out, (8, 64), (16, 4)),
        "one row repeated": np.lib.stride_tricks.as_strided(p.out, (8, 64), (0, 4)),
        "backwards": p.out[::-1],
        "columns backwards": p.out[:, ::-1],
        "every second column": np.zeros((8, 128), np.float32)[:, ::2],
        "transposed": np.zeros((64, 8), np.float32).T,
        "float64": np.zeros((8, 64)),
        "float16": np.zeros((8, 64), np.float16),
        "three dimensions": np.zeros((1, 8, 64), np.float32),
        "narrow": np.zeros((8, 63), np.float32),
        "objects": np.zeros((8, 64), object),
    }
    for kind, wrong in matrices.items():
        with pytest.raises((ValueError, TypeError)):
            p.ops.linear(p.weight, p.activation, wrong, p.rows)
            pytest.fail(f"out: {kind}")


def test_lengths_are_those_of_the_memory(parts: Parts) -> None:
    p = parts
    p.ops.embedding(p.weight, Lies(p.eight), p.out, ints(INT_MAX))
    p.ops.mask(p.out, Lies(p.eight), np.zeros((8, 2), np.uint32))
    assert np.isneginf(p.out).all()
    p.ops.take_sampled(Lies(ints(5, 5)), Lies(ints(0, 0)), Lies(ints(7)), ints(INT_MAX))


def test_empty_arrays(parts: Parts) -> None:
    p = parts
    none, no_rows = np.zeros(0, np.int32), np.zeros((0, 64), np.float32)
    p.ops.store(no_rows, p.activation, p.rows)
    p.ops.linear(p.weight, p.activation, no_rows, p.rows)
    p.ops.embedding(p.weight, none, p.out, p.rows)
    p.ops.argmax(no_rows, 0, none)
    refused(lambda: p.ops.argmax(np.zeros((8, 0), np.float32), 8, p.eight), "columns")
    refused(lambda: p.ops.gather_rows(no_rows, p.eight, p.out, p.rows), "rows")
    refused(lambda: p.ops.rms_norm(no_rows, p.ones, p.out, p.rows, eps=0.0, row_idx=p.eight), "rows")
    meta = meta_of(np.zeros((0, 32), np.int32), [(0, 8, 8)])
    refused(lambda: p.ops.attention(p.qkv, p.kv, p.other, meta, num_heads=4), "req_to_token")


def test_memory_that_could_move_is_held(ops: Any) -> None:
    """A tape keeps an array's memory in place, whoever owns it."""
    p = Parts(ops)
    rows = array.array("i", [8])
    tape = OpTape()
    with tape.record(ops):
        ops.embedding(p.weight, p.eight, p.out, rows)
    with pytest.raises(BufferError):
        rows.extend(range(10000))
    del tape
    gc.collect()
    rows.extend(range(3))


# ---- results by chance ---------------------------------------------------------------------------------------------------------------
def test_what_is_written_must_not_be_read_by_others(parts: Parts) -> None:
    p = parts
    wide = np.zeros((8, 160), np.float32)
    left, right, middle = wide[:, :64], wide[:, 64:128], wide[:, 40:104]
    refused(lambda: p.ops.gather_rows(p.x, p.eight, p.x, p.rows), "share")
    refused(lambda: p.ops.gather_rows(left, p.eight, middle, p.rows), "share")
    refused(lambda: p.ops.overlay(p.x[1:], p.x[:-1], p.eight, p.rows), "share")
    refused(lambda: p.ops.blend_rows(p.x, ints(*range(8)).reshape(8, 1), np.ones((8, 1), np.float32), p.x, p.rows), "share")
    refused(lambda: p.ops.rms_norm(p.x, p.ones, p.x, p.rows, eps=0.0, row_idx=p.eight), "share")
    refused(lambda: p.ops.rms_norm(p.x[1:], p.ones, p.x[:-1], ints(7), eps=0.0), "share")
    refused(lambda: p.ops.linear(p.weight, p.activation, p.out, p.rows, bias=p.out[3]), "share")
    refused(lambda: p.ops.segment_attention(
        wide[:, :48], ints(0, 8), wide[:, 32:48], begin=0, end=8, num_heads=1, head_dim=16, scale=1.0), "share")  # fmt: skip
    refused(lambda: p.ops.gate(left, right, middle, p.rows, gate_fn="silu"), "share")
    refused(lambda: p.ops.gate(left, right, left, p.rows, gate_fn="silu"), "share")
    refused(lambda: p.ops.gated_linear(p.gated, p.activation, p.activation, p.rows, gate="silu"), "read")
    p.ops.gather_rows(left, p.eight, right, p.rows)  # columns side by side are apart
    p.ops.rms_norm(p.x, p.ones, p.x, p.rows, eps=1e-5)  # row by row in place is one thread's


# ---- counts and indices --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [0, -1, -INT_MAX - 1, 2**27, 2**30, INT_MAX, 2**31, 2**63, 2**64])
def test_counts(parts: Parts, number: int) -> None:
    """Whatever a count is: it is refused, or does nothing that it should not."""
    p = parts
    meta = meta_of(p.table, [(0, 8, 8)])
    turn = {"cos": p.turn, "sin": p.turn}
    calls: list[Call] = [
        lambda: p.ops.argmax(p.out, number, p.eight),
        lambda: p.ops.top_k(p.out, 8, number, np.zeros((8, 64), np.int32), p.x),
        lambda: p.ops.attention(p.qkv, p.kv, p.other, meta, num_heads=number),
        lambda: p.ops.rope_store(p.qkv, p.kv, p.eight, p.eight, p.rows, num_heads=number, **turn, q_scale=1.0),
        lambda: p.ops.rotate(p.qkv, p.turn, p.turn, p.rows, num_heads=number, head_dim=16),
        lambda: p.ops.rotate(p.qkv, p.turn, p.turn, p.rows, num_heads=4, head_dim=number),
        lambda: p.ops.kv_layers(1, 16, 1, number),
        lambda: p.ops.kv_layers(1, 16, number, 16 * INT_MAX),
        lambda: _cpu.Weight(p.ops.runtime, number, 16, 32, 0),
        lambda: _cpu.Weight(p.ops.runtime, F16, 64, 32, number),
        lambda: _cpu.Activation(8, number, False, True),
        lambda: _cpu.Runtime(number, "", 0, False),
        lambda: _cpu.Runtime(1, "sparc", number, False),
        lambda: p.ops.runtime.wait(number),
    ]
    for call in calls:
        if number == 0 and call is calls[0]:
            continue
        if number == 0 and call in (calls[8], calls[9]):  # a kind, and "not gated"
            continue
        if number == 0 and call is calls[-1]:
            call()
            continue
        with pytest.raises((ValueError, TypeError, MemoryError)):
            call()
            pytest.fail(f"call {calls.index(call)}")
    p.kv.touch(min(number, INT_MAX) if number > 0 else max(number, -INT_MAX - 1), INT_MAX)


def test_sizes_that_overflow() -> None:
    ops = cpu.CpuOps(1)
    for sizes in ((INT_MAX, 16, 1, 16), (1, INT_MAX // 16 * 16, 2**20, 16), (INT_MAX, INT_MAX // 16 * 16, 2**20, 16),
                  (1, 16, INT_MAX, 2**30), (2**20, 2**30, 2**12, 2**12)):  # fmt: skip
        with pytest.raises((ValueError, MemoryError)):
            ops.kv_layers(*sizes)
    for n, k in ((2**28, 2**24), (INT_MAX, 32), (16, INT_MAX), (2**28, 2**23)):
        with pytest.raises((ValueError, MemoryError)):
            _cpu.Weight(ops.runtime, F16, n, k, 0)
    with pytest.raises((ValueError, MemoryError)):
        _cpu.Activation(2**28, 2**24, True, True)
    with pytest.raises((ValueError, MemoryError)):
        _cpu.Activation(INT_MAX, INT_MAX // 32 * 32, True, True)


def test_pack_stays_inside_its_weight(parts: Parts) -> None:
    p = parts
    data = np.zeros((64, 32), np.float32)
    for gated in (1, 31, 33, 1000):
        refused(lambda gated=gated: _cpu.Weight(p.ops.runtime, F16, 64, 32, gated), "twice")  # type: ignore[misc]
    for kind in (Q3, IQ2, IQ1, Q2):
        refused(lambda kind=kind: _cpu.Weight(p.ops.runtime, kind, 64, 288, 0), "multiple of 256")  # type: ignore[misc]
    weight = _cpu.Weight(p.ops.runtime, F16, 64, 32, 0)
    for rows, first in ((64, 1), (65, 0), (-1, 0), (0, 0), (1, -1), (1, 64), (1, INT_MAX), (INT_MAX, INT_MAX)):
        refused(lambda rows=rows, first=first: p.ops.runtime.pack(weight, data, 0, rows, first), "pack")  # type: ignore[misc]
    for source in (-1, 1, 10, 11, INT_MAX):
        refused(lambda source=source: p.ops.runtime.pack(weight, data, source, 64, 0), "pack")  # type: ignore[misc]


WILD = (-INT_MAX - 1, -INT_MAX, -1, 0, 1, 7, 8, 9, 31, 32, 33, 2**30, INT_MAX - 7, INT_MAX - 1, INT_MAX)


def test_attention_with_wild_metadata(parts: Parts, more_threads: list[Any]) -> None:
    """No value leads out of bounds (the sanitizers watch this one), and requests that make sense get their results."""
    p = parts
    rng = np.random.default_rng(1)
    good = meta_of(p.table, [(0, 3, 20)])
    want, got = (np.zeros((8, 64), np.float32) for _ in range(2))
    p.ops.attention(p.qkv, p.kv, p.activation, good, num_heads=4)
    p.ops.linear(p.weight, p.activation, want, p.rows)
    for _ in range(300):
        meta = meta_of(p.table, [(0, 3, 20)], max_reqs=6)
        meta.num_reqs[0] = rng.choice(WILD) if rng.random() < 0.3 else 6
        for field in (meta.req_pool_idx, meta.q_start, meta.q_len, meta.seq_lens):
            field[1:] = rng.choice(WILD, 5)
        p.ops.attention(p.qkv, p.kv, p.activation, meta, num_heads=4)
    # the sum of the first row and the length overflows
    meta = meta_of(p.table, [(0, 3, 20), (0, 8, 32)])
    meta.q_start[1] = INT_MAX - 4
    p.ops.attention(p.qkv, p.kv, p.activation, meta, num_heads=4)
    p.ops.linear(p.weight, p.activation, got, p.rows)
    same_bits(got[:3], want[:3])


def test_more_rows_than_there_are(parts: Parts) -> None:
    """Requests that overlap: their units of work must not be more than can be counted."""
    p = parts
    table = np.zeros((1, 4096), np.int32)
    meta = meta_of(table, [(0, 8, 4096)] * 5000)
    meta.q_start[:] = 0
    p.ops.attention(p.qkv, p.kv, p.activation, meta, num_heads=4)
    starts = np.tile(ints(0, 8), 100_000)
    p.ops.segment_attention(np.zeros((8, 48), np.float32), starts, np.zeros((8, 16), np.float32), begin=0, end=8, num_heads=1,
                            head_dim=16, scale=1.0)  # fmt: skip


def test_sampling_with_wild_limits(ops: Any) -> None:
    """Every row yields one of its tokens."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((8, 50), np.float32)
    wild = np.array([np.nan, np.inf, -np.inf, -1, 0, 1e-38, 0.5, 1, 1.0001, 2, 3e38], np.float32)
    out = np.zeros(8, np.int32)
    for _ in range(300):
        temperature, top_p, min_p, uniform = (rng.choice(wild, 8) for _ in range(4))
        ops.sample(x, 8, temperature, rng.choice(WILD, 8).astype(np.int32), top_p, min_p, uniform, out)
        assert ((out >= 0) & (out < 50)).all()
    flat = np.ones(8, np.float32)
    ops.sample(x, 8, flat, np.zeros(8, np.int32), flat, flat * 2, flat / 2, out)
    assert out.tolist() == x.argmax(1).tolist(), "none is twice as likely as the best: the best stays"


def test_adjust_reads_what_it_was_given(ops: Any) -> None:
    """Bounds that are changed while the op is on its way do not lead beyond the lists."""
    x, bounds = np.zeros((2, 16), np.float32), ints(0, 1, 2)
    late = cpu.CpuOps(2, ops.runtime.isa, ahead=True)
    for wild in WILD:
        bounds[:] = 0, 1, 2
        late.adjust(x, bounds, ints(3, 4), np.ones(2, np.float32), np.ones(2, np.float32))
        bounds[:] = wild
        late.finish()


# ---- jobs and tapes --------------------------------------------------------------------------------------------------------------------
def test_jobs_that_are_not(ops: Any) -> None:
    one, other = (cpu.CpuOps(2, ops.runtime.isa, ahead=True) for _ in range(2))
    a, b = np.zeros(4, np.float32), np.ones(4, np.float32)
    job = one.runtime.copy(a, b)
    one.runtime.wait(job)
    one.runtime.wait(job)  # twice is no more than once
    refused(lambda: one.runtime.wait(job + 1), "ever started")
    refused(lambda: one.runtime.wait(job + 1000), "ever started")
    refused(lambda: one.runtime.wait(1), "another op set")
    refused(lambda: other.runtime.wait(job), "another op set")
    refused(lambda: other.runtime.wait(2**64 - 1), "another op set")
    refused(lambda: one.runtime.wait(-1), "arguments")
    one.runtime.wait(0)  # nothing was begun


def test_copies(ops: Any) -> None:
    """Of anything whose rows are contiguous, in its turn; the rest is refused, not copied to where nobody looks."""
    late = cpu.CpuOps(2, ops.runtime.isa, ahead=True)
    wide = np.arange(160, dtype=np.float32).reshape(8, 20)
    to = np.zeros((8, 5), np.float32)
    late.runtime.copy(to, wide[:, 5:10])
    back = np.zeros((8, 20), np.float32)
    late.runtime.copy(back[:, 2:7], to)
    late.runtime.wait(late.runtime.copy(np.zeros((2, 0), np.int32), np.zeros((2, 0), np.int32)))
    assert (to == wide[:, 5:10]).all() and (back[:, 2:7] == to).all()
    assert not back[:, :2].any() and not back[:, 7:].any()
    fetch = late.fetch(wide[:, 3:8])
    assert (fetch.result() == wide[:, 3:8]).all()
    cube = np.arange(120, dtype=np.int32).reshape(4, 5, 6)
    assert (late.fetch(cube[::2]).result() == cube[::2]).all()
    for wrong in (wide.T, wide[:, ::2], wide[::-1], np.broadcast_to(wide[0], (8, 20)), cube[:, ::2], cube[:, :, ::3]):
        refused(lambda wrong=wrong: late.fetch(wrong), "contiguous rows")  # type: ignore[misc]
        refused(lambda wrong=wrong: late.runtime.copy(wrong, np.ascontiguousarray(wrong)), "contiguous rows|used so")  # type: ignore[misc]
    refused(lambda: late.runtime.copy(to, to.astype(np.int32)), "type")
    refused(lambda: late.runtime.copy(to, to.reshape(5, 8)), "shape")
    refused(lambda: late.runtime.copy(wide[1:], wide[:-1]), "share")
    refused(lambda: late.runtime.copy(None, to), "to is not")
    refused(lambda: late.runtime.copy(to, [1.0]), "from is not")


def test_fetches_come_in_their_turn(ops: Any) -> None:
    """A column range is copied when what is on its way has run, not before."""
    late = cpu.CpuOps(2, ops.runtime.isa, ahead=True)
    x = np.zeros((4, 32), np.float32)
    late.adjust(x, ints(0, 1), ints(9), np.ones(1, np.float32), np.full(1, 3, np.float32))
    assert late.fetch(x[:, 8:16]).result()[0, 1] == 3


def test_tapes(ops: Any) -> None:
    late, other = (cpu.CpuOps(2, ops.runtime.isa, ahead=True) for _ in range(2))
    p = Parts(late)
    big = late.activation(512, [p.weight])
    x, out = np.zeros((512, 64), np.float32), np.zeros((512, 64), np.float32)
    tape = late.begin_tape()
    for _ in range(50):
        late.store(x, big, ints(512))
        late.linear(p.weight, big, out, ints(512))
    refused(lambda: late.runtime.replay(tape), "being recorded")
    late.end_tape()
    refused(late.end_tape, "no tape")
    for _ in range(20):
        late.runtime.replay(tape)
    refused(lambda: late.runtime.begin(tape), "runs")
    late.finish()
    late.runtime.begin(tape)
    late.end_tape()
    refused(lambda: other.runtime.replay(tape), "another op set")
    refused(lambda: other.runtime.begin(tape), "another op set")
    for wrong in (None, 1, p.weight, late):
        refused(lambda wrong=wrong: late.runtime.begin(wrong), "Tape")  # type: ignore[misc]
        refused(lambda wrong=wrong: late.runtime.replay(wrong), "Tape")  # type: ignore[misc]
    late.runtime.replay(_cpu.Tape())  # nothing to do is fine
    late.finish()


def test_only_the_thread_that_records_is_recorded(ops: Any) -> None:
    p = Parts(ops)
    out = np.zeros((8, 64), np.float32)
    errors: list[BaseException] = []

    def meanwhile() -> None:
        ops.embedding(p.weight, p.eight, out, p.rows)
        try:
            ops.end_tape()
        except ValueError as error:
            errors.append(error)

    tape = ops.begin_tape()
    thread = threading.Thread(target=meanwhile)
    thread.start()
    thread.join()
    ops.store(p.x, p.activation, p.rows)
    ops.end_tape()
    assert out.any() and len(tape) == 1 and len(errors) == 1


def test_objects_of_another_kind(parts: Parts) -> None:
    p = parts
    for wrong in (None, 3, "w", p.x, p.kv, p.ops):
        refused(lambda wrong=wrong: p.ops.linear(wrong, p.activation, p.out, p.rows), "weight|object")  # type: ignore[misc]
        refused(lambda wrong=wrong: p.ops.linear(p.weight, wrong, p.out, p.rows), "x is not")  # type: ignore[misc]
    refused(lambda: p.ops.attention(p.qkv, None, p.other, meta_of(p.table, [(0, 8, 8)]), num_heads=4), "kv is not")
    with pytest.raises(AttributeError):
        p.ops.attention(p.qkv, p.kv, p.other, object(), num_heads=4)
