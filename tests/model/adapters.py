"""Adapters in PEFT's format with random weights, and models with these merged into them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class RandomAdapter:
    """`changed`: by module name, what the adapter adds to its matrix."""

    folder: Path
    changed: dict[str, Any] = field(default_factory=dict)


def linear_modules(model: Any, ends: tuple[str, ...]) -> dict[str, Any]:
    """Modules of a transformers model whose names end so, by name; of GPT-2's Conv1D, too."""
    found = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in ends and getattr(m, "weight", None) is not None}
    return {name: module for name, module in found.items() if module.weight.dim() == 2}


def matrix_shape(module: Any) -> tuple[int, int]:
    """(out_features, in_features)."""
    rows, columns = module.weight.shape
    return (columns, rows) if type(module).__name__ == "Conv1D" else (rows, columns)


def write_adapter(
    folder: Path, model: Any, ends: tuple[str, ...] = LLAMA, rank: int = 8, seed: int = 0, size: float = 0.3, **config: Any
) -> RandomAdapter:
    """An adapter of the model's modules. `size`: about how large what it adds is, beside what it adds to."""
    import torch
    from safetensors.torch import save_file

    rng = np.random.default_rng(seed)
    alpha = config.pop("lora_alpha", 16)
    ranks, alphas = config.get("rank_pattern", {}), config.get("alpha_pattern", {})
    layers = config.get("layers_to_transform")
    tensors, result = {}, RandomAdapter(folder)
    for name, module in linear_modules(model, ends).items():
        if layers is not None and int(name.split(".layers.")[1].split(".")[0]) not in layers:
            continue
        end = name.rpartition(".")[2]
        r, scaled = ranks.get(end, rank), alphas.get(end, alpha)
        rows, width = matrix_shape(module)
        scale = scaled / r**0.5 if config.get("use_rslora") else scaled / r
        a = rng.standard_normal((r, width)) * width**-0.5
        b = rng.standard_normal((rows, r)) * r**-0.5 * size / scale
        a, b = (torch.from_numpy(values.astype(np.float32)) for values in (a, b))
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
        delta = scale * (b.double() @ a.double())
        result.changed[name] = delta.T if type(module).__name__ == "Conv1D" else delta
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(ends), "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return result


def merged(model: Any, adapter: RandomAdapter) -> Any:
    """A copy of the model with the adapter in its matrices."""
    import copy

    import torch

    other = copy.deepcopy(model)
    modules = dict(other.named_modules())
    with torch.no_grad():
        for name, delta in adapter.changed.items():
            weight = modules[name].weight
            weight.copy_((weight.double() + delta).to(weight.dtype))
    return other


def logits_of(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    """[len(ids), vocab]."""
    import torch

    with torch.no_grad():
        values: np.ndarray[Any, Any] = model(torch.tensor([ids])).logits[0].float().numpy()
    return values
