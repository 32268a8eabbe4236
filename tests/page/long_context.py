"""A tiny model with a long context: random weights, the tokenizer of models/toy-vlm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONTEXT_LEN = 40_000
VOCAB, HIDDEN, MIDDLE, HEADS = 640, 128, 256, 2


def write_long_context_model(folder: Path, tokenizer: Path) -> Path:
    """A model folder. `tokenizer`: the folder whose tokenizer it has."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT_LEN,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 599,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * 0.05).astype(np.float32)

    layer = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": matrix(VOCAB, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        f"{layer}input_layernorm.weight": np.ones(HIDDEN, np.float32),
        f"{layer}post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
        f"{layer}mlp.gate_proj.weight": matrix(MIDDLE, HIDDEN),
        f"{layer}mlp.up_proj.weight": matrix(MIDDLE, HIDDEN),
        f"{layer}mlp.down_proj.weight": matrix(HIDDEN, MIDDLE),
    }
    tensors |= {f"{layer}self_attn.{name}_proj.weight": matrix(HIDDEN, HIDDEN) for name in "qkvo"}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
