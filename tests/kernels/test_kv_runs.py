"""Runs of the KV pool as bytes: what was read in one pool and written in another gives the same bits, also in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels import cpu
from sglang.srt.model.kernels.reference import ReferenceOps

from .test_attention import CONTEXT, Heads, Run, feed, random_rows, same_bits

SHAPES = [Heads(9, 3, 64), Heads(6, 2, 20), Heads(4, 1, 256)]


FORMS = ["native float16", "native int8", "native fp8_e4m3", "reference float32", "reference int8", "reference fp8_e4m3"]


@pytest.fixture(params=FORMS)
def each(request: pytest.FixtureRequest, ops: Any) -> Any:
    name, form = request.param.split()
    return cpu.CpuOps(2, ops.runtime.isa, kv_form=form) if name == "native" else ReferenceOps(form)


def copy(runs_from: Any, runs_to: Any, slots: np.ndarray[Any, Any], to: int) -> None:
    data = np.full(runs_from.run_bytes, 7, np.uint8)
    runs_from.read(slots, data)
    runs_to.write(to, data)


@pytest.mark.parametrize("heads", SHAPES, ids=lambda heads: f"{heads.kv}x{heads.dim}")
def test_a_copied_prefix_gives_the_same_bits(each: Any, heads: Heads) -> None:
    qkv = random_rows(heads, 61)
    whole = feed(Run(each, heads, 1), 0, qkv, [48, 13])
    source, target = Run(each, heads, 1), Run(each, heads, 1)
    source.step({0: qkv[:48]})
    runs_from, runs_to = each.kv_runs(source.layers), each.kv_runs(target.layers)
    for start in (0, 16, 32):
        copy(runs_from, runs_to, source.table[0, start : start + 16], int(target.table[0, start]))
    target.done = [48]
    same_bits(target.step({0: qkv[48:]})[0], whole[48:])


def test_a_record_in_two_runs_is_put_together(each: Any) -> None:
    """A prefix may end inside a run and go on in another."""
    layers = each.kv_layers(3, 64, 2, 20)
    runs = each.kv_runs(layers)
    assert runs.run_bytes == 3 * 16 * each.kv_bytes_per_token(2, 20)
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, runs.run_bytes, dtype=np.uint8) for _ in range(2))
    runs.write(0, first)
    runs.write(32, second)
    for cut in range(17):
        slots = np.array([*range(cut), *range(32 + cut, 48)], np.int32)
        copy(runs, runs, slots, 16)
        for start, end, source in ((0, cut, 0), (cut, 16, 32)):
            for place in range(start, end):  # place by place: a run of which all but one slot is of the other half
                probe = np.array([*range(place), 16 + place, *range(place + 1, 16)], np.int32)
                back = np.full(runs.run_bytes, 7, np.uint8)
                runs.read(probe, back)
                wanted = np.array([*range(place), source + place, *range(place + 1, 16)], np.int32)
                expected = np.full(runs.run_bytes, 7, np.uint8)
                runs.read(wanted, expected)
                assert (back == expected).all()


def test_the_view_outlives_its_pool(ops: Any) -> None:
    runs = ops.kv_runs(ops.kv_layers(2, CONTEXT // 16 * 16, 2, 32))
    data = np.arange(runs.run_bytes, dtype=np.int64).astype(np.uint8)
    back = np.full_like(data, 7)
    runs.write(16, data)
    runs.read(np.arange(16, 32, dtype=np.int32), back)
    assert (back == data).all()


def test_more_layers_than_there_are_is_an_error(ops: Any) -> None:
    layers = ops.kv_layers(2, 32, 2, 32)
    for num_layers in (0, -1, 4, 1 << 30):
        with pytest.raises(ValueError, match="not so many layers"):
            layers[0].runs(num_layers)


def test_a_part_of_a_run_leaves_nothing_of_others(each: Any) -> None:
    """What lies behind the slots that are asked for is another's."""
    runs = each.kv_runs(each.kv_layers(3, 64, 2, 20))
    data = np.random.default_rng(1).integers(1, 256, runs.run_bytes, dtype=np.uint8)
    runs.write(16, data)
    whole, found = np.full(runs.run_bytes, 7, np.uint8), np.full(runs.run_bytes, 7, np.uint8)
    for num in range(1, 17):
        runs.read(np.arange(16, 16 + num, dtype=np.int32), found)
        runs.write(32, found)
        runs.read(np.array([*range(32, 32 + num), *range(16 + num, 32)], np.int32), whole)
        assert (whole == data).all()
        runs.read(np.array([*range(num), *range(32 + num, 48)], np.int32), whole)
        assert not whole.any()
