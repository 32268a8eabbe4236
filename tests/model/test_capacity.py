"""The memory plan: what fits, what is asked for, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sglang.srt.config import MemoryOptions
from sglang.srt.errors import CapacityError, ConfigError
from sglang.srt.model import capacity
from sglang.srt.model.capacity import (
    DRAFT_ROWS,
    GIB,
    Capacity,
    HostMemory,
    ModelFootprint,
    Needs,
    check_room,
    host_memory,
    plan_capacity,
)

SMALL = ModelFootprint(context_len=8192, kv_bytes_per_token=23040, weight_bytes=100 << 20, slot_run=16)
LARGE = ModelFootprint(context_len=131072, kv_bytes_per_token=131072, weight_bytes=5 * GIB, slot_run=16)
MACHINE = HostMemory(total=16 * GIB, available=12 * GIB)


def plan(model: ModelFootprint, memory: HostMemory = MACHINE, buffers: int = 0, **options: Any) -> Capacity:
    return plan_capacity(MemoryOptions(**options), model, memory, buffers)


def test_default_for_a_small_model() -> None:
    """About 1 GiB of KV on any ordinary machine."""
    result = plan(SMALL)
    assert result.max_total_tokens % 16 == 0
    assert GIB - 16 * 23040 < result.max_total_tokens * 23040 <= GIB
    assert result.max_running_requests == 64
    assert result.max_batch_tokens == 512 + 64
    assert result.max_logit_rows == 64 + DRAFT_ROWS


def test_default_never_takes_more_than_half_of_what_is_free() -> None:
    assert plan(LARGE).max_total_tokens * 131072 <= 6 * GIB
    tight = HostMemory(total=16 * GIB, available=GIB)
    assert plan(SMALL, tight).max_total_tokens * 23040 <= GIB // 2
    assert plan(SMALL, tight, buffers=GIB // 2).max_total_tokens * 23040 <= GIB // 4


def test_default_is_no_more_than_the_requests_can_use() -> None:
    tiny = ModelFootprint(context_len=1000, kv_bytes_per_token=100, weight_bytes=1000, slot_run=16)
    assert plan(tiny, max_running_requests=3).max_total_tokens == 3008


def test_asked_tokens_are_rounded_up_to_whole_runs() -> None:
    assert plan(SMALL, max_total_tokens=100).max_total_tokens == 112
    assert plan(SMALL, max_total_tokens=400_000).max_total_tokens == 400_000


def test_fraction_counts_weights_and_pool() -> None:
    result = plan(LARGE, mem_fraction_static=0.5)
    assert result.max_total_tokens * 131072 == 3 * GIB
    assert plan(LARGE, mem_fraction_static=0.99).max_total_tokens * 131072 <= 12 * GIB


def test_fraction_wins_over_the_cautious_default() -> None:
    assert plan(SMALL, mem_fraction_static=0.4).max_total_tokens > 4 * plan(SMALL).max_total_tokens


@pytest.mark.parametrize(
    ("model", "memory", "options", "sentence"),
    [
        (SMALL, HostMemory(GIB, 1 << 20), {}, "KV pool of only 16 tokens"),
        (SMALL, HostMemory(GIB, 0), {}, "KV pool of only 0 tokens"),
        (SMALL, MACHINE, {"max_total_tokens": 10**6}, "--max-total-tokens 1000000 takes 21.46 GiB"),
        (LARGE, MACHINE, {"mem_fraction_static": 0.2}, "less than the weights, 5.00 GiB"),
    ],
)
def test_too_little_memory(model: ModelFootprint, memory: HostMemory, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CapacityError, match=sentence):
        plan(model, memory, **options)


@pytest.mark.parametrize("options", [{}, {"max_total_tokens": 100_000}])
def test_what_takes_the_memory_is_told(options: dict[str, Any]) -> None:
    with pytest.raises(CapacityError) as caught:
        plan_capacity(MemoryOptions(**options), SMALL, MACHINE, GIB, adapter_bytes=14 * GIB)
    assert "1.00 GiB for buffers, 14.00 GiB for the slots of adapters" in str(caught.value)
    assert options or "; lower --max-loras-per-batch or --max-lora-rank" in str(caught.value)


def needs(**changes: int) -> Needs:
    """Of an 8B model in 16 bits."""
    usual = {"weights": 16 * GIB, "buffers": GIB // 8, "tables": GIB // 8, "context_len": 131072, "token_bytes": 131072}
    return Needs(**{**usual, "kv_tokens": 256, **changes})


QUANTIZED = {"int8": 9 * GIB, "int4": 6 * GIB}


@pytest.mark.parametrize(
    ("model", "available", "would_fit"),
    [
        (needs(), 12, "--quantization int8 would fit, with 9.28 GiB"),
        (needs(), 8, "--quantization int4 would fit, with 6.28 GiB"),
        (needs(), 2, "at most about 3.2 billion parameters in 4 bits"),
        (needs(kv_tokens=100_000), 20, "--max-total-tokens 30720 would fit"),
        (needs(weights=GIB, tables=16 * GIB), 12, "--context-length 88832 would fit"),
        (needs(weights=5 * GIB), 5, "billion parameters"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_what_would(model: Needs, available: int, would_fit: str) -> None:
    with pytest.raises(CapacityError) as caught:
        check_room("m", model, HostMemory(16 * GIB, available * GIB), QUANTIZED)
    said = str(caught.value)
    assert f"m needs {model.total / GIB:.2f} GiB" in said and f"{available}.00 GiB of 16.00 GiB are available" in said
    assert would_fit in said


def test_a_model_that_fits_is_not_refused() -> None:
    check_room("m", needs(), HostMemory(32 * GIB, 17 * GIB), QUANTIZED)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"max_total_tokens": 0}, "--max-total-tokens"),
        ({"max_running_requests": 0}, "--max-running-requests"),
        ({"chunked_prefill_size": 0}, "--chunked-prefill-size"),
        ({"chunked_prefill_size": -2}, "--chunked-prefill-size"),
        ({"mem_fraction_static": 0.0}, "--mem-fraction-static"),
        ({"mem_fraction_static": 1.0}, "--mem-fraction-static"),
        ({"mem_fraction_static": float("nan")}, "--mem-fraction-static"),
    ],
)
def test_bad_flags(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        plan(SMALL, **options)


def test_no_chunking_makes_room_for_a_whole_prompt() -> None:
    assert plan(SMALL, chunked_prefill_size=-1).max_batch_tokens == 8192 + 64


# --- what the machine has -----------------------------------------------------------------------------------------------------


def test_this_machine() -> None:
    memory = host_memory()
    assert 0 < memory.available <= memory.total < 1 << 50


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_meminfo(tmp_path: Path) -> None:
    path = write(
        tmp_path / "meminfo", "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:  600 kB\nHugePages_Total:   0\nodd:\n"
    )
    assert capacity._meminfo(path) == HostMemory(1000 * 1024, 600 * 1024)
    assert capacity._meminfo(tmp_path / "absent") is None
    assert capacity._meminfo(write(tmp_path / "other", "MemTotal: 5 kB\n")) is None


def test_cgroup_2_counts_every_level_and_reclaimable_files(tmp_path: Path) -> None:
    own = write(tmp_path / "cgroup", "0::/user/app\n")
    root = tmp_path / "fs"
    write(root / "user" / "app" / "memory.max", "max\n")
    write(root / "user" / "memory.max", "5000\n")
    write(root / "user" / "memory.current", "3000\n")
    write(root / "user" / "memory.stat", "anon 7\ninactive_file 1000\n")
    write(root / "memory.max", "9000\n")
    write(root / "memory.current", "100\n")
    assert sorted(capacity._cgroup_limits(own, root)) == [(5000, 2000), (9000, 100)]


def test_cgroup_1_inside_a_container(tmp_path: Path) -> None:
    """The path is the host's; only the top is mounted."""
    own = write(tmp_path / "cgroup", "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n")
    write(tmp_path / "fs" / "memory" / "memory.limit_in_bytes", "4000")
    write(tmp_path / "fs" / "memory" / "memory.usage_in_bytes", "3000")
    write(tmp_path / "fs" / "memory" / "memory.stat", "total_inactive_file 500\n")
    assert list(capacity._cgroup_limits(own, tmp_path / "fs")) == [(4000, 2500)]


def test_no_cgroups(tmp_path: Path) -> None:
    assert list(capacity._cgroup_limits(tmp_path / "absent", tmp_path)) == []


def test_elsewhere_half_of_the_memory_counts_as_free() -> None:
    memory = capacity._sysconf()
    assert memory.available == memory.total // 2 > 0
