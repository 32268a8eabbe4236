"""Memory of K and V is touched ahead of need: every part once, from the first that was never used, and not without end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.model import kv_pool
from sglang.srt.model.kernels.reference import ReferenceOps
from tests.model.conftest import create_ops
from tests.model.dense_families import save_family
from tests.model.tiny import Driver, open_worker, save_model


class TouchOps(ReferenceOps):
    def __init__(self) -> None:
        super().__init__()
        self.touched: list[tuple[int, int]] = []

    def touch_kv(self, layers: Sequence[Any], start: int, end: int) -> None:
        self.touched.append((start, end))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ready") / "llama"
    save_model(path, "llama")
    return path


def test_layers_of_different_shapes_are_kept_elsewhere_together(tmp_path: Path) -> None:
    """What one worker has computed, written into another's pool, gives the same bits: Gemma 4 has two pools."""
    pytest.importorskip("torch")
    save_family(tmp_path, "gemma4_text")
    prompt = [int(i) for i in np.random.default_rng(0).integers(3, 199, 70)]
    first, second = (Driver(open_worker(tmp_path, create_ops("cpu")), seed) for seed in (1, 2))
    whole = first.logits([(source := first.add(prompt), 70)])
    target = second.add(prompt)
    second._slots(target, 48)
    runs = first.worker.kv_runs, second.worker.kv_runs
    assert runs[0] is not None and runs[1] is not None and ";" in runs[0].layout
    assert runs[0].run_bytes == 16 * first.worker.info.kv_bytes_per_token
    for start in range(0, 48, 16):
        data = np.full(runs[0].run_bytes, 7, np.uint8)
        runs[0].read(first.table[source.row, start : start + 16], data)
        runs[1].write(int(second.table[target.row, start]), data)
    target.done = 48
    rest = second.logits([(target, 22)])
    np.testing.assert_array_equal(rest.view(np.int32), whole[48:].view(np.int32))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(used=st.lists(st.integers(0, 2048), min_size=1, max_size=5))
def test_what_is_ahead_is_touched_once(folder: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]) -> None:
    ops = TouchOps()
    worker = open_worker(folder, ops, max_total_tokens=2048)
    each = worker.info.kv_bytes_per_token
    monkeypatch.setattr(kv_pool, "LEAST_AHEAD", 300 * each)
    monkeypatch.setattr(kv_pool, "MOST_AHEAD", 500 * each)
    monkeypatch.setattr(kv_pool, "PIECE", 64 * each)
    ready = most = 0
    for num_used in used:
        most = max(most, num_used)
        ops.touched.clear()
        for _ in range(1000):
            if not worker.get_ready(most):
                break
        else:
            raise AssertionError("there is no end to it")
        wanted = min(most + min(max(most, 300), 500), 2048)
        begin = max(ready, most)
        assert [end for _, end in ops.touched[:-1]] == [start for start, _ in ops.touched[1:]]
        assert all(0 < end - start <= 64 for start, end in ops.touched)
        if wanted > begin:
            assert (ops.touched[0][0], ops.touched[-1][1]) == (begin, wanted)
        else:
            assert not ops.touched
        ready = max(ready, wanted)


def test_the_memory_of_a_pool_that_holds_nothing_goes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what is kept ready; and the pool is as good as before."""
    worker = open_worker(folder, create_ops("cpu"), max_total_tokens=4096)
    prompt = [int(i) for i in np.random.default_rng(0).integers(3, 199, 70)]
    driver = Driver(worker)
    before = driver.logits([(driver.add(prompt), 70)])
    monkeypatch.setattr(kv_pool, "LEAST_AHEAD", 64 * worker.info.kv_bytes_per_token)
    runs = worker.kv_runs
    assert runs is not None
    data, slots = np.full(runs.run_bytes, 7, np.uint8), np.arange(4096, dtype=np.int32)
    for start in range(0, 4096, 16):
        runs.write(start, data)
    worker.release_kv()

    def held(start: int) -> bool:
        found = np.full(runs.run_bytes, 7, np.uint8)
        runs.read(slots[start : start + 16], found)
        return bool((found == 7).all())

    assert held(0) and held(48) and not any(held(start) for start in range(512, 4096 - 512, 16))
    again = Driver(worker)
    np.testing.assert_array_equal(again.logits([(again.add(prompt), 70)]).view(np.int32), before.view(np.int32))
