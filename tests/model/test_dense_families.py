"""Full logits of every dense family against transformers, on tiny random models with odd settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.weights.config_reader import read_model_config
from tests.model.conftest import create_ops
from tests.model.dense_families import LONG, RENAMED, ROWS, YARN, save_family, settings
from tests.model.tiny import Driver, open_worker

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(3)
PROMPT = [int(i) for i in RNG.integers(3, 199, 77)]
OTHERS = [[int(i) for i in RNG.integers(3, 199, n)] for n in (1, 16, 33)]


def logits_of(driver: Driver, prompt: list[int], chunk: int = 1000) -> Any:
    seq = driver.add(prompt)
    return np.concatenate([driver.logits([(seq, min(chunk, len(prompt) - i))]) for i in range(0, len(prompt), chunk)])


def log_softmax(x: Any) -> Any:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize(("family", "setting"), settings())
def test_logits_equal_transformers(family: str, setting: int, tmp_path: Path) -> None:
    """In float32, with the reference and with the native kernels."""
    model = save_family(tmp_path, family, setting)
    prompt = PROMPT[: model.config.max_position_embeddings]
    with torch.no_grad():
        theirs = model(torch.tensor([prompt])).logits[0].numpy()
    assert np.abs(theirs).max() > 0.2 and theirs.std() > 0.05
    ours = logits_of(Driver(open_worker(tmp_path, ReferenceOps())), prompt)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)
    native = logits_of(Driver(open_worker(tmp_path, create_ops("cpu"))), prompt)
    error = np.abs(native - theirs) / np.abs(theirs).max()
    assert error.mean() < 1e-3 and error.max() < 1e-2  # K and V are kept in 16 bits


@pytest.mark.parametrize(("family", "setting"), settings())
def test_chunks_and_batches_change_no_bit(family: str, setting: int, tmp_path: Path) -> None:
    save_family(tmp_path, family, setting)
    driver = Driver(open_worker(tmp_path, create_ops("cpu")))
    prompt = PROMPT[:60]
    whole = logits_of(driver, prompt)
    np.testing.assert_array_equal(logits_of(driver, prompt, chunk=16).view(np.int32), whole.view(np.int32))
    seq, others = driver.add(prompt), [driver.add(ids) for ids in OTHERS]
    together = driver.logits([(others[0], 1), (others[1], 16), (seq, len(prompt)), (others[2], 33)])
    np.testing.assert_array_equal(together[17 : 17 + len(prompt)].view(np.int32), whole.view(np.int32))


@pytest.mark.parametrize("family", ROWS)
def test_quantized_logits_are_near(family: str, tmp_path: Path) -> None:
    """Matrices of 8 bits, and rows rounded to 8 bits for them, against float32 arithmetic on the same matrices."""
    save_family(tmp_path, family)
    exact, native = (
        log_softmax(logits_of(Driver(open_worker(tmp_path, ops, quantization="int8")), PROMPT))
        for ops in (ReferenceOps(), create_ops("cpu"))
    )
    divergence = (np.exp(exact) * (exact - native)).sum(-1)
    assert divergence.mean() < 0.01
    best = np.sort(exact, axis=-1)
    clear = best[:, -1] - best[:, -2] > 0.1
    np.testing.assert_array_equal(native.argmax(-1)[clear], exact.argmax(-1)[clear])


@pytest.mark.parametrize("family", RENAMED)
def test_families_under_other_names(family: str, tmp_path: Path) -> None:
    model = RENAMED[family](tmp_path)
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    ours = logits_of(Driver(open_worker(tmp_path, ReferenceOps())), PROMPT)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)


OLD_SPELLINGS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "phi3 su": (
        "phi3",
        1,
        {"rope_scaling": {"type": "su", **LONG}, "rope_theta": 1e4, "original_max_position_embeddings": 64},
    ),
    "phi3 yarn": (
        "phi3",
        1,
        {"rope_scaling": {"type": "yarn", **LONG}, "rope_theta": 1e4, "original_max_position_embeddings": 64},
    ),
    "smollm3": ("smollm3", 3, {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in YARN.items() if k != "rope_theta"}}),
    "olmo3": ("olmo3", 1, {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in YARN.items() if k != "rope_theta"}}),
    "glm4": ("glm4", 1, {"rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    "stablelm": ("stablelm", 0, {"rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    "gpt_neox": ("gpt_neox", 2, {"rotary_emb_base": 500, "rotary_pct": 1.0}),
    "nemotron": ("nemotron", 0, {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    "hunyuan": (
        "hunyuan_v1_dense",
        1,
        {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
    ),
    "exaone4": ("exaone4", 0, {"rope_theta": 1e4, "sliding_window_pattern": "LLLG"}),
    "cohere2": ("cohere2", 0, {"rope_theta": 1e4, "sliding_window_pattern": 4}),
    "gemma2": ("gemma2", 0, {"rope_theta": 1e4}),
}
"""case -> (family, setting, the fields of files older than `rope_parameters`)"""


@pytest.mark.parametrize("case", OLD_SPELLINGS)
def test_configs_of_older_files_mean_the_same(case: str, tmp_path: Path) -> None:
    family, setting, old = OLD_SPELLINGS[case]
    save_family(tmp_path, family, setting)
    new = read_model_config(tmp_path, {})
    raw = json.loads((tmp_path / "config.json").read_text())
    kept = {
        k: v for k, v in raw.items() if k not in ("rope_parameters", "dtype", "layer_types" if "window_p" in str(old) else "")
    }
    (tmp_path / "config.json").write_text(json.dumps({**kept, "torch_dtype": "float32", **old}))
    assert read_model_config(tmp_path, {}) == new
