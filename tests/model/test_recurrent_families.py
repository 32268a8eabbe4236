"""Full logits of every family with recurrent layers against transformers, as test_dense_families.py has it for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.model import test_dense_families as dense
from tests.model import test_expert_families as experts
from tests.model.conftest import create_ops
from tests.model.dense_families import save_family
from tests.model.recurrent_families import ROWS, settings
from tests.model.tiny import Driver, open_worker

torch = pytest.importorskip("torch")

PROMPT = dense.PROMPT


@pytest.mark.parametrize(("family", "setting"), settings())
def test_logits_equal_transformers(family: str, setting: int, tmp_path: Path) -> None:
    """To 1e-4, or nearer to the same in float64 than four times what transformers' own float32 is: an expert that is nearly as good
    as another, and a state that forgets nothing, make more of roundings than other layers."""
    model = save_family(tmp_path, family, setting)
    model.config._experts_implementation = "eager"
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
        exact = model.double()(torch.tensor([PROMPT])).logits[0].numpy()
    scale = np.abs(exact).max()
    assert scale > 0.2 and exact.std() > 0.05
    room = max(1e-4, 4 * np.abs(theirs - exact).max() / scale)
    ours = dense.logits_of(Driver(open_worker(tmp_path, create_ops("reference"))), PROMPT)
    assert np.abs(ours - exact).max() / scale < room < 1e-2
    native = np.abs(dense.logits_of(Driver(open_worker(tmp_path, create_ops("cpu"))), PROMPT) - exact) / scale
    native = native[experts.nearest(native.max(axis=1))]
    assert native.mean() < 1e-3 and native.max() < max(1e-2, room)  # K and V are kept in 16 bits


@pytest.mark.parametrize(("family", "setting"), settings())
def test_chunks_and_batches_change_no_bit(family: str, setting: int, tmp_path: Path) -> None:
    dense.test_chunks_and_batches_change_no_bit(family, setting, tmp_path)


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("family", ROWS)
def test_saved_states_continue_bitwise(family: str, kernels: str, tmp_path: Path) -> None:
    """A text goes on from a state that was saved in the middle of a step, as from its own."""
    save_family(tmp_path, family)
    driver = Driver(open_worker(tmp_path, create_ops(kernels)))
    whole = dense.logits_of(driver, PROMPT)
    saved = {1: 20, 30: 21, 31: 22, 50: 23}
    one = driver.add(PROMPT)
    driver.saves[one.row] = list(saved.items())
    parts = [driver.logits([(one, n)]) for n in (30, 20, 27)]
    np.testing.assert_array_equal(np.concatenate(parts).view(np.int32), whole.view(np.int32))
    for position, slot in saved.items():
        other = driver.add(PROMPT)
        driver.table[other.row, :80] = driver.table[one.row, :80]
        for layer in driver.worker._states.layers:
            for states in layer.values():
                states[other.row] = states[slot]
        driver._slots(other, 0)
        other.done = position
        batch: Any = driver.logits([(other, len(PROMPT) - position)])
        np.testing.assert_array_equal(batch.view(np.int32), whole[position:].view(np.int32))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("family", ROWS)
def test_quantized_logits_are_near(family: str, quantization: str, tmp_path: Path) -> None:
    """As for experts; what is rounded in a state stays, so that single rows of random models may go elsewhere."""
    save_family(tmp_path, family)
    exact, native = (
        dense.log_softmax(dense.logits_of(Driver(open_worker(tmp_path, ops, quantization=quantization)), PROMPT))
        for ops in (create_ops("reference"), create_ops("cpu"))
    )
    divergence = np.sort((np.exp(exact) * (exact - native)).sum(-1))
    assert np.median(divergence) < 0.01 and divergence[: -len(divergence) // 5].mean() < 0.02
