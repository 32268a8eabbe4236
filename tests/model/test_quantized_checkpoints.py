"""AWQ, GPTQ, compressed-tensors and float8 checkpoints, packed here bit by bit, against transformers on the same values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.weights.loader import load_checkpoint
from tests.model.tiny import Driver, open_worker

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.model.quantized import FORMS, PROMPT, compressed, save_quantized  # noqa: E402


@pytest.fixture(scope="module", params=FORMS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, float]:
    pack, config, tolerance = FORMS[request.param]
    folder = tmp_path_factory.mktemp("quantized")
    return folder, save_quantized(folder, pack, config), tolerance


def logits(folder: Path, ops: Ops) -> Any:
    driver = Driver(open_worker(folder, ops))
    return driver.logits([(driver.add(PROMPT), len(PROMPT))])


def theirs(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].numpy()


def test_logits_are_those_of_the_values(saved: tuple[Path, Any, float]) -> None:
    folder, model, tolerance = saved
    expected = theirs(model)
    assert np.abs(logits(folder, ReferenceOps()) - expected).max() < tolerance
    assert np.abs(expected).max() > 2


def test_native_kernels_run_them(saved: tuple[Path, Any, float], ops: Ops) -> None:
    """Theirs are 8-bit activations: a looser bound, and the same best token nearly everywhere."""
    folder, model, _ = saved
    ours, expected = logits(folder, ops), theirs(model)
    assert np.abs(ours - expected).max() < 0.5
    assert (ours.argmax(-1) == expected.argmax(-1)).mean() > 0.9


def test_what_is_kept_small(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    for form, expected in (("awq", "q4_1"), ("gptq 8 bits", "q8_0"), ("w8a8", "q8_0"), ("fbgemm", "bf16")):
        folder = tmp_path / form
        folder.mkdir()
        pack, config, _ = FORMS[form]
        save_quantized(folder, pack, config)
        checkpoint = load_checkpoint(resolve_model(str(folder)), ModelOptions(str(folder)))
        assert checkpoint.tensor(name).format == expected
        assert checkpoint.config.quantization is not None and checkpoint.config.quantization.name == config["quant_method"]
    kept = load_checkpoint(resolve_model(str(folder)), ModelOptions(str(folder)), kept=("f8",)).tensor(name)
    assert kept.format == "f8" and kept.scale is not None and kept.scale.shape == (256,)
    np.testing.assert_array_equal(kept.slice_rows(3, 7).dequantize(), kept.dequantize()[3:7])
    np.testing.assert_array_equal(kept.slice_columns(3, 7).dequantize(), kept.dequantize()[:, 3:7])
    small = load_checkpoint(resolve_model(str(folder)), ModelOptions(str(folder), quantization="int8")).tensor(name)
    assert small.format == "q8_0"


def test_columns_out_of_order_keep_their_bits(tmp_path: Path) -> None:
    """For kernels that take them: exactly the values, q, k and v in one order; for others 8 bits in order."""
    form = "gptq act-order"
    model = save_quantized(tmp_path, *FORMS[form][:2])
    files, options = resolve_model(str(tmp_path)), ModelOptions(str(tmp_path))
    kept, plain = load_checkpoint(files, options, kept=("out of order",)), load_checkpoint(files, options)
    for name in ("mlp.down_proj", "self_attn.q_proj", "self_attn.k_proj"):
        name = f"model.layers.0.{name}.weight"
        exact = model.get_parameter(name).detach().numpy()
        tensor, eight = kept.tensor(name), plain.tensor(name)
        assert (tensor.format, eight.format) == ("q4_1", "q8_0") and eight.order is None
        np.testing.assert_allclose(tensor.dequantize(), exact, atol=1e-3)
        np.testing.assert_array_equal(tensor.slice_rows(3, 9).dequantize(), tensor.dequantize()[3:9])
        np.testing.assert_array_equal(tensor.slice_columns(32, 64).dequantize(), eight.dequantize()[:, 32:64])
    ops = pytest.importorskip("sglang.srt.model.kernels.cuda.ops", reason="Triton is not installed").CudaOps("cpu", "float32")
    layer = "model.layers.0.self_attn"
    assert ops.can_stack([kept.tensor(f"{layer}.{part}_proj.weight") for part in "qkv"])
    assert not ops.can_stack([kept.tensor(f"{layer}.q_proj.weight"), plain.tensor(f"{layer}.k_proj.weight")])


def test_columns_are_cut_between_blocks(tmp_path: Path) -> None:
    save_quantized(tmp_path, *FORMS["awq"][:2])
    tensor = load_checkpoint(resolve_model(str(tmp_path)), ModelOptions(str(tmp_path))).tensor(
        "model.layers.0.mlp.down_proj.weight"
    )
    np.testing.assert_array_equal(tensor.slice_columns(64, 128).dequantize(), tensor.dequantize()[:, 64:128])
    with pytest.raises(ValueError, match="cut its blocks"):
        tensor.slice_columns(16, 64)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"quant_method": "bitsandbytes"}, "'bitsandbytes'; supported: awq, gptq"),
    "bits": ({"quant_method": "gptq", "bits": 3}, "bits 3"),
    "version": ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
    "group": ({"quant_method": "awq", "group_size": 16}, "group_size 16"),
    "marlin": ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "Marlin"),
    "sparse": (compressed("marlin-24", num_bits=4), "marlin-24"),
    "no object": ("awq", "must be an object"),  # type: ignore[dict-item]
    "other groups": ({"quant_method": "awq", "group_size": 32}, "has shape .*should be"),
    "other method": ({"quant_method": "fp8"}, "says 'fp8'"),
}


@pytest.fixture(scope="module")
def an_awq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("awq")
    save_quantized(folder, *FORMS["awq"][:2])
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_said(case: str, an_awq: Path, tmp_path: Path) -> None:
    config, message = REFUSED[case]
    shutil.copytree(an_awq, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "quantization_config": config}))
    with pytest.raises(ModelError, match=message):
        load_checkpoint(resolve_model(str(tmp_path)), ModelOptions(str(tmp_path))).tensor("model.layers.0.mlp.up_proj.weight")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_quantized(tmp_path, *FORMS["awq"][:2])
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    checkpoint = load_checkpoint(resolve_model(str(tmp_path)), ModelOptions(str(tmp_path)))
    with pytest.raises(ModelError, match="up_proj.scales' is missing"):
        checkpoint.tensor("model.layers.1.mlp.up_proj.weight")


def test_no_dummy_weights_in_their_form(an_awq: Path) -> None:
    with pytest.raises(ModelError, match="makes no awq weights"):
        load_checkpoint(resolve_model(str(an_awq)), ModelOptions(str(an_awq), load_format="dummy"))
