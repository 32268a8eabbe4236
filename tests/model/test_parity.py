"""Logits of every architecture and variant against transformers, on tiny random models saved as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels.reference import ReferenceOps
from tests.model.conftest import create_ops
from tests.model.tiny import Driver, open_worker, save_model

torch = pytest.importorskip("torch")

PROMPT = [int(i) for i in np.random.default_rng(3).integers(3, 199, 77)]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama attention bias": ("llama", {"attention_bias": True}),
    "llama mlp bias": ("llama", {"mlp_bias": True}),
    "llama head_dim": ("llama", {"head_dim": 48}),
    "llama multi-head": ("llama", {"num_key_value_heads": 4}),
    "llama multi-query": ("llama", {"num_key_value_heads": 1}),
    "llama rope theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama rope linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama rope llama3": ("llama", {"rope_parameters": dict(rope_theta=1e4, **LLAMA3)}),
    "llama rope yarn": ("llama", {"rope_parameters": dict(rope_theta=1e4, **YARN)}),
    "llama rope yarn mscale": (
        "llama",
        {"rope_parameters": dict(rope_theta=1e4, mscale=0.7, mscale_all_dim=1.3, beta_fast=16.0, **YARN)},
    ),
    "llama rope yarn factor": ("llama", {"rope_parameters": dict(rope_theta=1e4, attention_factor=1.4, **YARN)}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 19}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 window": ("qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3 bias": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "gemma3": ("gemma3", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 24}),
    "gemma3 global": ("gemma3", {"head_dim": 16, "layer_types": ["full_attention"] * 3}),
    "gemma3 mixed": (
        "gemma3",
        {"head_dim": 16, "sliding_window": 33, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma3 soft caps": ("gemma3", {"head_dim": 16, "attn_logit_softcapping": 2.5, "final_logit_softcapping": 3.0}),
}


@pytest.fixture(autouse=True)
def transformers_soft_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' Gemma 3 attention knows the soft cap but its layers forget to pass it on."""
    modeling = pytest.importorskip("transformers.models.gemma3.modeling_gemma3")
    eager = modeling.eager_attention_forward

    def capped(module: Any, *args: Any, **kwargs: Any) -> Any:
        return eager(module, *args, softcap=module.attn_logit_softcapping, **kwargs)

    monkeypatch.setattr(modeling, "eager_attention_forward", capped)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    model = save_model(tmp_path, family, **overrides)
    driver = Driver(open_worker(tmp_path, ReferenceOps()))
    ours = driver.logits([(driver.add(PROMPT), len(PROMPT))])
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_native_kernels_agree_with_the_reference(variant: str, tmp_path: Path) -> None:
    """On float32 weights all that is lost is the rounding of K and V to 16 bits."""
    family, overrides = VARIANTS[variant]
    save_model(tmp_path, family, **overrides)
    logits = []
    for ops in (ReferenceOps(), create_ops("cpu")):
        driver = Driver(open_worker(tmp_path, ops))
        logits.append(driver.logits([(driver.add(PROMPT), len(PROMPT))]))
    error = np.abs(logits[1] - logits[0])
    assert 0 < error.max() < 0.02 and error.mean() < 0.002
