"""Encoders of texts in GGUF files. Their metadata is converted to a config.json of the family, and read like one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.errors import ModelError
from sglang.srt.model.weights.families.encoders import (
    ENCODER_FAMILIES,
    EncoderConfig,
    EncoderNames,
    parse_encoder_config,
)

ENCODERS = {"bert": "Bert", "nomic-bert": "NomicBert"}
"""general.architecture -> family. Files of XLM-RoBERTa are "bert", too: their table of positions begins with the first of a text"""
KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "rope_theta": "rope.freq_base",
}
"""field of a config.json -> key under the architecture"""


def is_gguf_encoder(gguf: GGUFFile) -> bool:
    return gguf.metadata.get("general.architecture") in ENCODERS


def read_gguf_encoder(gguf: GGUFFile, overrides: Mapping[str, Any]) -> EncoderConfig:
    """Raises ModelError for a file that is damaged or asks for what is not done here."""
    arch = str(gguf.metadata["general.architecture"])
    family = next(f for f in ENCODER_FAMILIES if f.name == ENCODERS[arch])
    shapes = {name: tensor.shape for name, tensor in gguf.tensors.items()}
    words, positions, types = (shapes.get(f"{name}.weight") for name in ("token_embd", "position_embd", "token_types"))
    if words is None or len(words) != 2 or (arch == "bert" and positions is None):
        raise ModelError(f"{gguf.path} lacks its tables of embeddings: it is not a whole model")
    raw: dict[str, Any] = {field: gguf.metadata.get(f"{arch}.{key}") for field, key in KEYS.items()}
    if arch == "bert":
        raw.pop("rope_theta")
    length = positions[0] if positions is not None else gguf.metadata.get(f"{arch}.context_length")
    raw |= {"vocab_size": words[0], "type_vocab_size": types[0] if types is not None else 0, "max_position_embeddings": length}
    config = parse_encoder_config(
        {name: value for name, value in raw.items() if value is not None}, gguf.path, family, f"{family.name}Model", overrides
    )
    fused = "blk.0.attn_qkv.weight" in shapes
    names = EncoderNames(
        layer="blk.",
        qkv=("attn_qkv",) if fused else ("attn_q", "attn_k", "attn_v"),
        output="attn_output",
        first=("ffn_gate", "ffn_up") if config.is_gated else ("ffn_up",),
        second="ffn_down",
        norms=("attn_output_norm", "layer_output_norm"),
        words="token_embd",
        norm="token_embd_norm",
        positions="position_embd" if positions is not None else "",
        types="token_types" if types is not None else "",
    )
    biased = tuple(f"blk.0.{name}.bias" in shapes for name in (names.qkv[0], "attn_output", "ffn_up", "ffn_down"))
    return replace(config, names=names, prefix="", biases=(biased[0], biased[1], biased[2], biased[3]))
