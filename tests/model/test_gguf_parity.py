"""A GGUF file against transformers with the same weights dequantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels.ops import Ops
from tests.model import test_weights_loader
from tests.model.tiny import Driver, open_worker, save_model

torch = pytest.importorskip("torch")

PROMPT = [int(i) for i in np.random.default_rng(5).integers(3, 199, 40)]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma3": {"head_dim": 32, "query_pre_attn_scalar": 32},
}


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1", "Q5_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, kind: str, ops: Ops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path, family, **FAMILIES[family])
    stored = {name: value.float().numpy() for name, value in model.state_dict().items()}
    monkeypatch.setattr(test_weights_loader, "save", lambda folder, family: stored)
    path, weights = test_weights_loader.save_gguf(tmp_path, family, kind)
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}
    if family == "gemma3":  # GGUF stores 1 + w
        state = {name: value - 1 if name.endswith("norm.weight") else value for name, value in state.items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    model.tie_weights()
    driver = Driver(open_worker(path, ops, max_total_tokens=256))
    ours = driver.logits([(driver.add(PROMPT), len(PROMPT))])
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    if ops.name.startswith("reference"):
        assert error.max() < 2e-5
    else:  # K and V in 16 bits, and int8 activations where matrices are quantized
        assert error.mean() < (0.001 if kind == "F32" else 0.04)
