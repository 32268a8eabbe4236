"""Tiny models of the dense families as transformers makes them: one row a family, with its odd settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.model import expert_families, recurrent_families
from tests.model.expert_families import LAYERED
from tests.model.tiny import SIZES, randomize

LONG = {"short_factor": [1.0 + 0.05 * i for i in range(8)], "long_factor": [1.5 + 0.25 * i for i in range(8)]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **LONG}
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SEVEN = {"hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1}
EVERY_HEAD = {"num_key_value_heads": 4}

KINDS6 = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
TEXT_CONFIGS = {"Gemma4": "Gemma4Text", "Gemma3n": "Gemma3nText"}

Row = tuple[str, list[dict[str, Any]]]
ROWS: dict[str, Row] = {
    "llama": ("Llama", [{"head_dim": 100, "hidden_size": 80}, {"head_dim": 20, "attention_bias": True, **SEVEN}]),
    "ministral": (
        "Ministral",
        [{"head_dim": 16, "sliding_window": 21, "layer_types": ["sliding_attention", "full_attention"] * 2}],
    ),
    "gemma": ("Gemma", [{"head_dim": 24}, {"head_dim": 16, "hidden_act": "gelu", **EVERY_HEAD}]),
    "gemma2": (
        "Gemma2",
        [
            {"head_dim": 16, "sliding_window": 21, "query_pre_attn_scalar": 24},
            {"head_dim": 20, "attn_logit_softcapping": 2.5, "final_logit_softcapping": 3.0, "num_key_value_heads": 1},
        ],
    ),
    "gemma4_text": (
        "Gemma4",
        [
            {
                "num_hidden_layers": 4,
                "num_kv_shared_layers": 2,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                **LAYERED,
                "global_head_dim": 40,
            },
            {
                "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "hidden_size_per_layer_input": 0,
                "attention_k_eq_v": True,
                "num_global_key_value_heads": 1,
                "final_logit_softcapping": 3.0,
                "tie_word_embeddings": False,
                "sliding_window": 19,
                "global_head_dim": 24,
                "head_dim": 20,
            },
            {
                "num_hidden_layers": 8,
                "num_kv_shared_layers": 4,
                "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 2,
                "use_double_wide_mlp": True,
                "attention_bias": True,
                "rms_norm_eps": 1e-3,
                **LAYERED,
                **SEVEN,
            },
        ],
    ),
    "gemma3n_text": (
        "Gemma3n",
        [
            {
                "num_hidden_layers": 4,
                "num_kv_shared_layers": 2,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "laurel_rank": 12,
                "activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.0],
                **LAYERED,
            },
            {
                "num_hidden_layers": 6,
                "num_kv_shared_layers": 3,
                "layer_types": KINDS6,
                "laurel_rank": 32,
                "altup_num_inputs": 3,
                "altup_correct_scale": False,
                "intermediate_size": [96, 64, 96, 80, 96, 80],
                "attention_bias": True,
                "final_logit_softcapping": 3.0,
                **LAYERED,
                "vocab_size_per_layer_input": 150,
                **SEVEN,
            },
        ],
    ),
    "phi3": (
        "Phi3",
        [
            {"sliding_window": 21},
            {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64, "num_key_value_heads": 1},
            {
                "rope_parameters": LONGROPE,
                "original_max_position_embeddings": 64,
                "max_position_embeddings": 64,
                "tie_word_embeddings": True,
                **EVERY_HEAD,
            },
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}, **SEVEN},
        ],
    ),
    "smollm3": (
        "SmolLM3",
        [
            {"num_hidden_layers": 4},
            {"no_rope_layers": [1, 0, 1]},
            {
                "use_sliding_window": True,
                "sliding_window": 19,
                "no_rope_layers": [0, 1, 1],
                "attention_bias": True,
                **EVERY_HEAD,
            },
            {"no_rope_layer_interval": 2, "mlp_bias": True, "rope_parameters": YARN, "tie_word_embeddings": False, **SEVEN},
        ],
    ),
    "granite": (
        "Granite",
        [
            {
                "embedding_multiplier": 12.0,
                "attention_multiplier": 0.1,
                "residual_multiplier": 0.22,
                "logits_scaling": 0.25,
                "rms_norm_eps": 1e-3,
            },
            {"residual_multiplier": 3.0, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, **SEVEN},
        ],
    ),
    "olmo2": ("Olmo2", [{}, {"attention_bias": True, "rope_parameters": LLAMA3, **SEVEN}]),
    "olmo3": (
        "Olmo3",
        [
            {"sliding_window": 21, "num_hidden_layers": 4},
            {
                "sliding_window": 17,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "rope_parameters": {
                    "full_attention": YARN,
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                },
                **EVERY_HEAD,
            },
        ],
    ),
    "ministral3": (
        "Ministral3",
        [
            {"head_dim": 20, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 16}},
            {
                "head_dim": 32,
                "sliding_window": 30,
                "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
                **SEVEN,
            },
        ],
    ),
    "glm": ("Glm", [{"head_dim": 16}, {"head_dim": 24, "attention_bias": False, "num_key_value_heads": 1}]),
    "glm4": (
        "Glm4",
        [
            {"head_dim": 16},
            {
                "head_dim": 24,
                "attention_bias": False,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
                **SEVEN,
            },
        ],
    ),
    "cohere": (
        "Cohere",
        [
            {"logit_scale": 0.5},
            {"use_qk_norm": True, "attention_bias": True, "tie_word_embeddings": False, "layer_norm_eps": 1e-3, **SEVEN},
        ],
    ),
    "cohere2": ("Cohere2", [{"sliding_window": 21, "num_hidden_layers": 4}, {"layer_types": ["full_attention"] * 3, **SEVEN}]),
    "starcoder2": (
        "Starcoder2",
        [{"sliding_window": 21}, {"use_bias": False, "tie_word_embeddings": False, "norm_epsilon": 1e-3, **SEVEN}],
    ),
    "stablelm": (
        "StableLm",
        [
            {},
            {"use_qkv_bias": True, "use_parallel_residual": True, "partial_rotary_factor": 0.5, **EVERY_HEAD},
            {"qk_layernorm": True, "tie_word_embeddings": True, "layer_norm_eps": 1e-3, **SEVEN},
        ],
    ),
    "exaone4": (
        "Exaone4",
        [
            {"sliding_window": 21, "num_hidden_layers": 4},
            {"sliding_window": None, "layer_types": ["full_attention"] * 3, "rope_parameters": LLAMA3, **SEVEN},
        ],
    ),
    "seed_oss": (
        "SeedOss",
        [{"head_dim": 24}, {"head_dim": 32, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True, **SEVEN}],
    ),
    "ernie4_5": (
        "Ernie4_5",
        [{"head_dim": 16}, {"head_dim": 20, "use_bias": True, "tie_word_embeddings": False, **EVERY_HEAD}],
    ),
    "hunyuan_v1_dense": (
        "HunYuanDenseV1",
        [
            {"head_dim": 16},
            {
                "head_dim": 24,
                "attention_bias": True,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0},
                **SEVEN,
            },
        ],
    ),
    "arcee": ("Arcee", [{}, {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN, **SEVEN}]),
    "helium": (
        "Helium",
        [
            {"head_dim": 16, "num_key_value_heads": 4},
            {"head_dim": 16, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
        ],
    ),
    "nemotron": ("Nemotron", [{}, {"attention_bias": True, "mlp_bias": True, "norm_eps": 1e-3, "head_dim": 24, **SEVEN}]),
    "gpt_neox": (
        "GPTNeoX",
        [
            {},
            {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True, "layer_norm_eps": 1e-3},
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
                "hidden_act": "gelu_fast",
            },
        ],
    ),
    "gpt2": (
        "GPT2",
        [{}, {"n_inner": 72, "activation_function": "relu", "scale_attn_weights": False, "layer_norm_epsilon": 1e-3}],
    ),
}
"""model_type -> (prefix of transformers' classes, settings)"""


def settings() -> list[tuple[str, int]]:
    return [(name, i) for name, (_, odd) in ROWS.items() for i in range(len(odd))]


def save_family(folder: Path, name: str, setting: int = 0, seed: int = 0, **more: Any) -> Any:
    """A random float32 model in `folder`; returns transformers'. Norms and biases are not left at their neutral values."""
    import torch
    import transformers

    prefix, odd = {**ROWS, **expert_families.ROWS, **recurrent_families.ROWS}[name]
    sizes: dict[str, Any] = {**SIZES, "eos_token_id": 2, "pad_token_id": 0, **odd[setting], **more}
    if sizes.get("layer_types"):
        sizes["layer_types"] = sizes["layer_types"][: sizes["num_hidden_layers"]]
    if prefix in ("GPT2", "GPTNeoX"):
        sizes.pop("num_key_value_heads")
    if prefix == "GPT2":
        sizes.pop("intermediate_size")
    config = getattr(transformers, f"{TEXT_CONFIGS.get(prefix, prefix)}Config")(**sizes)
    head = "LMHeadModel" if prefix == "GPT2" else "ForCausalLM"
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix.removesuffix('Text')}{head}")(config).float().eval()
    model.set_attn_implementation("eager")
    randomize(model)
    expert_families.unbalance(model)
    for buffer_name, scale in model.named_buffers():
        if buffer_name.endswith("layer_scalar"):
            scale.fill_(0.5 + torch.rand(1).item())
    model.save_pretrained(folder, **({"max_shard_size": "60KB"} if setting else {}))
    return model


# --- families that transformers computes by another's class: its tensors and fields are renamed -----------------------------------


def exaone(folder: Path) -> Any:
    """EXAONE 3: Llama under GPT-2's names."""
    model = save_family(folder, "llama", rope_parameters=LLAMA3, tie_word_embeddings=True)
    names = {
        "self_attn.o_proj": "attn.attention.out_proj",
        "self_attn.": "attn.attention.",
        "mlp.gate_proj": "mlp.c_fc_0",
        "mlp.up_proj": "mlp.c_fc_1",
        "mlp.down_proj": "mlp.c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "model.layers": "transformer.h",
        "model.embed_tokens": "transformer.wte",
        "model.norm": "transformer.ln_f",
    }
    fields = {"num_hidden_layers": "num_layers", "rms_norm_eps": "layer_norm_epsilon", "hidden_act": "activation_function"}
    rewrite(folder, "ExaoneForCausalLM", names, fields)
    return model


def internlm2(folder: Path) -> Any:
    """InternLM 2: q, k and v of a KV head lie together."""
    import torch

    model = save_family(folder, "llama", attention_bias=False, num_key_value_heads=2)

    def grouped(tensors: dict[str, Any]) -> dict[str, Any]:
        for name in [name for name in tensors if name.endswith("q_proj.weight")]:
            parts = [tensors.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
            by_head = [part.reshape(2, -1, part.shape[1]) for part in parts]
            tensors[name.replace("q_proj", "wqkv")] = torch.cat(by_head, 1).reshape(-1, parts[0].shape[1])
        return tensors

    names = {
        "self_attn.o_proj": "attention.wo",
        "self_attn.": "attention.",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
    }
    rewrite(folder, "InternLM2ForCausalLM", names, {}, grouped, bias=False)
    return model


def internlm3(folder: Path) -> Any:
    model = save_family(folder, "llama", attention_bias=True, mlp_bias=True, head_dim=24)
    rewrite(folder, "InternLM3ForCausalLM", {}, {"attention_bias": "qkv_bias", "mlp_bias": "bias"})
    return model


def minicpm(folder: Path) -> Any:
    """MiniCPM: Granite's multipliers, said otherwise."""
    scales = {"embedding_multiplier": 12.0, "residual_multiplier": 1.4 / 3**0.5, "logits_scaling": 64 / 16}
    model = save_family(folder, "granite", attention_multiplier=16**-0.5, tie_word_embeddings=True, **scales)
    rewrite(folder, "MiniCPMForCausalLM", {}, {}, scale_emb=12, scale_depth=1.4, dim_model_base=16)
    return model


RENAMED = {f.__name__: f for f in (exaone, internlm2, internlm3, minicpm)}


def rewrite(
    folder: Path, class_name: str, names: dict[str, str], fields: dict[str, str], change: Any = None, **more: Any
) -> None:
    """Gives the checkpoint in `folder` other names of tensors and fields."""
    from safetensors.torch import load_file, save_file

    path, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    tensors = load_file(path)
    renamed: dict[str, Any] = {}
    for name, value in (change(tensors) if change else tensors).items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        renamed[name] = value.contiguous()
    save_file(renamed, path, {"format": "pt"})
    kept = {fields.get(name, name): value for name, value in config.items() if "_multiplier" not in name}
    (folder / "config.json").write_text(json.dumps({**kept, "architectures": [class_name], **more}))
