"""Memory of K and V is touched ahead of need: every part once, from the first that was never used, and not without end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.model import kv_pool
from sglang.srt.model.kernels.reference import ReferenceOps
from tests.model.tiny import open_worker, save_model


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
