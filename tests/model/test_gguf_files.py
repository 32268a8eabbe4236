"""GGUF files of formats that are repacked when they are read, and files in several parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.errors import ModelError
from sglang.srt.model.quant.blocks import dequantize, packable_format, repacked
from sglang.srt.model.quant.formats import FORMATS
from tests.model.conftest import create_ops
from tests.model.dense_families import save_family
from tests.model.test_dense_families import PROMPT, logits_of
from tests.model.test_dense_files import write_metadata
from tests.model.tiny import Driver, open_worker

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
RNG = np.random.default_rng(7)
TABLES = ("IQ4_NL", "IQ4_XS", "MXFP4")
SMALL = ("Q2_K", "Q3_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "NVFP4")
SCALE_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "TQ1_0": (52,), "TQ2_0": (64,)}
"""where a block has its float16s; others at its beginning"""
LARGEST = {
    "Q2_K": 48,
    "Q3_K": 128,
    "IQ1_S": 16,
    "IQ1_M": 16,
    "IQ2_XXS": 168,
    "IQ2_XS": 168,
    "IQ2_S": 168,
    "IQ3_XXS": 480,
    "IQ3_S": 480,
}
"""about by how much levels and scales multiply it"""
EXACT = ("IQ4_NL", "MXFP4", "TQ1_0", "TQ2_0")


def random_rows(kind: str, rows: int, width: int, size: float = 1.0) -> Any:
    """Rows of blocks with random contents, scales such that values are about `size` (a power of two)."""
    form = FORMATS[kind.lower()]
    data = RNG.integers(0, 256, (rows, width // form.block_len, form.block_bytes), np.uint8)
    if kind == "NVFP4":
        data[:, :, :4] = RNG.integers(2, 12, (*data.shape[:2], 4))
    elif kind == "IQ1_M":
        words = data[:, :, 48:56].copy().view("<u2") & 0x0FFF
        scale = (size * RNG.standard_normal(data.shape[:2]) / 16).astype(np.float16).view("<u2")[..., None]
        data[:, :, 48:56] = (words | ((scale << np.array([12, 8, 4, 0], "<u2")) & 0xF000)).view(np.uint8)
    elif kind in SMALL:
        for at in SCALE_AT.get(kind, (0,)):
            scale = (size * RNG.standard_normal(data.shape[:2]) / LARGEST.get(kind, 1)).astype(np.float16)
            data[:, :, at : at + 2] = scale[:, :, None].view(np.uint8)
    elif kind == "MXFP4":
        data[:, :, 0] = RNG.integers(118, 128, data.shape[:2]) + int(np.log2(size))
    else:
        scale = (size * RNG.standard_normal(data.shape[:2]) / (64 * (16 if kind == "IQ4_XS" else 1))).astype(np.float16)
        data[:, :, :2] = scale[:, :, None].view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("width", [256, 1280])
@pytest.mark.parametrize("kind", TABLES + SMALL)
def test_values_are_those_of_the_gguf_package(kind: str, width: int) -> None:
    data = random_rows(kind, 9, width)
    ours, theirs = dequantize(kind.lower(), data), gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(ours, theirs)
    assert ours.std() > 0.03
    packed = dequantize(packable_format(kind.lower()), repacked(kind.lower(), data))
    if kind in EXACT:
        np.testing.assert_array_equal(packed, ours)
    elif kind in ("IQ4_XS", "IQ2_XXS", "IQ3_XXS", "IQ3_S"):
        np.testing.assert_allclose(packed, ours, rtol=2**-11, atol=2**-19)
    else:
        largest = np.abs(ours).reshape(9, -1, 32).max(axis=2, keepdims=True)
        assert (np.abs(packed - ours).reshape(9, -1, 32) <= largest * (2**-9 if kind == "IQ1_S" else 1 / 253) + 1e-7).all()


@pytest.mark.parametrize("kind", TABLES + SMALL)
@given(seed=st.binary(min_size=1, max_size=200), fill=st.integers(0, 255), rows=st.integers(1, 3), blocks=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_any_bytes_are_read_as_the_gguf_package_reads_them(kind: str, seed: bytes, fill: int, rows: int, blocks: int) -> None:
    """Infinite scales, reserved codes and all."""
    form = FORMATS[kind.lower()]
    size = rows * blocks * form.block_bytes
    data = np.frombuffer((seed * size)[: size - fill % 7] + bytes([fill]) * (fill % 7), np.uint8).reshape(rows, -1)
    with np.errstate(all="ignore"):
        ours, theirs = dequantize(kind.lower(), data), gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
        repacked(kind.lower(), data)
    np.testing.assert_array_equal(ours, theirs)


def write(path: Path, model: Any, matrices: dict[str, tuple[Any, Any]], **options: Any) -> None:
    """A Llama whose rows stay in Hugging Face's order is a Qwen2 without biases: so one is written as the other."""
    writer = gguf.GGUFWriter(str(path), "qwen2", **options)
    write_metadata(writer, "qwen2", model.config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, model.config.num_hidden_layers)
    for key, value in model.state_dict().items():
        data, kind = matrices.get(key, (value.numpy(), gguf.GGMLQuantizationType.F32))
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight",)), np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("kind", TABLES + SMALL)
def test_a_model_of_such_matrices(kind: str, kernels: str, tmp_path: Path) -> None:
    model = save_family(tmp_path, "llama", head_dim=64, hidden_size=256, intermediate_size=256, num_hidden_layers=2)
    matrices, quant = {}, gguf.GGMLQuantizationType[kind]
    for key, value in model.state_dict().items():
        if "_proj" in key or "embed" in key:
            data = random_rows(kind, *value.shape, size=1 / 16)
            value.copy_(torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(data, quant))))
            matrices[key] = (data, quant)
    write(tmp_path / "m.gguf", model, matrices)
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    ours = logits_of(Driver(open_worker(tmp_path / "m.gguf", create_ops(kernels))), PROMPT)
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.mean() < (0.02 if kernels == "reference" else 0.03)  # 8 bits a value, or scales of 16
    p, q = (torch.log_softmax(torch.from_numpy(x), 1).double() for x in (theirs, ours))
    assert float((p.exp() * (p - q)).sum(1).mean()) < 0.01


@pytest.fixture
def parts(tmp_path: Path) -> tuple[list[Path], Any]:
    model = save_family(tmp_path, "llama", head_dim=16)
    (tmp_path / "split").mkdir()
    write(tmp_path / "split" / "m.gguf", model, {}, split_max_tensors=12)
    return sorted((tmp_path / "split").glob("*.gguf")), model


def test_any_part_of_a_split_file_means_the_model(parts: tuple[list[Path], Any]) -> None:
    files, model = parts
    assert len(files) > 2
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    for path in (files[0], files[2], files[0].parent):
        found = resolve_model(str(path))
        assert (found.path, found.name) == (files[0], "split" if path.is_dir() else "m")
    ours = logits_of(Driver(open_worker(files[2], create_ops("reference"))), PROMPT)
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=2e-4)
    file = GGUFFile(files[0])
    assert {file.where(name) for name in file.tensors} == set(files)


def test_parts_that_do_not_fit(parts: tuple[list[Path], Any]) -> None:
    files, _ = parts
    kept = files[1].read_bytes()
    with pytest.raises(ModelError, match="is not the first part of a split model: pass .*-00001-of"):
        GGUFFile(files[1])
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(ModelError, match=f"{files[2].name}: the tensor .* is in {files[1].name} as well"):
        GGUFFile(files[0])
    files[1].unlink()
    with pytest.raises(ModelError, match=f"lacks its part {files[1].name}: download it"):
        GGUFFile(files[0])
    files[1].write_bytes(kept)
    renamed = files[0].rename(files[0].with_name("first.gguf"))
    with pytest.raises(ModelError, match="keep the names that end in -00001-of-0000"):
        GGUFFile(renamed)
