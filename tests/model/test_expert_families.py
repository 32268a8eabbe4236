"""Full logits of every family of experts against transformers, as test_dense_families.py has it for the others.

Two experts that are nearly as good may change places where K and V or rows are rounded, and such a row, and those that see it, have other
logits: so of native kernels the nearest 19 of 20 rows are judged, of the reference all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels.reference import ReferenceOps
from tests.model import test_dense_families as dense
from tests.model.conftest import create_ops
from tests.model.dense_families import save_family
from tests.model.expert_families import ROWS, settings
from tests.model.tiny import Driver, open_worker

torch = pytest.importorskip("torch")

PROMPT = dense.PROMPT


def nearest(distance: Any) -> Any:
    """Which rows are not among the one in twenty that differ most."""
    return np.argsort(distance)[: len(distance) - len(distance) // 20]


def check(folder: Path, model: Any, prompt: list[int], tolerance: float = 1e-4) -> None:
    with torch.no_grad():
        theirs = model(torch.tensor([prompt])).logits[0].numpy()
    assert np.abs(theirs).max() > 0.2 and theirs.std() > 0.05
    ours = dense.logits_of(Driver(open_worker(folder, ReferenceOps())), prompt)
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=tolerance)
    native = dense.logits_of(Driver(open_worker(folder, create_ops("cpu"))), prompt)
    error = np.abs(native - theirs) / np.abs(theirs).max()
    error = error[nearest(error.max(axis=1))]
    assert error.mean() < 1e-3 and error.max() < 1e-2  # K and V are kept in 16 bits


@pytest.mark.parametrize(("family", "setting"), settings())
def test_logits_equal_transformers(family: str, setting: int, tmp_path: Path) -> None:
    check(tmp_path, save_family(tmp_path, family, setting), PROMPT)


@pytest.mark.parametrize(("family", "setting"), settings())
def test_chunks_and_batches_change_no_bit(family: str, setting: int, tmp_path: Path) -> None:
    dense.test_chunks_and_batches_change_no_bit(family, setting, tmp_path)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("family", ROWS)
def test_quantized_logits_are_near(family: str, quantization: str, tmp_path: Path) -> None:
    """Matrices in blocks, and rows rounded to 8 bits for them, against float32 arithmetic on the same matrices."""
    save_family(tmp_path, family)
    exact, native = (
        dense.log_softmax(dense.logits_of(Driver(open_worker(tmp_path, ops, quantization=quantization)), PROMPT))
        for ops in (ReferenceOps(), create_ops("cpu"))
    )
    divergence = (np.exp(exact) * (exact - native)).sum(-1)
    rows = nearest(divergence)
    assert divergence[rows].mean() < 0.01
    best = np.sort(exact[rows], axis=-1)
    clear = best[:, -1] - best[:, -2] > 0.1
    same = native[rows].argmax(-1)[clear] == exact[rows].argmax(-1)[clear]
    assert same.mean() > 0.9
