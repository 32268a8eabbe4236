"""Encoders as GGUF files: tensors under the names that the `gguf` package has for them; the rows are those of the folder's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.config import ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.embedder import embeds_by_itself
from tests.model.test_encoders import KERNELS, LIMITS, TEXTS, embedder, expected_rows, rows_of, save

pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
load_file = pytest.importorskip("safetensors.numpy").load_file

CASES = {"bert": "bert", "xlm-roberta": "bert", "nomic": "nomic-bert"}
"""row of test_encoders.py -> architecture"""


def save_gguf(path: Path, arch: str, model: Any, pooling: int = 2, leave: str = "?") -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_context_length(100)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(pooling))
    if arch == "nomic-bert":
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    by_name = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[arch], config.num_hidden_layers)
    for key, rows in load_file(path.parent / "model.safetensors").items():
        if "pooler" in key or "position_ids" in key or leave in key:
            continue
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert stored is not None, key
        if stored == "position_embd.weight" and config.model_type == "xlm-roberta":
            rows = rows[config.pad_token_id + 1 :]  # the converter leaves out what no text uses
        writer.add_tensor(stored, np.ascontiguousarray(rows, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("row", CASES)
def test_all_rows_are_those_of_the_folder(row: str, tmp_path: Path) -> None:
    model = save(tmp_path, row)
    path = tmp_path / "model.gguf"
    save_gguf(path, CASES[row], model)
    assert embeds_by_itself(ModelOptions(str(path)))
    for kernels in KERNELS:
        one, folder = embedder(path, kernels), embedder(tmp_path, kernels)
        for ids, rows, ours in zip(TEXTS, rows_of(one, TEXTS), rows_of(folder, TEXTS), strict=True):
            np.testing.assert_array_equal(rows, ours)
            expected = expected_rows(model, ids)
            assert np.abs(rows - expected).max() <= LIMITS[kernels] * np.abs(expected).max()
            first = rows[0] / np.linalg.norm(rows[0])  # pooling_type 2 takes the first row
            np.testing.assert_allclose(one.embed([ids])[0], first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("leave", ["word_embeddings", "position_embeddings", "1.attention.self.key.weight"])
def test_a_file_that_lacks_a_tensor_is_refused(leave: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    save_gguf(path, "bert", save(tmp_path, "bert"), leave=leave)
    with pytest.raises(ModelError, match="lacks"):
        embedder(path, "reference")


def test_quantizing_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    save_gguf(path, "bert", save(tmp_path, "bert"))
    with pytest.raises(ModelError, match="read from gguf as it is"):
        embedder(path, "reference", quantization="int8")
