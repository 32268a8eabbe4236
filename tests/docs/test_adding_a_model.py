"""The example layer of docs/adding-a-model.md is a file that runs and computes what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.own_layer import TwiceFed
from sglang.srt.model.models.registry import MODELS
from tests.model.conftest import create_ops
from tests.model.tiny import Driver, open_worker, save_model

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]
PROMPT = [int(i) for i in np.random.default_rng(3).integers(3, 199, 40)]


def test_the_page_shows_the_file() -> None:
    assert (ROOT / "examples" / "own_layer.py").read_text() in (ROOT / "docs" / "adding-a-model.md").read_text()


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_it_computes_what_it_says(kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path, "llama")

    def feed_before(layer: Any, args: Any, kwargs: Any) -> Any:
        x = args[0]
        return (x + layer.mlp(layer.post_attention_layernorm(x)), *args[1:]), kwargs

    for layer in model.model.layers:
        layer.register_forward_pre_hook(feed_before, with_kwargs=True)
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    monkeypatch.setitem(MODELS, "llama", TwiceFed)
    driver = Driver(open_worker(tmp_path, create_ops(kernels)))
    seq = driver.add(PROMPT)
    ours = np.concatenate([driver.logits([(seq, 16)]), driver.logits([(seq, 24)])])
    assert np.abs(ours - theirs).max() < (1e-3 if kernels == "reference" else 0.05)
