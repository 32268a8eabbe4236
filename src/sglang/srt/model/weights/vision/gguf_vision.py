"""Tensors of an mmproj file (checkpoint/projector.py) under the names of transformers' classes, which ours are (vision_shapes.py)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sglang.srt.checkpoint.projector import Projector
from sglang.srt.errors import ModelError
from sglang.srt.model.quant.formats import HostTensor
from sglang.srt.model.weights.tensor_source import TensorSource, index_of

_IN_LAYER = re.compile(r"v\.blk\.(\d+)\.(\w+)\.(weight|bias|input_min|input_max|output_min|output_max)")
_DEEP = re.compile(r"v\.deepstack\.(\d+)\.(\w+)\.(weight|bias)")
_QKV = ("attn_q", "attn_k", "attn_v")

_SIGLIP_LAYER = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_QWEN_LAYER = {"ln1": "norm1", "ln2": "norm2", **dict.fromkeys((*_QKV, "attn_qkv"), "attn.qkv"), "attn_out": "attn.proj"}


def _siglip(prefix: str, whole: dict[str, str]) -> tuple[str, dict[str, str], dict[str, str]]:
    at = f"{prefix}.embeddings"
    ends = {"v.patch_embd": f"{at}.patch_embedding", "v.position_embd": f"{at}.position_embedding"}
    return f"{prefix}.encoder.layers", _SIGLIP_LAYER, {**ends, "v.post_ln": f"{prefix}.post_layernorm", **whole}


def _qwen(mlp: dict[str, str], norm: str, first: str, second: str) -> tuple[str, dict[str, str], dict[str, str]]:
    ends = {
        "v.patch_embd": "visual.patch_embed.proj",
        "v.position_embd": "visual.pos_embed",
        "v.post_ln": f"visual.merger.{norm}",
    }
    ends |= {"mm.0": f"visual.merger.{first}", "mm.2": f"visual.merger.{second}"}
    return "visual.blocks", {**_QWEN_LAYER, **mlp}, ends


_PLAIN = {"ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_DEEP_MLP = {"ffn_up": "mlp.linear_fc1", "ffn_down": "mlp.linear_fc2"}
_DEEP_MERGER = {"norm": "norm", "fc1": "linear_fc1", "fc2": "linear_fc2"}
_GEMMA3_ENDS = {
    "mm.soft_emb_norm": "multi_modal_projector.mm_soft_emb_norm",
    "mm.input_projection.weight": "multi_modal_projector.mm_input_projection_weight",
}
_GEMMA4_LAYER = {
    "ln1": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
    **{f"attn_{part}_norm": f"self_attn.{part}_norm" for part in "qk"},
    **{f"attn_{part}": f"self_attn.{part}_proj.linear" for part in "qkv"},
    "attn_out": "self_attn.o_proj.linear",
    **{f"ffn_{part}": f"mlp.{part}_proj.linear" for part in ("gate", "up", "down")},
}
_GEMMA4_ENDS = {
    "v.patch_embd": "vision_tower.patch_embedder.input_proj",
    "v.position_embd.weight": "vision_tower.patch_embedder.position_embedding_table",
    "v.std_bias": "vision_tower.std_bias",
    "v.std_scale": "vision_tower.std_scale",
    "mm.input_projection": "embed_vision.embedding_projection",
}
_INTERN_LAYER = {
    "ln1": "layernorm_before",
    "ln2": "layernorm_after",
    **{f"attn_{part}": f"attention.{part}_proj" for part in "qkv"},
    **{f"attn_{part}_norm": f"attention.{part}_norm" for part in "qk"},
    "attn_out": "attention.projection_layer",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
    "ls1.weight": "lambda_1",
    "ls2.weight": "lambda_2",
}
_INTERN_ENDS = {
    "v.class_embd": "vision_tower.embeddings.cls_token",
    "v.position_embd.weight": "vision_tower.embeddings.position_embeddings",
    "v.patch_embd": "vision_tower.embeddings.patch_embeddings.projection",
    "mm.model.mlp.0": "multi_modal_projector.layer_norm",
    "mm.model.mlp.1": "multi_modal_projector.linear_1",
    "mm.model.mlp.3": "multi_modal_projector.linear_2",
}
_PIXTRAL_LAYER = {
    "ln1": "attention_norm",
    "ln2": "ffn_norm",
    **{f"attn_{part}": f"attention.{part}_proj" for part in "qkv"},
    "attn_out": "attention.o_proj",
    **{f"ffn_{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")},
}
_PIXTRAL_ENDS = {
    "v.patch_embd": "vision_tower.patch_conv",
    "v.pre_ln": "vision_tower.ln_pre",
    "mm.1": "multi_modal_projector.linear_1",
    "mm.2": "multi_modal_projector.linear_2",
    "mm.input_norm": "multi_modal_projector.norm",
    "mm.patch_merger": "multi_modal_projector.patch_merger.merging_layer",
}
_NAMES: Mapping[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "gemma3": _siglip("vision_tower", _GEMMA3_ENDS),
    "gemma4v": ("vision_tower.encoder.layers", _GEMMA4_LAYER, _GEMMA4_ENDS),
    "internvl": ("vision_tower.encoder.layer", _INTERN_LAYER, _INTERN_ENDS),
    "pixtral": ("vision_tower.transformer.layers", _PIXTRAL_LAYER, _PIXTRAL_ENDS),
    "idefics3": _siglip("vision_model", {"mm.model.fc": "connector.modality_projection.proj"}),
    "qwen2vl_merger": _qwen(_PLAIN, "ln_q", "mlp.0", "mlp.2"),
    "qwen2.5vl_merger": _qwen(_GATED, "ln_q", "mlp.0", "mlp.2"),
    "qwen3vl_merger": _qwen(_DEEP_MLP, "norm", "linear_fc1", "linear_fc2"),
}
"""kind -> (our list of layers, stems or whole names of a layer's tensors, and of those of no layer)"""
_BY_PIXEL = "vision_tower.patch_embedder.input_proj.weight"
"""whose columns go pixel by pixel with us; files have a convolution"""
_INTERLEAVED = re.compile(r"vision_tower\.transformer\.layers\.\d+\.attention\.[qk]_proj\.weight")
"""whose rows go pair by pair in files, and half a head apart with us (Pixtral)"""
_LEFT_OUT = ("v.token_embd.img_break",)
"""what the decoder's file has too"""
_SECOND_FRAME = "v.patch_embd.weight.1"


class ProjectorSource:
    """`text`, and the encoder's tensors in `file`. Of Qwen's encoders q, k and v become one matrix, and patches of two frames one tensor."""

    def __init__(self, text: TensorSource, file: TensorSource, projector: Projector) -> None:
        self.path = text.path
        self._text, self._file = text, file
        self._parts: dict[str, list[str]] = {}
        self._head_dim = projector.width // projector.size("attention.head_count")
        layers, stems, ends = _NAMES[projector.kind]
        if projector.is_swapped:
            stems = {**stems, "ffn_up": stems["ffn_down"], "ffn_down": stems["ffn_up"]}
        deep = [i for i, is_deep in enumerate(projector.array("is_deepstack_layers") or []) if is_deep]
        for stored in sorted(self._file.names, key=_order):
            name = _our_name(stored, layers, stems, ends, deep)
            if name is not None:
                self._parts.setdefault(name, []).append(stored)
            elif stored.startswith(("v.", "mm.")) and not stored.startswith(("mm.a.", *_LEFT_OUT)):
                raise ModelError(f"{projector.file.path}: the tensor {stored!r} is not known to be part of such an encoder")

    @property
    def names(self) -> list[str]:
        return [*self._text.names, *self._parts]

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._parts:
            return self._text.shape(name)
        shapes = [self._file.shape(part) for part in self._parts[name]]
        if name == _BY_PIXEL:
            return (shapes[0][0], math.prod(shapes[0][1:]))
        if name.endswith(("_min", "_max")):
            return ()
        if name.endswith((".cls_token", ".position_embeddings")):
            return (1, math.prod(shapes[0][:-1]), shapes[0][-1])
        if self._are_frames(name):
            return (*shapes[0][:2], len(shapes), *shapes[0][2:])
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def format(self, name: str) -> str:
        return self._file.format(self._parts[name][0]) if name in self._parts else self._text.format(name)

    def where(self, name: str) -> Path:
        return self._file.where(self._parts[name][0]) if name in self._parts else self._text.where(name)

    def read(self, name: str) -> HostTensor:
        if name not in self._parts:
            return self._text.read(name)
        parts = [self._file.read(part) for part in self._parts[name]]
        if any(part.format != parts[0].format or part.shape[1:] != parts[0].shape[1:] for part in parts):
            raise ModelError(
                f"{self.where(name)}: {', '.join(self._parts[name])} differ in format or shape, and are one matrix"
            )
        join = (lambda data: np.stack(data, axis=2)) if self._are_frames(name) else np.concatenate
        data = parts[0].data if len(parts) == 1 else join([part.data for part in parts])
        if name == _BY_PIXEL and data.ndim == 4:
            data = np.ascontiguousarray(data.transpose(0, 2, 3, 1))
        if len(parts) == 1 and parts[0].is_dense:
            data = data.reshape(self.shape(name))
        found = replace(parts[0], name=name, shape=self.shape(name), data=data)
        return self._half_split(found) if _INTERLEAVED.fullmatch(name) else found

    def _half_split(self, tensor: HostTensor) -> HostTensor:
        rows, dim = tensor.shape[0], self._head_dim
        if rows % dim or dim % 2:
            raise ModelError(f"{self.where(tensor.name)}: {tensor.name} has {rows} rows, which are no heads of {dim}")
        return tensor.take_rows(np.arange(rows).reshape(-1, dim // 2, 2).swapaxes(1, 2).ravel())

    def read_index(self, name: str, index: int) -> HostTensor:
        return index_of(self.read(name), index) if name in self._parts else self._text.read_index(name, index)

    def _are_frames(self, name: str) -> bool:
        return _SECOND_FRAME in self._parts[name]


def _order(name: str) -> str:
    """q before k before v."""
    return re.sub(r"attn_([qkv])\.", lambda m: f"attn_{'qkv'.index(m[1])}.", name)


def _our_name(stored: str, layers: str, stems: dict[str, str], ends: dict[str, str], deep: list[int]) -> str | None:
    if stored in ends:
        return ends[stored]
    stored = stored.removesuffix(".1") if stored == _SECOND_FRAME else stored
    if match := _IN_LAYER.fullmatch(stored):
        if f"{match[2]}.{match[3]}" in stems:
            return f"{layers}.{match[1]}.{stems[f'{match[2]}.{match[3]}']}"
        stem = stems.get(match[2], "")
        stem = stem if match[3] in ("weight", "bias") else stem.removesuffix(".linear")
        return f"{layers}.{match[1]}.{stem}.{match[3]}" if stem else None
    if match := _DEEP.fullmatch(stored):
        if int(match[1]) not in deep or match[2] not in _DEEP_MERGER:
            return None
        return f"visual.deepstack_merger_list.{deep.index(int(match[1]))}.{_DEEP_MERGER[match[2]]}.{match[3]}"
    stem, _, kind = stored.rpartition(".")
    return f"{ends[stem]}.{kind}" if stem in ends else None
