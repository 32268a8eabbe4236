"""GGUF files of formats with tables of values, and files in several parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.errors import ModelError
from sglang.srt.model.quant.blocks import as_q8_0, dequantise
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


def random_rows(kind: str, rows: int, width: int, size: float = 1.0) -> Any:
    """Rows of blocks with random contents, scales such that values are about `size` (a power of two)."""
    form = FORMATS[kind.lower()]
    data = RNG.integers(0, 256, (rows, width // form.block_len, form.block_bytes), np.uint8)
    if kind == "MXFP4":
        data[:, :, 0] = RNG.integers(118, 128, data.shape[:2]) + int(np.log2(size))
    else:
        scale = (size * RNG.standard_normal(data.shape[:2]) / (64 * (16 if kind == "IQ4_XS" else 1))).astype(np.float16)
        data[:, :, :2] = scale[:, :, None].view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", TABLES)
def test_values_are_those_of_the_gguf_package(kind: str) -> None:
    data = random_rows(kind, 9, 1024)
    ours, theirs = dequantise(kind.lower(), data), gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(ours, theirs)
    assert ours.std() > 0.05
    packed = dequantise("q8_0", as_q8_0(kind.lower(), data))
    if kind == "IQ4_XS":
        np.testing.assert_allclose(packed, ours, rtol=2**-11, atol=1e-7)
    else:
        np.testing.assert_array_equal(packed, ours)


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
@pytest.mark.parametrize("kind", TABLES)
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
    assert error.mean() < (5e-3 if kernels == "reference" else 0.03)  # scales of IQ4_XS are rounded


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
    for given in (files[0], files[2], files[0].parent):
        found = resolve_model(str(given))
        assert (found.path, found.name) == (files[0], "split" if given.is_dir() else "m")
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
