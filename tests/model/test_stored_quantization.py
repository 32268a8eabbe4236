"""--quantization must agree with the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.weights.loader import read_config
from sglang.srt.server_args import ServerArgs

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64,
}  # fmt: skip
STORED: dict[str, dict[str, Any] | None] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True},
    "fp8": {"quant_method": "fp8"},
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8"},
    "not quantized": None,
}


@pytest.mark.parametrize("asked", ["awq", "gptq", "fp8", "mxfp4", "compressed-tensors", "gguf"])
@pytest.mark.parametrize("stored", STORED)
def test_a_folder(tmp_path: Path, stored: str, asked: str) -> None:
    """Accepted where the checkpoint says the same; else both are named."""
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": STORED[stored]}))
    options = ServerArgs(str(tmp_path), quantization=asked).resolve().model
    assert (options.quantization, options.stored_quantization) == (None, asked)
    if stored.removeprefix("fbgemm_") == asked:
        read_config(find_files(options), options)
    else:
        with pytest.raises(ModelError, match=f"--quantization {asked}: .* is .*{stored}"):
            read_config(find_files(options), options)


def test_a_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from tests.model.test_weights_config import gguf_file

    path = gguf_file(tmp_path).path
    for asked in ("gguf", "f32"):
        options = ModelOptions(str(path), stored_quantization=asked)
        read_config(find_files(options), options)
    options = ModelOptions(str(path), stored_quantization="mxfp4")
    with pytest.raises(ModelError, match="--quantization mxfp4: .* is a GGUF file of f32"):
        read_config(find_files(options), options)
    assert gguf is not None
