"""Whole forward passes of tiny models through the CUDA op set, in Triton's interpreter: the reference's tokens in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.errors import ConfigError
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.sampling_params import SamplingParams

from ..model.dense_families import save_family
from ..model.tiny import Driver, open_worker, save_model

pytest.importorskip("triton", reason="Triton is not installed")
cuda = pytest.importorskip("sglang.srt.model.kernels.cuda.ops", reason="torch is not installed")
if not cuda.INTERPRETED:
    pytest.skip("Triton compiles here: benchmarks/cuda.py tests on the device", allow_module_level=True)

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma3": {"head_dim": 32, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}


OTHERS = [("cohere", 1), ("gpt2", 0), ("hunyuan_v1_dense", 1), ("gemma4_text", 0), ("gemma3n_text", 0), ("deepseek_v3", 0)]
PROMPTS = [list(range(5, 19)), [7, 3]]


def generate(worker: Any, num_tokens: int, params: SamplingParams | None = None) -> list[list[int]]:
    """Prompts in chunks of 8, so that steps mix extending and decoding; the second of several requests repeats no other."""
    driver = Driver(worker)
    seqs = [driver.add(prompt, params, seed=i) for i, prompt in enumerate(PROMPTS)]
    driver.generate(seqs, num_tokens, chunk=8)
    return [seq.output for seq in seqs]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_the_reference_s(tmp_path: Path, family: str) -> None:
    save_model(tmp_path, family, num_hidden_layers=2, **FAMILIES[family])
    want = generate(open_worker(tmp_path, ReferenceOps()), 3)
    got = generate(open_worker(tmp_path, cuda.create_cuda_ops("cpu", "float32")), 3)
    assert got == want


@pytest.mark.xfail(
    reason="the GPU's kernels of recurrent layers do not run yet; check_decoder refuses the models there", strict=True
)
@pytest.mark.parametrize(("family", "setting"), [("lfm2", 1), ("qwen3_5", 0), ("qwen3_5", 1)])
def test_states_of_recurrent_layers(family: str, setting: int, tmp_path: Path) -> None:
    """In chunks, with copies on the way; a text goes on from a copy to the same bits."""
    save_family(tmp_path, family, setting)
    prompt = list(range(5, 25))
    rows = []
    for ops in (ReferenceOps(), cuda.create_cuda_ops("cpu", "float32")):
        driver = Driver(open_worker(tmp_path, ops, max_running_requests=6))
        one, other = driver.add(prompt), driver.add(prompt[:3])
        driver.saves[one.row] = [(1, 8), (9, 9)]
        rows.append(np.concatenate([driver.logits([(other, 3), (one, 7)])[3:], driver.logits([(one, 13)])]))
        again = driver.add(prompt)
        driver.table[again.row, :32] = driver.table[one.row, :32]
        for layer in driver.worker._states.layers:
            for states in layer.values():
                states[again.row] = states[9]
        again.done = 9
        np.testing.assert_array_equal(driver.logits([(again, 11)]), rows[-1][9:])
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-4 * np.abs(rows[0]).max())


@pytest.mark.parametrize(("family", "setting"), OTHERS)
def test_logits_of_families_with_other_halves(family: str, setting: int, tmp_path: Path) -> None:
    """Halves side by side, layer norms of single heads; learnt positions and no gate; norms after rotation; shared K and V, rows of
    tokens for each layer, several residual streams."""
    shorter = {} if family.startswith("gemma") else {"num_hidden_layers": 1}
    save_family(tmp_path, family, setting, **shorter)
    rows = []
    for ops in (ReferenceOps(), cuda.create_cuda_ops("cpu", "float32")):
        driver = Driver(open_worker(tmp_path, ops))
        rows.append(driver.logits([(driver.add(PROMPTS[1]), 2)]))
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-4 * np.abs(rows[0]).max())


def test_quantized_sampled_and_deterministic(tmp_path: Path) -> None:
    """int4 weights, every cut of sampling with penalties, the kernels of a fixed order: still the reference's tokens."""
    save_model(tmp_path, "qwen2", num_hidden_layers=1)
    params = SamplingParams(
        temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.2, frequency_penalty=0.3, logit_bias={7: 2.0}
    )
    want = generate(open_worker(tmp_path, ReferenceOps(), quantization="int4"), 2, params)
    for deterministic in (False, True):
        ops = cuda.create_cuda_ops("cpu", "float32", deterministic=deterministic)
        assert ops.deterministic == deterministic
        assert generate(open_worker(tmp_path, ops, quantization="int4"), 2, params) == want


@pytest.mark.parametrize("kv", ["auto", "fp8_e4m3"])
def test_bfloat16_logits_are_near(tmp_path: Path, kv: str) -> None:
    save_model(tmp_path, "qwen3", num_hidden_layers=2, head_dim=32)
    rows = []
    for ops in (ReferenceOps(), cuda.create_cuda_ops("cpu", "bfloat16", kv)):
        worker = open_worker(tmp_path, ops)
        driver = Driver(worker)
        driver.step([(driver.add(list(range(20, 40))), 20)])
        rows.append(ops.fetch(worker._logits).result()[0])
    spread = float(np.abs(rows[0]).max())
    assert np.abs(rows[1] - rows[0]).max() < (0.03 if kv == "auto" else 0.5) * spread  # the interpreter rounds float8 wrongly


def test_pictures(tmp_path: Path) -> None:
    """Qwen2.5-VL: windows and whole pictures, positions of three axes, rows laid over the text's."""
    vision = pytest.importorskip("tests.model.vision", reason="the extra [vision] is not installed")
    vision.save_qwen(tmp_path, "Qwen2_5_VL")
    shown = vision.show(np.random.default_rng(0), [[1, 2, 3], (1, 4, 4), [5]])
    rows = []
    for ops in (ReferenceOps(), cuda.create_cuda_ops("cpu", "float32")):
        worker = open_worker(tmp_path, ops)
        table = np.zeros((worker.info.max_running_requests, worker.info.context_len), np.int32)
        table[0, : len(shown.ids)] = np.arange(len(shown.ids))
        worker.bind(table)
        jobs = vision.embed(worker, shown.items)
        batch = vision.batch_of(shown, jobs, 0, len(shown.ids), table, 0)
        worker.forward(batch)
        last = np.array([len(shown.ids) - 1], np.int32)
        rows.append(ops.fetch(worker._runner.head(last)).result())
    assert np.abs(rows[0]).max() > 1
    assert np.abs(rows[1] - rows[0]).max() < 1e-5 * np.abs(rows[0]).max()


def test_what_cannot_run_says_so() -> None:
    with pytest.raises(ConfigError, match="finds no CUDA device|TRITON_INTERPRET"):
        cuda.create_cuda_ops("cuda:0")
    with pytest.raises(ConfigError, match="--dtype float64"):
        cuda.create_cuda_ops("cpu", "float64")
    with pytest.raises(ConfigError, match="--kv-cache-dtype int8"):
        cuda.create_cuda_ops("cpu", "float32", "int8")
