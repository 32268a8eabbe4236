"""Tiny models with recurrent layers as transformers makes them: one row a family, with its odd settings (see dense_families.py)."""

from __future__ import annotations

from typing import Any

Row = tuple[str, list[dict[str, Any]]]

SEVEN = {"hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1}
DELTA = {
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "num_hidden_layers": 4,
}
ODD_DELTA = {
    "head_dim": 24,
    "linear_key_head_dim": 20,
    "linear_value_head_dim": 40,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 3,
    "linear_conv_kernel_dim": 2,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "attention_bias": True,
    "tie_word_embeddings": True,
    **SEVEN,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 16}
ODD_MAMBA = {
    "mamba_n_heads": 6,
    "mamba_d_head": 40,
    "mamba_n_groups": 3,
    "mamba_d_state": 20,
    "mamba_d_conv": 3,
    "mamba_conv_bias": False,
    "mamba_proj_bias": True,
    "time_step_limit": [0.4, 1.5],
    "hidden_size": 120,
    "num_attention_heads": 6,
    "num_key_value_heads": 1,
}
FALCON = {
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.5,
    "key_multiplier": 0.7,
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.8,
    "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.6,
    "mlp_multipliers": [0.9, 0.4],
    "ssm_multipliers": [0.7, 0.8, 1.1, 1.3, 0.6],
}
NEMOTRON = {"head_dim": 16, "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2}
NEMOTRON_EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
NEMOTRON_EXPERTS |= {"moe_shared_expert_intermediate_size": 80}
MULTIPLIERS = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 0.5}
GRANITE_KINDS = ["mamba", "attention", "mamba"]
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}

LFM_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "num_dense_layers": 1}

ROWS: dict[str, Row] = {
    "lfm2": (
        "Lfm2",
        [
            {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 32},
            {
                "layer_types": ["full_attention", "conv", "conv"],
                "conv_L_cache": 5,
                "conv_bias": True,
                "block_auto_adjust_ff_dim": False,
                "tie_word_embeddings": False,
                **SEVEN,
            },
            {"full_attn_idxs": [2], "conv_L_cache": 2, "block_multiple_of": 16, "block_ffn_dim_multiplier": 1.5},
        ],
    ),
    "lfm2_moe": (
        "Lfm2Moe",
        [
            {**LFM_EXPERTS, "layer_types": ["conv", "full_attention", "conv"]},
            {
                **LFM_EXPERTS,
                "num_dense_layers": 0,
                "use_expert_bias": False,
                "norm_topk_prob": False,
                "routed_scaling_factor": 2.5,
                "conv_bias": True,
                "conv_L_cache": 4,
                "layer_types": ["full_attention", "conv", "full_attention"],
                **SEVEN,
            },
        ],
    ),
    "qwen3_next": (
        "Qwen3Next",
        [
            {**DELTA, **EXPERTS},
            {**ODD_DELTA, **EXPERTS, "num_experts": 5, "decoder_sparse_step": 2, "norm_topk_prob": False},
            {**ODD_DELTA, "num_experts": 0},
        ],
    ),
    "granite_hybrid": (
        "GraniteMoeHybrid",
        [
            {**MAMBA, **MULTIPLIERS, "num_local_experts": 0, "layer_types": GRANITE_KINDS, "shared_intermediate_size": 80},
            {
                **ODD_MAMBA,
                "layer_types": ["attention", "mamba", "mamba"],
                "num_local_experts": 6,
                "num_experts_per_tok": 3,
                "intermediate_size": 32,
                "shared_intermediate_size": 64,
                "position_embedding_type": "rope",
                "attention_multiplier": 0.3,
                "attention_bias": True,
                "tie_word_embeddings": True,
                "rms_norm_eps": 1e-3,
            },
            {
                **MAMBA,
                "mamba_n_groups": 2,
                "num_local_experts": 8,
                "layer_types": [*GRANITE_KINDS, "mamba", "mamba"],
                "num_hidden_layers": 5,
                "intermediate_size": 32,
                "attention_multiplier": 0.25,
            },
        ],
    ),
    "bamba": (
        "Bamba",
        [
            {**MAMBA, "attn_layer_indices": [1]},
            {**ODD_MAMBA, "attn_layer_indices": [0, 2], "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        ],
    ),
    "falcon_h1": (
        "FalconH1",
        [
            {**MAMBA, "mamba_d_ssm": 96, **FALCON},
            {
                **ODD_MAMBA,
                "mamba_d_ssm": None,
                "mamba_rms_norm": True,
                "attention_bias": True,
                "mlp_bias": True,
                "projectors_bias": False,
                "key_multiplier": 0.7,
                "attention_out_multiplier": 0.8,
            },
            {
                **ODD_MAMBA,
                **FALCON,
                "mamba_d_ssm": 240,
                "mamba_rms_norm": True,
                "mamba_norm_before_gate": False,
                "mamba_proj_bias": False,
                "projectors_bias": True,
                "tie_word_embeddings": True,
            },
        ],
    ),
    "nemotron_h": (
        "NemotronH",
        [
            {**NEMOTRON, "layers_block_type": ["mamba", "mlp", "mamba", "attention", "mlp"]},
            {
                **NEMOTRON,
                "mamba_num_heads": 6,
                "mamba_head_dim": 20,
                "n_groups": 3,
                "conv_kernel": 3,
                "use_conv_bias": False,
                "use_bias": True,
                "mlp_bias": True,
                "time_step_min": 0.5,
                "layers_block_type": ["attention", "mlp", "mamba", "mamba"],
                "tie_word_embeddings": True,
                "layer_norm_epsilon": 1e-3,
                "num_key_value_heads": 1,
            },
            {**NEMOTRON, **NEMOTRON_EXPERTS, "layers_block_type": ["mamba", "moe", "attention", "mlp", "moe"]},
            {
                **NEMOTRON,
                **NEMOTRON_EXPERTS,
                "layers_block_type": ["attention", "moe", "mamba"],
                "n_group": 4,
                "topk_group": 2,
                "norm_topk_prob": False,
                "routed_scaling_factor": 2.5,
                "moe_intermediate_size": 36,
                "mlp_bias": True,
            },
        ],
    ),
    "jamba": (
        "Jamba",
        [
            {
                "attn_layer_period": 3,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "num_hidden_layers": 5,
                "attn_layer_offset": 1,
            },
            {
                "attn_layer_period": 2,
                "attn_layer_offset": 0,
                "num_experts": 1,
                "mamba_d_state": 7,
                "mamba_d_conv": 3,
                "mamba_dt_rank": 10,
                "mamba_expand": 3,
                "mamba_conv_bias": False,
                "mamba_proj_bias": True,
                "tie_word_embeddings": True,
                **SEVEN,
            },
        ],
    ),
    "qwen3_5": ("Qwen3_5Text", [DELTA, ODD_DELTA]),
    "qwen3_5_moe": ("Qwen3_5MoeText", [{**DELTA, **EXPERTS}, {**ODD_DELTA, **EXPERTS, "num_experts_per_tok": 1}]),
}


def settings() -> list[tuple[str, int]]:
    return [(family, i) for family, (_, rows) in ROWS.items() for i in range(len(rows))]
