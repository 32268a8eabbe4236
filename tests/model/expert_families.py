"""Tiny mixtures of experts as transformers makes them: one row a family, with its odd settings (see dense_families.py)."""

from __future__ import annotations

from typing import Any

Row = tuple[str, list[dict[str, Any]]]

SEVEN = {"hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1}
SEVEN_HEADS = {"hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 7}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
    "v_head_dim": 20,
}
ODD_LATENT = {
    **SEVEN_HEADS,
    "kv_lora_rank": 38,
    "q_lora_rank": None,
    "qk_rope_head_dim": 10,
    "qk_nope_head_dim": 6,
    "v_head_dim": 17,
}
EVERY_HEAD = {"num_key_value_heads": 4}
STRETCHED = {"mscale": 0.707, "mscale_all_dim": 1.3}
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 64}

LAYERED = {"head_dim": 16, "hidden_size_per_layer_input": 24, "vocab_size_per_layer_input": 199, "sliding_window": 21}

ROWS: dict[str, Row] = {
    "qwen3_moe": (
        "Qwen3Moe",
        [
            {"head_dim": 24, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "norm_topk_prob": True},
            {
                "head_dim": 20,
                "num_experts": 7,
                "num_experts_per_tok": 3,
                "moe_intermediate_size": 64,
                "mlp_only_layers": [1],
                "attention_bias": True,
                "rope_parameters": YARN,
                "tie_word_embeddings": True,
                **SEVEN,
            },
            {
                "head_dim": 16,
                "num_experts": 5,
                "num_experts_per_tok": 5,
                "moe_intermediate_size": 32,
                "num_hidden_layers": 4,
                "decoder_sparse_step": 2,
                "use_sliding_window": True,
                "sliding_window": 21,
                **EVERY_HEAD,
            },
        ],
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        [
            {
                "num_experts": 6,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
                "shared_expert_intermediate_size": 128,
            },
            {
                "num_experts": 9,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 64,
                "shared_expert_intermediate_size": 32,
                "norm_topk_prob": True,
                "qkv_bias": False,
                "decoder_sparse_step": 2,
                "num_hidden_layers": 4,
                **SEVEN,
            },
        ],
    ),
    "mixtral": (
        "Mixtral",
        [
            {"num_local_experts": 8, "num_experts_per_tok": 2},
            {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 21, "head_dim": 24, **SEVEN},
        ],
    ),
    "olmoe": (
        "Olmoe",
        [
            {"num_experts": 16, "num_experts_per_tok": 8, "intermediate_size": 32},
            {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, "attention_bias": True, **SEVEN},
        ],
    ),
    "granitemoe": (
        "GraniteMoe",
        [
            {
                "num_local_experts": 8,
                "num_experts_per_tok": 4,
                "intermediate_size": 32,
                "embedding_multiplier": 12.0,
                "attention_multiplier": 0.1,
                "residual_multiplier": 0.22,
                "logits_scaling": 0.25,
            },
            {
                "num_local_experts": 5,
                "num_experts_per_tok": 3,
                "residual_multiplier": 3.0,
                "attention_bias": True,
                "tie_word_embeddings": True,
                **SEVEN,
            },
        ],
    ),
    "granitemoeshared": (
        "GraniteMoeShared",
        [
            {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32, "shared_intermediate_size": 64},
            {
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "shared_intermediate_size": 0,
                "residual_multiplier": 0.3,
                **SEVEN,
            },
        ],
    ),
    "glm4_moe": (
        "Glm4Moe",
        [
            {
                "head_dim": 32,
                "n_routed_experts": 16,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 32,
                "n_group": 4,
                "topk_group": 2,
                "routed_scaling_factor": 2.5,
                "use_qk_norm": True,
            },
            {
                "head_dim": 16,
                "n_routed_experts": 6,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 64,
                "n_shared_experts": 2,
                "first_k_dense_replace": 2,
                "norm_topk_prob": False,
                "attention_bias": True,
                **SEVEN,
            },
        ],
    ),
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        [
            {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32, "num_hidden_layers": 4},
            {
                "moe_num_experts": 5,
                "moe_k": 2,
                "moe_intermediate_size": 64,
                "moe_num_shared_experts": 0,
                "moe_layer_start_index": 0,
                "moe_layer_end_index": 2,
                "moe_layer_interval": 2,
                "num_hidden_layers": 5,
                "tie_word_embeddings": False,
                **EVERY_HEAD,
            },
        ],
    ),
    "hunyuan_v1_moe": (
        "HunYuanMoEV1",
        [
            {"head_dim": 16, "num_experts": 8, "moe_topk": 2},
            {
                "head_dim": 24,
                "num_experts": 4,
                "moe_topk": [3, 3, 3],
                "attention_bias": True,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0},
                **SEVEN,
            },
        ],
    ),
    "gpt_oss": (
        "GptOss",
        [
            {"head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 4, "sliding_window": 21, "intermediate_size": 32},
            {
                "head_dim": 20,
                "num_local_experts": 5,
                "num_experts_per_tok": 2,
                "sliding_window": 30,
                "layer_types": ["full_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {**YARN, "truncate": False},
                **SEVEN,
            },
        ],
    ),
    "deepseek_v2": (
        "DeepseekV2",
        [
            {
                "n_routed_experts": 16,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 32,
                "topk_method": "group_limited_greedy",
                "n_group": 4,
                "topk_group": 2,
                "routed_scaling_factor": 2.0,
                "first_k_dense_replace": 1,
                "rope_parameters": {**YARN, **STRETCHED},
                **LATENT,
            },
            {
                "n_routed_experts": 5,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 64,
                "n_shared_experts": 1,
                "attention_bias": True,
                "n_group": 1,
                "topk_group": 1,
                **ODD_LATENT,
            },
        ],
    ),
    "deepseek_v3": (
        "DeepseekV3",
        [
            {
                "n_routed_experts": 16,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 32,
                "n_group": 4,
                "topk_group": 2,
                "first_k_dense_replace": 1,
                "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
                **LATENT,
            },
            {
                "n_routed_experts": 6,
                "num_experts_per_tok": 3,
                "moe_intermediate_size": 64,
                "n_shared_experts": 2,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 0,
                "norm_topk_prob": False,
                "rope_interleave": False,
                "tie_word_embeddings": True,
                **ODD_LATENT,
            },
        ],
    ),
    "glm4_moe_lite": (
        "Glm4MoeLite",
        [
            {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, **LATENT},
            {
                "n_routed_experts": 6,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 64,
                "mlp_layer_types": ["sparse", "dense", "sparse"],
                "attention_bias": True,
                **ODD_LATENT,
            },
        ],
    ),
    "gemma4_experts": (
        "Gemma4",
        [
            {
                "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "hidden_size_per_layer_input": 0,
                "attention_k_eq_v": True,
                "num_global_key_value_heads": 1,
                "sliding_window": 19,
                "global_head_dim": 24,
                "head_dim": 20,
                "enable_moe_block": True,
                "num_experts": 4,
                "top_k_experts": 4,
                "moe_intermediate_size": 32,
            },
            {
                "num_hidden_layers": 4,
                "num_kv_shared_layers": 2,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "rms_norm_eps": 1e-3,
                "enable_moe_block": True,
                "num_experts": 5,
                "top_k_experts": 3,
                "moe_intermediate_size": 64,
                **LAYERED,
                **SEVEN,
            },
        ],
    ),
}
"""model_type -> (prefix of transformers' classes, settings)"""


def settings() -> list[tuple[str, int]]:
    return [(name, i) for name, (_, odd) in ROWS.items() for i in range(len(odd))]


def unbalance(model: Any) -> None:
    """Corrections of scores that are not zero."""
    import torch

    with torch.no_grad():
        for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(torch.randn_like(tensor) * 0.1)
