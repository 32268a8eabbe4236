"""Block formats: equal to the gguf package's to the last bit, and what quantizing costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.checkpoint.gguf_reader import BLOCK_TYPES
from sglang.srt.model.quant.formats import FORMATS, HostTensor, dense, quantize_q4_1, quantize_q8_0

gguf = pytest.importorskip("gguf")

BLOCKED = [name for name, f in FORMATS.items() if f.block_len > 1]


def random_blocks(name: str, seed: int, rows: int = 9, blocks: int = 5) -> HostTensor:
    """Any bytes are valid blocks; halves that are infinite or NaN are among them."""
    layout = FORMATS[name]
    data = np.random.default_rng(seed).integers(0, 256, (rows, blocks * layout.block_bytes), dtype=np.uint8)
    return HostTensor("w", name, (rows, blocks * layout.block_len), data)


def oracle(tensor: HostTensor) -> np.ndarray[Any, Any]:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(tensor.data, getattr(gguf.GGMLQuantizationType, tensor.format.upper()))


def test_both_tables_of_formats_agree() -> None:
    ours = {f.name: (f.block_len, f.block_bytes) for f in FORMATS.values() if f.name != "f8"}  # GGUF has no float8
    assert {f: (n, b) for f, n, b in BLOCK_TYPES.values()} == ours
    for kind, (name, block_len, block_bytes) in BLOCK_TYPES.items():
        assert gguf.GGMLQuantizationType[name.upper()] == kind
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] == (block_len, block_bytes)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", BLOCKED)
def test_dequantize_is_exact(name: str) -> None:
    tensor = random_blocks(name, seed=7, rows=40)
    np.testing.assert_array_equal(tensor.dequantize(), oracle(tensor))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(BLOCKED), seed=st.integers(0, 2**32), rows=st.integers(1, 5), blocks=st.integers(1, 3))
def test_dequantize_is_exact_for_any_blocks(name: str, seed: int, rows: int, blocks: int) -> None:
    tensor = random_blocks(name, seed, rows, blocks)
    np.testing.assert_array_equal(tensor.dequantize(), oracle(tensor))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_chunks_do_not_show() -> None:
    tensor = random_blocks("q6_k", seed=3, rows=700, blocks=4)  # several chunks
    np.testing.assert_array_equal(tensor.dequantize(), oracle(tensor))


def test_16_bit_numbers() -> None:
    torch = pytest.importorskip("torch")
    every = np.arange(1 << 16, dtype=np.uint16)
    signed = torch.from_numpy(every.view(np.int16))
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        ours = HostTensor("w", name, every.shape, every).dequantize()
        np.testing.assert_array_equal(ours, signed.view(dtype).float().numpy())
        np.testing.assert_array_equal(dense("w", ours, name).dequantize(), ours)  # there and back


def test_rounding_to_bf16_is_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    values[:4] = [np.inf, -np.inf, 3.4e38, 0.0]
    values[4:10] = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 1], np.uint32).view(np.float32)
    theirs = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(dense("w", values, "bf16").data, theirs)
    assert np.isnan(dense("w", np.array([np.nan, -np.nan], np.float32), "bf16").dequantize()).all()


@pytest.mark.parametrize(
    ("quantize", "name", "bits", "rms"), [(quantize_q8_0, "q8_0", 8, 0.006), (quantize_q4_1, "q4_1", 4, 0.085)]
)
def test_quantizing(quantize: Any, name: str, bits: int, rms: float) -> None:
    values = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    values[3] = 0.0
    values[4] = 5.0
    tensor = quantize("w", values)
    assert (tensor.name, tensor.format, tensor.shape) == ("w", name, (64, 256))
    back = tensor.dequantize()
    np.testing.assert_array_equal(back, oracle(tensor))
    assert (back[3] == 0).all()
    np.testing.assert_allclose(back[4], 5.0, rtol=1e-3)
    errors = back - values
    assert np.sqrt((errors**2).mean()) < rms
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    theirs = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind) - values
    assert (errors**2).sum() < (theirs**2).sum() * 1.001
    groups = values.reshape(-1, 32)
    spread = np.ptp(groups, axis=1) / 15 if bits == 4 else np.abs(groups).max(axis=1) / 127
    assert (np.abs(errors).reshape(-1, 32).max(axis=1) <= spread * 0.52 + 0.004).all()


@pytest.mark.parametrize("quantize", [quantize_q8_0, quantize_q4_1])
def test_quantizing_extremes(quantize: Any) -> None:
    values = np.zeros((1, 64), np.float32)
    values[0, :2] = [3e38, -3e38]  # beyond any float16 scale
    values[0, 32:] = 1e-30  # below any float16 scale
    assert np.isfinite(quantize("w", values).dequantize()).all()
    with pytest.raises(ValueError, match="blocks of 32"):
        quantize("w", np.zeros((2, 33), np.float32))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", list(FORMATS))
def test_rows_move_whole(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    is_values = name in ("f32", "f16", "bf16")
    tensor = dense("w", values, name) if is_values else random_blocks(name, 5, 8, 512 // FORMATS[name].block_len)
    if name == "f8":
        tensor = replace(tensor, scale=np.arange(1, 9, dtype=np.float32))
    every = tensor.dequantize()
    order = np.array([3, 0, 7, 7])
    taken = tensor.take_rows(order)
    assert taken.shape == (4, tensor.shape[1])
    np.testing.assert_array_equal(taken.dequantize(), every[order])
    part = tensor.slice_rows(2, 5)
    assert part.shape == (3, tensor.shape[1])
    assert np.shares_memory(part.data, tensor.data)
    np.testing.assert_array_equal(part.dequantize(), every[2:5])
    with pytest.raises(ValueError, match="rows 5..9"):
        tensor.slice_rows(5, 9)


def test_vectors_have_rows_too() -> None:
    bias = dense("b", np.arange(6, dtype=np.float32))
    assert bias.take_rows(np.array([5, 1])).dequantize().tolist() == [5.0, 1.0]
    assert bias.slice_rows(1, 3).dequantize().tolist() == [1.0, 2.0]
