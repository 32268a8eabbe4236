"""AWQ, GPTQ, compressed-tensors and float8 checkpoints, packed here bit by bit, against transformers on the same values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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
from tests.model.tiny import Driver, open_worker, save_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Tensors = dict[str, Any]
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
PROMPT = [int(i) for i in np.random.default_rng(8).integers(3, 199, 21)]
AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]
"""AutoAWQ: nibble i of a word is this one of its eight columns"""


def words(levels: Any, bits: int, axis: int, order: list[int] | None = None) -> Any:
    """Levels packed into int32 along an axis, nibble by nibble."""
    levels = np.moveaxis(np.asarray(levels, np.int64), axis, 0)
    per = 32 // bits
    out = np.zeros((len(levels) // per, *levels.shape[1:]), np.int64)
    for row in range(len(out)):
        for i in range(per):
            out[row] |= levels[row * per + (order[i] if order else i)] << (bits * i)
    return torch.from_numpy(np.moveaxis(out, 0, axis).astype(np.uint32).view(np.int32).copy())


def quantise(weight: Any, bits: int, group: int, symmetric: bool) -> tuple[Any, Any, Any]:
    """(levels [n, k], scales [n, groups], zeros [n, groups]); scales are float16."""
    n, k = weight.shape
    parts = weight.float().numpy().reshape(n, k // group, group)
    top = 2**bits - 1
    if symmetric:
        scales = (np.abs(parts).max(-1) / (top / 2)).astype(np.float16)
        zeros = np.full(scales.shape, (top + 1) // 2)
    else:
        scales = ((parts.max(-1) - parts.min(-1)) / top).astype(np.float16)
        zeros = np.clip(np.rint(-parts.min(-1) / scales), 0, top).astype(int)
    levels = np.clip(np.rint(parts / scales[..., None].astype(np.float32)) + zeros[..., None], 0, top)
    return levels.reshape(n, k).astype(int), scales, zeros


def values(levels: Any, scales: Any, zeros: Any, group_of: Any) -> Any:
    shifted = levels - zeros[:, group_of]
    return torch.from_numpy((shifted * scales.astype(np.float32)[:, group_of]).astype(np.float32))


def awq(stem: str, weight: Any) -> tuple[Tensors, Any]:
    levels, scales, zeros = quantise(weight, 4, 64, False)
    stored = {
        f"{stem}.qweight": words(levels.T, 4, 1, AWQ_COLUMNS),
        f"{stem}.qzeros": words(zeros.T, 4, 1, AWQ_COLUMNS),
        f"{stem}.scales": torch.from_numpy(scales.T.copy()),
    }
    return stored, values(levels, scales, zeros, np.arange(levels.shape[1]) // 64)


def gptq(
    bits: int = 4, symmetric: bool = True, act_order: bool = False, less: int = 1
) -> Callable[[str, Any], tuple[Tensors, Any]]:
    def pack(stem: str, weight: Any) -> tuple[Tensors, Any]:
        k, group = weight.shape[1], 32
        order = np.random.default_rng(k).permutation(k) if act_order else np.arange(k)
        levels, scales, zeros = quantise(weight[:, order], bits, group, symmetric)
        group_of = np.empty(k, int)
        group_of[order] = np.arange(k) // group
        natural = np.empty_like(levels)
        natural[:, order] = levels
        stored = {
            f"{stem}.qweight": words(natural.T, bits, 0),
            f"{stem}.qzeros": words((zeros.T - less) & (2**bits - 1), bits, 1),
            f"{stem}.scales": torch.from_numpy(scales.T.copy()),
            f"{stem}.g_idx": torch.from_numpy(group_of.astype(np.int32)),
            f"{stem}.bias": torch.zeros(len(weight), dtype=torch.float16),  # as AutoGPTQ does
        }
        return stored, values(natural, scales, zeros, group_of)

    return pack


def packed(bits: int, symmetric: bool) -> Callable[[str, Any], tuple[Tensors, Any]]:
    def pack(stem: str, weight: Any) -> tuple[Tensors, Any]:
        levels, scales, zeros = quantise(weight, bits, 32, symmetric)
        stored = {
            f"{stem}.weight_packed": words(levels, bits, 1),
            f"{stem}.weight_scale": torch.from_numpy(scales.astype(np.float32)).bfloat16(),
            f"{stem}.weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            stored[f"{stem}.weight_zero_point"] = words(zeros, bits, 0)
        scales = stored[f"{stem}.weight_scale"].float().numpy()
        return stored, values(levels, scales, zeros, np.arange(levels.shape[1]) // 32)

    return pack


def int8(stem: str, weight: Any) -> tuple[Tensors, Any]:
    scale = (weight.abs().amax(1, keepdim=True) / 127).half().float()
    levels = (weight / scale).round().clamp(-128, 127)
    return {f"{stem}.weight": levels.to(torch.int8), f"{stem}.weight_scale": scale}, levels * scale


def float8(kind: str) -> Callable[[str, Any], tuple[Tensors, Any]]:
    def pack(stem: str, weight: Any) -> tuple[Tensors, Any]:
        stored_scale = f"{stem}.weight_scale"
        if kind == "tensor":
            scale = weight.abs().max().reshape(1) / 448
            full = scale.expand_as(weight)
        elif kind == "row":
            scale = weight.abs().amax(1, keepdim=True) / 448
            full = scale.expand_as(weight)
        else:
            n, k = weight.shape
            rows, columns = -(-n // 48), -(-k // 64)  # the last tile of rows is cut
            scale = torch.rand(rows, columns) * 0.01 + 0.01
            full = scale.repeat_interleave(48, 0)[:n].repeat_interleave(64, 1)[:, :k]
            stored_scale = f"{stem}.weight_scale_inv"
        small = (weight / full).to(torch.float8_e4m3fn)
        stored = {f"{stem}.weight": small, stored_scale: scale, f"{stem}.input_scale": torch.ones(1)}
        return stored, small.float() * full

    return pack


def _ct(form: str, **weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": weights}}}


Pack = Callable[[str, Any], tuple[Tensors, Any]]
FORMS: dict[str, tuple[Pack, dict[str, Any], float]] = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}, 2e-2),
    "gptq": (gptq(), {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}, 1e-4),
    "gptq asymmetric": (gptq(symmetric=False), {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}, 2e-2),
    "gptq act-order": (gptq(act_order=True), {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}, 0.15),
    "gptq 8 bits": (gptq(8), {"quant_method": "gptq", "bits": 8, "group_size": 32}, 1e-4),
    "gptq v2": (gptq(less=0), {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}, 1e-4),
    "w4a16": (packed(4, True), _ct("pack-quantized", num_bits=4, type="int", group_size=32), 2e-2),
    "w4a16 asymmetric": (packed(4, False), _ct("pack-quantized", num_bits=4, type="int", group_size=32), 3e-2),
    "w8a16": (packed(8, True), _ct("pack-quantized", num_bits=8, type="int", group_size=32), 2e-2),
    "w8a8": (int8, _ct("int-quantized", num_bits=8, type="int"), 1e-4),
    "w8a8 float": (float8("row"), _ct("float-quantized", num_bits=8, type="float", strategy="channel"), 5e-2),
    "fbgemm": (float8("row"), {"quant_method": "fbgemm_fp8"}, 5e-2),
    "fp8": (float8("tensor"), {"quant_method": "fp8", "activation_scheme": "static"}, 5e-2),
    "fp8 tiles": (float8("tiles"), {"quant_method": "fp8", "weight_block_size": [48, 64]}, 5e-2),
}
"""name: how to pack, quantization_config, how far logits may lie from those of the very values (they are about 10)"""


def save_quantised(folder: Path, pack: Pack, config: dict[str, Any]) -> Any:
    """A tiny llama whose layers' matrices are packed; returns transformers' model of the dequantised values."""
    from safetensors.torch import load_file, save_file

    model = save_model(folder, "llama", **SIZES)
    tensors: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "_proj." not in name:
            tensors[name] = tensor
            continue
        stem = name.removesuffix(".weight")
        stored, exact = pack(stem, tensor)
        tensors |= stored
        model.get_parameter(name).data = exact
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "quantization_config": config}))
    return model


@pytest.fixture(scope="module", params=FORMS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, float]:
    pack, config, tolerance = FORMS[request.param]
    folder = tmp_path_factory.mktemp("quantised")
    return folder, save_quantised(folder, pack, config), tolerance


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
        save_quantised(folder, pack, config)
        checkpoint = load_checkpoint(resolve_model(str(folder)), ModelOptions(str(folder)))
        assert checkpoint.tensor(name).format == expected
        assert checkpoint.config.quantization is not None and checkpoint.config.quantization.name == config["quant_method"]
    kept = load_checkpoint(resolve_model(str(folder)), ModelOptions(str(folder)), kept=("f8",)).tensor(name)
    assert kept.format == "f8" and kept.scale is not None and kept.scale.shape == (256,)
    np.testing.assert_array_equal(kept.slice_rows(3, 7).dequantise(), kept.dequantise()[3:7])
    np.testing.assert_array_equal(kept.slice_columns(3, 7).dequantise(), kept.dequantise()[:, 3:7])
    small = load_checkpoint(resolve_model(str(folder)), ModelOptions(str(folder), quantization="int8")).tensor(name)
    assert small.format == "q8_0"


def test_columns_out_of_order_keep_their_bits(tmp_path: Path) -> None:
    """For kernels that take them: exactly the values, q, k and v in one order; for others 8 bits in order."""
    form = "gptq act-order"
    model = save_quantised(tmp_path, *FORMS[form][:2])
    files, options = resolve_model(str(tmp_path)), ModelOptions(str(tmp_path))
    kept, plain = load_checkpoint(files, options, kept=("out of order",)), load_checkpoint(files, options)
    for name in ("mlp.down_proj", "self_attn.q_proj", "self_attn.k_proj"):
        name = f"model.layers.0.{name}.weight"
        exact = model.get_parameter(name).detach().numpy()
        tensor, eight = kept.tensor(name), plain.tensor(name)
        assert (tensor.format, eight.format) == ("q4_1", "q8_0") and eight.order is None
        np.testing.assert_allclose(tensor.dequantise(), exact, atol=1e-3)
        np.testing.assert_array_equal(tensor.slice_rows(3, 9).dequantise(), tensor.dequantise()[3:9])
        np.testing.assert_array_equal(tensor.slice_columns(32, 64).dequantise(), eight.dequantise()[:, 32:64])
    ops = pytest.importorskip("sglang.srt.model.kernels.cuda", reason="Triton is not installed").CudaOps("cpu", "float32")
    layer = "model.layers.0.self_attn"
    assert ops.can_stack([kept.tensor(f"{layer}.{part}_proj.weight") for part in "qkv"])
    assert not ops.can_stack([kept.tensor(f"{layer}.q_proj.weight"), plain.tensor(f"{layer}.k_proj.weight")])


def test_columns_are_cut_between_blocks(tmp_path: Path) -> None:
    save_quantised(tmp_path, *FORMS["awq"][:2])
    tensor = load_checkpoint(resolve_model(str(tmp_path)), ModelOptions(str(tmp_path))).tensor(
        "model.layers.0.mlp.down_proj.weight"
    )
    np.testing.assert_array_equal(tensor.slice_columns(64, 128).dequantise(), tensor.dequantise()[:, 64:128])
    with pytest.raises(ValueError, match="cut its blocks"):
        tensor.slice_columns(16, 64)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"quant_method": "bitsandbytes"}, "'bitsandbytes', and read are awq, gptq"),
    "bits": ({"quant_method": "gptq", "bits": 3}, "bits 3"),
    "version": ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
    "group": ({"quant_method": "awq", "group_size": 16}, "group_size 16"),
    "marlin": ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "Marlin"),
    "sparse": (_ct("marlin-24", num_bits=4), "marlin-24"),
    "no object": ("awq", "must be an object"),  # type: ignore[dict-item]
    "other groups": ({"quant_method": "awq", "group_size": 32}, "has shape .*should be"),
    "other method": ({"quant_method": "fp8"}, "says 'fp8'"),
}


@pytest.fixture(scope="module")
def an_awq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("awq")
    save_quantised(folder, *FORMS["awq"][:2])
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

    save_quantised(tmp_path, *FORMS["awq"][:2])
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    checkpoint = load_checkpoint(resolve_model(str(tmp_path)), ModelOptions(str(tmp_path)))
    with pytest.raises(ModelError, match="up_proj.scales' is missing"):
        checkpoint.tensor("model.layers.1.mlp.up_proj.weight")


def test_no_dummy_weights_in_their_form(an_awq: Path) -> None:
    with pytest.raises(ModelError, match="makes no awq weights"):
        load_checkpoint(resolve_model(str(an_awq)), ModelOptions(str(an_awq), load_format="dummy"))
