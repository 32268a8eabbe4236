"""Checks a model's numbers against what the chosen kernels can compute, before anything is allocated or native code is called."""

from __future__ import annotations

from sglang.srt.errors import ConfigError
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.model_config import ModelConfig


def check_decoder(ops: Ops, config: ModelConfig) -> None:
    """Raises ConfigError naming the value that the op set cannot do."""
    limits = ops.limits
    _check_width(ops, config.hidden_size)
    _check_head_dim(ops, "head_dim", config.head_dim)
    group = config.num_heads // config.num_kv_heads
    if group > limits.max_group:
        raise ConfigError(
            f"{group} query heads share a KV head (num_attention_heads {config.num_heads}, num_key_value_heads "
            f"{config.num_kv_heads}), and {limits.max_group} are the most for the {ops.name} kernels"
        )
    is_recurrent = config.recurrent is not None or config.output_gate
    if is_recurrent and (
        not hasattr(ops, "short_conv") or ops.name.startswith("cuda")
    ):  # those for the GPU were not seen to work
        raise ConfigError(f"the {ops.name} kernels have no recurrent layers, which {config.architecture} needs")
    if config.vision is not None:
        check_encoder(ops, config.vision.hidden_size, config.vision.head_dim)
        if config.vision.cross_attention is not None:
            _check_head_dim(ops, "the head_dim of cross-attention", config.vision.cross_attention.head_dim)


def check_encoder(ops: Ops, width: int, head_dim: int) -> None:
    """The same for an encoder of texts or images."""
    _check_width(ops, width)
    _check_head_dim(ops, "the encoder's head_dim", head_dim)


def _check_width(ops: Ops, width: int) -> None:
    if width > ops.limits.max_width:
        raise ConfigError(f"hidden_size {width} is more than {ops.limits.max_width}, the most for the {ops.name} kernels")


def _check_head_dim(ops: Ops, name: str, head_dim: int) -> None:
    if head_dim > ops.limits.max_head_dim:
        raise ConfigError(f"{name} {head_dim} is more than {ops.limits.max_head_dim}, the most for the {ops.name} kernels")
