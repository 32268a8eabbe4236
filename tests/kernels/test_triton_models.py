"""Whole forward passes of tiny models through the CUDA op set, in Triton's interpreter: the reference's tokens in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.sampling_params import SamplingParams

from ..model.tiny import Driver, open_worker, save_model

pytest.importorskip("triton", reason="Triton is not installed")
cuda = pytest.importorskip("sglang.srt.model.kernels.cuda", reason="torch is not installed")
if not cuda.INTERPRETED:
    pytest.skip("Triton compiles here: benchmarks/cuda.py tests on the device", allow_module_level=True)

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma3": {"head_dim": 32, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}


PROMPTS = [list(range(5, 26)), [7, 3], [11, 12, 13, 14, 15, 16, 17, 18, 19]]


def generate(worker: Any, num_tokens: int, params: SamplingParams | None = None) -> list[list[int]]:
    """Prompts in chunks of 8, so that steps mix extending and decoding; the second of several requests repeats no other."""
    driver = Driver(worker)
    seqs = [driver.add(prompt, params, seed=i) for i, prompt in enumerate(PROMPTS)]
    driver.generate(seqs, num_tokens, chunk=8)
    return [seq.output for seq in seqs]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_the_reference_s(tmp_path: Path, family: str) -> None:
    save_model(tmp_path, family, num_hidden_layers=2, **FAMILIES[family])
    want = generate(open_worker(tmp_path, ReferenceOps()), 4)
    got = generate(open_worker(tmp_path, cuda.create_cuda_ops("cpu", "float32")), 4)
    assert got == want
