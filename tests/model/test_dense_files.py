"""Every dense family as a GGUF file: tensors under the names that the `gguf` package has for them, in the order that llama.cpp's
converter puts them in, metadata as its writer spells it; all logits against transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.weights.families.table import FAMILIES
from sglang.srt.model.weights.gguf_config import WHOLE_HEADS
from tests.model.dense_families import ROWS, save_family
from tests.model.test_dense_families import PROMPT, logits_of
from tests.model.tiny import Driver, open_worker

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

ARCHITECTURES = {f.model_type: f.gguf.architecture for f in FAMILIES if f.gguf is not None} | {"olmo3": "olmo2"}
PLUS_ONE = ("gemma", "gemma2", "nemotron")
"""the converter adds 1 to the weights of norms"""
UNEQUAL = ("gemma3n_text", "gemma4_text")
"""families whose layers differ"""
UNSAID = {("gemma3n_text", 1), ("phi3", 1), ("smollm3", 1), ("cohere", 1), ("cohere2", 1), ("exaone4", 1), ("gpt2", 1)}
"""What the file format does not say (layers without rope, activations, an untied head), and longrope beyond the original context"""
CASES = [
    (name, i)
    for name, (_, odd) in ROWS.items()
    for i in range(min(2, len(odd)))
    if name in ARCHITECTURES and (name, i) not in UNSAID
] + [("phi3", 2), ("stablelm", 2), ("gemma4_text", 2)]


def save_gguf(path: Path, name: str, model: Any) -> None:
    config, arch = model.config, ARCHITECTURES[name]
    if name == "gemma4_text":
        config.allow_global_per_layer_attribute_access = True
    writer = gguf.GGUFWriter(str(path), arch)
    write_metadata(writer, name, config)
    by_name = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[arch], config.num_hidden_layers)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    for key, value in rope_freqs(name, config, stacked(state)).items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if re.search(r"\.attn\.(masked_)?bias$", key):
            continue
        stored = STORED.get(key) or of_experts(key) or names.get_name(key, try_suffixes=(".weight", ".bias"))
        if key.endswith("layer_scalar") or key.endswith("correct_output_scale"):
            stored = f"{names.get_name(key)}.weight"
        assert stored is not None, key
        writer.add_tensor(stored, np.ascontiguousarray(converted(name, arch, key, value, config), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stacked(state: dict[str, Any]) -> dict[str, Any]:
    """StableLM's norms of single heads become one tensor, and so do Gemma 3n's projections of streams."""
    found: dict[str, Any] = {}
    rows: dict[str, list[Any]] = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.*_layernorm|model\.altup_\w+)(?:\.norms)?\.\d+\.weight", key)
        if match is None:
            found[key] = value
        else:
            rows.setdefault(f"{match.group(1)}.weight", []).append(value)
    return found | {key: np.stack(values) for key, values in rows.items()}


STORED = {
    "rope_freqs.weight": "rope_freqs.weight",
    "model.altup_projections.weight": "altup_proj.weight",
    "model.altup_unembed_projections.weight": "altup_unembd_proj.weight",
}


EXPERTS = {
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "router.scale": "ffn_gate_inp.scale",
    "router.proj.weight": "ffn_gate_inp.weight",
}


def of_experts(key: str) -> str | None:
    """Names of Gemma 4's experts."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", key)
    return f"blk.{match[1]}.{EXPERTS[match[2]]}" if match is not None and match[2] in EXPERTS else None


def rope_freqs(name: str, config: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Gemma 4's files divide the frequencies of pairs that do not turn by 1e30."""
    if name != "gemma4_text":
        return state
    dim = global_dim(config)
    turned = int(0.25 * dim // 2)
    return {**state, "rope_freqs.weight": np.array([1.0] * turned + [1e30] * (dim // 2 - turned), np.float32)}


def global_dim(config: Any) -> int:
    return int(config.per_layer_config[config.layer_types.index("full_attention")].head_dim)


def write_layers(writer: Any, name: str, config: Any) -> None:
    """What differs between the layers of Gemma 3n and Gemma 4."""
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    if name == "gemma3n_text":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_altup_active_idx(config.altup_active_idx)
        writer.add_altup_num_inputs(config.altup_num_inputs)
        deviations = torch.distributions.normal.Normal(0, 1).icdf(torch.tensor(config.activation_sparsity_pattern))
        writer.add_activation_sparsity_scale(deviations.tolist())
        return
    layers = [config.per_layer_config[i] for i in range(config.num_hidden_layers)]
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    wide = [config.use_double_wide_mlp and i >= first_shared for i in range(config.num_hidden_layers)]
    writer.add_feed_forward_length([config.intermediate_size * (2 if w else 1) for w in wide])
    writer.add_head_count_kv([layer.num_key_value_heads for layer in layers])
    writer.add_key_length(global_dim(config))
    writer.add_value_length(global_dim(config))
    writer.add_key_length_swa(config.head_dim)
    writer.add_value_length_swa(config.head_dim)
    writer.add_rope_dimension_count(global_dim(config))
    if config.enable_moe_block:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def converted(name: str, arch: str, key: str, value: Any, config: Any) -> Any:
    heads = config.num_attention_heads
    if arch in WHOLE_HEADS and re.search(r"[qk]_proj\.", key):
        dim = value.shape[0] // (heads if "q_proj" in key else config.num_key_value_heads)
        return value.reshape(-1, 2, dim // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    if name in PLUS_ONE and (key.endswith("norm.weight") or key.endswith("layernorm.weight")):
        return value + 1
    if name == "gpt2" and value.ndim == 2 and ".h." in key:
        return value.T
    if name == "gpt_neox" and "query_key_value" in key:
        return value.reshape(heads, 3, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
    return value


def write_metadata(writer: Any, name: str, config: Any) -> None:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    if name in UNEQUAL:
        write_layers(writer, name, config)
    else:
        writer.add_feed_forward_length(
            getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
        )
    if name != "gemma4_text":
        writer.add_head_count_kv(getattr(config, "num_key_value_heads", heads))
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    for field in ("layer_norm_eps", "norm_epsilon", "layer_norm_epsilon", "norm_eps"):
        if hasattr(config, field):
            writer.add_layer_norm_eps(getattr(config, field))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    write_rope(writer, name, config, head_dim)
    write_windows(writer, name, config)
    for field, add in (
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("attention_multiplier", writer.add_attention_scale),
        ("logits_scaling", writer.add_logit_scale),
        ("logit_scale", writer.add_logit_scale),
        ("use_parallel_residual", writer.add_parallel_residual),
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, field, None) is not None:
            add(getattr(config, field))


def write_windows(writer: Any, name: str, config: Any) -> None:
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
        if name in ("olmo3", "exaone4", *UNEQUAL):
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def write_rope(writer: Any, name: str, config: Any, head_dim: int) -> None:
    params = getattr(config, "rope_parameters", None)
    if params is None:
        return
    params = params.get("full_attention", params)
    theta = params["rope_theta"]
    if params.get("alpha"):  # the converter works it into the base
        theta *= params["alpha"] ** (head_dim / (head_dim - 2))
    writer.add_rope_freq_base(theta)
    if name in UNEQUAL:
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if name != "gemma4_text":
        writer.add_rope_dimension_count(int(head_dim * params.get("partial_rotary_factor", 1.0)))
    kind = params["rope_type"]
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(params["factor"])
        writer.add_rope_scaling_orig_ctx_len(params["original_max_position_embeddings"])
        if params.get("mscale_all_dim"):
            writer.add_rope_scaling_yarn_log_mul(params["mscale_all_dim"])
        if params.get("llama_4_scaling_beta"):
            writer.add_attn_temperature_scale(params["llama_4_scaling_beta"])
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(params, head_dim))
    elif kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(params["original_max_position_embeddings"])
        for length in ("long", "short"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(params[f"{length}_factor"], np.float32))


def llama3_divisors(params: dict[str, Any], dim: int) -> Any:
    turns = params["original_max_position_embeddings"] / (2 * np.pi) / params["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    low, high = params["low_freq_factor"], params["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (keep + (1 - keep) / params["factor"])).astype(np.float32)


@pytest.mark.parametrize(("family", "setting"), CASES)
def test_a_gguf_file_has_the_same_logits(family: str, setting: int, tmp_path: Path) -> None:
    model = save_family(tmp_path, family, setting)
    if family == "gemma2":  # llama.cpp has no field for it: 1 / sqrt(head_dim), but for one size
        for layer in model.model.layers:
            layer.self_attn.scaling = model.config.head_dim**-0.5
    save_gguf(tmp_path / "m.gguf", family, model)
    prompt = PROMPT[: model.config.max_position_embeddings]
    with torch.no_grad():
        theirs = model(torch.tensor([prompt])).logits[0].numpy()
    ours = logits_of(Driver(open_worker(tmp_path / "m.gguf", ReferenceOps())), prompt)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max(), rtol=2e-4)


@pytest.mark.parametrize("setting", [0, 1])
def test_gemma4_with_experts(setting: int, tmp_path: Path) -> None:
    model = save_family(tmp_path, "gemma4_experts", setting)
    save_gguf(tmp_path / "m.gguf", "gemma4_text", model)
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    ours = logits_of(Driver(open_worker(tmp_path / "m.gguf", ReferenceOps())), PROMPT)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max(), rtol=2e-4)
