"""Mixtures of experts as other files have them: GGUF under the names that the `gguf` package has, with metadata as its writer spells it,
and folders with all experts of a layer in one tensor, as transformers 5 keeps them in memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.weights.families.mixtures import EXPERT_FAMILIES
from sglang.srt.model.weights.gguf_config import WHOLE_HEADS
from tests.model import test_dense_files as dense
from tests.model.conftest import create_ops
from tests.model.dense_families import rewrite, save_family
from tests.model.expert_families import ROWS, settings
from tests.model.test_dense_families import PROMPT, logits_of
from tests.model.tiny import Driver, open_worker

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

ARCHITECTURES = {f.model_type: f.gguf.architecture for f in EXPERT_FAMILIES if f.gguf is not None}
ARCHITECTURES |= {"mixtral": "llama", "granitemoeshared": "granitemoe"}
UNSAID = {("qwen3_moe", 1), ("qwen3_moe", 2), ("qwen2_moe", 1), ("olmoe", 1), ("gpt_oss", 1)}
"""What the file format does not say: layers without experts, windows, and whether weights are divided by their sum"""
CASES = [(name, i) for name, i in settings() if name in ARCHITECTURES and (name, i) not in UNSAID]
RENAMED = {
    "block_sparse_moe.": "mlp.",
    "mlp.router.": "mlp.gate.",
    "mlp.gate.wg.": "mlp.gate.",
    "mlp.moe_statics.": "mlp.gate.",
    "mlp.gate.moe_statics.": "mlp.gate.",
    "mlp.gate.e_score_correction_bias": "mlp.gate.e_score_correction.bias",
}


def by_matrix(state: dict[str, Any]) -> dict[str, Any]:
    """Gate, up and down of all experts, each in a tensor, as llama.cpp's converter makes them of every family."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        for old, new in RENAMED.items():
            key = key.replace(old, new)
        if "experts.gate_up_proj" in key and "model.layers.0.self_attn.sinks" in state:
            kind = "bias" if key.endswith("bias") else "weight"
            value = value if kind == "bias" else value.swapaxes(1, 2)
            for i, part in enumerate(("gate", "up")):
                found[key.replace("gate_up_proj_bias", "gate_up_proj").replace("gate_up_proj", f"{part}_proj.{kind}")] = value[
                    :, i::2
                ]
        elif "experts.down_proj" in key and "model.layers.0.self_attn.sinks" in state:
            is_bias = key.endswith("_bias")
            found[key.removesuffix("_bias") + (".bias" if is_bias else ".weight")] = value if is_bias else value.swapaxes(1, 2)
        elif key.endswith(".sinks"):
            found[f"{key}.weight"] = value
        elif key.endswith(("experts.gate_up_proj", "shared_mlp.input_linear.weight")):
            stem = re.sub(r"(gate_up_proj|shared_mlp\.input_linear\.weight)$", "", key)
            stem = stem if "experts" in stem else f"{stem}mlp.shared_experts."
            found[f"{stem}gate_proj.weight"], found[f"{stem}up_proj.weight"] = np.split(value, 2, axis=-2)
        elif key.endswith("experts.down_proj"):
            found[f"{key}.weight"] = value
        elif key.endswith("shared_mlp.output_linear.weight"):
            found[key.replace("shared_mlp.output_linear", "mlp.shared_experts.down_proj")] = value
        elif key.endswith("e_score_correction.bias"):
            found[key] = value.reshape(-1)
        else:
            found[key.replace("mlp.shared_mlp.", "mlp.shared_experts.")] = value
    return found


def save_gguf(path: Path, name: str, model: Any, quantize: bool = False) -> None:
    config, arch = model.config, ARCHITECTURES[name]
    writer = gguf.GGUFWriter(str(path), arch)
    dense.write_metadata(writer, name, config)
    write_experts(writer, name, config)
    by_name = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[arch], config.num_hidden_layers)
    for key, value in by_matrix({k: v.numpy() for k, v in model.state_dict().items()}).items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert stored is not None, key
        values = np.ascontiguousarray(dense.converted(name, arch, key, value, config), np.float32)
        if quantize and "exps" in stored:
            kind = gguf.GGMLQuantizationType.Q4_1 if "down" in stored else gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_experts(writer: Any, name: str, config: Any) -> None:
    def first(*fields: str) -> Any:
        value = next((getattr(config, field) for field in fields if getattr(config, field, None) is not None), None)
        return value[0] if isinstance(value, list) else value

    writer.add_expert_count(first("num_local_experts", "num_experts", "n_routed_experts"))
    writer.add_expert_used_count(first("num_experts_per_tok"))
    if name not in ("mixtral", "granitemoe", "granitemoeshared", "olmoe"):
        writer.add_expert_feed_forward_length(first("moe_intermediate_size", "intermediate_size"))
    if name == "glm4_moe":
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
        writer.add_leading_dense_block_count(config.first_k_dense_replace)


@pytest.mark.parametrize(("family", "setting"), CASES)
def test_a_gguf_file_has_the_same_logits(family: str, setting: int, tmp_path: Path) -> None:
    model = save_family(tmp_path, family, setting)
    save_gguf(tmp_path / "m.gguf", family, model)
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    ours = logits_of(Driver(open_worker(tmp_path / "m.gguf", ReferenceOps())), PROMPT)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max(), rtol=2e-4)


def test_experts_in_blocks(tmp_path: Path) -> None:
    """Gate, up and down may have different formats, and are cut by experts where they are."""
    model = save_family(tmp_path, "qwen3_moe")
    save_gguf(tmp_path / "m.gguf", "qwen3_moe", model, quantize=True)
    with torch.no_grad():
        for layer in model.model.layers:
            for name, kind in (("gate_up_proj", "Q8_0"), ("down_proj", "Q4_1")):
                bank = getattr(layer.mlp.experts, name)
                form = gguf.GGMLQuantizationType[kind]
                bank.copy_(torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(bank.numpy(), form), form)))
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    ours = logits_of(Driver(open_worker(tmp_path / "m.gguf", ReferenceOps())), PROMPT)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max(), rtol=2e-4)


@pytest.mark.parametrize("family", sorted(set(ROWS) - {"granitemoe", "granitemoeshared", "gpt_oss", "gemma4_experts"}))
def test_all_experts_in_one_tensor(family: str, tmp_path: Path) -> None:
    """The same bits as from one tensor for each expert."""
    from safetensors.torch import save_file

    model = save_family(tmp_path, family)
    want = logits_of(Driver(open_worker(tmp_path, ReferenceOps())), PROMPT[:20])
    (tmp_path / "model.safetensors").unlink()
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(logits_of(Driver(open_worker(tmp_path, ReferenceOps())), PROMPT[:20]), want)


BAILING = {
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
    "mlp.gate.e_score_correction_bias": "mlp.gate.expert_bias",
    "model.embed_tokens": "model.word_embeddings",
    "block_sparse_moe.router.layer": "mlp.gate",
    "block_sparse_moe.": "mlp.",
    "shared_mlp.": "mlp.shared_experts.",
}


def in_one(tensors: dict[str, Any]) -> dict[str, Any]:
    """q, k and v one under the other; Granite's experts one by one."""
    found = dict(tensors)
    for name in [name for name in tensors if "q_proj" in name]:
        parts = [found.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
        found[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
    for name in [name for name in tensors if "_linear." in name]:
        value, stem = found.pop(name), name.rpartition("_linear")[0].rpartition(".")[0]
        parts = value.chunk(2, dim=-2) if "input_linear" in name else (value,)
        for matrix, part in zip(("gate_proj", "up_proj") if len(parts) == 2 else ("down_proj",), parts, strict=True):
            if "shared_mlp" in name:
                found[f"{stem}.{matrix}.weight"] = part
            else:
                found |= {f"{stem}.experts.{e}.{matrix}.weight": each for e, each in enumerate(part)}
    return found


@pytest.mark.parametrize("version", [1, 2])
def test_bailing_by_other_families(version: int, tmp_path: Path) -> None:
    """Ling's first models route as Granite's, those of version 2 as GLM's; transformers has neither."""
    fields = {"n_routed_experts": "num_experts", "num_local_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
    if version == 1:
        model = save_family(tmp_path, "granitemoeshared", attention_multiplier=0.25)
        more: dict[str, Any] = {"moe_intermediate_size": 32, "num_shared_experts": 2, "norm_topk_prob": True}
    else:
        model = save_family(tmp_path, "glm4_moe")
        more = {"score_function": "sigmoid", "moe_router_enable_expert_bias": True}
    rewrite(tmp_path, "BailingMoeForCausalLM" if version == 1 else "BailingMoeV2ForCausalLM", BAILING, fields, in_one, **more)
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    ours = logits_of(Driver(open_worker(tmp_path, ReferenceOps())), PROMPT)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)


def to_mxfp4(values: Any) -> tuple[Any, Any, Any]:
    """[..., rows, k] as blocks and scales of gpt-oss's files, and what they mean."""
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    groups = values.reshape(*values.shape[:-1], -1, 32)
    exponent = np.floor(np.log2(np.abs(groups).max(-1, keepdims=True) / 6 + 1e-30))
    scaled = groups / np.exp2(exponent)
    codes = np.abs(np.abs(scaled)[..., None] - levels).argmin(-1)
    exact = np.sign(scaled) * levels[codes] * np.exp2(exponent)
    codes = (codes | (scaled < 0) * 8).astype(np.uint8)
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4
    return blocks, (exponent[..., 0] + 127).astype(np.uint8), exact.reshape(values.shape).astype(np.float32)


def test_gpt_oss_as_it_is_published(tmp_path: Path) -> None:
    """Experts in 4-bit floats, gate and up row by row."""
    from safetensors.torch import load_file, save_file

    model = save_family(tmp_path, "gpt_oss")
    stored = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            for name in ("gate_up_proj", "down_proj"):
                bank = getattr(layer.mlp.experts, name)
                blocks, scales, exact = to_mxfp4(np.ascontiguousarray(bank.numpy().swapaxes(1, 2)))
                bank.copy_(torch.from_numpy(exact.swapaxes(1, 2).copy()))
                at = f"model.layers.{i}.mlp.experts.{name}"
                del stored[at]
                stored |= {f"{at}_blocks": torch.from_numpy(blocks), f"{at}_scales": torch.from_numpy(scales)}
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    save_file(stored, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = logits_of(Driver(open_worker(tmp_path, ReferenceOps())), PROMPT)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max(), rtol=2e-4)
    native = logits_of(Driver(open_worker(tmp_path, create_ops("cpu"))), PROMPT)
    assert np.median(np.abs(native - theirs)) < 0.02 * np.abs(theirs).max()


def test_files_that_contradict_their_config(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_family(tmp_path, "qwen3_moe")
    path, config = tmp_path / "model.safetensors", json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(path)

    def refused(match: str, change: dict[str, Any] | None = None, stored: dict[str, Any] | None = None) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **(change or {})}))
        save_file(stored or tensors, path)
        with pytest.raises(ModelError, match=match):
            open_worker(tmp_path, ReferenceOps())

    key = "num_experts" if "num_experts" in config else "num_local_experts"
    refused("mlp.gate.weight", {key: 17})
    refused("mlp.gate.weight", {key: 15})
    refused("shape", {"moe_intermediate_size": 64})
    refused("num_experts_per_tok", {"num_experts_per_tok": 17})
    refused("at most", {key: 100_000})
    refused("mlp_only_layers", {"mlp_only_layers": [-1]})
    refused("mlp_layer_types", {"mlp_layer_types": ["sparse"]})
    cut = {k: v for k, v in tensors.items() if k != "model.layers.1.mlp.experts.3.up_proj.weight"}
    refused("experts.3.up_proj", stored=cut)
    bank = {k: v for k, v in tensors.items() if ".layers.1.mlp.experts." not in k}
    for name, rows in (("gate_up_proj", 64), ("down_proj", 64)):
        bank[f"model.layers.1.mlp.experts.{name}"] = torch.zeros(15, rows, 64 if rows == 64 and name != "down_proj" else 32)
    refused(r"\[15,", stored=bank)


def test_whole_heads_are_turned_back() -> None:
    assert {ARCHITECTURES[name] for name in ("mixtral", "granitemoe")} <= set(WHOLE_HEADS)
