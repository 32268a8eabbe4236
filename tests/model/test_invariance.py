"""Logits are bitwise the same alone and in a batch, whole and in chunks, recorded and called one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels.ops import Ops
from tests.model.tiny import Driver, Seq, open_worker, save_model

pytest.importorskip("torch")

RNG = np.random.default_rng(11)
PROMPT = [int(i) for i in RNG.integers(3, 199, 75)]
OTHERS = [[int(i) for i in RNG.integers(3, 199, n)] for n in (1, 2, 5, 16, 17, 30, 31, 32, 33, 40, 48, 50, 63, 64, 90)]

MODELS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "llama": ("llama", {}, None),
    "gemma3 window": ("gemma3", {"head_dim": 48, "sliding_window": 21}, None),
    "qwen2 int8": ("qwen2", {"intermediate_size": 160}, "int8"),
    "llama int4": ("llama", {"intermediate_size": 128, "num_key_value_heads": 1}, "int4"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str | None]:
    family, overrides, quantization = MODELS[request.param]
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, family, **overrides)
    return folder, quantization


def new_driver(model: tuple[Path, str | None], ops: Ops, seed: int = 0, use_tape: bool = True) -> Driver:
    return Driver(open_worker(model[0], ops, use_tape, model[1]), seed)


def in_chunks(driver: Driver, seq: Seq, *chunks: int) -> np.ndarray[Any, Any]:
    return np.concatenate([driver.logits([(seq, n)]) for n in chunks])


def assert_same_bits(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))


def test_chunks(model: tuple[Path, str | None], ops: Ops) -> None:
    driver = new_driver(model, ops)
    whole = in_chunks(driver, driver.add(PROMPT), 75)
    assert np.isfinite(whole).all()
    for chunks in ((16,) * 4 + (11,), (1,) * 75, (7, 1, 33, 2, 32), (74, 1)):
        assert_same_bits(in_chunks(driver, driver.add(PROMPT), *chunks), whole)


def test_a_batch(model: tuple[Path, str | None], ops: Ops) -> None:
    """Beside 15 others, some extending, some decoding, at any place of the batch."""
    driver = new_driver(model, ops)
    alone = in_chunks(driver, driver.add(PROMPT), 75)
    batch = new_driver(model, ops, seed=1)
    others = [batch.add(ids) for ids in OTHERS]
    seq = batch.add(PROMPT)
    parts = [(other, len(other.prompt) - 1) for other in others[1:8]]
    logits = batch.logits([*parts, (seq, 20)])
    first = sum(n for _, n in parts)
    assert_same_bits(logits[first : first + 20], alone[:20])
    decoding = [(other, 1) for other in others[1:8]]
    extending = [(other, len(other.prompt)) for other in others[8:]]
    logits = batch.logits([(others[0], 1), *decoding, (seq, 55), *extending])
    assert_same_bits(logits[8:63], alone[20:])


def test_generation_in_a_batch(model: tuple[Path, str | None], ops: Ops) -> None:
    driver = new_driver(model, ops)
    alone = []
    for ids in [PROMPT, *OTHERS]:
        seq = driver.add(ids)
        driver.generate([seq], 6)
        alone.append(seq.output)
    together = new_driver(model, ops, seed=2)
    seqs = [together.add(ids) for ids in [PROMPT, *OTHERS]]
    together.generate(seqs, 6, chunk=10)
    assert [s.output for s in seqs] == alone


def test_tape_equals_calls(model: tuple[Path, str | None], ops: Ops) -> None:
    taped, called = new_driver(model, ops), new_driver(model, ops, use_tape=False)
    assert_same_bits(in_chunks(taped, taped.add(PROMPT), 30, 45), in_chunks(called, called.add(PROMPT), 30, 45))
