"""Ops on logits against the NumPy reference and their docstrings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sglang.srt.model.kernels.reference import ReferenceOps

from .support import Float, ints, same_bits

REFERENCE = ReferenceOps()
VOCAB = 5003


def logits(rows: int, vocab: int = VOCAB, seed: int = 0, spread: float = 3.0) -> Float:
    return (np.random.default_rng(seed).standard_normal((rows, vocab)) * spread).astype(np.float32)


def test_adjust(ops: Any) -> None:
    rng = np.random.default_rng(0)
    x = logits(4)
    counts = [3, 0, 100, 7]
    indptr = ints(0, *np.cumsum(counts))
    ids = np.concatenate([rng.choice(VOCAB, n, False) for n in counts]).astype(np.int32)
    scale, bias = rng.uniform(0.5, 2, len(ids)).astype(np.float32), rng.standard_normal(len(ids)).astype(np.float32)
    want = x.copy()
    REFERENCE.adjust(want, indptr, ids, scale, bias)
    ops.adjust(x, indptr, ids, scale, bias)
    same_bits(x, want)
    ops.adjust(x, ints(0, 2), ints(-1, VOCAB), scale[:2].copy(), bias[:2].copy())  # ids that are no columns: nothing
    same_bits(x, want)


@pytest.mark.parametrize("words", [1, 100, (VOCAB + 31) // 32, 400])
def test_mask(ops: Any, words: int) -> None:
    """Too few words: the columns beyond are masked. Too many: the rest is ignored."""
    rng = np.random.default_rng(words)
    x, bits = logits(5), rng.integers(0, 2**32, (2, words), np.uint32)
    bits[0, :: max(1, words // 3)] = 0xFFFFFFFF
    want = x.copy()
    known = min(VOCAB, words * 32)
    for row, word in zip((4, 1), bits, strict=True):
        allow = (word[np.arange(known) // 32] >> (np.arange(known) % 32)) & 1
        want[row, :known][allow == 0] = -np.inf
        want[row, known:] = -np.inf
    ops.mask(x, ints(4, 1), bits)
    same_bits(x, want)


@pytest.mark.parametrize("vocab", [1, 15, 16, 17, VOCAB])
def test_argmax(ops: Any, vocab: int) -> None:
    x = logits(6, vocab)
    x[1] = 3
    x[2] = -np.inf
    x[3, -1] = np.inf
    x[4, vocab // 2] = np.nan
    x[5, [0, vocab // 2, -1]] = 100
    out = np.full(7, 9, np.int32)
    ops.argmax(x, 6, out)
    assert out.tolist() == [int(x[0].argmax()), 0, 0, int(x[3].argmax()), -1, 0, 9]


def test_log_sum_exp(ops: Any, more_threads: list[Any]) -> None:
    x = logits(5, 50000, spread=8)
    x[3, ::2] = -np.inf
    x[4] = -np.inf
    y = x[:4].astype(np.float64)
    want = np.log(np.exp(y - y.max(1, keepdims=True)).sum(1)) + y.max(1)
    out = np.zeros(5, np.float32)
    ops.log_sum_exp(x, 5, out)
    np.testing.assert_allclose(out[:4], want, rtol=3e-7)
    assert out[4] == -np.inf
    for other in more_threads:
        again = np.zeros(1, np.float32)
        for i in range(4):
            other.log_sum_exp(x[i : i + 1], 1, again)
            same_bits(again, out[i : i + 1])
    x[0, 77] = np.nan
    ops.log_sum_exp(x, 1, out)
    assert np.isnan(out[0])


@pytest.mark.parametrize("k", [1, 2, 20, 1000, VOCAB])
def test_top_k(ops: Any, k: int) -> None:
    x = logits(4)
    x[1] = np.round(x[1])  # many ties
    x[2, 5:] = -np.inf
    x[3] = np.arange(VOCAB)
    ids, values = np.zeros((4, k), np.int32), np.zeros((4, k), np.float32)
    ops.top_k(x, 4, k, ids, values)
    for row in range(4):
        order = np.argsort(-x[row], kind="stable")[:k]
        assert ids[row].tolist() == order.tolist()
        same_bits(values[row], x[row, order])
    with pytest.raises(ValueError, match="k must"):
        ops.top_k(x, 4, VOCAB + 1, ids, values)


def sample(ops: Any, x: Float, n: int, **settings: Any) -> npt.NDArray[np.int32]:
    """Many samples from equal or different rows. Settings are numbers or arrays of n."""
    plain = {"temperature": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0, "uniform": 0.5} | settings
    out = np.full(n, -9, np.int32)
    arrays = {
        name: np.broadcast_to(np.asarray(v, np.int32 if name == "top_k" else np.float32), (n,)).copy()
        for name, v in plain.items()
    }
    ops.sample(x, n, arrays["temperature"], arrays["top_k"], arrays["top_p"], arrays["min_p"], arrays["uniform"], out)
    return out


CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 50.0},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 4000, "temperature": 5.0},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 4.0},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 1e-9, "temperature": 3.0},
    {"top_k": 100, "top_p": 0.8, "min_p": 0.01},
    {"top_k": 3000, "top_p": 0.999, "min_p": 1e-7, "temperature": 2.0},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_sample_is_the_reference(ops: Any, case: dict[str, Any], ties: bool) -> None:
    """The same token as the sorted way, for samples all over the interval: sums that differ in their last bits may move a
    sample to the next token, once in some thousand."""
    rng = np.random.default_rng(5)
    n = 40
    x = logits(n, 2000, seed=6, spread=4)
    if ties:
        x = np.round(x * 2) / 2
    uniform = rng.uniform(0, 1, n).astype(np.float32)
    got, want = sample(ops, x, n, uniform=uniform, **case), sample(REFERENCE, x, n, uniform=uniform, **case)
    assert (got != want).sum() <= 1


def test_sample_ends_of_the_interval(ops: Any) -> None:
    x = logits(1)
    order = np.argsort(-x[0], kind="stable")
    almost = np.nextafter(np.float32(1), np.float32(0))
    assert sample(ops, x, 1, uniform=0.0)[0] == order[0]
    assert sample(ops, x, 1, uniform=almost, top_k=7)[0] == order[6]
    assert sample(ops, x, 1, uniform=almost, min_p=0.999)[0] == order[0]
    assert 0 <= sample(ops, x, 1, uniform=1.0)[0] < VOCAB


def test_sample_frequencies(ops: Any) -> None:
    """Over a grid of uniform numbers every token comes as often as it is likely."""
    probs = np.array([0.4, 0.3, 0.2, 0.1])
    n = 2000
    x = np.full((n, 100), -np.inf, np.float32)
    x[:, [50, 3, 99, 17]] = np.log(probs)
    out = sample(ops, x, n, uniform=(np.arange(n) + 0.5) / n)
    assert [int((out == i).sum()) for i in (50, 3, 99, 17)] == [800, 600, 400, 200]


def test_sample_flat_row(ops: Any) -> None:
    """All equal: the cumulative sum runs over the ids in order."""
    x = np.zeros((5, 1000), np.float32)
    uniform = np.array([0, 0.1005, 0.5005, 0.9005, 0.9999], np.float32)
    assert sample(ops, x, 5, uniform=uniform).tolist() == [0, 100, 500, 900, 999]


def test_sample_greedy_and_broken_rows(ops: Any) -> None:
    x = logits(6)
    x[1, 9] = np.nan
    x[2] = -np.inf
    x[3] = -np.inf
    x[3, 77] = -5.0
    x[4, 8] = np.inf
    got = sample(ops, x, 6, temperature=np.array([0, 1, 1, 1, 1, 1e-38]), uniform=0.7)
    assert got.tolist() == [int(x[0].argmax()), -1, -1, 77, 8, int(x[5].argmax())]


def test_sample_does_not_depend_on_the_batch(ops: Any, more_threads: list[Any]) -> None:
    n = 33
    x, uniform = logits(n), np.random.default_rng(9).uniform(0, 1, n).astype(np.float32)
    together = sample(ops, x, n, uniform=uniform, top_p=0.95)
    for other in (ops, *more_threads):
        alone = [int(sample(other, x[i : i + 1], 1, uniform=uniform[i], top_p=0.95)[0]) for i in range(n)]
        assert alone == together.tolist()


def test_arguments_are_checked(ops: Any) -> None:
    x = logits(2)
    with pytest.raises(ValueError, match="num_rows"):
        ops.argmax(x, 3, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="out must have at least 2"):
        ops.argmax(x, 2, np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="int32"):
        ops.argmax(x, 2, np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="decrease"):
        ops.adjust(x, ints(0, 5, 3), ints(*range(5)), np.ones(5, np.float32), np.ones(5, np.float32))
    with pytest.raises(ValueError, match="bits"):
        ops.mask(x, ints(0, 1), np.zeros((1, 200), np.uint32))
