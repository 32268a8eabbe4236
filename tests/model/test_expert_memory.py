"""The memory that loading experts takes: a model is never there twice.

.venv-test/bin/python -m pytest -m slow tests/model/test_expert_memory.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

GIB = 1 << 30
HIDDEN, WIDTH, EXPERTS, VOCABULARY = 2048, 768, 128, 1024
LAYER_BYTES = 3 * HIDDEN * WIDTH * EXPERTS * 20 // 32

LOAD = """
import sys, threading
from pathlib import Path
from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.model.worker import create_worker

peak, over = 0, threading.Event()

def watch():
    global peak
    while not over.wait(0.05):
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        peak = max(peak, next(int(line.split()[1]) for line in lines if line.startswith("Pss:")))

thread = threading.Thread(target=watch)
thread.start()
worker = create_worker(ModelOptions(sys.argv[1]), DeviceOptions(threads=1), MemoryOptions(max_total_tokens=512))
over.set()
thread.join()
print(peak << 10, worker.info.weight_bytes)
"""


def save_sparse(path: Path, num_layers: int) -> int:
    """A model of Qwen3-30B-A3B's shape whose file is one hole: all weights are zero. Returns its length."""
    writer = gguf.GGUFWriter(str(path), "qwen3moe")
    for add, value in (
        (writer.add_context_length, 4096), (writer.add_embedding_length, HIDDEN), (writer.add_block_count, num_layers),
        (writer.add_feed_forward_length, 6144), (writer.add_head_count, 32), (writer.add_head_count_kv, 4),
        (writer.add_key_length, 128), (writer.add_value_length, 128), (writer.add_expert_count, EXPERTS),
        (writer.add_expert_used_count, 8), (writer.add_expert_feed_forward_length, WIDTH),
        (writer.add_layer_norm_rms_eps, 1e-6), (writer.add_rope_freq_base, 1e6),
    ):  # fmt: skip
        add(value)
    total = 0

    def tensor(name: str, shape: tuple[int, ...], kind: Any) -> None:
        nonlocal total
        block, size = gguf.GGML_QUANT_SIZES[kind]
        num_bytes = int(np.prod(shape)) // block * size
        stored = shape if kind == gguf.GGMLQuantizationType.F32 else (*shape[:-1], shape[-1] // block * size)
        dtype = np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.uint8
        writer.add_tensor_info(f"{name}.weight", stored, np.dtype(dtype), num_bytes, raw_dtype=kind)
        total += -(-num_bytes // 32) * 32

    f32, q4 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q4_1
    for name, shape in (("token_embd", (VOCABULARY, HIDDEN)), ("output", (VOCABULARY, HIDDEN))):
        tensor(name, shape, q4)
    tensor("output_norm", (HIDDEN,), f32)
    for i in range(num_layers):
        for name, shape, kind in (
            ("attn_norm", (HIDDEN,), f32), ("ffn_norm", (HIDDEN,), f32), ("attn_q_norm", (128,), f32), ("attn_k_norm", (128,), f32),
            ("attn_q", (4096, HIDDEN), q4), ("attn_k", (512, HIDDEN), q4), ("attn_v", (512, HIDDEN), q4), ("attn_output", (HIDDEN, 4096), q4),
            ("ffn_gate_inp", (EXPERTS, HIDDEN), f32), ("ffn_gate_exps", (EXPERTS, WIDTH, HIDDEN), q4),
            ("ffn_up_exps", (EXPERTS, WIDTH, HIDDEN), q4), ("ffn_down_exps", (EXPERTS, HIDDEN, WIDTH), q4),
        ):  # fmt: skip
            tensor(f"blk.{i}.{name}", shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with open(path, "r+b") as file:
        length = -(-file.seek(0, 2) // 32) * 32 + total
        file.truncate(length)
    return length


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("gib", [2, 12])
def test_a_model_is_not_in_memory_twice(gib: int, tmp_path: Path) -> None:
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    if int(available.split()[1]) << 10 < (gib + 3) * GIB:
        pytest.skip(f"a file of {gib} GiB needs {gib + 3} GiB of memory")
    length = save_sparse(tmp_path / "m.gguf", gib * GIB // LAYER_BYTES + 1)
    result = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "m.gguf")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    peak, weights = map(int, result.stdout.split())
    assert weights > 0.98 * length
    assert peak < 1.1 * length + GIB, f"peak {peak / GIB:.2f} GiB for a file of {length / GIB:.2f}"
    print(f"file {length / GIB:.2f} GiB, weights {weights / GIB:.2f}, peak {peak / GIB:.2f}")
