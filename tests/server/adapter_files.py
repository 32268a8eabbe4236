"""Adapters for the default model, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MODULES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.v_proj": (192, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}


def write_adapter(folder: Path, seed: int, rank: int = 4, size: float = 0.6, **config: object) -> Path:
    """`size`: how large what it adds is beside what it adds to; at 0.6 greedy answers differ from the first tokens on."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(30):
        for module, (rows, width) in MODULES.items():
            stem = f"base_model.model.model.layers.{layer}.{module}"
            a, b = rng.standard_normal((rank, width)) * width**-0.5, rng.standard_normal((rows, rank)) * rank**-0.5 * size
            tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = a.astype(np.float32), b.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [m.split(".")[1] for m in MODULES],
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder
