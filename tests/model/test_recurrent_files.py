"""Families with recurrent layers as GGUF files, under the names that the `gguf` package has, and as llama.cpp's converter changes tensors:
decays in place of their logarithms, norms counted from 0, heads of v in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.errors import ModelError
from sglang.srt.model.weights.families.table import FAMILIES
from tests.model import test_dense_families as dense
from tests.model.conftest import create_ops
from tests.model.dense_families import save_family
from tests.model.tiny import Driver, open_worker

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

Tensors = dict[str, Any]
ARCHITECTURES = {f.architecture: f.gguf.architecture for f in FAMILIES if f.gguf is not None}
CASES = [
    *(("lfm2", i) for i in range(3)),
    *(("lfm2_moe", i) for i in range(1)),
    *(("granite_hybrid", i) for i in range(3)),
    *(("falcon_h1", i) for i in (0, 2)),
    ("nemotron_h", 0),
    *(("qwen3_next", i) for i in range(2)),
    *(("qwen3_5", i) for i in range(2)),
    *(("qwen3_5_moe", i) for i in range(2)),
]


def gguf_tensors(name: str, model: Any) -> Tensors:
    """By Hugging Face's names, with the values of a GGUF file."""
    config, found = model.config, {}
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    if name == "nemotron_h":
        state = {k.replace("model.", "backbone.", 1): v for k, v in state.items()}
    if name == "lfm2_moe":
        for i, layer in enumerate(model.model.layers):
            if hasattr(layer.feed_forward, "expert_bias"):
                state[f"model.layers.{i}.feed_forward.expert_bias.bias"] = layer.feed_forward.expert_bias.numpy()
        state = {k: v for k, v in state.items() if not k.endswith("expert_bias")}
    for key, value in state.items():
        if key.endswith(".A_log"):
            value = -np.exp(value)
        if key.endswith((".A_log", ".D")) and "linear_attn" not in key:
            value = value[:, None]
        if key.endswith("dt_bias"):
            key = key.replace("dt_bias", "dt_proj.bias")
        if "conv" in key and value.ndim == 3 and value.shape[1] == 1:
            value = value.squeeze(1)
        if name == "falcon_h1":
            value = value * factor(key, config)
        if key.endswith(("mamba.norm.weight", "mixer.norm.weight")):
            value = value.reshape(config.n_groups if name == "nemotron_h" else config.mamba_n_groups, -1)
        if name.startswith("qwen3") and key.endswith("norm.weight") and "linear_attn" not in key:
            value = value + 1
        if name.startswith("qwen3_5") and "linear_attn" in key:
            value = turned(key, value, config)
        if name == "granite_hybrid" and ("q_proj." in key or "k_proj." in key):
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if key.endswith(("experts.gate_up_proj", "shared_mlp.input_linear.weight")):
            stem = key.replace("block_sparse_moe.", "mlp.").replace("feed_forward.", "mlp.").replace("gate_up_proj", "")
            is_dense = name == "granite_hybrid" and not config.num_local_experts
            stem = stem.replace("shared_mlp.input_linear.weight", "mlp." if is_dense else "mlp.shared_experts.")
            found[f"{stem}gate_proj.weight"], found[f"{stem}up_proj.weight"] = np.split(value, 2, axis=-2)
            continue
        if key.endswith("experts.down_proj"):
            key = f"{key.replace('block_sparse_moe.', 'mlp.').replace('feed_forward.', 'mlp.')}.weight"
        is_dense = name == "granite_hybrid" and not config.num_local_experts
        key = key.replace("shared_mlp.output_linear", "mlp.down_proj" if is_dense else "mlp.shared_experts.down_proj")
        found[key.replace("block_sparse_moe.router.", "mlp.gate.")] = value
    return found


def factor(key: str, config: Any) -> Any:
    """What llama.cpp's converter multiplies a matrix of Falcon-H1 by."""
    into, out = config.attention_in_multiplier, config.attention_out_multiplier
    if "mamba.in_proj.weight" in key:
        shared = config.mamba_n_groups * config.mamba_d_state
        sizes = [config.mamba_d_ssm, config.mamba_d_ssm, shared, shared, config.mamba_n_heads]
        return np.repeat(config.ssm_multipliers, sizes)[:, None] * config.ssm_in_multiplier
    by_name = {
        "embed_tokens": config.embedding_multiplier,
        "lm_head": config.lm_head_multiplier,
        "gate_proj": config.mlp_multipliers[0],
        "down_proj": config.mlp_multipliers[1],
        "q_proj": into,
        "k_proj": into * config.key_multiplier,
        "v_proj": into,
        "o_proj": out,
        "mamba.out_proj": config.ssm_out_multiplier,
    }
    return next((by for name, by in by_name.items() if f"{name}." in key), 1.0)


def turned(key: str, value: Any, config: Any) -> Any:
    """Heads of v from the order of the k that they share to one in which those that share it lie as far apart as they can."""
    k_heads, heads, dim = config.linear_num_key_heads, config.linear_num_value_heads, config.linear_value_head_dim

    def turn(part: Any, axis: int, size: int) -> Any:
        moved = np.moveaxis(part, axis, 0)
        moved = moved.reshape(k_heads, heads // k_heads, size, *moved.shape[1:]).swapaxes(0, 1).reshape(moved.shape)
        return np.moveaxis(moved, 0, axis)

    keys = 2 * k_heads * config.linear_key_head_dim
    if "in_proj_qkv" in key or "conv1d" in key:
        return np.concatenate([value[:keys], turn(value[keys:], 0, dim)])
    if "in_proj_z" in key:
        return turn(value, 0, dim)
    if "out_proj" in key:
        return turn(value, 1, dim)
    return value if "norm" in key else turn(value, 0, 1)


def write_metadata(writer: Any, name: str, model: Any) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if name != "nemotron_h":
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    eps = {"lfm2": "norm_eps", "lfm2_moe": "norm_eps", "nemotron_h": "layer_norm_epsilon"}
    writer.add_layer_norm_rms_eps(getattr(config, eps.get(name, "rms_norm_eps")))
    layers = config.num_hidden_layers
    if name.startswith("qwen3"):
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))
        writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
        writer.add_ssm_state_size(config.linear_key_head_dim)
        writer.add_ssm_group_count(config.linear_num_key_heads)
        writer.add_ssm_time_step_rank(config.linear_num_value_heads)
        writer.add_ssm_inner_size(config.linear_num_value_heads * config.linear_value_head_dim)
        layers += 1  # for speculation
        writer.add_nextn_predict_layers(1)
    elif name == "falcon_h1":
        writer.add_head_count_kv(config.num_key_value_heads)
    else:
        kinds = config.layer_types
        writer.add_head_count_kv([config.num_key_value_heads if kind == "full_attention" else 0 for kind in kinds])
    writer.add_block_count(layers)
    if name in ("granite_hybrid", "falcon_h1"):
        writer.add_ssm_conv_kernel(config.mamba_d_conv)
        writer.add_ssm_state_size(config.mamba_d_state)
        writer.add_ssm_group_count(config.mamba_n_groups)
        writer.add_ssm_inner_size(config.mamba_n_heads * config.mamba_d_head)
        writer.add_ssm_time_step_rank(config.mamba_n_heads)
    if name == "granite_hybrid":
        writer.add_rope_scaling_finetuned(config.position_embedding_type == "rope")
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if name == "nemotron_h":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_ssm_conv_kernel(config.conv_kernel)
        writer.add_ssm_state_size(config.ssm_state_size)
        writer.add_ssm_group_count(config.n_groups)
        writer.add_ssm_inner_size(config.mamba_num_heads * config.mamba_head_dim)
        writer.add_ssm_time_step_rank(config.mamba_num_heads)
    if name.startswith("lfm2"):
        writer.add_shortconv_l_cache(config.conv_L_cache)
    dense_width = model.model.layers[0].feed_forward.w1.out_features if name == "lfm2" else config.intermediate_size
    if name == "nemotron_h":
        writer.add_feed_forward_length([dense_width if kind == "mlp" else 0 for kind in config.layer_types])
    else:
        writer.add_feed_forward_length(dense_width or config.moe_intermediate_size)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts and name != "nemotron_h":
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        writer.add_expert_feed_forward_length(width)
        if name == "lfm2_moe":
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def save_gguf(path: Path, name: str, model: Any, **changed: Any) -> None:
    arch = ARCHITECTURES[name]
    writer = gguf.GGUFWriter(str(path), arch)
    write_metadata(writer, name, model)
    by_name = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[arch], model.config.num_hidden_layers)
    for key, value in gguf_tensors(name, model).items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert stored is not None, key
        writer.add_tensor(stored, np.ascontiguousarray(changed.get(stored.rpartition(".")[2], value), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("family", "setting"), CASES)
def test_a_gguf_file_has_the_same_logits(family: str, setting: int, tmp_path: Path) -> None:
    plain = {"conv_bias": False} if family.startswith("lfm2") else {}
    if family == "granite_hybrid" and setting == 1:
        plain = {"mamba_conv_bias": True, "mamba_proj_bias": False, "time_step_limit": [0.0, float("inf")]}
    if family == "qwen3_next":
        plain = {"norm_topk_prob": True, "decoder_sparse_step": 1}
    if family == "falcon_h1" and setting == 2:  # the head has a factor of its own
        plain = {"tie_word_embeddings": False, "projectors_bias": False, "time_step_limit": [0.0, float("inf")]}
    model = save_family(tmp_path, family, setting, **plain)
    save_gguf(tmp_path / "m.gguf", family, model)
    with torch.no_grad():
        theirs = model(torch.tensor([dense.PROMPT])).logits[0].numpy()
    for kernels, room in (("reference", 3e-4), ("cpu", 2e-2)):
        ours = dense.logits_of(Driver(open_worker(tmp_path / "m.gguf", create_ops(kernels))), dense.PROMPT)
        error = np.abs(ours - theirs).max(axis=1) / np.abs(theirs).max()
        assert np.sort(error)[: -len(error) // 8].max() < room  # experts that are nearly as good as others


def test_a_state_that_grows_is_refused(tmp_path: Path) -> None:
    model = save_family(tmp_path, "granite_hybrid")
    save_gguf(tmp_path / "m.gguf", "granite_hybrid", model, ssm_a=np.full((8, 1), 0.5))
    with pytest.raises(ModelError, match="ssm_a.*must hold negative numbers"):
        open_worker(tmp_path / "m.gguf", create_ops("reference"))
